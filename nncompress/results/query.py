"""A run as it is listed and compared: status, figures and settings, read at their first use; and filters over it."""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from nncompress.errors import CheckpointError, ConfigError, nearest
from nncompress.files import is_held, read_json
from nncompress.results.records import LOCK, RECORDS, STATUS, SUMMARY, fit_summary, read_settings, read_status
from nncompress.results.rows import read_last_row

log = logging.getLogger(__name__)

GROUPS = ("solver", "model", "dataset", "compression")
RECORDED = {"loss", "accuracy", "ratio", "sparsity", "gap"}
"""How the keys of a record begin that a summary has under the same names."""
FINAL_NAMES = {"step": "steps", "seconds": "seconds/total", "objective": "objective/final"}
"""Keys of a record and their names in a summary."""
DETAILS = ("tasks", "channels", "factors", "one_shot", "round_to/changed", "weights")
"""Keys of a summary that hold lists: for the tables of one run."""


def read_brief(folder: Path) -> dict[str, Any] | None:
    """Return what `summary.json` holds but for its lists, as it is there; None without one."""
    content = read_json(folder / SUMMARY)
    return None if content is None else {key: value for key, value in content.items() if key not in DETAILS}


@dataclass(frozen=True)
class Outline:
    """A run's folder, and what it holds; `read` is how its summary is read.

    What is damaged is told in the log, once, and is then not known: nothing is raised.
    """

    folder: Path
    read: Callable[[Path], dict[str, Any] | None] = read_brief

    @cached_property
    def status(self) -> dict[str, Any]:
        """What `status.json` says, with the status `killed` for a run that never came to tell how it ended."""
        status = read_status(self.folder)
        return status | {"status": state(self.folder, status)}

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The figures of `summary.json`; None when the run has not ended."""
        content = self.read(self.folder)
        return None if content is None else fit_summary(self.folder, content)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Those of the summary; of a run that has not ended what its last record knows of them."""
        summary = self.summary
        return figures_of(read_last_row(self.folder / RECORDS)) if summary is None else summary

    @cached_property
    def details(self) -> dict[str, Any]:
        """The lists of `summary.json`."""
        content = None if self.summary is None else read_json(self.folder / SUMMARY)
        return fit_summary(self.folder, {key: content[key] for key in DETAILS if key in content}) if content else {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key; none where another version wrote the run."""
        try:
            return read_settings(self.folder)
        except CheckpointError as error:
            log.warning("%s", error)
            return {}

    @cached_property
    def date(self) -> str | None:
        """When the run ended, or began if it has not: the status file's time, in local time; None if it is no date."""
        try:
            written = datetime.fromtimestamp((self.folder / STATUS).stat().st_mtime)
        except (OSError, ValueError, OverflowError):
            return None
        return f"{written:%Y-%m-%d %H:%M:%S}"

    def knows(self, key: str) -> bool:
        """Tell whether the run has the key at all, if only with the value null."""
        return key in self._holder(key)

    def get(self, key: str) -> Any:
        """Return the value of folder, date, a key of the status, a figure or a setting; None where unknown."""
        return self._holder(key).get(key)

    def _holder(self, key: str) -> Mapping[str, Any]:
        """Return what holds the key: of equal names figures come before settings."""
        if key in ("folder", "date"):
            return {"folder": str(self.folder), "date": self.date}
        if key in DETAILS:
            return self.details
        if key in self.status:
            return self.status
        if key in self.figures:
            return self.figures
        return self.settings


def state(folder: Path, status: Mapping[str, Any]) -> str:
    """Return the status of a run, `killed` for one that is said to be running while nobody holds its folder."""
    told = str(status["status"])
    return "killed" if told == "running" and not is_held(folder / LOCK) else told


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record knows of the keys of a summary, under their names there."""
    known = {key: value for key, value in row.items() if value is not None}
    kept = {key: value for key, value in known.items() if key.split("/")[0] in RECORDED}
    return kept | {ends: known[key] for key, ends in FINAL_NAMES.items() if key in known}


WORD = re.compile(r"(?P<key>[^=<>!]+)(?P<sign>!=|>=|<=|==|=|>|<)(?P<value>.*)", re.DOTALL)
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
NULL = ("null", "none", "")
LOOKED_AT = 50
"""Runs whose settings are read for the name that was meant."""


@dataclass(frozen=True)
class Filter:
    """One word: a key, a sign and what the value is compared with.

    `=` and `!=` take alternatives with commas between, `*` and `?` in text, and null for what is not known; the other
    signs compare numbers with numbers and text (dates, say) with text, and are not true of what is not known.
    """

    key: str
    sign: str
    value: str

    def accepts(self, run: Outline) -> bool:
        """Tell whether the run is chosen."""
        value = run.get(self.key)
        if self.sign in ORDERS:
            return not absent(value) and self._compares(value)
        whole = self.value.startswith(("[", "(", "{"))
        alternatives = [self.value] if whole else self.value.split(",")
        return any(_same(value, wanted.strip()) for wanted in alternatives) == (self.sign == "=")

    def _compares(self, value: Any) -> bool:
        left, right = as_number(value), as_number(self.value)
        if left is None:
            return ORDERS[self.sign](str(value), self.value)
        return right is not None and ORDERS[self.sign](left, right)


def read_filter(word: str) -> Filter | None:
    """Return the filter that a word is; None for a word without a sign."""
    match = WORD.fullmatch(word)
    if match is None:
        return None
    sign = "=" if match["sign"] == "==" else match["sign"]
    return Filter(match["key"].strip(), sign, match["value"].strip())


def require_key(key: str, runs: Sequence[Outline]) -> None:
    """Raise ConfigError, with the key that may have been meant, when none of the runs knows it."""
    if not runs or any(run.knows(key) for run in runs):
        return
    parts = (("folder", "date", *run.status, *run.figures, *run.settings) for run in runs[:LOOKED_AT])
    known = dict.fromkeys(chain.from_iterable(parts))
    hint = nearest(key, known) or "; keys are those of status.json, summary.json and config.yaml (solver.num_steps)"
    raise ConfigError(f"none of the {len(runs)} runs has the key '{key}'{hint}")


def require_comparable(filter_: Filter, runs: Sequence[Outline]) -> None:
    """Raise ConfigError when a filter compares with text what is a number in every run that knows it."""
    if filter_.sign not in ORDERS or as_number(filter_.value) is not None:
        return
    numbers = [as_number(value) for value in (run.get(filter_.key) for run in runs) if not absent(value)]
    if numbers and None not in numbers:
        found = f"{filter_.key}{filter_.sign}{filter_.value}"
        raise ConfigError(f"{filter_.key} is a number (such as {numbers[0]:g}), found '{found}'")


def as_number(value: Any) -> float | None:
    """Return a number, also one that is written as text; None for anything else."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def absent(value: Any) -> bool:
    """Tell whether a value is null or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _same(value: Any, wanted: str) -> bool:
    if absent(value):
        return wanted.lower() in NULL
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    left, right = as_number(value), as_number(wanted)
    if left is not None and right is not None:
        return left == right
    return str(value).replace(" ", "") == wanted.replace(" ", "") or fnmatchcase(str(value), wanted)
