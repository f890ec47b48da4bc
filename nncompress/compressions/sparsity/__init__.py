"""Sparse weights: projections and penalties, entry by entry or in groups."""

from nncompress.compressions.sparsity.magnitude import (
    L0,
    L1,
    L0Penalty,
    L1Penalty,
    SeparablePenalty,
    Sparse,
    Sparsity,
    l0,
    l0_penalty,
    l1,
    l1_penalty,
)  # fmt: skip
from nncompress.compressions.sparsity.nonconvex import (
    LHalfPenalty,
    TransformedL1Penalty,
    l_half_penalty,
    transformed_l1_penalty,
)  # fmt: skip
from nncompress.compressions.sparsity.structured import NM, GroupL0, KeptEntries, Rows, group_l0, n_m

__all__ = [
    "L0", "L1", "NM", "GroupL0", "KeptEntries", "L0Penalty", "L1Penalty", "LHalfPenalty", "Rows",
    "SeparablePenalty", "Sparse", "Sparsity", "TransformedL1Penalty", "group_l0", "l0", "l0_penalty", "l1",
    "l1_penalty", "l_half_penalty", "n_m", "transformed_l1_penalty",
]  # fmt: skip
