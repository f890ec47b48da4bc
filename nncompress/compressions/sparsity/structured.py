"""Structured sparsity: whole rows (neurons, filters), and n entries of every m."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import FLOAT_BITS, Compression, ThetaSize, check_count
from nncompress.compressions.bits import index_bits, position_bits
from nncompress.compressions.plan import Layers, Plan, Task, Tensors, choose, groups_of
from nncompress.compressions.products import Convolutions, KeptRows, Linears, Product, Step, Use
from nncompress.compressions.sparsity.magnitude import check_keep, count_kept, keep_clipped, largest
from nncompress.compressions.target import round_up
from nncompress.compressions.views import AsTensor, AsVector


class Rows(NamedTuple):
    """The kept rows: their positions (kappa,) among those of all weights, ascending, and their entries end to end."""

    positions: Tensor
    values: Tensor


@dataclass(frozen=True)
class GroupL0(Compression[Rows]):
    """At most a part `keep` of the rows are not zero, at least one of each weight: Π keeps those of largest l2 norm.

    Acts on weights put end to end, a row being what one output neuron or filter reads. The rows are ranked by their
    norms, whatever their lengths, which is exact: ‖w - Θ‖² is the sum of the squared norms of the dropped rows.
    Yuan and Lin, "Model selection and estimation in regression with grouped variables", J. R. Stat. Soc. B 68, 2006,
    for groups; Li et al., "Pruning filters for efficient ConvNets", ICLR 2017, for filters.
    Raises ValueError for another `keep` and for a `round_to` below 1.

    - keep: a fraction (float, in (0, 1]) or a count (int) of the rows of all weights.
    - sizes: (rows, columns) of each weight.
    - round_to: the rows kept of each weight are a multiple of it, or all; 1, any number. Rows are kept in runs of
      `round_to` (the last of a weight may be shorter), as many as it takes for `keep`, at least one of each weight: the
      runs of largest squared norm, those of one weight in the order of its rows' norms, which is exact again.
    """

    exact: ClassVar[bool] = True
    keep: float | int
    sizes: tuple[tuple[int, int], ...]
    round_to: int = field(default=1, repr=False)  # told once for all layers

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_count("round_to", self.round_to)

    def project(self, w: Tensor, mu: float, start: Rows | None) -> Rows:
        parts = torch.split(w, [rows * columns for rows, columns in self.sizes])
        norms = [part.reshape(size).square().sum(dim=1) for part, size in zip(parts, self.sizes, strict=True)]
        for norm in norms:
            norm.scatter_(0, norm.argmax(0, keepdim=True), torch.inf)  # a layer without outputs would cut the network
        in_runs = self.round_to > 1 and len(norms) > 1
        positions = self._largest_runs(norms) if in_runs else largest(torch.cat(norms), self._rows)
        return Rows(positions, w[self._entries(positions)])

    def _largest_runs(self, norms: Sequence[Tensor]) -> Tensor:
        """Return the positions of the rows in the runs of largest squared norm, from the squared norms of the rows."""
        orders = [norm.argsort(descending=True, stable=True) for norm in norms]
        runs = [
            torch.nn.functional.pad(norm[order], (0, -len(norm) % self.round_to)).reshape(-1, self.round_to).sum(1)
            for norm, order in zip(norms, orders, strict=True)
        ]
        gains = torch.cat(runs)
        count = min(len(gains), max(len(runs), -(-self._rows // self.round_to)))
        keep = torch.zeros_like(gains, dtype=torch.bool).index_fill_(0, largest(gains, count), True)
        positions, first = [], 0
        for order, mine in zip(orders, torch.split(keep, [len(run) for run in runs]), strict=True):
            rows = order[mine.repeat_interleave(self.round_to)[: len(order)]]
            positions.append(first + rows.sort().values)
            first += len(order)
        return torch.cat(positions)

    @property
    def _rows(self) -> int:
        """How many rows `keep` leaves, at least one of each weight; of one weight, with those that rounding adds."""
        total = sum(rows for rows, _ in self.sizes)
        count = max(len(self.sizes), count_kept(self.keep, total))
        return round_up(count, self.round_to, total) if len(self.sizes) == 1 else count

    def decompress(self, theta: Rows) -> Tensor:
        entries = self._entries(theta.positions)
        return theta.values.new_zeros(entries.numel()).masked_scatter(entries, theta.values)

    def bits(self, theta: Rows) -> int:
        """Count the values, and a bit for each row or the kept rows' positions, whichever is less."""
        rows = sum(count for count, _ in self.sizes)
        return FLOAT_BITS * theta.values.numel() + min(rows, position_bits(theta.positions))

    def num_params(self, theta: Rows) -> int:
        return theta.values.numel()

    def product(self, theta: Rows, shape: Sequence[int]) -> Product | None:
        if len(self.sizes) > 1 or len(theta.positions) == 0 or len(shape) not in (2, 4):
            return None
        rows = theta.values.reshape(-1, *shape[1:])
        kept = Linears((rows,)) if len(shape) == 2 else Convolutions((Step(rows, (True, True)),))
        return KeptRows(kept, theta.positions, shape[0])

    def size(self, shape: Sequence[int]) -> ThetaSize | None:
        return ThetaSize("rows", (self._rows,), self._rows * self.sizes[0][1]) if len(self.sizes) == 1 else None

    def check(self, shape: Sequence[int]) -> None:
        entries = sum(rows * columns for rows, columns in self.sizes)
        if entries != torch.Size(shape).numel():
            raise ValueError(f"sizes must hold its {torch.Size(shape).numel()} entries, found {entries}")

    def clipped(self, shape: Sequence[int]) -> str | None:
        least = len(self.sizes)
        if isinstance(self.keep, int) and self.keep < least:
            return f"keep {self.keep} leaves a weight without rows, {least} are kept, at least one of each"
        return keep_clipped(self.keep, sum(rows for rows, _ in self.sizes), "rows")

    def _entries(self, positions: Tensor) -> Tensor:
        """Return which entries of the weights belong to the rows at `positions`."""
        counts = [rows for rows, _ in self.sizes]
        keep = torch.zeros(sum(counts), dtype=torch.bool, device=positions.device)
        parts = torch.split(keep.index_fill_(0, positions, True), counts)
        return torch.cat([part.repeat_interleave(size[1]) for part, size in zip(parts, self.sizes, strict=True)])


