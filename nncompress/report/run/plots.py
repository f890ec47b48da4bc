"""The plots of one run: objective, accuracy, constraint, convergence rate, channels, weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nncompress.report.collect import final, name
from nncompress.report.run.weights import stored_numbers
from nncompress.report.style import COLOURS, LINES, STYLE, log_ticks, marker, new_figure, save_figure, spans_a_decade
from nncompress.report.text import signed
from nncompress.results.convergence import SlopeFit, convergence, fit_slope
from nncompress.results.records import Run

log = logging.getLogger(__name__)


AXES = {"step": "step K", "seconds": "time in the solver (seconds)"}


ACCURACIES = {
    "accuracy/test": "test set, deployed network",
    "accuracy/train": "training set, deployed network",
    "accuracy/dense_test": "test set, dense weights w",
}


MOST_PANELS = 6


def run_plots(run: Run, folder: Path) -> list[Path]:
    """Draw and save what the run's records and model allow; the paths written."""
    title = name(run)
    tensors = stored_numbers(run.folder / "model")
    with matplotlib.rc_context(STYLE):
        figures = {
            "objective": objective_plot(run.rows, f"Objective: {title}"),
            "accuracy": accuracy_plot(run.rows, f"Accuracy: {title}"),
            "constraint": constraint_plot(run.rows, f"Constraint w = Δ(Θ): {title}"),
            "sets": sets_plot(run.rows, f"Constraint sets: {title}"),
            "rate": rate_plot(run.rows, f"Convergence rate: {title}"),
            "channels": channels_plot(final(run), f"Channels: {title}"),
            "weights": weights_plot(tensors, f"Weights of the compressed model: {title}"),
        }
    return [path for key, figure in figures.items() if figure for path in save_figure(figure, folder, key)]


def objective_plot(rows: pd.DataFrame, title: str) -> Figure | None:
    """The objective and its terms against step and time; None when no record has an objective."""
    terms = [str(key) for key in rows if str(key).startswith("term/")]
    values = rows.reindex(columns=["objective", *terms, *(key for key in ("loss/w",) if key in rows)])
    if values["objective"].isna().all():
        return None
    log_scale = spans_a_decade(values[["objective"]]) and bool((values.min().dropna() >= 0).all())
    floor = _log_floor(values) if log_scale else -np.inf
    under = {key: " (under the axis)" if values[key].max() < floor else "" for key in terms}
    lines = {"objective": "objective L"} | {key: f"{key.removeprefix('term/')} term{under[key]}" for key in terms}
    lines |= {"loss/w": "training loss of the weights w"}
    figure = _two_panels(rows, lines, title, "value (units of the objective)")
    for axes in figure.axes if log_scale else ():
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(bottom=floor)
        log_ticks(axes.yaxis, *axes.get_ylim())
    return figure


def accuracy_plot(rows: pd.DataFrame, title: str) -> Figure | None:
    """Accuracies against step and time; None when no record has one."""
    values = rows.reindex(columns=list(ACCURACIES))
    if values.isna().all(axis=None):
        return None
    return _two_panels(rows.assign(**(100 * values)), ACCURACIES, title, "accuracy (%)")


def constraint_plot(rows: pd.DataFrame, title: str) -> Figure | None:
    """How w and Δ(Θ) meet as mu grows, and how the multipliers come to be the gradient; None without multipliers."""
    if "kkt/cosine" not in rows or not (rows["step"] > 0).any():
        return None
    figure = new_figure(12, 4.2, title)
    for position, (lines, ylabel, log_scale) in enumerate(CONSTRAINT, start=1):
        axes = figure.add_subplot(1, len(CONSTRAINT), position, xlabel=AXES["step"], ylabel=ylabel)
        positive = rows[rows["step"] > 0].reindex(columns=["step", *lines])
        for index, (key, label) in enumerate(lines.items()):
            _draw_line(axes, positive["step"], positive[key], index, label)
        if log_scale and spans_a_decade(positive[list(lines)]):
            axes.set_yscale("log")
            log_ticks(axes.yaxis, *axes.get_ylim())
        axes.legend()
    return figure


CONSTRAINT = (
    (
        {"gap": "gap ‖w − Δ(Θ)‖ / ‖w‖", "c_step/error": "C step ‖v − Δ(Θ)‖ / ‖v‖, v = w − λ/μ"},
        "relative distance", True,
    ),
    ({"mu": "μ", "lam/norm": "‖λ‖", "grad/norm": "‖∇L(w)‖"}, "value", True),
    ({"kkt/cosine": "cosine of λ and ∇L(w)", "kkt/distance": "‖λ − ∇L(w)‖ / ‖∇L(w)‖"}, "value", False),
)  # fmt: skip


def rate_plot(rows: pd.DataFrame, title: str) -> Figure | None:
    """Running means of squared step and subgradient, their fitted slopes, the bound and a 1/K line, on log-log axes.

    None when the solver records neither.
    """
    table = convergence(rows)
    table = table[table["step"] > 0]
    series = {key: label for key, label in RATES.items() if (table[key] > 0).any()}
    if not series:
        return None
    figure = new_figure(8, 5.5, title)
    axes = figure.add_subplot(xlabel="step K", ylabel="running mean up to step K", xscale="log", yscale="log")
    for colour, (key, label) in zip(COLOURS, series.items(), strict=False):
        axes.plot(table["step"], table[key].where(table[key] > 0), color=colour, label=label, marker=marker(len(table)))
        _draw_fit(axes, fit_slope(table["step"], table[key]), colour)
    _draw_bound(axes, table)
    _draw_reference(axes, table["step"], table[next(iter(series))])
    log_ticks(axes.xaxis, table["step"].min(), table["step"].max())
    log_ticks(axes.yaxis, *axes.get_ylim())
    axes.legend()
    return figure


