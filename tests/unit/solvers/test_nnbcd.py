"""NN-BCD: every block against closed forms, brute force and the published numbers."""

import itertools
import math

import pytest
import torch
from problems import F64, gaussian, mlp, problem, randn

from nncompress.compressions.sparsity import l0
from nncompress.compressions.tensor_train import Cores, TensorTrain, tt
from nncompress.errors import ConfigError
from nncompress.solvers import blocks
from nncompress.solvers.nnbcd import NNBCD
from nncompress.solvers.nnbcd_figures import figures
from nncompress.solvers.nnbcd_state import Blocks

PUBLISHED_PROX = [
    (1, -0.2, 1, 0.4), (1, -0.4, 1, 0.3), (1, -0.42, 1, -0.42), (1, -0.9, 1, -0.9), (1, -1.2, 1, -1.2),
    (-1, 0.5, 1, 0), (-1, 2, 1, 0.5), (-1, -0.5, 1, -0.5), (2, -0.3, 3, 0.275), (0.5, 0, 2, 1 / 6), (-3, 0.5, 2, 0),
]  # fmt: skip


def t(*rows):
    return torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize(("a", "b", "g", "u"), PUBLISHED_PROX)
def test_relu_prox_values(a, b, g, u):
    assert float(blocks.activation_prox(t(a), t(b), g)) == pytest.approx(u, abs=1e-12)


