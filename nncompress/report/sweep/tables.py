"""The tables of a sweep: a line per group of runs that differ in the seed alone, the accuracies over two settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.files import replace_bytes
from nncompress.report.collect import short_names
from nncompress.report.sweep.studies import ACCURACY, Grid
from nncompress.report.tables import Table
from nncompress.report.text import number, percent, setting, signed, spread, times


def sweep_table(groups: pd.DataFrame, keys: Sequence[str], failed: pd.DataFrame, title: str) -> Table:
    """Means and standard deviations over the seeds of each group, and the jobs that are not done below them.

    Args:
        groups: one row per group, as `collect.aggregate` makes it.
        keys: the varied config keys, columns of both frames.
        failed: one row per job that is not done, as `collect.failures` makes it.
        title: what the runs of the sweep have in common.
    """
    shown = pd.DataFrame([_line(group, keys) for _, group in groups.iterrows()])
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
    """Mean test accuracies, a line for each value of the row's key and a column for each of the column's."""
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
    """A raw DataFrame as .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())
    return path


def _line(group: "pd.Series[Any]", keys: Sequence[str]) -> dict[str, str]:
    names = short_names(keys)
    line = {names[key]: setting(group[key]) for key in keys} | {"n": number(group["n"])}
    for key, title, form in MEASURES:
        if key in group:
            line[title] = spread(form(group[key]), form(group.get(f"{key} std")))
        if key in group and key in ("ratio/params", "ratio/bits", "ratio/bytes"):
            line[f"{title}, ×"] = times(group[key])
    return line


MEASURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("accuracy/test", "test accuracy (%)", percent),
    ("accuracy/dense_test", "dense test accuracy (%)", percent),
    ("ratio/params", "ratio of parameters", number),
    ("ratio/bits", "ratio of bits", number),
    ("bytes/disk", "bytes on disk", number),
    ("ratio/bytes", "ratio of bytes on disk", number),
    ("ratio/macs", "ratio of MACs", number),
    ("ratio/channels", "ratio of channels", number),
    ("seconds/total", "time (seconds)", number),
    ("rate/slope", "slope", signed),
)


def _accuracy(cell: "pd.Series[Any]") -> str:
    shown = spread(percent(cell[ACCURACY]), percent(cell[f"{ACCURACY} std"]))
    return str(cell["not_done"]) if not cell["n"] else shown + (f" ({cell['not_done']})" if cell["not_done"] else "")


def _not_done(failed: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    names = short_names(keys)
    lines = []
    for _, job in failed.iterrows():
        settings = ", ".join(f"{names[key]}={setting(job[key])}" for key in keys)
        lines.append(f"Not done: job {job['job']} ({settings or 'no setting varied'}): {job['status']}{_why(job)}")
    return lines


def _why(job: "pd.Series[Any]") -> str:
    return f", {job['reason']}" if job["reason"] else ""
