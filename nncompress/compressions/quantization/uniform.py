"""Number formats: b-bit integers with a scale, and short floating-point numbers.

Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295 (2021), section 2, for the grids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.bits import huffman_bits
from nncompress.compressions.plan import Layers, Plan, Tensors, each_layer
from nncompress.compressions.quantization.codes import Coded, Per, Quantization, check_per, pack, quantize, rows_of

RANGES, ALTERNATIONS = (1.0, 0.85, 0.7, 0.5, 0.35, 0.25), 6
"""The parts of the range of the weights that the grid spans at the start, and the rounds after the best of them."""

EQUAL = 1e-12
"""Integers that vary less, relative to their sum of squares, are all the same."""


@dataclass(frozen=True)
class Uniform(Quantization):
    """Weights s q + z on a uniform grid of b-bit integers q, with a scale s and an offset z.

    Π alternates between rounding and the least-squares scale and offset, neither of which increases the error, from the
    best of several ranges and `start`: a local minimum.

    - b: the bits of an integer, 1 to 16, else ValueError.
    - symmetric: z = 0 and |q| <= 2^(b-1) - 1 (b = 1: q is -1 or 1), the default as it needs no offset; or 0 <= q < 2^b.
    - per_channel: whether each row has a scale and an offset of its own; false, one for all.
    """

    exact: ClassVar[bool] = False
    b: int
    symmetric: bool = True
    per_channel: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.b <= 16:
            raise ValueError(f"bits must be 1 to 16, found {self.b}")

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        rows = rows_of(w, self.per_channel)
        tables = [self._table_over(rows, share) for share in RANGES] + ([] if start is None else [start.table])
        fits = [self._fit(rows, self._codes(rows, table)) for table in tables]
        best = torch.stack([gain for _, gain in fits]).argmax(0)
        table = torch.stack([fitted for fitted, _ in fits])[best, torch.arange(len(rows), device=w.device)]
        for _ in range(ALTERNATIONS):
            table = self._fit(rows, self._codes(rows, table))[0]
        return Coded(pack(self._codes(rows, table), self._count).reshape(w.shape), table)

    def levels(self, table: Tensor) -> Tensor:
        return self.values(torch.arange(self._count, device=table.device)[None], table)

    def values(self, codes: Tensor, table: Tensor) -> Tensor:
        grid = table[:, :1] * self._integers(codes.to(table.dtype))
        return grid if self.symmetric else grid + table[:, 1:]

    @property
    def _count(self) -> int:
        """How many values a code has."""
        return (1 << self.b) - 1 if self.symmetric and self.b > 1 else 1 << self.b

    def _integers(self, codes: Tensor) -> Tensor:
        """Return q of the codes 0, 1, ..."""
        if not self.symmetric:
            return codes
        return 2 * codes - 1 if self.b == 1 else codes - self._count // 2

    def _codes(self, rows: Tensor, table: Tensor) -> Tensor:
        """Return the codes of the nearest values, as real numbers."""
        q = (rows if self.symmetric else rows - table[:, 1:]) / torch.where(table[:, :1] == 0, 1, table[:, :1])
        if self.symmetric:
            q = (q + 1) / 2 if self.b == 1 else q + self._count // 2
        return q.add_(0.5).floor_().clamp_(0, self._count - 1)

    def _table_over(self, rows: Tensor, share: float) -> Tensor:
        """Return the table whose grid spans a share of the rows' ranges."""
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        if self.symmetric:
            return share * torch.maximum(high, -low) / (self._count // 2)
        scale = share * (high - low) / (self._count - 1)
        return torch.cat([scale, (high + low - scale * (self._count - 1)) / 2], 1)

    def _fit(self, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least-squares table for given codes, and the sum of squares (R,) that its scale explains.

        A scale is 0 where all q are the same.
        """
        q = self._integers(codes)
        sum_w, sum_q, both, squares = (
            x.sum(1, keepdim=True, dtype=torch.float64) for x in (rows, q, rows * q, q.square())
        )
        spread = squares
        if not self.symmetric:
            both, spread = both - sum_w * sum_q / rows.shape[1], squares - sum_q.square() / rows.shape[1]
        differ = spread > EQUAL * squares
        scale = torch.where(differ, both / torch.where(differ, spread, 1), 0)
        table = scale if self.symmetric else torch.cat([scale, (sum_w - scale * sum_q) / rows.shape[1]], 1)
        return table.to(rows.dtype), (scale * both).squeeze(1)


class Rounded(NamedTuple):
    """The values in their format, and an empty tensor of the dtype that Δ(Θ) has."""

    values: Tensor
    like: Tensor


FORMATS = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
}
"""The formats this version of torch has."""


@dataclass(frozen=True)
class LowPrecision(Compression[Rounded]):
    """Weights in a short floating-point format: Π rounds to the nearest number, large ones to the largest.

    - format: one of `FORMATS`, else ValueError.
    """

    exact: ClassVar[bool] = True
    format: str

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, found {self.format!r}")

    def project(self, w: Tensor, mu: float, start: Rounded | None) -> Rounded:
        largest = torch.finfo(FORMATS[self.format]).max
        return Rounded(w.clamp(-largest, largest).to(FORMATS[self.format]), w.new_empty(0))

    def decompress(self, theta: Rounded) -> Tensor:
        return theta.values.to(theta.like.dtype)

    def bits(self, theta: Rounded) -> int:
        return torch.finfo(FORMATS[self.format]).bits * theta.values.numel()

    def num_params(self, theta: Rounded) -> int:
        return theta.values.numel()

    def map_free(self, theta: Rounded, function: Callable[[Tensor], Tensor]) -> Rounded:
        """Leave all as it is: every value is a number of the format."""
        return theta

    def huffman_bits(self, theta: Rounded) -> int:
        values = theta.values.to(FORMATS[self.format])
        codes = values.view(torch.int16 if values.element_size() == 2 else torch.uint8)
        return huffman_bits(torch.unique(codes, return_counts=True)[1], 256 ** values.element_size())


def uniform(
    weights: Tensors, *, bits: int = 8, symmetric: bool = True, per: Per = "layer", layers: Layers = "hidden"
) -> Plan:
    """Make the chosen weights integers of `bits` bits with a scale (and, if not `symmetric`, an offset) `per` part."""
    return quantize(weights, Uniform(bits, symmetric, check_per(per)), per, layers)


def low_precision(weights: Tensors, *, format: str = "float16", layers: Layers = "hidden") -> Plan:
    """Store the chosen weights in a short floating-point format."""
    return each_layer(weights, compression=LowPrecision(format), layers=layers)
