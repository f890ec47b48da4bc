"""k-means in one dimension: the K values nearest to the numbers of a row, for many rows at once.

Clusters of sorted numbers are intervals, and all that is asked of an interval is how many numbers it holds, their sum
and the sum of their squares: differences of running sums. So a step of Lloyd's algorithm costs O(K log P), and the
global minimum is found by dynamic programming over positions (`kmeans_exact`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

LLOYD_STEPS = 20
"""The most steps of Lloyd's algorithm."""


class Points(NamedTuple):
    """The distinct numbers x (R, U) of R rows, ascending, and running sums (R, U + 1) over those before a position.

    n counts them with their multiplicity, s sums them, q their squares. A row with fewer distinct numbers than U
    repeats its last one with multiplicity zero. All float64.
    """

    x: Tensor
    n: Tensor
    s: Tensor
    q: Tensor


class Clusters(NamedTuple):
    """Positions (R, K + 1) where the clusters begin and, last, U; their means (R, K); the squared error (R,)."""

    cuts: Tensor
    centres: Tensor
    error: Tensor


def points_of(x: Tensor) -> Points:
    """Return the points of rows (R, P) in ascending order, float64."""
    ends = torch.ones_like(x, dtype=torch.bool)
    ends[:, :-1] = x[:, 1:] != x[:, :-1]
    slot = ends.cumsum(1)
    row, at = ends.nonzero(as_tuple=True)
    n = slot.new_full((len(x), int(slot[:, -1].max()) + 1), x.shape[1])
    n[:, 0] = 0
    n[row, slot[row, at]] = at + 1
    s, q = (pad(sums, (1, 0)).gather(1, n) for sums in (x.cumsum(1), x.square().cumsum(1)))
    return Points(x.gather(1, n[:, 1:] - 1), n.double(), s, q)


def clusters_at(points: Points, cuts: Tensor) -> Clusters:
    """Return the clusters between given positions (R, K + 1); the centre of an empty one is the number at its place."""
    n, s = (sums.gather(1, cuts).diff(dim=1) for sums in (points.n, points.s))
    place = points.x.gather(1, cuts[:, :-1].clamp_max(points.x.shape[1] - 1))
    centres = torch.where(n > 0, s / n.clamp_min(1), place)
    return Clusters(cuts, centres, (points.q[:, -1] - (s * centres).sum(1)).clamp_min(0))


def lloyd(points: Points, centres: Tensor, steps: int = LLOYD_STEPS) -> Clusters:
    """Take nearest centres and means in turn, which never increases the error; from centres (R, K), ascending."""
    for _ in range(steps):
        inner = torch.searchsorted(points.x, (centres[:, 1:] + centres[:, :-1]) / 2)
        cuts = pad(pad(inner, (1, 0)), (0, 1), value=points.x.shape[1])
        clusters = clusters_at(points, cuts)
        if torch.equal(clusters.centres, centres):
            break
        centres = clusters.centres
    return clusters


def better(a: Clusters, b: Clusters) -> Clusters:
    """Return for each row the clusters with the smaller error."""
    second = b.error < a.error
    return Clusters(*(torch.where(second.view(-1, *[1] * (y.dim() - 1)), z, y) for y, z in zip(a, b, strict=True)))


def compand(points: Points, K: int) -> Tensor:
    """Return the centres (R, K) at equal shares of the integral of density^(1/3), the best ones as K grows.

    Panter and Dite, "Quantization distortion in pulse-count modulation", Proc. IRE 39, 1951.
    """
    share = (pad(points.x.diff(dim=1), (1, 0)).square() * points.n.diff(dim=1)).pow(1 / 3)
    total = share.cumsum(1)
    at = (torch.arange(K, device=total.device) + 0.5) / K * total[:, -1:]
    return points.x.gather(1, torch.searchsorted(total, at).clamp_max(total.shape[1] - 1))