@pytest.mark.parametrize(("a", "b", "u"), [(1, -0.2, 0.4), (1, -0.5, -0.396040), (-1, -0.5, -0.594059)])
def test_leaky_prox_values(a, b, u):
    assert float(blocks.activation_prox(t(a), t(b), 1.0, 0.1)) == pytest.approx(u, abs=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("g", [0.05, 0.5, 1, 2.02, 10])
def test_prox_is_never_beaten_on_a_grid(g, slope):
    points = 3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    a, b = points[:, 0], points[:, 1]
    grid = torch.arange(-12, 12, 1e-3, dtype=F64)[:, None]

    def value(u):
        return 0.5 * (torch.where(u >= 0, u, slope * u) - a).square() + g / 2 * (u - b).square()

    assert (value(blocks.activation_prox(a, b, g, slope)) <= value(grid).min(dim=0).values + 1e-12).all()


def test_prox_returns_b_on_the_tie():
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


@pytest.mark.parametrize(("rows", "columns"), [(3, 20), (12, 20), (13, 20), (20, 20), (30, 20), (300, 600), (600, 520)])
def test_v_block_has_zero_gradient_on_both_sides_of_woodbury_and_the_small_one_gives_the_product(rows, columns):
    W, U, target = randn(rows, columns), randn(9, rows, seed=1), randn(9, columns, seed=2)
    V, product = blocks.ActivationStep(W, 0.7, 0.3)(target.clone(), U)
    torch.testing.assert_close(0.7 * (V @ W.T - U) @ W + 0.3 * (V - target), torch.zeros_like(V), atol=1e-11, rtol=0)
    assert (product is not None) == blocks.gives_product(W.shape) == (rows <= columns)
    if product is not None:
        torch.testing.assert_close(product, V @ W.T, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("d", [1, 5, 256, 257, 600])
def test_factor_solves_by_blocks_of_columns(d):
    A, B = randn(d, d + 3), randn(4, d, seed=1)
    matrix = A @ A.T + torch.eye(d, dtype=F64)
    solution = blocks.Factor(matrix).solve_(B.clone())
    torch.testing.assert_close(solution @ matrix, B, atol=1e-8, rtol=1e-8)


def test_factor_reads_the_lower_triangle_only():
    A, B = randn(5, 8), randn(4, 5, seed=1)
    torch.testing.assert_close(
        blocks.Factor((A @ A.T).tril()).solve_(B.clone()), blocks.Factor(A @ A.T).solve_(B.clone())
    )


def test_factor_of_an_indefinite_matrix_gives_nan():
    assert blocks.Factor(torch.diag(t(1.0, -1.0))).solve_(randn(3, 2)).isnan().all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("d", [3, 700])
def test_gram_and_cross_add_up_over_samples(d, bias):
    V, R = randn(40, d), randn(40, 4, seed=1)
    gram, cross = torch.zeros(d + bias, d + bias, dtype=F64), torch.zeros(4, d + bias, dtype=F64)
    for rows in (slice(0, 25), slice(25, 40)):
        blocks.add_gram_(gram, V[rows], bias)
        blocks.add_cross_(cross, R[rows], V[rows], bias)
    seen = torch.cat([V, torch.ones(40, 1, dtype=F64)], dim=1) if bias else V
    torch.testing.assert_close(gram.tril(), (seen.T @ seen).tril())
    torch.testing.assert_close(cross, R.T @ seen)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("d", [3, 700])
def test_w_block_has_zero_gradient_jointly_in_weight_and_bias_from_both_sides(d, bias):
    V, U, W_old, b_old = randn(40, d), randn(40, 4, seed=1), randn(4, d, seed=2), randn(4, seed=3)
    old = torch.cat([W_old, b_old[:, None]], dim=1) if bias else W_old
    R = U - V @ W_old.T - (b_old if bias else 0)
    diagonal, still = torch.full((d + bias,), 2.0, dtype=F64), torch.zeros_like(old)
    gram, cross = gram_and_cross(V, R, bias)
    seen = torch.cat([V, torch.ones(40, 1, dtype=F64)], dim=1) if bias else V
    for move in (
        blocks.weight_step(still, cross, gram, diagonal, 0.5),
        blocks.weight_step_few(still, R, seen, diagonal, 0.5),
    ):
        new = old + move
        W, b = (new[:, :-1], new[:, -1:]) if bias else (new, torch.zeros(4, 1, dtype=F64))
        residual = W @ V.T + b - U.T
        torch.testing.assert_close(2.0 * (W - W_old) + 0.5 * residual @ V, torch.zeros_like(W), atol=1e-10, rtol=0)
        if bias:
            zero = torch.zeros(4, dtype=F64)
            torch.testing.assert_close(2.0 * (b[:, 0] - b_old) + 0.5 * residual.sum(1), zero, atol=1e-10, rtol=0)


def test_elementwise_update_in_chunks_equals_the_whole(monkeypatch):
    g = torch.Generator().manual_seed(0)
    U, V, product = torch.randn(3, 7, 11, generator=g, dtype=F64)
    expected = blocks.activation_prox(V, (0.5 * product + 1.5 * U) / 2.0, 4.0, 0.0)
    monkeypatch.setattr(blocks, "CHUNK", 10)
    moved = U.clone()
    step_sq = blocks.preactivation_step_(moved, V, product, rho=0.5, gamma=0.5, alpha=1.5, slope=0.0)
    torch.testing.assert_close(moved, expected)
    assert float(step_sq) == pytest.approx(float((expected - U).square().sum()), rel=1e-12)


def toy(recipe=tt, bias=False, widths=(16, 16), **settings):
    """The rate toy: 12-16-16-3, n = 400 Gaussian inputs, the middle layer compressed."""
    data = gaussian(n=400)
    settings = settings or {"rank": 4, "modes": [4, 4, 4, 4]}
    return problem(data, mlp(data, widths=widths, bias=bias), recipe, layers=["fc2"], **settings)


CARD = {"tau": 5.0, "alpha": 1.0, "gamma": 0.5, "rho": 0.5, "initial": "kaiming_normal", "initial_scale": 1.0}


def observations(p, solver, steps):
    return [iterate.observation.terms for iterate in solver.run(p, steps)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [(tt, {"rank": 4, "modes": [4, 4, 4, 4]}), (l0, {"keep": 0.1}), (l0, {"keep": 0.1, "joint": True})],
)
def test_objective_never_rises_and_the_decrease_inequality_holds_in_every_sweep(recipe, settings, bias):
    terms = observations(toy(recipe, bias=bias, **settings), NNBCD(**CARD), 100)
    for before, after in itertools.pairwise(terms):
        guaranteed = after["decrease/guaranteed"] - before.get("decrease/guaranteed", 0.0)
        assert after["objective"] <= before["objective"] + 1e-12
        assert before["objective"] - after["objective"] >= guaranteed - 1e-9
        assert guaranteed >= 0.25 * after["step_sq"] - 1e-9  # lambda = min(alpha, gamma)/2


def test_running_sum_of_squared_steps_stays_below_its_bound_and_steps_fade():
    terms = observations(toy(), NNBCD(**CARD), 300)
    for k in (10, 100, 300):
        bound = (terms[0]["objective"] - terms[k]["objective"]) / 0.25
        assert terms[k]["step_sq/sum"] <= bound
        assert sum(row["grad_sq"] for row in terms[1 : k + 1]) <= 2 * bound
    assert terms[300]["step_sq"] < terms[30]["step_sq"] / 10
    assert terms[300]["step_sq/sum"] == pytest.approx(sum(row["step_sq"] for row in terms[1:]))


def test_subgradient_equals_the_papers_explicit_one_away_from_kinks():
    p, solver = toy(bias=False), NNBCD(**CARD)
    state = solver.init(p)
    state = solver.step(p, state)
    copies = {key: tuple(x.clone() for x in getattr(state, key)) for key in "WUV"}
    old, new = Blocks.of(p, state._replace(**copies)), Blocks.of(p, solver.step(p, state))
    whole = slice(None)
    alpha, gamma, rho, tau, N = solver.alpha, solver.gamma, solver.rho, solver.tau, 3
    total = (gamma * (old.U[N] - new.U[N]) - alpha * (new.V[N] - old.V[N])).square().sum()
    total += (rho * (old.product(N, whole) - new.product(N, whole))).square().sum()
    for i in (1, 2, 3):
        R = new.product(i, whole) - new.U[i]
        compressed = 0 if new.T[i] is None else tau * (new.W[i] - new.T[i])
        total += (rho * R.T @ new.V[i - 1] + compressed).square().sum()
        if i < N:
            total += (gamma * (torch.relu(old.U[i]) - torch.relu(new.U[i]))).square().sum()
            explicit = rho * (old.product(i, whole) - new.product(i, whole)) - alpha * (new.U[i] - old.U[i])
            kink = new.U[i] == 0
            total += explicit[~kink].square().sum()
            smallest = blocks.subgradient_sq(new.U[i][kink], new.V[i][kink], -rho * R[kink], gamma, 0.0)
            assert smallest <= explicit[kink].square().sum() + 1e-12
            total += smallest
    found = figures(new, tau=tau, gamma=gamma, rho=rho)["grad_sq"]
    assert found == pytest.approx(float(total), rel=1e-8)


@pytest.mark.parametrize(
    ("V", "smooth", "slope", "expected"),
    [(1, 0.5, 0, 0.25), (1, 3, 0, 1), (-1, -0.5, 0, 0), (-1, 0.5, 0, 0.25), (-1, -3, 0, 1), (1, 1.4, 0.5, 0.16)],
)
def test_at_a_kink_the_subgradient_nearest_to_zero_counts(V, smooth, slope, expected):
    found = blocks.subgradient_sq(t(0.0), t(float(V)), t(float(smooth)), 2.0, slope)  # ends: smooth - 2 (slope or 1) V
    assert float(found) == pytest.approx(expected)


def test_objective_is_the_sum_of_its_definition():
    p, solver = toy(bias=True), NNBCD(**CARD)
    state = solver.step(p, solver.init(p))
    P = Blocks.of(p, state)
    expected = 0.5 * (P.V[3] - P.Y).square().sum()
    for i in (1, 2, 3):
        sigma = P.U[i] if i == 3 else torch.relu(P.U[i])
        expected += 0.25 * (P.V[i] - sigma).square().sum()
        expected += 0.25 * (P.U[i] - P.V[i - 1] @ P.W[i].T - P.b[i]).square().sum()
    expected += 2.5 * (P.W[2] - P.T[2]).square().sum()
    assert solver.observe(p, state).terms["objective"] == pytest.approx(float(expected), rel=1e-12)


def test_at_the_start_only_the_fit_and_the_compression_cost():
    p = toy()
    terms = NNBCD(**CARD).observe(p, NNBCD(**CARD).init(p)).terms
    assert terms["term/linear"] == pytest.approx(0, abs=1e-20)
    assert terms["term/activation"] == pytest.approx(0, abs=1e-20)
    assert terms["term/fit"] > 0
    assert terms["term/compression"] > 0


def test_the_safeguard_keeps_a_start_that_tt_svd_cannot_match():
    tt_set, kept = TensorTrain(2), 0
    for seed in range(20):
        w = torch.randn((4, 4, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=F64)
        backwards = tt_set.compress(w.permute(3, 2, 1, 0)).cores
        start = Cores(tuple(core.permute(2, 1, 0) for core in reversed(backwards)))

        def error(theta, w=w):
            return float(torch.linalg.vector_norm(w - tt_set.decompress(theta)))

        plain, safeguarded = tt_set.compress(w), tt_set.compress(w, start=start)
        assert error(safeguarded) == min(error(plain), error(start))
        kept += error(start) < error(plain)
    assert 0 < kept < 20


def test_project_overwrites_the_weights_before_the_first_forward_pass_and_in_every_sweep():
    p = toy(l0, keep=0.2)
    for iterate in NNBCD(**CARD, project=True).run(p, 5):
        state, terms = iterate.state, iterate.observation.terms
        assert int(torch.count_nonzero(state.W[1])) == round(0.2 * 256)
        assert torch.equal(state.W[1], state.T[1])
        assert terms["term/compression"] == 0
        assert terms["term/linear"] == pytest.approx(0, abs=1e-20) or iterate.step > 0
        assert not any(key.startswith("decrease/") for key in terms)


def test_projecting_several_layers_at_once_keeps_their_products_fresh():
    data = gaussian()
    p = problem(data, mlp(data, bias=True), l0, keep=0.3, joint=True)
    *_, last = NNBCD(**CARD, project=True).run(p, 4)
    P = Blocks.of(p, last.state)
    assert torch.equal(P.W[2], P.T[2])
    torch.testing.assert_close(P.products[2], P.product(2, slice(None)), atol=1e-12, rtol=1e-12)


def test_project_starts_from_the_projected_weights():
    p = toy(l0, keep=0.2)
    free, projected = (NNBCD(**CARD, project=project).init(p) for project in (False, True))
    assert torch.equal(projected.W[1], free.T[1])
    assert torch.equal(projected.U[1], free.V[0] @ free.T[1].T)


def test_the_squared_step_is_that_of_the_blocks_themselves():
    for p, solver in ((toy(bias=True), NNBCD(**CARD)), (toy(l0, keep=0.2), NNBCD(**CARD, project=True))):
        state = solver.init(p)
        for _ in range(2):
            blocks_before = [x.clone() for key in "WbUV" for x in getattr(state, key) if x is not None]
            state = solver.step(p, state)
            blocks_after = [x for key in "WbUV" for x in getattr(state, key) if x is not None]
            moved = sum(float((a - b).square().sum()) for a, b in zip(blocks_after, blocks_before, strict=True))
            assert float(state.step_sq) == pytest.approx(moved, rel=1e-10)


def test_initial_rank_is_that_of_the_first_theta_only():
    p, solver = toy(), NNBCD(**CARD, initial_rank=16)
    state = solver.init(p)
    assert max(core.shape[2] for core in state.theta[0].cores) == 16
    assert float((state.W[1] - state.T[1]).abs().max()) < 1e-12
    assert max(core.shape[2] for core in solver.step(p, state).theta[0].cores) == 4
    with pytest.raises(ConfigError, match="needs a compression with a rank"):
        NNBCD(initial_rank=4).init(toy(l0, keep=0.1))


def test_float32_starts_from_the_same_weights_as_float64():
    data64, data32 = gaussian(), gaussian(dtype=torch.float32)
    W64 = NNBCD(seed=10).init(problem(data64, mlp(data64))).W
    W32 = NNBCD(seed=10).init(problem(data32, mlp(data32))).W
    assert all(torch.equal(a.float(), b) for a, b in zip(W64, W32, strict=True))
    assert torch.equal(W32[0], 0.01 * torch.randn(16, 12, generator=torch.Generator().manual_seed(10)))


def test_initial_model_starts_from_the_networks_own_parameters():
    p = toy(bias=True)
    state = NNBCD(initial="model").init(p)
    assert torch.equal(state.W[0], p.model.fc1.weight)
    assert torch.equal(state.b[2], p.model.fc3.bias)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_every_supported_activation_descends(activation):
    data = gaussian()
    p = problem(data, mlp(data, activation=activation), tt, rank=4)
    objective = [terms["objective"] for terms in observations(p, NNBCD(**CARD), 40)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(objective))


@pytest.mark.parametrize("setting", [{"tau": 0}, {"alpha": -1.0}, {"initial": "magic"}, {"initial_rank": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="found"):
        NNBCD(**setting)
