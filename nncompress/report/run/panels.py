"""The figures of one run: panels side by side, placed and given ticks by arithmetic.

matplotlib's own layout draws everything twice more to find the room that labels take, and makes five artists of each
tick: two thirds of the time of a plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import LayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import IdentityTransform

from nncompress.report.style import FONT, Point, power_of_ten, title_of
from nncompress.report.text import cut

TICK, GAP = 3.5, 3.5
"""Length of a tick, and what is left free between things, in points as all lengths here."""
LABEL, TITLE, LEGEND = 10, 12, 9
"""Sizes of fonts."""
LINE, RISE = 1.17, 0.73
"""From one line of text to the next, and the height of a digit: multiples of the font's size."""
ROOM = LINE * LABEL + GAP
"""What the name of an axis takes."""
MOST_ACROSS = 5
"""Lines side by side in a legend."""
SAMPLE, KEY_LINE = 20, LINE * LEGEND + GAP
"""Length of the sample of a line, and from one line of a key to the next."""
Align = Literal["left", "center", "right"]
BEFORE: Mapping[Align, float] = {"left": 0.0, "center": 0.5, "right": 1.0}
"""The share of a text before the point that it is aligned by."""
LONGEST = 60
"""Letters of a label."""
GRID, TICKS = (0.69, 0.69, 0.69, 0.3), (0.0, 0.0, 0.0, 1.0)


def new_panels(width: float, height: float, title: str, size: float = LABEL, names: Sequence[str] = ("", "")) -> Figure:
    """Make an empty figure for panels, added from left to right and from above.

    Args:
        width: in inches.
        height: in inches.
        title: of the figure.
        size: of the font of the ticks, in points.
        names: of the horizontal and of the vertical axes of all panels, where they are the same.
    """
    figure = Figure(figsize=(width, height), layout=_Panels(size, names))
    figure.suptitle(title_of(title, width), y=1 - GAP / (72 * height), va="top")
    if names[0]:
        figure.supxlabel(names[0], y=GAP / (72 * height), va="bottom", fontsize=LABEL)
    if names[1]:
        figure.supylabel(names[1], x=GAP / (72 * width), ha="left", fontsize=LABEL)
    return figure


def add_key(axes: Axes, most: int = 1) -> None:
    """Say below a panel what its lines are, `most` of them side by side."""
    axes.add_artist(_Key(*axes.get_legend_handles_labels(), most=most))


def add_common_key(figure: Figure) -> None:
    """Say below all panels what the lines of each are."""
    figure.add_artist(_Key(*figure.axes[0].get_legend_handles_labels(), most=MOST_ACROSS))


class _Panels(LayoutEngine):
    """Gives all panels of a figure the same size, in what their labels leave of it."""

    _adjust_compatible = _colorbar_gridspec = False

    def __init__(self, size: float, names: Sequence[str]) -> None:
        super().__init__()
        self._size, self._names = size, names

    def execute(self, fig: Figure) -> None:
        """Place the panels and give them their ticks, once: their limits are final then."""
        if not fig.axes[0].xaxis.get_visible():
            return
        width, height = 72 * fig.get_size_inches()
        down, across = fig.axes[0].get_subplotspec().get_gridspec().get_geometry()  # type: ignore[union-attr]
        left, below, above = np.zeros(across), np.zeros(down), np.zeros(down)
        ticks = {axes: _Ticks(axes, self._size) for axes in fig.axes}
        for at, axes in enumerate(fig.axes):
            (row, column), title = divmod(at, across), axes.get_title()
            left[column] = max(left[column], ticks[axes].width + (2 * GAP if column else 0))
            below[row] = max(below[row], ticks[axes].height + sum(key.height for key in _keys(axes)))
            above[row] = max(above[row], LINE * LABEL * (1 + title.count("\n")) + 2 * GAP if title else 0)
        edge = GAP + (ROOM if self._names[1] else 0)
        foot = GAP + (ROOM if self._names[0] else 0) + sum(key.height for key in _keys(fig))
        top = height - LINE * TITLE * (1 + fig.get_suptitle().count("\n")) - 2 * GAP
        wide = (width - 2 * GAP - edge - left.sum()) / across
        high = (top - foot - below.sum() - above.sum()) / down
        for at, axes in enumerate(fig.axes):
            row, column = divmod(at, across)
            x = edge + left[: column + 1].sum() + column * wide
            y = top - above[: row + 1].sum() - below[:row].sum() - (row + 1) * high
            axes.set_position((x / width, y / height, wide / width, high / height))
            for key in _keys(axes):
                key.corner = (x, y - ticks[axes].height)
        for key in _keys(fig):
            key.corner = ((width - key.width) / 2, GAP + key.height)


