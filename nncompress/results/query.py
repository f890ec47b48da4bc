"""A run as it is listed and compared: status, figures and settings read when asked for, and filters over them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from nncompress.errors import ConfigError
from nncompress.files import read_json
from nncompress.results.records import CONFIG, RECORDS, STATUS, SUMMARY, read_config, read_last_row, read_status
from nncompress.results.run_folder import running

GROUPS = ("solver", "model", "dataset", "compression")


CHOICES = "choices"


COPIES = ("solver.constraint",)
"""Parts of a config that repeat others."""


RECORDED = {"loss", "accuracy", "ratio", "sparsity", "gap"}


FINAL_NAMES = {"step": "steps", "seconds": "seconds/total", "objective": "objective/final"}


DETAILS = ("tasks", "channels", "factors", "one_shot", "round_to/changed")
"""Keys of a summary that hold lists: for the tables of one run."""


@dataclass(frozen=True)
class Outline:
    """A run's folder, and what it holds."""

    folder: Path

    @cached_property
    def status(self) -> dict[str, Any]:
        """What `status.json` says, with the status `killed` for a run that never came to tell how it ended."""
        found = read_status(self.folder)
        return found | {"status": state(self.folder, found)}

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
        """Every dotted key of the configuration."""
        return flatten(read_config(self.folder / CONFIG))

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The options taken from the groups, from the configuration; and the seed, which is asked for as often."""
        return flatten(read_config(self.folder / CONFIG, CHOICES, "seed"))

    @cached_property
    def date(self) -> str | None:
        """When the run ended, or began if it has not: the status file's time, in local time."""
        try:
            written = (self.folder / STATUS).stat().st_mtime
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M:%S")

    def knows(self, key: str) -> bool:
        """Whether the run has the key at all, if only with the value null."""
        return key in self._whole(key)

    def get(self, key: str) -> Any:
        """The value of folder, date, a key of the status, a figure, a group or a dotted key; None where unknown."""
        return self._whole(key).get(key)

    def _whole(self, key: str) -> Mapping[str, Any]:
        """What holds the key, looked for in the order of its cost: the long configuration last, in part."""
        if key in ("folder", "date"):
            return {"folder": str(self.folder), "date": self.date}
        if key in self.status:
            return self.status
        if key in self.figures:
            return self.figures
        return self.choices if "." not in key and key in self.choices else self._part(key)

    def _part(self, key: str) -> dict[str, Any]:
        if key not in self._parts:
            self._parts[key] = flatten(read_config(self.folder / CONFIG, key))
        return self._parts[key]

    @cached_property
    def _parts(self) -> dict[str, dict[str, Any]]:
        return {}


def state(folder: Path, status: Mapping[str, Any]) -> str:
    """The status of a run, `killed` for one that is said to be running while nobody holds its folder."""
    said = str(status["status"])
    return "killed" if said == "running" and not running(folder) else said


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a record knows of the keys of a summary, under their names there."""
    known = {key: value for key, value in row.items() if value is not None}
    kept = {key: value for key, value in known.items() if key.split("/")[0] in RECORDED}
    return kept | {ends: known[key] for key, ends in FINAL_NAMES.items() if key in known}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a config; lists become text, and the options taken stand under the bare name of their group."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if f"{prefix}{key}" in COPIES:
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list) else value
    chosen = {key.removeprefix("choices."): value for key, value in flat.items() if key.startswith("choices.")}
    return {key: value for key, value in flat.items() if not key.startswith("choices.")} | chosen


WORD = re.compile(r"(?P<key>[^=<>!]+)(?P<sign>!=|>=|<=|==|=|>|<)(?P<value>.*)", re.DOTALL)


ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip


NULL = ("null", "none", "")


LOOKED_AT = 50
"""Runs whose configurations are read for the name that was meant."""


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
        """Whether the run is chosen. Raises ConfigError when a number is compared with text."""
        found = run.get(self.key)
        if self.sign in ORDERS:
            return not absent(found) and self._ordered(found)
        whole = self.value.startswith(("[", "(", "{"))
        alternatives = [self.value] if whole else self.value.split(",")
        return any(_same(found, wanted.strip()) for wanted in alternatives) == (self.sign == "=")

    def _ordered(self, found: Any) -> bool:
        left, right = as_number(found), as_number(self.value)
        if left is None:
            return ORDERS[self.sign](str(found), self.value)
        if right is None:
            raise ConfigError(f"{self.key} is a number (such as {left:g}), found '{self.key}{self.sign}{self.value}'")
        return ORDERS[self.sign](left, right)


def read_filter(word: str) -> Filter | None:
    """The filter that a word is; None for a word without a sign."""
    found = WORD.fullmatch(word)
    if found is None:
        return None
    sign = "=" if found["sign"] == "==" else found["sign"]
    return Filter(found["key"].strip(), sign, found["value"].strip())


def require_key(key: str, runs: Sequence[Outline]) -> None:
    """Raise ConfigError, with the key that may have been meant, when none of the runs knows it."""
    if not runs or any(run.knows(key) for run in runs):
        return
    from nncompress.errors import nearest

    known = dict.fromkeys(chain.from_iterable(map(_keys, runs[:LOOKED_AT])))
    hint = nearest(key, known) or "; keys are those of status.json, summary.json and config.yaml (solver.num_steps)"
    raise ConfigError(f"none of the {len(runs)} runs has the key '{key}'{hint}")


def _keys(run: Outline) -> Iterator[str]:
    yield from ("folder", "date")
    yield from chain(run.status, run.figures, run.settings)


def as_number(value: Any) -> float | None:
    """A number, also one that is written as text; None for anything else."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def absent(value: Any) -> bool:
    """Whether a value is null or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _same(found: Any, wanted: str) -> bool:
    if absent(found):
        return wanted.lower() in NULL
    if isinstance(found, bool):
        return str(found).lower() == wanted.lower()
    left, right = as_number(found), as_number(wanted)
    if left is not None and right is not None:
        return left == right
    return str(found).replace(" ", "") == wanted.replace(" ", "") or fnmatchcase(str(found), wanted)
