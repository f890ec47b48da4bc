"""Sweeps of tensor trains, TT-matrix, Tucker, CP, and the operations of all tensor formats counted by doing them."""

import itertools
import math
import warnings

import pytest
import tensorly as tl
import torch
from problems import F64, randn
from tensorly.decomposition import parafac
from tensorly.decomposition import tucker as tensorly_tucker
from torch.nn import functional

from nncompress.compressions.cp import CP, Factors, cp, largest_rank
from nncompress.compressions.plan import each_layer
from nncompress.compressions.products import Use
from nncompress.compressions.tensor_train import Cores, TensorTrain, middle_bond, tt, tt_als, tt_ranks, tt_to_tensor
from nncompress.compressions.tt_matrix import TTMatrix, tt_matrix
from nncompress.compressions.tucker import CoreFactors, Tucker, chain_macs, tucker, tucker_ranks
from nncompress.errors import ConfigError


def relative_error(compression, w, **start) -> float:
    rebuilt = compression.decompress(compression.compress(w, **start))
    return float(torch.linalg.vector_norm(w - rebuilt) / torch.linalg.vector_norm(w))


class Counting:
    """einsum that adds up its multiply-accumulates: the product of all sizes that occur."""

    def __init__(self):
        self.macs = 0

    def __call__(self, spec: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = spec.split("->")[0].split(",")
        self.macs += math.prod(dict(zip(left + right, (*a.shape, *b.shape), strict=True)).values())
        return torch.einsum(spec, a, b)


# --- alternating least squares of tensor trains


def random_train(shape: tuple[int, ...], rank: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    ranks = (1, *tt_ranks(shape, rank))
    return tuple(randn(ranks[k], n, ranks[k + 1], seed=seed + k) for k, n in enumerate(shape))


def best_core(w: torch.Tensor, cores: list[torch.Tensor], k: int) -> torch.Tensor:
    """The least squares solution for core k, from the matrix that maps its entries to those of the tensor."""
    left = tt_to_tensor([*cores[:k], torch.eye(cores[k].shape[0], dtype=F64)[:, :, None]]) if k else torch.ones(1)
    right = torch.ones(1)
    if k + 1 < len(cores):
        right = tt_to_tensor([torch.eye(cores[k].shape[2], dtype=F64)[None], *cores[k + 1 :]])
    left, right = left.reshape(-1, cores[k].shape[0]).to(F64), right.reshape(cores[k].shape[2], -1).to(F64)
    design = torch.kron(torch.kron(left, torch.eye(w.shape[k], dtype=F64)), right.T.contiguous())
    return torch.linalg.lstsq(design, w.reshape(-1, 1)).solution.reshape(cores[k].shape)


@pytest.mark.parametrize(("shape", "rank"), [((3, 4, 2, 3), 2), ((2, 5, 3), 2), ((3, 2, 2, 3, 2), 3)])
def test_a_sweep_of_tt_is_that_of_brute_force_least_squares(shape, rank):
    w, cores = randn(*shape), list(random_train(shape, rank, seed=1))
    ours = tt_als(w, cores, 1)
    d, middle = len(shape), middle_bond(shape)
    for k in (*reversed(range(middle)), *range(middle), *range(middle, d), *reversed(range(middle, d))):
        cores[k] = best_core(w, cores, k)
    torch.testing.assert_close(tt_to_tensor(ours), tt_to_tensor(cores))
    assert [core.shape for core in ours] == [core.shape for core in cores]


@pytest.mark.parametrize(("shape", "rank"), [((4, 4, 4, 4), 2), ((6, 5, 4, 3, 2), 4), ((3, 20, 2), 3), ((2,) * 9, 5)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_no_sweep_of_tt_raises_the_error(shape, rank, dtype):
    w = randn(*shape, dtype=dtype)
    errors = [relative_error(TensorTrain(rank, als=sweeps), w) for sweeps in range(12)]
    slack = 1e-12 if dtype == F64 else 1e-6
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


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4,) * 6, (7, 2, 9)])
def test_sweeps_of_tt_keep_exact_what_is_exact(shape):
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


# --- TT-matrix


def test_tt_matrix_entries_are_products_of_the_cores_matrices():
    compression = TTMatrix(3, (2, 3, 2), (3, 2, 2))
    theta = compression.compress(randn(12, 12))
    w = compression.decompress(theta)
    assert [tuple(core.shape) for core in theta.cores] == [(1, 6, 3), (3, 6, 3), (3, 4, 1)]
    for i, j in itertools.product(itertools.product(*map(range, (2, 3, 2))), itertools.product(*map(range, (3, 2, 2)))):
        product = torch.ones(1, 1, dtype=F64)
        for k, (i_k, j_k) in enumerate(zip(i, j, strict=True)):
            product = product @ theta.cores[k][:, i_k * (3, 2, 2)[k] + j_k]
        row, column = (i[0] * 3 + i[1]) * 2 + i[2], (j[0] * 2 + j[1]) * 2 + j[2]
        torch.testing.assert_close(w[row, column], product[0, 0])


def test_tt_matrix_with_one_column_mode_each_is_the_tensor_train_of_the_rows():
    w = randn(24, 1)
    ours = TTMatrix(2, (4, 3, 2), (1, 1, 1))
    train = TensorTrain(2)
    torch.testing.assert_close(
        ours.decompress(ours.compress(w)), train.decompress(train.compress(w.reshape(4, 3, 2))).reshape(24, 1)
    )


def test_a_kronecker_product_has_tt_matrix_rank_one():
    w = torch.kron(torch.kron(randn(2, 3), randn(3, 2, seed=1)), randn(4, 4, seed=2))
    assert relative_error(TTMatrix(1, (2, 3, 4), (3, 2, 4)), w) < 1e-14
    assert relative_error(TTMatrix(1, (4, 3, 2), (4, 2, 3)), w) > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-7), (torch.float32, 2e-3)])
