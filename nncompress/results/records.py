"""What a run leaves on disk: rows as they are observed, small JSON files, and reading them back. Imports no torch.

A run folder holds `config.yaml` (for people, `resume=` and `rerun`), its settings flat in `settings.json` (for lists
and reports), `records.jsonl` (one flat JSON row per observation), `status.json` and, once the run has ended,
`summary.json`. pandas is imported where all rows are read; what looks at many runs does without it.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncompress.errors import CheckpointError, ConfigError
from nncompress.files import read_json
from nncompress.results import shapes
from nncompress.results.rows import START, Mark, read_rows
from nncompress.results.shapes import FIGURE, fits, fitting

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

    @cached_property
    def convergence(self) -> pd.DataFrame:
        """The convergence figures of the rows, `results.convergence.convergence`."""
        from nncompress.results.convergence import convergence

        return convergence(self.rows)


def read_run(folder: Path) -> Run:
    """Read a run folder; what a killed run left half written is skipped with a warning in the log.

    Raises:
        ConfigError: the folder is not a run's.
        CheckpointError: an older version wrote it.
    """
    folder = Path(folder)
    require_run(folder)
    status = read_status(folder)
    match status.get("records"):
        case [count, check]:
            mark = Mark(count, check)
        case _:
            mark = START
    settings, rows = read_settings(folder), read_rows(folder / RECORDS, mark)
    return Run(folder, settings, rows, read_summary(folder), status)


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Return every run in or below the given folders, as `run_folders` finds them, but those of other versions.

    Raises:
        ConfigError: a folder does not exist or has no run in it.
        CheckpointError: other versions wrote all of them.
    """
    runs, refusals = [], []
    for path in run_folders(folders, required=True):
        try:
            runs.append(read_run(path))
        except CheckpointError as error:
            refusals.append(error)
    if not runs:
        raise refusals[0]
    for refusal in refusals:
        log.warning("ignored: %s", refusal)
    return runs


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
    path = folder / STATUS
    known = _known(path, shapes.STATUS | shapes.RECORDS_MARK)
    if known.get("records") is None:  # before the first checkpoint
        known.pop("records", None)
    if shapes.STATUS.keys() <= known.keys():
        return known
    wrong = "damaged" if os.path.lexists(path) else "missing"
    return {"status": "running", "reason": f"{STATUS} is {wrong}", "traceback": None, "step": None} | known


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the figures, the texts and, of the lists, those that reports know in `summary.json`; None without one."""
    content = read_json(folder / SUMMARY)
    return None if content is None else fit_summary(folder, content)


def fit_summary(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `read_summary` does, of the content of `summary.json` or a part of it."""
    known = {key: value for key, value in content.items() if key in shapes.SUMMARY or type(value) not in (list, dict)}
    return fitting(folder / SUMMARY, known, {key: FIGURE for key in known if "/" in key} | shapes.SUMMARY)


def read_columns(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the "columns" and the "plots" that a run's solver adds to reports (`solvers.base`), as plain values."""
    path, declared = folder / COLUMNS, {}
    content = read_json(path) or {}
    for kind, shape in shapes.DECLARATIONS.items():
        listed = content.get(kind, [])
        listed = listed if isinstance(listed, list) else [listed]
        declared[kind] = [each for each in listed if fits(each, shape) and each.get("panels") != []]
        if len(declared[kind]) < len(listed):
            log.warning("%s: ignored, it is damaged in part: %s.", path, kind)
    return declared


def is_older(folder: Path) -> bool:
    """Tell whether an older version wrote the run: it left a configuration, and no `settings.json`."""
    return (folder / CONFIG).is_file() and not os.path.lexists(folder / SETTINGS)


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
    path = folder / SETTINGS
    content = _known(path, {"format": {int}, "settings": {dict}})
    if content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}, this version reads format {FORMAT}; train it again"
        )
    return fitting(path, content.get("settings", {}), {})


def _known(path: Path, needed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a JSON file that are needed and of their shapes; one that is missing is damaged too."""
    content = read_json(path)
    return {} if content is None else fitting(path, {key: content.get(key) for key in needed}, needed)


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


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, below, files in os.walk(folder, onerror=_tell_left_out):
        if STATUS in files or (CONFIG in files and RECORDS in files):
            below.clear()
            yield Path(path)


def _tell_left_out(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # it never was, or is gone by now
        log.warning("%s is left out: %s", error.filename, error.strerror)


def _natural(path: Path) -> list[list[tuple[int, int, str]]]:
    parts = (re.split(r"(\d+)", part) for part in path.parts)
    return [[(0, int(p), "") if p.isdigit() else (1, 0, p) for p in part if p] for part in parts]


def _holds(folder: Path) -> str:
    if not folder.is_dir():
        return "does not exist" if not folder.exists() else "is a file"
    return "holds none of them" if any(folder.iterdir()) else "is empty"
