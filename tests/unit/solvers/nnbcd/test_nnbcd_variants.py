"""What NN-BCD has beyond the paper: continuation in tau, multipliers, a proximal G step."""

import dataclasses
import itertools

import pytest
import torch
from cases import case
from nnbcd_cases import CARD, guaranteed, network_of, observations, problem_of, slacks, toy
from problems import F64, gaussian, problem, randn
from torch import nn

from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.plan import none
from nncompress.compressions.sparsity.magnitude import l0, l0_penalty, l1_penalty
from nncompress.experiment import checkpoint
from nncompress.solvers.nnbcd.figures import figures
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.nnbcd.state import Blocks

VARIANTS = {
    "continuation": {"tau_growth": 1.1, "tau_max": 12.0},
    "multipliers": {"multipliers": True},
    "multipliers and continuation": {"multipliers": True, "tau_growth": 1.1},
    "proximal": {"alpha_theta": 0.6},
    "proximal with multipliers": {"multipliers": True, "alpha_theta": 0.6},
    "extrapolation": {"extrapolation": True},
    "extrapolation with all": {"extrapolation": True, "multipliers": True, "tau_growth": 1.1, "alpha_theta": 0.6},
}
every = pytest.mark.parametrize("variant", VARIANTS)


def solver_of(variant: str) -> NNBCD:
    return dataclasses.replace(CARD, **VARIANTS[variant])


@every
def test_the_objective_falls_by_what_is_guaranteed_in_every_sweep(variant):
    for recipe, settings in ((tt, {}), (l0, {"keep": 0.1}), (l0_penalty, {"alpha": 0.01})):
        terms = observations(toy(recipe, bias=True, **settings), solver_of(variant), 12)
        with case(recipe=recipe):
            assert min(slacks(terms)) >= -1e-10


@every
def test_a_restored_state_continues_bit_for_bit(variant, tmp_path):
    p, solver = toy(), solver_of(variant)
    whole = observations(p, solver, 8)
    *_, half = solver.run(p, 4, every=100)
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"state": checkpoint.pack(half.state)})
    state = checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path)
    assert [iterate.observation.terms for iterate in solver.run(p, 8, state=state)] == whole[5:]


@every
def test_kept_products_stay_fresh_and_the_guarantee_holds_on_convolutions_and_skips(variant):
    for name in ("two convolutions", "crossing skips", "residual cnn"):
        p, solver = problem_of(network_of(name)), dataclasses.replace(solver_of(variant), initial="model")
        iterates = list(solver.run(p, 6))
        P = Blocks.of(p, iterates[-1].state)
        with case(name=name):
            assert min(slacks([iterate.observation.terms for iterate in iterates])) >= -1e-10
            for i in range(2, P.last + 1):
                if P.products[i] is not None:
                    torch.testing.assert_close(P.products[i], P.product(i, slice(None)), atol=1e-11, rtol=1e-11)


def test_the_g_step_and_the_multipliers_count_exactly_what_they_change():
    for recipe, settings in ((tt, {}), (l0, {"keep": 0.1}), (l1_penalty, {"alpha": 0.4})):
        p, solver = toy(recipe, **settings), dataclasses.replace(CARD, multipliers=True, alpha_theta=0.6)
        *_, last = solver.run(p, 2)
        P = Blocks.of(p, last.state)
        P.W[2] = P.W[2] + 0.1 * randn(16, 16)

        def balance(P=P):
            objective = figures(P, tau=CARD.tau, gamma=CARD.gamma, rho=CARD.rho)["objective"]
            return objective + float(P.guaranteed)

        before, T = balance(), P.T[2]
        with case(recipe=recipe):
            solver._update_compressed(P, 2, CARD.tau)
            assert not torch.equal(P.T[2], T)
            assert balance() == pytest.approx(before, abs=1e-10)
            P.update_multipliers(CARD.tau)
            assert balance() == pytest.approx(before, abs=1e-10)


def test_a_network_is_read_as_it_is_deployed():
    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.relu(h) if self.training else h)

    state = NNBCD(initial="model").init(problem(gaussian(), Trained().to(F64), none))
    assert [layer.slope for layer in state.chain.layers] == [1.0, 1.0]


# --- continuation


def test_tau_of_a_sweep_grows_up_to_its_largest_value_and_scales_the_objective():
    p, solver = toy(), dataclasses.replace(CARD, tau_growth=1.5, tau_max=20.0)
    for iterate in solver.run(p, 6):
        terms, state = iterate.observation.terms, iterate.state
        tau = min(20.0, 5.0 * 1.5 ** max(0, iterate.step - 1))
        assert terms["tau"] == pytest.approx(tau)
        distance_sq = float((state.W[1] - state.T[1]).square().sum())
        assert terms["term/compression"] == pytest.approx(tau / 2 * distance_sq, rel=1e-12)
        assert "decrease/lambda" not in terms
    assert terms["tau"] == 20.0


def test_tau_of_a_sweep_weighs_its_weight_block(monkeypatch):
    seen = []
    monkeypatch.setattr(NNBCD, "_update_compressed", lambda self, P, i, tau: seen.append(tau))
    solver, p = dataclasses.replace(CARD, tau_growth=2.0), toy()
    state = solver.init(p)
    for _ in range(3):
        state = solver.step(p, state)
    assert seen == [5.0] * 3 + [10.0] * 3 + [20.0] * 3


