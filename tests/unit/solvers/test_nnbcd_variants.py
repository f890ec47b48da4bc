"""What NN-BCD has beyond the paper: continuation in tau, multipliers, a proximal G step, extrapolation."""

import dataclasses
import itertools

import pandas as pd
import pytest
import torch
from nnbcd_cases import case, problem_of
from problems import F64, gaussian, mlp, problem, randn
from torch import nn

from nncompress import checkpoint
from nncompress.compressions.plan import none
from nncompress.compressions.sparsity import l0, l0_penalty, l1_penalty
from nncompress.compressions.tensor_train import tt
from nncompress.rates import convergence
from nncompress.solvers import nnbcd_extrapolation
from nncompress.solvers.nnbcd import NNBCD
from nncompress.solvers.nnbcd_figures import figures
from nncompress.solvers.nnbcd_state import Blocks

CARD = NNBCD(tau=5.0, alpha=1.0, gamma=0.5, rho=0.5, initial="kaiming_normal", initial_scale=1.0)
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


def toy(recipe=tt, bias=False, **settings):
    """The rate toy: 12-16-16-3 on 400 Gaussian samples, the middle layer compressed."""
    data = gaussian(n=400)
    settings = settings or {"rank": 4, "modes": [4, 4, 4, 4]}
    return problem(data, mlp(data, bias=bias), recipe, layers=["fc2"], **settings)


def observations(p, solver: NNBCD, sweeps: int):
    return [iterate.observation.terms for iterate in solver.run(p, sweeps)]


def slacks(terms):
    """By how much the objective falls more than is guaranteed, sweep by sweep."""
    for before, after in itertools.pairwise(terms):
        guaranteed = after["decrease/guaranteed"] - before.get("decrease/guaranteed", 0.0)
        yield before["objective"] - after["objective"] - guaranteed


@every
@pytest.mark.parametrize(("recipe", "settings"), [(tt, {}), (l0, {"keep": 0.1}), (l0_penalty, {"alpha": 0.01})])
def test_the_objective_falls_by_what_is_guaranteed_in_every_sweep(variant, recipe, settings):
    terms = observations(toy(recipe, bias=True, **settings), solver_of(variant), 40)
    assert min(slacks(terms)) >= -1e-10


@pytest.mark.parametrize(("recipe", "settings"), [(tt, {}), (l0, {"keep": 0.1}), (l1_penalty, {"alpha": 0.4})])
def test_the_g_step_and_the_multipliers_count_exactly_what_they_change(recipe, settings):
    p, solver = toy(recipe, **settings), dataclasses.replace(CARD, multipliers=True, alpha_theta=0.6)
    *_, last = solver.run(p, 2)
    P = Blocks.of(p, last.state)
    P.W[2] = P.W[2] + 0.1 * randn(16, 16)

    def balance():
        objective = figures(P, tau=CARD.tau, gamma=CARD.gamma, rho=CARD.rho)["objective"]
        return objective + float(P.guaranteed)

    before, T = balance(), P.T[2]
    solver._update_compressed(P, 2, CARD.tau)
    assert not torch.equal(P.T[2], T)
    assert balance() == pytest.approx(before, abs=1e-10)
    P.update_multipliers(CARD.tau)
    assert balance() == pytest.approx(before, abs=1e-10)


@every
def test_a_restored_state_continues_bit_for_bit(variant, tmp_path):
    p, solver = toy(), solver_of(variant)
    whole = observations(p, solver, 12)
    *_, half = solver.run(p, 6)
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"state": checkpoint.pack(half.state)})
    state = checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path)
    assert [iterate.observation.terms for iterate in solver.run(p, 12, state=state)] == whole[7:]


