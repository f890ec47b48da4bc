"""A run's folder: held by one process at a time, with a status that tells how the run ended."""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncompress.errors import ConfigError, Diverged, NNCompressError, Pruned, Unsupported
from nncompress.files import held, taken, write_json
from nncompress.results.records import CONFIG, LOCK, RECORDS, STATUS, read_status

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


CHECKPOINT = Path("checkpoints") / "last.pt"


@contextmanager
def claimed(folder: Path, resumed: bool) -> Iterator[None]:
    """Hold the folder: a second process that wants to run in it is refused. The claim ends with the process."""
    with ExitStack() as claim:
        try:
            claim.enter_context(held(folder / LOCK))
        except BlockingIOError as error:
            raise ConfigError(
                f"a run needs a folder of its own, found another process running in {folder}; wait for it, or give "
                "another hydra.run.dir"
            ) from error
        if not resumed and (folder / RECORDS).exists():
            raise ConfigError(
                f"a run needs a folder of its own, found the records of another run in {folder}; "
                f"continue that one with resume={folder}, or give another hydra.run.dir"
            )
        for left in folder.rglob(".*.tmp"):  # by a process that was killed while it wrote
            if left.is_file():  # an export makes folders
                left.unlink(missing_ok=True)
        yield


def running(folder: Path) -> bool:
    """Whether a process holds the folder, or may."""
    return taken(folder / LOCK)


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Within it a full disk is told in a sentence. Raises NNCompressError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise NNCompressError(
            f"the disk that holds {folder} is full; free space, then continue with resume={folder} if it holds "
            f"{CONFIG}, else start the run again"
        ) from error


@contextmanager
def status_of(folder: Path, resumed: bool) -> Iterator[dict[str, Any]]:
    """Keep `status.json` true: running inside, then done or what ended the run, with its traceback in the log.

    A run that ended and cannot be taken up again (`resumed`, no step restored) keeps the status it had.
    """
    before = read_status(folder) if resumed else None
    status: dict[str, Any] = {"status": "running", "reason": None, "traceback": None, "step": None}
    write_json(folder / STATUS, status)
    try:
        yield status
        status["status"] = "done"
    except (SystemExit, KeyboardInterrupt) as stop:
        status |= {"status": "interrupted", "reason": "stopped by a signal; continue with resume=<this folder>"}
        log.warning("interrupted at step %s; continue with: nncompress train resume=%s", status["step"], folder)
        raise stop
    except BaseException as error:
        kinds: dict[type[BaseException], str] = {Unsupported: "unsupported", Diverged: "diverged", Pruned: "pruned"}
        name = kinds.get(type(error), "failed")
        last_line = traceback.format_exception_only(error)[-1].strip()
        status |= {"status": name, "reason": str(error) or last_line, "traceback": last_line}
        if before is not None and before["step"] is not None and status["step"] is None:
            status = before
        log.error("%s", error, exc_info=error)
        raise
    finally:
        with suppress(OSError):  # a full disk must not hide what went wrong
            write_json(folder / STATUS, status)


def stamp() -> str:
    """`<date>_<time>-<6 hex>`: a folder's name that two runs of the same second do not share."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.urandom(3).hex()}"
