"""How every figure looks and is saved: colour-blind-safe colours, readable log axes, the same bytes each time."""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette, without its yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "figure.titlesize": 12, "text.usetex": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "axes.spines.top": False,
    "axes.spines.right": False, "lines.linewidth": 1.6,
    "legend.fontsize": 9, "legend.framealpha": 0.9, "svg.hashsalt": "nncompress", "svg.fonttype": "none",
}  # fmt: skip


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write name.png (150 dpi) and name.svg into a folder, made when absent; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def group_colours(n: int) -> list[Any]:
    """n colours that stay apart: the palette, or evenly spaced ones of viridis when it is too short."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    return [colormaps["viridis"](0.95 * index / (n - 1)) for index in range(n)]


def spans_a_decade(values: pd.DataFrame) -> bool:
    """Whether a log axis suits the values: all positive and more than ten-fold apart."""
    known = values.stack()
    return bool(len(known) and known.min() > 0 and known.max() > 10 * known.min())


def marker(points: int) -> str | None:
    """A dot where a line alone would hide how few points there are."""
    return "o" if points <= 15 else None


def log_ticks(axes: Axes, low: float, high: float) -> None:
    """Label a horizontal log axis in plain numbers, at 1, 2, 5 in every decade when it spans few of them."""
    few = high < 30 * low
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5) if few else (1,))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
