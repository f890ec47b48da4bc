"""Layers that hold Θ: by every way they are the dense layer, in values, in gradients, in half precision, as copies."""

import copy
from typing import Any

import pytest
import torch
from cases import case
from compact_cases import (
    DENSE_ONLY,
    OF_CONV,
    OF_LINEAR,
    by_class,
    conv,
    fc,
    pair_of,
    ways_of,
)
from problems import F64, randn
from torch import Tensor, nn

from nncompress.compressions.decomposition.cp import CP
from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.decomposition.tt_matrix import TTMatrix
from nncompress.compressions.quantization.codebook import Codebook
from nncompress.compressions.sparsity.magnitude import L0
from nncompress.compressions.views import AsMatrix
from nncompress.surgery.compact_layers import CACHED, RECONSTRUCT, WAYS, CompactConv2d, CompactLayer, CompactLinear

pytestmark = pytest.mark.usefixtures("quick")
SMOOTH = [pair for pair in OF_LINEAR if pair not in DENSE_ONLY]


def check_ways(dense: nn.Module, compact: CompactLayer, x: Tensor) -> None:
    """Every way, the chosen one, and the one with gradients."""
    before, expected = x.clone(), dense(x).detach()
    assert compact.use(x).positions * expected.shape[1 if dense.weight.dim() == 4 else -1] * len(x) == expected.numel()
    for way in ways_of(compact):
        for _ in range(2):
            found = compact.compute(x, way)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        chosen = compact(x)
    torch.testing.assert_close(chosen, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compact(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)
    torch.testing.assert_close(compact.weight, dense.weight, rtol=1e-14, atol=1e-15)


def check_weight(dense: nn.Module, compact: CompactLayer) -> None:
    """Bit for bit where no gradients are taken: torch multiplies tensors that need them in other shapes."""
    assert torch.equal(copy.deepcopy(compact).requires_grad_(False).weight, dense.weight)


def check_alone(dense: nn.Module, compact: CompactLayer, x: Tensor) -> None:
    """Without and with gradients."""
    for keep in (False, True):
        with torch.set_grad_enabled(keep):
            torch.testing.assert_close(compact(x), dense(x), rtol=1e-10, atol=1e-10)


# The same as the dense layer.


GEOMETRIES: list[dict[str, Any]] = [
    {}, {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}, {"padding": "same"}, {"padding": "same", "dilation": 2},
    {"padding": "valid", "stride": 3}, {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "circular"}, {"padding": 1, "padding_mode": "replicate"},
]  # fmt: skip
MANY_GEOMETRIES = (LowRank(3), Codebook(3), L0(0.2), TTMatrix(3, (3, 2), (12, 4)), CP(4))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("on_linear", "on_conv"), by_class())
def test_every_way_gives_what_the_dense_weight_gives(on_linear, on_conv):
    for pair in on_linear:
        for bias in (False, True):
            with case(pair=pair, bias=bias):
                check_linear(*pair_of(fc(bias), *pair), bias)
    for pair in on_conv:
        for geometry in GEOMETRIES if pair[0] in MANY_GEOMETRIES else GEOMETRIES[:2]:
            with case(pair=pair, geometry=geometry):
                check_conv(*pair_of(conv(bool(geometry), **geometry), *pair), (1, 3) if geometry else (1, 3, 17))


def check_linear(dense: nn.Module, compact: CompactLayer, bias: bool) -> None:
    assert isinstance(compact, CompactLinear)
    check_weight(dense, compact)
    assert (compact.bias is not None) is (dense.bias is not None) is bias
    for lead in ((1,), (3,), (17,), (2, 5), (3, 1, 2)) if bias else ((3,), (2, 5)):
        check_ways(dense, compact, randn(*lead, 20))
    for x in (randn(20), randn(0, 20), randn(0, 4, 20), randn(4, 0, 20)):
        check_alone(dense, compact, x)
    check_ways(dense, compact, randn(5, 20).T.contiguous().T)


def check_conv(dense: nn.Module, compact: CompactLayer, samples: tuple[int, ...]) -> None:
    assert isinstance(compact, CompactConv2d)
    check_weight(dense, compact)
    for n in samples:
        check_ways(dense, compact, randn(n, 8, 7, 6))
    check_alone(dense, compact, randn(0, 8, 7, 6))
    check_ways(dense, compact, randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last))


