"""The global minimum of k-means in one dimension, by dynamic programming over blocks of positions.

A clustering of U sorted points into K intervals is a path 0 = i_0 <= i_1 <= ... <= i_K = U of the cost
c(i_0, i_1) + ... + c(i_{K-1}, i_K), c(i, j) being the squared deviation of the points i, ..., j-1 from their mean. For
any function phi of a position and any number lambda the sum of the reduced costs

    c(i, j) + phi(i) - phi(j) + lambda

differs from it by a constant, chosen such that the best clustering known has the sum 0. The positions are cut into
blocks. Lower bounds of the reduced costs between any two blocks make the shortest path through blocks a lower bound of
all clusterings; a block that no path of length <= 0 visits at boundary k does not hold boundary k of a better one.
What is left is cut finer, until blocks are single positions: then the bounds are the costs and the shortest path is
the optimum.

With every point phi grows by the square of half the width of a cluster, which is what a point at a boundary costs:
moving a boundary then changes the reduced costs on its two sides by terms of second order only. Blocks of B points
leave a slack O(K B^2), and the work hardly depends on P.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nncompress.compressions.quantization.kmeans import Clusters, Points, better, clusters_at, lloyd
from nncompress.compressions.quantization.kmeans_bounds import PositionBlocks, bounds, chunks, windows

PIECES = 8
"""Blocks into which a cluster of the best clustering known is cut at first."""

MAX_PAIRS = 1 << 24
"""Pairs of blocks beyond which the search gives up and returns the best clustering known."""

MAX_ROW_PAIRS = 1 << 18
"""Pairs beyond which rows are searched in two halves: what is left of them differs, and all pay for the longest."""

MAX_CENTRES = 256
"""Centres beyond which only a grid of positions is searched."""

GAIN, GRIDS = 0.01, 8
"""A new grid is made, at most so often, while the last one lowered the error by more than this part."""

ROUNDING = 1e-12
"""Differences of errors below this part of the sum of squares are rounding."""


def search(points: Points, best: Clusters, pieces: int = PIECES) -> Clusters:
    """Return the clusters of least error, for clusters to start from; `pieces` changes the work, not the result."""
    K, U = best.centres.shape[1], points.x.shape[1]
    if K == 1:
        return best
    best = _search_grids(points, best, pieces)
    if K * pieces >= U or K > MAX_CENTRES:
        return best
    return _narrow(points, best, _cut(points, best, pieces))


def _narrow(points: Points, best: Clusters, blocks: PositionBlocks) -> Clusters:
    """Return the best boundaries in the blocks, which are cut until they are positions."""
    most = MAX_PAIRS if len(points.x) == 1 else MAX_ROW_PAIRS
    while blocks.first.numel() * blocks.width <= most:
        m = bounds(points, blocks, best)
        F = _forward(m, blocks)
        middle = _middle(points, blocks)
        shortest = clusters_at(points, middle.gather(1, _shortest(m, F, blocks)))
        if torch.equal(blocks.first, blocks.last):
            return better(best, shortest)
        known, best = best.error, better(best, lloyd(points, shortest.centres))
        limit = best.error - known + _rounding(points)
        B = _backward(m, blocks)
        holds = limit[:, None] >= F + B
        if not holds.any(2).all():  # rounding has closed every path
            return best
        blocks = _refine(blocks, middle, holds, *_live_sources(m, F, B, holds, blocks, limit))
    return best if len(points.x) == 1 else _narrow_halves(points, best, blocks)


def _narrow_halves(points: Points, best: Clusters, blocks: PositionBlocks) -> Clusters:
    """Narrow the first and the second half of the rows by themselves."""
    tensors = (*points, *best, blocks.first, blocks.last, blocks.low, blocks.high)
    halves = [
        _narrow(Points(*h[:4]), Clusters(*h[4:7]), PositionBlocks(h[7], h[8], h[9], h[10], blocks.windows))
        for h in zip(*(t.tensor_split(2) for t in tensors), strict=True)
    ]
    return Clusters(*(torch.cat(pair) for pair in zip(*halves, strict=True)))


def _rounding(points: Points) -> Tensor:
    """Return the difference of errors (R,) below which all is rounding."""
    return ROUNDING * points.q[:, -1]


def _search_grids(points: Points, best: Clusters, pieces: int) -> Clusters:
    """Return the best boundaries on a grid that follows the best clusters, then Lloyd, while that gains much."""
    for _ in range(GRIDS):
        blocks = _cut(points, best, pieces)
        blocks = blocks._replace(last=blocks.first)
        m = bounds(points, blocks, best)
        path = _shortest(m, _forward(m, blocks), blocks)
        known, shortest = best.error, clusters_at(points, blocks.first.gather(1, path))
        best = better(better(best, shortest), lloyd(points, shortest.centres))
        if (best.error >= (1 - GAIN) * known - _rounding(points)).all():
            break
    return best


def _cut(points: Points, best: Clusters, pieces: int) -> PositionBlocks:
    """Cut every cluster into pieces, or into all positions where that is no more.

    To a block lead all from which a cluster costs at most what the best clustering does.
    """
    (R, U), K = points.x.shape, best.centres.shape[1]
    if K * pieces >= U:
        first = last = torch.arange(U + 1, device=points.x.device).expand(R, -1)
    else:
        parts = torch.arange(pieces, device=points.x.device)
        begin = (best.cuts[:, :-1, None] + best.cuts.diff(dim=1)[..., None] * parts // pieces).flatten(1)
        first = pad(pad(begin.clamp_min(1), (1, 0)), (0, 1), value=U)
        last = torch.maximum(pad(first[:, 1:] - 1, (0, 1), value=U), first)
    last = torch.cat([first[:, :1], last[:, 1:]], 1)
    G = first.shape[1]
    low = _reach(points, first, last, best.error + _rounding(points))
    high = torch.arange(G, device=low.device).expand(R, -1)
    return PositionBlocks(first, last, low, high, [(0, 1), *[(0, G)] * (K - 1), (G - 1, G)])


def _reach(points: Points, first: Tensor, last: Tensor, error: Tensor) -> Tensor:
    """Return the first block u, by bisection, from whose last position to first[v] a cluster costs at most `error`."""
    n, s, q = (sums.gather(1, first) for sums in (points.n, points.s, points.q))
    sources = [sums.gather(1, last) for sums in (points.n, points.s, points.q)]
    low, high = torch.zeros_like(first), torch.arange(first.shape[1], device=first.device).expand_as(first)
    for _ in range(first.shape[1].bit_length()):
        middle = (low + high) // 2
        dn, ds, dq = (a - b.gather(1, middle) for a, b in zip((n, s, q), sources, strict=True))
        far = (dq - ds.square() / dn.clamp_min(1) > error[:, None]) & (dn > 0)
        low, high = torch.where(far, middle + 1, low), torch.where(far, high, middle)
    return low


def _forward(m: Tensor, blocks: PositionBlocks) -> Tensor:
    """Return F (K + 1, R, G): the shortest path from position 0 to each block as boundary k."""
    K, (R, G, width) = len(blocks.windows) - 1, m.shape
    padded = m.new_full((K + 1, R * G + width), torch.inf)
    F = padded[:, : R * G].view(K + 1, R, G)
    F[0, :, 0] = 0
    for k in range(1, K + 1):
        before = padded[k - 1].unfold(0, width, 1)
        for v in chunks(m, *blocks.windows[k]):
            F[k, :, v] = (blocks.sources(before, v) + m[:, v]).amin(2)
    return F


def _backward(m: Tensor, blocks: PositionBlocks) -> Tensor:
    """Return B (K + 1, R, G): the shortest path from each block as boundary k to the last one as boundary K."""
    B = m.new_full((len(blocks.windows), *m.shape[:2]), torch.inf)
    B[-1, :, -1] = 0
    offset = torch.arange(m.shape[2], device=m.device)
    for k in range(len(B) - 1, 0, -1):
        for v in chunks(m, *blocks.windows[k]):
            u = (blocks.low[:, v, None] + offset).clamp_max(m.shape[1] - 1)
            B[k - 1].scatter_reduce_(1, u.flatten(1), (m[:, v] + B[k, :, v, None]).flatten(1), "amin")
    return B


def _shortest(m: Tensor, F: Tensor, blocks: PositionBlocks) -> Tensor:
    """Return the blocks (R, K + 1) of the shortest path."""
    row, offset = torch.arange(len(m), device=m.device), torch.arange(m.shape[2], device=m.device)
    path = [torch.full_like(row, m.shape[1] - 1)]
    for before in F[:-1].flip(0):
        u = (blocks.low[row, path[-1]][:, None] + offset).clamp_max(m.shape[1] - 1)
        nearest = (before.gather(1, u) + m[row, path[-1]]).argmin(1, keepdim=True)
        path.append(u.gather(1, nearest).squeeze(1))
    return torch.stack(path[::-1], 1)


def _live_sources(
    m: Tensor, F: Tensor, B: Tensor, holds: Tensor, blocks: PositionBlocks, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the first and the last block (R, G) from which a path within the limit may lead to each block."""
    F, B = (torch.where(holds, paths, torch.inf).amin(0) for paths in (F, B))
    width = m.shape[2]
    before = windows(F, width)
    rank = torch.arange(1, width + 1, device=m.device, dtype=torch.int32)
    first, last = torch.empty_like(blocks.low), torch.empty_like(blocks.low)
    for v in chunks(m, 0, m.shape[1]):
        within = blocks.sources(before, v) + m[:, v] + B[:, v, None] <= limit[:, None, None]
        first[:, v] = width - (within * rank.flip(0)).amax(2)
        last[:, v] = (within * rank).amax(2) - 1
    last.clamp_min_(0)
    return blocks.low + torch.minimum(first, last), blocks.low + last


