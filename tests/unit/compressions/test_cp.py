"""CP: true ranks, tensorly, degenerate tensors, operations counted by doing them."""

import itertools
import warnings

import tensorly as tl
import torch
from cases import case
from problems import F64, randn
from tensor_counts import PADDING, SHAPE, STRIDE, Counting, conv_use, convolution, relative_error
from tensorly.decomposition import parafac
from torch.nn.functional import conv2d

from nncompress.compressions.decomposition.cp import CP, CPFactors, cp, largest_rank
from nncompress.compressions.products import Use


def low_rank_cp(shape: tuple[int, ...], rank: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    factors = tuple(randn(n, rank, seed=seed + k, dtype=dtype) for k, n in enumerate(shape))
    return CP(rank).decompress(CPFactors(factors))


def test_cp_entries_are_sums_of_products():
    theta = CP(3).compress(randn(4, 5, 6, 2))
    expected = torch.einsum("ar,br,cr,dr->abcd", *theta.factors)
    torch.testing.assert_close(CP(3).decompress(theta), expected)
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in theta.factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    assert CP(3).num_params(theta) == 3 * (4 + 5 + 6 + 2)


def test_tensors_of_true_cp_rank_are_recovered():
    cases = ((4, 3, 5, 2), 2), ((6, 7, 8), 3), ((10, 11, 12), 8), ((16, 8, 3, 3), 3), ((6, 7), 3), ((9,), 1)
    for (shape, rank), (dtype, tolerance) in itertools.product(cases, ((F64, 1e-6), (torch.float32, 2e-3))):
        with case(shape=shape, rank=rank, dtype=dtype):
            assert relative_error(CP(rank), low_rank_cp(shape, rank, dtype=dtype)) < tolerance


def test_cp_is_about_as_good_as_tensorly():
    for shape, rank in (((6, 7, 8), 4), ((5, 4, 3, 6), 6), ((12, 10, 3, 3), 8), ((4, 4, 4, 4), 9)):
        with case(shape=shape, rank=rank):
            w = randn(*shape, seed=rank)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of more terms than a mode has entries
                theirs = torch.from_numpy(tl.cp_to_tensor(parafac(w.numpy(), rank, n_iter_max=100, random_state=0)))
            error = float(torch.linalg.vector_norm(w - theirs) / torch.linalg.vector_norm(w))
            assert relative_error(CP(rank), w) <= 1.03 * error


def test_more_sweeps_never_raise_the_error_of_cp():
    w = randn(6, 7, 8)
    errors = [relative_error(CP(5, sweeps=n, tolerance=0), w) for n in (1, 2, 3, 5, 10, 30, 100)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))


def test_a_tensor_without_a_best_approximation_of_its_border_rank_is_approached():
    a, b = randn(6), randn(6, seed=1)
    w = sum(torch.einsum("i,j,k->ijk", *vectors) for vectors in ((a, a, b), (a, b, a), (b, a, a)))
    few, many = CP(2, sweeps=10, tolerance=0), CP(2, sweeps=1000, tolerance=0)
    theta = many.compress(w)
    error = float(torch.linalg.vector_norm(w - many.decompress(theta)) / torch.linalg.vector_norm(w))
    assert error < relative_error(few, w) < 0.2
    assert error < 0.02
    for found in (theta, many.compress(w.float())):
        assert all(torch.isfinite(factor).all() for factor in found.factors)


def test_cp_bears_more_terms_than_a_tensor_needs():
    for dtype, tolerance in ((F64, 1e-6), (torch.float32, 1e-3)):
        with case(dtype=dtype):
            assert relative_error(CP(12), low_rank_cp((5, 4, 6), 2, dtype=dtype)) < tolerance
            assert relative_error(CP(12), torch.ones(5, 4, 6, dtype=dtype)) < tolerance
            assert torch.count_nonzero(CP(3).decompress(CP(3).compress(torch.zeros(3, 4, 5, dtype=dtype)))) == 0


def test_a_cp_start_is_improved_and_the_result_repeats():
    w = randn(6, 7, 8)
    start = CP(3, sweeps=2).compress(w + 0.1 * randn(6, 7, 8, seed=1))
    before = float(torch.linalg.vector_norm(w - CP(3).decompress(start)) / torch.linalg.vector_norm(w))
    assert relative_error(CP(3), w, start=start) < before
    first, second = CP(9).compress(w), CP(9).compress(w)  # more terms than entries in a mode: padded from a fixed seed
    assert all(torch.equal(a, b) for a, b in zip(first.factors, second.factors, strict=True))


def test_no_tensor_needs_more_terms_than_it_has_fibres():
    for shape, rank in (((4, 3, 5), 12), ((7,), 1), ((6, 9), 6)):
        with case(shape=shape):
            assert largest_rank(shape) == rank
            theta = CP(rank + 5).compress(randn(*shape))
            assert theta.factors[0].shape[1] == rank


def test_cp_macs_are_below_those_of_every_order_of_contraction():
    theta = CP(3).compress(randn(4, 5, 6, 2))
    x = randn(12, seed=3)
    found = []
    for columns, rows in itertools.product(((2, 3), (3, 2)), ((0, 1), (1, 0))):
        count, (c1, c2), (r1, r2) = Counting(), columns, rows
        state = x.reshape(6, 2) if c1 == 2 else x.reshape(6, 2).T
        z = count("ar,ar->r", theta.factors[c2], count("ca,cr->ar", state, theta.factors[c1]))
        y = count("ar,br->ab", count("r,ar->ar", z, theta.factors[r1]), theta.factors[r2])
        torch.testing.assert_close((y if r1 == 0 else y.T).reshape(-1), CP(3).decompress(theta).reshape(20, 12) @ x)
        found.append(count.macs)
    assert CP(3).macs(theta, Use((20, 12))) == 3 * (20 + 12) <= min(found)  # with the factors multiplied out once
    assert CP(3).macs(theta, Use((20, 12), (7,), (7,))) == 7 * 3 * (20 + 12)
    assert CP(3).macs(theta, Use((12, 20))) is None  # no bond separates 12 rows


def test_cp_macs_of_a_convolution_are_those_of_four_convolutions():
    x, use = conv_use()
    theta, count = CP(4).compress(randn(*SHAPE)), Counting()
    outputs, inputs, height, width = theta.factors
    y = convolution(x, inputs.T[:, :, None, None], count)
    y = convolution(y, height.T[:, None, :, None], count, stride=(2, 1), padding=(1, 0), groups=4)
    y = convolution(y, width.T[:, None, None, :], count, stride=(1, 1), padding=(0, 1), groups=4)
    y = convolution(y, outputs[:, :, None, None], count)
    dense = conv2d(x, CP(4).decompress(theta), stride=STRIDE, padding=PADDING)
    torch.testing.assert_close(y, dense)
    assert CP(4).macs(theta, use) == count.macs


def test_cp_recipe_keeps_convolutions_and_splits_matrices():
    w = {"conv.weight": randn(8, 6, 3, 3), "fc.weight": randn(30, 48), "out.weight": randn(10, 30)}
    plan = cp(w, rank=2)
    assert [task.view.modes for task in plan.tasks] == [(8, 6, 3, 3), (30, 48)]
    plan = cp(w, rank=2, modes={"fc": [5, 6, 6, 8]})
    assert plan.num_params(plan.compress(plan.select(w))) == 2 * (8 + 6 + 3 + 3) + 2 * (5 + 6 + 6 + 8)
