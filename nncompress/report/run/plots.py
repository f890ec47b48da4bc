"""The plots of one run: objective, accuracy, what the solver adds, convergence rate, channels, weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nncompress.report.collect import columns_of, declarations, final, name
from nncompress.report.run.panels import LONGEST, add_common_key, add_key, new_panels
from nncompress.report.style import COLOURS, LINES, STYLE, log_ticks, marker, save_figure, spans_a_decade
from nncompress.report.text import cut, signed
from nncompress.results.convergence import SlopeFit, fit_slope
from nncompress.results.records import Run

AXES = {"step": "step K", "seconds": "time in the solver (seconds)"}
ACCURACIES = {
    "accuracy/test": "test set, deployed network",
    "accuracy/train": "training set, deployed network",
    "accuracy/dense_test": "test set, dense weights w",
}
WEIGHTS = ("value of a weight, or of a factor's entry (no units)", "number of values")
"""Names of the axes of the plot of weights."""
MOST_STEPS, MOST_TENSORS = 7, 16
"""Parts into which ticks divide a horizontal axis, and histograms in a figure."""
RATES = {"step_sq_mean": "mean squared step, all steps", "grad_sq_mean": "mean squared subgradient, all records"}


def run_plots(run: Run, folder: Path) -> list[Path]:
    """Draw and save what the run's records and summary allow; return the paths written."""
    title, summary = name(run), final(run)
    lines = {column["key"]: column["label"] for column in columns_of([run], "objective")}
    plots = declarations(run, "plots")
    figures = {column["key"] for column in declarations(run, "columns")}
    with matplotlib.rc_context(STYLE):
        drawn = {
            "objective": objective_plot(run.rows, f"Objective: {title}", lines),
            "accuracy": accuracy_plot(run.rows, f"Accuracy: {title}"),
            **{plot["name"]: panels_plot(run.rows, f"{plot['title']}: {title}", plot, figures) for plot in plots},
            "rate": rate_plot(run.convergence, f"Convergence rate: {title}"),
            "channels": channels_plot(summary, f"Channels: {title}"),
            "weights": weights_plot(summary, f"Weights of the compressed model: {title}"),
        }
    return [path for key, figure in drawn.items() if figure for path in save_figure(figure, folder, key)]


def objective_plot(rows: pd.DataFrame, title: str, more: Mapping[str, str] | None = None) -> Figure | None:
    """Draw the objective and its terms against step and time; None when no record has an objective.

    more: further lines of the same units, what each is by its key.
    """
    terms = [str(key) for key in rows if str(key).startswith("term/")]
    more = {key: label for key, label in (more or {}).items() if key in rows}
    values = rows.reindex(columns=["objective", *terms, *more])
    if values["objective"].isna().all():
        return None
    log_scale = spans_a_decade(values[["objective"]]) and bool((values.min().dropna() >= 0).all())
    floor = _log_floor(values) if log_scale else -np.inf
    under = {key: " (under the axis)" if values[key].max() < floor else "" for key in terms}
    lines = {"objective": "objective L"} | {key: f"{key.removeprefix('term/')} term{under[key]}" for key in terms}
    figure = _two_panels(rows, lines | more, title, "value (units of the objective)")
    for axes in figure.axes if log_scale else ():
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(bottom=floor)
        log_ticks(axes.yaxis, *axes.get_ylim())
    return figure


def accuracy_plot(rows: pd.DataFrame, title: str) -> Figure | None:
    """Draw accuracies against step and time; None when no record has one."""
    values = rows.reindex(columns=list(ACCURACIES))
    if values.isna().all(axis=None):
        return None
    return _two_panels(rows.assign(**(100 * values)), ACCURACIES, title, "accuracy (%)")