def test_a_compact_layer_says_what_networks_ask_of_the_one_it_stands_for():
    dense, compact = pair_of(fc(), LowRank(2), AsMatrix())
    assert (compact.in_features, compact.out_features) == (20, 12)
    assert compact.weight.shape == dense.weight.shape
    assert "12 x 20, LowRank(rank=2), ways=chain, reconstruct, cached" in repr(compact)
    dense, compact = pair_of(conv(stride=2, padding=1), LowRank(2), AsMatrix())
    for field in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(compact, field) == getattr(dense, field)


# Gradients and half precision.


def test_gradients_are_those_of_the_dense_layer():
    for pair in OF_LINEAR:
        with case(pair=pair):
            dense, layer = pair_of(fc(), *pair)
            for lead in ((3,), (2, 4)):
                check_gradients(dense, layer, randn(*lead, 20))
    for pair in OF_CONV:
        with case(pair=pair, layer="convolution"):
            check_gradients(*pair_of(conv(stride=2, padding=1), *pair), randn(2, 8, 6, 5))


def check_gradients(dense: nn.Module, layer: CompactLayer, x: Tensor) -> None:
    """With respect to x, the bias and what is free of Θ; what an evaluation kept before is not in the way."""
    with torch.no_grad():
        layer(x)
        for way in ways_of(layer):
            layer.compute(x, way)
    given = x.clone().requires_grad_()
    free = [tensor for tensor in layer.theta.free if tensor.numel()]
    weight = layer.weight
    (expected_x, expected_bias, by_weight) = torch.autograd.grad(
        dense(given).square().sum(), (given, dense.bias, dense.weight)
    )
    expected = torch.autograd.grad(weight, free, by_weight) if free else ()
    found = torch.autograd.grad(layer(given).square().sum(), (given, layer.bias, *free))
    torch.testing.assert_close(found, (expected_x, expected_bias, *expected), rtol=1e-9, atol=1e-9)
    if free:
        found = torch.autograd.grad(layer(x).square().sum(), (layer.bias, *free))  # x itself needs none
        torch.testing.assert_close(found, (expected_bias, *expected), rtol=1e-9, atol=1e-9)


def test_in_half_precision_and_under_autocast_a_layer_works():
    for pair in OF_LINEAR:
        with case(pair=pair):
            check_half(*pair_of(fc(), *pair), randn(5, 20))
    for pair in OF_CONV:
        with case(pair=pair, layer="convolution"):
            check_half(*pair_of(conv(padding=1), *pair), randn(2, 8, 6, 5))


def check_half(dense: nn.Module, layer: CompactLayer, x: Tensor) -> None:
    """By every way there then is, and as it chooses itself."""
    expected = dense(x).detach()
    dense, layer, x = dense.float(), layer.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            found = [layer.compute(given, way) for way in ways_of(layer)] + [layer(given)]
            with torch.no_grad():
                found.append(layer(given))
            for y in found:
                torch.testing.assert_close(y.to(F64), expected, rtol=0.05, atol=0.2)
    layer, x = layer.bfloat16(), x.bfloat16()
    with torch.no_grad():
        for y in (layer(x), *(layer.compute(x, way) for way in ways_of(layer))):
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.to(F64), expected, rtol=0.05, atol=0.2)


def test_in_inference_mode_a_layer_works_and_nothing_made_there_spoils_gradients():
    for compression, view in SMOOTH:
        with torch.inference_mode():
            dense, layer = pair_of(fc(), compression, view)
            torch.testing.assert_close(layer(randn(3, 20)), dense(randn(3, 20)))
            torch.testing.assert_close(layer(randn(3, 20)), dense(randn(3, 20)))
        dense, layer = pair_of(fc(), compression, view)
        with torch.inference_mode():
            for way in ways_of(layer):
                torch.testing.assert_close(layer.compute(randn(3, 20), way), dense(randn(3, 20)))
        layer.theta.requires_grad_(False)
        x = randn(3, 20).requires_grad_()
        product = layer.product()
        for way in WAYS if product is not None and product.plain else (RECONSTRUCT, CACHED):
            found = torch.autograd.grad(layer.compute(x, way).square().sum(), x)
            torch.testing.assert_close(found, torch.autograd.grad(dense(x).square().sum(), x))
