"""Low rank: against LAPACK, brute force and by hand; its operations; the recipe."""

import itertools
import math

import pytest
import torch
from cases import case
from matrices import best, norm, projected, with_spectrum
from problems import F64, randn
from torch import nn

from nncompress.compressions.decomposition.low_rank import Factors, LowRank, energy_rank, low_rank
from nncompress.compressions.decomposition.rank_selection import RankSelection, rank_selection
from nncompress.compressions.plan import Plan, Task
from nncompress.compressions.products import Use
from nncompress.compressions.views import AsMatrix, AsVector
from nncompress.errors import ConfigError

LENET300 = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}


def test_low_rank_is_the_truncated_singular_value_decomposition():
    for shape, dtype in itertools.product(
        [(7, 5), (5, 7), (1, 6), (6, 1), (1, 1), (40, 90), (90, 40)], (F64, torch.float32)
    ):
        w = randn(*shape, dtype=dtype)
        for rank in (1, 3, 100):
            with case(shape=shape, dtype=dtype, rank=rank):
                theta = LowRank(rank).compress(w)
                r = min(rank, *shape)
                assert (theta.U.shape, theta.V.shape) == ((shape[0], r), (r, shape[1]))
                rounding = 1e-13 if dtype == F64 else 1e-6
                assert norm(theta.U @ theta.V - best(w, r)) <= rounding * norm(w)


