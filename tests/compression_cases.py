"""Every compression, as the contract suite takes it: (compression, shape of w, whether Π is exact)."""

import pytest

from nncompress.compressions.additive import Additive, Part
from nncompress.compressions.sparsity import L0, L1, L0Penalty, L1Penalty
from nncompress.compressions.structured import NM, GroupL0
from nncompress.compressions.tensor_train import TensorTrain
from nncompress.compressions.views import AsMatrix, AsVector

CASES = [
    pytest.param(TensorTrain(3), (4, 3, 5, 2), False, id="tt"),
    pytest.param(TensorTrain(100), (4, 3, 5), False, id="tt-full"),
    pytest.param(TensorTrain(2), (6, 7), True, id="tt-of-a-matrix"),
    pytest.param(TensorTrain(1), (5,), True, id="tt-of-a-vector"),
    pytest.param(L0(0.3), (5, 4), True, id="l0-fraction"),
    pytest.param(L0(7), (20,), True, id="l0-count"),
    pytest.param(L0(0), (6,), True, id="l0-nothing"),
    pytest.param(L0(1.0), (6,), True, id="l0-all"),
    pytest.param(L1(2.5), (5, 4), True, id="l1"),
    pytest.param(L1(100.0), (7,), True, id="l1-inside"),
    pytest.param(L0Penalty(0.4), (5, 4), True, id="l0-penalty"),
    pytest.param(L1Penalty(0.4), (5, 4), True, id="l1-penalty"),
    pytest.param(GroupL0(0.5, ((4, 3), (6, 2))), (24,), True, id="group-l0-joint"),
    pytest.param(GroupL0(2, ((5, 4),)), (20,), True, id="group-l0"),
    pytest.param(NM(2, 4), (3, 8), True, id="n-m"),
    pytest.param(NM(1, 3), (2, 7, 2, 1), True, id="n-m-of-a-convolution"),
    pytest.param(
        Additive((Part(AsVector(), L0(3)), Part(AsMatrix(), TensorTrain(1))), ((5, 4),)), (20,), False, id="additive"
    ),
    pytest.param(
        Additive((Part(AsVector(), L1Penalty(0.3)), Part(AsVector(), L0(4))), ((3, 4), (2, 4)), passes=3),
        (20,),
        False,
        id="additive-joint-penalty",
    ),
]
