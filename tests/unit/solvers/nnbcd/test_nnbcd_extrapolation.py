"""NN-BCD with extrapolation: where it goes, what it keeps, how beta moves, what it gains."""

import dataclasses
import itertools

import pandas as pd
import pytest
import torch
from cases import case
from nnbcd_cases import CARD, observations, toy

from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.results.convergence import convergence
from nncompress.solvers.nnbcd import extrapolation
from nncompress.solvers.nnbcd import extrapolation as nnbcd_extrapolation
from nncompress.solvers.nnbcd.figures import figures
from nncompress.solvers.nnbcd.state import Blocks

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
    extrapolate = extrapolation.extrapolate

    def watched(P, state, **settings):
        ended = figures(P, **rates)["objective"]
        new = extrapolate(P, state, **settings)
        compared.append((ended, figures(Blocks.of(p, new), **rates)["objective"], new.beta[0] < state.beta[0]))
        return new

    monkeypatch.setattr("nncompress.solvers.nnbcd.nnbcd.extrapolate", watched)
    *_, last = EXTRAPOLATING.run(p, 50, every=50)
    for ended, after, rejected in compared:
        assert after == pytest.approx(ended, rel=1e-12) if rejected else after <= ended
    assert 0 < sum(rejected for *_, rejected in compared) < 15
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


def test_extrapolation_never_raises_the_objective_and_reaches_a_third_of_the_plain_one():
    for recipe, settings in ((tt, {}), (l0, {"keep": 0.1})):
        p = toy(recipe, **settings)
        *_, plain = CARD.run(p, 60, every=60)
        fast = observations(p, EXTRAPOLATING, 60)
        with case(recipe=recipe):
            for before, after in itertools.pairwise(fast):
                fall = before["objective"] - after["objective"]
                assert fall >= 0.25 * after["step_sq/sweep"] - 1e-10
            assert fast[-1]["objective"] < plain.observation.terms["objective"] / 3
