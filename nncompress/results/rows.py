"""The records of a run: one JSON row per observation, in a chain that shows what was lost, changed or repeated.

Behind the figures of a row stands its `check`, the CRC-32 of the rows up to it: eight hexadecimal digits that continue
those of the row before over the bytes of the line. pandas is imported where all rows are read. Imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Mapping
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from nncompress.errors import CheckpointError
from nncompress.files import finite_number, parse_json, read_file, write_bytes
from nncompress.results.shapes import FIGURE, NAMED

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

CHECK, CHECK_SIZE = re.compile(rb', "check": "([0-9a-f]{8})"\}'), len(', "check": "01234567"}')
DAMAGED, HALF = "ignored, it is damaged (no JSON row)", "ignored, the run ended while writing it"
CHANGED = "not to be trusted, it was changed or a row before it is missing"
MOST = 1 << 53
"""From here on floats do not tell one step from the next."""
TAIL = 1 << 16
"""Bytes at the end of the records in which the last row is looked for first."""


class Mark(NamedTuple):
    """Where the records stood at a checkpoint: the number of rows, and the check of the last one."""

    rows: int = 0
    check: int = 0


START = Mark()


class Recorder:
    """Appends rows to a records file, one JSON line each, flushed as written.

    Args:
        path: the file; it and its folder are made when absent.
        mark: where the rows end that stay in an existing file; what is out of order in it is put in order.

    Raises:
        CheckpointError: not all of those rows are there.
    """

    def __init__(self, path: Path, mark: Mark = START) -> None:
        self.mark = mark
        path.parent.mkdir(parents=True, exist_ok=True)
        _restore(path, mark)
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row, of a later step than the last; a value that is not finite becomes null."""
        body = json.dumps({key: finite_number(value) for key, value in row.items()})[:-1].encode()
        self.mark = Mark(self.mark.rows + 1, zlib.crc32(body, self.mark.check))
        self._file.write(b'%b, "check": "%08x"}\n' % (body, self.mark.check))
        self._file.flush()

    def sync(self) -> None:
        """Wait until every row is on the disk: call it before a checkpoint that relies on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()


def read_rows(path: Path, mark: Mark = START) -> pd.DataFrame:
    """Return the rows of a records file by rising steps: a float column per key (null is NaN), without the checks.

    What is left out, put in order, not to be trusted or missing is told in the log. Without a file there are no rows.

    Args:
        mark: where the rows stood at the last checkpoint; others may follow.
    """
    import pandas as pd

    lines = _read(path)
    if mark.rows > len(lines) or (mark.rows > 0 and lines[mark.rows - 1].check != mark.check):
        found = len(lines) if len(lines) < mark.rows else "others"
        log.warning("%s must hold the %d rows that its run has recorded, found %s.", path, mark.rows, found)
    return pd.DataFrame([line.row for line in lines] or {"step": [], "seconds": []}, dtype=float)


def read_last_row(path: Path) -> dict[str, Any]:
    """Return the last row of a records file, from its end where that is in order; empty without one."""
    try:
        ends = [_line(number, text) for number, text in enumerate(read_file(path, TAIL).split(b"\n")[-3:-1])]
    except OSError:
        ends = []
    match ends:
        case [_Line() as before, _Line() as last] if last.follows(before):
            return last.row
    return next((line.row for line in reversed(_read(path))), {})


class _Line(NamedTuple):
    """A row in a file: the number and the bytes of its line, its step, its figures, its check (None: it has none)."""

    number: int
    text: bytes
    step: float
    row: dict[str, Any]
    check: int | None

    def follows(self, before: _Line | None) -> bool:
        """Tell whether it was written behind that row (None: as the first)."""
        if self.check is None:  # an older version wrote it
            return before is None or (before.check is None and before.step < self.step)
        return self.check == zlib.crc32(self.text[:-CHECK_SIZE], 0 if before is None else before.check or 0)


def _line(number: int, text: bytes) -> _Line | None:
    """Return the row that a line holds; None without one."""
    checked = CHECK.fullmatch(text, max(0, len(text) - CHECK_SIZE))
    row = parse_json(text[:-CHECK_SIZE] + b"}" if checked else text)
    if not isinstance(row, dict) or not FIGURE.issuperset(map(type, row.values())):
        return None
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0 <= step < MOST or step % 1:
        return None
    return _Line(number, text, step, row, int(checked[1], 16) if checked else None)


def _in_order(content: bytes) -> tuple[list[_Line], dict[int, str]]:
    """Return the rows of a file, one of each step by rising steps, and what is wrong with which line.

    Of several rows of a step that one stays which follows the row before.
    """
    texts = [text.strip() for text in content.split(b"\n")]
    lines = [_line(number, text) for number, text in enumerate(texts, start=1)]
    wrong = {number: DAMAGED for number, text in enumerate(texts, start=1) if text and lines[number - 1] is None}
    wrong |= {number: HALF for number in wrong if number == len(texts)}
    ordered: list[_Line] = []
    for step, rows in groupby(sorted(filter(None, lines), key=attrgetter("step")), key=attrgetter("step")):
        same, before = list(rows), ordered[-1] if ordered else None
        line = next((each for each in same if each.follows(before)), same[0])
        wrong |= {
            each.number: f"ignored, line {line.number} is of step {step:.0f} too" for each in same if each is not line
        }
        if not line.follows(before):
            wrong[line.number] = CHANGED
        ordered.append(line)
    for above, line in pairwise(sorted(ordered, key=attrgetter("number"))):
        if line.step < above.step:
            wrong.setdefault(line.number, f"moved, it belongs before line {above.number}")
    return ordered, wrong


def _read(path: Path) -> list[_Line]:
    """Return the rows of a file as `_in_order` does; what is wrong is told in the log."""
    try:
        lines, wrong = _in_order(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("%s: ignored, it cannot be read (%s).", path, error.strerror)
        return []
    if wrong:
        log.warning("%s, %s.", path, _told(wrong))
    return lines


def _restore(path: Path, mark: Mark) -> None:
    """Leave the rows before a mark in a file, and put them in order. Raises CheckpointError."""
    try:
        content = read_file(path) if os.path.lexists(path) else b""
    except OSError as error:
        raise CheckpointError(
            f"the records need a file, {path} cannot be read ({error.strerror}); move it away"
        ) from error
    lines, wrong = _in_order(content)
    kept = lines[: mark.rows]
    follows = all(line.follows(before) for before, line in zip([None, *kept], kept, strict=False))
    if not follows or (len(kept), kept[-1].check if kept else 0) != mark:
        found = len(kept) if len(kept) < mark.rows else "others"
        raise CheckpointError(
            f"{path} must hold the {mark.rows} rows that the checkpoint was written after, found {found}"
            f"{f' ({_told(wrong)})' if wrong else ''}; put the file back from a copy, or start the run again"
        )
    if wrong:
        log.warning("%s, %s.", path, _told(wrong))
    if len(lines) > len(kept):
        log.info("%d rows after the checkpoint are computed again", len(lines) - len(kept))
    restored = b"".join(line.text + b"\n" for line in kept)
    if restored != content:
        write_bytes(path, restored)


def _told(wrong: Mapping[int, str]) -> str:
    """Say what is wrong with the first lines."""
    told = [f"line {number}: {wrong[number]}" for number in sorted(wrong)]
    return "; ".join(told[:NAMED]) + (f"; and {len(told) - NAMED} lines more" if len(told) > NAMED else "")
