"""Compressions that have a product with x, on a matrix and on a kernel: (compression, its view of the weight)."""

from typing import Any

import pytest

from nncompress.compressions.additive import Additive, Part
from nncompress.compressions.decomposition.cp import CP
from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.decomposition.rank_selection import RankSelection
from nncompress.compressions.decomposition.tensor_train import TensorTrain
from nncompress.compressions.decomposition.tt_matrix import TTMatrix
from nncompress.compressions.decomposition.tucker import Tucker
from nncompress.compressions.sparsity.magnitude import L0
from nncompress.compressions.sparsity.structured import GroupL0
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector

MATRIX, KERNEL = (12, 20), (6, 8, 3, 2)
ON_MATRICES: list[Any] = [
    pytest.param(TensorTrain(3), AsTensor((3, 4, 5, 4)), id="tt"),
    pytest.param(TensorTrain(5), AsTensor((2, 2, 3, 5, 2, 2)), id="tt-of-six-cores"),
    pytest.param(TensorTrain(1), AsTensor((12, 20)), id="tt-of-two-cores"),
    pytest.param(TensorTrain(1), AsTensor((3, 4, 20)), id="tt-of-rank-one"),
    pytest.param(TTMatrix(3, (3, 2, 2), (2, 2, 5)), AsMatrix(), id="tt-matrix"),
    pytest.param(TTMatrix(3, (2, 2, 3), (5, 4, 1)), AsMatrix(), id="tt-matrix-from-the-other-end"),
    pytest.param(TTMatrix(2, (2, 1, 2, 3), (5, 2, 2, 1)), AsMatrix(), id="tt-matrix-of-four-cores"),
    pytest.param(Tucker(2), AsTensor((3, 4, 5, 4)), id="tucker"),
    pytest.param(Tucker((2, 4, 5, 3)), AsTensor((3, 4, 5, 4)), id="tucker-with-whole-modes"),
    pytest.param(CP(3), AsTensor((3, 4, 5, 4)), id="cp"),
    pytest.param(CP(2), AsTensor((12, 20)), id="cp-of-a-matrix"),
    pytest.param(LowRank(3), AsMatrix(), id="low-rank"),
    pytest.param(RankSelection(100.0), AsMatrix(), id="rank-selection-nothing"),
    pytest.param(GroupL0(0.5, ((12, 20),)), AsVector(), id="group-l0"),
    pytest.param(L0(0.2), AsVector(), id="l0"),
    pytest.param(L0(0), AsVector(), id="l0-nothing"),
    pytest.param(
        Additive((Part(AsVector(), L0(9)), Part(AsMatrix(), LowRank(2))), (MATRIX,)), AsVector(), id="additive"
    ),
]  # fmt: skip
ON_KERNELS: list[Any] = [
    pytest.param(TensorTrain(3), AsTensor((2, 3, 4, 2, 6)), id="tt"),
    pytest.param(TTMatrix(3, (3, 2), (12, 4)), AsMatrix(), id="tt-matrix"),
    pytest.param(Tucker((3, 4, 3, 2)), AsTensor(KERNEL), id="tucker"),
    pytest.param(Tucker((3, 4, 2, 1)), AsTensor(KERNEL), id="tucker-of-all-modes"),
    pytest.param(Tucker((6, 4, 3, 2)), AsTensor(KERNEL), id="tucker-of-the-inputs"),
    pytest.param(Tucker(2), AsTensor((2, 3, 8, 6)), id="tucker-of-other-modes"),
    pytest.param(CP(4), AsTensor(KERNEL), id="cp"),
    pytest.param(CP(3), AsTensor((2, 3, 8, 6)), id="cp-of-other-modes"),
    pytest.param(LowRank(3), AsMatrix(), id="low-rank"),
    pytest.param(LowRank(3), AsMatrix(2), id="low-rank-scheme-2"),
    pytest.param(GroupL0(3, ((6, 48),)), AsVector(), id="group-l0"),
    pytest.param(L0(0.2), AsVector(), id="l0"),
    pytest.param(
        Additive((Part(AsVector(), L0(9)), Part(AsMatrix(2), LowRank(2))), (KERNEL,)), AsVector(), id="additive"
    ),
]  # fmt: skip
