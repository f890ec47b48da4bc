"""The plots of a sweep: accuracy against compression ratio with its Pareto front, and all objectives together."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nncompress.report.collect import group_label
from nncompress.report.style import (
    STYLE,
    GroupStyle,
    group_styles,
    label_points,
    log_ticks,
    marker,
    new_figure,
    pareto_front,
    save_figure,
    spans_a_decade,
)

MOST_IN_LEGEND, MOST_BESIDE, LONGEST_BESIDE = 24, 12, 24
LEFT = {"params": "parameters", "bits": "bits"}
HORIZONTAL = {"step": "step K", "seconds": "time in the solver (seconds)"}


def save_sweep_plots(figures: dict[str, Figure | None], folder: Path) -> list[Path]:
    """Save the figures that there are; return the paths written."""
    return [path for key, figure in figures.items() if figure for path in save_figure(figure, folder, key)]


def accuracy_ratio_plot(groups: pd.DataFrame, keys: Sequence[str], title: str, of: str = "params") -> Figure | None:
    """Draw test accuracy against what is left `of` the parameters or bits; None when no group has both figures.

    One point a group with its deviation over seeds.
    """
    wanted = groups.reindex(columns=[f"ratio/{of}", "accuracy/test"]).astype(float)
    drawn = groups[wanted.notna().all(axis=1) & (wanted[f"ratio/{of}"] > 0)]
    if drawn.empty:
        return None
    drawn = drawn.assign(ratio=drawn[f"ratio/{of}"].astype(float))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.5, 6, f"Test accuracy against compression: {title}")
        several = "\n± standard deviation over seeds" if (drawn["n"] > 1).any() else ""
        axes = figure.add_subplot(xscale="log", ylabel=f"test accuracy of the deployed network (%){several}")
        axes.set_xlabel(f"{LEFT[of]} left: compressed / dense, whole network (below: times smaller)")
        _draw_front(axes, drawn["ratio"].to_numpy(float), 100 * drawn["accuracy/test"].to_numpy(float))
        _ratio_axis(axes, drawn["ratio"])
        series = _series(drawn, keys)
        if series:
            _draw_series(figure, axes, series)
        else:
            labels = [group_label(group, keys) for _, group in drawn.iterrows()]
            _draw_points(axes, drawn, labels)
            _draw_dense(axes, drawn)
            _label(figure, axes, drawn, labels)
    return figure


def _series(groups: pd.DataFrame, keys: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the groups that differ in numbers alone (ranks, say) together, under what they share.

    Empty unless that gives several series, most of them of several points.
    """
    options = [key for key in keys if not pd.to_numeric(groups[key].dropna(), errors="coerce").notna().all()]
    if not options or len(options) == len(keys):
        return {}
    labels = pd.Series([group_label(group, options) for _, group in groups.iterrows()], index=groups.index)
    series = {str(label): part.sort_values("ratio") for label, part in groups.groupby(labels, sort=False)}
    return series if len(series) > 1 and len(groups) >= 1.5 * len(series) else {}


def _draw_series(figure: Figure, axes: Axes, series: Mapping[str, pd.DataFrame]) -> None:
    for (label, groups), style in zip(series.items(), group_styles(len(series)), strict=True):
        x, y = zip(*_points(groups), strict=True)
        axes.errorbar(
            x, y, yerr=_std(groups), fmt=style.marker, linestyle=style.line, color=style.colour, capsize=4, zorder=3,
            label=label,
        )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2)


def objectives_plot(curves: Sequence[tuple[str, pd.DataFrame]], title: str) -> Figure | None:
    """Draw the objective of every run against step and time, one colour a group; None when no run has one.

    Args:
        curves: the group's label and the rows of each run.
        title: what the runs have in common.
    """
    drawn = [(label, rows) for label, rows in curves if "objective" in rows and rows["objective"].notna().any()]
    if not drawn:
        return None
    labels = list(dict.fromkeys(label for label, _ in drawn))
    styles = dict(zip(labels, group_styles(len(labels)), strict=True))
    values = pd.concat([rows["objective"] for _, rows in drawn], ignore_index=True).to_frame()
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11, 5, f"Objective of every run: {title}")
        for position, (key, xlabel) in enumerate(HORIZONTAL.items(), start=1):
            axes = figure.add_subplot(1, 2, position, xlabel=xlabel, ylabel="objective L (its own units)")
            axes.set_yscale("log" if spans_a_decade(values) else "linear")
            _draw_curves(axes, drawn, key, styles)
            if spans_a_decade(values):
                log_ticks(axes.yaxis, *axes.get_ylim())
        _legend(figure, labels)
    return figure


