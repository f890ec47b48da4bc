"""TT-matrix: W(i_1 ... i_d, j_1 ... j_d) = G_1[i_1, j_1] G_2[i_2, j_2] ... G_d[i_d, j_d] with ranks of at most `rank`.

Novikov, Podoprikhin, Osokin and Vetrov, "Tensorizing neural networks", NIPS 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from nncompress.compressions.base import Factorised, ThetaSize, check_count
from nncompress.compressions.decomposition.modes import Modes, balanced_factors, given_modes, rank_clipped
from nncompress.compressions.decomposition.tensor_train import Cores, largest_tt_rank, train_size, tt_project
from nncompress.compressions.decomposition.train_products import tt_matrix_product
from nncompress.compressions.decomposition.trains import tt_to_tensor
from nncompress.compressions.plan import Layers, Plan, Task, Tensors, choose
from nncompress.compressions.products import Product
from nncompress.compressions.target import round_up
from nncompress.compressions.views import AsMatrix
from nncompress.errors import ConfigError


@dataclass(frozen=True)
class TTMatrix(Factorised[Cores]):
    """Matrices (m_1 ... m_d) x (n_1 ... n_d) whose tensor of modes m_k n_k has TT ranks of at most `rank`.

    Every core belongs to a factor m_k of the rows and n_k of the columns; Π is the TT-SVD of the tensor of pairs, at
    most sqrt(d-1) times the best error, and never worse than `start`. Core k is r_{k-1} x m_k n_k x r_k.
    Raises ValueError for settings out of range.

    - rank: the largest TT rank, at least 1.
    - row_modes, column_modes: the m_k and the n_k, positive and equally many.
    """

    exact: ClassVar[bool] = False
    rank: int
    row_modes: tuple[int, ...]
    column_modes: tuple[int, ...]

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        if not 0 < len(self.row_modes) == len(self.column_modes):
            raise ValueError(
                f"row_modes and column_modes must be equally many, found {list(self.row_modes)} and "
                f"{list(self.column_modes)}; pad the shorter with ones"
            )
        for modes in (self.row_modes, self.column_modes):
            if min(modes) < 1:
                raise ValueError(f"modes must be at least 1, found {list(modes)}")

    def project(self, w: Tensor, mu: float, start: Cores | None) -> Cores:
        order = [axis for pair in enumerate(range(self._pairs, 2 * self._pairs)) for axis in pair]
        paired = w.reshape(*self.row_modes, *self.column_modes).permute(order)  # m_1, n_1, ..., m_d, n_d
        return tt_project(paired.reshape(self._modes), self.rank, start)

    def decompress(self, theta: Cores) -> Tensor:
        sizes = [size for pair in zip(self.row_modes, self.column_modes, strict=True) for size in pair]
        paired = tt_to_tensor(theta.cores).reshape(sizes)
        rows, columns = range(0, 2 * self._pairs, 2), range(1, 2 * self._pairs, 2)
        return paired.permute(*rows, *columns).reshape(math.prod(self.row_modes), math.prod(self.column_modes))

    def product(self, theta: Cores, shape: Sequence[int]) -> Product | None:
        return tt_matrix_product(theta.cores, self.row_modes, self.column_modes, shape)

    def size(self, shape: Sequence[int]) -> ThetaSize:
        return train_size(self._modes, self.rank)

    def with_rounded_rank(self, round_to: int) -> TTMatrix:
        """Return the same with a rank rounded up to a multiple of `round_to`, at most to the largest there is."""
        return replace(self, rank=round_up(self.rank, round_to, largest_tt_rank(self._modes)))

    def check(self, shape: Sequence[int]) -> None:
        rows, columns = math.prod(self.row_modes), math.prod(self.column_modes)
        if tuple(shape) != (rows, columns):
            raise ValueError(
                f"row_modes must multiply to {shape[0]} and column_modes to {math.prod(shape[1:])}, found "
                f"{list(self.row_modes)} = {rows} and {list(self.column_modes)} = {columns}; give modes with these "
                f"products, or null for balanced ones"
            )

    def clipped(self, shape: Sequence[int]) -> str | None:
        return rank_clipped(self.rank, largest_tt_rank(self._modes), self._modes)

    @property
    def _pairs(self) -> int:
        return len(self.row_modes)

    @property
    def _modes(self) -> tuple[int, ...]:
        return tuple(m * n for m, n in zip(self.row_modes, self.column_modes, strict=True))


def tt_matrix(
    weights: Tensors,
    *,
    rank: int = 16,
    row_modes: Modes = None,
    column_modes: Modes = None,
    layers: Layers = "hidden",
    round_to: int = 1,
) -> Plan:
    """Compress each chosen weight, (outputs) x (everything else), by a TT-matrix of rank `rank`.

    `row_modes`, `column_modes`: by default balanced factors. `round_to`: the rank is rounded up to a multiple of it;
    bonds that allow less have all they allow.
    """
    names = choose(weights, layers)
    rows, columns = given_modes(names, row_modes, "row_modes"), given_modes(names, column_modes, "column_modes")
    tasks = []
    for name in names:
        pair = _paired_modes(weights[name].shape, rows.get(name), columns.get(name))
        try:
            tasks.append(Task((name,), AsMatrix(), TTMatrix(rank, *pair).with_rounded_rank(round_to)))
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    return Plan.of(tasks, weights)


def _paired_modes(
    shape: Sequence[int], rows: tuple[int, ...] | None, columns: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return row and column modes; those not given are balanced factors, as many as the given ones or of about 4.

    Row modes ascend, column modes descend, so that the pairs m_k n_k are about equal.
    """
    height, width = shape[0], math.prod(shape[1:])
    count = len(rows or columns or ()) or max(1, round(math.log(max(height, width), 4)))
    factors = balanced_factors(height, count), balanced_factors(width, count)
    padded = [(*[1] * (count - len(own)), *own) for own in factors]
    return rows or padded[0], columns or padded[1][::-1]
