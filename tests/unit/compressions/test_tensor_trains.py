"""Tensor trains: TT-SVD, the sweeps of alternating least squares, published sizes, modes."""

import itertools
import math

import pytest
import tensorly as tl
import torch
from cases import case
from problems import F64, randn
from tensor_counts import SHAPE, conv_use, relative_error, weights
from tensorly.decomposition import tensor_train
from torch import Tensor

from nncompress.compressions.decomposition.modes import balanced_modes
from nncompress.compressions.decomposition.tensor_train import Cores, TensorTrain, tt
from nncompress.compressions.decomposition.trains import middle_bond, tt_als, tt_ranks, tt_to_tensor


def random_train(shape: tuple[int, ...], rank: int, seed: int = 0) -> tuple[Tensor, ...]:
    ranks = (1, *tt_ranks(shape, rank))
    return tuple(randn(ranks[k], n, ranks[k + 1], seed=seed + k) for k, n in enumerate(shape))


def norm(w: Tensor) -> float:
    return float(torch.linalg.vector_norm(w))


def projected(rank: int, w: Tensor) -> Tensor:
    return TensorTrain(rank).decompress(TensorTrain(rank).compress(w))


# TT-SVD


def test_tt_step_equals_plain_tt_svd():
    shapes = (4, 4, 4, 4), (3, 5, 2, 4, 3), (6, 22, 34, 2, 2), (2, 3, 50), (50, 3, 2), (20, 4, 4), (40, 6, 6), (40, 30)
    for shape, rank in itertools.product(shapes, (1, 2, 5, 13)):
        with case(shape=shape, rank=rank):
            w = randn(*shape, seed=rank)
            plain = torch.from_numpy(tl.tt_to_tensor(tensor_train(w.numpy(), rank=[1, *tt_ranks(shape, rank)])))
            assert norm(projected(rank, w) - plain) <= 1e-6 * norm(plain)
            assert norm(projected(rank, w.float()) - plain) <= 1e-3 * norm(plain)


def test_true_rank_tensors_are_recovered():
    for shape in ((4, 3, 5, 2), (4,) * 6, (7, 2, 9)):
        with case(shape=shape):
            w = torch.from_numpy(tl.tt_to_tensor([core.numpy() for core in random_train(shape, 3)]))
            assert norm(projected(3, w) - w) <= 1e-7 * norm(w)


def test_tt_step_is_finite_and_equivariant_for_tiny_huge_and_zero_weights():
    w = randn(6, 5, 4, 3)
    unit = projected(2, w)
    for scale in (1e-100, 1e-12, 1e100, 0.0):
        with case(scale=scale):
            torch.testing.assert_close(projected(2, scale * w), scale * unit, rtol=1e-6, atol=1e-9 * scale)


def test_two_modes_equal_the_truncated_svd_over_a_wide_spectrum_too():
    q1, q2 = torch.linalg.qr(randn(30, 30))[0], torch.linalg.qr(randn(40, 30, seed=1))[0]
    wide = (q1 * torch.logspace(0, -9, 30, dtype=F64)) @ q2.T
    for w, rank, tolerance in ((randn(9, 14), 4, 1e-7), *((wide, rank, 1e-6) for rank in (5, 12, 20))):
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        with case(rank=rank):
            assert norm(projected(rank, w) - (u[:, :rank] * s[:rank]) @ v[:rank]) <= tolerance