def test_tt_matrices_of_true_rank_are_recovered(dtype, tolerance):
    compression = TTMatrix(3, (2, 3, 2), (3, 2, 2))
    w = compression.decompress(compression.compress(randn(12, 12)))
    assert relative_error(compression, w.to(dtype)) < tolerance


def tt_matrix_product(theta, rows, columns, x, from_first: bool) -> tuple[torch.Tensor, int]:
    """W x core by core, and its multiply-accumulates; the state is (done rows, bond, columns to come) or mirrored."""
    count, d = Counting(), len(rows)
    cores = [core.reshape(core.shape[0], m, n, -1) for core, m, n in zip(theta.cores, rows, columns, strict=True)]
    state = x.reshape(1, 1, -1) if from_first else x.reshape(-1, 1, 1)
    for k in range(d) if from_first else reversed(range(d)):
        if from_first:
            state = count("abjc,bijd->aidc", state.reshape(len(state), state.shape[1], columns[k], -1), cores[k])
            state = state.reshape(-1, state.shape[2], state.shape[3])
        else:
            state = count("cjda,bijd->cbia", state.reshape(-1, columns[k], *state.shape[1:]), cores[k])
            state = state.reshape(state.shape[0], state.shape[1], -1)
    return state.reshape(-1), count.macs


@pytest.mark.parametrize(
    ("rank", "rows", "columns"), [(3, (2, 3, 2), (3, 2, 4)), (2, (5, 2), (2, 7)), (4, (3,), (4,)), (2, (1, 6), (4, 1))]
)
def test_tt_matrix_macs_are_at_most_those_of_the_cheaper_of_two_evaluations(rank, rows, columns):
    m, n = math.prod(rows), math.prod(columns)
    compression, x = TTMatrix(rank, rows, columns), randn(n, seed=5)
    theta = compression.compress(randn(m, n))
    ends = [tt_matrix_product(theta, rows, columns, x, from_first) for from_first in (True, False)]
    for y, _ in ends:
        torch.testing.assert_close(y, compression.decompress(theta) @ x)
    least = min(macs for _, macs in ends)
    found = compression.macs(theta, Use((m, n)))
    assert found is None if len(rows) == 1 else 0 < found <= least  # less where cores are merged
    assert compression.macs(theta, Use((m, n), (7,), (7,))) == (None if found is None else 7 * found)
    assert compression.macs(theta, Use((m + 1, n))) is None


def test_tt_matrix_recipe_pairs_balanced_modes_and_takes_given_ones():
    w = {"a.weight": randn(512, 784), "b.weight": randn(10, 300), "c.weight": randn(8, 4, 3, 3)}
    formats = [task.compression for task in tt_matrix(w, layers="all").tasks]
    assert [(f.row_modes, f.column_modes) for f in formats] == [
        ((2, 4, 4, 4, 4), (7, 7, 4, 2, 2)),
        ((1, 1, 2, 5), (5, 5, 4, 3)),
        ((2, 2, 2), (4, 3, 3)),
    ]
    plan = tt_matrix(w, rank=2, row_modes={"a": [2, 256]}, column_modes={"b": [300]}, layers=["a", "b"])
    formats = [task.compression for task in plan.tasks]
    assert [(f.row_modes, f.column_modes) for f in formats] == [((2, 256), (28, 28)), ((10,), (300,))]
    theta = plan.compress(plan.select(w))
    assert plan.num_params(theta) == 2 * (2 * 28 + 256 * 28) + 10 * 300
    assert plan.bits(theta) == 32 * plan.num_params(theta)