@every
@pytest.mark.parametrize("name", ["two convolutions", "crossing skips", "residual cnn"])
def test_kept_products_stay_fresh_and_the_guarantee_holds_on_convolutions_and_skips(variant, name):
    p, solver = problem_of(case(name)), dataclasses.replace(solver_of(variant), initial="model")
    iterates = list(solver.run(p, 30))
    assert min(slacks([iterate.observation.terms for iterate in iterates])) >= -1e-10
    P = Blocks.of(p, iterates[-1].state)
    for i in range(2, P.last + 1):
        if P.products[i] is not None:
            torch.testing.assert_close(P.products[i], P.product(i, slice(None)), atol=1e-11, rtol=1e-11)


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


def distance_at_the_end(p, solver: NNBCD, sweeps: int) -> float:
    """‖W - T(G)‖ after some sweeps."""
    *_, last = solver.run(p, sweeps, every=sweeps)
    return float((last.state.W[1] - last.state.T[1]).norm())


@pytest.mark.parametrize(("recipe", "settings"), [(tt, {}), (l0, {"keep": 0.1})])
def test_continuation_brings_the_weights_to_their_compression(recipe, settings):
    p, growing = toy(recipe, **settings), dataclasses.replace(CARD, tau_growth=1.1)
    assert distance_at_the_end(p, growing, 200) < 1e-3 * distance_at_the_end(p, CARD, 200)


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


def test_without_multipliers_no_row_has_their_term():
    p = toy()
    assert "term/multipliers" not in CARD.observe(p, CARD.init(p)).terms


def test_multipliers_bring_the_weights_closer_to_their_compression():
    p = toy()
    multiplied = dataclasses.replace(CARD, multipliers=True)
    assert distance_at_the_end(p, multiplied, 300) < 0.5 * distance_at_the_end(p, CARD, 300)


# --- the proximal G step


@pytest.mark.parametrize("multipliers", [False, True])
def test_the_proximal_g_step_projects_the_average_with_the_old_compression(multipliers):
    p = toy(l0, keep=0.1)
    solver = dataclasses.replace(CARD, alpha_theta=3.0, multipliers=multipliers)
    state = solver.step(p, solver.init(p))
    T_old, lam = state.T[1], state.lam[1] if multipliers else 0.0
    state = solver.step(p, state)
    average = (5.0 * state.W[1] - lam + 3.0 * T_old) / 8.0
    kept = average.abs() >= average.abs().flatten().sort().values[-round(0.1 * 256)]
    torch.testing.assert_close(state.T[1], torch.where(kept, average, 0.0))
    assert float(state.theta_sq) == pytest.approx(float((state.T[1] - T_old).square().sum()), rel=1e-10)


def test_a_penalty_is_weighed_against_tau_and_the_proximal_weight_together():
    p, solver = toy(l1_penalty, alpha=0.4), dataclasses.replace(CARD, alpha_theta=3.0)
    state = solver.step(p, solver.init(p))
    T_old = state.T[1]
    state = solver.step(p, state)
    average = (5.0 * state.W[1] + 3.0 * T_old) / 8.0
    torch.testing.assert_close(state.T[1], torch.nn.functional.softshrink(average, 0.4 / 8.0))


@pytest.mark.parametrize(("recipe", "settings"), [(tt, {}), (l0, {"keep": 0.1}), (l0, {"keep": 0.1, "joint": True})])
@pytest.mark.parametrize("alpha_theta", [0.2, 2.0])
def test_with_a_proximal_g_step_the_decrease_covers_the_compression_too(recipe, settings, alpha_theta):
    terms = observations(toy(recipe, **settings), dataclasses.replace(CARD, alpha_theta=alpha_theta), 100)
    strength = min(1.0, 0.5, alpha_theta) / 2
    for before, after in itertools.pairwise(terms):
        fall = before["objective"] - after["objective"]
        assert fall >= strength * (after["step_sq"] + after["step_sq/theta"]) - 1e-10
        assert after["decrease/lambda"] == strength


# --- extrapolation


EXTRAPOLATING = dataclasses.replace(CARD, extrapolation=True)


def copied(group):
    return [None if x is None else x.clone() for x in group]


