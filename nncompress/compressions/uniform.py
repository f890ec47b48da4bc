"""Number formats: b-bit integers with a scale, and short floating-point numbers.

Nagel et al., "A white paper on neural network quantization", arXiv 2106.08295 (2021), section 2, for the grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.coding import huffman_bits
from nncompress.compressions.plan import Plan, each_layer
from nncompress.compressions.quantization import Coded, Per, Quantization, check_per, packed, quantized, rows_of

RANGES, ALTERNATIONS = (1.0, 0.85, 0.7, 0.5, 0.35), 4


@dataclass(frozen=True)
class Uniform(Quantization):
    """Weights s q + z on a uniform grid of b-bit integers q; one scale s, or one for each row.

    Symmetric: z = 0 and |q| <= 2^(b-1) - 1 (b = 1: q is -1 or 1). Affine: 0 <= q < 2^b and an offset z. Π alternates
    between rounding and the least-squares scale and offset, from several ranges or from `start`: a local minimum.
    Raises ValueError for bits outside 1 to 16.
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
        tables = [self._spread(rows, share) for share in RANGES] if start is None else [start.table]
        fitted = torch.stack([self._alternated(rows, table) for table in tables])  # starts x channels x numbers
        errors = torch.stack([(rows - self._rounded(rows, table)).square().sum(1) for table in fitted])
        table = fitted[errors.argmin(0), torch.arange(len(rows), device=w.device)]
        codes = self._codes(rows, table)
        return Coded(packed(codes, len(self._grid(table))).reshape(w.shape), table)

    def levels(self, table: Tensor) -> Tensor:
        offset = 0 if self.symmetric else table[:, 1:]
        return table[:, :1] * self._grid(table) + offset

    def _grid(self, like: Tensor) -> Tensor:
        """The integers q, ascending."""
        if self.symmetric and self.b == 1:
            return like.new_tensor([-1, 1])
        top = 2 ** (self.b - 1) - 1
        low, count = (-top, 2 * top + 1) if self.symmetric else (0, 2**self.b)
        return torch.arange(low, low + count, device=like.device).to(like.dtype)

    def _spread(self, rows: Tensor, share: float) -> Tensor:
        """The table whose grid spans a share of the rows' ranges."""
        grid = self._grid(rows)
        if self.symmetric:
            return share * rows.abs().amax(1, keepdim=True) / grid[-1]
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        scale = share * (high - low) / grid[-1]
        return torch.cat([scale, (high + low - scale * grid[-1]) / 2], 1)

    def _alternated(self, rows: Tensor, table: Tensor) -> Tensor:
        """The table after some rounds of rounding and least squares, which never increase the error."""
        grid = self._grid(rows)
        for _ in range(ALTERNATIONS):
            table = self._fitted(rows, grid[self._codes(rows, table)])
        return table

    def _rounded(self, rows: Tensor, table: Tensor) -> Tensor:
        return self.levels(table).gather(1, self._codes(rows, table))

    def _codes(self, rows: Tensor, table: Tensor) -> Tensor:
        """The index of the level nearest to each number."""
        grid, scale = self._grid(rows), torch.where(table[:, :1] == 0, 1, table[:, :1])
        q = (rows if self.symmetric else rows - table[:, 1:]) / scale
        if self.symmetric and self.b == 1:
            return (q >= 0).long()
        return (q.round() - grid[0]).clamp(0, len(grid) - 1).long()

    def _fitted(self, rows: Tensor, q: Tensor) -> Tensor:
        """The least-squares scale (and offset) for integers q (R, P); scale 0 where they are all the same."""
        mean_w, mean_q = (x.mean(1, keepdim=True, dtype=torch.float64) for x in (rows, q))
        if self.symmetric:
            mean_w, mean_q = torch.zeros_like(mean_w), torch.zeros_like(mean_q)
        centred = q - mean_q.to(q.dtype)
        spread = centred.square().sum(1, keepdim=True, dtype=torch.float64)
        both = ((rows - mean_w.to(rows.dtype)) * centred).sum(1, keepdim=True, dtype=torch.float64)
        scale = torch.where(spread > 0, both / torch.where(spread > 0, spread, 1), 0)
        table = scale if self.symmetric else torch.cat([scale, mean_w - scale * mean_q], 1)
        return table.to(rows.dtype)


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

    Raises ValueError for a format that torch does not have.
    """

    exact: ClassVar[bool] = True
    theta_type: ClassVar[type[Rounded]] = Rounded

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
        return 8 * theta.values.element_size() * theta.values.numel()

    def num_params(self, theta: Rounded) -> int:
        return theta.values.numel()

    def huffman_bits(self, theta: Rounded) -> int:
        words = theta.values.view(torch.int16 if theta.values.element_size() == 2 else torch.uint8)
        return huffman_bits(torch.unique(words, return_counts=True)[1])


def uniform(
    weights: Mapping[str, Tensor],
    *,
    bits: int = 8,
    symmetric: bool = True,
    per: Per = "layer",
    layers: str | Sequence[str] = "hidden",
) -> Plan:
    """The chosen weights as integers of `bits` bits with a scale (and, if not `symmetric`, an offset) `per` part."""
    return quantized(weights, Uniform(bits, symmetric, check_per(per)), per, layers)


def low_precision(
    weights: Mapping[str, Tensor], *, format: str = "float16", layers: str | Sequence[str] = "hidden"
) -> Plan:
    """The chosen weights in a short floating-point format."""
    return each_layer(weights, compression=LowPrecision(format), layers=layers)
