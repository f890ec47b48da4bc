"""Weights from a given set, as it is or times a scale: binary, ternary, powers of two, any other.

Carreira-Perpinan and Idelbayev, "Model compression as constrained optimization, with application to neural nets. Part
II: quantization", arXiv 1707.04319 (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from nncompress.compressions.base import sort_rows
from nncompress.compressions.plan import Layers, Plan, Tensors, each_layer
from nncompress.compressions.quantization.codes import Coded, Per, Quantization, check_per, digitize, quantize, rows_of
from nncompress.compressions.quantization.kmeans import points_of


@dataclass(frozen=True)
class FixedCodebook(Quantization):
    """Weights from a given set: Π takes the nearest entry, the larger in magnitude of two.

    - entries: the set, ascending, else ValueError: {-1, 1}, {-1, 0, 1}, the powers of two, ...
    """

    exact: ClassVar[bool] = True
    entries: tuple[float, ...]

    def __post_init__(self) -> None:
        check_entries(self.entries)

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        table = w.new_empty(1, 0)
        return Coded(nearest(w.reshape(1, -1), self.levels(table)[0]).reshape(w.shape), table)

    def levels(self, table: Tensor) -> Tensor:
        return table.new_tensor([self.entries])


@dataclass(frozen=True)
class ScaledBinary(Quantization):
    """Weights -a and a: Π has a = mean |w|, the sign of 0 being 1.

    - per_channel: whether each row has an a of its own; false, one for all, as in the paper.
    """

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

    w becomes sgn(w) a where |w| > a/2, which are just these j, and 0 elsewhere.

    - per_channel: whether each row has an a of its own; false, one for all, as in the paper.
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

STARTS, SMALLEST_START, ALTERNATIONS = 32, 1 / 64, 20
"""Scales to start from, spread on a logarithmic axis down to this part of the largest useful one, and their steps."""


@dataclass(frozen=True)
class ScaledCodebook(Quantization):
    """Weights a c with c from a given set and a free scale a (of any sign).

    With few weights Π passes over every assignment that some a makes nearest, which is exact; with many it alternates
    between nearest entries and the least-squares scale a = sum w c / sum c², from several scales.
    Idelbayev et al., "Optimal quantization using scaled codebook", CVPR 2021.

    - entries: the set, ascending and not zero alone, else ValueError.
    - per_channel: whether each row has an a of its own; false, one for all, as in the paper.
    """

    exact: ClassVar[bool] = False
    entries: tuple[float, ...]
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_entries(self.entries)
        if not any(self.entries):
            raise ValueError(f"a scaled codebook needs an entry that is not zero, found {list(self.entries)}")

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        rows = rows_of(w, self.per_channel)
        entries = torch.tensor(self.entries, dtype=torch.float64, device=w.device)
        fit = _best_scale if rows.numel() * len(entries) <= MAX_BREAKPOINTS else _alternated_scale
        scale, gain = fit(rows, entries)
        if not torch.equal(entries, -entries.flip(0)):
            mirrored, gain_mirrored = fit(rows, -entries.flip(0))
            scale = torch.where(gain_mirrored > gain, -mirrored, scale)
        table = scale[:, None].to(w.dtype)
        codes = nearest(rows / torch.where(table == 0, 1, table), entries.to(w.dtype))
        return Coded(codes.reshape(w.shape), table)

    def levels(self, table: Tensor) -> Tensor:
        return table * table.new_tensor(self.entries)


def _best_scale(rows: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale a >= 0 (R,) of least error and by how much it lowers ‖row‖², (R,).

    For a given assignment the gain is A² / B at a = A / B with A = sum w c and B = sum c². As a rises from 0, weight w
    passes from entry c_{k+1} to c_k (w > 0) or back (w < 0) at a = w / m_k, m_k being the middle of the two: all
    assignments are met in the order of these breakpoints.
    """
    rows = rows.double()
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
    """Return the best of several scales a >= 0 (R,) that no alternation improves, and how much it lowers ‖row‖², (R,).

    All starts take their steps together on the sorted rows, where the weights of an entry are an interval.
    """
    points = points_of(sort_rows(rows).double())
    U, middles = points.x.shape[1], (entries[1:] + entries[:-1]) / 2
    shares = torch.logspace(0, math.log10(SMALLEST_START), STARTS, dtype=torch.float64, device=rows.device)
    scale = points.x[:, [0, -1]].abs().amax(1, keepdim=True) / entries.abs().max() * shares  # (R, starts)
    for _ in range(ALTERNATIONS):
        inner = torch.searchsorted(points.x, (scale[:, :, None] * middles).flatten(1))
        cuts = pad(pad(inner.view(*scale.shape, -1), (1, 0)), (0, 1), value=U)
        n, s = (sums.gather(1, cuts.flatten(1)).view(cuts.shape).diff(dim=2) for sums in (points.n, points.s))
        A, B = (s * entries).sum(2), (n * entries.square()).sum(2)
        scale = (A / torch.where(B > 0, B, 1)).clamp_min(0)
    gain = A * scale
    best = gain.argmax(1, keepdim=True)
    return scale.gather(1, best).squeeze(1), gain.gather(1, best).squeeze(1)


