"""The blocks of NN-BCD against closed forms, brute force and the published numbers."""

import itertools
import math

import pytest
import torch
from cases import case
from problems import F64, randn

from nncompress.compressions.decomposition.tensor_train import Cores, TensorTrain
from nncompress.solvers.nnbcd import blocks

PUBLISHED_PROX = [
    (1, -0.2, 1, 0.4), (1, -0.4, 1, 0.3), (1, -0.42, 1, -0.42), (1, -0.9, 1, -0.9), (1, -1.2, 1, -1.2),
    (-1, 0.5, 1, 0), (-1, 2, 1, 0.5), (-1, -0.5, 1, -0.5), (2, -0.3, 3, 0.275), (0.5, 0, 2, 1 / 6), (-3, 0.5, 2, 0),
]  # fmt: skip


def t(*rows):
    return torch.tensor(rows, dtype=F64)


def test_the_published_values_of_the_prox_of_relu_and_leaky_relu():
    for a, b, g, u in PUBLISHED_PROX:
        with case(a=a, b=b, g=g):
            assert float(blocks.activation_prox(t(a), t(b), g)) == pytest.approx(u, abs=1e-12)
    for a, b, u in ((1, -0.2, 0.4), (1, -0.5, -0.396040), (-1, -0.5, -0.594059)):
        with case(a=a, b=b, slope=0.1):
            assert float(blocks.activation_prox(t(a), t(b), 1.0, 0.1)) == pytest.approx(u, abs=1e-6)


def test_the_prox_is_never_beaten_near_itself_or_on_a_grid():
    a, b = (3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1), dtype=F64)).T
    grid = torch.arange(-12, 12, 0.02, dtype=F64)[:, None]
    near = torch.logspace(-6, 0.5, 60, dtype=F64)[:, None]
    for g, slope in itertools.product((0.05, 0.5, 1, 2.02, 10), (0.0, 0.1, 0.5, 1.0)):

        def value(u, g=g, slope=slope):
            return 0.5 * (torch.where(u >= 0, u, slope * u) - a).square() + g / 2 * (u - b).square()

        u = blocks.activation_prox(a, b, g, slope)
        with case(g=g, slope=slope):
            others = torch.cat([grid.expand(-1, 200), u + near, u - near])
            assert (value(u) <= value(others).min(dim=0).values + 1e-12).all()


def test_the_prox_returns_b_on_the_tie():
    threshold = math.sqrt(2) - 1
    assert float(blocks.activation_prox(t(1.0), t(-threshold - 1e-15), 1.0)) == pytest.approx(-threshold)


def test_slope_zero_of_the_general_form_is_relu():
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(2), dtype=F64)
    torch.testing.assert_close(blocks.activation_prox(a, b, 1.3, 1e-300), blocks.activation_prox(a, b, 1.3, 0.0))


def gram_and_cross(V, R, bias=False):
    """What the W block sums over all samples."""
    d = V.shape[1] + bias
    gram, cross = torch.zeros(d, d, dtype=F64), torch.zeros(R.shape[1], d, dtype=F64)
    blocks.add_gram_(gram, V, bias)
    blocks.add_cross_(cross, R, V, bias)
    return gram, cross


