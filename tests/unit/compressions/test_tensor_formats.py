"""TT-matrix, and what all tensor formats have in common: settings, modes, recipes."""

import itertools
import math

import pytest
import torch
from cases import case
from problems import F64, randn
from tensor_counts import Counting, relative_error, weights

from nncompress.compressions.decomposition.cp import CP, cp
from nncompress.compressions.decomposition.tensor_train import TensorTrain, tt
from nncompress.compressions.decomposition.tt_matrix import TTMatrix, tt_matrix
from nncompress.compressions.decomposition.tucker import Tucker, tucker
from nncompress.compressions.plan import each_layer
from nncompress.compressions.products import Use
from nncompress.errors import ConfigError

# TT-matrix


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


def test_tt_matrices_of_true_rank_are_recovered():
    compression = TTMatrix(3, (2, 3, 2), (3, 2, 2))
    w = compression.decompress(compression.compress(randn(12, 12)))
    for dtype, tolerance in ((F64, 1e-7), (torch.float32, 2e-3)):
        with case(dtype=dtype):
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


def test_tt_matrix_macs_are_at_most_those_of_the_cheaper_of_two_evaluations():
    for rank, rows, columns in ((3, (2, 3, 2), (3, 2, 4)), (2, (5, 2), (2, 7)), (4, (3,), (4,)), (2, (1, 6), (4, 1))):
        with case(rank=rank, rows=rows, columns=columns):
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


# All


def test_ranks_above_what_the_modes_allow_are_told():
    for compression, shape, said in (
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
    ):
        with case(compression=compression, shape=shape):
            told = compression.clipped(shape)
            assert told is None if said is None else told.startswith(said)


def test_settings_out_of_range_are_refused():
    for number, make in enumerate((
        lambda: TensorTrain(0), lambda: TensorTrain(2, als=-1),
        lambda: TTMatrix(0, (2,), (2,)), lambda: TTMatrix(1, (2, 2), (4,)), lambda: TTMatrix(1, (), ()),
        lambda: TTMatrix(1, (2, 0), (2, 2)),
        lambda: Tucker(0), lambda: Tucker((2, 0)), lambda: Tucker(()), lambda: Tucker(2, sweeps=0),
        lambda: Tucker(2, tolerance=-1.0),
        lambda: CP(0), lambda: CP(1, sweeps=0), lambda: CP(1, tolerance=math.nan),
    )):  # fmt: skip
        with case(number=number), pytest.raises(ValueError, match="found"):
            make()


def test_modes_that_do_not_fit_are_refused():
    refused = [
        ([4, 4], r"the modes of fc1.weight must multiply to its 48 entries \(8, 6\), found \[4, 4\] = 16"),
        ({"fc9": [4, 4]}, r"compression.modes must name compressed layers \(fc1.weight, fc2.weight\), found 'fc9'"),
        ({"fc1": [8, 6], "fc*": [8, 8]}, "one entry of compression.modes must match fc1.weight, found 2"),
        ({"fc1": [8, -6]}, r"compression.modes of fc1.weight must be whole numbers from 1, found \[8, -6\]; give"),
        ([], r"compression.modes of fc1.weight must be whole numbers from 1, found \[\]; give"),
        ([8, 6.0], "must be whole numbers from 1"),
    ]
    for recipe, (modes, said) in itertools.product((tt, tucker, cp), refused):
        with case(recipe=recipe.__name__, modes=modes), pytest.raises(ConfigError, match=said):
            recipe(weights(), rank=2, modes=modes)


def test_formats_that_do_not_fit_a_weight_are_refused():
    for call, said in (
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
    ):
        with case(said=said), pytest.raises(ConfigError, match=said):
            call()


def test_recipes_rebuild_every_chosen_weight():
    w = weights()
    for recipe in (tt_matrix, tucker, cp):
        plan = recipe(w, rank=30, layers="all")
        dense = plan.decompress(plan.compress(plan.select(w)))
        assert dense.keys() == w.keys()
        for name, tensor in dense.items():
            with case(recipe=recipe.__name__, name=name):
                assert tensor.shape == w[name].shape
                assert torch.linalg.vector_norm(tensor - w[name]) < 1e-6 * torch.linalg.vector_norm(w[name])
