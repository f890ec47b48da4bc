"""Low rank: a matrix as the product of two factors, of a given rank or of the rank that holds a given energy.

Idelbayev and Carreira-Perpinan, "Low-rank compression of neural nets: learning the rank of each layer", CVPR 2020,
for the two ways to see a convolution as a matrix.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast, final

import torch
from torch import Tensor

from nncompress.compressions.base import Factorised, ThetaSize, check_count
from nncompress.compressions.decomposition.svd import SVD, exact_svd, is_large, singular_values, truncated_svd
from nncompress.compressions.plan import Layers, Plan, Task, Tensors, choose
from nncompress.compressions.products import Convolutions, Product, Step, two_factors
from nncompress.compressions.target import round_up
from nncompress.compressions.views import AsMatrix
from nncompress.errors import ConfigError


class Factors(NamedTuple):
    """U (m, r) and V (r, n), whose product is the matrix; or the matrix itself as U (m, n) with V (0, n)."""

    U: Tensor
    V: Tensor

    @property
    def is_dense(self) -> bool:
        """Whether U is the matrix itself."""
        return self.U.shape[1] != len(self.V)


class Factorisation(Factorised[Factors], ABC):
    """A compression of a matrix (m, n) into two factors; those of a convolution are two convolutions."""

    @final
    def decompress(self, theta: Factors) -> Tensor:
        return theta.U.clone() if theta.is_dense else theta.U @ theta.V

    @final
    def product(self, theta: Factors, shape: Sequence[int]) -> Product | None:
        """Return two linear layers or convolutions; under scheme 2 the first runs over all rows of the input.

        Scheme 2 is a 1 x width convolution to r channels, with the stride of the columns, then a height x 1
        convolution with that of the rows. For height 1 both schemes are the same matrix, and scheme 1 is cheaper.
        """
        (m, r), n = theta.U.shape, theta.V.shape[1]
        if theta.is_dense or (r == 0 and len(shape) > 2):  # there is no convolution to 0 channels
            return None
        if (m, n) == (shape[0], math.prod(shape[1:])):
            return two_factors(theta.U, theta.V, shape)
        if len(shape) == 4 and (m, n) == (shape[0] * shape[2], shape[1] * shape[3]):
            first = theta.V.reshape(r, shape[1], 1, shape[3])
            second = theta.U.reshape(shape[0], shape[2], r).transpose(1, 2)[..., None]
            return Convolutions((Step(first, (False, True)), Step(second, (True, False))))
        return None

    @final
    def check(self, shape: Sequence[int]) -> None:
        if len(shape) != 2:
            raise ValueError(f"low rank needs a matrix, found a tensor of shape {list(shape)}; see it through AsMatrix")


@dataclass(frozen=True)
class LowRank(Factorisation):
    """Matrices of rank at most `rank`: Π is the truncated singular value decomposition (Eckart and Young, 1936).

    Exact to working accuracy for small matrices, certified to 1e-3 of the least error for large ones
    (`truncated_svd`). The singular values are split evenly: U diag(s)^1/2 and diag(s)^1/2 V.

    - rank: the largest rank, at least 1, else ValueError.
    """

    exact: ClassVar[bool] = False
    rank: int

    def __post_init__(self) -> None:
        check_count("rank", self.rank)

    def project(self, w: Tensor, mu: float, start: Factors | None) -> Factors:
        return split_evenly(truncated_svd(w, min(self.rank, *w.shape), start))

    def project_many(self, ws: Sequence[Tensor], mu: float, starts: Sequence[Factors | None]) -> list[Factors]:
        rank = min(self.rank, *ws[0].shape)
        if is_large(ws[0].shape, rank):
            return super().project_many(ws, mu, starts)
        return [split_evenly(SVD(*parts)) for parts in zip(*exact_svd(torch.stack(list(ws)), rank), strict=True)]

    def size(self, shape: Sequence[int]) -> ThetaSize:
        rank = min(self.rank, *shape)
        return ThetaSize("rank", (rank,), rank * sum(shape))

    def clipped(self, shape: Sequence[int]) -> str | None:
        least = min(shape)
        if self.rank <= least:
            return None
        return f"rank {self.rank} is above the {least} of its shape {list(shape)}, {least} is used"


def split_evenly(svd: SVD) -> Factors:
    """Return U diag(s)^1/2 and diag(s)^1/2 V, in memory of their own."""
    root = svd.s.sqrt()
    return Factors((svd.U * root).contiguous(), (root[:, None] * svd.V).contiguous())


def energy_rank(a: Tensor, energy: float) -> int:
    """Return the smallest rank whose singular values hold the part `energy` of their sum of squares; at least 1.

    Singular values of the size of rounding errors count as zero. Raises ConfigError for an energy outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise ConfigError(f"energy must be in (0, 1], found {energy}")
    s = singular_values(a)
    s = s / s[0] if s[0] > 0 else s
    held = torch.where(s > max(a.shape) * torch.finfo(a.dtype).eps, s, 0).square().cumsum(0)
    return int((held < energy * held[-1]).sum()) + 1


def matrix_view(w: Tensor, scheme: int) -> AsMatrix:
    """Return the view of a weight under a scheme: scheme 2 is for convolutions, other weights have scheme 1."""
    return AsMatrix(scheme if w.ndim == 4 else 1)


def low_rank(
    weights: Tensors,
    *,
    rank: int | None = 32,
    energy: float | None = None,
    scheme: int = 1,
    layers: Layers = "hidden",
    round_to: int = 1,
) -> Plan:
    """Give each chosen weight a rank of at most `rank`, or the smallest that holds the part `energy` of its squares.

    The rank of an energy is that of the given weights and stays fixed. `scheme`: how a convolution is a matrix, 1 or 2
    (`AsMatrix`). `round_to`: ranks are rounded up to multiples of it, at most to the full rank. Raises ConfigError
    unless exactly one of rank and energy is given.
    """
    AsMatrix(scheme)  # refused even where no convolution would use it
    if (rank is None) == (energy is None):
        raise ConfigError(f"one of rank and energy must be given and the other be null, found {rank} and {energy}")
    tasks = []
    for name in choose(weights, layers):
        view = matrix_view(weights[name], scheme)
        a = view.join([weights[name].detach()])
        own = energy_rank(a, energy) if energy is not None else cast(int, rank)
        tasks.append(Task((name,), view, LowRank(round_up(own, round_to, min(a.shape)))))
    return Plan.of(tasks, weights)
