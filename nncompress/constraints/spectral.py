"""Sets of matrices that depend on the singular values alone; their vertices have low rank.

McDonald, Pontil, Stamos, "Spectral k-support norm regularization", NeurIPS 2014. A tensor is seen as the matrix of its
first dimension and all others. Only the k leading singular vectors of the smaller side are computed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from nncompress.compressions.decomposition.svd import singular_values
from nncompress.constraints.base import ZERO, Constraint, Vertices, euclidean, opposite
from nncompress.constraints.k_support import check_k, count_of, k_support_norms
from nncompress.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Spectral(Constraint):
    """A set of matrices G = sum s_i u_i v_iᵀ (s falling) whose vertices have few nonzero singular values.

    - rounds: 0 for eigenvectors of the smaller Gram matrix, the default as it is exact; n for n rounds of block power
      iteration, begun with the singular vectors found last (at first with random ones): cheaper, vertices that are a
      little worse, but in the set (10 in the published code). ValueError below 0.
    """

    rounds: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, found {self.rounds}")

    @abstractmethod
    def count(self, n: int) -> int:
        """Return the largest rank of a vertex, for matrices whose smaller side is n."""

    def leading(self, g: Tensor, k: int) -> Tensor:
        """Return k orthonormal left singular vectors (b, m, k) of g (b, m, n), m <= n, as accurate as vertices need.

        Default: eigenvectors of g gᵀ. Directions whose singular values are below the square root of the precision times
        the largest may be mixed up; they count by their squares, which are below the precision.
        """
        vectors: Tensor = torch.linalg.eigh(g @ g.mT).eigenvectors
        return vectors[..., -k:]

    def within(self, U: Tensor, g: Tensor) -> Tensor:
        """Return the vertices (b, m, n), m <= n, negated, with columns in the span of orthonormal U (b, m, k).

        Default: the projections of g on that span, of Frobenius norm 1.
        """
        part = U.mT @ g
        return U @ (part / euclidean(part).clamp_min(ZERO).to(g.dtype)[:, None, None])

    @abstractmethod
    def of_values(self, s: Tensor) -> Tensor:
        """Return the gauge by the singular values s (b, m), falling: (b,)."""

    @final
    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        if g.shape[1] > g.shape[2]:
            v, basis = self.vertices(g.mT, start)
            return Vertices(v.mT, basis)
        size, k = euclidean(g), self.count(g.shape[1])
        scaled = g / size.clamp_min(ZERO).to(g.dtype)[:, None, None]  # its squares stay within the range of the numbers
        U = _power_iteration(scaled, k, self.rounds, start) if self.rounds else self.leading(scaled, k)
        return Vertices(opposite(self.within(U, scaled), torch.ones_like(size), g), U if self.rounds else None)

    @final
    def norms(self, w: Tensor) -> Tensor:
        return self.of_values(singular_values(w))

    @final
    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the matrix of one tensor."""
        if len(tensors) > 1:
            raise ConfigError(
                "a spectral constraint holds for each parameter by itself, found several together; give "
                "constraint.joint=false"
            )
        return tensors[0].reshape(len(tensors[0]), -1)

    @final
    def split(self, seen: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        return [seen.reshape(like[0].shape)]

    @final
    def check(self, name: str, shape: Sequence[int]) -> None:
        if len(shape) < 2:
            raise ConfigError(
                f"a spectral constraint needs parameters of two or more dimensions, found {name} of shape "
                f"{list(shape)}; give constraint.params=convolutions or weights"
            )


@dataclass(frozen=True, kw_only=True)
class Nuclear(Spectral):
    """‖M‖_* = s_1 + s_2 + ... <= radius; LMO(G) = -radius u_1 v_1ᵀ."""

    def count(self, n: int) -> int:
        return 1

    def of_values(self, s: Tensor) -> Tensor:
        return s.sum(1)

    def dual_norms(self, g: Tensor) -> Tensor:
        return singular_values(g)[:, 0]


@dataclass(frozen=True, kw_only=True)
class SpectralK(Spectral):
    """A set whose vertices have k nonzero singular values.

    - k, least: as those of `SparseBall`, of the smaller side.
    """

    k: float = 0.1
    least: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self.least)

    @final
    def count(self, n: int) -> int:
        return count_of(self.k, self.least, n)

    @final
    def full(self) -> Self:
        return replace(self, k=1.0)


@dataclass(frozen=True, kw_only=True)
class SpectralKSupport(SpectralK):
    """radius times conv{M of rank at most k, ‖M‖_F <= 1}; LMO(G) = -radius [G]_k / ‖[G]_k‖_F.

    [G]_k is the best approximation of rank k.
    """

    def of_values(self, s: Tensor) -> Tensor:
        return k_support_norms(s, self.count(s.shape[1]))

    def dual_norms(self, g: Tensor) -> Tensor:
        return euclidean(singular_values(g)[:, : self.count(min(g.shape[1:]))])


@dataclass(frozen=True, kw_only=True)
class SpectralKSparse(SpectralK):
    """radius times conv{U Vᵀ : U, V with k orthonormal columns}; LMO(G) = -radius U_k V_kᵀ, G's leading vectors.

    Singular values of zero give zero. The gauge is max(s_1, (s_1 + s_2 + ...) / k).
    """

    def leading(self, g: Tensor, k: int) -> Tensor:
        return super().leading(g.double(), k).to(g.dtype)

    def within(self, U: Tensor, g: Tensor) -> Tensor:
        part = (U.mT @ g).double()  # k rows; its polar factor is (part partᵀ)^-1/2 part
        squares, Q = torch.linalg.eigh(part @ part.mT)
        zero = squares <= squares[:, -1:] * (g.shape[2] * torch.finfo(g.dtype).eps) ** 2
        root = squares.clamp_min(torch.finfo(torch.float64).tiny).rsqrt().masked_fill(zero, 0)
        v: Tensor = U @ (((Q * root[:, None, :]) @ Q.mT) @ part).to(g.dtype)
        return v

    def of_values(self, s: Tensor) -> Tensor:
        return torch.maximum(s[:, 0], s.sum(1) / self.count(s.shape[1]))

    def dual_norms(self, g: Tensor) -> Tensor:
        s = singular_values(g)
        return s[:, : self.count(s.shape[1])].sum(1)

    def reach(self, shape: Sequence[int]) -> float:
        return math.sqrt(self.count(min(shape)))


def _power_iteration(g: Tensor, k: int, rounds: int, start: Tensor | None) -> Tensor:
    """Return orthonormal columns (b, m, k) near the k leading left singular vectors of g (b, m, n), m <= n."""
    U = start if start is not None and start.shape == (*g.shape[:2], k) else None
    if U is None:
        generator = torch.Generator(g.device).manual_seed(0)
        U = torch.randn(g.shape[1], k, generator=generator, dtype=g.dtype, device=g.device).expand(len(g), -1, -1)
    for _ in range(rounds):
        U = torch.linalg.qr(g @ (g.mT @ U)).Q
    return U
