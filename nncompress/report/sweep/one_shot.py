"""One-shot compression: the network of a run compressed to many sizes by several methods, without retraining.

Its rows, its tables, and with `one_shot_plots` its figures.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nncompress.report.collect import aggregate, final, group_label, job, name, setting_of
from nncompress.report.style import COLOURS, GroupStyle, group_styles
from nncompress.report.sweep.one_shot_plots import ACCURACY, one_shot_plot, speedup_plot
from nncompress.report.tables import Table, known_columns
from nncompress.report.text import UNKNOWN, number, percent, spread, times
from nncompress.results.records import Run

AT = ("method", "part", "recalibrated")
MEASURED, SIZES = (ACCURACY, "loss/test", "stability"), ("ratio/params", "ratio/macs", "distance", "smaller")
BATCH_NORMS = {False: "batch norms as they are", True: "batch norms recalibrated"}
AGAIN = " recalibrated"
TAKEN, TAKEN_AWAY = "taken away (%)", "part taken away (%)"
WIDEST_HEADS = 120
NOTES = (
    "Every row compresses the network of a run anew, without retraining it; 0 taken away is the network as it was.",
    "Recalibrated: the statistics of the batch norms were recomputed on training samples before the evaluation.",
)


def run_one_shot(run: Run) -> tuple[list[Table], dict[str, Figure | None]]:
    """Make the table and the plot of a run; none when its summary has no one_shot."""
    rows = one_shot(run)
    if rows.empty:
        return [], {}
    lines = rows.assign(line=rows["recalibrated"].map(BATCH_NORMS), x=100 * rows["part"])
    styles = {
        BATCH_NORMS[False]: GroupStyle(COLOURS[0], "o", "-"),
        BATCH_NORMS[True]: GroupStyle(COLOURS[1], "s", "--"),
    }
    title = f"One-shot compression: {name(run)}"
    return [one_shot_table(rows, title)], {"one_shot": one_shot_plot(lines, styles, title, TAKEN_AWAY)}


def sweep_one_shot(
    runs: Sequence[Run], keys: Sequence[str], title: str
) -> tuple[list[Table], dict[str, Figure | None]]:
    """Make the tables and plots of the runs of a sweep that are done; none when no summary has one_shot.

    Args:
        runs: the runs of the sweep, failed ones among them.
        keys: the config keys that set them apart, as `collect.differences` finds them.
        title: what the runs have in common.
    """
    rows = one_shot_rows(runs, keys)
    if rows.empty:
        return [], {}
    means = mean_accuracies(rows, keys)
    head = f"One-shot compression: {title}"
    labels = list(dict.fromkeys(rows["group"]))
    styles = dict(zip(labels, group_styles(len(labels)), strict=True))
    figures: dict[str, Figure | None] = {}
    for again, part in means.groupby("recalibrated"):
        end = "_recalibrated" if again else ""
        note = f"\n{BATCH_NORMS[bool(again)]}" if means["recalibrated"].any() else ""
        lines = part.assign(line=part["group"], x=100 * part["part"])
        figures[f"one_shot{end}"] = one_shot_plot(lines, styles, head + note, TAKEN_AWAY)
        figures[f"one_shot_speedup{end}"] = speedup_plot(part, styles, head + note)
    return [groups_table(means, labels, head), areas_table(areas(rows, keys), title)], figures


def one_shot(run: Run) -> pd.DataFrame:
    """Return a row for each method, part and recalibration of a run: by method in their order, then by part.

    Columns: those of AT, MEASURED and SIZES, NaN where the run did not measure them.
    """
    rows = pd.DataFrame(final(run).get("one_shot") or []).reindex(columns=[*AT, *MEASURED, *SIZES])
    rows = rows.astype(dict.fromkeys(("part", *MEASURED, *SIZES[:-1]), float)).astype({"recalibrated": bool})
    rows["part"] = rows["part"].round(9)
    return _in_order(rows.drop_duplicates(list(AT), keep="last"), ["method", "part", "recalibrated"])


def one_shot_rows(runs: Sequence[Run], keys: Sequence[str]) -> pd.DataFrame:
    """Return the rows of all done runs, with each run's group (as typed), job, seed and varied keys before them."""
    rows: list[dict[Any, Any]] = []
    for run in runs:
        if run.status["status"] == "done" and (run.summary or {}).get("one_shot"):
            values = setting_of(run, keys)
            about = {
                "group": group_label(values, keys),
                "job": job(run),
                "seed": run.settings.get("seed"),
            } | values
            rows += [about | row for row in one_shot(run).to_dict("records")]
    return pd.DataFrame(rows, columns=None if rows else ["group", *keys, *AT])


