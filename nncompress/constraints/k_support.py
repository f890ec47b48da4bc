"""The k-sparse polytope, and the balls of the k-support norm for entries and for groups of them.

Argyriou, Foygel, Srebro, "Sparse prediction with the k-support norm", NeurIPS 2012.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nncompress.constraints.base import Constraint, Vertices, euclidean, largest, lp_norms, opposite
from nncompress.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SparseBall(Constraint):
    """A set whose vertices have k nonzero entries, or groups of entries.

    - k: a part of them if at most 1 (so 1 is all of them), else their number, else ValueError; 0.1 is this package's
      choice, as the published code leaves it to a search.
    - least: the fewest that are nonzero whatever k is; 1, so that no vertex is the centre.
    """

    k: float = 0.1
    least: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self.least)

    @final
    def count(self, n: int) -> int:
        """Return how many of n are nonzero in a vertex."""
        return count_of(self.k, self.least, n)

    @final
    def full(self) -> Self:
        return replace(self, k=1.0)


@dataclass(frozen=True, kw_only=True)
class KSparse(SparseBall):
    """radius times conv{v in {-1, 0, 1}^n with k nonzeros}; LMO(g) = -radius sign(g) on the k largest |g_i|.

    Its gauge is max(‖w‖_∞, ‖w‖_1 / k).
    """

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        keep = largest(g.abs(), self.count(g.shape[1]))
        return Vertices(opposite(g.sign().mul_(keep), torch.ones_like(g[:, 0], dtype=torch.float64), g))

    def norms(self, w: Tensor) -> Tensor:
        size = w.abs()
        return torch.maximum(size.amax(1).double(), size.sum(1, dtype=torch.float64) / self.count(w.shape[1]))

    def dual_norms(self, g: Tensor) -> Tensor:
        return g.abs().topk(self.count(g.shape[1]), dim=1, sorted=False).values.sum(1, dtype=torch.float64)

    def reach(self, shape: Sequence[int]) -> float:
        return math.sqrt(self.count(math.prod(shape)))


@dataclass(frozen=True, kw_only=True)
class KSupport(SparseBall):
    """radius times conv{v with k nonzeros, ‖v‖_2 <= 1}; LMO(g) = -radius P g / ‖P g‖_2, P the k largest |g_i|."""

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        v = g * largest(g.abs(), self.count(g.shape[1]))
        return Vertices(opposite(v, euclidean(v), g))

    def norms(self, w: Tensor) -> Tensor:
        return k_support_norms(w, self.count(w.shape[1]))

    def dual_norms(self, g: Tensor) -> Tensor:
        return euclidean(g.abs().topk(self.count(g.shape[1]), dim=1, sorted=False).values)


@dataclass(frozen=True, kw_only=True)
class GroupKSupport(SparseBall):
    """radius times conv{v with k nonzero groups, ‖v‖_2 <= 1}: the k-support norm of the groups' l2 norms.

    The groups are the entries of the first dimension: the filters of a convolution, the outputs of a linear layer.
    """

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        keep = largest(torch.linalg.vector_norm(g, dim=2), self.count(g.shape[1]))
        v = g * keep[:, :, None]
        return Vertices(opposite(v, euclidean(v), g))

    def norms(self, w: Tensor) -> Tensor:
        return k_support_norms(lp_norms(w, 2.0), self.count(w.shape[1]))

    def dual_norms(self, g: Tensor) -> Tensor:
        return euclidean(lp_norms(g, 2.0).topk(self.count(g.shape[1]), dim=1).values)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return a row (groups, entries) for each group; groups of tensors of several sizes end in zeros."""
        rows = [w.reshape(len(w), -1) for w in tensors]
        return rows[0] if len(rows) == 1 else pad_sequence([r for w in rows for r in w], batch_first=True)

    def split(self, seen: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        parts = torch.split(seen, [len(w) for w in like])
        return [part[:, : w[0].numel()].reshape(w.shape) for part, w in zip(parts, like, strict=True)]

    def check(self, name: str, shape: Sequence[int]) -> None:
        if len(shape) < 2:
            raise ConfigError(
                f"a constraint on groups needs parameters of two or more dimensions, found {name} of shape "
                f"{list(shape)}; give constraint.params=convolutions or weights"
            )


def check_k(k: float, least: int) -> None:
    """Raise ValueError for a k that is neither a part nor a number."""
    if not 0 < k < math.inf or (k > 1 and k != int(k)):
        raise ValueError(
            f"k must be a part above 0 and at most 1, or a whole number above 1, found {k}; 1 is all of them"
        )
    if least < 1:
        raise ValueError(f"least must be at least 1, found {least}")


def count_of(k: float, least: int, n: int) -> int:
    """Return how many of n a k stands for."""
    return min(n, max(least, math.floor(k * n + 1e-9) if k <= 1 else int(k)))


def k_support_norms(w: Tensor, k: int) -> Tensor:
    """Return the k-support norm of each row of w (b, n): (b,), float64.

    With z = |w| falling, it is the largest ‖(z_1, ..., z_j, T_j, ..., T_j)‖_2, k - j times T_j = (z_{j+1} + ... + z_n)
    / (k - j), over the j = 0, ..., k-1 with z_j >= T_j (z_0 = ∞). Each such vector, continued by T_j, is a point of the
    dual ball once divided by its norm, so none exceeds the norm; the j of Argyriou et al. attains it.
    """
    size = w.abs().double()
    top = size.topk(k, dim=1).values.cpu()  # where sums of the first j are computed in one order always
    head = torch.cat([torch.zeros_like(top[:, :1]), top], 1)
    before, squares = head[:, :-1].cumsum(1), head[:, :-1].square().cumsum(1)
    times = torch.arange(k, 0, -1)
    rest = (size.sum(1, keepdim=True).cpu() - before).clamp_min(0) / times
    head[:, 0] = math.inf
    squared = torch.where(head[:, :-1] >= rest, squares + times * rest.square(), 0)
    return squared.amax(1).sqrt().to(w.device)
