"""Products: what a layer multiplies its input with in place of Δ(Θ), the factors themselves in the cheapest order.

A product computes W x + b for the weight W = Δ(Θ) of a Linear layer (outputs, inputs) or the kernel of a convolution
(outputs, inputs, height, width), which it never forms. It is made of Θ by `Compression.product`; what it merges of Θ
when it is made (neighbouring cores, outer products of factors) need not be merged again while Θ stays the same.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, unfold

MANY = 64
"""From so many samples on torch's own sparse product is faster than that of the library it calls, on a CPU."""


class Use(NamedTuple):
    """How a layer uses its weight on one sample.

    `shape` is the weight's: (outputs, inputs) of Linear or (outputs, inputs, height, width) of an ungrouped Conv2d;
    `inputs` and `outputs` are the positions of its input and output: () or a sequence's length for Linear, (height,
    width) for Conv2d.
    """

    shape: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """Return at how many places of the output the weight is applied."""
        return math.prod(self.outputs)


class Geometry(NamedTuple):
    """How a convolution moves over its input, (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, inputs: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Return the height and width of the output."""
        return tuple(
            (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
            for n, k, stride, padding, dilation in zip(inputs, kernel, *self, strict=True)
        )


ONCE = Geometry((1, 1), (0, 0), (1, 1))
"""One place after the other, without padding."""


class Product(ABC):
    """x -> W x + b. `plain`: made of ordinary tensor operations alone, so that it has gradients and can be exported."""

    plain: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        """Multiply x (..., inputs), or images (n, channels, height, width) with the layer's geometry."""

    @abstractmethod
    def macs(self, use: Use) -> int:
        """Count the multiply-accumulates on one sample."""


@dataclass(frozen=True)
class Linears(Product):
    """Matrices one after the other, each on what the one before gave, cut into rows of the length that it takes.

    - weights: (outputs, inputs) each.
    - modes: the order of the entries at the end is (m_q, ..., m_1), which is reversed; () for one mode.
    """

    weights: tuple[Tensor, ...]
    modes: tuple[int, ...] = ()

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        lead, z = x.shape[:-1], x
        for k, weight in enumerate(self.weights, 1):
            z = z if z.shape[-1] == weight.shape[1] else z.reshape(-1, weight.shape[1])
            z = linear(z, weight, None if self.modes or k < len(self.weights) else bias)
        if not self.modes:
            return z if z.shape[:-1] == lead else z.reshape(*lead, -1)
        z = _reverse_dims(z.reshape(-1, *self.modes)).reshape(*lead, -1)
        return z if bias is None else z + bias

    def macs(self, use: Use) -> int:
        return use.positions * _linear_macs(self.weights, math.prod(use.shape[1:]))


@dataclass(frozen=True)
class PairedTrain(Product):
    """A TT-matrix, block by block: each takes its column modes away and makes its row modes.

    In the order of work, for each block: weights (row modes x left rank, column modes x right rank), rows and columns,
    the products of its modes. From the last block to the first, or `flipped`: from the first to the last.
    """

    weights: tuple[Tensor, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    flipped: bool

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        lead, z, left = x.shape[:-1], x, math.prod(self.columns)
        z = _reverse_dims(z.reshape(-1, *self.columns)) if self.flipped else z
        for weight, m, n in zip(self.weights, self.rows, self.columns, strict=True):
            left //= n  # z: samples and rows made, columns left, n x right rank
            z = linear(z.reshape(-1, weight.shape[1]), weight)
            z = z.reshape(-1, left, m, weight.shape[0] // m).transpose(1, 2)
        z = z if self.flipped else _reverse_dims(z.reshape(-1, *self.rows))
        z = z.reshape(*lead, math.prod(self.rows))
        return z if bias is None else z + bias

    def macs(self, use: Use) -> int:
        return use.positions * _linear_macs(self.weights, math.prod(use.shape[1:]))


def _reverse_dims(z: Tensor) -> Tensor:
    """Return all dimensions but the first in reverse order."""
    return z.permute(0, *range(z.dim() - 1, 0, -1))


def _linear_macs(weights: Sequence[Tensor], entries: int) -> int:
    """Count those of matrices on so many numbers, each cutting what the one before gave into rows."""
    total = 0
    for weight in weights:
        rows = entries // weight.shape[1] if weight.shape[1] else 0
        total += rows * weight.numel()
        entries = rows * weight.shape[0]
    return total


class Step(NamedTuple):
    """A convolution that takes the layer's stride, padding and dilation along some axes (vertical, horizontal)."""

    kernel: Tensor
    along: tuple[bool, bool]
    groups: int = 1


@dataclass(frozen=True)
class Convolutions(Product):
    """Convolutions one after the other; together they move over the input as the layer's one does."""

    steps: tuple[Step, ...]

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        at = geometry or ONCE
        for k, step in enumerate(self.steps, 1):
            stride, dilation = (
                tuple(n if moves else 1 for n, moves in zip(part, step.along, strict=True))
                for part in (at.stride, at.dilation)
            )
            padding = tuple(n if moves else 0 for n, moves in zip(at.padding, step.along, strict=True))
            x = conv2d(x, step.kernel, bias if k == len(self.steps) else None, stride, padding, dilation, step.groups)
        return x

    def macs(self, use: Use) -> int:
        total, at = 0, use.inputs
        for step in self.steps:
            at = tuple(o if moves else i for i, o, moves in zip(at, use.outputs, step.along, strict=True))
            total += step.kernel.numel() * math.prod(at)
        return total


@dataclass(frozen=True)
class Unfolded(Product):
    """A product of the matrix (outputs) x (inputs height width) with every patch that a convolution sees."""

    product: Product
    kernel: tuple[int, int]

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Return whether the product of the matrix is."""
        return self.product.plain

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        at = geometry or ONCE
        patches = unfold(x, self.kernel, dilation=at.dilation, padding=at.padding, stride=at.stride)
        y = self.product(patches.transpose(1, 2), bias)  # (n, positions, outputs)
        return y.transpose(1, 2).reshape(x.shape[0], -1, *at.outputs(x.shape[2:], self.kernel))

    def macs(self, use: Use) -> int:
        return self.product.macs(use)


@dataclass(frozen=True)
class KeptRows(Product):
    """The outputs at `positions` by a product of their rows of the weight; all others are 0."""

    product: Product
    positions: Tensor
    outputs: int

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        y = self.product(x, None if bias is None else bias[self.positions], geometry)
        dim = -1 if geometry is None else 1
        shape = list(y.shape)
        shape[dim] = self.outputs
        whole = y.new_zeros(shape)
        if bias is not None:
            whole = whole + (bias if geometry is None else bias[:, None, None])
        return whole.index_copy(dim, self.positions, y.to(whole.dtype))  # autocast: the bias is of another type

    def macs(self, use: Use) -> int:
        return self.product.macs(use)


@dataclass(frozen=True)
class SparseRows(Product):
    """A matrix of which the entries at row-major `positions` (kappa,), ascending, are not zero, as compressed rows."""

    plain: ClassVar[bool] = False
    positions: Tensor
    values: Tensor
    shape: tuple[int, int]

    @cached_property
    def matrix(self) -> Tensor:
        """Return the matrix in torch's CSR layout."""
        rows, columns = self.positions // self.shape[1], self.positions % self.shape[1]
        starts = torch.zeros(self.shape[0] + 1, dtype=torch.int64, device=rows.device)
        starts[1:] = torch.bincount(rows, minlength=self.shape[0]).cumsum(0)
        with warnings.catch_warnings():  # that the layout is in beta state
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse_csr_tensor(starts.int(), columns.int(), self.values, self.shape)

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # which has no sparse product in half precision
            with torch.autocast(x.device.type, enabled=False):
                return self(x.to(self.values.dtype), bias)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 1:
            y = (self.matrix @ rows[0])[None]
        else:
            columns = rows.T.contiguous()  # as what the last such layer gave lies already
            many = len(rows) >= MANY and x.device.type == "cpu"
            y = (torch.sparse.mm(self.matrix, columns, "sum") if many else self.matrix @ columns).T
        y = y if bias is None else y.add_(bias)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], -1)

    def macs(self, use: Use) -> int:
        return use.positions * self.values.numel()


@dataclass(frozen=True)
class Sum(Product):
    """The sum of several products."""

    parts: tuple[Product, ...]

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Return whether all parts are."""
        return all(part.plain for part in self.parts)

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        total = self.parts[0](x, bias, geometry)
        for part in self.parts[1:]:
            total = total + part(x, None, geometry)
        return total

    def macs(self, use: Use) -> int:
        return sum(part.macs(use) for part in self.parts)


def on_patches(product: Product | None, shape: Sequence[int]) -> Product | None:
    """Return the product of a matrix (shape[0], all else) for a layer whose weight has this shape."""
    if product is None or len(shape) == 2:
        return product
    return Unfolded(product, (shape[2], shape[3])) if len(shape) == 4 else None


def two_factors(a: Tensor, b: Tensor, shape: Sequence[int]) -> Product | None:
    """Return W = a b, a (outputs, r), b (r, all else): two linear layers, or convolutions to r channels and of 1x1."""
    if len(shape) == 2:
        return Linears((b, a))
    if len(shape) != 4:
        return None
    kernel = b.reshape(-1, *shape[1:])
    return Convolutions((Step(kernel, (True, True)), Step(a[:, :, None, None], (False, False))))
