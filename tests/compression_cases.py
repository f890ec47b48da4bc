"""Every compression, as the contract suite takes it: (compression, shape of w, whether Π is exact)."""

from itertools import groupby
from typing import NamedTuple

import pytest

from nncompress.compressions.additive import Additive, Part
from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition.cp import CP
from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.decomposition.rank_selection import RankSelection
from nncompress.compressions.decomposition.tensor_train import TensorTrain
from nncompress.compressions.decomposition.tt_matrix import TTMatrix
from nncompress.compressions.decomposition.tucker import Tucker
from nncompress.compressions.quantization.codebook import Codebook
from nncompress.compressions.quantization.fixed import FixedCodebook, ScaledBinary, ScaledCodebook, ScaledTernary
from nncompress.compressions.quantization.uniform import LowPrecision, Uniform
from nncompress.compressions.sparsity.magnitude import L0, L1, L0Penalty, L1Penalty
from nncompress.compressions.sparsity.nonconvex import LHalfPenalty, TransformedL1Penalty
from nncompress.compressions.sparsity.structured import NM, GroupL0
from nncompress.compressions.views import AsMatrix, AsVector

CASES = [
    pytest.param(TensorTrain(3), (4, 3, 5, 2), False, id="tt"),
    pytest.param(TensorTrain(100), (4, 3, 5), False, id="tt-full"),
    pytest.param(TensorTrain(2, als=2), (4, 3, 5, 2), False, id="tt-als"),
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
    pytest.param(LHalfPenalty(0.4), (5, 4), True, id="l-half-penalty"),
    pytest.param(TransformedL1Penalty(0.4), (5, 4), True, id="transformed-l1-penalty"),
    pytest.param(TransformedL1Penalty(0.4, 5.0), (20,), True, id="transformed-l1-penalty-without-a-jump"),
    pytest.param(GroupL0(0.5, ((4, 3), (6, 2))), (24,), True, id="group-l0-joint"),
    pytest.param(GroupL0(2, ((5, 4),)), (20,), True, id="group-l0"),
    pytest.param(NM(2, 4), (3, 8), True, id="n-m"),
    pytest.param(NM(1, 3), (2, 7, 2, 1), True, id="n-m-of-a-convolution"),
    pytest.param(LowRank(2), (7, 5), True, id="low-rank"),
    pytest.param(LowRank(9), (3, 8), True, id="low-rank-full"),
    pytest.param(LowRank(1), (1, 6), True, id="low-rank-of-a-row"),
    pytest.param(RankSelection(0.05), (6, 7), True, id="rank-selection"),
    pytest.param(RankSelection(0.3, positions=4), (9, 4), True, id="rank-selection-at-positions"),
    pytest.param(RankSelection(100.0), (4, 5), True, id="rank-selection-nothing"),
    pytest.param(RankSelection(0.05, capped=True), (6, 7), True, id="rank-selection-capped"),
    pytest.param(TTMatrix(3, (2, 3, 2), (3, 2, 2)), (12, 12), False, id="tt-matrix"),
    pytest.param(TTMatrix(100, (4, 5), (3, 2)), (20, 6), False, id="tt-matrix-full"),
    pytest.param(TTMatrix(2, (2, 3), (4, 1)), (6, 4), True, id="tt-matrix-of-two-cores"),
    pytest.param(TTMatrix(1, (6,), (4,)), (6, 4), True, id="tt-matrix-of-one-core"),
    pytest.param(Tucker(2), (4, 3, 5, 2), False, id="tucker"),
    pytest.param(Tucker((3, 2, 3, 3)), (6, 5, 3, 3), False, id="tucker-2"),
    pytest.param(Tucker((3, 6, 2)), (5, 6, 2), True, id="tucker-of-one-mode"),
    pytest.param(Tucker(9), (4, 3, 5), True, id="tucker-full"),
    pytest.param(Tucker(3), (6, 7), True, id="tucker-of-a-matrix"),
    pytest.param(Tucker((2,)), (5,), True, id="tucker-of-a-vector"),
    pytest.param(CP(1), (4, 3, 5), False, id="cp-of-one-term"),
    pytest.param(CP(2), (4, 3, 5, 2), False, id="cp"),
    pytest.param(CP(3), (6, 7), True, id="cp-of-a-matrix"),
    pytest.param(CP(9), (5,), True, id="cp-of-a-vector"),
    pytest.param(Codebook(3), (5, 4), True, id="codebook"),
    pytest.param(Codebook(1), (7,), True, id="codebook-of-one"),
    pytest.param(Codebook(30), (12,), True, id="codebook-of-all"),
    pytest.param(Codebook(2, per_channel=True), (3, 9), True, id="codebook-per-channel"),
    pytest.param(FixedCodebook((-1.0, 0.25, 2.0)), (5, 4), True, id="fixed-codebook"),
    pytest.param(FixedCodebook((-1.0, 1.0)), (9,), True, id="binary"),
    pytest.param(ScaledBinary(), (5, 4), True, id="scaled-binary"),
    pytest.param(ScaledBinary(per_channel=True), (5, 4), True, id="scaled-binary-per-channel"),
    pytest.param(ScaledTernary(), (5, 4), True, id="scaled-ternary"),
    pytest.param(ScaledTernary(per_channel=True), (3, 2, 2, 3), True, id="scaled-ternary-per-channel"),
    pytest.param(ScaledCodebook((-2.0, -1.0, 0.0, 1.0, 2.0)), (5, 4), True, id="scaled-codebook"),
    pytest.param(ScaledCodebook((0.0, 1.0, 2.0), per_channel=True), (3, 8), True, id="scaled-codebook-one-sided"),
    pytest.param(Uniform(3), (5, 4), False, id="uniform"),
    pytest.param(Uniform(1), (5, 4), True, id="uniform-one-bit"),
    pytest.param(Uniform(4, symmetric=False, per_channel=True), (3, 9), False, id="uniform-affine-per-channel"),
    pytest.param(LowPrecision("float16"), (5, 4), True, id="float16"),
    pytest.param(LowPrecision("float8_e4m3fn"), (5, 4), True, id="float8"),
    pytest.param(
        Additive((Part(AsVector(), L0(3)), Part(AsVector(), Codebook(2))), ((5, 4),)),
        (20,),
        False,
        id="additive-codebook",
    ),
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


class Case(NamedTuple):
    """One setting of a class."""

    name: str
    compression: Compression
    shape: tuple[int, ...]
    exact: bool


def by_class() -> list:
    """All settings of a class together, for tests with one item a class."""
    groups = groupby(CASES, key=lambda param: type(param.values[0]))
    return [pytest.param([Case(p.id, *p.values) for p in params], id=kind.__name__) for kind, params in groups]


CLASSES = by_class()