def _draw_points(axes: Axes, groups: pd.DataFrame, labels: Sequence[str]) -> None:
    points = zip(_points(groups), _std(groups), group_styles(len(labels)), labels, strict=True)
    for (x, y), std, style, label in points:
        axes.errorbar(x, y, yerr=std or None, fmt=style.marker, color=style.colour, capsize=4, zorder=3, label=label)


def _points(groups: pd.DataFrame) -> list[tuple[float, float]]:
    """Return ratio and test accuracy in % of each group."""
    return list(zip(groups["ratio"], 100 * groups["accuracy/test"].astype(float), strict=True))


def _std(groups: pd.DataFrame) -> list[float]:
    """Return the standard deviation of the test accuracy in %, 0 where it is not known."""
    column = groups.reindex(columns=["accuracy/test std"])["accuracy/test std"]
    return [float(value) for value in 100 * column.astype(float).fillna(0.0)]


def _draw_front(axes: Axes, ratio: Any, accuracy: Any) -> None:
    front = pareto_front(ratio, accuracy)
    label = "Pareto front: nothing is both smaller and more accurate"
    axes.step(ratio[front], accuracy[front], where="post", color="0.35", linewidth=1.3, zorder=2, label=label)


def _draw_dense(axes: Axes, groups: pd.DataFrame) -> None:
    points = _dense_points(groups)
    if points:
        x, y = zip(*points, strict=True)
        label = "uncompressed weights w of the same runs, drawn at the ratio of their compression"
        axes.plot(x, y, "o--", color="black", markerfacecolor="white", markersize=4, linewidth=1, zorder=1, label=label)


def _dense_points(groups: pd.DataFrame) -> list[tuple[float, float]]:
    """Return ratio and test accuracy in % of the dense weights of each group, by ratio."""
    if "accuracy/dense_test" not in groups:
        return []
    known = groups[groups["accuracy/dense_test"].notna()].sort_values("ratio")
    dense = 100 * known["accuracy/dense_test"].astype(float)
    return list(zip(known["ratio"], dense, strict=True))


def _ratio_axis(axes: Axes, ratio: "pd.Series[float]") -> None:
    low, high = float(ratio.min()) / 1.35, float(ratio.max()) * 1.35
    axes.set_xlim(low, high)
    axes.margins(y=0.12)
    log_ticks(axes.xaxis, low, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}\n{1 / value:.3g}×"))


def _label(figure: Figure, axes: Axes, groups: pd.DataFrame, labels: Sequence[str]) -> None:
    """Put a few short texts beside their points, others in the legend."""
    pairs = list(zip(*axes.get_legend_handles_labels(), strict=True))
    lines = [pair for pair in pairs if pair[1] not in labels]
    figure.legend(*zip(*lines, strict=True), loc="outside lower center", ncols=1)
    few = len(labels) <= MOST_BESIDE and max(map(len, labels)) <= LONGEST_BESIDE
    if not (few and label_points(figure, axes, _points(groups), labels, _lines(groups))):
        figure.set_size_inches(12, 6.2)
        shown = [pair for pair in pairs if pair[1] in labels][:MOST_IN_LEGEND]
        axes.legend(*zip(*shown, strict=True), loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=8)


def _lines(groups: pd.DataFrame) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the error bars and the lines between the points of the dense weights."""
    bars = [((x, y - std), (x, y + std)) for (x, y), std in zip(_points(groups), _std(groups), strict=True)]
    return [*bars, *pairwise(_dense_points(groups))]


def _draw_curves(
    axes: Axes, drawn: Sequence[tuple[str, pd.DataFrame]], key: str, styles: Mapping[str, GroupStyle]
) -> None:
    seen: set[str] = set()
    for label, rows in drawn:
        known = rows[rows["objective"].notna()]
        if key in known:
            name, style = label if label not in seen else None, styles[label]
            axes.plot(
                known[key], known["objective"], color=style.colour, linestyle=style.line, linewidth=1.3, alpha=0.85,
                label=name, marker=marker(len(known)), markersize=4,
            )  # fmt: skip
            seen.add(label)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    more = len(labels) - MOST_IN_LEGEND
    title = f"first {MOST_IN_LEGEND}; {more} more not listed" if more > 0 else None
    figure.axes[-1].legend(
        handles[:MOST_IN_LEGEND], names[:MOST_IN_LEGEND], loc="upper left", bbox_to_anchor=(1.02, 1.0), title=title,
        fontsize=8,
    )  # fmt: skip
