"""Tensor train: T(i_1, ..., i_d) = G_1[i_1] G_2[i_2] ... G_d[i_d] with ranks of at most `rank`.

Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 33(5), 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

from nncompress.compressions.base import Factorised, ThetaSize, check_count, distance_sq
from nncompress.compressions.decomposition.modes import Modes, balanced_modes, rank_clipped, tensor_plan
from nncompress.compressions.decomposition.train_products import tt_product
from nncompress.compressions.decomposition.trains import tt_als, tt_ranks, tt_svd, tt_to_tensor
from nncompress.compressions.plan import Layers, Plan, Tensors
from nncompress.compressions.products import Product
from nncompress.compressions.target import round_up


class Cores(NamedTuple):
    """The cores G_k, each r_{k-1} x n_k x r_k, with r_0 = r_d = 1."""

    cores: tuple[Tensor, ...]


@dataclass(frozen=True)
class TensorTrain(Factorised[Cores]):
    """Tensors with TT ranks of at most `rank`; Π is TT-SVD, at most sqrt(d-1) times the best error (d modes).

    With a `start` the better of TT-SVD and `start` is returned, so that a block that calls `compress` again and
    again never gets worse; from there `als` sweeps of alternating least squares lower the error further.
    Raises ValueError for settings out of range.

    - rank: the largest TT rank, at least 1.
    - als: the sweeps of alternating least squares, at least 0; none by default, as in the published code of NN-BCD.
    """

    exact: ClassVar[bool] = False
    rank: int
    als: int = field(default=0, repr=False)  # of the search, not of the set

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        if self.als < 0:
            raise ValueError(f"als, a number of sweeps, must be at least 0, found {self.als}")

    def project(self, w: Tensor, mu: float, start: Cores | None) -> Cores:
        theta = tt_project(w, self.rank, start)
        if self.als == 0 or w.ndim < 3:  # for two modes TT-SVD is the best there is
            return theta
        return Cores(tt_als(w, _better(w, theta, start).cores, self.als))

    def decompress(self, theta: Cores) -> Tensor:
        return tt_to_tensor(theta.cores)

    def size(self, shape: Sequence[int]) -> ThetaSize:
        return train_size(shape, self.rank)

    def clipped(self, shape: Sequence[int]) -> str | None:
        return rank_clipped(self.rank, largest_tt_rank(shape), shape)

    def product(self, theta: Cores, shape: Sequence[int]) -> Product | None:
        return tt_product(theta.cores, shape)


def tt(
    weights: Tensors, *, rank: int = 48, als: int = 0, modes: Modes = None, layers: Layers = "hidden", round_to: int = 1
) -> Plan:
    """Compress each chosen weight by a tensor train of rank `rank`, with `als` sweeps of alternating least squares.

    `modes`: by default balanced factors. `round_to`: the rank is rounded up to a multiple of it; bonds that allow less
    have all they allow.
    """

    def train(sizes: tuple[int, ...], shape: Sequence[int]) -> TensorTrain:
        return TensorTrain(round_up(rank, round_to, largest_tt_rank(sizes)), als)

    return tensor_plan(weights, layers, modes, balanced_modes, train)


def tt_project(w: Tensor, rank: int, start: Cores | None) -> Cores:
    """Return the TT-SVD of `w`, in memory of its own."""
    cores = tt_svd(w, tt_ranks(w.shape, rank), None if start is None else start.cores)
    storage = w.untyped_storage().data_ptr()  # a bond that truncates nothing may hand on w itself
    return Cores(tuple(c.clone() if c.untyped_storage().data_ptr() == storage else c for c in cores))


def _better(w: Tensor, theta: Cores, start: Cores | None) -> Cores:
    """Return the nearer to `w`; `theta` where the ranks of `start` are others."""
    if start is None or [core.shape for core in start.cores] != [core.shape for core in theta.cores]:
        return theta
    new, old = (distance_sq(w, tt_to_tensor(cores)) for cores in (theta.cores, start.cores))
    return start if old < new else theta


def train_size(modes: Sequence[int], rank: int) -> ThetaSize:
    """Return the size of trains with these modes whose ranks are at most `rank`."""
    ranks = tt_ranks(modes, rank)
    cores = zip((1, *ranks[:-1]), modes, ranks, strict=True)
    return ThetaSize("rank", ranks[:-1], sum(math.prod(core) for core in cores))


def largest_tt_rank(modes: Sequence[int]) -> int:
    """Return the largest rank that trains with these modes have."""
    return max(tt_ranks(modes, math.prod(modes)))
