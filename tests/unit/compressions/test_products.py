"""Products of Θ with x: what Δ(Θ) gives, in the counted number of operations, without forming Δ(Θ)."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear
from torch.utils.flop_counter import FlopCounterMode

from nncompress.compressions.additive import Additive, Part
from nncompress.compressions.base import Compression
from nncompress.compressions.codebook import Codebook
from nncompress.compressions.cp import CP
from nncompress.compressions.low_rank import Factors, LowRank
from nncompress.compressions.products import Geometry, Product, Use
from nncompress.compressions.rank_selection import RankSelection
from nncompress.compressions.sparsity import L0
from nncompress.compressions.structured import NM, GroupL0
from nncompress.compressions.tensor_train import Cores, TensorTrain
from nncompress.compressions.train_products import cheapest_cut, tt_matrix_product, tt_product
from nncompress.compressions.tt_matrix import TTMatrix
from nncompress.compressions.tucker import Tucker
from nncompress.compressions.uniform import LowPrecision
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector, View


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


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


def made(compression: Compression[Any], view: View, shape: tuple[int, ...]) -> tuple[Product, Tensor]:
    """The product and the dense weight of a random weight's projection."""
    theta = compression.compress(view.join([randn(*shape)]))
    product = compression.product(theta, shape)
    assert product is not None
    return product, view.split(compression.decompress(theta), [torch.Size(shape)])[0]


def operations(product: Product, *arguments: Any) -> int:
    """Multiply-accumulates that torch counts while the product is computed."""
    with FlopCounterMode(display=False) as counter:
        product(*arguments)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("compression", "view"), ON_MATRICES)
def test_of_a_linear_layer_it_is_that_of_the_dense_weight(compression, view):
    product, weight = made(compression, view, MATRIX)
    for lead in ((), (1,), (7,), (2, 3)):
        x, bias = randn(*lead, 20), randn(12)
        before = x.clone()
        torch.testing.assert_close(product(x), linear(x, weight))
        torch.testing.assert_close(product(x, bias), linear(x, weight, bias))
        assert torch.equal(x, before)
    if product.plain:
        assert operations(product, randn(7, 20)) == 7 * product.macs(Use(MATRIX))
    assert product.macs(Use(MATRIX, (5,), (5,))) == 5 * product.macs(Use(MATRIX))


GEOMETRIES = [Geometry((1, 1), (0, 0), (1, 1)), Geometry((2, 1), (1, 2), (1, 2)), Geometry((3, 2), (2, 0), (1, 3))]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("compression", "view"), ON_KERNELS)
def test_of_a_convolution_it_is_that_of_the_dense_kernel(compression, view, geometry):
    product, kernel = made(compression, view, KERNEL)
    x, bias = randn(2, 8, 9, 10), randn(6)
    expected = conv2d(x, kernel, bias, *geometry)
    torch.testing.assert_close(product(x, bias, geometry), expected)
    torch.testing.assert_close(product(x, None, geometry), conv2d(x, kernel, None, *geometry))
    if product.plain:
        use = Use(KERNEL, (9, 10), tuple(expected.shape[2:]))
        counted = operations(product, x, bias, geometry)
        assert counted == 2 * product.macs(use) if geometry.padding == (0, 0) else counted >= 0


@pytest.mark.parametrize(
    ("compression", "shape"),
    [
        (TensorTrain(2), (5, 48)), (TTMatrix(2, (3, 4), (5, 4)), (20, 12)), (Tucker(2), (16, 15)), (CP(2), (15, 16)),
        (LowRank(2), (20, 12)), (NM(2, 4), MATRIX), (Codebook(3), MATRIX), (LowPrecision("float16"), MATRIX),
    ],
)  # fmt: skip
def test_there_is_none_for_another_shape_and_for_compressions_without_one(compression, shape):
    modes = {TTMatrix: (12, 20), LowRank: (12, 20), NM: MATRIX}.get(type(compression), (3, 4, 5, 4))
    theta = compression.compress(randn(*modes))
    assert compression.product(theta, shape) is None


