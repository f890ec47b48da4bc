"""What the summaries below a folder say, in one file there: a long list need not read every summary again.

The file is made by lists of many runs and read by them alone. It is safe to delete: an entry counts for the very file
that it was read from, and an index that is damaged or cannot be written is done without.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from nncompress.files import read_json, remove_unfinished, write_text
from nncompress.results.query import Outline, read_brief
from nncompress.results.records import SUMMARY
from nncompress.results.shapes import WORD, fits

INDEX = ".nncompress-index.json"
FORMAT = 1
LEAST = 100
"""Runs below a folder from which on it gets an index."""
ENTRY = [WORD, {}]
"""The shape of an entry: what tells one state of a summary from others, and what it holds but for its lists."""


@contextmanager
def indexed(folders: Sequence[Path], runs: Sequence[Path]) -> Iterator[list[Outline]]:
    """Give outlines of runs, each below one of the folders; what had to be read is kept for the next list."""
    indices = [_Index(folder, [run for run in runs if run.is_relative_to(folder)]) for folder in folders]
    owner = {run: index for index in reversed(indices) for run in index.names}
    try:
        yield [Outline(run, owner[run].read) for run in runs]
    finally:
        for index in indices:
            index.write()


class _Index:
    """The summaries of runs below a folder, without their lists."""

    def __init__(self, folder: Path, runs: Sequence[Path]) -> None:
        self._path = folder / INDEX
        self.names = {run: run.relative_to(folder).as_posix() for run in runs}
        self._worth = len(runs) >= LEAST
        self._fresh: dict[str, list[Any]] = {}

    @cached_property
    def _known(self) -> dict[str, list[Any]]:
        return _read(self._path) if self._worth else {}

    def read(self, run: Path) -> dict[str, Any] | None:
        """Return what a run's summary holds but for its lists, as it is there; None without one."""
        name, stamp = self.names[run], _stamp(run / SUMMARY)
        known, kept = self._known.get(name, (None, None))
        if stamp is not None and known == stamp:
            return kept
        content = read_brief(run)
        if stamp is not None and content is not None and name.isprintable():
            self._fresh[name] = [stamp, content]
        return content

    def write(self) -> None:
        """Write what is known of the runs, if any of it is new."""
        if not self._worth or not self._fresh:
            return
        known = self._known | self._fresh
        content = {"format": FORMAT, "summaries": {name: known[name] for name in self.names.values() if name in known}}
        with suppress(OSError):  # not ours, or a full disk
            remove_unfinished(self._path.parent.glob(f".{INDEX}.*.tmp"))
            write_text(self._path, json.dumps(content))


def _read(path: Path) -> dict[str, list[Any]]:
    """Return the entries of an index, those that may have been written there."""
    content = read_json(path) or {}
    entries = content.get("summaries") if content.get("format") == FORMAT else None
    return {name: entry for name, entry in entries.items() if fits(entry, ENTRY)} if isinstance(entries, dict) else {}


def _stamp(path: Path) -> str | None:
    """Return what changes with a file: its time, size and number; None without one."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return f"{seen.st_mtime_ns} {seen.st_size} {seen.st_ino}"