# --- Tucker


def low_rank_tucker(shape: tuple[int, ...], ranks: tuple[int, ...]) -> torch.Tensor:
    factors = [randn(n, r, seed=k) for k, (n, r) in enumerate(zip(shape, ranks, strict=True))]
    return torch.from_numpy(tl.tucker_to_tensor((randn(*ranks, seed=9).numpy(), [f.numpy() for f in factors])))


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((6, 5, 4), (2, 3, 2)), ((7, 6, 3, 3), (3, 2, 3, 3)), ((4, 6, 4, 6), (2, 2, 2, 2)), ((9,), (1,))],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-7), (torch.float32, 1e-4)])
def test_tensors_of_true_multilinear_rank_are_recovered(shape, ranks, dtype, tolerance):
    assert relative_error(Tucker(ranks), low_rank_tucker(shape, ranks).to(dtype)) < tolerance


@pytest.mark.parametrize("shape", [(6, 7, 8), (5, 4, 3, 6), (12, 10, 3, 3)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tucker_is_as_good_as_tensorly(shape, rank):
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


@pytest.mark.parametrize(
    ("shape", "ranks", "used", "numbers"),
    [
        ((4, 5, 6), 3, (3, 3, 3), 27 + 3 * 15),
        ((4, 5, 6), 9, (4, 5, 6), 120),
        ((2, 2, 9), 5, (2, 2, 9), 36),  # any matrix 4 x 9 has rank 4
        ((9, 9, 9), (9, 2, 1), (9, 2, 1), 18 + 9 * 3),
        ((8, 9), 3, (8, 3), 3 * 17),
        ((9,), 3, (9,), 9),
        ((16, 3, 3, 3), (8, 8, 3, 3), (8, 3, 3, 3), 216 + 128),
        ((6, 5, 1, 1), (2, 2, 1, 1), (6, 2, 1, 1), 2 * 11),
    ],
)
def test_modes_that_their_rank_does_not_restrict_are_left_whole(shape, ranks, used, numbers):
    assert tucker_ranks(shape, ranks) == used
    theta = Tucker(ranks).compress(randn(*shape))
    assert tuple(theta.core.shape) == used
    assert Tucker(ranks).num_params(theta) == numbers


def test_whole_modes_store_no_factor():
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


@pytest.mark.parametrize(("modes", "ranks"), [((4, 6, 5), (2, 3, 1)), ((8, 3, 4), (7, 1, 3)), ((5,), (2,))])
def test_the_order_of_contraction_is_the_cheapest(modes, ranks):
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


def convolution(x: torch.Tensor, kernel: torch.Tensor, count: Counting, **settings) -> torch.Tensor:
    y = functional.conv2d(x, kernel, **settings)
    count.macs += y.numel() * kernel[0].numel()
    return y


SHAPE, STRIDE, PADDING = (6, 5, 3, 2), (2, 1), (1, 1)
IMAGE = (1, 5, 7, 6)


def conv_use() -> tuple[torch.Tensor, Use]:
    x = randn(*IMAGE, seed=8)
    y = functional.conv2d(x, randn(*SHAPE), stride=STRIDE, padding=PADDING)
    return x, Use(SHAPE, IMAGE[2:], tuple(y.shape[2:]))


@pytest.mark.parametrize("ranks", [(4, 3, 3, 2), (6, 3, 3, 2), (4, 5, 3, 2)])
def test_tucker_macs_of_a_convolution_are_those_of_three_convolutions(ranks):
    x, use = conv_use()
    theta = Tucker(ranks).compress(randn(*SHAPE))
    outputs, inputs, count = theta.factors[0], theta.factors[1], Counting()
    y = convolution(x, inputs.T[:, :, None, None], count) if inputs.numel() else x
    y = convolution(y, theta.core, count, stride=STRIDE, padding=PADDING)
    y = convolution(y, outputs[:, :, None, None], count) if outputs.numel() else y
    dense = functional.conv2d(x, Tucker(ranks).decompress(theta), stride=STRIDE, padding=PADDING)
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


# --- CP


def low_rank_cp(shape: tuple[int, ...], rank: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    factors = tuple(randn(n, rank, seed=seed + k, dtype=dtype) for k, n in enumerate(shape))
    return CP(rank).decompress(Factors(factors))


def test_cp_entries_are_sums_of_products():
    theta = CP(3).compress(randn(4, 5, 6, 2))
    expected = torch.einsum("ar,br,cr,dr->abcd", *theta.factors)
    torch.testing.assert_close(CP(3).decompress(theta), expected)
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in theta.factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    assert CP(3).num_params(theta) == 3 * (4 + 5 + 6 + 2)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((4, 3, 5, 2), 2), ((6, 7, 8), 3), ((10, 11, 12), 8), ((16, 8, 3, 3), 3), ((6, 7), 3), ((9,), 1)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-6), (torch.float32, 2e-3)])
def test_tensors_of_true_cp_rank_are_recovered(shape, rank, dtype, tolerance):
    assert relative_error(CP(rank), low_rank_cp(shape, rank, dtype=dtype)) < tolerance


