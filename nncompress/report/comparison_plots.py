"""Published figures and ours in one plot: a line for each, its two ends."""

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nncompress.report.style import COLOURS, STYLE, new_figure

MOST = 40
"""Figures of one metric in a plot; more are in the table alone."""


def beside_published(beside: pd.DataFrame, title: str) -> Figure | None:
    """Every figure in % that is both published and ours, a panel for each metric; None when there is none.

    Args:
        beside: `row`, `metric`, `published`, `ours`, `std` and `verdict` of each figure.
        title: of what they are.
    """
    if "ours" not in beside:
        return None
    both = beside[beside["ours"].notna() & beside["published"].notna() & beside["metric"].str.endswith("(%)")]
    if both.empty:
        return None
    panels = {str(metric): rows.head(MOST) for metric, rows in both.groupby("metric", sort=False)}
    lines = sum(map(len, panels.values()))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(10, 1.8 + 0.3 * lines + 0.6 * len(panels), f"{title}: published and ours")
        ratios = [len(rows) + 1 for rows in panels.values()]
        drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)
        for axes, (metric, rows) in zip(drawn[:, 0], panels.items(), strict=True):
            _panel(axes, metric, rows)
        handles, labels = drawn[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Axes, metric: str, rows: pd.DataFrame) -> None:
    places = list(range(len(rows), 0, -1))
    published, ours = rows["published"].astype(float), rows["ours"].astype(float)
    axes.hlines(places, published, ours, color="0.7", linewidth=1.2, zorder=1)
    axes.plot(published, places, "o", color="black", markerfacecolor="white", label="published", zorder=3)
    axes.errorbar(
        ours, places, xerr=rows["std"].astype(float).fillna(0.0), fmt="o", color=COLOURS[0], capsize=3, zorder=2,
        label="ours (mean, standard deviation over seeds)",
    )  # fmt: skip
    axes.set_yticks(places, [str(row) for row in rows["row"]], fontsize=8)
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlabel(metric)
