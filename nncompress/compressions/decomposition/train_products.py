"""Trains as products: their cores merged into blocks, so that contracting with x takes the fewest operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from nncompress.compressions.decomposition.modes import row_modes
from nncompress.compressions.products import Linears, PairedTrain, Product, on_patches, two_factors


def tt_product(cores: Sequence[Tensor], shape: Sequence[int]) -> Product | None:
    """Return W x for a train read row-major as (shape[0]) x (all else); None when no bond separates rows from columns.

    x is contracted with the columns from the last to the first, the result with the rows from the last to the first. A
    convolution has two blocks: they are one to as many channels as the rank of the bond and a 1x1 one.
    """
    bond = row_modes([core.shape[1] for core in cores], shape[0])
    if bond is None or bond in (0, len(cores)):
        return None
    if len(shape) > 2:
        return two_factors(merge_cores(cores[:bond])[0], merge_cores(cores[bond:])[..., 0], shape)
    columns, rows = _blocks(cores[bond:], of_rows=False)[::-1], _blocks(cores[:bond], of_rows=True)[::-1]
    contract = [block.reshape(len(block), -1) for block in columns]
    make = [block.transpose(0, 1).reshape(-1, block.shape[2]) for block in rows]
    return Linears((*contract, *make), tuple(block.shape[1] for block in rows) if len(rows) > 1 else ())


def _blocks(cores: Sequence[Tensor], *, of_rows: bool) -> list[Tensor]:
    """Merge the cores of the rows or of the columns of a matrix into the cheapest blocks.

    When the columns of cores a to b are contracted, n_1 ... n_b are left; when rows are made, n_a ... n_d are there.
    Each of these entries meets r_{a-1} r_b numbers.
    """
    sizes = [core.shape[1] for core in cores]

    def cost(a: int, b: int) -> int:
        return math.prod(sizes[a:] if of_rows else sizes[: b + 1]) * cores[a].shape[0] * cores[b].shape[2]

    return [merge_cores(cores[a:b]) for a, b in cheapest_cut(len(cores), cost)[1]]


def tt_matrix_product(
    cores: Sequence[Tensor], row_modes: Sequence[int], column_modes: Sequence[int], shape: Sequence[int]
) -> Product | None:
    """Return W x for a TT-matrix, from its cheaper end, in at least two blocks; None for a single core, which is W."""
    if math.prod(row_modes) != shape[0] or math.prod(column_modes) != math.prod(shape[1:]) or len(cores) < 2:
        return None
    count = len(cores)
    whole = [core.reshape(len(core), m, n, -1) for core, m, n in zip(cores, row_modes, column_modes, strict=True)]
    least, cut = _paired_cut(whole)
    least_turned, cut_turned = _paired_cut([_turn(core) for core in reversed(whole)])
    flipped = least_turned < least
    if flipped:
        blocks = [_turn(_merge_pairs(whole[count - b : count - a])) for a, b in reversed(cut_turned)]
    else:
        blocks = [_merge_pairs(whole[a:b]) for a, b in reversed(cut)]
    weights = tuple(block.permute(1, 0, 2, 3).reshape(block.shape[1] * len(block), -1) for block in blocks)
    rows, columns = tuple(block.shape[1] for block in blocks), tuple(block.shape[2] for block in blocks)
    return on_patches(PairedTrain(weights, rows, columns, flipped), shape)


def _turn(core: Tensor) -> Tensor:
    """Turn a core r x m x n x r' into that of the train whose cores stand in reverse order."""
    return core.permute(3, 1, 2, 0)


def _paired_cut(cores: Sequence[Tensor]) -> tuple[float, list[tuple[int, int]]]:
    """Return the cheapest blocks of cores r_{k-1} x m_k x n_k x r_k, from the last to the first, and their operations.

    When the blocks behind b are done, m_{b+1} ... m_d and n_1 ... n_b are there; of n_a ... n_b come m_a ... m_b.
    """
    m, n = [core.shape[1] for core in cores], [core.shape[2] for core in cores]

    def cost(a: int, b: int) -> float:
        if b - a + 1 == len(cores):  # the weight itself
            return math.inf
        return math.prod(m[a:]) * math.prod(n[: b + 1]) * cores[a].shape[0] * cores[b].shape[3]

    return cheapest_cut(len(cores), cost)


def cheapest_cut(count: int, cost: Callable[[int, int], float]) -> tuple[float, list[tuple[int, int]]]:
    """Return the sum and the bounds (first, last + 1) of the blocks of `count` cores that cost the least together.

    cost: of one block from its first to its last core. The best cut up to a core is found for every core in turn.
    """
    best: list[tuple[float, int]] = [(0, 0)]
    for b in range(count):
        best.append(min((best[a][0] + cost(a, b), a) for a in range(b + 1)))
    bounds, end = [], count
    while end > 0:
        bounds.append((best[end][1], end))
        end = best[end][1]
    return best[count][0], bounds[::-1]


def merge_cores(cores: Sequence[Tensor]) -> Tensor:
    """Merge neighbouring cores into one, r_{a-1} x n_a ... n_b x r_b."""
    product = cores[0]
    for core in cores[1:]:
        product = (product @ core.reshape(len(core), -1)).reshape(len(product), -1, core.shape[2])
    return product


def _merge_pairs(cores: Sequence[Tensor]) -> Tensor:
    """Merge neighbouring cores r x m x n x r' into one, r_{a-1} x (m_a ... m_b) x (n_a ... n_b) x r_b."""
    product = cores[0]
    for core in cores[1:]:
        left, m, n, _ = product.shape
        paired = (product.reshape(left * m * n, -1) @ core.reshape(len(core), -1)).reshape(left, m, n, *core.shape[1:])
        product = paired.transpose(2, 3).reshape(left, m * core.shape[1], n * core.shape[2], -1)
    return product
