"""The plots of a sweep's study: accuracy over two settings, its spread over seeds, its course during training."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nncompress.report.collect import short_names
from nncompress.report.style import COLOURS, STYLE, GroupStyle, group_styles, log_ticks, marker, new_figure
from nncompress.report.sweep.studies import ACCURACY, NO_RUN, Grid
from nncompress.report.text import UNKNOWN, percent, setting

DEPLOYED = "test accuracy of the deployed network (%)"
COLOUR_MAP, DARK = "viridis", 0.6


def sensitivity_plot(grid: Grid, title: str) -> Figure:
    """Draw a heat map of the mean test accuracy over two keys, a panel for each value of a third."""
    names = short_names([key for key in (grid.panel, grid.row, grid.column) if key])
    panels = grid.cells.groupby(grid.panel, sort=False, dropna=False) if grid.panel else [(None, grid.cells)]
    parts = [part for _, part in panels]
    down, across = (1, len(parts)) if len(parts) < 4 else (2, 2)
    size = (grid.cells[grid.row].nunique(), grid.cells[grid.column].nunique())
    width = max(across * (0.9 * size[1] + 0.8) + 1.4, 7)
    with matplotlib.rc_context(STYLE):
        head = f"Test accuracy over {names[grid.row]} and {names[grid.column]}: {title}"
        height = max(down * (0.6 * size[0] + 0.9) + 0.8, 4.2)
        figure = new_figure(width, height, head + _seeds(grid.cells))
        shades = Normalize(*(100 * grid.cells[ACCURACY].agg(["min", "max"])))
        for position, part in enumerate(parts, start=1):
            axes = figure.add_subplot(down, across, position)
            axes.set(xlabel=names[grid.column], ylabel=names[grid.row])
            axes.set_title(f"{names[grid.panel]}={setting(part[grid.panel].iloc[0])}" if grid.panel else "")
            _draw_cells(axes, part, size, shades)
            _name_cells(axes, part[grid.row], part[grid.column])
        figure.colorbar(ScalarMappable(shades, COLOUR_MAP), ax=figure.axes, label=DEPLOYED)
    return figure


def spread_plot(points: pd.DataFrame, title: str) -> Figure:
    """Draw a box of test accuracies over the seeds for each option of a key, with every run as a point over it.

    Args:
        points: as `studies.spread` makes it.
        title: what the runs have in common.
    """
    key = str(points.columns[0])
    options = list(dict.fromkeys(points[key]))
    groups = [
        100 * points.loc[[at == option for at in points[key]], ACCURACY].dropna().to_numpy() for option in options
    ]
    labels = [f"{setting(option)}\nn = {len(group)}" for option, group in zip(options, groups, strict=True)]
    name = short_names([key])[key]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(7, 1.1 * len(options) + 1.5), 5, f"Test accuracy over the seeds by {name}: {title}")
        note = "box: quartiles and median; whiskers: least and largest; points: single runs"
        axes = figure.add_subplot(ylabel=DEPLOYED, xlabel=f"{name} ({note})")
        for position, group in enumerate(groups):
            _draw_box(axes, position, group)
        turned = max(map(len, map(setting, options))) > 14
        axes.set_xticks(range(len(options)), labels, rotation=30 if turned else 0, ha="right" if turned else "center")
        axes.grid(visible=False, axis="x")
    return figure


def courses_plot(course: pd.DataFrame, title: str, step: str) -> Figure:
    """Draw test accuracy of every setting against step and time: mean over the seeds in a band from least to largest.

    Args:
        course: as `studies.courses` makes it.
        title: what the runs have in common.
        step: the label of the horizontal axis on the left.
    """
    labels = list(dict.fromkeys(course["setting"]))
    timed = course[course["seconds"] > 0]
    panels = {"step": (step, course), "seconds": ("time in the solver (seconds, log scale)", timed)}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11, 5 + 0.1 * len(labels), f"Test accuracy during the runs: {title}")
        for position, (key, (xlabel, rows)) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, 2, position, xlabel=xlabel, ylabel=DEPLOYED)
            for label, style in zip(labels, group_styles(len(labels)), strict=True):
                _draw_course(axes, rows[(rows["setting"] == label) & (rows["n"] > 0)], key, style)
        figure.axes[0].locator_params(axis="x", integer=True)
        if len(timed):
            figure.axes[1].set_xscale("log")
            log_ticks(figure.axes[1].xaxis, timed["seconds"].min(), timed["seconds"].max())
        _legend(figure, course)
    return figure


def _seeds(cells: pd.DataFrame) -> str:
    """Say how many runs a cell stands for, and what its marks mean: a second line of the title."""
    low, high = cells.loc[cells["n"] > 0, "n"].agg(["min", "max"])
    runs = f"mean of {low} to {high} runs" if low < high else f"mean of {low} runs" if low > 1 else "one run"
    hatched = "; hatched: no accuracy" if (cells["n"] == 0).any() else ""
    return f"\n{runs} a cell{hatched}" + (f"; {UNKNOWN}: {NO_RUN}" if (cells["not_done"] == NO_RUN).any() else "")


def _draw_cells(axes: Axes, part: pd.DataFrame, size: tuple[int, int], shades: Normalize) -> None:
    """Draw colours and numbers; the hatched background shows where there is no number."""
    accuracy = np.ma.masked_invalid(100 * part[ACCURACY].to_numpy(float).reshape(size))
    axes.grid(visible=False)
    axes.patch.set(hatch="////", edgecolor="0.8", facecolor="0.97")
    axes.pcolormesh(accuracy, cmap=COLOUR_MAP, norm=shades, edgecolor="white", linewidth=1)
    for at, (_, cell) in zip(np.ndindex(size), part.iterrows(), strict=True):
        dark = cell["n"] > 0 and float(shades(100 * cell[ACCURACY])) < DARK
        colour = "white" if dark else "black"
        ended = UNKNOWN if cell["not_done"] == NO_RUN else str(cell["not_done"]).replace(", ", "\n")
        text = f"{percent(cell[ACCURACY])}\n{ended}".strip() if cell["n"] else ended
        axes.text(at[1] + 0.5, at[0] + 0.5, text, ha="center", va="center", fontsize=8.5, color=colour)


def _name_cells(axes: Axes, rows: "pd.Series[Any]", columns: "pd.Series[Any]") -> None:
    for place, values in ((axes.set_yticks, rows), (axes.set_xticks, columns)):
        labels = [setting(value) for value in dict.fromkeys(values)]
        place(np.arange(len(labels)) + 0.5, labels)
    axes.tick_params(length=0)


def _draw_box(axes: Axes, position: int, accuracy: np.ndarray[Any, np.dtype[np.floating]]) -> None:
    """Draw points side by side, in the order of the runs; a box from two points on."""
    if len(accuracy) > 1:
        axes.boxplot(
            accuracy, positions=[position], widths=0.5, whis=(0, 100), showfliers=False, manage_ticks=False,
            medianprops={"color": COLOURS[1], "linewidth": 1.8},
        )  # fmt: skip
    beside = np.linspace(-0.15, 0.15, len(accuracy)) if len(accuracy) > 1 else np.zeros(len(accuracy))
    axes.plot(position + beside, accuracy, "o", color=COLOURS[0], markersize=4.5, alpha=0.8, zorder=3)


def _draw_course(axes: Axes, rows: pd.DataFrame, key: str, style: GroupStyle) -> None:
    if rows.empty:
        return
    label = f"{rows['setting'].iloc[0]}" + (f" (n = {rows['n'].iloc[0]})" if rows["n"].iloc[0] > 1 else "")
    dot = marker(len(rows)) and style.marker
    axes.plot(
        rows[key], 100 * rows["mean"], color=style.colour, linestyle=style.line, marker=dot, markersize=4, label=label
    )
    if rows["n"].iloc[0] > 1:
        axes.fill_between(rows[key], 100 * rows["low"], 100 * rows["high"], color=style.colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure, course: pd.DataFrame) -> None:
    """Put the legend below both panels, in as many columns as fit; its title says what is not in them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    band = ["mean over the n runs; band: least to largest"] if (course["n"] > 1).any() else []
    left_out = "; ".join(course.loc[course["n"] == 0, "setting"])
    notes = [*band, *([f"no run done: {left_out}"] if left_out else [])]
    columns = max(1, min(len(labels), 130 // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title="\n".join(notes) or None)
