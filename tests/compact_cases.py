"""Layers and networks that hold Θ beside the dense ones of the same weights; the (compression, view) there are."""

import copy
from typing import Any

import pytest
import torch
from problems import F64, randn
from product_cases import KERNEL, MATRIX, ON_KERNELS, ON_MATRICES
from torch import nn

from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition.low_rank import LowRank, low_rank
from nncompress.compressions.plan import Plan
from nncompress.compressions.quantization.codebook import Codebook, codebook
from nncompress.compressions.quantization.fixed import FixedCodebook, ScaledBinary, ScaledTernary
from nncompress.compressions.quantization.uniform import LowPrecision, Uniform
from nncompress.compressions.sparsity.magnitude import L1, L1Penalty, l0
from nncompress.compressions.sparsity.nonconvex import LHalfPenalty
from nncompress.compressions.sparsity.structured import NM
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector, View
from nncompress.problem import weights_of
from nncompress.surgery.compact_layers import CACHED, RECONSTRUCT, WAYS, CompactLayer, compact_layer
from nncompress.surgery.theta import HeldTheta

DENSE_ONLY = [
    (Codebook(3), AsVector()), (Codebook(2, per_channel=True), AsMatrix()), (FixedCodebook((-0.3, 0.3)), AsVector()),
    (ScaledBinary(), AsMatrix()), (ScaledTernary(per_channel=True), AsMatrix()), (Uniform(4), AsVector()),
    (Uniform(3, symmetric=False, per_channel=True), AsMatrix()), (LowPrecision("float16"), AsVector()),
    (LowPrecision("float8_e4m3fn"), AsVector()),
]  # fmt: skip
SPARSE = [(L1(2.0), AsVector()), (L1Penalty(0.3), AsVector()), (LHalfPenalty(0.2), AsVector())]
OF_LINEAR = [
    *[p.values for p in ON_MATRICES], *DENSE_ONLY, *SPARSE, (NM(2, 4), AsTensor(MATRIX)), (LowRank(12), AsMatrix()),
]  # fmt: skip
OF_CONV = [*[p.values for p in ON_KERNELS], *DENSE_ONLY, *SPARSE, (NM(2, 4), AsTensor(KERNEL))]


def by_class() -> list[Any]:
    """Of each class the pairs on a linear layer and those on a convolution, for tests with one item a class."""
    kinds = dict.fromkeys(type(compression) for compression, _ in (*OF_LINEAR, *OF_CONV))
    return [
        pytest.param(*([p for p in pairs if type(p[0]) is kind] for pairs in (OF_LINEAR, OF_CONV)), id=kind.__name__)
        for kind in kinds
    ]


def pair_of(
    dense: nn.Module, compression: Compression[Any], view: View, ways: Any = WAYS
) -> tuple[nn.Module, CompactLayer]:
    """A layer whose weight is Δ(Π(w)), and the compact one of the same bias."""
    dense = dense.to(F64)
    theta = compression.compress(view.join([randn(*dense.weight.shape)]))
    with torch.no_grad():
        dense.weight.copy_(view.split(compression.decompress(theta), [dense.weight.shape])[0])
    return dense, compact_layer(copy.deepcopy(dense), view, HeldTheta(compression, theta), ways=ways)


def fc(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(20, 12, bias=bias)


def conv(bias: bool = True, **geometry: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 6, (3, 2), bias=bias, **geometry)


def ways_of(layer: CompactLayer) -> list[str]:
    """The ways it can take."""
    return list(WAYS) if layer.product() is not None else [RECONSTRUCT, CACHED]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).to(F64)


def held(plan: Plan, network: nn.Module) -> list[HeldTheta]:
    theta = plan.compress(plan.select(weights_of(network)))
    return [HeldTheta(task.compression, t) for task, t in zip(plan.tasks, theta, strict=True)]


def dense_of(network: nn.Module, plan: Plan, thetas: list[HeldTheta]) -> nn.Module:
    """The network with the weights Δ(Θ)."""
    dense = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in plan.decompress([theta.value for theta in thetas]).items():
            dense.get_parameter(name).copy_(weight)
    return dense


RECIPES = [(low_rank, {"rank": 2}), (l0, {"keep": 0.3}), (codebook, {"K": 3})]
