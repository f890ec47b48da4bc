"""The plots of a sweep: accuracy against compression ratio with its Pareto front, and all objectives together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nncompress.report.collect import short_names
from nncompress.report.labels import label_points
from nncompress.report.pareto import pareto_front
from nncompress.report.style import STYLE, group_colours, log_ticks, marker, new_figure, save_figure, spans_a_decade
from nncompress.report.text import setting

MOST_IN_LEGEND = 24


def group_label(group: "Mapping[str, Any] | pd.Series[Any]", keys: Sequence[str]) -> str:
    """What sets a group apart, as it is typed: `rank=4, model=mlp`."""
    names = short_names(keys)
    return ", ".join(f"{names[key]}={setting(group[key])}" for key in keys if group[key] is not None) or "all runs"


def save_sweep_plots(figures: dict[str, Figure | None], folder: Path) -> list[Path]:
    """Save the figures that there are; the paths written."""
    return [path for key, figure in figures.items() if figure for path in save_figure(figure, folder, key)]


def accuracy_ratio_plot(groups: pd.DataFrame, keys: Sequence[str], title: str) -> Figure | None:
    """Test accuracy against the parameters left, one point a group with its deviation over seeds.

    None when no group has both figures.
    """
    wanted = groups.reindex(columns=["ratio/params", "accuracy/test"]).astype(float)
    drawn = groups[wanted.notna().all(axis=1) & (wanted["ratio/params"] > 0)]
    if drawn.empty:
        return None
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.5, 6, f"Test accuracy against compression: {title}")
        axes = figure.add_subplot(xscale="log", ylabel="test accuracy of the deployed network (%)")
        axes.set_xlabel("parameters left: compressed / dense, whole network (below: times smaller)")
        labels = [group_label(group, keys) for _, group in drawn.iterrows()]
        _draw_points(axes, drawn, group_colours(len(drawn)), labels)
        _draw_front(axes, drawn["ratio/params"].to_numpy(float), 100 * drawn["accuracy/test"].to_numpy(float))
        _draw_dense(axes, drawn)
        _ratio_axis(axes, drawn["ratio/params"])
        _label(figure, axes, drawn, labels)
    return figure


def objectives_plot(curves: Sequence[tuple[str, pd.DataFrame]], title: str) -> Figure | None:
    """The objective of every run against step and time, one colour a group; None when no run has one.

    Args:
        curves: the group's label and the rows of each run.
        title: what the runs have in common.
    """
    drawn = [(label, rows) for label, rows in curves if "objective" in rows and rows["objective"].notna().any()]
    if not drawn:
        return None
    labels = list(dict.fromkeys(label for label, _ in drawn))
    colours = dict(zip(labels, group_colours(len(labels)), strict=True))
    values = pd.concat([rows["objective"] for _, rows in drawn], ignore_index=True).to_frame()
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11, 5, f"Objective of every run: {title}")
        for position, (key, xlabel) in enumerate(HORIZONTAL.items(), start=1):
            axes = figure.add_subplot(1, 2, position, xlabel=xlabel, ylabel="objective L (its own units)")
            axes.set_yscale("log" if spans_a_decade(values) else "linear")
            _draw_curves(axes, drawn, key, colours)
        _legend(figure, labels)
    return figure


HORIZONTAL = {"step": "step K", "seconds": "time in the solver (seconds)"}


def _draw_points(axes: Axes, groups: pd.DataFrame, colours: Sequence[Any], labels: Sequence[str]) -> None:
    for (_, group), colour, label in zip(groups.iterrows(), colours, labels, strict=True):
        std = [100 * value if value == value else 0.0 for value in (group.get("accuracy/test std", np.nan),)]
        axes.errorbar(
            group["ratio/params"], 100 * group["accuracy/test"], yerr=std, fmt="o", color=colour, capsize=4, zorder=3,
            label=label,
        )  # fmt: skip


def _draw_front(axes: Axes, ratio: Any, accuracy: Any) -> None:
    front = pareto_front(ratio, accuracy)
    label = "Pareto front: nothing is both smaller and more accurate"
    axes.step(ratio[front], accuracy[front], where="post", color="0.35", linewidth=1.3, zorder=2, label=label)


def _draw_dense(axes: Axes, groups: pd.DataFrame) -> None:
    if "accuracy/dense_test" in groups and groups["accuracy/dense_test"].notna().any():
        dense = 100 * groups["accuracy/dense_test"].mean()
        label = f"dense weights w of the same runs, mean: {dense:.2f} %"
        axes.axhline(dense, color="black", linestyle="--", linewidth=1.1, zorder=1, label=label)


def _ratio_axis(axes: Axes, ratio: "pd.Series[float]") -> None:
    low, high = float(ratio.min()) / 1.35, float(ratio.max()) * 1.35
    axes.set_xlim(low, high)
    axes.margins(y=0.12)
    log_ticks(axes, low, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}\n{1 / value:.3g}×"))


def _label(figure: Figure, axes: Axes, groups: pd.DataFrame, labels: Sequence[str]) -> None:
    """Text beside each point; in the legend instead when the points are too close for it."""
    handles, names = axes.get_legend_handles_labels()
    lines = [pair for pair in zip(handles, names, strict=True) if pair[1] not in labels]
    figure.legend(*zip(*lines, strict=True), loc="outside lower center", ncols=1)
    points = [(group["ratio/params"], 100 * group["accuracy/test"]) for _, group in groups.iterrows()]
    if not label_points(figure, axes, points, labels):
        shown = [pair for pair in zip(handles, names, strict=True) if pair[1] in labels][:MOST_IN_LEGEND]
        figure.legend(*zip(*shown, strict=True), loc="outside right upper", fontsize=8)


def _draw_curves(axes: Axes, drawn: Sequence[tuple[str, pd.DataFrame]], key: str, colours: dict[str, Any]) -> None:
    seen: set[str] = set()
    for label, rows in drawn:
        known = rows[rows["objective"].notna()]
        if key in known:
            name = label if label not in seen else None
            axes.plot(
                known[key], known["objective"], color=colours[label], label=name, alpha=0.85, linewidth=1.3,
                marker=marker(len(known)),
            )  # fmt: skip
            seen.add(label)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    more = len(labels) - MOST_IN_LEGEND
    title = f"first {MOST_IN_LEGEND}; {more} more not listed" if more > 0 else None
    figure.legend(handles[:MOST_IN_LEGEND], names[:MOST_IN_LEGEND], loc="outside right upper", title=title, fontsize=8)
