"""What a run leaves on disk: rows as they are observed, small JSON files, and reading them back. Imports no torch.

A run folder holds `config.yaml` (for people, `resume=` and `rerun`), its settings flat in `settings.json` (for lists
and reports), `records.jsonl` (one flat JSON row per observation), `status.json` and, once the run has ended,
`summary.json`. pandas is imported where all rows are read; what looks at many runs does without it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nncompress.errors import CheckpointError, ConfigError
from nncompress.files import finite_number, parse_json, read_json, write_text

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


CONFIG, SETTINGS, RECORDS = "config.yaml", "settings.json", "records.jsonl"
STATUS, SUMMARY = "status.json", "summary.json"
COLUMNS = "columns.json"
"""What the solver adds to reports, from the start of a run on."""
SEARCH, LOCK = "search.json", "run.lock"
FORMAT = 1
"""Of `settings.json`."""
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
    """One run as its folder shows it.

    `settings` are by their dotted keys, as `flatten` makes them; `rows` has one line per observation and a float column
    per key (null is NaN); `summary` is None when the run has not ended; `status` always has the keys status, reason,
    traceback and step.
    """

    folder: Path
    settings: dict[str, Any]
    rows: pd.DataFrame
    summary: dict[str, Any] | None
    status: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Read a run folder; what a killed run left half written is skipped with a warning in the log.

    Raises:
        ConfigError: the folder is not a run's.
        CheckpointError: an older version wrote it.
    """
    folder = Path(folder)
    require_run(folder)
    settings, rows = read_settings(folder), _frame(_rows(folder / RECORDS))
    return Run(folder, settings, rows, read_json(folder / SUMMARY), read_status(folder))


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Return every run in or below the given folders, as `run_folders` finds them.

    Raises:
        ConfigError: a folder does not exist or has no run in it.
        CheckpointError: an older version wrote one of them.
    """
    return [read_run(path) for path in run_folders(folders, required=True)]


def run_folders(folders: Iterable[Path], required: bool = False) -> list[Path]:
    """Return the run folders in or below the given ones, each once, in the natural order of paths (2 before 10).

    Raises:
        ConfigError: a folder does not exist, or has no run in it where one is `required`.
    """
    distinct: dict[str, Path] = {}
    for folder in map(Path, folders):
        runs = sorted(_run_folders(folder), key=_natural)
        if not runs and (required or not folder.is_dir()):
            raise ConfigError(
                f"A folder with at least one run (one that holds {STATUS}) is required; {folder} {_holds(folder)}: "
                "check the path."
            )
        whole = os.path.realpath(folder)  # nothing below it is reached through a link
        for path in runs:
            distinct.setdefault(os.path.join(whole, *path.parts[len(folder.parts) :]), path)
    return list(distinct.values())


def require_run(folder: Path) -> None:
    """Raise ConfigError when a folder is not a run's."""
    if not is_run(folder):
        raise ConfigError(
            f"A run folder holds {STATUS}, or {CONFIG} and {RECORDS}; {folder} {_holds(folder)}: "
            "give the folder of a run, or of a sweep above it."
        )


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run."""
    return (folder / STATUS).is_file() or ((folder / CONFIG).is_file() and (folder / RECORDS).is_file())


def read_status(folder: Path) -> dict[str, Any]:
    """Return how a run stands by its `status.json`: always with the keys status, reason, traceback and step."""
    status = {"status": "running", "reason": f"{STATUS} is missing", "traceback": None, "step": None}
    return status | (read_json(folder / STATUS) or {})


def is_older(folder: Path) -> bool:
    """Tell whether an older version wrote the run: it left a configuration, and no `settings.json`."""
    return (folder / CONFIG).is_file() and not (folder / SETTINGS).is_file()


def require_current(folder: Path) -> None:
    """Raise CheckpointError when an older version wrote the run in a folder."""
    if is_older(folder):
        raise CheckpointError(
            f"{folder} was written by an older version of nncompress (it has no {SETTINGS}); train it again with this "
            "version: nncompress train ..., the words are in its environment.json"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Return every setting of a run by its dotted key, as `flatten` makes them; none where the file is damaged.

    Raises:
        CheckpointError: an older version wrote the run, or a newer one.
    """
    require_current(folder)
    content = read_json(folder / SETTINGS) or {}
    if content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{folder / SETTINGS} has format {content['format']}, this version reads format {FORMAT}; train it again"
        )
    return content.get("settings") or {}


def flatten(config: Mapping[str, Any], left_out: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """Return the dotted keys of a configuration, each with a value that JSON holds; lists and other values become text.

    The options taken from the groups stand under the bare name of their group. left_out: keys of whole nodes.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key not in left_out:
            flat |= flatten(value, left_out, f"{key}.") if isinstance(value, Mapping) else {key: _plain(value)}
    chosen = {key.removeprefix("choices."): value for key, value in flat.items() if key.startswith("choices.")}
    return {key: value for key, value in flat.items() if not key.startswith("choices.")} | chosen


def _plain(value: Any) -> Any:
    infinite = isinstance(value, float) and not math.isfinite(value)
    return value if isinstance(value, bool | int | float | str | None) and not infinite else str(value)


def read_last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a records file, from its end; empty without one."""
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
    """Leave the first `keep` whole rows (None: all of them) in an existing file; return the number of rows left."""
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
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole rows of a records file, none when it does not exist; name each other line in the log."""
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
    """Return the lines of a file, the last one without a line end."""
    return path.read_bytes().split(b"\n") if path.exists() else []


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    if frame.empty:
        return pd.DataFrame({"step": [], "seconds": []}, dtype=float)
    return pd.DataFrame({key: pd.to_numeric(frame[key], errors="coerce").astype(float) for key in frame})


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
