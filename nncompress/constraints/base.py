"""Convex bodies over which linear functions are easy to minimise, for Frank-Wolfe.

Zimmer, Spiegel and Pokutta, "Compression-aware training of neural networks using Frank-Wolfe", arXiv 2205.11921.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from nncompress.compressions.views import stand_in

ZERO = 1e-10
"""A gradient of a smaller Euclidean norm counts as zero: its vertex is the centre of the set."""


class Vertices(NamedTuple):
    """Points v (b, ...) of sets, and what the next search can start from (None: nothing)."""

    v: Tensor
    basis: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Constraint(ABC):
    """C = {w : gauge(w) <= radius}, the gauge being a norm of tensors w of any shape.

    Subclasses treat sets of radius 1 and many tensors of one shape at once, as the set sees them (`join`): a leading
    dimension b counts them. Oracles leave their arguments as they are.

    - radius: the size of the set, positive and finite, else ValueError; 1, as `Assignment` gives bodies their diameter.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius must be positive and finite, found {self.radius}")

    @abstractmethod
    def vertices(self, g: Tensor, start: Tensor | None = None) -> Vertices:
        """Return for each g (b, ...) the v of gauge at most 1 with the least <v, g>; zero for a gradient of zero.

        start: the basis that came with the vertices of gradients nearby.
        """

    @abstractmethod
    def norms(self, w: Tensor) -> Tensor:
        """Return the gauge of each w (b, ...): (b,), float64."""

    @abstractmethod
    def dual_norms(self, g: Tensor) -> Tensor:
        """Return for each g (b, ...) the largest <v, g> over the v of gauge at most 1: (b,), float64."""

    def reach(self, shape: Sequence[int]) -> float:
        """Return the largest Euclidean norm of a point of gauge 1, for the shape of `join`. Default: 1."""
        return 1.0

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join tensors that are constrained together into what the set sees. Default: one vector."""
        return torch.cat([w.reshape(-1) for w in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)

    def split(self, seen: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Split what `join` made into tensors with the shapes of `like`. Default: of one vector."""
        parts = torch.split(seen, [w.numel() for w in like])
        return [part.view(w.shape) for part, w in zip(parts, like, strict=True)]

    def full(self) -> Self:
        """Return the set in whose vertices all entries (groups, singular values) may be nonzero. Default: itself."""
        return self

    def check(self, name: str, shape: Sequence[int]) -> None:  # noqa: B027
        """Raise ConfigError for a parameter that the set is not made for. Default: any shape will do."""

    @final
    def lmo(self, g: Tensor) -> Tensor:
        """Return argmin over v in C of <v, g>, of the shape of g: the linear minimisation oracle."""
        return self.lmo_many([g])[0]

    @final
    @torch.no_grad()
    def lmo_many(self, gs: Sequence[Tensor]) -> list[Tensor]:
        """Minimise for several tensors of one shape."""
        vertices = self.radius * self.vertices(torch.stack([self.join([g]) for g in gs])).v
        return [self.split(v, [g])[0] for v, g in zip(vertices, gs, strict=True)]

    @final
    @torch.no_grad()
    def gauge(self, w: Tensor) -> Tensor:
        """Return the norm of w whose ball of size `radius` is C, a 0-dimensional tensor."""
        return self.norms(self.join([w])[None])[0].to(w.dtype)

    @final
    @torch.no_grad()
    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the largest <v, g> over v with gauge(v) <= 1, a 0-dimensional tensor."""
        return self.dual_norms(self.join([g])[None])[0].to(g.dtype)

    @final
    @torch.no_grad()
    def feasible(self, w: Tensor) -> Tensor:
        """Scale w into C if it lies outside (not the nearest point)."""
        return w * (self.radius / self.gauge(w)).clamp(max=1)

    @final
    def diameter(self, shape: Sequence[int]) -> float:
        """Return the largest Euclidean distance between two points of C."""
        return 2 * self.radius * self.reach(self.seen_shape([shape]))

    @final
    def at_diameter(self, diameter: float, *shapes: Sequence[int]) -> Self:
        """Return the set of this diameter, for a tensor of the given shape (or several constrained together)."""
        return self.of_radius(diameter / (2 * self.reach(self.seen_shape(shapes))))

    @final
    def of_radius(self, radius: float) -> Self:
        """Return the set of another radius."""
        return replace(self, radius=radius)

    @final
    def seen_shape(self, shapes: Sequence[Sequence[int]]) -> torch.Size:
        """Return the shape in which the set sees tensors of these shapes together."""
        return self.join([stand_in(shape) for shape in shapes]).shape


def euclidean(g: Tensor) -> Tensor:
    """Return the Euclidean norms of g (b, ...): (b,), float64."""
    return lp_norms(g.flatten(1), 2.0)


def lp_norms(g: Tensor, p: float) -> Tensor:
    """Return the lp norms of the last dimension of g, float64."""
    norms: Tensor = torch.linalg.vector_norm(g, p, dim=-1, dtype=torch.float64)
    return norms


def opposite(v: Tensor, size: Tensor, g: Tensor) -> Tensor:
    """Return -v (b, ...) divided by the sizes (b,), and 0 where g (b, ...) is zero."""
    factor = torch.where(euclidean(g) < ZERO, 0, -1 / size).to(v.dtype)
    return v * factor.view(-1, *[1] * (v.dim() - 1))


def largest(a: Tensor, k: int) -> Tensor:
    """Return which entries of each row of a (b, n), none negative, are its k largest: exactly k, bool (b, n)."""
    if k >= a.shape[1]:
        return torch.ones_like(a, dtype=torch.bool)
    if a.is_cpu and a.dtype == torch.float32:
        return torch.stack([_largest(row, k) for row in a]) if len(a) > 1 else _largest(a[0], k)[None]
    at = a.topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(a, dtype=torch.bool).scatter_(1, at, True)


def _largest(a: Tensor, k: int) -> Tensor:
    """Do so for a row of float32 on the CPU, by counting: several times as fast as torch.topk when k is large.

    The bits of a float that is not negative are ordered as the number is; the k-th largest is found by its first 16
    bits (those after the sign), then by the 15 others.
    """
    bits = a.contiguous().view(torch.int32)
    high, above = _bucket(bits >> 15, 1 << 16, k)
    low, more = _bucket(bits[bits >> 15 == high] & ((1 << 15) - 1), 1 << 15, k - above)
    at = (high << 15) | low
    keep, left = bits > at, k - above - more
    ties = (bits == at).nonzero().squeeze(1)
    keep[ties[:left]] = True
    return keep


def _bucket(values: Tensor, count: int, k: int) -> tuple[int, int]:
    """Return the value (below `count`) of the k-th largest of whole numbers, and how many are larger than it."""
    from_top = torch.bincount(values, minlength=count).flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    return count - 1 - place, int(from_top[place - 1]) if place else 0