def test_the_singular_values_are_split_evenly():
    for dtype in (F64, torch.float32):
        with case(dtype=dtype):
            theta = LowRank(3).compress(randn(8, 6, dtype=dtype))
            s = torch.diag(torch.linalg.svdvals(randn(8, 6))[:3]).to(dtype)
            torch.testing.assert_close(theta.U.T @ theta.U, s, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(theta.V @ theta.V.T, s, rtol=1e-5, atol=1e-5)
            assert theta.U.is_contiguous()
            assert theta.V.is_contiguous()


def test_no_rank_one_matrix_of_a_fine_grid_is_closer():
    w = randn(2, 2)
    angles = torch.linspace(0, math.pi, 721, dtype=F64)
    rows = torch.stack([angles.cos(), angles.sin()])
    captured = (rows.T @ w @ rows).square().max()  # ‖w‖² - error² at the best scale of each pair of directions
    error = (w - projected(LowRank(1), w)).square().sum()
    assert error <= w.square().sum() - captured
    assert error == pytest.approx(float(w.square().sum() - captured), abs=1e-4)


def test_layers_of_one_shape_give_together_what_each_gives_alone():
    compressions = LowRank(2), RankSelection(0.3), RankSelection(0.3, capped=True)
    for compression, dtype in itertools.product(compressions, (F64, torch.float32)):
        ws = [scale * randn(6, 9, seed=k, dtype=dtype) for k, scale in enumerate((0.1, 1, 10))]
        together = compression.project_many(ws, 1.0, [None] * 3)
        for k, (w, theta) in enumerate(zip(ws, together, strict=True)):
            with case(compression=compression, dtype=dtype, k=k):
                dense = compression.decompress(theta)
                torch.testing.assert_close(dense, projected(compression, w), rtol=1e-5, atol=1e-5)


# Sizes and operations


def lenet300_ratio(ranks: tuple[int, ...]) -> float:
    pairs = zip(ranks, LENET300.values(), strict=True)
    bits = sum(LowRank(r).bits(LowRank(r).compress(randn(*shape))) for r, shape in pairs)
    return 32 * (266_200 + 410) / (bits + 32 * 410)


def test_storage_of_lenet300_and_bits_by_hand():
    assert lenet300_ratio((80, 7, 9)) == pytest.approx(2.93, abs=5e-3)
    assert lenet300_ratio((10, 10, 10)) == pytest.approx(16.31, abs=5e-3)
    theta = LowRank(2).compress(randn(5, 7))
    assert LowRank(2).num_params(theta) == 2 * (5 + 7)
    assert LowRank(2).bits(theta) == LowRank(2).huffman_bits(theta) == 32 * 24


def counted(layer: nn.Conv2d, x: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Multiply-accumulates of a convolution on x, and its output."""
    y = layer(x)
    return layer.weight.numel() * y.shape[2] * y.shape[3], y


def conv(weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> nn.Conv2d:
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs, outputs, tuple(kernel), stride, padding, bias=False, dtype=F64)
    layer.weight = nn.Parameter(weight)
    return layer


def check_macs(kernel, stride, padding, scheme):
    """Both convolutions give the dense one, in the counted operations."""
    w, x = randn(4, 3, *kernel), randn(1, 3, 11, 10)
    (height, width), r = kernel, 2
    padding = (min(padding[0], height // 2), min(padding[1], width // 2))
    plan = Plan.of([Task(("w",), AsMatrix(scheme), LowRank(r))], {"w": w})
    (theta,) = plan.compress(plan.select({"w": w}))
    if scheme == 1:
        first = conv(theta.V.reshape(r, 3, height, width), stride, padding)
        second = conv(theta.U.reshape(4, r, 1, 1), (1, 1), (0, 0))
    else:
        first = conv(theta.V.reshape(r, 3, 1, width), (1, stride[1]), (0, padding[1]))
        kernels = theta.U.reshape(4, height, r).transpose(1, 2)
        second = conv(kernels.reshape(4, r, height, 1), (stride[0], 1), (padding[0], 0))
    y = conv(plan.decompress((theta,))["w"], stride, padding)(x)
    before, middle = counted(first, x)
    after, found = counted(second, middle)
    torch.testing.assert_close(found, y)
    macs = LowRank(r).macs(theta, Use(tuple(w.shape), (11, 10), tuple(y.shape[2:])))
    if scheme == 2 and height == 1:  # the same matrix as under scheme 1, which skips the rows that a stride skips
        assert macs == r * (4 + 3 * width) * y.shape[2] * y.shape[3] <= before + after
    else:
        assert macs == before + after


@torch.no_grad()
def test_macs_are_those_of_the_two_convolutions_that_the_factors_make():
    kernels = (3, 3), (3, 5), (1, 3), (3, 1), (1, 1)
    places = ((1, 1), (1, 1)), ((2, 2), (1, 1)), ((2, 1), (0, 2)), ((1, 3), (1, 0))
    for kernel, (stride, padding), scheme in itertools.product(kernels, places, (1, 2)):
        with case(kernel=kernel, stride=stride, padding=padding, scheme=scheme):
            check_macs(kernel, stride, padding, scheme)


def test_macs_of_linear_layers_and_of_what_is_no_layer_of_two_factors():
    theta = LowRank(2).compress(randn(6, 8))
    assert LowRank(2).macs(theta, Use((6, 8))) == 2 * 14
    assert LowRank(2).macs(theta, Use((6, 8), (5,), (5,))) == 2 * 14 * 5
    assert LowRank(2).macs(theta, Use((3, 16))) is None
    assert LowRank(2).macs(Factors(randn(6, 8), randn(0, 8)), Use((6, 8))) is None


def test_bad_settings_and_shapes_are_refused_and_large_ranks_are_told():
    with pytest.raises(ValueError, match="rank must be at least 1, found 0"):
        LowRank(0)
    with pytest.raises(ValueError, match=r"needs a matrix, found a tensor of shape \[4, 3, 3\]"):
        LowRank(1).check((4, 3, 3))
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        RankSelection(-1.0)
    with pytest.raises(ValueError, match="positions must be at least 1"):
        RankSelection(1.0, positions=0)
    words = "rank 500 is above the 64 of its shape [64, 512], 64 is used"
    assert LowRank(500).clipped((64, 512)) == words
    assert LowRank(64).clipped((64, 512)) is None


# The recipe of low rank


def test_energy_is_the_smallest_rank_that_holds_it():
    w = with_spectrum([3, 2, 1], 5, 4)  # squares 9, 4, 1 of 14
    expected = {0.1: 1, 9 / 14 - 1e-9: 1, 0.65: 2, 13 / 14 - 1e-9: 2, 0.93: 3, 1.0: 3}
    assert {energy: energy_rank(w, energy) for energy in expected} == expected
    assert [energy_rank(w.float(), energy) for energy in (0.1, 0.64, 0.65, 0.92, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert energy_rank(torch.zeros(3, 4), 1.0) == 1
    assert energy_rank(1e-200 * w, 0.65) == 2


def test_an_energy_fixes_each_rank_at_the_given_weights():
    weights = {
        "a.weight": with_spectrum([3, 2, 1], 5, 4),
        "b.weight": with_spectrum([3, 2, 1], 8, 18).reshape(8, 2, 3, 3),
    }
    plan = low_rank(weights, rank=None, energy=0.9, layers="all")
    assert [task.compression for task in plan.tasks] == [LowRank(2), LowRank(2)]
    thetas = plan.compress(plan.select({name: randn(*w.shape) for name, w in weights.items()}))
    assert [len(theta.V) for theta in thetas] == [2, 2]


def test_scheme_2_is_for_convolutions_alone():
    weights = {"conv.weight": randn(4, 3, 3, 5), "fc.weight": randn(6, 8), "out.weight": randn(2, 6)}
    for recipe in (low_rank, rank_selection):
        plan = recipe(weights, scheme=2)
        assert [task.view for task in plan.tasks] == [AsMatrix(2), AsMatrix(1)]
    theta = low_rank(weights, rank=2, scheme=2).compress(low_rank(weights).select(weights))
    assert (theta[0].U.shape, theta[0].V.shape) == ((12, 2), (2, 15))


def test_the_recipe_refuses_what_it_cannot_do():
    weights = {"a.weight": randn(4, 5), "b.weight": randn(4, 5)}
    for settings in ({"energy": 0.5}, {"rank": None}):
        with pytest.raises(ConfigError, match="one of rank and energy must be given"):
            low_rank(weights, **settings)
    for energy in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"energy must be in \(0, 1\]"):
            low_rank(weights, rank=None, energy=energy)
    with pytest.raises(ValueError, match="scheme must be 1 or 2"):
        low_rank(weights, scheme=3)
    with pytest.raises(ConfigError, match=r"a\.weight: low rank needs a matrix"):
        Plan.of([Task(("a",), AsVector(), LowRank(1))], weights)
