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

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nncompress.compressions.quantization.kmeans import Clusters, Points, better, clusters_at, lloyd

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
    """The clusters of least error, for clusters to start from; `pieces` changes the work, not the result."""
    K, U = best.centres.shape[1], points.x.shape[1]
    if K == 1:
        return best
    best = _search_grids(points, best, pieces)
    if K * pieces >= U or K > MAX_CENTRES:
        return best
    return _narrow(points, best, _cut(points, best, pieces))


def _narrow(points: Points, best: Clusters, blocks: PositionBlocks) -> Clusters:
    """The best boundaries in the blocks, which are cut until they are positions."""
    most = MAX_PAIRS if len(points.x) == 1 else MAX_ROW_PAIRS
    while blocks.first.numel() * blocks.width <= most:
        m = bounds(points, blocks, best)
        F = _forward(m, blocks)
        middle = _middle(points, blocks)
        found = clusters_at(points, middle.gather(1, _shortest(m, F, blocks)))
        if torch.equal(blocks.first, blocks.last):
            return better(best, found)
        known, best = best.error, better(best, lloyd(points, found.centres))
        limit = best.error - known + _rounding(points)
        B = _backward(m, blocks)
        holds = limit[:, None] >= F + B
        if not holds.any(2).all():  # rounding has closed every path
            return best
        blocks = _refined(blocks, middle, holds, *_alive(m, F, B, holds, blocks, limit))
    return best if len(points.x) == 1 else _narrow_halves(points, best, blocks)


def _narrow_halves(points: Points, best: Clusters, blocks: PositionBlocks) -> Clusters:
    """`_narrow` for the first and for the second half of the rows."""
    tensors = (*points, *best, blocks.first, blocks.last, blocks.low, blocks.high)
    found = [
        _narrow(Points(*h[:4]), Clusters(*h[4:7]), PositionBlocks(h[7], h[8], h[9], h[10], blocks.windows))
        for h in zip(*(t.tensor_split(2) for t in tensors), strict=True)
    ]
    return Clusters(*(torch.cat(pair) for pair in zip(*found, strict=True)))


def _rounding(points: Points) -> Tensor:
    """Differences of errors (R,) below which all is rounding."""
    return ROUNDING * points.q[:, -1]


def _search_grids(points: Points, best: Clusters, pieces: int) -> Clusters:
    """The best boundaries on a grid that follows the best clusters, then Lloyd, while that gains much."""
    for _ in range(GRIDS):
        blocks = _cut(points, best, pieces)
        blocks = blocks._replace(last=blocks.first)
        m = bounds(points, blocks, best)
        path = _shortest(m, _forward(m, blocks), blocks)
        known, found = best.error, clusters_at(points, blocks.first.gather(1, path))
        best = better(better(best, found), lloyd(points, found.centres))
        if (best.error >= (1 - GAIN) * known - _rounding(points)).all():
            break
    return best


def _cut(points: Points, best: Clusters, pieces: int) -> PositionBlocks:
    """Every cluster cut into pieces, or all positions where that is no more; led to by all that cost <= the best."""
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
    return PositionBlocks(
        first,
        last,
        low,
        torch.arange(G, device=low.device).expand(R, -1),
        [(0, 1), *[(0, G)] * (K - 1), (G - 1, G)],
    )


def _reach(points: Points, first: Tensor, last: Tensor, error: Tensor) -> Tensor:
    """The first block u, by bisection, from whose last position to first[v] a cluster costs at most `error`."""
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
    """F (K + 1, R, G): the shortest path from position 0 to each block as boundary k."""
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
    """B (K + 1, R, G): the shortest path from each block as boundary k to the last one as boundary K."""
    B = m.new_full((len(blocks.windows), *m.shape[:2]), torch.inf)
    B[-1, :, -1] = 0
    offset = torch.arange(m.shape[2], device=m.device)
    for k in range(len(B) - 1, 0, -1):
        for v in chunks(m, *blocks.windows[k]):
            u = (blocks.low[:, v, None] + offset).clamp_max(m.shape[1] - 1)
            B[k - 1].scatter_reduce_(1, u.flatten(1), (m[:, v] + B[k, :, v, None]).flatten(1), "amin")
    return B


