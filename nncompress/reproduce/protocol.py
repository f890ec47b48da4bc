"""What is run for a paper: studies (each a sweep), the published rows they measure, the claims they test.

Read from `papers/<paper>.yaml` and `published.csv` beside this module. Imports no torch.
"""

from __future__ import annotations

import csv
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import yaml

PAPERS = ("nnbcd", "slimming", "sparsefw", "lc", "cross")


SCALES = ("smoke", "cpu", "gpu")


FOLDER = "papers"
REPRODUCTION = "reproduce.json"
"""What is on record of a paper's experiments, in their folder."""


@dataclass(frozen=True)
class Alternative:
    """The words of a study where its official data are not at hand, and how that departs from the paper."""

    words: tuple[str, ...]
    deviation: str


@dataclass(frozen=True)
class PaperStudy:
    """A sweep: `nncompress train -m` with these words.

    data: the data set it needs. deviations: how it departs from what was published. judged: whether its figures may be
    held against the published ones. latency: whether the latency of its networks is measured afterwards.
    """

    name: str
    about: str
    data: str
    words: tuple[str, ...]
    deviations: tuple[str, ...] = ()
    judged: bool = True
    instead: Alternative | None = None
    latency: bool = False


@dataclass(frozen=True)
class Selection:
    """The runs of a study whose settings have these values, at their end or at a step.

    keys: figures of the run that take the place of those that a metric usually means. deviations: beside the study's.
    """

    study: str
    where: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What a paper says in words, as a comparison of means: `figure` of some runs, and of others or a number.

    It holds where the first is larger (`better` 1) or smaller (−1) than the second; with `by`, by at least so much.
    """

    published: str
    says: str
    figure: str
    ours: Selection
    than: Selection | float
    better: int = 1
    by: float | None = None


@dataclass(frozen=True)
class Protocol:
    """A paper's studies at one scale, and what they are held against.

    rows: by a pattern of published rows; what its stars match are the values of keys. absent: patterns of the rows that
    no study measures, and why. tolerances: by a pattern of rows, then by metric. other: at which scales each study is.
    """

    paper: str
    scale: str
    title: str
    studies: Sequence[PaperStudy]
    rows: Mapping[str, tuple[Selection, Sequence[str]]]
    claims: Sequence[Claim]
    absent: Mapping[str, str]
    tolerances: Mapping[str, Mapping[str, float]]
    other: Mapping[str, Sequence[str]]

    def study(self, name: str) -> PaperStudy | None:
        """Return the study of this name; None where this scale has none."""
        return next((study for study in self.studies if study.name == name), None)

    def selection(self, row: str) -> Selection | None:
        """Return the runs that measure a published row; None where no study does."""
        for pattern, (selection, each) in self.rows.items():
            found = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), row)
            if found:
                named = dict(_key_and_value(key, value) for key, value in zip(each, found.groups(), strict=True))
                return replace(selection, where={**selection.where, **named})
        return None

    def tolerance(self, row: str, metric: str, usual: float) -> float:
        """By how much a figure may be worse than the published one, or differ from it."""
        for pattern, tolerances in self.tolerances.items():
            if fnmatchcase(row, pattern) and metric in tolerances:
                return tolerances[metric]
        return usual

    def why_absent(self, row: str) -> str:
        """Why a published row is not measured at this scale."""
        selection = self.selection(row)
        if selection is not None:
            return self.why_no_study(selection.study)
        return next((why for pattern, why in self.absent.items() if fnmatchcase(row, pattern)), "no experiment here")

    def why_no_study(self, name: str) -> str:
        """Say at which scales a study is that this one does not have."""
        return f"not at this scale; measured by {' and '.join(f'--scale {scale}' for scale in self.other[name])}"


def read_protocol(paper: str, scale: str) -> Protocol:
    """Return the packaged protocol of one of `PAPERS` at one of `SCALES`."""
    content = yaml.safe_load(
        importlib.resources.files(__package__).joinpath(FOLDER, f"{paper}.yaml").read_text("utf-8")
    )
    studies = content.get("studies") or {}
    return Protocol(
        paper=paper,
        scale=scale,
        title=content["title"],
        studies=[_study(name, node, scale) for name, node in studies.items() if scale in node["scales"]],
        rows={row: (_selection(node), node.get("each") or ()) for row, node in (content.get("rows") or {}).items()},
        claims=[_claim(node) for node in content.get("claims") or []],
        absent=content.get("not_measured") or {},
        tolerances=content.get("tolerances") or {},
        other={name: list(node["scales"]) for name, node in studies.items()},
    )


def _key_and_value(each: str, value: str) -> tuple[str, str]:
    """Return a key and its value from KEY or KEY=FORM, where a star in the form stands for what was found."""
    key, _, form = each.partition("=")
    return key, (form or "*").replace("*", value)


def _study(name: str, node: Mapping[str, Any], scale: str) -> PaperStudy:
    here = node["scales"][scale] or {}
    instead = node.get("instead")
    return PaperStudy(
        name=name,
        about=node["about"],
        data=node["data"],
        words=(*node.get("words", ()), *here.get("words", ())),
        deviations=(*node.get("deviations", ()), *here.get("deviations", ())),
        judged=here.get("judged", node.get("judged", True)),
        instead=None if instead is None else Alternative(tuple(instead["words"]), instead["deviation"]),
        latency=node.get("latency", False),
    )


def _selection(node: Mapping[str, Any]) -> Selection:
    return Selection(
        study=node["study"],
        where=node.get("where") or {},
        step=node.get("step"),
        keys=node.get("keys") or {},
        deviations=tuple(node.get("deviations") or ()),
    )


def _claim(node: Mapping[str, Any]) -> Claim:
    than = node["than"]
    return Claim(
        published=node["published"],
        says=node["says"],
        figure=node["figure"],
        ours=_selection(node["ours"]),
        than=float(than) if isinstance(than, int | float) else _selection(than),
        better=node.get("better", 1),
        by=node.get("by"),
    )


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
    """Return all published figures, or those of one paper (`nnbcd slimming sparsefw lc`; `other`: of other papers)."""
    text = importlib.resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    found = [Published(**row) for row in csv.DictReader(text.splitlines())]
    return [figure for figure in found if paper in (None, figure.paper)]
