"""Published figures and what our runs make of them: ours, the difference, the verdict, and the circumstances."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.files import read_json
from nncompress.report.collect import failures
from nncompress.reproduce.figures import METRICS, UNCOMPARED, figure, metric_value, shared_parts
from nncompress.reproduce.protocol import CLAIM, Claim, PaperStudy, Protocol, Published, Selection
from nncompress.results.records import STATUS, SUMMARY, Run

PASS, FAIL, NOT_MEASURED, NOT_COMPARABLE = "PASS", "FAIL", "not measured", "not comparable"

ROUNDING = 1e-12
"""By how much a difference may miss a limit that it would meet in exact arithmetic."""
JOIN = " | "
"""Between deviations in a cell."""


@dataclass(frozen=True)
class Reproduction:
    """A paper's experiments as far as they have been run: the runs of each study by its name, and what is on record."""

    protocol: Protocol
    runs: Mapping[str, Sequence[Run]]
    record: Mapping[str, Any]

    def planned(self, study: str) -> Mapping[str, Any]:
        """Return what is on record of a study, as it was planned."""
        return self.record["studies"].get(study) or {}

    def words(self, study: PaperStudy) -> Sequence[str]:
        """Return the words of the command that runs the study alone."""
        return self.planned(study.name).get("words") or study.words

    def command(self, study: PaperStudy) -> str:
        """Return the command that runs the study alone."""
        return shlex.join(["nncompress", "train", "-m", *self.words(study)])

    def deviations(self, study: PaperStudy) -> list[str]:
        """Say how a study departs from the paper, with the data that were at hand."""
        instead = study.instead if self.planned(study.name).get("instead") else None
        return [*study.deviations, *([] if instead is None else [instead.deviation])]

    def selected(self, selection: Selection) -> list[Run]:
        """Return the finished runs of a study whose settings are the selected ones."""
        done = [run for run in self.runs.get(selection.study, ()) if run.status["status"] == "done"]
        return [run for run in done if _matches(run, selection)]

    def values(self, selection: Selection, key: str, parts: frozenset[float] | None) -> list[float]:
        """Return a figure of the selected runs, `figures.figure`, where it is known."""
        key = selection.keys.get(key, key)
        values = [figure(run, key, selection.step, parts) for run in self.selected(selection)]
        return [value for value in values if value is not None]

    def why_not(self, study: PaperStudy, selection: Selection) -> str:
        """Say why a study of this scale has no figure for a selection."""
        planned = self.planned(study.name)
        if planned.get("missing"):
            return str(planned["missing"])
        given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2].split(",") for word in self.words(study)}
        if not all(any(_is(each, value) for each in given.get(key, [value])) for key, value in selection.where.items()):
            return "not among the settings at this scale"
        runs = [run for run in self.runs[study.name] if _matches(run, selection)]
        frame = failures(runs)
        if len(frame):
            return f"not done: {'; '.join(dict.fromkeys(frame['reason'].fillna(frame['status'])))}"
        return "not recorded, or after the last step at this scale" if runs else "not run yet"


def _matches(run: Run, selection: Selection) -> bool:
    return all(_is(run.settings.get(key), value) for key, value in selection.where.items())


def _is(value: Any, wanted: Any) -> bool:
    """Tell whether a setting has the wanted value, numbers as numbers."""
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == str(wanted)


def comparison(reproduction: Reproduction, published: Sequence[Published]) -> pd.DataFrame:
    """Return one row for each published figure: ours, and how it compares."""
    rows = [_row(reproduction, each) for each in published if each.metric != CLAIM]
    return pd.DataFrame(rows, columns=None if rows else ["row", "verdict"])


