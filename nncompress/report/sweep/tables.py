"""The tables of a sweep: a line per group of runs that differ in the seed alone, the accuracies over two settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.report.collect import columns_of, short_names
from nncompress.report.fresh import write_part
from nncompress.report.sweep.studies import ACCURACY, Grid
from nncompress.report.tables import Table, frame_csv
from nncompress.report.text import FORMS, number, percent, setting, signed, spread, times
from nncompress.results.records import Run

MEASURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("accuracy/test", "test accuracy (%)", percent),
    ("accuracy/dense_test", "dense test accuracy (%)", percent),
    ("ratio/params", "ratio of parameters", number),
    ("ratio/bits", "ratio of bits", number),
    ("bytes/disk", "bytes on disk", number),
    ("ratio/bytes", "ratio of bytes on disk", number),
    ("ratio/macs", "ratio of MACs", number),
    ("seconds/total", "time (seconds)", number),
    ("rate/slope", "slope", signed),
)
"""Key of the summary, heading and form of what a table shows of every run."""
Measures = Sequence[tuple[str, str, Callable[[Any], str]]]


def measures_of(runs: Sequence[Run]) -> Measures:
    """Return what a table shows of some runs: `MEASURES`, and after the ratios what their solvers add."""
    own = [(each["key"], each["label"], FORMS[each["form"]]) for each in columns_of(runs, "summary")]
    return [*MEASURES[:-2], *own, *MEASURES[-2:]]


def sweep_table(
    groups: pd.DataFrame, keys: Sequence[str], failed: pd.DataFrame, title: str, measures: Measures = MEASURES
) -> Table:
    """Tabulate means and standard deviations over the seeds of each group, and the jobs that are not done.

    Args:
        groups: one row per group, as `collect.aggregate` makes it.
        keys: the varied config keys, columns of both frames.
        failed: one row per job that is not done, as `collect.failures` makes it.
        title: what the runs of the sweep have in common.
        measures: what is shown, as `measures_of` finds it.
    """
    shown = pd.DataFrame([_line(group, keys, measures) for _, group in groups.iterrows()])
    notes = [
        "Mean ± standard deviation over the n runs of a line, which differ in the seed alone (n − 1 in the "
        "denominator; no deviation for n = 1).",
        "Accuracy is that of the deployed network on the test set; dense: of the same runs' uncompressed weights w.",
        "Ratio: compressed over dense of the whole network (smaller is more compression); × is 1/ratio.",
        "Slope: of the mean squared step on log-log axes (−1 is decay like 1/K).",
        *_not_done(failed, keys),
    ]
    return Table("summary", f"Sweep: {title}", groups, shown, notes)


def sensitivity_table(grid: Grid, title: str) -> Table:
    """Tabulate mean test accuracies, a line for each value of the row's key and a column for each of the column's."""
    names = short_names([key for key in (grid.panel, grid.row, grid.column) if key])
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for _, cell in grid.cells.iterrows():
        at = {name: setting(cell[key]) for key, name in names.items() if key != grid.column}
        line = lines.setdefault(tuple(at.values()), at)
        line[f"{names[grid.column]}={setting(cell[grid.column])}"] = _accuracy(cell)
    notes = [
        "Accuracy (%) of the deployed network on the test set: mean ± standard deviation over the runs of a cell that "
        "are done (n − 1 in the denominator; no deviation for n = 1).",
        "In words: how the other runs of a cell ended; no run: the sweep has none there.",
    ]
    head = f"Test accuracy over {names[grid.row]} and {names[grid.column]}: {title}"
    return Table("sensitivity", head, grid.cells, pd.DataFrame(list(lines.values())), notes)


def write_frame(frame: pd.DataFrame, path: Path) -> Path:
    """Write a raw DataFrame as .csv; return its path."""
    return write_part(path, frame_csv(frame).encode())


def _line(group: "pd.Series[Any]", keys: Sequence[str], measures: Measures) -> dict[str, str]:
    names = short_names(keys)
    line = {names[key]: setting(group[key]) for key in keys} | {"n": number(group["n"])}
    for key, title, form in measures:
        if key in group:
            line[title] = spread(form(group[key]), form(group.get(f"{key} std")))
        if key in group and key in ("ratio/params", "ratio/bits", "ratio/bytes"):
            line[f"{title}, ×"] = times(group[key])
    return line


def _accuracy(cell: "pd.Series[Any]") -> str:
    shown = spread(percent(cell[ACCURACY]), percent(cell[f"{ACCURACY} std"]))
    return str(cell["not_done"]) if not cell["n"] else shown + (f" ({cell['not_done']})" if cell["not_done"] else "")


def _not_done(failed: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    names = short_names(keys)
    lines = []
    for _, job in failed.iterrows():
        settings = ", ".join(f"{names[key]}={setting(job[key])}" for key in keys) or "no setting varied"
        why = f", {job['reason']}" if job["reason"] else ""
        lines.append(f"Not done: job {job['job']} ({settings}): {job['status']}{why}")
    return lines
