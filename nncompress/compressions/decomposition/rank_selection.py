"""Rank selection: a low rank that is learned, at a price for each number stored or each operation.

Idelbayev and Carreira-Perpinan, "Low-rank compression of neural nets: learning the rank of each layer", CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nncompress.compressions.base import check_alpha, check_count, numel
from nncompress.compressions.decomposition.low_rank import Factorisation, Factors, matrix_view, split_evenly
from nncompress.compressions.decomposition.svd import SVD, exact_svd
from nncompress.compressions.plan import Layers, Plan, Task, Tensors, choose
from nncompress.compressions.products import Use
from nncompress.compressions.views import AsMatrix
from nncompress.errors import ConfigError


@dataclass(frozen=True)
class RankSelection(Factorisation):
    """C(Θ) = alpha positions (m + n) r, or with `capped` alpha positions min(r (m + n), m n): no more than dense.

    Π keeps the singular values s_i > sqrt(2 alpha positions (m + n) / mu), the best of all ranks and of equals the
    smallest; with `capped` it keeps the matrix itself where that is better still. r = 0 leaves Δ(Θ) = 0. With
    `round_to` Π keeps the runs of that many singular values (the last may be shorter) whose root mean square is above
    the threshold. It falls from run to run, so that they are the first ones, and the best.
    Raises ValueError for settings out of range.

    - alpha: the price of one number of a factor at one position, at least 0.
    - positions: how often each number is used, at least 1; 1, so that storage is priced.
    - capped: whether the price ends at that of the dense matrix; false, as in the paper.
    - round_to: ranks are its multiples, or full; 1, any rank.
    """

    exact: ClassVar[bool] = True
    alpha: float
    positions: int = 1
    capped: bool = False
    round_to: int = field(default=1, repr=False)  # told once for all layers

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_count("round_to", self.round_to)
        check_count("positions", self.positions)

    def project(self, w: Tensor, mu: float, start: Factors | None) -> Factors:
        return self.project_many([w], mu, [start])[0]

    def project_many(self, ws: Sequence[Tensor], mu: float, starts: Sequence[Factors | None]) -> list[Factors]:
        m, n = ws[0].shape
        svds = exact_svd(torch.stack(list(ws)), min(m, n))
        ranks = self._ranks(svds.s, mu, m, n).tolist()  # the one read from the device
        return [
            Factors(w.clone(), w.new_empty(0, n))
            if self.capped and r * (m + n) > m * n
            else split_evenly(SVD(U[:, :r], s[:r], V[:r]))
            for w, r, U, s, V in zip(ws, ranks, *svds, strict=True)
        ]

    def _ranks(self, s: Tensor, mu: float, m: int, n: int) -> Tensor:
        """Return the best rank for each row of singular values s (..., min(m, n)); dense counts as full rank.

        What exceeds the threshold by rounding errors alone is a tie.
        """
        price = self.alpha * self.positions
        rounding = 4 * torch.finfo(s.dtype).eps * s[..., :1]
        keep = self._runs(s) > math.sqrt(2 * price * (m + n) / mu) + rounding
        ranks = (self.round_to * keep.sum(-1)).clamp_max(min(m, n))
        if not self.capped:
            return ranks
        left = torch.arange(min(m, n), device=s.device) >= ranks[..., None]
        value = price * (m + n) * ranks + mu / 2 * (s.double().square() * left).sum(-1)
        return torch.where(price * m * n < value, min(m, n), ranks)

    def _runs(self, s: Tensor) -> Tensor:
        """Return root mean squares of runs of `round_to` singular values s (..., p); the last run is what is left."""
        runs = torch.split(s.double().square(), self.round_to, dim=-1)
        return torch.stack([run.mean(-1) for run in runs], dim=-1).sqrt().to(s.dtype)

    def penalty(self, theta: Factors) -> float | Tensor:
        return self.alpha * self.positions * numel(theta)


def rank_selection(
    weights: Tensors,
    *,
    alpha: float = 2e-4,
    criterion: Literal["storage", "flops"] = "storage",
    capped: bool = False,
    normalised: bool = False,
    scheme: int = 1,
    uses: Mapping[str, Use] | None = None,
    layers: Layers = "hidden",
    round_to: int = 1,
) -> Plan:
    """Price each weight's factors: alpha times their numbers ("storage") or multiply-accumulates ("flops").

    FLOPs are two for a multiply-accumulate: an alpha for FLOPs is half of ours. As in the paper, r (m + n) of them are
    counted at every position of the output, from `uses`; under scheme 2 with strides or borders `macs` has more.
    `normalised` multiplies the alpha of a layer by ‖W‖² of the given weights. The released code divides mu by ‖W‖² in
    the C step alone, so that its two steps minimise different functions; with the price scaled once and for all, both
    belong to the one problem min L(w) + alpha sum_l ‖W_l‖² C_l, mu unchanged.
    `scheme`: how a convolution is a matrix, 1 or 2 (`AsMatrix`). `round_to`: ranks are multiples of it, or full. Raises
    ConfigError for another criterion, and for "flops" without uses.
    """
    AsMatrix(scheme)  # refused even where no convolution would use it
    tasks = []
    for name in choose(weights, layers):
        w = weights[name].detach()
        price = alpha * float(torch.linalg.vector_norm(w, dtype=torch.float64)) ** 2 if normalised else alpha
        compression = RankSelection(price, _positions(criterion, uses, name), capped, round_to)
        tasks.append(Task((name,), matrix_view(w, scheme), compression))
    return Plan.of(tasks, weights)


def _positions(criterion: str, uses: Mapping[str, Use] | None, name: str) -> int:
    """Return what one number of a factor costs: 1 to store, the positions of the output to use."""
    if criterion == "storage":
        return 1
    if criterion != "flops":
        raise ConfigError(f"criterion must be storage or flops, found {criterion}")
    if not uses or name not in uses:
        raise ConfigError(f"criterion=flops needs the network's uses of {name}, found none; give uses or use storage")
    return uses[name].positions
