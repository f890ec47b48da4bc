"""`nncompress report`: what is drawn again, and what is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from nncompress.errors import NNCompressError, one_line, printable
from nncompress.report.fresh import PAGE, digest_of, digest_of_sweep, is_whole
from nncompress.results.records import Run, is_run, read_run, run_folders

log = logging.getLogger(__name__)

SECONDS = 5.0
"""From one word on how far it is to the next."""
Tell = Callable[[str], None]
T = TypeVar("T")


def report(folders: Iterable[Path], html: bool = False, tell: Tell = log.info) -> tuple[list[Path], list[Path]]:
    """Rebuild the report of each folder: a run's own; below any other folder, that of each run and their aggregate.

    What is whole and of its present inputs stays as it is. What cannot be reported is a sentence in the log.

    Args:
        folders: of runs, or with runs below them.
        html: also write one page, report.html, into each folder.
        tell: gets a line of text about what is being done.

    Returns:
        The files written, and the folders without a report.

    Raises:
        ConfigError: a folder does not exist or holds no run.
    """
    written: list[Path] = []
    failed: list[Path] = []
    for folder in map(Path, folders):
        paths, without = (_run if is_run(folder) else _sweep)(folder, [PAGE] if html else [], tell)
        written, failed = written + paths, failed + without
    return written, failed


def _run(folder: Path, pages: list[str], tell: Tell) -> tuple[list[Path], list[Path]]:
    digest, failed = digest_of(folder), list[Path]()
    if is_whole(folder, digest, pages):
        tell(f"{printable(str(folder))}: nothing has changed since its report was written")
        return [], []
    from nncompress.report.write import write_run

    return _attempt(folder, failed, lambda: write_run(read_run(folder), digest, bool(pages))) or [], failed


def _sweep(folder: Path, pages: list[str], tell: Tell) -> tuple[list[Path], list[Path]]:
    digests = {run: digest_of(run) for run in run_folders([folder], required=True)}
    due = {run for run, digest in digests.items() if not is_whole(run, digest)}
    digest = digest_of_sweep(folder, digests)
    stale = not is_whole(folder, digest, pages)
    if not due and not stale:
        tell(f"{printable(str(folder))}: nothing has changed since the reports of its {len(digests)} runs were written")
        return [], []
    tell(f"{printable(str(folder))}: drawing {len(due)} of {len(digests)} runs, the others are as they were")
    from nncompress.report.write import write_run, write_sweep

    written, failed, runs = list[Path](), list[Path](), list[Run]()
    told, read = time.monotonic(), digests if stale else due
    for at, path in enumerate(read, start=1):
        run = _attempt(path, failed, partial(read_run, path))
        if run is not None:
            runs.append(run)
            if path in due:
                written += _attempt(path, failed, partial(write_run, run, digests[path])) or []
        if time.monotonic() - told > SECONDS:
            told = time.monotonic()
            tell(f"{printable(str(folder))}: {at} of {len(read)} runs read, and drawn where they changed")
    if stale and runs:
        written += _attempt(folder, failed, partial(write_sweep, folder, runs, digest, bool(pages))) or []
    return written, failed


def _attempt(folder: Path, failed: list[Path], work: Callable[[], T]) -> T | None:
    """Return what the work returns; None, with a sentence in the log, where anything keeps it from being done."""
    try:
        return work()
    except Exception as error:
        name = "" if isinstance(error, NNCompressError) else f"{type(error).__name__}: "
        log.error("%s has no report: %s", printable(str(folder)), printable(f"{name}{one_line(error)}"))
        log.debug("the traceback", exc_info=error)
        failed.append(folder)
        return None