def mean_accuracies(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the means (`collect.aggregate`) over the seeds of each group, method, part and recalibration."""
    means = aggregate(rows, ["group", *keys, *AT]).astype({"part": float, "recalibrated": bool})
    return _in_order(means, ["method", "recalibrated", "part"])


def areas(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the area under each group's accuracy against the part taken away, by method; means over the seeds.

    Trapezoids over the parts that every run with the method has, divided by the width: accuracies in [0, 1], NaN for
    fewer than two parts. Columns, beside the group and the keys: method, n, seeds, accuracy/dense (at part 0), area,
    `area recalibrated`, the standard deviations of the three, and the parts.
    """
    curves = _curves(rows)
    parts = {
        method: sorted(set.intersection(*(set(curve.index) for (of, _, _), curve in curves.items() if of == method)))
        for method in dict.fromkeys(method for method, _, _ in curves)
    }
    jobs = rows.drop_duplicates(["method", "job"])[["group", "job", "seed", *keys, "method"]].to_dict("records")
    for row in jobs:
        for end, again in (("", False), (AGAIN, True)):
            curve = curves.get((row["method"], row["job"], again), pd.Series(dtype=float))
            row |= {f"area{end}": _area(curve, parts.get(row["method"], []))}
            row |= {} if again else {"accuracy/dense": curve.get(0.0, np.nan)}
    means = aggregate(pd.DataFrame(jobs), ["group", *keys, "method"])
    means["parts"] = [" ".join(f"{part:g}" for part in parts.get(method, [])) for method in means["method"]]
    return _in_order(means, ["method"])


def one_shot_table(rows: pd.DataFrame, title: str) -> Table:
    """Make a line for each method and part of a run, with and without recalibrated batch norms side by side."""
    at = list(AT[:2])
    raw = rows.groupby(at, sort=False)[list(SIZES)].first()
    for again, end in ((False, ""), (True, AGAIN)):
        measured = rows[rows["recalibrated"] == again].set_index(at)[list(MEASURED)]
        raw = raw.join(measured.add_suffix(end))
    raw = raw.reset_index()
    shown = {
        "method": raw["method"],
        TAKEN: raw["part"].map(_percentage),
        "test accuracy (%)": raw[ACCURACY].map(percent),
        "with recalibrated batch norms (%)": raw[ACCURACY + AGAIN].map(percent),
        "parameters left": raw["ratio/params"].map(number),
        "parameters left, ×": raw["ratio/params"].map(times),
        "theoretical speed-up": raw["ratio/macs"].map(times),
        "distance": raw["distance"].map(number),
    }
    notes = [
        *NOTES[: 1 + rows["recalibrated"].any()],
        "Parameters left: those that are not zero, over all of the dense network (smaller is more compression); × is "
        "1/ratio.",
        "Theoretical speed-up: multiply-accumulates of the dense network over those with weights that are not zero, "
        "counted and not measured: fewer of them do not promise less time.",
        "Distance: ‖w − its compression‖ / ‖w‖ over the weights w that the method acts on.",
    ]
    return Table("one_shot", title, raw, known_columns(pd.DataFrame(shown)), notes)


def groups_table(means: pd.DataFrame, labels: Sequence[str], title: str) -> Table:
    """Tabulate mean test accuracies, a line for each method, part and recalibration and a column for each group.

    Args:
        means: as `mean_accuracies` makes them.
        labels: the groups, in the order of the columns.
        title: of the table.
    """
    narrow = sum(map(len, labels)) > WIDEST_HEADS
    heads = {label: f"group {at}" if narrow else label for at, label in enumerate(labels, start=1)}
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for _, mean in means.iterrows():
        at = {
            "method": mean["method"],
            TAKEN: _percentage(mean["part"]),
            "batch norms": BATCH_NORMS[mean["recalibrated"]].removeprefix("batch norms "),
        }
        if not means["recalibrated"].any():
            del at["batch norms"]
        line = lines.setdefault(tuple(at.values()), at | dict.fromkeys(heads.values(), UNKNOWN))
        line[heads[mean["group"]]] = _spread(mean, ACCURACY)
    notes = [
        "Test accuracy (%): mean ± standard deviation over the runs of a group, which differ in the seed alone (n − 1 "
        "in the denominator; no deviation for n = 1).",
        *NOTES[: 1 + means["recalibrated"].any()],
        *(f"{head[0].upper()}{head[1:]}: {label}." for label, head in heads.items() if narrow),
    ]
    return Table("one_shot", title, means, pd.DataFrame(list(lines.values())), notes)


def areas_table(means: pd.DataFrame, title: str) -> Table:
    """Make a line for each method and group with the area under its accuracies, from the means that `areas` makes."""
    shown = pd.DataFrame(
        {
            "method": mean["method"],
            "group": mean["group"],
            "n": number(mean["n"]),
            "dense test accuracy (%)": _spread(mean, "accuracy/dense"),
            "area (%)": _spread(mean, "area"),
            "area, recalibrated batch norms (%)": _spread(mean, f"area{AGAIN}"),
            TAKEN: ", ".join(_percentage(float(part)) for part in mean["parts"].split()) or UNKNOWN,
        }
        for _, mean in means.iterrows()
    )
    notes = [
        "Area: under test accuracy against the part taken away, by trapezoids over the parts in the last column, "
        "which all runs with the method have, divided by its width: the mean accuracy over these parts (larger is "
        "better).",
        "Mean ± standard deviation over the n runs of a line, each with its own area, which differ in the seed alone "
        "(n − 1 in the denominator; no deviation for n = 1).",
        *NOTES[: 1 + means[f"area{AGAIN}"].notna().any()],
    ]
    return Table("one_shot_areas", f"Areas under one-shot accuracies: {title}", means, known_columns(shown), notes)


def _in_order(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Sort rows, the methods as they first appear."""
    place = {method: at for at, method in enumerate(dict.fromkeys(rows["method"]))}
    ordered = rows.sort_values(
        list(by), key=lambda column: column.map(place) if column.name == "method" else column, kind="stable"
    )
    return ordered.reset_index(drop=True)


def _curves(rows: pd.DataFrame) -> dict[tuple[str, str, bool], "pd.Series[float]"]:
    """Return accuracies by part, for each method, job and recalibration. Part 0 is one network whatever the method."""
    columns = ["method", "job", "recalibrated", "part", ACCURACY]
    measured = rows[columns].dropna().to_dict("records")
    dense = {(row["job"], row["recalibrated"]): row[ACCURACY] for row in measured[::-1] if row["part"] == 0}
    curves: dict[tuple[str, str, bool], dict[float, float]] = {}
    for row in measured:
        at = (row["job"], row["recalibrated"])
        start = {0.0: dense[at]} if at in dense else {}
        curves.setdefault((row["method"], *at), start)[row["part"]] = row[ACCURACY]
    return {at: pd.Series(curve, dtype=float) for at, curve in curves.items()}


def _area(curve: "pd.Series[float]", parts: Sequence[float]) -> float:
    if curve.empty or len(parts) < 2:
        return np.nan
    height = curve[list(parts)].to_numpy()
    return float((height[1:] + height[:-1]) @ np.diff(parts)) / 2 / (parts[-1] - parts[0])


def _percentage(part: float) -> str:
    return f"{100 * part:.4g}"


def _spread(mean: "pd.Series[Any]", key: str) -> str:
    return spread(percent(mean.get(key)), percent(mean.get(f"{key} std")))