@pytest.mark.parametrize(("shape", "rank"), [((6, 7, 8), 4), ((5, 4, 3, 6), 6), ((12, 10, 3, 3), 8), ((4, 4, 4, 4), 9)])
def test_cp_is_about_as_good_as_tensorly(shape, rank):
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
    few, many = (relative_error(CP(2, sweeps=n, tolerance=0), w) for n in (10, 1000))
    assert many < few < 0.2
    assert many < 0.02
    for dtype in (F64, torch.float32):
        theta = CP(2, sweeps=1000, tolerance=0).compress(w.to(dtype))
        assert all(torch.isfinite(factor).all() for factor in theta.factors)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_cp_bears_more_terms_than_a_tensor_needs(dtype):
    w = low_rank_cp((5, 4, 6), 2, dtype=dtype)
    assert relative_error(CP(12), w) < (1e-6 if dtype == F64 else 1e-3)
    constant = torch.ones(5, 4, 6, dtype=dtype)
    assert relative_error(CP(12), constant) < (1e-6 if dtype == F64 else 1e-3)
    assert torch.count_nonzero(CP(3).decompress(CP(3).compress(torch.zeros(3, 4, 5, dtype=dtype)))) == 0


def test_a_cp_start_is_improved_and_the_result_repeats():
    w = randn(6, 7, 8)
    start = CP(3, sweeps=2).compress(w + 0.1 * randn(6, 7, 8, seed=1))
    before = float(torch.linalg.vector_norm(w - CP(3).decompress(start)) / torch.linalg.vector_norm(w))
    assert relative_error(CP(3), w, start=start) < before
    first, second = CP(9).compress(w), CP(9).compress(w)  # more terms than entries in a mode: padded from a fixed seed
    assert all(torch.equal(a, b) for a, b in zip(first.factors, second.factors, strict=True))


@pytest.mark.parametrize(("shape", "rank"), [((4, 3, 5), 12), ((7,), 1), ((6, 9), 6)])
def test_no_tensor_needs_more_terms_than_it_has_fibres(shape, rank):
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
    dense = functional.conv2d(x, CP(4).decompress(theta), stride=STRIDE, padding=PADDING)
    torch.testing.assert_close(y, dense)
    assert CP(4).macs(theta, use) == count.macs


def test_cp_recipe_keeps_convolutions_and_splits_matrices():
    w = {"conv.weight": randn(8, 6, 3, 3), "fc.weight": randn(30, 48), "out.weight": randn(10, 30)}
    plan = cp(w, rank=2)
    assert [task.view.modes for task in plan.tasks] == [(8, 6, 3, 3), (30, 48)]
    plan = cp(w, rank=2, modes={"fc": [5, 6, 6, 8]})
    assert plan.num_params(plan.compress(plan.select(w))) == 2 * (8 + 6 + 3 + 3) + 2 * (5 + 6 + 6 + 8)


# --- all


def test_tt_macs_of_a_convolution_are_those_of_two_convolutions():
    _, use = conv_use()
    theta = TensorTrain(4).compress(randn(*SHAPE))
    assert theta.cores[0].shape == (1, 6, 4)
    assert TensorTrain(4).macs(theta, use) == 4 * (5 * 3 * 2 + 6) * use.positions


