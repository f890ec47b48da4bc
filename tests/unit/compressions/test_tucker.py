"""Tucker: true ranks, the higher-order SVD's bound, tensorly, whole modes, operations counted by doing them."""

import itertools

import pytest
import tensorly as tl
import torch
from cases import case
from problems import F64, randn
from tensor_counts import PADDING, SHAPE, STRIDE, Counting, conv_use, convolution, relative_error
from tensorly.decomposition import tucker as tensorly_tucker
from torch.nn.functional import conv2d

from nncompress.compressions.decomposition.tucker import CoreFactors, Tucker, chain_macs, tucker, tucker_ranks
from nncompress.compressions.products import Use


def low_rank_tucker(shape: tuple[int, ...], ranks: tuple[int, ...]) -> torch.Tensor:
    factors = [randn(n, r, seed=k) for k, (n, r) in enumerate(zip(shape, ranks, strict=True))]
    return torch.from_numpy(tl.tucker_to_tensor((randn(*ranks, seed=9).numpy(), [f.numpy() for f in factors])))


def test_tensors_of_true_multilinear_rank_are_recovered():
    for shape, ranks in {
        (6, 5, 4): (2, 3, 2), (7, 6, 3, 3): (3, 2, 3, 3), (4, 6, 4, 6): (2, 2, 2, 2), (9,): (1,),
    }.items():  # fmt: skip
        for dtype, tolerance in ((F64, 1e-7), (torch.float32, 1e-4)):
            with case(shape=shape, ranks=ranks, dtype=dtype):
                assert relative_error(Tucker(ranks), low_rank_tucker(shape, ranks).to(dtype)) < tolerance


def test_tucker_is_as_good_as_tensorly():
    for shape, rank in itertools.product(((6, 7, 8), (5, 4, 3, 6), (12, 10, 3, 3)), (1, 2, 3)):
        with case(shape=shape, rank=rank):
            w, ranks = randn(*shape, seed=rank), [min(rank, n) for n in shape]
            theirs = torch.from_numpy(tl.tucker_to_tensor(tensorly_tucker(w.numpy(), ranks, n_iter_max=50, tol=1e-9)))
            error = float(torch.linalg.vector_norm(w - theirs) / torch.linalg.vector_norm(w))
            assert relative_error(Tucker(rank, sweeps=60, tolerance=1e-10), w) <= error * (1 + 1e-6)


def test_tucker_error_is_the_missing_part_of_the_norm_and_obeys_the_bound_of_the_higher_order_svd():
    w = randn(6, 5, 4)
    theta = Tucker((3, 2, 2)).compress(w)
    error_sq = float((w - Tucker((3, 2, 2)).decompress(theta)).square().sum())
    assert error_sq == pytest.approx(float(w.square().sum() - theta.core.square().sum()))
    tails = sum(
        float(torch.linalg.svdvals(w.movedim(k, 0).flatten(1))[r:].square().sum()) for k, r in enumerate((3, 2, 2))
    )
    assert error_sq <= tails
    for factor in theta.factors:
        torch.testing.assert_close(factor.T @ factor, torch.eye(factor.shape[1], dtype=F64))


def test_two_modes_of_tucker_equal_the_truncated_svd():
    w = randn(9, 14)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    torch.testing.assert_close(Tucker(4).decompress(Tucker(4).compress(w)), (u[:, :4] * s[:4]) @ v[:4])


def test_sweeps_lower_the_error_of_tucker():
    w = randn(8, 8, 8, 8)
    errors = [relative_error(Tucker(3, sweeps=n, tolerance=0), w) for n in (1, 2, 5, 20)]
    assert all(b <= a for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0] - 1e-3


def test_modes_that_their_rank_does_not_restrict_are_left_whole_and_store_no_factor():
    for shape, ranks, used, numbers in (
        ((4, 5, 6), 3, (3, 3, 3), 27 + 3 * 15),
        ((4, 5, 6), 9, (4, 5, 6), 120),
        ((2, 2, 9), 5, (2, 2, 9), 36),  # any matrix 4 x 9 has rank 4
        ((9, 9, 9), (9, 2, 1), (9, 2, 1), 18 + 9 * 3),
        ((8, 9), 3, (8, 3), 3 * 17),
        ((9,), 3, (9,), 9),
        ((16, 3, 3, 3), (8, 8, 3, 3), (8, 3, 3, 3), 216 + 128),
        ((6, 5, 1, 1), (2, 2, 1, 1), (6, 2, 1, 1), 2 * 11),
    ):
        with case(shape=shape, ranks=ranks):
            assert tucker_ranks(shape, ranks) == used
            theta = Tucker(ranks).compress(randn(*shape))
            assert tuple(theta.core.shape) == used
            assert Tucker(ranks).num_params(theta) == numbers
    compression = Tucker((4, 3, 3, 3))
    theta = compression.compress(randn(10, 8, 3, 3))
    assert [factor.numel() for factor in theta.factors] == [40, 24, 0, 0]
    assert compression.num_params(theta) == 4 * 3 * 9 + 40 + 24
    assert compression.bits(theta) == 32 * (4 * 3 * 9 + 40 + 24)
    whole = Tucker(9).compress(randn(4, 3, 2))
    assert Tucker(9).num_params(whole) == 24
    assert torch.equal(Tucker(9).decompress(whole), randn(4, 3, 2))


