"""What a run leaves on disk: rows as they are observed, small JSON files, and reading them back. Imports no torch.

A run folder holds `config.yaml`, `records.jsonl` (one flat JSON row per observation), `status.json` and, once the run
has ended, `summary.json`. pandas is imported where all rows are read; what looks at many runs does without it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import yaml

from nncompress.errors import CheckpointError, ConfigError
from nncompress.files import finite_number, parse_json, read_json, replace_bytes

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


CONFIG, RECORDS, STATUS, SUMMARY = "config.yaml", "records.jsonl", "status.json", "summary.json"


SEARCH, LOCK = "search.json", "run.lock"


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML may have been built without its C part."""


TAIL = 1 << 16
"""Bytes at the end of the records in which the last row is looked for first."""


class Recorder:
    """Appends rows to a records file, one JSON line each, flushed as written.

    Args:
        path: the file; it and its folder are made when absent.
        keep: on an existing file, how many of its rows stay (those before a checkpoint); None keeps every whole row.

    Raises:
        CheckpointError: the file holds fewer than `keep` rows, or one of them is damaged.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.count = _truncate(self._path, keep)
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row; a value that is not finite becomes null."""
        self._file.write(json.dumps({key: finite_number(value) for key, value in row.items()}) + "\n")
        self._file.flush()
        self.count += 1

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


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    `rows` has one line per observation and a float column per key (null is NaN); `summary` is None when the run has
    not ended; `status` always has the keys status, reason, traceback and step.
    """

    folder: Path
    config: dict[str, Any]
    rows: pd.DataFrame
    summary: dict[str, Any] | None
    status: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Read a run folder; what a killed run left half written is skipped with a warning in the log.

    Raises:
        ConfigError: the folder is not a run's.
    """
    folder = Path(folder)
    require_run(folder)
    rows = _frame(_rows(folder / RECORDS))
    return Run(folder, read_config(folder / CONFIG), rows, read_json(folder / SUMMARY), read_status(folder))


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Every run in or below the given folders, as `run_folders` finds them.

    Raises:
        ConfigError: a folder does not exist or has no run in it.
    """
    return [read_run(path) for path in run_folders(folders, required=True)]


def run_folders(folders: Iterable[Path], required: bool = False) -> list[Path]:
    """The run folders in or below the given ones, each once, in the natural order of their paths (job 2 before job 10).

    Raises:
        ConfigError: a folder does not exist, or has no run in it where one is `required`.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        runs = sorted(_run_folders(folder), key=_natural)
        if not runs and (required or not folder.is_dir()):
            raise ConfigError(
                f"A folder with at least one run (one that holds {STATUS}) is required; {folder} {_holds(folder)}: "
                "check the path."
            )
        whole = os.path.realpath(folder)  # nothing below it is reached through a link
        for path in runs:
            found.setdefault(os.path.join(whole, *path.parts[len(folder.parts) :]), path)
    return list(found.values())


def require_run(folder: Path) -> None:
    """Raise ConfigError when a folder is not a run's."""
    if not is_run(folder):
        raise ConfigError(
            f"A run folder holds {STATUS}, or {CONFIG} and {RECORDS}; {folder} {_holds(folder)}: "
            "give the folder of a run, or of a sweep above it."
        )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / STATUS).is_file() or ((folder / CONFIG).is_file() and (folder / RECORDS).is_file())


def read_status(folder: Path) -> dict[str, Any]:
    """How a run stands by its `status.json`: always with the keys status, reason, traceback and step."""
    status = {"status": "running", "reason": f"{STATUS} is missing", "traceback": None, "step": None}
    return status | (read_json(folder / STATUS) or {})


