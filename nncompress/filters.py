"""Words that choose runs: `status=failed`, `model=resnet*`, `accuracy/test>0.9`, `compression.rank!=4`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from nncompress.errors import ConfigError
from nncompress.outline import Outline

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
    from nncompress.signatures import nearest

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