def _middle(points: Points, blocks: PositionBlocks) -> Tensor:
    """Return the position in each block with half its numbers on either side: a heavy point leaves the block soon."""
    half = (points.n.gather(1, blocks.first) + points.n.gather(1, blocks.last)) / 2
    middle = torch.searchsorted(points.n, half, right=True) - 1
    return torch.maximum(torch.minimum(middle, blocks.last - 1), blocks.first)


def _refine(blocks: PositionBlocks, middle: Tensor, holds: Tensor, low: Tensor, high: Tensor) -> PositionBlocks:
    """Return the blocks that hold a boundary, those of several positions cut after their middle."""
    first, last = blocks.first, blocks.last
    alive = holds.any(0)
    keep = torch.stack([alive, alive & (first < last)], 2).flatten(1)
    slot = keep.cumsum(1)
    size = int(slot[:, -1].max())
    begin, end = (slot - keep.long())[:, 0::2], slot[:, 1::2]
    place = torch.where(keep, slot - 1, size)

    def halves(a: Tensor, b: Tensor) -> Tensor:
        parts = torch.stack([a, b], 2).flatten(1)
        return parts[:, -2:-1].repeat(1, size + 1).scatter_(1, place, parts)[:, :size]

    low, high = begin.gather(1, low), end.gather(1, high) - 1
    opens = torch.where(holds, begin, size).amin((1, 2)).tolist()
    closes = torch.where(holds, end, 0).amax((1, 2)).tolist()
    spans = [*zip(opens[:-1], closes[:-1], strict=True), (size - 1, size)]
    return PositionBlocks(halves(first, middle + 1), halves(middle, last), halves(low, low), halves(high, high), spans)
