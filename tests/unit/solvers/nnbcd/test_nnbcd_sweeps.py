"""NN-BCD on the rate toy: decrease, subgradient, projection, initialisation."""

import dataclasses
import itertools

import pytest
import torch
from cases import case
from nnbcd_cases import CARD, guaranteed, observations, slacks, toy
from problems import gaussian, mlp, problem

from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.errors import ConfigError
from nncompress.solvers.nnbcd import blocks
from nncompress.solvers.nnbcd.figures import figures
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.nnbcd.state import Blocks

RECIPES = [(tt, {}), (l0, {"keep": 0.1}), (l0, {"keep": 0.1, "joint": True})]
PROJECTED = dataclasses.replace(CARD, project=True)


def test_objective_never_rises_and_the_decrease_inequality_holds_in_every_sweep():
    for (recipe, settings), bias in itertools.product(RECIPES, (False, True)):
        terms = observations(toy(recipe, bias=bias, **settings), CARD, 25)
        with case(recipe=recipe, settings=settings, bias=bias):
            assert min(slacks(terms)) >= -1e-9
            for before, after in itertools.pairwise(terms):
                assert after["objective"] <= before["objective"] + 1e-12
                assert guaranteed(before, after) >= 0.25 * after["step_sq"] - 1e-9  # lambda = min(alpha, gamma)/2


def test_running_sum_of_squared_steps_stays_below_its_bound_and_steps_fade():
    terms = observations(toy(), CARD, 100)
    for k in (10, 50, 100):
        bound = (terms[0]["objective"] - terms[k]["objective"]) / 0.25
        with case(k=k):
            assert terms[k]["step_sq/sum"] <= bound
            assert sum(row["grad_sq"] for row in terms[1 : k + 1]) <= 2 * bound
    assert terms[100]["step_sq"] < terms[10]["step_sq"] / 10
    assert terms[100]["step_sq/sum"] == pytest.approx(sum(row["step_sq"] for row in terms[1:]))


def test_subgradient_equals_the_papers_explicit_one_away_from_kinks():
    p = toy()
    state = CARD.init(p)
    state = CARD.step(p, state)
    copies = {key: tuple(x.clone() for x in getattr(state, key)) for key in "WUV"}
    old, new = Blocks.of(p, state._replace(**copies)), Blocks.of(p, CARD.step(p, state))
    whole = slice(None)
    alpha, gamma, rho, tau, N = CARD.alpha, CARD.gamma, CARD.rho, CARD.tau, 3
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


def test_objective_is_the_sum_of_its_definition():
    p = toy(bias=True)
    state = CARD.step(p, CARD.init(p))
    P = Blocks.of(p, state)
    expected = 0.5 * (P.V[3] - P.Y).square().sum()
    for i in (1, 2, 3):
        sigma = P.U[i] if i == 3 else torch.relu(P.U[i])
        expected += 0.25 * (P.V[i] - sigma).square().sum()
        expected += 0.25 * (P.U[i] - P.V[i - 1] @ P.W[i].T - P.b[i]).square().sum()
    expected += 2.5 * (P.W[2] - P.T[2]).square().sum()
    assert CARD.observe(p, state).terms["objective"] == pytest.approx(float(expected), rel=1e-12)


def test_at_the_start_only_the_fit_and_the_compression_cost():
    p = toy()
    terms = CARD.observe(p, CARD.init(p)).terms
    assert terms["term/linear"] == pytest.approx(0, abs=1e-20)
    assert terms["term/activation"] == pytest.approx(0, abs=1e-20)
    assert terms["term/fit"] > 0
    assert terms["term/compression"] > 0


def test_the_squared_step_is_that_of_the_blocks_themselves():
    for p, solver in ((toy(bias=True), CARD), (toy(l0, keep=0.2), PROJECTED)):
        state = solver.init(p)
        for _ in range(2):
            blocks_before = [x.clone() for key in "WbUV" for x in getattr(state, key) if x is not None]
            state = solver.step(p, state)
            blocks_after = [x for key in "WbUV" for x in getattr(state, key) if x is not None]
            moved = sum(float((a - b).square().sum()) for a, b in zip(blocks_after, blocks_before, strict=True))
            with case(project=solver.project):
                assert float(state.step_sq) == pytest.approx(moved, rel=1e-10)


