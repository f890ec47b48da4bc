"""Which points no other point beats in both ratio and accuracy."""

import numpy as np
from numpy.typing import ArrayLike


def pareto_front(ratio: ArrayLike, accuracy: ArrayLike) -> list[int]:
    """Positions of the points that no other point dominates, by rising ratio.

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
