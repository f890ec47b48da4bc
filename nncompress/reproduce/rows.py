"""Published figures and what our runs make of them: ours, the difference, the verdict, and the circumstances."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from nncompress.files import read_json
from nncompress.report.collect import failures
from nncompress.reproduce.figures import METRICS, UNCOMPARED, figure, measured, shared_parts
from nncompress.reproduce.protocol import CLAIM, Claim, PaperStudy, Protocol, Published, Selection
from nncompress.results.records import STATUS, SUMMARY, Run

PASS, FAIL, NOT_MEASURED, NOT_COMPARABLE = "PASS", "FAIL", "not measured", "not comparable"

ROUNDING = 1e-12
"""By how much a difference may miss a limit that it would meet in exact arithmetic."""
JOIN = " | "
"""Between deviations in a cell."""
Found = Mapping[str, Sequence[Run]]
"""The runs of each study."""


def _chosen(found: Found, selection: Selection) -> list[Run]:
    """The finished runs of a study whose settings are the selected ones."""
    done = [run for run in found.get(selection.study, ()) if run.status["status"] == "done"]
    return [run for run in done if _matches(run, selection)]


def _matches(run: Run, selection: Selection) -> bool:
    return all(_is(run.settings.get(key), value) for key, value in selection.where.items())


def _is(value: Any, wanted: Any) -> bool:
    """Whether a setting has the wanted value, numbers as numbers."""
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == str(wanted)


def beside(protocol: Protocol, published: Sequence[Published], found: Found, record: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each published figure: ours, and how it compares."""
    rows = [_row(protocol, each, found, record) for each in published if each.metric != CLAIM]
    return pd.DataFrame(rows, columns=None if rows else ["row", "verdict"])


def _row(protocol: Protocol, published: Published, found: Found, record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "row": published.row, "setting": published.setting, "source": published.source, "metric": published.metric,
        "published": published.number, "note": published.note, "ours": None, "std": None, "n": 0, "seeds": "",
        "difference": None, "tolerance": None, "verdict": NOT_MEASURED, "why": "", "deviations": "", "hardware": "",
        "seconds": None, "date": "", "command": "",
    }  # fmt: skip
    selection, metric = protocol.selection(published.row), METRICS.get(published.metric)
    if selection is not None and metric is None:
        return row | {"why": UNCOMPARED.get(published.metric, "not a figure that is compared")}
    study = None if selection is None else protocol.study(selection.study)
    if selection is None or metric is None or study is None:
        return row | {"why": protocol.why_absent(published.row)}
    runs = _chosen(found, selection)
    key = selection.keys.get(published.metric)
    values = [(run, measured(run, metric, selection.step, key)) for run in runs]
    kept = [(run, value) for run, value in values if value is not None]
    if not kept:
        return row | {"why": _why_not(study, selection, found, record)}
    numbers = pd.Series([value for _, value in kept])
    ours, tolerance = float(numbers.mean()), protocol.tolerance(published.row, published.metric, metric.tolerance)
    difference = None if published.number is None else ours - published.number
    row |= {
        "ours": ours, "std": float(numbers.std(ddof=1)) if len(numbers) > 1 else None, "n": len(numbers),
        "seeds": " ".join(str(run.settings.get("seed")) for run, _ in kept), "difference": difference,
        "tolerance": tolerance, "verdict": verdict(difference, metric.better, tolerance, study.judged),
        "deviations": JOIN.join([*deviations(study, record), *selection.deviations]),
        "command": command_of(record, study),
    }  # fmt: skip
    return row | circumstances([run for run, _ in kept])


def verdict(difference: float | None, better: int, tolerance: float, judged: bool) -> str:
    """PASS unless ours is worse than published by more than the tolerance; `better` is that of `figures.Metric`."""
    if difference is None or not judged:
        return NOT_COMPARABLE
    worse = abs(difference) if better == 0 else -better * difference
    return PASS if worse <= tolerance + ROUNDING else FAIL


def _why_not(study: PaperStudy, selection: Selection, found: Found, record: Mapping[str, Any]) -> str:
    planned = record["studies"].get(study.name) or {}
    if planned.get("missing"):
        return str(planned["missing"])
    if not _offered(planned.get("words") or study.words, selection):
        return "not among the settings at this scale"
    runs = [run for run in found[study.name] if _matches(run, selection)]
    frame = failures(runs)
    if len(frame):
        return f"not done: {'; '.join(dict.fromkeys(frame['reason'].fillna(frame['status'])))}"
    return "not recorded, or after the last step at this scale" if runs else "not run yet"


def _offered(words: Sequence[str], selection: Selection) -> bool:
    """Whether the words of a study give the selected settings: none of them says otherwise."""
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2].split(",") for word in words}
    return all(any(_is(each, value) for each in given.get(key, [value])) for key, value in selection.where.items())


