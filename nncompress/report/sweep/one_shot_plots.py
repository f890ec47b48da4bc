"""The plots of one-shot compression: accuracies against the part taken away and against the theoretical speed-up."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nncompress.report.style import STYLE, GroupStyle, log_ticks, new_figure, spans_a_decade

ACCURACY = "accuracy/test"
LEAST_SPAN = 20
"""Per cent."""
MOST_PANELS, MOST_IN_LEGEND = 8, 24


def one_shot_plot(
    rows: pd.DataFrame, styles: Mapping[str, GroupStyle], title: str, xlabel: str, log_scale: bool = False
) -> Figure:
    """Draw a panel per method with a line per style: test accuracy over x, with its deviation where there is one."""
    methods = list(dict.fromkeys(rows["method"]))
    drawn = methods[:MOST_PANELS]
    across = len(drawn) if len(drawn) <= 3 else -(-len(drawn) // 2)
    down = -(-len(drawn) // across)
    more = f"\nthe first {MOST_PANELS} of {len(methods)} methods" if len(methods) > MOST_PANELS else ""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(3.7 * across + 0.6, 8), 3.2 * down + 1.2, title + more)
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
        for axes, method in zip(grid, drawn, strict=False):
            axes.set(title=method, xlabel=xlabel)
            axes.tick_params(labelbottom=True)
            for line, style in styles.items():
                _draw(axes, rows[rows["method"] == method], line, style)
        for axes in grid[len(drawn) :]:
            axes.remove()
        _widen(figure.axes[0])
        if log_scale:
            figure.axes[0].set_xscale("log")
            log_ticks(figure.axes[0].xaxis, rows["x"].min(), rows["x"].max())
        for axes in grid[::across]:
            axes.set_ylabel("test accuracy (%)")
        _legend(figure, list(styles), "n" in rows and bool((rows["n"] > 1).any()))
    return figure


def speedup_plot(means: pd.DataFrame, styles: Mapping[str, GroupStyle], title: str) -> Figure | None:
    """Draw accuracies against the theoretical speed-up, of the methods that save work; None without any."""
    speedup = 1 / means["ratio/macs"].where(means["ratio/macs"] > 0)
    saves = speedup.groupby(means["method"]).transform(lambda of: (of - 1).abs().max() > 1e-9)
    idle = ", ".join(dict.fromkeys(means.loc[~saves, "method"]))
    note = f"\nnot drawn, no speed-up counted: {idle}" if idle else ""
    lines = means.assign(line=means["group"], x=speedup)[saves]
    if lines.empty:
        return None
    xlabel = "theoretical speed-up: dense / compressed MACs"
    return one_shot_plot(lines, styles, title + note, xlabel, log_scale=spans_a_decade(lines[["x"]]))


def _widen(axes: Axes) -> None:
    """Show at least LEAST_SPAN of accuracy: less would make much of a little."""
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:
        low = min(max(0, (low + high - LEAST_SPAN) / 2), 100 - LEAST_SPAN)
        axes.set_ylim(low, low + LEAST_SPAN + 1)


def _draw(axes: Axes, rows: pd.DataFrame, line: str, style: GroupStyle) -> None:
    known = rows[rows["line"] == line].dropna(subset=["x", ACCURACY])
    if known.empty:
        return
    mean, std = 100 * known[ACCURACY], 100 * known.get(f"{ACCURACY} std", known["x"] * np.nan)
    axes.plot(
        known["x"], mean, color=style.colour, marker=style.marker, linestyle=style.line, markersize=4, label=line
    )  # fmt: skip
    axes.fill_between(known["x"], mean - std, mean + std, color=style.colour, alpha=0.13, linewidth=0)


def _legend(figure: Figure, lines: Sequence[str], several: bool) -> None:
    """Put the legend below all panels, in as many columns as fit; a single line needs none, a single mean does."""
    drawn = {label: at for axes in figure.axes for at, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    named = [line for line in lines if line in drawn]
    if len(named) < 2 and not several:
        return
    shown = named[:MOST_IN_LEGEND]
    notes = ["mean over the runs of a group; band: ± standard deviation"] if several else []
    notes += [f"{len(named) - len(shown)} more groups not listed"] if len(named) > len(shown) else []
    columns = max(1, min(len(shown), int(12.5 * figure.get_figwidth()) // (7 + max(map(len, shown), default=0))))
    handles = [drawn[line] for line in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=columns, title="\n".join(notes) or None)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(shown) // columns))