def read_config(path: Path, *keys: str) -> dict[str, Any]:
    """The mapping in a YAML file, empty without one or where it is damaged, which is told in the log.

    With `keys`, one dotted key or several without dots, the rest of the file may be left out, which is far faster than
    to parse all of it.
    """
    try:
        content = path.read_bytes()
        found = yaml.load(_parts(content, keys) if keys else content, Loader=LOADER)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except (yaml.YAMLError, ValueError):  # the latter of a date that there is not
        found = None
    if isinstance(found, dict):
        return found
    log.warning("%s: ignored, it is damaged (no YAML mapping).", path)
    return {}


def read_last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a records file, from its end; empty without one."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - TAIL, 0)
        file.seek(start)
        for line in reversed(file.read().split(b"\n")[1 if start else 0 :]):
            row = parse_json(line)
            if isinstance(row, dict):
                return row
    return next(reversed(list(_rows(path))), {}) if start else {}


def _truncate(path: Path, keep: int | None) -> int:
    """Leave the first `keep` whole rows (None: all of them) in an existing file; the number of rows left."""
    rows = list(_rows(path))
    lines = [(number, line) for number, line in enumerate(_lines(path)[:-1], start=1) if line]
    damaged = [number for number, line in lines[: keep or 0] if not isinstance(parse_json(line), dict)]
    if damaged:
        raise CheckpointError(
            f"{path}, line {damaged[0]} is damaged (no JSON row), and the checkpoint was written after it: put the row "
            "back from a copy, or start the run again"
        )
    if keep is not None and len(rows) < keep:
        raise CheckpointError(
            f"The checkpoint was written after {keep} records, but {path} holds {len(rows)}: "
            "the records were cut or belong to another run; start the run again."
        )
    rows = rows[:keep]
    if path.exists():
        replace_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return len(rows)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a records file, none when it does not exist; each other line is named in the log."""
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        row = parse_json(line)
        if isinstance(row, dict):
            yield row
        elif number == len(lines) and line:
            log.warning("%s, line %d: ignored, the run ended while writing it.", path, number)
        elif line:
            log.warning("%s, line %d: ignored, it is damaged (no JSON row).", path, number)


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, the last one without a line end."""
    return path.read_bytes().split(b"\n") if path.exists() else []


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    if frame.empty:
        return pd.DataFrame({"step": [], "seconds": []}, dtype=float)
    return pd.DataFrame({key: pd.to_numeric(frame[key], errors="coerce").astype(float) for key in frame})


def _parts(content: bytes, keys: Sequence[str]) -> bytes:
    """The lines of these keys of a YAML mapping in block style; one in flow style (JSON) is left whole."""
    if content.lstrip().startswith(b"{"):
        return content
    return b"".join(_part(content + b"\n", key) for key in keys) or b"{}"


def _part(content: bytes, key: str) -> bytes:
    """The lines of a dotted key behind the first of each parent; of a key that is not found those of its parent."""
    parents, part = b"", content
    for depth, word in enumerate(key.encode().split(b".")):
        found = re.search(rb"^%b%b:(?: .*)?\n(?:(?:%b[ -].*)?\n)*" % _at(depth, word), part, re.MULTILINE)
        if found is None:
            return parents + part if depth else b""
        parents, part = parents + part.partition(b"\n")[0] + b"\n" if depth else b"", found.group()
    return parents + part


def _at(depth: int, word: bytes) -> tuple[bytes, bytes, bytes]:
    """The indentation of a word, the word, and what the lines below it begin with."""
    return b"  " * depth, re.escape(word), b"  " * depth


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, below, files in os.walk(folder):
        if STATUS in files or (CONFIG in files and RECORDS in files):
            below.clear()
            yield Path(path)


def _natural(path: Path) -> list[list[tuple[int, int, str]]]:
    parts = (re.split(r"(\d+)", part) for part in path.parts)
    return [[(0, int(p), "") if p.isdigit() else (1, 0, p) for p in part if p] for part in parts]


def _holds(folder: Path) -> str:
    if not folder.is_dir():
        return "does not exist" if not folder.exists() else "is a file"
    return "holds none of them" if any(folder.iterdir()) else "is empty"