def check_entries(entries: Sequence[float]) -> None:
    """Raise ValueError unless the entries of a codebook ascend."""
    if not entries or any(not a < b for a, b in pairwise(entries)):
        raise ValueError(f"the entries of a codebook must ascend, found {list(entries)}")


def nearest(rows: Tensor, entries: Tensor) -> Tensor:
    """Return the packed index of the nearest of ascending entries (L,); of two equally near the one away from zero."""
    middles = (entries[1:] + entries[:-1]) / 2
    above = torch.nextafter(middles, torch.full_like(middles, torch.inf))
    return digitize(rows, torch.where(middles < 0, above, middles).expand(len(rows), -1))


def fixed_codebook(
    weights: Tensors,
    *,
    entries: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    scaled: bool = False,
    per: Per = "layer",
    layers: Layers = "hidden",
) -> Plan:
    """Take the chosen weights from the given entries (ascending), times a scale if `scaled`, `per` what has its own."""
    if per == "channel" and not scaled:
        raise ValueError("per=channel is for the scale and needs scaled=true, found scaled=false")
    values = tuple(map(float, entries))
    compression = ScaledCodebook(values, check_per(per)) if scaled else FixedCodebook(values)
    return quantize(weights, compression, per, layers)


def binary(weights: Tensors, *, layers: Layers = "hidden") -> Plan:
    """Take the chosen weights from {-1, 1}."""
    return each_layer(weights, compression=FixedCodebook((-1.0, 1.0)), layers=layers)


def ternary(weights: Tensors, *, layers: Layers = "hidden") -> Plan:
    """Take the chosen weights from {-1, 0, 1}."""
    return each_layer(weights, compression=FixedCodebook((-1.0, 0.0, 1.0)), layers=layers)


def powers_of_two(weights: Tensors, *, C: int = 6, layers: Layers = "hidden") -> Plan:
    """Take the chosen weights from {0, ±1, ±1/2, ..., ±2^-C}. Raises ValueError for C outside 0 to 126."""
    return each_layer(weights, compression=FixedCodebook(power_entries(C)), layers=layers)


def power_entries(C: int) -> tuple[float, ...]:
    """Return 0, ±1, ±1/2, ..., ±2^-C, ascending."""
    if not 0 <= C <= 126:  # 2^-126 is the smallest normal number of single precision
        raise ValueError(f"C must be 0 to 126, found {C}")
    powers = [2.0**-k for k in range(C + 1)]
    return (*(-p for p in powers), 0.0, *reversed(powers))


def scaled_binary(weights: Tensors, *, per: Per = "layer", layers: Layers = "hidden") -> Plan:
    """Take the chosen weights from {-a, a}, `per` what has an a of its own."""
    return quantize(weights, ScaledBinary(check_per(per)), per, layers)


def scaled_ternary(weights: Tensors, *, per: Per = "layer", layers: Layers = "hidden") -> Plan:
    """Take the chosen weights from {-a, 0, a}, `per` what has an a of its own."""
    return quantize(weights, ScaledTernary(check_per(per)), per, layers)