def judged(monkeypatch, better: bool) -> None:
    """Every extrapolation is found better, or worse, than where the sweep ended."""
    values = itertools.cycle([torch.tensor([1.0]), torch.tensor([0.0 if better else 2.0])])
    monkeypatch.setattr(nnbcd_extrapolation, "terms_of", lambda P, **rates: next(values))


def test_the_extrapolated_point_lies_beta_times_the_way_of_the_sweep_further(monkeypatch):
    p = toy(bias=True)
    judged(monkeypatch, better=True)
    state = EXTRAPOLATING.init(p)
    before = [copied(getattr(state, key)) for key in ("W", "b", "U", "V")]
    plain = CARD.step(p, CARD.init(p))
    state = EXTRAPOLATING.step(p, state)
    for key, old, ended in zip(("W", "b", "U", "V"), before, state.ended, strict=True):
        for start, here, there, further in zip(old, getattr(plain, key), ended, getattr(state, key), strict=True):
            assert torch.equal(here, there)
            torch.testing.assert_close(further, here + 0.5 * (here - start), atol=1e-13, rtol=1e-13)
    assert torch.equal(state.T[1], plain.T[1])


def test_with_every_extrapolation_rejected_the_iterates_are_the_plain_ones(monkeypatch):
    p = toy(bias=True)
    judged(monkeypatch, better=False)
    plain, rejecting = (solver.init(p) for solver in (CARD, EXTRAPOLATING))
    for _ in range(10):
        plain, rejecting = CARD.step(p, plain), EXTRAPOLATING.step(p, rejecting)
    for key in ("W", "b", "U", "V", "T"):
        for a, b in zip(getattr(plain, key), getattr(rejecting, key), strict=True):
            assert a is b or torch.allclose(a, b, atol=1e-11, rtol=1e-11)
    assert float(plain.guaranteed) == pytest.approx(float(rejecting.guaranteed), rel=1e-10)


def test_beta_grows_by_successes_up_to_its_ceiling(monkeypatch):
    p = toy()
    judged(monkeypatch, better=True)
    state = EXTRAPOLATING.init(p)
    assert state.beta == (0.5, 1.0)
    betas = []
    for _ in range(16):
        state = EXTRAPOLATING.step(p, state)
        betas.append(state.beta)
    assert [beta for beta, _ in betas] == pytest.approx([min(1.0, 0.5 * 1.05**k) for k in range(1, 17)])
    assert all(ceiling == 1.0 for _, ceiling in betas)


def test_a_failure_shrinks_beta_and_leaves_the_ceiling_where_it_failed(monkeypatch):
    p = toy()
    judged(monkeypatch, better=False)
    state = EXTRAPOLATING.step(p, EXTRAPOLATING.init(p))
    assert state.beta == pytest.approx((0.5 / 1.5, 0.5))
    judged(monkeypatch, better=True)
    assert EXTRAPOLATING.step(p, state).beta == pytest.approx((0.5 / 1.5 * 1.05, 0.5 * 1.01))


def test_extrapolations_are_kept_only_where_the_objective_does_not_rise(monkeypatch):
    p, compared = toy(), []
    rates = {"tau": CARD.tau, "gamma": CARD.gamma, "rho": CARD.rho}
    extrapolate = nnbcd_extrapolation.extrapolate

    def watched(P, state, **settings):
        ended = figures(P, **rates)["objective"]
        new = extrapolate(P, state, **settings)
        compared.append((ended, figures(Blocks.of(p, new), **rates)["objective"], new.beta[0] < state.beta[0]))
        return new

    monkeypatch.setattr("nncompress.solvers.nnbcd.extrapolate", watched)
    *_, last = EXTRAPOLATING.run(p, 100)
    for ended, after, rejected in compared:
        assert after == pytest.approx(ended, rel=1e-12) if rejected else after <= ended
    assert 0 < sum(rejected for *_, rejected in compared) < 30
    assert last.observation.terms["objective"] == pytest.approx(compared[-1][1], rel=1e-12)


