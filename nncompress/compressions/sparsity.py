"""Sparse weights: the l0 constraint ‖Θ‖_0 <= kappa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import FLOAT_BITS, Compression
from nncompress.compressions.plan import Plan, Task, choose
from nncompress.compressions.views import AsVector


class Sparse(NamedTuple):
    """The kept entries: row-major positions (kappa,), ascending, their values (kappa,), and the dense shape."""

    positions: Tensor
    values: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class L0(Compression[Sparse]):
    """At most a part `keep` of the entries are nonzero; Π keeps the largest |w| and is exact.

    `keep` is a fraction (float, in [0, 1]) or a count (int). Among equal magnitudes the first ones stay.
    Raises ValueError for a fraction outside [0, 1] or a negative count.
    """

    theta_type: ClassVar[type[Sparse]] = Sparse
    exact: ClassVar[bool] = True

    keep: float | int

    def __post_init__(self) -> None:
        if self.keep < 0 or (isinstance(self.keep, float) and self.keep > 1):
            raise ValueError(f"keep must be a fraction in [0, 1] or a count of at least 0, found {self.keep}")

    def project(self, w: Tensor, mu: float, start: Sparse | None) -> Sparse:
        flat = w.reshape(-1)
        order = torch.sort(flat.abs(), descending=True, stable=True).indices
        positions = order[: self.count(flat.numel())].sort().values
        return Sparse(positions, flat[positions], tuple(w.shape))

    def count(self, numel: int) -> int:
        """kappa: how many of `numel` entries are kept."""
        return min(numel, self.keep if isinstance(self.keep, int) else round(self.keep * numel))

    def decompress(self, theta: Sparse) -> Tensor:
        dense = theta.values.new_zeros(torch.Size(theta.shape).numel())
        return dense.index_copy_(0, theta.positions, theta.values).reshape(theta.shape)

    def bits(self, theta: Sparse) -> int:
        return FLOAT_BITS * self.num_params(theta) + position_bits(theta.positions)

    def num_params(self, theta: Sparse) -> int:
        return theta.values.numel()

    def macs(self, theta: Sparse, rows: int) -> int | None:
        return None


def position_bits(positions: Tensor) -> int:
    """Bits of ascending positions stored as gaps d >= 1 (the first counted from -1) in fields of the best width.

    With b-bit fields a gap costs ceil(d / (2^b - 1)) fields; b runs from 2 to 32 (Han et al., "Deep compression",
    ICLR 2016, with relative indices; Carreira-Perpinan and Idelbayev, CVPR 2018, for the choice of b).
    """
    if positions.numel() == 0:
        return 0
    gaps = torch.diff(positions, prepend=positions.new_tensor([-1]))
    return min(b * int((-(-gaps // (2**b - 1))).sum()) for b in range(2, 33))


def l0(
    weights: Mapping[str, Tensor],
    *,
    keep: float | int = 0.1,
    joint: bool = False,
    layers: str | Sequence[str] = "hidden",
) -> Plan:
    """Keep a fraction (or count) of the entries: of each chosen weight, or (`joint`) of all of them together.

    `layers`: "hidden" (all weights but the output layer's), "all", or name patterns.
    """
    names = choose(weights, layers)
    groups = [tuple(names)] if joint else [(name,) for name in names]
    return Plan.of([Task(group, AsVector(), L0(keep)) for group in groups], weights)