def test_every_supported_activation_descends():
    data = gaussian()
    for activation in ("relu", "leaky_relu", "identity"):
        p = problem(data, mlp(data, activation=activation), tt, rank=4)
        objective = [terms["objective"] for terms in observations(p, CARD, 20)]
        with case(activation=activation):
            assert all(b <= a + 1e-12 for a, b in itertools.pairwise(objective))


# --- projection


def test_project_overwrites_the_weights_before_the_first_forward_pass_and_in_every_sweep():
    p = toy(l0, keep=0.2)
    for iterate in PROJECTED.run(p, 5):
        state, terms = iterate.state, iterate.observation.terms
        assert int(torch.count_nonzero(state.W[1])) == round(0.2 * 256)
        assert torch.equal(state.W[1], state.T[1])
        assert terms["term/compression"] == 0
        assert terms["term/linear"] == pytest.approx(0, abs=1e-20) or iterate.step > 0
        assert not any(key.startswith("decrease/") for key in terms)
    free, projected = CARD.init(p), PROJECTED.init(p)
    assert torch.equal(projected.W[1], free.T[1])
    assert torch.equal(projected.U[1], free.V[0] @ free.T[1].T)


def test_projecting_several_layers_at_once_keeps_their_products_fresh():
    data = gaussian()
    p = problem(data, mlp(data, bias=True), l0, keep=0.3, joint=True)
    *_, last = PROJECTED.run(p, 4)
    P = Blocks.of(p, last.state)
    assert torch.equal(P.W[2], P.T[2])
    torch.testing.assert_close(P.products[2], P.product(2, slice(None)), atol=1e-12, rtol=1e-12)


# --- initialisation


def test_initial_rank_is_that_of_the_first_theta_only():
    p, solver = toy(), dataclasses.replace(CARD, initial_rank=16)
    state = solver.init(p)
    assert max(core.shape[2] for core in state.theta[0].cores) == 16
    assert float((state.W[1] - state.T[1]).abs().max()) < 1e-12
    assert max(core.shape[2] for core in solver.step(p, state).theta[0].cores) == 4
    with pytest.raises(ConfigError, match="needs a compression with a rank"):
        NNBCD(initial_rank=4).init(toy(l0, keep=0.1))


def test_no_descent_constant_is_claimed_from_a_larger_first_rank():
    data = gaussian()
    p = problem(data, mlp(data, widths=(16, 16)), tt, rank=3)
    *_, last = NNBCD(initial_rank=8).run(p, 2)
    assert "decrease/lambda" not in last.observation.terms


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


def test_settings_out_of_range_are_refused():
    for settings, found in (
        ({"tau": 0}, "tau must be positive and finite, found 0"),
        ({"tau": float("inf")}, "tau must be positive and finite, found inf"),
        ({"alpha": -1.0}, "found -1.0"),
        ({"initial": "magic"}, "found"),
        ({"initial_rank": 0}, "found 0"),
        ({"initial_scale": -1.0}, "initial_scale must be positive and finite, found -1.0"),
        ({"tau_growth": 0.9}, "tau_growth must be at least 1 and finite, found 0.9"),
        ({"tau_growth": float("nan")}, "tau_growth must be at least 1 and finite, found nan"),
        ({"tau": 5.0, "tau_max": 4.0}, "tau_max must be at least tau = 5.0, found 4.0"),
        ({"alpha_theta": -0.1}, "alpha_theta must be at least 0 and finite, found -0.1"),
        ({"project": True, "multipliers": True}, "found multipliers; drop one"),
        ({"project": True, "extrapolation": True}, "found extrapolation; drop one"),
        ({"project": True, "alpha_theta": 1.0}, "found alpha_theta; drop one"),
    ):
        with case(settings=settings), pytest.raises(ValueError, match=found):
            NNBCD(**settings)