def test_a_tucker_start_is_improved():
    w = randn(8, 8, 8)
    start = Tucker(3, sweeps=1).compress(w + 0.3 * randn(8, 8, 8, seed=1))
    before = torch.linalg.vector_norm(w - Tucker(3).decompress(start)) / torch.linalg.vector_norm(w)
    assert relative_error(Tucker(3, sweeps=2), w, start=start) < before


def contracted(w: torch.Tensor, factors, order, count: Counting) -> torch.Tensor:
    """w times each (transposed) factor, one mode after the other."""
    letters = "abcdefg"[: w.dim()]
    for k in order:
        w = count(f"{letters},{letters[k]}z->{letters.replace(letters[k], 'z')}", w, factors[k])
    return w


def test_the_order_of_contraction_is_the_cheapest():
    for modes, ranks in (((4, 6, 5), (2, 3, 1)), ((8, 3, 4), (7, 1, 3)), ((5,), (2,))):
        with case(modes=modes, ranks=ranks):
            found = []
            for order in itertools.permutations(range(len(modes))):
                count = Counting()
                contracted(randn(*modes), [randn(n, r) for n, r in zip(modes, ranks, strict=True)], order, count)
                found.append(count.macs)
            assert chain_macs(modes, ranks) == min(found)
    assert chain_macs((4, 5), (4, 5)) == 0


def test_tucker_macs_are_those_of_an_evaluation():
    compression = Tucker((2, 3, 2, 2))
    theta = compression.compress(randn(4, 6, 4, 5))
    assert isinstance(theta, CoreFactors)
    u1, u2, u3, u4 = theta.factors
    count, x = Counting(), randn(20, seed=3)
    z = contracted(x.reshape(4, 5), (u3, u4), (1, 0), count)  # the second column mode shrinks most
    z = count("abcd,cd->ab", theta.core, z)
    y = contracted(z, (u1.T, u2.T), (1, 0), count)  # the reverse order of the rows' contraction
    torch.testing.assert_close(y.reshape(-1), compression.decompress(theta).reshape(24, 20) @ x)
    assert compression.macs(theta, Use((24, 20))) == count.macs
    assert compression.macs(theta, Use((24, 20), (7,), (7,))) == 7 * count.macs
    assert compression.macs(theta, Use((20, 24))) is None  # no bond separates 20 rows


def test_tucker_macs_of_a_convolution_are_those_of_three_convolutions():
    x, use = conv_use()
    for ranks in ((4, 3, 3, 2), (6, 3, 3, 2), (4, 5, 3, 2)):
        with case(ranks=ranks):
            theta = Tucker(ranks).compress(randn(*SHAPE))
            outputs, inputs, count = theta.factors[0], theta.factors[1], Counting()
            y = convolution(x, inputs.T[:, :, None, None], count) if inputs.numel() else x
            y = convolution(y, theta.core, count, stride=STRIDE, padding=PADDING)
            y = convolution(y, outputs[:, :, None, None], count) if outputs.numel() else y
            dense = conv2d(x, Tucker(ranks).decompress(theta), stride=STRIDE, padding=PADDING)
            torch.testing.assert_close(y, dense)
            assert Tucker(ranks).macs(theta, use) == count.macs


def test_factors_of_the_kernel_are_absorbed_into_the_core():
    _, use = conv_use()
    whole, small = Tucker((4, 3, 3, 2)), Tucker((4, 3, 1, 2))
    assert small.macs(small.compress(randn(*SHAPE)), use) == whole.macs(whole.compress(randn(*SHAPE)), use)


def test_tucker_recipe_leaves_kernels_whole_and_splits_matrices_in_four():
    w = {"conv.weight": randn(8, 6, 3, 3), "fc.weight": randn(512, 512), "out.weight": randn(10, 512)}
    plan = tucker(w, rank=4)
    assert [task.compression.ranks for task in plan.tasks] == [(4, 4, 3, 3), 4]
    assert [task.view.modes for task in plan.tasks] == [(8, 6, 3, 3), (16, 32, 16, 32)]
    theta = plan.compress(plan.select(w))
    assert plan.num_params(theta) == (4 * 4 * 9 + 4 * (8 + 6)) + (4**4 + 4 * (16 + 32 + 16 + 32))
    plan = tucker(w, rank=[3, 2], layers=["conv"])
    assert plan.tasks[0].compression.ranks == (3, 2, 3, 3)
    plan = tucker(w, rank=[3, 2, 4], modes=[8, 6, 9], layers=["conv"])
    assert (plan.tasks[0].compression.ranks, plan.tasks[0].view.modes) == ((3, 2, 4), (8, 6, 9))