def test_tau_stops_at_its_largest_value_however_many_sweeps():
    solver = NNBCD(tau=2.0, tau_growth=2.0, tau_max=100.0)
    assert [solver._tau(k) for k in (0, 1, 5, 6, 5000)] == pytest.approx([2.0, 4.0, 64.0, 100.0, 100.0])


def distance_at_the_end(p, solver: NNBCD, sweeps: int) -> float:
    """‖W - T(G)‖ after some sweeps."""
    *_, last = solver.run(p, sweeps, every=sweeps)
    return float((last.state.W[1] - last.state.T[1]).norm())


def test_continuation_brings_the_weights_to_their_compression():
    growing = dataclasses.replace(CARD, tau_growth=1.3)
    for recipe, settings in ((tt, {}), (l0, {"keep": 0.1})):
        p = toy(recipe, **settings)
        with case(recipe=recipe):
            assert distance_at_the_end(p, growing, 40) < 1e-3 * distance_at_the_end(p, CARD, 40)


# --- multipliers


def test_multipliers_start_at_zero_and_move_by_tau_times_the_distance():
    p, solver = toy(), dataclasses.replace(CARD, multipliers=True, tau_growth=1.5)
    state = solver.init(p)
    assert [lam is None for lam in state.lam] == [True, False, True]
    assert not state.lam[1].any()
    for k in range(3):
        lam = state.lam[1]
        state = solver.step(p, state)
        tau = 5.0 * 1.5**k
        torch.testing.assert_close(state.lam[1], lam - tau * (state.W[1] - state.T[1]), atol=1e-14, rtol=1e-14)
    assert "term/multipliers" in solver.observe(p, state).terms
    assert "term/multipliers" not in CARD.observe(p, CARD.init(p)).terms


def test_multipliers_enter_the_g_step_and_the_objective():
    p, solver = toy(l0, keep=0.1), dataclasses.replace(CARD, multipliers=True)
    state = solver.step(p, solver.init(p))
    lam = state.lam[1]
    state = solver.step(p, state)
    centre = state.W[1] - lam / 5.0
    torch.testing.assert_close(state.T[1].flatten(), p.plan.tasks[0].compression.decompress(state.theta[0]))
    kept = centre.abs() >= centre.abs().flatten().sort().values[-round(0.1 * 256)]
    torch.testing.assert_close(state.T[1], torch.where(kept, centre, 0.0))
    product = float((state.lam[1] * (state.W[1] - state.T[1])).sum())
    assert solver.observe(p, state).terms["term/multipliers"] == pytest.approx(-product, rel=1e-12)


def test_multipliers_bring_the_weights_closer_to_their_compression():
    p, multiplied = toy(n=60), dataclasses.replace(CARD, multipliers=True)
    assert distance_at_the_end(p, multiplied, 60) < 0.5 * distance_at_the_end(p, CARD, 60)


# --- the proximal G step


def test_the_proximal_g_step_projects_the_average_with_the_old_compression():
    for multipliers in (False, True):
        p = toy(l0, keep=0.1)
        solver = dataclasses.replace(CARD, alpha_theta=3.0, multipliers=multipliers)
        state = solver.step(p, solver.init(p))
        T_old, lam = state.T[1], state.lam[1] if multipliers else 0.0
        state = solver.step(p, state)
        average = (5.0 * state.W[1] - lam + 3.0 * T_old) / 8.0
        kept = average.abs() >= average.abs().flatten().sort().values[-round(0.1 * 256)]
        with case(multipliers=multipliers):
            torch.testing.assert_close(state.T[1], torch.where(kept, average, 0.0))
            assert float(state.theta_sq) == pytest.approx(float((state.T[1] - T_old).square().sum()), rel=1e-10)


def test_a_penalty_is_weighed_against_tau_and_the_proximal_weight_together():
    p, solver = toy(l1_penalty, alpha=0.4), dataclasses.replace(CARD, alpha_theta=3.0)
    state = solver.step(p, solver.init(p))
    T_old = state.T[1]
    state = solver.step(p, state)
    average = (5.0 * state.W[1] + 3.0 * T_old) / 8.0
    torch.testing.assert_close(state.T[1], torch.nn.functional.softshrink(average, 0.4 / 8.0))


def test_with_a_proximal_g_step_the_decrease_covers_the_compression_too():
    recipes = ((tt, {}), (l0, {"keep": 0.1}), (l0, {"keep": 0.1, "joint": True}))
    for (recipe, settings), alpha_theta in itertools.product(recipes, (0.2, 2.0)):
        terms = observations(toy(recipe, **settings), dataclasses.replace(CARD, alpha_theta=alpha_theta), 15)
        strength = min(1.0, 0.5, alpha_theta) / 2
        with case(recipe=recipe, settings=settings, alpha_theta=alpha_theta):
            for before, after in itertools.pairwise(terms):
                fall = before["objective"] - after["objective"]
                assert fall >= strength * (after["step_sq"] + after["step_sq/theta"]) - 1e-10
                assert guaranteed(before, after) <= fall + 1e-10
                assert after["decrease/lambda"] == strength