class _Key(Artist):
    """What lines are, beside a sample of each, `most` of them side by side.

    corner: its upper left one, from the lower left one of the figure; the layout sets it.
    """

    def __init__(self, handles: Sequence[Artist], labels: Sequence[str], most: int) -> None:
        super().__init__()
        self._labels, self._samples = [cut(label, LONGEST) for label in labels], [_sample(handle) for handle in handles]
        self._across = min(len(labels), most)
        widths = [SAMPLE + GAP + _width(label, LEGEND) for label in self._labels]
        columns = [max(widths[at :: self._across]) + SAMPLE for at in range(self._across)]
        self._starts = [sum(columns[:at]) for at in range(self._across)]
        self.width = sum(columns) - SAMPLE
        self.height = KEY_LINE * -(-len(labels) // self._across) + GAP
        self.corner: Point = (0.0, 0.0)

    def draw(self, renderer: RendererBase) -> None:
        """Draw samples and labels."""
        pen, point = _Pen(renderer), _pixels(renderer)
        for at, (label, sample) in enumerate(zip(self._labels, self._samples, strict=True)):
            row, column = divmod(at, self._across)
            x, y = self.corner[0] + self._starts[column], self.corner[1] - KEY_LINE * (row + 1)
            middle = (y + RISE * LEGEND / 2) * point
            sample.set_data(point * (x + SAMPLE * np.array([0, 0.5, 1])), np.full(3, middle))
            sample.draw(renderer)
            pen.write(((x + SAMPLE + GAP) * point, y * point), label, LEGEND, "left")


def _keys(parent: Axes | Figure) -> list[_Key]:
    return [child for child in parent.get_children() if isinstance(child, _Key)]


def _sample(handle: Artist) -> Line2D:
    """Return a short line that looks like what a label is of."""
    sample = Line2D([], [])
    if isinstance(handle, Patch):
        sample.set(color=handle.get_facecolor(), linewidth=LEGEND, solid_capstyle="butt")
    else:
        sample.update_from(handle)
    sample.set(transform=IdentityTransform(), clip_on=False, markevery=[1])
    return sample


class _Ticks(Artist):
    """The grid of a panel, its ticks with their labels, and the names of its axes, instead of matplotlib's own."""

    def __init__(self, axes: Axes, size: float) -> None:
        super().__init__()
        self.set_zorder(0.5)
        self._panel, self._size = axes, size
        self._across, self._up = _places(axes.xaxis), _places(axes.yaxis)
        self.width = TICK + GAP + max((_width(text, size) for _, text in self._up), default=0.0)
        self.width += ROOM + GAP if axes.get_ylabel() else 0
        self.height = TICK + 2 * GAP + RISE * size + (ROOM if axes.get_xlabel() else 0)
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)
        axes.add_artist(self)

    def draw(self, renderer: RendererBase) -> None:
        """Draw all of it."""
        axes, point = self._panel, _pixels(renderer)
        (left, low), (right, high) = axes.bbox.min, axes.bbox.max
        corner, at = axes.viewLim.min, axes.transData.transform
        xs = [at((value, corner[1]))[0] for value, _ in self._across]
        ys = [at((corner[0], value))[1] for value, _ in self._up]
        _draw_lines(renderer, GRID, [((x, low), (x, high)) for x in xs] + [((left, y), (right, y)) for y in ys])
        end, edge = low - TICK * point, left - TICK * point
        _draw_lines(renderer, TICKS, [((x, low), (x, end)) for x in xs] + [((left, y), (edge, y)) for y in ys])
        pen, gap, rise = _Pen(renderer), GAP * point, RISE * self._size * point
        for x, (_, text) in zip(xs, self._across, strict=True):
            pen.write((x, end - gap - rise), text, self._size, "center")
        for y, (_, text) in zip(ys, self._up, strict=True):
            pen.write((edge - gap, y - rise / 2), text, self._size, "right")
        below = low - (self.height - GAP) * point
        pen.write(((left + right) / 2, below), cut(axes.get_xlabel(), LONGEST), LABEL, "center")
        beside = left - (self.width - LABEL) * point
        pen.write((beside, (low + high) / 2), cut(axes.get_ylabel(), LONGEST), LABEL, "center", angle=90)