def panels_plot(
    rows: pd.DataFrame, title: str, plot: Mapping[str, Any], figures: Collection[str] = ()
) -> Figure | None:
    """Draw a plot that a solver declares; None unless each of its panels has something to show.

    Args:
        rows: the records.
        title: of the plot.
        plot: a `solvers.base.Plot` as plain values.
        figures: keys that are no parts, whatever they begin with.
    """
    rows = rows[rows["step"] >= plot["first"]].dropna(axis=1, how="all")
    if not all(set(panel["lines"]) & set(rows) for panel in plot["panels"]):
        return None
    count = len(plot["panels"])
    figure = new_panels(4 * count, 4.6, title)
    for position, panel in enumerate(plot["panels"], start=1):
        axes = figure.add_subplot(1, count, position, xlabel=AXES["step"], ylabel=panel["label"])
        prefix, plural = panel["parts"] or (None, "")
        parts = [key for key in rows if prefix and str(key).startswith(prefix) and key not in figures]
        for index, key in enumerate(parts):
            label = f"each of {len(parts)} {plural}" if index == 0 and len(parts) > 1 else None
            axes.plot(rows["step"], rows[key], color=COLOURS[5], linewidth=0.8, alpha=0.7, label=label)
        for index, (key, label) in enumerate(panel["lines"].items()):
            if key in rows:
                _draw_line(axes, rows["step"], rows[key], index, label)
        if panel["log"] and spans_a_decade(rows.reindex(columns=[*panel["lines"], *parts])):
            axes.set_yscale("log")
            log_ticks(axes.yaxis, *axes.get_ylim())
        elif panel["log"]:
            axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True, nbins=MOST_STEPS)
        add_key(axes)
    return figure


def rate_plot(figures: pd.DataFrame, title: str) -> Figure | None:
    """Draw running means of squared step and subgradient, their fitted slopes, the bound and a 1/K line, log-log.

    figures: those of `results.convergence.convergence`. None when the solver records neither mean.
    """
    table = figures[figures["step"] > 0]
    series = {key: label for key, label in RATES.items() if (table[key] > 0).any()}
    if not series:
        return None
    figure = new_panels(8, 5.5, title)
    axes = figure.add_subplot(xlabel="step K", ylabel="running mean up to step K", xscale="log", yscale="log")
    for colour, (key, label) in zip(COLOURS, series.items(), strict=False):
        axes.plot(table["step"], table[key].where(table[key] > 0), color=colour, label=label, marker=marker(len(table)))
        _draw_fit(axes, fit_slope(table["step"], table[key]), colour)
    _draw_bound(axes, table)
    _draw_reference(axes, table["step"], table[next(iter(series))])
    log_ticks(axes.xaxis, table["step"].min(), table["step"].max())
    log_ticks(axes.yaxis, *axes.get_ylim())
    add_key(axes, most=2)
    return figure


def channels_plot(summary: Mapping[str, Any], title: str) -> Figure | None:
    """Draw the channels each batch norm had and is left with, and the factors they were chosen by; None without any."""
    if not summary.get("channels") or "factors" not in summary:
        return None
    layers = pd.DataFrame(summary["channels"])
    figure = new_panels(12, 4.2, title)
    axes = figure.add_subplot(1, 2, 1, xlabel="batch norm, from input to output", ylabel="channels")
    places = np.arange(len(layers) + 1) + 0.5
    axes.stairs(layers["channels"], places, fill=True, color="0.85", label="before")
    axes.stairs(layers["kept"], places, fill=True, color=COLOURS[0], label="kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_key(axes)
    axes, factors = figure.add_subplot(1, 2, 2), summary["factors"]
    low, high = factors["decades"]
    edges = np.logspace(low, high, len(factors["counts"]) + 1)
    axes.stairs(factors["counts"], edges, fill=True, color=COLOURS[0])
    axes.set(xscale="log", xlabel="magnitude of a factor (no units)", ylabel="number of channels")
    log_ticks(axes.xaxis, edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_title(f"{factors['zero']} factors are exactly 0 and not drawn", fontsize=9, y=1)
    return figure


def weights_plot(summary: Mapping[str, Any], title: str) -> Figure | None:
    """Draw histograms of the nonzero values of the largest tensors (`metrics.weight_histograms`); None without any."""
    weights = summary.get("weights") or {}
    shown = weights.get("largest", [])[:MOST_TENSORS]
    if not shown:
        return None
    if len(shown) < weights["tensors"]:
        title += f" ({len(shown)} largest of {weights['tensors']} tensors)"
    columns = min(len(shown), 3 if len(shown) in (5, 6) else 4)
    lines = -(-len(shown) // columns)
    figure = new_panels(max(3.4 * columns, 7), 2.7 * lines + 0.6, title, 8, WEIGHTS)
    for position, histogram in enumerate(shown, start=1):
        axes = figure.add_subplot(lines, columns, position)
        counts = histogram["counts"]
        edges = np.linspace(histogram["low"], histogram["high"], len(counts) + 1)
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])  # one patch: 40 bars take a third longer
        shape = " × ".join(map(str, histogram["shape"]))
        zeros = f", {100 * histogram['zeros']:.1f} % zeros not drawn" if histogram["zeros"] else ""
        axes.set_title(f"{cut(histogram['name'], LONGEST)}\n{shape}{zeros}", fontsize=9, y=1)
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=3)
    return figure