def _row(reproduction: Reproduction, published: Published) -> dict[str, Any]:
    row: dict[str, Any] = {
        "row": published.row, "setting": published.setting, "source": published.source, "metric": published.metric,
        "published": published.number, "note": published.note, "ours": None, "std": None, "n": 0, "seeds": "",
        "difference": None, "tolerance": None, "verdict": NOT_MEASURED, "why": "", "deviations": "", "hardware": "",
        "seconds": None, "date": "", "command": "",
    }  # fmt: skip
    protocol = reproduction.protocol
    selection, metric = protocol.selection(published.row), METRICS.get(published.metric)
    if selection is not None and metric is None:
        return row | {"why": UNCOMPARED.get(published.metric, "not a figure that is compared")}
    study = None if selection is None else protocol.study(selection.study)
    if selection is None or metric is None or study is None:
        return row | {"why": protocol.why_absent(published.row)}
    key = selection.keys.get(published.metric)
    values = [(run, metric_value(run, metric, selection.step, key)) for run in reproduction.selected(selection)]
    known = [(run, value) for run, value in values if value is not None]
    if not known:
        return row | {"why": reproduction.why_not(study, selection)}
    mean, std = _mean([value for _, value in known])
    tolerance = protocol.tolerance(published.row, published.metric, metric.tolerance)
    difference = None if published.number is None else mean - published.number
    row |= {
        "ours": mean, "std": std, "n": len(known), "seeds": " ".join(str(run.settings.get("seed")) for run, _ in known),
        "difference": difference, "tolerance": tolerance,
        "verdict": verdict(difference, metric.better, tolerance, study.judged),
        "deviations": JOIN.join([*reproduction.deviations(study), *selection.deviations]),
        "command": reproduction.command(study),
    }  # fmt: skip
    return row | circumstances([run for run, _ in known])


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation with n - 1 in the denominator, None for n = 1."""
    numbers = pd.Series(values, dtype=float)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None


def verdict(difference: float | None, better: int, tolerance: float, judged: bool) -> str:
    """Say PASS unless ours is worse than published by more than the tolerance; `better` as in `figures.Metric`."""
    if difference is None or not judged:
        return NOT_COMPARABLE
    worse = abs(difference) if better == 0 else -better * difference
    return PASS if worse <= tolerance + ROUNDING else FAIL


def circumstances(runs: Sequence[Run]) -> dict[str, Any]:
    """Return hardware, median seconds in the solver and the last date of some runs."""
    environments = {run.folder: _environments(run) for run in runs}
    devices = [f"{e.get('device_name')}, {e.get('threads')} threads" for each in environments.values() for e in each]
    times = pd.Series([run.summary["seconds/total"] for run in runs if run.summary is not None], dtype=float)
    return {
        "hardware": "; ".join(dict.fromkeys(devices)),
        "seconds": float(times.median()) if len(times) else None,
        "date": max((_date(folder, each) for folder, each in environments.items()), default=""),
    }


def _environments(run: Run) -> list[dict[str, Any]]:
    """Return with what the run began, and with what it was taken up again."""
    began = read_json(run.folder / "environment.json") or {}
    resumed = began.get("resumed")
    several = [began, *(resumed if isinstance(resumed, list) else [])]
    return [each for each in several if each and isinstance(each, dict)]


def _date(folder: Path, environments: Sequence[Mapping[str, Any]]) -> str:
    """Return the day on which the run began or was last taken up; of one that does not say that of its files."""
    dates = [str(each["date"]) for each in environments if each.get("date")]
    path = folder / (SUMMARY if (folder / SUMMARY).exists() else STATUS)
    return max(dates)[:10] if dates else datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d")


def claim_rows(reproduction: Reproduction, published: Sequence[Published]) -> list[dict[str, Any]]:
    """Return a row for each claim that is tested, then one for each published claim that is not, with the reason."""
    claims = reproduction.protocol.claims
    rows = [claim_row(reproduction, claim) for claim in claims]
    tested = {claim.published for claim in claims}
    for each in published:
        if each.metric == CLAIM and each.row not in tested:
            rows.append({
                "claim": each.value, "published": each.row, "figure": "", "ours": None, "std": None, "against": None,
                "against std": None, "n": 0, "against n": 0, "verdict": NOT_MEASURED,
                "why": reproduction.protocol.why_absent(each.row), "deviations": "",
            })  # fmt: skip
    return rows


def claim_row(reproduction: Reproduction, claim: Claim) -> dict[str, Any]:
    """Return a claim: the means of both sides with their deviations and numbers of runs, and whether it holds."""
    sides = [each for each in (claim.ours, claim.than) if isinstance(each, Selection)]
    common = shared_parts([run for side in sides for run in reproduction.selected(side)], claim.figure)
    known = [reproduction.values(side, claim.figure, common) for side in sides]
    means = [_mean(values) if values else (None, None) for values in known]
    if isinstance(claim.than, float):
        known, means = [*known, []], [*means, (claim.than, None)]
    (ours, std), (against, against_std) = means
    studies = [reproduction.protocol.study(side.study) for side in sides]
    departed = [each for study in studies if study is not None for each in reproduction.deviations(study)]
    departed += [each for side in sides for each in side.deviations]
    row: dict[str, Any] = {
        "claim": claim.says, "published": claim.published, "figure": claim.figure, "ours": ours, "std": std,
        "against": against, "against std": against_std, "n": len(known[0]), "against n": len(known[1]),
        "verdict": NOT_MEASURED, "why": "", "deviations": JOIN.join(dict.fromkeys(departed)),
    }  # fmt: skip
    if ours is None or against is None:
        pairs = zip(sides, studies, known, strict=False)
        reasons = [
            reproduction.protocol.why_no_study(side.study) if study is None else reproduction.why_not(study, side)
            for side, study, values in pairs
            if not values
        ]
        return row | {"why": "; ".join(dict.fromkeys(reasons))}
    ahead = claim.better * (ours - against)
    holds = ahead > 0 if claim.by is None else ahead >= claim.by - ROUNDING
    judged = all(study is not None and study.judged for study in studies)
    return row | {"verdict": (PASS if holds else FAIL) if judged else NOT_COMPARABLE}
