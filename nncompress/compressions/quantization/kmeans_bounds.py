"""Lower bounds of what clusters cost between blocks of positions, for the search in `kmeans_exact`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nncompress.compressions.quantization.kmeans import Clusters, Points

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
        """Return values (R, targets, width) of the blocks from low[v] on, for targets v, among `windows` of (R, G)."""
        R, G = self.first.shape
        begin = self.low[:, targets] + (torch.arange(R, device=windows.device) * G)[:, None]
        return windows.index_select(0, begin.flatten()).view(R, -1, windows.shape[1])


def bounds(points: Points, blocks: PositionBlocks, best: Clusters) -> Tensor:
    """Return m (R, G, width): lower bounds of the reduced costs from block low[v] + l to v; inf where that is beyond v.

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
    """Return the least reduced cost of adding the first points of the block `end` to a core of n points.

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
    """Return the blocks as right ends, as left ends with the points mirrored at 0, and lambda (R,)."""
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


def _half_widths(points: Points, best: Clusters, x: Tensor) -> Tensor:
    """Return half the width that optimal clusters have around each x (R, G), judged by the best known.

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


def windows(values: Tensor, width: int) -> Tensor:
    """Return every `width` successive values of (R, G), row after row, as a view (R G + 1, width)."""
    return pad(values.flatten(), (0, width)).unfold(0, width, 1)


def chunks(m: Tensor, begin: int, end: int) -> list[slice]:
    """Cut the blocks begin, ..., end - 1 of m (R, G, width) into slices of about CHUNK pairs at most, on the CPU."""
    size = max(1, CHUNK // (m.shape[0] * m.shape[2])) if m.device.type == "cpu" else m.shape[1]
    return [slice(at, min(at + size, end)) for at in range(begin, end, size)]
