"""Quantised weights: a code for each weight, and few real numbers that say what the codes stand for.

Carreira-Perpinan and Idelbayev, "Model compression as constrained optimization, with application to neural nets. Part
II: quantization", arXiv 1707.04319 (2017).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from nncompress.compressions.base import FLOAT_BITS, Compression
from nncompress.compressions.coding import huffman_bits, index_bits
from nncompress.compressions.kmeans import sort_rows
from nncompress.compressions.plan import Plan, Task, choose, each_layer
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
    """Δ(Θ)[i] = levels[channel of i, codes[i]]; channels are the rows of w, or there is one."""

    theta_type: ClassVar[type[Coded]] = Coded

    @abstractmethod
    def levels(self, table: Tensor) -> Tensor:
        """The values (channels, L) that the codes 0, ..., L-1 stand for."""

    @final
    def decompress(self, theta: Coded) -> Tensor:
        levels = self.levels(theta.table)
        return levels.gather(1, theta.codes.reshape(len(levels), -1).long()).reshape(theta.codes.shape)

    @final
    def bits(self, theta: Coded) -> int:
        length = index_bits(self.levels(theta.table).shape[1])
        return theta.codes.numel() * length + FLOAT_BITS * theta.table.numel()

    @final
    def huffman_bits(self, theta: Coded) -> int:
        return huffman_bits(theta.codes.flatten().long().bincount()) + FLOAT_BITS * theta.table.numel()

    @final
    def num_params(self, theta: Coded) -> int:
        return theta.codes.numel() + theta.table.numel()


def packed(codes: Tensor, levels: int) -> Tensor:
    """Codes below `levels` in the smallest whole numbers."""
    return codes.to(torch.uint8 if levels <= 256 else torch.int32)


def rows_of(w: Tensor, per_channel: bool) -> Tensor:
    """w as (channels, entries): one row for each of its first dimension, or one row."""
    return w.reshape(len(w) if per_channel else 1, -1)


@dataclass(frozen=True)
class FixedCodebook(Quantization):
    """Weights from a given set, in ascending order: Π takes the nearest entry, the larger in magnitude of two.

    {-1, 1}, {-1, 0, 1} and the powers of two are such sets. Raises ValueError unless the entries ascend.
    """

    exact: ClassVar[bool] = True

    entries: tuple[float, ...]

    def __post_init__(self) -> None:
        check_entries(self.entries)

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        table = w.new_empty(1, 0)
        return Coded(packed(nearest(w, self.levels(table)[0]), len(self.entries)), table)

    def levels(self, table: Tensor) -> Tensor:
        return table.new_tensor([self.entries])


@dataclass(frozen=True)
class ScaledBinary(Quantization):
    """Weights -a and a: Π has a = mean |w|, the sign of 0 being 1. One scale a, or one for each row."""

    exact: ClassVar[bool] = True

    per_channel: bool = False

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        scale = rows_of(w, self.per_channel).abs().mean(1, keepdim=True, dtype=torch.float64)
        return Coded((w >= 0).to(torch.uint8), scale.to(w.dtype))

    def levels(self, table: Tensor) -> Tensor:
        return torch.cat([-table, table], 1)


@dataclass(frozen=True)
class ScaledTernary(Quantization):
    """Weights -a, 0 and a: Π has a = the mean of the j largest |w|, j maximising their sum over sqrt(j).

    w becomes sgn(w) a where |w| > a/2, which are just these j, and 0 elsewhere. One scale a, or one for each row.
    """

    exact: ClassVar[bool] = True

    per_channel: bool = False

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        rows = rows_of(w, self.per_channel)
        sums = sort_rows(rows.abs()).flip(1).cumsum(1, dtype=torch.float64)
        count = torch.arange(1, rows.shape[1] + 1, device=w.device, dtype=torch.float64)
        best = (sums / count.sqrt()).argmax(1, keepdim=True)
        scale = (sums.gather(1, best) / (best + 1)).to(w.dtype)
        codes = 1 + (rows > scale / 2).to(torch.uint8) - (rows < -scale / 2).to(torch.uint8)
        return Coded(codes.reshape(w.shape), scale)

    def levels(self, table: Tensor) -> Tensor:
        return torch.cat([-table, torch.zeros_like(table), table], 1)


MAX_BREAKPOINTS = 1 << 22
"""Changes of the assignment that are sorted; above, a scaled codebook is fitted from several starts."""

STARTS, ALTERNATIONS = (1.0, 0.75, 0.5, 0.35, 0.25), 20


@dataclass(frozen=True)
class ScaledCodebook(Quantization):
    """Weights a c with c from a given set and a free scale a (of any sign): one, or one for each row.

    With few weights Π passes over every assignment that some a makes nearest, which is exact; with many it alternates
    between nearest entries and the least-squares scale a = sum w c / sum c², from several scales and from `start`.
    Idelbayev et al., "Optimal quantization using scaled codebook", CVPR 2021. Raises ValueError unless the entries
    ascend and one is not zero.
    """

    exact: ClassVar[bool] = False

    entries: tuple[float, ...]
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_entries(self.entries)
        if not any(self.entries):
            raise ValueError(f"a scaled codebook needs an entry that is not zero, found {list(self.entries)}")

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        rows = rows_of(w, self.per_channel).double()
        entries = rows.new_tensor(self.entries)
        fit = _best_scale if rows.numel() * len(entries) <= MAX_BREAKPOINTS else _alternated_scale
        scale, gain = fit(rows, entries)
        if not torch.equal(entries, -entries.flip(0)):
            mirrored, gain_mirrored = fit(rows, -entries.flip(0))
            scale = torch.where(gain_mirrored > gain, -mirrored, scale)
        table = scale[:, None].to(w.dtype)
        return Coded(packed(_scaled_codes(rows, scale[:, None], entries), len(entries)).reshape(w.shape), table)

    def levels(self, table: Tensor) -> Tensor:
        return table * table.new_tensor(self.entries)


def _scaled_codes(rows: Tensor, scale: Tensor, entries: Tensor) -> Tensor:
    """The code of the entry nearest to each row's numbers over its scale (rows, 1)."""
    return nearest(rows / torch.where(scale == 0, 1, scale), entries)


