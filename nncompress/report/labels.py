"""Labels beside points that cover neither each other nor the points."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

# Where a label may stand: alignment, and offset from its point in points, the nearest first.
AROUND = (("left", 7, 5), ("left", 7, -12), ("right", -7, 5), ("right", -7, -12), ("center", 0, 9), ("center", 0, -17))


Point = tuple[float, float]


def label_points(
    figure: Figure, axes: Axes, points: Sequence[Point], texts: Sequence[str], lines: Iterable[tuple[Point, Point]]
) -> bool:
    """Write each text at the nearest free place around its point, with a thin line when that is further off.

    The axes must have their final limits; `lines` are horizontal or vertical, not to be written on. Returns False,
    with no label written, when one of them finds no place.
    """
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(points)]
    taken += [Bbox(np.sort(axes.transData.transform(line), axis=0)).padded(2) for line in lines]
    notes: list[Annotation] = []
    for point, text in zip(points, texts, strict=True):
        note = next((n for n in _candidates(axes, point, text) if _free(n, axes, taken)), None)
        if note is None:
            for written in notes:
                written.remove()
            return False
        notes.append(note)
        taken.append(_extent(note))
    return True


def _candidates(axes: Axes, point: Point, text: str) -> Iterator[Annotation]:
    """The label at each place in turn; one that is not taken is removed before the next is tried."""
    for distance in (1.0, 2.0, 3.0, 4.5):
        for side, dx, dy in AROUND:
            far = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7} if distance > 1 else None
            note = axes.annotate(
                text, point, (dx * distance, dy * distance), textcoords="offset points", ha=side, arrowprops=far
            )
            note.set_fontsize(8.5)
            yield note
            note.remove()


def _free(note: Annotation, axes: Axes, taken: Sequence[Bbox]) -> bool:
    box, frame = _extent(note), axes.get_window_extent()
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not any(box.overlaps(other) for other in taken)


def _extent(note: Annotation) -> Bbox:
    """The box of the text alone, without the line to its point."""
    note.get_window_extent()  # moves the text to its place
    return Text.get_window_extent(note)