RATES = {"step_sq_mean": "mean squared step, all steps", "grad_sq_mean": "mean squared subgradient, all records"}


def channels_plot(summary: Mapping[str, Any], title: str) -> Figure | None:
    """The channels each batch norm had and is left with, and the factors they were chosen by; None without any."""
    if "channels" not in summary:
        return None
    layers = pd.DataFrame(summary["channels"])
    figure = new_figure(12, 4.2, title)
    axes = figure.add_subplot(1, 2, 1, xlabel="batch norm, from input to output", ylabel="channels")
    place = np.arange(1, len(layers) + 1)
    axes.bar(place, layers["channels"], color="0.85", width=1.0, label="before")
    axes.bar(place, layers["kept"], color=COLOURS[0], width=0.8, label="kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    _factors(figure.add_subplot(1, 2, 2), summary["factors"])
    return figure


def _factors(axes: Axes, factors: Mapping[str, Any]) -> None:
    """A histogram of the magnitudes of scaling factors on a log axis."""
    low, high = factors["decades"]
    edges = np.logspace(low, high, len(factors["counts"]) + 1)
    axes.stairs(factors["counts"], edges, fill=True, color=COLOURS[0])
    axes.set(xscale="log", xlabel="magnitude of a factor (no units)", ylabel="number of channels")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{factors['zero']} factors are exactly 0 and not drawn", fontsize=9)


def weights_plot(tensors: Mapping[str, NDArray[np.floating]], title: str) -> Figure | None:
    """A histogram of the nonzero values of each tensor of Θ and of all else, the 6 largest; None without any."""
    largest = sorted(tensors, key=lambda key: -tensors[key].size)[:MOST_PANELS]
    shown = [key for key in tensors if key in largest]
    if not shown:
        return None
    if len(shown) < len(tensors):
        title += f" ({len(shown)} largest of {len(tensors)} tensors)"
    columns = min(len(shown), 3 if len(shown) in (5, 6, 9) else 4)
    lines = -(-len(shown) // columns)
    figure = new_figure(max(3.4 * columns, 7), 2.7 * lines + 0.6, title)
    for position, key in enumerate(shown, start=1):
        _histogram(figure.add_subplot(lines, columns, position), key, tensors[key])
    figure.supxlabel("value of a weight, or of a factor's entry (no units)", fontsize=10)
    figure.supylabel("number of values", fontsize=10)
    return figure


def _histogram(axes: Axes, key: str, values: NDArray[np.floating]) -> None:
    nonzero = values[values != 0].astype(float).ravel()
    zeros = 1 - nonzero.size / values.size
    shape = " × ".join(map(str, values.shape))
    note = f", {100 * zeros:.1f} % zeros not drawn" if zeros else ""
    axes.stairs(*np.histogram(nonzero, bins=40), fill=True, color=COLOURS[0])  # one patch: 40 bars take a third longer
    axes.set_title(f"{key}\n{shape}{note}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=3)


def _two_panels(rows: pd.DataFrame, lines: Mapping[str, str], title: str, ylabel: str) -> Figure:
    """One panel per horizontal axis, one legend below both."""
    panels = [key for key in AXES if key in rows and rows[key].notna().any()]
    figure = new_figure(5.5 * len(panels), 4.6, title)
    drawn = [key for key in lines if key in rows and rows[key].notna().any()]
    for position, at in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), position, xlabel=AXES[at], ylabel=ylabel)
        for index, key in enumerate(drawn):
            _draw_line(axes, rows[at], rows[key], index, lines[key])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
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
    """The bottom of a log axis: a term that vanishes must not squeeze the objective into a line."""
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
    """A line like 1/K below the curves, through a quarter of the first positive value."""
    first = values[values > 0].index[0]
    height = 0.25 * values[first] * step[first]
    axes.plot(step, height / step, color="0.5", linestyle=(0, (6, 2)), linewidth=1.2, label="slope −1, for comparison")


PANELS = (
    ("fw_gap", "", "Frank-Wolfe gap ⟨∇L(w), w − LMO(∇L(w))⟩", "all sets together"),
    ("eta", "eta/", "step size η, mean of the epoch", "mean over the sets"),
    ("gauge", "gauge/", "gauge of the weights / radius of their set", "largest"),
)


NOT_A_SET = ("eta/clipped",)


def sets_plot(rows: pd.DataFrame, title: str) -> Figure | None:
    """The Frank-Wolfe gap, and step size and gauge of every set, against the step; None without a gap on record."""
    if "fw_gap" not in rows or rows["fw_gap"].isna().all():
        return None
    figure = new_figure(13, 4.4, title)
    for position, (key, prefix, label, of_all) in enumerate(PANELS, start=1):
        own = [str(c) for c in rows if prefix and str(c).startswith(prefix) and c not in NOT_A_SET]
        axes = figure.add_subplot(1, len(PANELS), position, xlabel="step K", ylabel=label)
        for index, column in enumerate(own):
            name = f"each of {len(own)} sets" if index == 0 and len(own) > 1 else None
            axes.plot(rows["step"], rows[column], color=COLOURS[5], linewidth=0.8, alpha=0.7, label=name)
        if key in rows:
            shown = of_all if not prefix or len(own) > 1 else None
            axes.plot(rows["step"], rows[key], color=COLOURS[0], label=shown, marker=marker(len(rows)), markersize=4)
        _scale(axes, rows[[key, *own] if key in rows else own])
        axes.locator_params(axis="x", integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _scale(axes: Axes, values: pd.DataFrame) -> None:
    if spans_a_decade(values):
        axes.set_yscale("log")
        log_ticks(axes.yaxis, *axes.get_ylim())
    else:
        axes.set_ylim(bottom=0)