class KeptEntries(NamedTuple):
    """For every group of m inputs the places (groups, n) of the kept ones, ascending, their values, the dense shape."""

    places: Tensor
    values: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NM(Compression[KeptEntries]):
    """At most n of every m consecutive inputs are not zero: Π keeps the largest |w|.

    Groups run along dimension 1 of a weight (outputs, inputs, ...), at each place of a kernel on its own; a last group
    may be shorter. Among equal magnitudes the first ones stay. Mishra et al., "Accelerating sparse deep neural
    networks", arXiv 2104.08378 (2021).

    - n, m: 1 <= n <= m <= 256, else ValueError; 2 and 4, which sparse tensor cores multiply.
    """

    exact: ClassVar[bool] = True
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= 256:
            raise ValueError(f"n and m must satisfy 1 <= n <= m <= 256, found n={self.n}, m={self.m}")

    def project(self, w: Tensor, mu: float, start: KeptEntries | None) -> KeptEntries:
        groups = self._groups(w)
        magnitude = groups.abs()
        padding = -w.shape[1] % self.m
        magnitude[..., -1, self.m - padding :] = -1  # what pads a short group is kept last
        before = torch.zeros_like(magnitude, dtype=torch.int16)  # how many of its group precede an entry
        place = torch.arange(self.m, device=w.device)
        for j in range(self.m):
            other = magnitude[..., j : j + 1]
            before += (other > magnitude) | ((other == magnitude) & (j < place))
        places = (before >= self.n).sort(dim=-1, stable=True).indices[..., : self.n].reshape(-1, self.n)
        return KeptEntries(places.to(torch.uint8), groups.reshape(-1, self.m).gather(1, places), tuple(w.shape))

    def decompress(self, theta: KeptEntries) -> Tensor:
        outputs, inputs, *kernel = theta.shape
        groups = theta.values.new_zeros(len(theta.values), self.m).scatter_(1, theta.places.long(), theta.values)
        return groups.reshape(outputs, *kernel, -1)[..., :inputs].movedim(-1, 1).contiguous()

    def bits(self, theta: KeptEntries) -> int:
        return self.num_params(theta) * (FLOAT_BITS + index_bits(self.m))

    def num_params(self, theta: KeptEntries) -> int:
        """Count the kept entries; what pads a short last group is none."""
        outputs, inputs, *kernel = theta.shape
        groups, rest = divmod(inputs, self.m)
        return outputs * math.prod(kernel) * (groups * self.n + min(self.n, rest))

    def macs(self, theta: KeptEntries, use: Use) -> int | None:
        return use.positions * self.num_params(theta)

    def check(self, shape: Sequence[int]) -> None:
        if len(shape) < 2:
            raise ValueError(f"n:m sparsity needs a weight (outputs, inputs, ...), found shape {tuple(shape)}")

    def _groups(self, w: Tensor) -> Tensor:
        """Return (outputs, kernel..., groups, m), the last group padded with zeros; shares no memory with w."""
        last = torch.nn.functional.pad(w.movedim(1, -1), (0, -w.shape[1] % self.m))
        return last.reshape(*last.shape[:-1], -1, self.m).clone()


def group_l0(
    weights: Tensors, *, keep: float | int = 0.5, joint: bool = False, layers: Layers = "hidden", round_to: int = 1
) -> Plan:
    """Keep a fraction (or count) of the rows: of each chosen weight, or (`joint`) of all of them together.

    `round_to`: the rows kept of a weight are a multiple of it, or all.
    """
    tasks = []
    for group in groups_of(weights, layers, joint):
        sizes = tuple((weights[name].shape[0], weights[name][0].numel()) for name in group)
        tasks.append(Task(group, AsVector(), GroupL0(keep, sizes, round_to)))
    return Plan.of(tasks, weights)


def n_m(weights: Tensors, *, n: int = 2, m: int = 4, layers: Layers = "hidden") -> Plan:
    """Keep n of every m consecutive inputs of the chosen weights."""
    views = {name: AsTensor(tuple(weights[name].shape)) for name in choose(weights, layers)}
    return Plan.of([Task((name,), view, NM(n, m)) for name, view in views.items()], weights)