def test_there_is_none_of_several_weights_together():
    theta = GroupL0(0.5, ((6, 20), (6, 20))).compress(randn(240))
    assert GroupL0(0.5, ((6, 20), (6, 20))).product(theta, (6, 20)) is None
    assert L0(5).product(L0(5).compress(randn(240)), (6, 20)) is None
    assert LowRank(2).product(Factors(randn(12, 20), randn(0, 20)), MATRIX) is None  # the matrix itself


def test_gradients_reach_every_factor():
    for parameter in ON_MATRICES[:12]:
        compression, view = parameter.values
        theta = compression.compress(view.join([randn(*MATRIX)]))
        free = [t.requires_grad_() for t in _floats(theta) if t.numel()]
        product = compression.product(theta, MATRIX)
        x = randn(4, 20)
        expected = torch.autograd.grad(
            linear(x, view.split(compression.decompress(theta), [torch.Size(MATRIX)])[0]).square().sum(), free
        )
        found = torch.autograd.grad(product(x).square().sum(), free)
        torch.testing.assert_close(found, expected)


def _floats(theta: Any) -> list[Tensor]:
    if isinstance(theta, Tensor):
        return [theta] if theta.is_floating_point() else []
    return [t for item in theta for t in _floats(item)] if isinstance(theta, tuple) else []


# Which cores are merged.


def train(ranks: tuple[int, ...], modes: tuple[int, ...]) -> Cores:
    return Cores(tuple(randn(a, n, b) for a, n, b in zip(ranks[:-1], modes, ranks[1:], strict=True)))


def every_cut(count: int) -> list[list[tuple[int, int]]]:
    """All ways to cut a train into blocks."""
    cuts = (c for r in range(count) for c in itertools.combinations(range(1, count), r))
    return [list(itertools.pairwise((0, *cut, count))) for cut in cuts]


def test_the_cheapest_cut_is_that_of_a_search_through_all():
    random = torch.Generator().manual_seed(3)
    costs = torch.randint(1, 100, (6, 6), generator=random).tolist()
    least, bounds = cheapest_cut(6, lambda a, b: costs[a][b])
    totals = [sum(costs[a][b - 1] for a, b in cut) for cut in every_cut(6)]
    assert least == min(totals) == sum(costs[a][b - 1] for a, b in bounds)
    assert [start for start, _ in bounds][1:] == [end for _, end in bounds][:-1]


def test_a_train_with_a_small_bond_is_two_matrices_and_one_with_small_outer_ranks_is_not():
    halves = tt_product(train((1, 8, 4, 8, 1), (8, 8, 8, 8)).cores, (64, 64))
    assert halves.macs(Use((64, 64))) == 4 * (64 + 64)
    outer = tt_product(train((1, 2, 16, 2, 1), (8, 8, 8, 8)).cores, (64, 64))
    assert outer.macs(Use((64, 64))) == 2 * (64 * 2 + 8 * 2 * 16)  # against 16 (64 + 64)


def test_a_tt_matrix_by_hand():
    cores = train((1, 2, 3, 1), (8, 15, 12)).cores  # (2 x 4), (3 x 5), (4 x 3)
    product = tt_matrix_product(cores, (2, 3, 4), (4, 5, 3), (24, 60))
    from_the_last = min(
        4 * 20 * 3 * 3 + 12 * 4 * 5 * 3 * 2 + 24 * 4 * 2,  # one core after the other
        4 * 20 * 3 * 3 + 24 * 20 * 3,  # the first two merged
        12 * 60 * 2 + 24 * 4 * 2,  # the last two
    )
    from_the_first = min(2 * 60 * 2 + 6 * 15 * 2 * 3 + 24 * 3 * 3, 2 * 60 * 2 + 24 * 15 * 2, 6 * 60 * 3 + 24 * 3 * 3)
    assert product.macs(Use((24, 60))) == min(from_the_last, from_the_first)
    assert tt_matrix_product(train((1, 1), (24,)).cores, (4,), (6,), (4, 6)) is None  # it is the weight