def test_published_linear_blocks():
    V, U, W_old, T = t([1, 0, 2], [0, 1, 1]), t([1, 2, 3]), t([0.5, -0.5]), t([0.4, -0.4])
    gram, cross = gram_and_cross(V.T, (U - W_old @ V).T)
    W = W_old + blocks.weight_step(5.0 * (T - W_old), cross, gram, torch.full((2,), 6.0, dtype=F64), 0.5)
    torch.testing.assert_close(W, t([0.717949, -0.102564]), atol=1e-6, rtol=0)
    target = torch.relu(t([1, -1, 0.5], [-0.2, 0.3, 2]))
    V_new, product = blocks.ActivationStep(W_old, 0.5, 0.5)(target.T.contiguous(), U.T)
    expected = t([1.166667, 0.716667, 1.75], [-0.166667, -0.416667, 0.75])
    torch.testing.assert_close(V_new, expected.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(product, V_new @ W_old.T)
    V_N = blocks.output_activation(t([1, 0, 0]), t([0.3, 0.2, 0.1]), t([0.2, 0.1, 0.4]), 0.5, 1.0)
    torch.testing.assert_close(V_N, t([0.54, 0.08, 0.18]))
    U_N = blocks.output_preactivation(t([0.54, 0.08, 0.18]), W_old @ t([1, 0, 2], [0, 1, 1]), 0.5, 0.5)
    torch.testing.assert_close(U_N, t([0.52, -0.21, 0.34]))


def test_v_block_has_zero_gradient_on_both_sides_of_woodbury_and_the_small_one_gives_the_product():
    for rows, columns in ((3, 20), (12, 20), (13, 20), (20, 20), (30, 20), (300, 600), (600, 520)):
        W, U, target = randn(rows, columns), randn(9, rows, seed=1), randn(9, columns, seed=2)
        V, product = blocks.ActivationStep(W, 0.7, 0.3)(target.clone(), U)
        gradient = 0.7 * (V @ W.T - U) @ W + 0.3 * (V - target)
        with case(rows=rows, columns=columns):
            torch.testing.assert_close(gradient, torch.zeros_like(V), atol=1e-11, rtol=0)
            assert (product is not None) == blocks.gives_product(W.shape) == (rows <= columns)
            if product is not None:
                torch.testing.assert_close(product, V @ W.T, atol=1e-11, rtol=1e-11)


def test_factor_solves_by_blocks_of_columns():
    for d in (1, 5, 256, 257, 600):
        A, B = randn(d, d + 3), randn(4, d, seed=1)
        matrix = A @ A.T + torch.eye(d, dtype=F64)
        solution = blocks.Factor(matrix).solve_(B.clone())
        with case(d=d):
            torch.testing.assert_close(solution @ matrix, B, atol=1e-8, rtol=1e-8)


def test_factor_reads_the_lower_triangle_only():
    A, B = randn(5, 8), randn(4, 5, seed=1)
    torch.testing.assert_close(
        blocks.Factor((A @ A.T).tril()).solve_(B.clone()), blocks.Factor(A @ A.T).solve_(B.clone())
    )


def test_factor_of_an_indefinite_matrix_gives_nan():
    assert blocks.Factor(torch.diag(t(1.0, -1.0))).solve_(randn(3, 2)).isnan().all()


def test_gram_and_cross_add_up_over_samples():
    for d, bias in itertools.product((3, 700), (False, True)):
        V, R = randn(40, d), randn(40, 4, seed=1)
        gram, cross = torch.zeros(d + bias, d + bias, dtype=F64), torch.zeros(4, d + bias, dtype=F64)
        for rows in (slice(0, 25), slice(25, 40)):
            blocks.add_gram_(gram, V[rows], bias)
            blocks.add_cross_(cross, R[rows], V[rows], bias)
        seen = torch.cat([V, torch.ones(40, 1, dtype=F64)], dim=1) if bias else V
        with case(d=d, bias=bias):
            torch.testing.assert_close(gram.tril(), (seen.T @ seen).tril())
            torch.testing.assert_close(cross, R.T @ seen)


def test_w_block_has_zero_gradient_jointly_in_weight_and_bias_from_both_sides():
    for d, bias in itertools.product((3, 700), (False, True)):
        V, U, W_old, b_old = randn(40, d), randn(40, 4, seed=1), randn(4, d, seed=2), randn(4, seed=3)
        old = torch.cat([W_old, b_old[:, None]], dim=1) if bias else W_old
        R = U - V @ W_old.T - (b_old if bias else 0)
        diagonal, still = torch.full((d + bias,), 2.0, dtype=F64), torch.zeros_like(old)
        gram, cross = gram_and_cross(V, R, bias)
        seen = torch.cat([V, torch.ones(40, 1, dtype=F64)], dim=1) if bias else V
        moves = {
            "gram": blocks.weight_step(still, cross, gram, diagonal, 0.5),
            "few": blocks.weight_step_few(still, R, seen, diagonal, 0.5),
        }
        for side, move in moves.items():
            new = old + move
            W, b = (new[:, :-1], new[:, -1:]) if bias else (new, torch.zeros(4, 1, dtype=F64))
            residual = W @ V.T + b - U.T
            gradient = 2.0 * (W - W_old) + 0.5 * residual @ V
            with case(d=d, bias=bias, side=side):
                torch.testing.assert_close(gradient, torch.zeros_like(W), atol=1e-10, rtol=0)
                if bias:
                    gradient = 2.0 * (b[:, 0] - b_old) + 0.5 * residual.sum(1)
                    torch.testing.assert_close(gradient, torch.zeros(4, dtype=F64), atol=1e-10, rtol=0)


def test_elementwise_update_in_chunks_equals_the_whole(monkeypatch):
    g = torch.Generator().manual_seed(0)
    U, V, product = torch.randn(3, 7, 11, generator=g, dtype=F64)
    expected = blocks.activation_prox(V, (0.5 * product + 1.5 * U) / 2.0, 4.0, 0.0)
    monkeypatch.setattr(blocks, "CHUNK", 10)
    moved = U.clone()
    step_sq = blocks.preactivation_step_(moved, V, product, rho=0.5, gamma=0.5, alpha=1.5, slope=0.0)
    torch.testing.assert_close(moved, expected)
    assert float(step_sq) == pytest.approx(float((expected - U).square().sum()), rel=1e-12)


def test_at_a_kink_the_subgradient_nearest_to_zero_counts():
    for V, smooth, slope, expected in (
        (1, 0.5, 0, 0.25), (1, 3, 0, 1), (-1, -0.5, 0, 0), (-1, 0.5, 0, 0.25), (-1, -3, 0, 1), (1, 1.4, 0.5, 0.16),
    ):  # fmt: skip
        found = blocks.subgradient_sq(t(0.0), t(float(V)), t(float(smooth)), 2.0, slope)
        with case(V=V, smooth=smooth, slope=slope):  # the ends are smooth - 2 V and smooth - 2 slope V
            assert float(found) == pytest.approx(expected)


def test_the_safeguard_keeps_a_start_that_tt_svd_cannot_match():
    tt_set, kept = TensorTrain(2), 0
    for seed in range(20):
        w = torch.randn((4, 4, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=F64)
        backwards = tt_set.compress(w.permute(3, 2, 1, 0)).cores
        start = Cores(tuple(core.permute(2, 1, 0) for core in reversed(backwards)))

        def error(theta, w=w):
            return float(torch.linalg.vector_norm(w - tt_set.decompress(theta)))

        plain, safeguarded = tt_set.compress(w), tt_set.compress(w, start=start)
        with case(seed=seed):
            assert error(safeguarded) == min(error(plain), error(start))
        kept += error(start) < error(plain)
    assert 0 < kept < 20