def test_tt_error_falls_with_the_rank_and_obeys_the_quasi_optimality_bound():
    w = randn(4, 4, 4, 4)
    errors = [norm(w - projected(r, w)) for r in range(1, 17)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-12
    for r in (1, 2, 3, 5):
        tails = sum(float(torch.linalg.svdvals(w.reshape(4**k, -1))[r:].square().sum()) for k in (1, 2, 3))
        assert errors[r - 1] <= math.sqrt(tails) + 1e-12  # Oseledets, theorem 2.2


# Sizes and modes


HAR_MODES = [(6, 22, 34, 2, 2, 2, 2, 2, 2, 2), (4,) * 10, (4,) * 10, (4,) * 9 + (2,)]


def tt_size(shape, rank):
    ranks = (1, *tt_ranks(shape, rank))
    return sum(ranks[k] * n * ranks[k + 1] for k, n in enumerate(shape))


def test_published_tt_sizes_and_ranks():
    assert [tt_size(shape, 80) for shape in HAR_MODES] == [243896, 100896, 100896, 87380]
    assert (1, *tt_ranks(HAR_MODES[0], 80)) == (1, 6, 80, 80, 64, 32, 16, 8, 4, 2, 1)
    assert (1, *tt_ranks(HAR_MODES[1], 80)) == (1, 4, 16, 64, 80, 80, 80, 64, 16, 4, 1)
    dense = [math.prod(shape) for shape in HAR_MODES]
    output = 512 * 6
    assert (sum(tt_size(s, 80) for s in HAR_MODES) + output) / (sum(dense) + output) == 0.16759738116197184
    ratios = {20: 0.015504, 40: 0.050230, 60: 0.104272, 100: 0.243297, 180: 0.508511, 260: 0.765294, 400: 1.0118}
    for rank, ratio in ratios.items():
        found = (sum(tt_size(s, rank) for s in HAR_MODES) + output) / (sum(dense) + output)
        assert found == pytest.approx(ratio, abs=1e-4)
    cnn = [(26, 26, 4, 4, 4, 4, 4, 2, 2, 2), (4,) * 10]
    for rank, size in {40: 84408, 80: 243800, 140: 578504, 220: 1175304, 300: 1848776}.items():
        assert sum(tt_size(shape, rank) for shape in cnn) == size
    assert sum(math.prod(shape) for shape in cnn) == 6_586_368
    assert tt_size((4,) * 9, 80) == 75_296  # the fifth layer of HAR-5


def test_automatic_modes_are_balanced_factors_that_keep_rows_and_columns_apart():
    for shape, modes in {
        (256, 64): (4, 4, 4, 4, 4, 4, 4), (10, 300): (2, 5, 3, 4, 5, 5), (7, 13): (7, 13), (1, 4): (1, 4),
    }.items():  # fmt: skip
        with case(shape=shape):
            assert balanced_modes(shape) == modes


def test_tt_macs_of_a_convolution_are_those_of_two_convolutions():
    _, use = conv_use()
    theta = TensorTrain(4).compress(randn(*SHAPE))
    assert theta.cores[0].shape == (1, 6, 4)
    assert TensorTrain(4).macs(theta, use) == 4 * (5 * 3 * 2 + 6) * use.positions


# Alternating least squares


def best_core(w: Tensor, cores: list[Tensor], k: int) -> Tensor:
    """The least squares solution for core k, from the matrix that maps its entries to those of the tensor."""
    left = tt_to_tensor([*cores[:k], torch.eye(cores[k].shape[0], dtype=F64)[:, :, None]]) if k else torch.ones(1)
    right = torch.ones(1)
    if k + 1 < len(cores):
        right = tt_to_tensor([torch.eye(cores[k].shape[2], dtype=F64)[None], *cores[k + 1 :]])
    left, right = left.reshape(-1, cores[k].shape[0]).to(F64), right.reshape(cores[k].shape[2], -1).to(F64)
    design = torch.kron(torch.kron(left, torch.eye(w.shape[k], dtype=F64)), right.T.contiguous())
    return torch.linalg.lstsq(design, w.reshape(-1, 1)).solution.reshape(cores[k].shape)


def test_a_sweep_of_tt_is_that_of_brute_force_least_squares():
    for shape, rank in (((3, 4, 2, 3), 2), ((2, 5, 3), 2), ((3, 2, 2, 3, 2), 3)):
        with case(shape=shape, rank=rank):
            w, cores = randn(*shape), list(random_train(shape, rank, seed=1))
            ours = tt_als(w, cores, 1)
            d, middle = len(shape), middle_bond(shape)
            for k in (*reversed(range(middle)), *range(middle), *range(middle, d), *reversed(range(middle, d))):
                cores[k] = best_core(w, cores, k)
            torch.testing.assert_close(tt_to_tensor(ours), tt_to_tensor(cores))
            assert [core.shape for core in ours] == [core.shape for core in cores]


def test_no_sweep_of_tt_raises_the_error():
    for shape, rank in (((4, 4, 4, 4), 2), ((6, 5, 4, 3, 2), 4), ((3, 20, 2), 3), ((2,) * 9, 5)):
        for dtype, slack in ((F64, 1e-12), (torch.float32, 1e-6)):
            w = randn(*shape, dtype=dtype)
            errors = [relative_error(TensorTrain(rank, als=sweeps), w) for sweeps in (*range(6), 11)]
            with case(shape=shape, dtype=dtype):
                assert all(after <= before + slack for before, after in itertools.pairwise(errors))


def test_after_many_sweeps_no_core_of_a_train_can_be_better():
    w = randn(4, 3, 5, 2)
    cores = list(TensorTrain(2, als=300).compress(w).cores)
    error = torch.linalg.vector_norm(w - tt_to_tensor(cores))
    for k in range(4):
        better = [*cores[:k], best_core(w, cores, k), *cores[k + 1 :]]
        assert torch.linalg.vector_norm(w - tt_to_tensor(better)) >= error * (1 - 1e-6)


def test_one_sweep_of_tt_lowers_the_error_of_random_tensors_by_a_percent_on_average():
    ratios = []
    for seed in range(30):
        w = randn(4, 4, 4, 4, seed=seed)
        ratios.append(relative_error(TensorTrain(2, als=1), w) / relative_error(TensorTrain(2), w))
    assert max(ratios) <= 1 + 1e-12
    assert sum(ratios) / len(ratios) < 0.99


def test_sweeps_of_tt_keep_exact_what_is_exact():
    for shape in ((4, 3, 5, 2), (4,) * 6, (7, 2, 9)):
        with case(shape=shape):
            assert relative_error(TensorTrain(3, als=2), tt_to_tensor(random_train(shape, 3))) < 1e-12
            assert relative_error(TensorTrain(1000, als=2), randn(*shape)) < 1e-12
            theta = TensorTrain(2, als=2).compress(torch.zeros(shape, dtype=F64))
            assert torch.count_nonzero(tt_to_tensor(theta.cores)) == 0


def test_sweeps_of_tt_go_on_from_a_better_start_and_ignore_a_worse_one():
    w, refined = randn(5, 4, 4, 3), TensorTrain(2, als=1)
    start = TensorTrain(2, als=20).compress(w)
    before = torch.linalg.vector_norm(w - tt_to_tensor(start.cores)) / torch.linalg.vector_norm(w)
    assert relative_error(refined, w, start=start) < before < relative_error(refined, w)
    for other in (Cores(random_train(w.shape, 2)), Cores(random_train(w.shape, 3))):
        found = refined.project(w, 1.0, other)
        torch.testing.assert_close(tt_to_tensor(found.cores), tt_to_tensor(refined.compress(w).cores))


def test_sweeps_leave_two_modes_alone_and_several_tensors_apart():
    w, v = randn(9, 14), randn(9, 14, seed=1)
    assert all(map(torch.equal, TensorTrain(3, als=2).compress(w).cores, TensorTrain(3).compress(w).cores))
    tensors = [w.reshape(9, 7, 2), v.reshape(9, 7, 2)]
    many = TensorTrain(3, als=2).compress_many(tensors, 1.0, [None, None])
    for theta, tensor in zip(many, tensors, strict=True):
        assert all(map(torch.equal, theta.cores, TensorTrain(3, als=2).compress(tensor).cores))


def test_tt_recipe_passes_its_sweeps_on():
    plan = tt(weights(), rank=2, als=3)
    assert [task.compression for task in plan.tasks] == [TensorTrain(2, als=3)] * 2