def test_the_step_of_an_extrapolated_run_is_that_between_the_ends_of_its_sweeps():
    p, solver = toy(bias=True), EXTRAPOLATING
    state, total, sweeps = solver.init(p), 0.0, 0.0
    for _ in range(12):
        before = [t.clone() for group in state.ended for t in group if t is not None]
        state = solver.step(p, state)
        after = [t for group in state.ended for t in group if t is not None]
        expected = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
        total, sweeps = total + expected, sweeps + float(state.sweep_sq)
        assert float(state.step_sq) == pytest.approx(expected, rel=1e-9)
    terms = solver.observe(p, state).terms
    assert terms["step_sq/sum"] == pytest.approx(total, rel=1e-9)
    assert terms["step_sq/sweep/sum"] == pytest.approx(sweeps, rel=1e-9)
    assert sweeps < 0.9 * total  # what the extrapolation adds is no part of a sweep
    rows = pd.DataFrame([{"step": 0, "objective": 1.0}, {"step": 12, "objective": 0.5, "grad_sq": 1.0, **terms}])
    rows.loc[1, "objective"] = 0.5
    table = convergence(rows)
    assert table["step_sq_mean"].iloc[-1] == pytest.approx(total / 12)
    assert table["grad_bound"].isna().all()
    assert table["bound_ok"].iloc[-1] == (sweeps / 12 <= 0.5 / terms["decrease/lambda"] / 12)


@pytest.mark.parametrize(("sweeps", "recipe", "settings"), [(300, tt, {}), (100, l0, {"keep": 0.1})])
def test_extrapolation_never_raises_the_objective_and_reaches_a_third_of_the_plain_one(sweeps, recipe, settings):
    p = toy(recipe, **settings)
    *_, plain = CARD.run(p, sweeps, every=sweeps)
    fast = observations(p, EXTRAPOLATING, sweeps)
    for before, after in itertools.pairwise(fast):
        fall = before["objective"] - after["objective"]
        assert fall >= 0.25 * after["step_sq/sweep"] - 1e-10
    assert fast[-1]["objective"] < plain.observation.terms["objective"] / 3


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"tau_growth": 0.9}, "tau_growth must be at least 1 and finite, found 0.9"),
        ({"tau_growth": float("nan")}, "tau_growth must be at least 1 and finite, found nan"),
        ({"tau": 5.0, "tau_max": 4.0}, "tau_max must be at least tau = 5.0, found 4.0"),
        ({"alpha_theta": -0.1}, "alpha_theta must be at least 0 and finite, found -0.1"),
        ({"project": True, "multipliers": True}, "found multipliers; drop one"),
        ({"project": True, "extrapolation": True}, "found extrapolation; drop one"),
        ({"project": True, "alpha_theta": 1.0}, "found alpha_theta; drop one"),
        ({"tau": float("inf")}, "tau must be positive and finite, found inf"),
        ({"initial_scale": -1.0}, "initial_scale must be positive and finite, found -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, found):
    with pytest.raises(ValueError, match=found):
        NNBCD(**settings)


def test_tau_stops_at_its_largest_value_however_many_sweeps():
    solver = NNBCD(tau=2.0, tau_growth=2.0, tau_max=100.0)
    assert [solver._tau(k) for k in (0, 1, 5, 6, 5000)] == pytest.approx([2.0, 4.0, 64.0, 100.0, 100.0])


def test_a_network_is_read_as_it_is_deployed():
    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.relu(h) if self.training else h)

    data = gaussian()
    state = NNBCD(initial="model").init(problem(data, Trained().to(F64), none))
    assert [layer.slope for layer in state.chain.layers] == [1.0, 1.0]


def test_no_descent_constant_is_claimed_from_a_larger_first_rank():
    data = gaussian()
    p = problem(data, mlp(data, widths=(16, 16)), tt, rank=3)
    *_, last = NNBCD(initial_rank=8).run(p, 2)
    assert "decrease/lambda" not in last.observation.terms
