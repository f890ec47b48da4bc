"""The global minimum of k-means in one dimension, by dynamic programming over blocks of positions.

A clustering of U sorted points into K intervals is a path 0 = i_0 <= i_1 <= ... <= i_K = U of the cost
c(i_0, i_1) + ... + c(i_{K-1}, i_K), c(i, j) being the squared deviation of the points i, ..., j-1 from their mean. For
any function phi of a position and any number lambda the sums of the reduced costs

    c(i, j) + phi(i) - phi(j) + lambda

differ from it by a constant, chosen such that the best clustering known has the sum 0. The positions are cut into
blocks [first, last]. A lower bound of the reduced costs between two blocks makes the shortest path through blocks
a lower bound of all clusterings; a block that no path of length <= 0 visits at its boundary k holds no better
boundary k. What is left is cut finer, until blocks are single positions: the bounds are then the costs, the shortest
path is the optimum. Blocks of B points leave a slack O(K B^2), so the work hardly depends on P.

phi grows by the squared half distance of neighbouring centres, the cost of a point at a boundary in an optimal
clustering: then moving a boundary changes the reduced costs on its two sides only by terms of second order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nncompress.compressions.kmeans import Clusters, Points, better, clusters_at, companded, lloyd, points_of

PIECES = 8
"""Blocks into which a cluster of the best clustering known is cut at first."""
MAX_PAIRS = 1 << 24
"""Pairs of blocks beyond which the search gives up and returns the best clustering known."""
MAX_CENTRES = 256
"""Centres beyond which only the first grid of positions is searched."""
CHUNK = 1 << 15
"""Pairs bounded at once: their temporaries stay in the cache."""
ROUNDING = 1e-12
"""Differences below this part of the total sum of squares are rounding."""
TINY = 1e-300


class Blocks(NamedTuple):
    """Blocks of positions (R, G), in order; to block v lead the blocks low[v], ..., high[v].

    The first is position 0 alone, the last position U alone, of which rows with fewer blocks have copies. Boundary k
    lies in the blocks from windows[k][0] to before windows[k][1] of all rows.
    """

    first: Tensor
    last: Tensor
    low: Tensor
    high: Tensor
    windows: list[tuple[int, int]]

    @property
    def width(self) -> int:
        """The largest number of blocks that lead to one."""
        return int((self.high - self.low).max()) + 1


def kmeans(rows: Tensor, K: int, start: Tensor | None = None, pieces: int = PIECES) -> Tensor:
    """K centres (R, K), ascending, in float64, for each row of (R, P).

    The sum of squared distances of the numbers to the nearest centre is the least there is, up to rounding, for K up
    to 256, unless the search gives up (MAX_PAIRS). `start` (R, K) are centres that the result is not worse than.
    """
    points, mean = points_of(rows)
    best = lloyd(points, companded(points, K))
    if start is not None:
        best = better(best, lloyd(points, start.double().sort(1).values - mean))
    if K > 1:
        best = _search(points, best, pieces)
    return best.centres + mean


def _search(points: Points, best: Clusters, pieces: int) -> Clusters:
    best, complete = _grid_search(points, best, pieces)
    if complete or best.centres.shape[1] > MAX_CENTRES:
        return best
    tolerance = ROUNDING * points.q[:, -1]
    blocks = _cut(points, best, pieces, tolerance)
    while blocks.first.numel() * blocks.width <= MAX_PAIRS:
        m = _bounds(points, blocks, best)
        F = _forward(m, blocks)
        middle = (blocks.first + blocks.last) // 2
        found = clusters_at(points, middle.gather(1, _shortest(m, F, blocks)))
        if torch.equal(blocks.first, blocks.last):
            return better(best, found)
        B = _backward(m, blocks)
        holds = F + B <= tolerance[:, None]  # (K + 1, R, G)
        if not holds.any(2).all():  # rounding closed every path
            return best
        best = better(best, lloyd(points, found.centres))
        blocks = _refined(blocks, holds, *_alive_pairs(m, F, B, holds, blocks, tolerance))
    return best
