"""Sparse weights: l0 and l1 as constraints and as penalties.

Carreira-Perpinan and Idelbayev, "Learning-compression algorithms for neural net pruning", CVPR 2018.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from nncompress.compressions.base import FLOAT_BITS, Compression, check_alpha, sort_rows
from nncompress.compressions.bits import huffman_position_bits, position_bits
from nncompress.compressions.plan import Layers, Plan, Tensors, each_layer
from nncompress.compressions.products import Product, SparseRows, on_patches


class Sparse(NamedTuple):
    """The kept entries: row-major positions (kappa,), ascending, their values (kappa,), and the dense shape."""

    positions: Tensor
    values: Tensor
    shape: tuple[int, ...]


class Sparsity(Compression[Sparse], ABC):
    """A compression that stores the positions and values of the entries it keeps."""

    exact: ClassVar[bool] = True

    @final
    def decompress(self, theta: Sparse) -> Tensor:
        dense = theta.values.new_zeros(torch.Size(theta.shape).numel())
        return dense.index_copy_(0, theta.positions, theta.values).reshape(theta.shape)

    @final
    def bits(self, theta: Sparse) -> int:
        return FLOAT_BITS * self.num_params(theta) + position_bits(theta.positions)

    @final
    def huffman_bits(self, theta: Sparse) -> int:
        return FLOAT_BITS * self.num_params(theta) + huffman_position_bits(theta.positions)

    @final
    def num_params(self, theta: Sparse) -> int:
        return theta.values.numel()

    @final
    def product(self, theta: Sparse, shape: Sequence[int]) -> Product | None:
        joint = math.prod(theta.shape) != math.prod(shape)
        if joint or (theta.values.is_cpu and theta.values.element_size() < 4):  # torch has no such sparse product
            return None
        return on_patches(SparseRows(theta.positions, theta.values, (shape[0], math.prod(shape[1:]))), shape)


@dataclass(frozen=True)
class L0(Sparsity):
    """‖Θ‖_0 <= kappa: Π keeps the largest |w|, of equal magnitudes the first ones.

    - keep: kappa, as a fraction of the entries (float, in (0, 1]) or a count (int, at least 0), else ValueError.
    """

    keep: float | int

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def project(self, w: Tensor, mu: float, start: Sparse | None) -> Sparse:
        flat = w.reshape(-1)
        positions = largest(flat.abs(), count_kept(self.keep, flat.numel()))
        return Sparse(positions, flat[positions], tuple(w.shape))

    def clipped(self, shape: Sequence[int]) -> str | None:
        return keep_clipped(self.keep, torch.Size(shape).numel(), "entries")


@dataclass(frozen=True)
class L1(Sparsity):
    """‖Θ‖_1 <= radius: Π is the Euclidean projection on the l1 ball, soft thresholding at the level that meets it.

    Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.

    - radius: the largest l1 norm, positive, else ValueError.
    """

    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, found {self.radius}")

    def project(self, w: Tensor, mu: float, start: Sparse | None) -> Sparse:
        return soft_threshold(w, l1_level(w.reshape(-1).abs(), self.radius))


@dataclass(frozen=True)
class SeparablePenalty(Sparsity):
    """C(Θ) = alpha times a sum over the entries of Θ; what Π keeps are the nonzero ones.

    - alpha: the price, at least 0 and finite, else ValueError.
    """

    alpha: float

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    @abstractmethod
    def prox(self, v: Tensor, mu: float) -> Tensor:
        """Return argmin over x of mu/2 ‖v - x‖² + C(x), entry by entry, shaped like v; the device is not waited for."""

    @abstractmethod
    def price(self, x: Tensor) -> Tensor:
        """Return C(x) of any tensor, 0-dimensional, float64."""

    @final
    def project(self, w: Tensor, mu: float, start: Sparse | None) -> Sparse:
        return sparse(self.prox(w, mu))

    @final
    def penalty(self, theta: Sparse) -> float | Tensor:
        return self.price(theta.values)


@dataclass(frozen=True)
class L0Penalty(SeparablePenalty):
    """C(Θ) = alpha ‖Θ‖_0: Π keeps the entries with |w| > sqrt(2 alpha / mu)."""

    def prox(self, v: Tensor, mu: float) -> Tensor:
        return torch.where(v.abs() > (2 * self.alpha / mu) ** 0.5, v, 0)

    def price(self, x: Tensor) -> Tensor:
        return self.alpha * torch.count_nonzero(x).double()


@dataclass(frozen=True)
class L1Penalty(SeparablePenalty):
    """C(Θ) = alpha ‖Θ‖_1: Π is soft thresholding at alpha / mu."""

    def prox(self, v: Tensor, mu: float) -> Tensor:
        return torch.nn.functional.softshrink(v, self.alpha / mu)

    def price(self, x: Tensor) -> Tensor:
        return self.alpha * x.abs().sum(dtype=torch.float64)


def check_keep(keep: float | int) -> None:
    """Raise ValueError for a `keep` that is neither a fraction in (0, 1] nor a count of at least 0."""
    if keep < 0 or (isinstance(keep, float) and not 0 < keep <= 1):
        raise ValueError(f"keep must be a fraction in (0, 1] or a count (whole number) of at least 0, found {keep}")


def count_kept(keep: float | int, count: int) -> int:
    """Return kappa: how many of `count` entries a `keep` leaves, at least one of a fraction."""
    return min(count, keep if isinstance(keep, int) else max(1, round(keep * count)))


def keep_clipped(keep: float | int, count: int, what: str) -> str | None:
    """Say that a count to keep is above what there is, where it is."""
    above = isinstance(keep, int) and keep > count
    return f"keep {keep} is above the {count} {what} there are, {count} are kept" if above else None


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """Return the positions (count,), ascending, of the largest entries of a vector; among equals the first.

    The threshold comes from a selection in linear time; only the entries equal to it need an order.
    """
    n = magnitudes.numel()
    if count in (0, n):
        return torch.arange(count, device=magnitudes.device)
    threshold = magnitudes.kthvalue(n - count + 1).values
    keep = magnitudes > threshold
    ties = magnitudes == threshold
    keep |= ties & (ties.cumsum(0) <= count - keep.sum())
    # numbers that are not finite compare to nothing and leave places over: 0 there, for the solver to find them
    return torch.nonzero_static(keep, size=count, fill_value=0).squeeze(1)


def l1_level(magnitudes: Tensor, radius: float) -> Tensor:
    """Return the level t >= 0 at which soft thresholding brings magnitudes (n,) to an l1 norm of at most `radius`.

    t_j = (u_1 + ... + u_j - radius) / j of the sorted magnitudes u rises while u_j > t_j and never again: t is their
    largest.
    """
    u = sort_rows(magnitudes[None])[0].flip(0).double()
    levels = (u.cumsum(0) - radius) / torch.arange(1, len(u) + 1, device=u.device)
    return levels.max().clamp_min(0).to(magnitudes.dtype)


def sparse(x: Tensor) -> Sparse:
    """Return the nonzero entries of a tensor."""
    flat = x.reshape(-1)
    positions = flat.nonzero().squeeze(1)
    return Sparse(positions, flat[positions], tuple(x.shape))


def soft_threshold(w: Tensor, level: Tensor) -> Sparse:
    """Return sgn(w) max(|w| - level, 0)."""
    flat = w.reshape(-1)
    positions = (flat.abs() > level).nonzero().squeeze(1)
    values = flat[positions]
    return Sparse(positions, values - level * values.sign(), tuple(w.shape))


def l0(weights: Tensors, *, keep: float | int = 0.1, joint: bool = False, layers: Layers = "hidden") -> Plan:
    """Keep a fraction (or count) of the entries: of each chosen weight, or (`joint`) of all of them together."""
    return each_layer(weights, compression=L0(keep), layers=layers, joint=joint)


def l1(weights: Tensors, *, radius: float = 100.0, joint: bool = False, layers: Layers = "hidden") -> Plan:
    """Bound the l1 norm by `radius`: of each chosen weight, or (`joint`) of all of them together."""
    return each_layer(weights, compression=L1(radius), layers=layers, joint=joint)


def l0_penalty(weights: Tensors, *, alpha: float = 3e-4, layers: Layers = "hidden") -> Plan:
    """Add alpha times the number of nonzero entries of the chosen weights to the loss."""
    return each_layer(weights, compression=L0Penalty(alpha), layers=layers)


def l1_penalty(weights: Tensors, *, alpha: float = 1e-2, layers: Layers = "hidden") -> Plan:
    """Add alpha times the l1 norm of the chosen weights to the loss."""
    return each_layer(weights, compression=L1Penalty(alpha), layers=layers)
