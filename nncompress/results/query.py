"""A run as it is listed and compared: status, figures and settings, read at their first use; and filters over it."""

from __future__ import annotations

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

from nncompress.errors import ConfigError, nearest
from nncompress.files import is_held, read_json
from nncompress.results.records import LOCK, RECORDS, STATUS, SUMMARY, read_last_row, read_settings, read_status

GROUPS = ("solver", "model", "dataset", "compression")
RECORDED = {"loss", "accuracy", "ratio", "sparsity", "gap"}
"""How the keys of a record begin that a summary has under the same names."""
FINAL_NAMES = {"step": "steps", "seconds": "seconds/total", "objective": "objective/final"}
"""Keys of a record and their names in a summary."""
DETAILS = ("tasks", "channels", "factors", "one_shot", "round_to/changed", "weights")
"""Keys of a summary that hold lists: for the tables of one run."""


@dataclass(frozen=True)
class Outline:
    """A run's folder, and what it holds."""

    folder: Path

    @cached_property
    def status(self) -> dict[str, Any]:
        """What `status.json` says, with the status `killed` for a run that never came to tell how it ended."""
        status = read_status(self.folder)
        return status | {"status": state(self.folder, status)}

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """`summary.json`; None when the run has not ended."""
        return read_json(self.folder / SUMMARY)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The keys of the summary; of a run that has not ended what its last record knows of them."""
        summary = self.summary
        return figures_of(read_last_row(self.folder / RECORDS)) if summary is None else summary

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key. Raises CheckpointError where an older version wrote the run."""
        return read_settings(self.folder)

    @cached_property
    def date(self) -> str | None:
        """When the run ended, or began if it has not: the status file's time, in local time."""
        try:
            written = (self.folder / STATUS).stat().st_mtime
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M:%S")

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
        """Tell whether the run is chosen. Raises ConfigError when a number is compared with text."""
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
        if right is None:
            raise ConfigError(f"{self.key} is a number (such as {left:g}), found '{self.key}{self.sign}{self.value}'")
        return ORDERS[self.sign](left, right)


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
