"""The published figures, as `published.csv` beside this module has them. Imports no torch."""

from __future__ import annotations

import csv
import importlib.resources
from typing import NamedTuple

NOT_AVAILABLE = "not available"
CLAIM = "claim"


class Published(NamedTuple):
    """One figure: of which paper, in which table or file, of which setting, what, how much."""

    paper: str
    row: str
    source: str
    setting: str
    metric: str
    value: str
    note: str

    @property
    def number(self) -> float | None:
        """The value as a number; None for a claim and for what is not available."""
        return None if self.metric == CLAIM or self.value == NOT_AVAILABLE else float(self.value)


def read_published(paper: str | None = None) -> list[Published]:
    """All figures, or those of one paper (`nnbcd slimming sparsefw lc`, or `other` for what others published)."""
    text = importlib.resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    found = [Published(**row) for row in csv.DictReader(text.splitlines())]
    return [figure for figure in found if paper in (None, figure.paper)]
