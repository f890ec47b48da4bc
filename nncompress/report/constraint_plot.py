"""How the weights move within the sets of Frank-Wolfe: the gap, the step sizes, where they are in their sets."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nncompress.report.style import COLOURS, log_ticks, marker, new_figure, spans_a_decade

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