@pytest.mark.parametrize(
    ("compression", "shape", "said"),
    [
        (TTMatrix(9, (2, 2), (2, 2)), (4, 4), "rank 9 is above the largest of modes [4, 4], 4 is used"),
        (TTMatrix(4, (2, 2), (2, 2)), (4, 4), None),
        (Tucker(9), (4, 5, 6), "rank 9 is above the largest of modes [4, 5, 6], 6 is used"),
        (Tucker(5), (4, 5, 6), None),
        (
            Tucker((8, 8, 3, 3)),
            (16, 3, 3, 3),
            "ranks [8, 8, 3, 3] are above the modes [16, 3, 3, 3], [8, 3, 3, 3] are used",
        ),
        (Tucker((8, 3, 3, 3)), (16, 3, 3, 3), None),
        (CP(13), (4, 3, 5), "rank 13 is above the largest of modes [4, 3, 5], 12 is used"),
        (CP(12), (4, 3, 5), None),
    ],
)
def test_ranks_above_what_the_modes_allow_are_told(compression, shape, said):
    told = compression.clipped(shape)
    assert told is None if said is None else told.startswith(said)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorTrain(2, als=-1),
        lambda: TTMatrix(0, (2,), (2,)),
        lambda: TTMatrix(1, (2, 2), (4,)),
        lambda: TTMatrix(1, (), ()),
        lambda: TTMatrix(1, (2, 0), (2, 2)),
        lambda: Tucker(0),
        lambda: Tucker((2, 0)),
        lambda: Tucker(()),
        lambda: Tucker(2, sweeps=0),
        lambda: Tucker(2, tolerance=-1.0),
        lambda: CP(0),
        lambda: CP(1, sweeps=0),
        lambda: CP(1, tolerance=math.nan),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="found"):
        make()


def weights() -> dict[str, torch.Tensor]:
    return {"fc1.weight": randn(8, 6), "fc2.weight": randn(8, 8, seed=1), "out.weight": randn(3, 8, seed=2)}


@pytest.mark.parametrize("recipe", [tt, tucker, cp])
@pytest.mark.parametrize(
    ("modes", "said"),
    [
        ([4, 4], r"the modes of fc1.weight must multiply to its 48 entries \(8, 6\), found \[4, 4\] = 16"),
        ({"fc9": [4, 4]}, r"compression.modes must name compressed layers \(fc1.weight, fc2.weight\), found 'fc9'"),
        ({"fc1": [8, 6], "fc*": [8, 8]}, "one entry of compression.modes must match fc1.weight, found 2"),
        ({"fc1": [8, -6]}, r"compression.modes of fc1.weight must be whole numbers from 1, found \[8, -6\]; give"),
        ([], r"compression.modes of fc1.weight must be whole numbers from 1, found \[\]; give"),
        ([8, 6.0], "must be whole numbers from 1"),
    ],
)
def test_modes_that_do_not_fit_are_refused(recipe, modes, said):
    with pytest.raises(ConfigError, match=said):
        recipe(weights(), rank=2, modes=modes)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: tt_matrix(weights(), row_modes={"fc1": [2, 2]}),
            r"fc1.weight: row_modes must multiply to 8 and column_modes to 6, found \[2, 2\] = 4 and \[3, 2\] = 6; ",
        ),
        (
            lambda: tt_matrix(weights(), row_modes={"fc1": [2, 4]}, column_modes={"fc1": [6]}),
            r"fc1.weight: row_modes and column_modes must be equally many, found \[2, 4\] and \[6\]; pad",
        ),
        (lambda: tt_matrix(weights(), row_modes={"nothing": [2, 4]}), "compression.row_modes must name"),
        (lambda: tt_matrix(weights(), column_modes=[0]), "compression.column_modes of fc1.weight must be whole"),
        (
            lambda: tucker(weights(), rank=[2, 2, 2]),
            r"fc1.weight: ranks must be one number, or one for each of the modes \[8, 6\], found \[2, 2, 2\]",
        ),
        (lambda: each_layer(weights(), compression=TTMatrix(1, (2, 4), (2, 3))), "must multiply to 48"),
    ],
)
def test_formats_that_do_not_fit_a_weight_are_refused(call, said):
    with pytest.raises(ConfigError, match=said):
        call()


@pytest.mark.parametrize("recipe", [tt_matrix, tucker, cp])
def test_recipes_rebuild_every_chosen_weight(recipe):
    w = weights()
    plan = recipe(w, rank=30, layers="all")
    dense = plan.decompress(plan.compress(plan.select(w)))
    assert {name: tensor.shape for name, tensor in dense.items()} == {name: tensor.shape for name, tensor in w.items()}
    for name, tensor in dense.items():
        assert torch.linalg.vector_norm(tensor - w[name]) < 1e-6 * torch.linalg.vector_norm(w[name])
