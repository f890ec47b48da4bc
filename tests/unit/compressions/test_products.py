"""Products of Θ with x: what Δ(Θ) gives, in the counted number of operations, without forming Δ(Θ)."""

import itertools
from typing import Any

import torch
from cases import case
from product_cases import KERNEL, MATRIX, ON_KERNELS, ON_MATRICES
from torch import Tensor
from torch.nn.functional import conv2d, linear
from torch.utils.flop_counter import FlopCounterMode

from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition.cp import CP
from nncompress.compressions.decomposition.low_rank import Factors, LowRank
from nncompress.compressions.decomposition.tensor_train import Cores, TensorTrain
from nncompress.compressions.decomposition.train_products import cheapest_cut, tt_matrix_product, tt_product
from nncompress.compressions.decomposition.tt_matrix import TTMatrix
from nncompress.compressions.decomposition.tucker import Tucker
from nncompress.compressions.products import Geometry, Product, Use
from nncompress.compressions.quantization.codebook import Codebook
from nncompress.compressions.quantization.uniform import LowPrecision
from nncompress.compressions.sparsity.magnitude import L0
from nncompress.compressions.sparsity.structured import NM, GroupL0
from nncompress.compressions.views import View


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


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


def test_of_a_linear_layer_it_is_that_of_the_dense_weight():
    for param in ON_MATRICES:
        with case(name=param.id):
            product, weight = made(*param.values, MATRIX)
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


def test_of_a_convolution_it_is_that_of_the_dense_kernel():
    x, bias = randn(2, 8, 9, 10), randn(6)
    for param, geometry in itertools.product(ON_KERNELS, GEOMETRIES):
        with case(name=param.id, geometry=geometry):
            product, kernel = made(*param.values, KERNEL)
            expected = conv2d(x, kernel, bias, *geometry)
            torch.testing.assert_close(product(x, bias, geometry), expected)
            torch.testing.assert_close(product(x, None, geometry), conv2d(x, kernel, None, *geometry))
            if product.plain:
                use = Use(KERNEL, (9, 10), tuple(expected.shape[2:]))
                counted = operations(product, x, bias, geometry)
                assert counted == 2 * product.macs(use) if geometry.padding == (0, 0) else counted >= 0


def test_there_is_none_for_another_shape_and_for_compressions_without_one():
    modes = (3, 4, 5, 4)
    for compression, given, shape in (
        (TensorTrain(2), modes, (5, 48)), (TTMatrix(2, (3, 4), (5, 4)), MATRIX, (20, 12)),
        (Tucker(2), modes, (16, 15)), (CP(2), modes, (15, 16)), (LowRank(2), MATRIX, (20, 12)),
        (NM(2, 4), MATRIX, MATRIX), (Codebook(3), modes, MATRIX), (LowPrecision("float16"), modes, MATRIX),
    ):  # fmt: skip
        with case(compression=compression, shape=shape):
            assert compression.product(compression.compress(randn(*given)), shape) is None


def test_there_is_none_of_several_weights_together():
    theta = GroupL0(0.5, ((6, 20), (6, 20))).compress(randn(240))
    assert GroupL0(0.5, ((6, 20), (6, 20))).product(theta, (6, 20)) is None
    assert L0(5).product(L0(5).compress(randn(240)), (6, 20)) is None
    assert LowRank(2).product(Factors(randn(12, 20), randn(0, 20)), MATRIX) is None  # the matrix itself


def test_gradients_reach_every_factor():
    for param in ON_MATRICES[:12]:
        compression, view = param.values
        theta = compression.compress(view.join([randn(*MATRIX)]))
        free = [t.requires_grad_() for t in _floats(theta) if t.numel()]
        product = compression.product(theta, MATRIX)
        x = randn(4, 20)
        expected = torch.autograd.grad(
            linear(x, view.split(compression.decompress(theta), [torch.Size(MATRIX)])[0]).square().sum(), free
        )
        with case(name=param.id):
            torch.testing.assert_close(torch.autograd.grad(product(x).square().sum(), free), expected)


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
