"""How every figure looks and is saved: colour-blind-safe colours, readable log axes, the same bytes each time."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from nncompress.report.fresh import write_part
from nncompress.report.text import cut

# Okabe and Ito's palette, without its yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FONT = "DejaVu Sans"
STYLE: Any = {
    "font.family": FONT, "font.size": 10, "axes.titlesize": 11, "figure.titlesize": 12, "text.usetex": False,
    "text.parse_math": False, "text.hinting": "none", "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6,
    "legend.fontsize": 9, "legend.framealpha": 0.9, "svg.hashsalt": "nncompress", "svg.fonttype": "none",
}  # fmt: skip
LETTERS, LONGEST = 10.5, 90
"""Letters of a title to an inch of its figure, and of any other line of text in a plot."""


class _Layout(ConstrainedLayoutEngine):
    """matplotlib's layout, of a figure whose texts are cut where they are too long for it."""

    def execute(self, fig: Figure) -> None:
        """Lay out the figure."""
        for text in fig.findobj(Text):
            text.set_text("\n".join(cut(line, LONGEST) for line in text.get_text().split("\n")))
        super().execute(fig)


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make an empty figure, its size in inches."""
    figure = Figure(figsize=(width, height), layout=_Layout())
    figure.suptitle(title_of(title, width))
    return figure


def title_of(text: str, width: float) -> str:
    """Return a title whose lines fit into a figure of so many inches."""
    return "\n".join(cut(line, int(LETTERS * width)) for line in text.split("\n"))


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write name.png (150 dpi) and name.svg into a folder, made when absent; return their paths."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # of names in other scripts; an svg has them
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # laid out: it need not be done again for each file
        file = BytesIO()
        vector: Any = FigureCanvasSVG(figure)
        vector.print_svg(file, metadata={"Date": None})
        write_part(svg, file.getvalue())
        figure.set_dpi(150)
        # no canvas: it would hold the pixels in a cycle of references
        raster: Any = RendererAgg(*figure.bbox.size, 150)  # type: ignore[no-untyped-call]
        figure.draw(raster)
        write_part(png, _png(np.asarray(raster.buffer_rgba())))
    return [png, svg]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of pixels (height, width, 4), without the filters that take most of the time elsewhere."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 4 * width), np.uint8)  # 0 before each line: no filter
    lines[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0)  # 8 bits of red, green, blue and alpha
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.data, 3)), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


class GroupStyle(NamedTuple):
    """How one group of a sweep is drawn, the same in every plot."""

    colour: str
    marker: str
    line: str


def group_styles(n: int) -> list[GroupStyle]:
    """Return n styles that stay apart: the colours in turn, with another marker and line each time around."""
    rounds = [divmod(index, len(COLOURS)) for index in range(n)]
    return [GroupStyle(COLOURS[at], MARKERS[turn % len(MARKERS)], LINES[turn % len(LINES)]) for turn, at in rounds]


def spans_a_decade(values: pd.DataFrame) -> bool:
    """Tell whether a log axis suits the values: all positive and more than ten-fold apart."""
    known = values.stack()
    return bool(len(known) and known.min() > 0 and known.max() > 10 * known.min())


def marker(points: int) -> str | None:
    """Return a dot where a line alone would hide how few points there are."""
    return "o" if points <= 15 else None


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Label a log axis in plain numbers, at 1, 2, 5 in every decade when it spans few of them, or in powers of ten."""
    subs: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5) if high < 100 * low else (1,)
    plain = low >= 1e-4 and high <= 1e6
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else power_of_ten(value)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """Write `2×10⁻⁵`, `10⁷` in the letters of the font, as matplotlib's own way to set them takes 10 ms a label."""
    digits, exponent = f"{value:.2e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if float(digits) == 1 else f"{float(digits):g}×10{raised}"


AROUND = (("left", 7, 5), ("left", 7, -12), ("right", -7, 5), ("right", -7, -12), ("center", 0, 9), ("center", 0, -17))
"""Where a label may stand: alignment, and offset from its point in points, the nearest first."""
Point = tuple[float, float]


def label_points(
    figure: Figure, axes: Axes, points: Sequence[Point], texts: Sequence[str], lines: Iterable[tuple[Point, Point]]
) -> bool:
    """Write each text at the nearest free place around its point, with a thin line when that is further off.

    The axes must have their final limits; `lines` are horizontal or vertical, not to be written on. Returns False,
    with no label written, when one of them finds no place.
    """
    figure.draw_without_rendering()
    occupied = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(points)]
    occupied += [Bbox(np.sort(axes.transData.transform(line), axis=0)).padded(2) for line in lines]
    notes: list[Annotation] = []
    for point, text in zip(points, texts, strict=True):
        note = next((n for n in _candidates(axes, point, text) if _free(n, axes, occupied)), None)
        if note is None:
            for written in notes:
                written.remove()
            return False
        notes.append(note)
        occupied.append(_extent(note))
    return True


def _candidates(axes: Axes, point: Point, text: str) -> Iterator[Annotation]:
    """Yield the label at each place in turn; one that is not used is removed before the next is tried."""
    for distance in (1.0, 2.0, 3.0, 4.5):
        for side, dx, dy in AROUND:
            far = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7} if distance > 1 else None
            note = axes.annotate(
                text, point, (dx * distance, dy * distance), textcoords="offset points", ha=side, arrowprops=far
            )
            note.set_fontsize(8.5)
            yield note
            note.remove()


def _free(note: Annotation, axes: Axes, occupied: Sequence[Bbox]) -> bool:
    box, frame = _extent(note), axes.get_window_extent()
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not any(box.overlaps(other) for other in occupied)


def _extent(note: Annotation) -> Bbox:
    """Return the box of the text alone, without the line to its point."""
    note.get_window_extent()  # moves the text to its place
    return Text.get_window_extent(note)


def pareto_front(ratio: ArrayLike, accuracy: ArrayLike) -> list[int]:
    """Return the positions of the points that no other point dominates, by rising ratio.

    A point dominates another when its ratio is not larger, its accuracy not smaller, and one of the two strictly
    better. Equal points do not dominate each other; points with a NaN are left out.
    """
    r, a = np.asarray(ratio, dtype=float), np.asarray(accuracy, dtype=float)
    known = np.flatnonzero(~(np.isnan(r) | np.isnan(a)))
    order = known[np.lexsort((-a[known], r[known]))]
    front: list[int] = []
    for point in order:
        last = front[-1] if front else None
        if last is None or a[point] > a[last] or (a[point] == a[last] and r[point] == r[last]):
            front.append(int(point))
    return front
