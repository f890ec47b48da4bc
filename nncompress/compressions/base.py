"""A compression: the set of compressed parameters Θ with its projection Π and its decompression Δ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn

from nncompress.compressions.products import Product, Use
from nncompress.errors import Diverged

Theta = TypeVar("Theta")

FLOAT_BITS = 32
"""Bits of one stored real number (the papers' convention; indices and codes are counted apart)."""

CHUNK = 1 << 17
"""Entries whose difference is formed at once: a buffer of the tensors' size would cost more than the arithmetic."""


class ThetaSize(NamedTuple):
    """The size that all Θ for one shape have: ranks, or another number that `what` names, and the numbers held."""

    what: str
    counts: tuple[int, ...]
    params: int


class Compression(ABC, Generic[Theta]):
    """A set (or penalty) of compressed parameters Θ, without state; subclasses are frozen dataclasses.

    Θ is a NamedTuple of tensors, numbers and tuples of them (other Θ included). A subclass has to give `exact`,
    `project`, `decompress`, `bits` and `num_params`; the other methods that are not final have a default.
    Carreira-Perpinan, "Model compression as constrained optimization, Part I", arXiv 1707.01209, section 3.
    """

    exact: ClassVar[bool]
    """Whether `project` solves its problem; otherwise it is a local method, safeguarded by `update`."""

    @final
    def compress(self, w: Tensor, mu: float = 1.0, start: Theta | None = None) -> Theta:
        """Return Π(w) = argmin over Θ of mu/2 ‖w - Δ(Θ)‖² + C(Θ).

        `w` is left unchanged; the result is on its device and of its dtype. Where the problem is solved only
        locally, the result is never worse than a feasible `start`. Raises Diverged when w is not finite.
        """
        if not torch.isfinite(w).all():
            raise Diverged(f"the weights to compress must be finite, found {not_finite(w)}")
        return self.compress_many([w], mu, [start])[0]

    @final
    @torch.no_grad()
    def compress_many(self, ws: Sequence[Tensor], mu: float, starts: Sequence[Theta | None]) -> list[Theta]:
        """Compress several tensors of one shape, all finite."""
        thetas = self.project_many(ws, mu, starts)
        return [
            theta if self.exact or start is None else self._better(w, mu, theta, start, None)[0]
            for w, theta, start in zip(ws, thetas, starts, strict=True)
        ]

    @final
    @torch.no_grad()
    def update(
        self, w: Tensor, mu: float = 1.0, start: Theta | None = None, dense: Tensor | None = None
    ) -> tuple[Theta, Tensor]:
        """Return Θ = Π(w) and Δ(Θ), w being finite; `dense` is Δ(start), if at hand."""
        theta = self.project(w, mu, start)
        if self.exact or start is None:
            return theta, self.decompress(theta)
        return self._better(w, mu, theta, start, dense)

    def _better(self, w: Tensor, mu: float, theta: Theta, start: Theta, dense: Tensor | None) -> tuple[Theta, Tensor]:
        """Return `theta`, or `start` where that is better, and its Δ; `dense` is Δ(start), if at hand."""
        new = self.decompress(theta)
        old = self.decompress(start) if dense is None else dense
        value = mu / 2 * distance_sq(w, new) + self.penalty(theta)
        return (theta, new) if value <= mu / 2 * distance_sq(w, old) + self.penalty(start) else (start, old)

    @abstractmethod
    def project(self, w: Tensor, mu: float, start: Theta | None) -> Theta:
        """Return the minimiser of `compress`, or a good local one, from `start` where that helps; keep no gradients."""

    def project_many(self, ws: Sequence[Tensor], mu: float, starts: Sequence[Theta | None]) -> list[Theta]:
        """Project several tensors of one shape, at once where that is faster. Default: one after the other."""
        return [self.project(w, mu, start) for w, start in zip(ws, starts, strict=True)]

    @abstractmethod
    def decompress(self, theta: Theta) -> Tensor:
        """Return Δ(Θ), shaped like the w that was compressed."""

    @abstractmethod
    def bits(self, theta: Theta) -> int:
        """Count all that must be stored to rebuild Δ(Θ), in bits."""

    @abstractmethod
    def num_params(self, theta: Theta) -> int:
        """Count the numbers Θ holds: kept values, codes, codebooks, scales, entries of factors; positions are none."""

    def penalty(self, theta: Theta) -> float | Tensor:
        """Return C(Θ). Default: 0, for a constraint."""
        return 0.0

    def map_free(self, theta: Theta, function: Callable[[Tensor], Tensor]) -> Theta:
        """Apply `function` to the free tensors of Θ: those that descent may change while all else stays as it is.

        Whatever their values, Δ(Θ) keeps its form and its bits: kept entries, codebooks, scales, factors; not positions
        and codes. They may leave an l1 ball and normal forms. Default: every tensor of real numbers in (nested) tuples.
        """
        mapped: Theta = map_tensors(theta, lambda tensor: function(tensor) if tensor.is_floating_point() else tensor)
        return mapped

    def sensitivity(self, theta: Theta) -> Theta:
        """Return Θ with, in place of each free tensor, how far Δ(Θ) moves per unit of each of its entries (broadcast).

        Descent in the free tensors times these takes the steps of descent in w. Default: 1, for entries that are
        weights of their own.
        """
        return self.map_free(theta, lambda tensor: tensor.new_ones(()))

    def huffman_bits(self, theta: Theta) -> int:
        """Count the bits when codes and gaps are Huffman-coded (`bits.huffman_bits`). Default: `bits`, for numbers."""
        return self.bits(theta)

    @final
    def least_bits(self, theta: Theta) -> int:
        """Count the bits in the cheaper of the two forms."""
        return min(self.bits(theta), self.huffman_bits(theta))

    def product(self, theta: Theta, shape: Sequence[int]) -> Product | None:
        """Return what multiplies in place of Δ(Θ) in a layer with such a weight. Default: None, no such form."""
        return None

    def layer(self, theta: Theta, layer: nn.Module) -> nn.Module | None:
        """Return what computes in place of a layer of torch whose weight is Δ(Θ). Default: None, `product` says how.

        It is made anew when Θ changes, and at every pass with gradients, which reach Θ where it computes with Θ's
        tensors as they are (not with `nn.Parameter`s made of them). `layer` gives all but the weight: its kind, sizes,
        bias.
        """
        return None

    def macs(self, theta: Theta, use: Use) -> int | None:
        """Count a layer's multiply-accumulates on one sample, Δ(Θ) not rebuilt; None where there is no such form.

        Default: those of the `product`. Without a form the nonzero entries of Δ(Θ) are counted.
        """
        product = self.product(theta, use.shape)
        return None if product is None else product.macs(use)

    def size(self, shape: Sequence[int]) -> ThetaSize | None:
        """Return the size of every Θ of a tensor of this shape. Default: None, it depends on more than the shape."""
        return None

    def summands(self, shape: Sequence[int]) -> list[tuple[Compression[Any], Sequence[int]]]:
        """Return what this is a sum of, and the shape in which each sees a tensor of this shape. Default: itself."""
        return [(self, shape)]

    def check(self, shape: Sequence[int]) -> None:
        """Raise ValueError when tensors of this shape cannot be compressed. Default: all can."""

    def clipped(self, shape: Sequence[int]) -> str | None:
        """Say which setting is larger than this shape allows and what is used instead. Default: None."""
        return None


class Factorised(Compression[Theta]):
    """A compression whose Θ consists of real numbers alone, in tensors and tuples of tensors."""

    @final
    def num_params(self, theta: Theta) -> int:
        return numel(theta)

    @final
    def bits(self, theta: Theta) -> int:
        return FLOAT_BITS * numel(theta)


def numel(value: Any) -> int:
    """Count the entries of the tensors in (nested) tuples."""
    return value.numel() if isinstance(value, Tensor) else sum(map(numel, value)) if isinstance(value, tuple) else 0


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to every tensor of (nested) tuples and NamedTuples."""
    return map_leaves(value, Tensor, function)


def map_leaves(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to everything of a kind in (nested) tuples and NamedTuples."""
    if isinstance(value, kind):
        return function(value)
    if not isinstance(value, tuple):
        return value
    items = [map_leaves(item, kind, function) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def not_finite(w: Tensor) -> str:
    """Describe what is not finite in w."""
    nan, count = int(torch.isnan(w).sum()), int((~torch.isfinite(w)).sum())
    return f"{nan} NaN and {count - nan} infinite of {w.numel()} entries"


def distance_sq(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a - b‖², a 0-dimensional tensor: chunks in their own precision, their sum in float64."""
    size = CHUNK if a.device.type == "cpu" else max(1, a.numel())
    pairs = zip(torch.split(a.reshape(-1), size), torch.split(b.reshape(-1), size), strict=True)
    differences = (x - y for x, y in pairs)
    return torch.stack([torch.dot(d, d) for d in differences]).sum(dtype=torch.float64)


def sort_rows(rows: Tensor) -> Tensor:
    """Sort each row of (R, P) in ascending order.

    Single precision is sorted by its bits with the row's number before them: once the bits of negative numbers are
    flipped they are ordered as whole numbers, and PyTorch sorts those by radix, several times faster.
    """
    if rows.dtype != torch.float32:
        return rows.sort(1).values
    top = torch.iinfo(torch.int32).max
    bits = rows.contiguous().view(torch.int32)
    offset = (torch.arange(len(rows), device=rows.device) << 32)[:, None]
    keys = (torch.where(bits < 0, bits ^ top, bits) + offset).flatten().sort().values.view(rows.shape)
    bits = (keys - offset).int()
    return torch.where(bits < 0, bits ^ top, bits).view(torch.float32)


def check_count(name: str, count: int) -> None:
    """Raise ValueError for a setting that counts something and is below 1."""
    if count < 1:
        raise ValueError(f"{name} must be at least 1, found {count}")


def check_alpha(alpha: float) -> None:
    """Raise ValueError for a weight of a penalty that is negative or infinite (the penalty of 0 would be no number)."""
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, found {alpha}")
