"""What all quantised weights have in common: a code for each weight, and few real numbers that the codes refer to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from nncompress.compressions.base import FLOAT_BITS, Compression
from nncompress.compressions.bits import huffman_bits, index_bits
from nncompress.compressions.plan import Layers, Plan, Task, Tensors, choose, each_layer
from nncompress.compressions.views import AsMatrix

Per = Literal["layer", "channel", "shared"]
"""What has a codebook or a scale of its own: each layer, each output channel of each layer, or all layers together."""


class Coded(NamedTuple):
    """Codes, shaped like w, and the real numbers they refer to: one row of the table for each channel, or one row.

    A table (channels, 0) has the dtype of w and nothing to store.
    """

    codes: Tensor
    table: Tensor


class Quantization(Compression[Coded], ABC):
    """Δ(Θ)[i] = levels[channel of i, codes[i]], linear in the table; channels are the rows of w, or there is one."""

    @abstractmethod
    def levels(self, table: Tensor) -> Tensor:
        """Return the values (channels, L) that the codes 0, ..., L-1 stand for."""

    def values(self, codes: Tensor, table: Tensor) -> Tensor:
        """Return what codes (channels, P) stand for. Default: looked up among the levels."""
        return self.levels(table).gather(1, codes.long())

    @final
    def decompress(self, theta: Coded) -> Tensor:
        return self.values(theta.codes.reshape(len(theta.table), -1), theta.table).reshape(theta.codes.shape)

    @final
    def sensitivity(self, theta: Coded) -> Coded:
        """Return the norm of what a unit of a table's entry adds to all weights that refer to it."""
        codes = theta.codes.reshape(len(theta.table), -1)
        units = torch.eye(theta.table.shape[1], dtype=theta.table.dtype, device=theta.table.device)
        norms = [torch.linalg.vector_norm(self.values(codes, u.expand_as(theta.table)), dim=1) for u in units]
        return Coded(theta.codes, torch.stack(norms, 1) if norms else theta.table)

    @final
    def bits(self, theta: Coded) -> int:
        length = index_bits(self.levels(theta.table[:1]).shape[1])
        return theta.codes.numel() * length + FLOAT_BITS * theta.table.numel()

    @final
    def huffman_bits(self, theta: Coded) -> int:
        return huffman_bits(theta.codes.flatten().long().bincount()) + FLOAT_BITS * theta.table.numel()

    @final
    def num_params(self, theta: Coded) -> int:
        return theta.codes.numel() + theta.table.numel()


def pack(codes: Tensor, levels: int) -> Tensor:
    """Store codes below `levels` in the smallest whole numbers."""
    return codes.to(torch.uint8 if levels <= 256 else torch.int32)


FEW = 32
"""So many thresholds are compared one after the other; a search among them is slower."""


def digitize(rows: Tensor, thresholds: Tensor) -> Tensor:
    """Return how many of ascending thresholds (R, T) the numbers of rows (R, P) are at or above; packed."""
    if thresholds.shape[1] > FEW:
        counts = torch.searchsorted(thresholds.contiguous(), rows.contiguous(), right=True)
        return pack(counts, thresholds.shape[1] + 1)
    codes = torch.zeros_like(rows, dtype=torch.uint8)
    for threshold in thresholds.unbind(1):
        codes += rows >= threshold[:, None]
    return codes


def rows_of(w: Tensor, per_channel: bool) -> Tensor:
    """Return w as (channels, entries): one row for each of its first dimension, or one row."""
    return w.reshape(len(w) if per_channel else 1, -1)


def quantize(weights: Tensors, compression: Quantization, per: Per, layers: Layers) -> Plan:
    """Return the plan of a quantisation whose own field `per_channel` agrees with `per`."""
    if per != "channel":
        return each_layer(weights, compression=compression, layers=layers, joint=per == "shared")
    return Plan.of([Task((name,), AsMatrix(), compression) for name in choose(weights, layers)], weights)


def check_per(per: str) -> bool:
    """Return whether `per` asks for channels; ValueError for a word that is none of the three."""
    if per not in ("layer", "channel", "shared"):
        raise ValueError(f"per must be layer, channel or shared, found {per!r}")
    return per == "channel"