def _shortest(m: Tensor, F: Tensor, blocks: PositionBlocks) -> Tensor:
    """The blocks (R, K + 1) of the shortest path."""
    row, offset = torch.arange(len(m), device=m.device), torch.arange(m.shape[2], device=m.device)
    path = [torch.full_like(row, m.shape[1] - 1)]
    for before in F[:-1].flip(0):
        u = (blocks.low[row, path[-1]][:, None] + offset).clamp_max(m.shape[1] - 1)
        nearest = (before.gather(1, u) + m[row, path[-1]]).argmin(1, keepdim=True)
        path.append(u.gather(1, nearest).squeeze(1))
    return torch.stack(path[::-1], 1)


def _alive(
    m: Tensor, F: Tensor, B: Tensor, holds: Tensor, blocks: PositionBlocks, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """The first and the last block (R, G) from which a path within the limit may lead to each block."""
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
    """The position in each block with half its numbers on either side; a heavy point thus leaves the block soon."""
    half = (points.n.gather(1, blocks.first) + points.n.gather(1, blocks.last)) / 2
    middle = torch.searchsorted(points.n, half, right=True) - 1
    return torch.maximum(torch.minimum(middle, blocks.last - 1), blocks.first)


def _refined(blocks: PositionBlocks, middle: Tensor, holds: Tensor, low: Tensor, high: Tensor) -> PositionBlocks:
    """The blocks that hold a boundary, those of several positions cut after their middle."""
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


CHUNK = (1 << 15) - 1
"""Pairs treated at once on the CPU: in its cache, and few enough for PyTorch not to share them out between threads.

Waiting for another thread costs more than such short work, and milliseconds where the cores are busy.
"""


class PositionBlocks(NamedTuple):
    """Blocks of the positions first, ..., last (R, G), in order; clusters that end in v begin in low[v], ..., high[v].

    The first block is position 0 and the last one position U alone; rows with fewer blocks have copies of the latter.
    In all rows boundary k lies in the blocks from windows[k][0] to before windows[k][1].
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

    def sources(self, windows: Tensor, targets: slice) -> Tensor:
        """The values (R, targets, width) of the blocks from low[v] on, for targets v, among `windows` of (R, G)."""
        R, G = self.first.shape
        begin = self.low[:, targets] + (torch.arange(R, device=windows.device) * G)[:, None]
        return windows.index_select(0, begin.flatten()).view(R, -1, windows.shape[1])


def windows(values: Tensor, width: int) -> Tensor:
    """Every `width` successive values of (R, G), row after row, as a view (R G + 1, width)."""
    return pad(values.flatten(), (0, width)).unfold(0, width, 1)


def _half_widths(points: Points, best: Clusters, x: Tensor) -> Tensor:
    """Half the width that optimal clusters have around each x (R, G), judged by the best known.

    Midway between two centres it is half their distance, at a centre sqrt(3) times the deviation of its cluster (both
    are half the width of evenly spread points, but the second is small at a heavy point), and linear in between.
    """
    n, s, q = (sums.gather(1, best.cuts).diff(dim=1) for sums in (points.n, points.s, points.q))
    deviation = ((q - s * best.centres) / n.clamp_min(1)).clamp_min(0).sqrt()
    neighbours, halves = best.centres.unfold(1, 2, 1).mean(2), best.centres.diff(dim=1) / 2
    at = torch.stack([best.centres, pad(neighbours, (0, 1))], 2).flatten(1)[:, :-1].contiguous()
    value = torch.stack([3**0.5 * deviation, pad(halves, (0, 1))], 2).flatten(1)
    k = torch.searchsorted(at, x).clamp(1, at.shape[1] - 1)
    a, b = at.gather(1, k - 1), at.gather(1, k)
    t = ((x - a) / (b - a).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
    return torch.lerp(value.gather(1, k - 1), value.gather(1, k), t)


class _Ends(NamedTuple):
    """Blocks (R, G) as ends of a cluster.

    The sums n, s, q over the points before its inner edge, the same of the points of the block, the growth h of phi
    for each of them, the nearest and the farthest of these points. phi is part of q: it enters like the squares.
    """

    n: Tensor
    s: Tensor
    q: Tensor
    dn: Tensor
    ds: Tensor
    dq: Tensor
    h: Tensor
    near: Tensor
    far: Tensor


def _ends(points: Points, blocks: PositionBlocks, best: Clusters) -> tuple[_Ends, _Ends, Tensor]:
    """The blocks as right ends, as left ends with the points mirrored at 0, and lambda (R,)."""
    U = points.x.shape[1]
    n0, s0, q0 = (sums.gather(1, blocks.first) for sums in (points.n, points.s, points.q))
    n1, s1, q1 = (sums.gather(1, blocks.last) for sums in (points.n, points.s, points.q))
    x0, x1 = points.x.gather(1, blocks.first.clamp_max(U - 1)), points.x.gather(1, (blocks.last - 1).clamp_min(0))
    h = _half_widths(points, best, (x0 + x1) / 2).square()
    dn, ds = n1 - n0, s1 - s0
    between = pad((h[:, 1:] + h[:, :-1]) / 2 * (n0[:, 1:] - n1[:, :-1]), (0, 1))
    phi = pad(torch.stack([h * dn, between], 2).flatten(1).cumsum(1), (1, 0))
    q0, q1 = q0 - phi[:, 0:-1:2], q1 - phi[:, 1::2]
    rest = (phi[:, -2] - best.error) / best.centres.shape[1]
    return _Ends(n0, s0, q0, dn, ds, q1 - q0, h, x0, x1), _Ends(n1, s1, q1, dn, -ds, q1 - q0, h, -x1, -x0), rest


def bounds(points: Points, blocks: PositionBlocks, best: Clusters) -> Tensor:
    """m (R, G, width): lower bounds of the reduced costs from block low[v] + l to v; inf where that is beyond v.

    For i in block u and j in block v let `mean` be that of the n points between last[u] and first[v], the core. The
    other points of i, ..., j-1 deviate from it by sums T_i <= 0 <= T_j, so that

        c(i, j) >= core + sum (x - mean)^2 - (T_i^2 + T_j^2) / n

    falls into parts for the two ends, each at least 0 (`_end_bound`).
    """
    (R, G), width = blocks.first.shape, blocks.width
    right, left, rest = _ends(points, blocks, best)
    left = _Ends(*(windows(t, width) for t in left))
    m = rest.new_empty(R, G, width)
    offset, own = torch.arange(width, device=m.device), torch.arange(G, device=m.device) - blocks.low
    for v in chunks(m, 0, G):
        ends = _Ends(*(t[:, v, None] for t in right)), _Ends(*(blocks.sources(t, v) for t in left))
        n, s = ends[0].n - ends[1].n, ends[0].s - ends[1].s
        mean = s / n.clamp_min(1)
        core = torch.where(n > 0, ends[0].q - ends[1].q - s * mean, 0)
        bound = core + _end_bound(ends[0], n, mean) + _end_bound(ends[1], n, -mean) + rest[:, None, None]
        m[:, v] = bound.masked_fill_(offset > own[:, v, None], torch.inf)
    return m


def _end_bound(end: _Ends, n: Tensor, mean: Tensor) -> Tensor:
    """The least reduced cost of adding the first points of the block `end` to a core of n points.

    With y = x - mean and T = sum y <= T_all, points cost sum (y^2 - h) - T^2 / n >= sum (y^2 - h - y T_all / n). If
    2 y >= T_all / n the terms increase: the sum is convex, no less than where the tangents at its two ends meet.
    """
    total = end.ds - mean * end.dn
    chord = total / n
    near, far = end.near - mean, end.far - mean
    whole = end.dq - mean * (end.ds + total) - total * chord
    falls = (near * (near - chord) - end.h).clamp_max(0)
    rises = (far * (far - chord) - end.h).clamp_min(0)
    convex = falls * (rises * end.dn - whole) / (rises - falls).clamp_min(torch.finfo(n.dtype).tiny)
    free = -end.h * end.dn
    return torch.where((n > 0) & (2 * near >= chord), torch.maximum(convex, free), free)


def chunks(m: Tensor, begin: int, end: int) -> list[slice]:
    """Slices of the blocks begin, ..., end - 1 of m (R, G, width), of at most about CHUNK pairs each on the CPU."""
    size = max(1, CHUNK // (m.shape[0] * m.shape[2])) if m.device.type == "cpu" else m.shape[1]
    return [slice(at, min(at + size, end)) for at in range(begin, end, size)]
