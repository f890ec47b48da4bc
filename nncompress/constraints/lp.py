"""The balls of the l1, l2, lp and l∞ norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.constraints.base import Constraint, Vertices, euclidean, lp_norms, opposite


@dataclass(frozen=True, kw_only=True)
class L2(Constraint):
    """‖w‖_2 <= radius; LMO(g) = -radius g / ‖g‖_2."""

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        return Vertices(opposite(g, euclidean(g), g))

    def norms(self, w: Tensor) -> Tensor:
        return euclidean(w)

    def dual_norms(self, g: Tensor) -> Tensor:
        return euclidean(g)


@dataclass(frozen=True, kw_only=True)
class L1(Constraint):
    """‖w‖_1 <= radius; LMO(g) = -radius sign(g_j) e_j, j = argmax |g_j|."""

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        at = g.abs().argmax(1, keepdim=True)
        v = torch.zeros_like(g).scatter_(1, at, g.gather(1, at).sign())
        return Vertices(opposite(v, torch.ones_like(at[:, 0], dtype=torch.float64), g))

    def norms(self, w: Tensor) -> Tensor:
        return w.abs().sum(1, dtype=torch.float64)

    def dual_norms(self, g: Tensor) -> Tensor:
        return g.abs().amax(1).double()


@dataclass(frozen=True, kw_only=True)
class Linf(Constraint):
    """max |w_i| <= radius; LMO(g) = -radius sign(g)."""

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        return Vertices(opposite(g.sign(), torch.ones_like(g[:, 0], dtype=torch.float64), g))

    def norms(self, w: Tensor) -> Tensor:
        return w.abs().amax(1).double()

    def dual_norms(self, g: Tensor) -> Tensor:
        return g.abs().sum(1, dtype=torch.float64)

    def reach(self, shape: Sequence[int]) -> float:
        return math.sqrt(math.prod(shape))


@dataclass(frozen=True, kw_only=True)
class Lp(Constraint):
    """‖w‖_p <= radius; LMO(g) = -radius sign(g) |g|^(q-1) / ‖g‖_q^(q-1), q = p/(p-1).

    - p: the norm, 1 < p < ∞, else ValueError; 2, the Euclidean one.
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.p < math.inf:
            raise ValueError(f"p must be above 1 and finite (otherwise constraint=l1 or linf), found {self.p}")

    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        power = 1 / (self.p - 1)  # q - 1
        scaled, _ = _scale_rows(g)
        size = lp_norms(scaled, self.p * power) ** power
        return Vertices(opposite(scaled.sign() * scaled.abs() ** power, size, g))

    def norms(self, w: Tensor) -> Tensor:
        scaled, largest = _scale_rows(w)
        return lp_norms(scaled, self.p) * largest

    def dual_norms(self, g: Tensor) -> Tensor:
        scaled, largest = _scale_rows(g)
        return lp_norms(scaled, self.p / (self.p - 1)) * largest

    def reach(self, shape: Sequence[int]) -> float:
        return max(1.0, math.pow(math.prod(shape), 0.5 - 1 / self.p))


def _scale_rows(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row of g (b, n) over its largest magnitude, whose powers stay in range; and that (b,), float64."""
    largest = g.abs().amax(1, keepdim=True)
    return g / torch.where(largest > 0, largest, 1), largest[:, 0].double()