def deviations(study: PaperStudy, record: Mapping[str, Any]) -> list[str]:
    """How a study departs from the paper, with the data that were at hand."""
    instead = (record["studies"].get(study.name) or {}).get("instead")
    return [*study.deviations, *([study.instead.deviation] if instead and study.instead is not None else [])]


def command_of(record: Mapping[str, Any], study: PaperStudy) -> str:
    """The command that runs the study alone."""
    words = (record["studies"].get(study.name) or {}).get("words") or study.words
    return shlex.join(["nncompress", "train", "-m", *words])


def circumstances(runs: Sequence[Run]) -> dict[str, Any]:
    """Hardware, median seconds in the solver and the last date of some runs."""
    parts = [part for run in runs for part in _environments(run)]
    names = [f"{each.get('device_name')}, {each.get('threads')} threads" for each in parts]
    times = pd.Series([run.summary["seconds/total"] for run in runs if run.summary is not None], dtype=float)
    return {
        "hardware": "; ".join(dict.fromkeys(names)),
        "seconds": float(times.median()) if len(times) else None,
        "date": max((_date(run) for run in runs), default=""),
    }


def _environments(run: Run) -> list[dict[str, Any]]:
    """With what the run began, and with what it was taken up again."""
    began = read_json(run.folder / "environment.json") or {}
    return [each for each in (began, *began.get("resumed", [])) if each]


def _date(run: Run) -> str:
    """The day on which the run began or was last taken up; of older runs that of their files."""
    dates = [str(each["date"]) for each in _environments(run) if each.get("date")]
    path = run.folder / (SUMMARY if (run.folder / SUMMARY).exists() else STATUS)
    return max(dates)[:10] if dates else datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d")


def claim_rows(
    protocol: Protocol, published: Sequence[Published], found: Found, record: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each claim that is tested, then one for each published claim that is not, with the reason."""
    rows = [claim_row(protocol, claim, found, record) for claim in protocol.claims]
    tested = {claim.published for claim in protocol.claims}
    for each in published:
        if each.metric == CLAIM and each.row not in tested:
            rows.append({
                "claim": each.value, "published": each.row, "figure": "", "ours": None, "std": None, "against": None,
                "against std": None, "n": 0, "against n": 0, "verdict": NOT_MEASURED,
                "why": protocol.why_absent(each.row), "deviations": "",
            })  # fmt: skip
    return rows


def claim_row(protocol: Protocol, claim: Claim, found: Found, record: Mapping[str, Any]) -> dict[str, Any]:
    """A claim: the means of both sides with their deviations and numbers of runs, and whether it holds."""
    sides = [each for each in (claim.ours, claim.than) if isinstance(each, Selection)]
    common = shared_parts([run for side in sides for run in _chosen(found, side)], claim.figure)
    ours = _values(found, claim.ours, claim.figure, common)
    against = claim.than if isinstance(claim.than, float) else _values(found, claim.than, claim.figure, common)
    studies = [protocol.study(side.study) for side in sides]
    row: dict[str, Any] = {"claim": claim.says, "published": claim.published, "figure": claim.figure}
    for name, values in (("ours", ours), ("against", [against] if isinstance(against, float) else against)):
        numbers = pd.Series(values, dtype=float)
        row |= {name: float(numbers.mean()) if values else None}
        row |= {"std" if name == "ours" else "against std": float(numbers.std(ddof=1)) if len(values) > 1 else None}
    row |= {"n": len(ours), "against n": 0 if isinstance(against, float) else len(against), "verdict": NOT_MEASURED}
    departed = [each for study in studies if study is not None for each in deviations(study, record)]
    departed += [each for side in sides for each in side.deviations]
    row |= {"why": "", "deviations": JOIN.join(dict.fromkeys(departed))}
    if row["ours"] is None or row["against"] is None:
        missing = [side for side in sides if not _values(found, side, claim.figure, common)]
        return row | {"why": "; ".join(dict.fromkeys(_why_no_side(protocol, side, found, record) for side in missing))}
    ahead = claim.better * (row["ours"] - row["against"])
    holds = ahead > 0 if claim.by is None else ahead >= claim.by - ROUNDING
    judged = all(study is not None and study.judged for study in studies)
    return row | {"verdict": (PASS if holds else FAIL) if judged else NOT_COMPARABLE}


def _why_no_side(protocol: Protocol, side: Selection, found: Found, record: Mapping[str, Any]) -> str:
    study = protocol.study(side.study)
    return protocol.why_no_study(side.study) if study is None else _why_not(study, side, found, record)


def _values(found: Found, selection: Selection, key: str, parts: frozenset[float] | None) -> list[float]:
    key = selection.keys.get(key, key)
    values = [figure(run, key, selection.step, parts) for run in _chosen(found, selection)]
    return [value for value in values if value is not None]