def _two_panels(rows: pd.DataFrame, lines: Mapping[str, str], title: str, ylabel: str) -> Figure:
    """Draw one panel per horizontal axis, one legend below both."""
    panels = [key for key in AXES if key in rows and rows[key].notna().any()]
    figure = new_panels(5.5 * len(panels), 4.6, title)
    drawn = [key for key in lines if key in rows and rows[key].notna().any()]
    for position, at in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), position, xlabel=AXES[at], ylabel=ylabel)
        for index, key in enumerate(drawn):
            _draw_line(axes, rows[at], rows[key], index, lines[key])
        axes.locator_params(axis="x", integer=at == "step", nbins=MOST_STEPS)
    add_common_key(figure)
    return figure


def _draw_line(axes: Axes, x: pd.Series[float], y: pd.Series[float], index: int, label: str) -> None:
    known = y.notna()
    axes.plot(
        x[known],
        y[known],
        label=label,
        color=COLOURS[index % len(COLOURS)],
        linestyle=LINES[index // len(COLOURS) % len(LINES)],
        linewidth=2.4 if index == 0 else 1.4,
        marker=marker(known.sum()),
    )


def _log_floor(values: pd.DataFrame) -> float:
    """Return the bottom of a log axis: a term that vanishes must not squeeze the objective into a line."""
    least = 1e-3 * values["objective"].min()
    drawn = values.where(values > 0).loc[:, values.max() >= least]
    return float(max(drawn.min().min() / 1.5, least))


def _draw_fit(axes: Axes, fit: SlopeFit, colour: str) -> None:
    if fit.first is None or fit.last is None:
        return
    k = np.array([fit.first, fit.last], dtype=float)
    label = f"fitted slope {signed(fit.slope)} (K = {fit.first} to {fit.last})"
    height = np.exp(fit.intercept) * k**fit.slope
    axes.plot(k, height, color=colour, linewidth=8, alpha=0.3, solid_capstyle="butt", label=label)


def _draw_bound(axes: Axes, table: pd.DataFrame) -> None:
    bound = table["bound"].where(table["bound"] > 0)
    if bound.notna().any():
        label = "bound on the mean squared step: (L₀ − L at K) / (λ K)"
        axes.plot(table["step"], bound, color="black", linestyle=":", label=label, marker=marker(len(table)))


def _draw_reference(axes: Axes, step: pd.Series[int], values: pd.Series[float]) -> None:
    """Draw a line like 1/K below the curves, through a quarter of the first positive value."""
    first = values[values > 0].index[0]
    height = 0.25 * values[first] * step[first]
    axes.plot(step, height / step, color="0.5", linestyle=(0, (6, 2)), linewidth=1.2, label="slope −1, for comparison")
