"""How every figure looks and is saved: colour-blind-safe colours, readable log axes, the same bytes each time."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from nncompress.records import replace_bytes

# Okabe and Ito's palette, without its yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # laid out: it need not be done again for each file
        replace_bytes(svg, _drawn(FigureCanvasSVG(figure).print_svg, metadata={"Date": None}))
        figure.set_dpi(150)
        replace_bytes(png, _drawn(FigureCanvasAgg(figure).print_png, pil_kwargs={"compress_level": 3}))
    return [png, svg]


def _drawn(canvas: Callable[..., object], **settings: object) -> bytes:
    """What a canvas makes of its figure: the bytes of `savefig`, which would draw everything twice."""
    made = BytesIO()
    canvas(made, **settings)
    return made.getvalue()


class GroupStyle(NamedTuple):
    """How one group of a sweep is drawn, the same in every plot."""

    colour: str
    marker: str
    line: str


def group_styles(n: int) -> list[GroupStyle]:
    """n styles that stay apart: the colours in turn, with another marker and line each time around."""
    rounds = [divmod(index, len(COLOURS)) for index in range(n)]
    return [GroupStyle(COLOURS[at], MARKERS[turn % len(MARKERS)], LINES[turn % len(LINES)]) for turn, at in rounds]


def spans_a_decade(values: pd.DataFrame) -> bool:
    """Whether a log axis suits the values: all positive and more than ten-fold apart."""
    known = values.stack()
    return bool(len(known) and known.min() > 0 and known.max() > 10 * known.min())


def marker(points: int) -> str | None:
    """A dot where a line alone would hide how few points there are."""
    return "o" if points <= 15 else None


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Label a log axis in plain numbers, at 1, 2, 5 in every decade when it spans few of them, or in powers of ten."""
    subs: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5) if high < 100 * low else (1,)
    plain = low >= 1e-4 and high <= 1e6
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else power_of_ten(value)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """`2×10⁻⁵`, `10⁷`: in the letters of the font, since matplotlib's own way to set them takes 10 ms a label."""
    digits, exponent = f"{value:.2e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if float(digits) == 1 else f"{float(digits):g}×10{raised}"