def _best_scale(rows: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """The scale a >= 0 (R,) of least error and by how much it lowers ‖row‖², (R,).

    For a given assignment the gain is A² / B at a = A / B with A = sum w c and B = sum c². As a rises from 0, weight w
    passes from entry c_{k+1} to c_k (w > 0) or back (w < 0) at a = w / m_k, m_k being the middle of the two: all
    assignments are met in the order of these breakpoints.
    """
    middles, zero = (entries[1:] + entries[:-1]) / 2, entries[entries.abs().argmin()]
    first = torch.where(rows > 0, entries[-1], torch.where(rows < 0, entries[0], zero))
    at = rows[:, :, None] / middles
    met = (at > 0) & at.isfinite()
    order = torch.where(met, at, torch.inf).flatten(1).argsort(1)
    down = torch.where(rows > 0, -1.0, 1.0)[:, :, None]
    change_a = torch.where(met, down * rows[:, :, None] * entries.diff(), 0).flatten(1).gather(1, order)
    change_b = torch.where(met, down * entries.square().diff(), 0).flatten(1).gather(1, order)
    A = torch.cat([(rows * first).sum(1, keepdim=True), change_a], 1).cumsum(1)
    B = torch.cat([first.square().sum(1, keepdim=True), change_b], 1).cumsum(1)
    usable = (1e-9 * B[:, :1] < B) & (A > 0)
    gain = torch.where(usable, A.square() / torch.where(usable, B, 1), 0)
    best = gain.argmax(1, keepdim=True)
    scale = torch.where(usable, A / torch.where(usable, B, 1), 0).gather(1, best)
    return scale.squeeze(1), gain.gather(1, best).squeeze(1)


def _alternated_scale(rows: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """A scale a >= 0 (R,) that no alternation improves, the best of several, and by how much it lowers ‖row‖², (R,)."""
    largest = rows.abs().amax(1, keepdim=True) / entries.abs().max()
    best, best_gain = torch.zeros_like(largest), torch.zeros_like(largest)
    for share in STARTS:
        scale = share * largest
        for _ in range(ALTERNATIONS):
            chosen = entries[_scaled_codes(rows, scale, entries)]
            A, B = (rows * chosen).sum(1, keepdim=True), chosen.square().sum(1, keepdim=True)
            scale = torch.where(B > 0, A / torch.where(B > 0, B, 1), 0).clamp_min(0)
        gain = torch.where(B > 0, A.square() / torch.where(B > 0, B, 1), 0)
        best, best_gain = torch.where(gain > best_gain, scale, best), torch.maximum(gain, best_gain)
    return best.squeeze(1), best_gain.squeeze(1)


def check_entries(entries: Sequence[float]) -> None:
    """Raise ValueError unless the entries of a codebook ascend."""
    if not entries or any(not a < b for a, b in pairwise(entries)):
        raise ValueError(f"the entries of a codebook must ascend, found {list(entries)}")


def nearest(values: Tensor, entries: Tensor) -> Tensor:
    """The index of the nearest of ascending entries (L,); of two equally near the one away from zero."""
    middles = (entries[1:] + entries[:-1]) / 2
    upper = torch.bucketize(values, middles, right=True)
    return torch.where(values < 0, torch.bucketize(values, middles), upper)


def quantized(weights: Mapping[str, Tensor], compression: Quantization, per: Per, layers: str | Sequence[str]) -> Plan:
    """The plan of a quantisation whose own field `per_channel` agrees with `per`."""
    if per != "channel":
        return each_layer(weights, compression=compression, layers=layers, joint=per == "shared")
    return Plan.of([Task((name,), AsMatrix(), compression) for name in choose(weights, layers)], weights)


def check_per(per: str) -> bool:
    """Whether `per` asks for channels; ValueError for a word that is none of the three."""
    if per not in ("layer", "channel", "shared"):
        raise ValueError(f"per must be layer, channel or shared, found {per!r}")
    return per == "channel"


def fixed_codebook(
    weights: Mapping[str, Tensor],
    *,
    entries: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    scaled: bool = False,
    per: Per = "layer",
    layers: str | Sequence[str] = "hidden",
) -> Plan:
    """The chosen weights from the given entries (ascending), times a scale if `scaled`, `per` what has its own."""
    values = tuple(map(float, entries))
    fixed = ScaledCodebook(values, check_per(per)) if scaled else FixedCodebook(values)
    return quantized(weights, fixed, per if scaled else "layer", layers)


def binary(weights: Mapping[str, Tensor], *, layers: str | Sequence[str] = "hidden") -> Plan:
    """The chosen weights from {-1, 1}."""
    return each_layer(weights, compression=FixedCodebook((-1.0, 1.0)), layers=layers)


def ternary(weights: Mapping[str, Tensor], *, layers: str | Sequence[str] = "hidden") -> Plan:
    """The chosen weights from {-1, 0, 1}."""
    return each_layer(weights, compression=FixedCodebook((-1.0, 0.0, 1.0)), layers=layers)


def powers_of_two(weights: Mapping[str, Tensor], *, C: int = 6, layers: str | Sequence[str] = "hidden") -> Plan:
    """The chosen weights from {0, ±1, ±1/2, ..., ±2^-C}. Raises ValueError for C < 0."""
    return each_layer(weights, compression=FixedCodebook(power_entries(C)), layers=layers)


def power_entries(C: int) -> tuple[float, ...]:
    """0, ±1, ±1/2, ..., ±2^-C, ascending."""
    if C < 0:
        raise ValueError(f"C must be at least 0, found {C}")
    powers = [2.0**-k for k in range(C + 1)]
    return (*(-p for p in powers), 0.0, *reversed(powers))


def scaled_binary(weights: Mapping[str, Tensor], *, per: Per = "layer", layers: str | Sequence[str] = "hidden") -> Plan:
    """The chosen weights from {-a, a}, `per` what has an a of its own."""
    return quantized(weights, ScaledBinary(check_per(per)), per, layers)


def scaled_ternary(
    weights: Mapping[str, Tensor], *, per: Per = "layer", layers: str | Sequence[str] = "hidden"
) -> Plan:
    """The chosen weights from {-a, 0, a}, `per` what has an a of its own."""
    return quantized(weights, ScaledTernary(check_per(per)), per, layers)