def _places(axis: Axis) -> list[tuple[float, str]]:
    """Return the ticks of an axis that are in sight, each with its label."""
    low, high = sorted(axis.get_view_interval())
    margin = 1e-9 * (high - low)
    places = [float(at) for at in axis.get_majorticklocs() if low - margin <= at <= high + margin]
    texts = axis.get_major_formatter().format_ticks(places) if axis.get_scale() == "log" else plain(places)
    return list(zip(places, texts, strict=True))


def plain(values: Sequence[float]) -> list[str]:
    """Write evenly spaced numbers with as many decimals as they need, as powers of ten where that is many digits."""
    largest = max(map(abs, values), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return [power_of_ten(value) if value else "0" for value in values]
    decimals = next(n for n in range(16) if all(abs(round(value, n) - value) <= 1e-9 * largest for value in values))
    return [f"{value + 0.0:.{decimals}f}".replace("-", "−") for value in values]


def _draw_lines(
    renderer: RendererBase, colour: tuple[float, float, float, float], lines: Sequence[tuple[Point, Point]]
) -> None:
    if not lines:
        return
    context = renderer.new_gc()
    context.set_foreground(colour, isRGBA=True)
    context.set_linewidth(0.8)
    context.set_snap(True)
    path = Path(np.array(lines).reshape(-1, 2), [Path.MOVETO, Path.LINETO] * len(lines))
    renderer.draw_path(context, path, IdentityTransform())
    context.restore()


class _Pen:
    """Writes lines of text with their base lines at points, in pixels from the lower left corner."""

    def __init__(self, renderer: RendererBase) -> None:
        self._renderer, self._context, self._anchor = renderer, renderer.new_gc(), Text(rotation_mode="anchor")
        self._height = renderer.get_canvas_width_height()[1] if renderer.flipy() else 0

    def write(self, at: Point, text: str, size: float, align: Align, angle: float = 0) -> None:
        """Write a line in black, nothing where there is none."""
        if not text:
            return
        before = _width(text, size) * _pixels(self._renderer) * BEFORE[align]
        x, y = (at[0] - before, at[1]) if angle == 0 else (at[0], at[1] - before)
        self._anchor.set_position(at)
        self._anchor.set_horizontalalignment(align)  # by which svg aligns, whatever font the reader has
        y = self._height - y if self._height else y
        self._renderer.draw_text(self._context, x, y, text, _font(size), angle, mtext=self._anchor)


def _pixels(renderer: RendererBase) -> float:
    """Return how many pixels a point is."""
    return float(renderer.points_to_pixels(1))  # type: ignore[arg-type]


@lru_cache
def _font(size: float) -> FontProperties:
    return FontProperties(family=FONT, size=size)


@lru_cache(maxsize=4096)
def _width(text: str, size: float) -> float:
    return float(text_to_path.get_text_width_height_descent(text, _font(size), ismath=False)[0])
