"""Minibatch descent with a regulariser: records, restored states, what a step does, the packaged options."""

import copy
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from cases import case
from problems import F64, mlp, problem, small_digits
from regulariser_cases import KINDS, PROXIMAL, SUBGRADIENTS, convolutions, shrunk, small, solver, subgradient
from runs import configuration
from torch import nn

from nncompress.config.build import build
from nncompress.experiment import checkpoint
from nncompress.metrics import evaluate
from nncompress.problem import Problem
from nncompress.solvers.sgd.regularisers import ProximalGroupLasso, ProximalNuclearNorm, Regulariser
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.training.descent import Constant, Exponential

PLAIN = partial(torch.optim.SGD, momentum=0.0)


def terms(method: SGD, p: Problem, num_steps: int, state: object = None) -> list[dict[str, float]]:
    return [iterate.observation.terms for iterate in method.run(p, num_steps, state=state)]


def test_without_a_regulariser_the_record_is_that_of_the_loss():
    start, *_ = terms(solver(), small(), 1)
    assert start.keys() == {"objective", "epochs"}


def test_the_objective_is_the_loss_and_the_price_of_the_observed_network():
    p = small()
    for kind in KINDS:
        for average in (0.0, 0.5):
            with case(kind=kind, average=average):
                *_, last = solver(regulariser=kind(lam=0.02), average=average).run(p, 2)
                model, _, found, *_ = last.observation
                filters = [row.flatten().norm() for w in convolutions(model) for row in w]
                values = [s for w in convolutions(model) for s in torch.linalg.svdvals(w.flatten(1))]
                price = 0.02 * float(sum(values if "Nuclear" in kind.__name__ else filters))
                loss = evaluate(model, p.data.train, p.loss).loss
                assert found["term/loss"] == loss
                assert found["term/regulariser"] == pytest.approx(price, rel=1e-12)
                assert found["objective"] == found["term/loss"] + found["term/regulariser"]


def test_the_same_seed_gives_the_same_records():
    for kind in KINDS:
        with case(kind=kind):
            p, method = small(), solver(regulariser=kind(lam=0.02))
            assert terms(method, p, 2) == terms(method, small(), 2)


def test_a_restored_state_continues_bit_for_bit(tmp_path):
    p = small()
    for kind in KINDS:
        with case(kind=kind):
            method, path = solver(4, regulariser=kind(lam=0.02), average=0.5), tmp_path / f"{kind.__name__}.pt"
            whole = []
            for iterate in method.run(p, 4):
                whole.append(iterate.observation.terms)
                if iterate.step == 2:
                    checkpoint.save(path, {"state": checkpoint.pack(iterate.state)})
            state = checkpoint.restore(method.init(p), checkpoint.load(path)["state"], path)
            assert terms(method, p, 4, state) == whole[3:]


# What a step does.


def whole_batch(**settings: object) -> SGD:
    """One minibatch in an epoch, no momentum."""
    return solver(batch_size=60, optimizer=PLAIN, schedule=Constant(), lr=0.1, **settings)


def after_one(method: SGD, p: Problem) -> nn.Module:
    return method.step(p, method.init(p)).model


def test_a_subgradient_is_added_to_the_gradient_of_the_loss():
    for kind in SUBGRADIENTS:
        with case(kind=kind):
            p, regulariser = small(), kind(lam=0.5)
            plain, found = (after_one(whole_batch(**more), p) for more in ({}, {"regulariser": regulariser}))
            added = subgradient(regulariser, *regulariser.weights(copy.deepcopy(p.model)))
            for w, without, g in zip(convolutions(found), convolutions(plain), added, strict=True):
                torch.testing.assert_close(w, without - 0.1 * g, rtol=1e-12, atol=1e-12)
            assert torch.equal(found.fc.weight, plain.fc.weight)


def test_a_proximal_step_is_made_behind_that_of_the_optimiser():
    for kind in PROXIMAL:
        with case(kind=kind):
            p, regulariser = small(), kind(lam=0.5)
            plain, found = (after_one(whole_batch(**more), p) for more in ({}, {"regulariser": regulariser}))
            for w, expected in zip(convolutions(found), shrunk(regulariser, 0.1, *convolutions(plain)), strict=True):
                assert torch.equal(w, expected)
            assert torch.equal(found.fc.weight, plain.fc.weight)


def test_the_average_is_taken_of_the_shrunk_weights():
    p, method = small(), whole_batch(regulariser=ProximalGroupLasso(lam=5.0), average=0.5)
    state = method.step(p, method.init(p))
    assert any((row == 0).all() for w in convolutions(state.model) for row in w)
    triples = zip(p.model.parameters(), state.model.parameters(), state.averaged.parameters(), strict=True)
    for before, now, averaged in triples:
        torch.testing.assert_close(averaged, 0.1 * before + 0.9 * now, rtol=1e-12, atol=1e-15)


@dataclass(frozen=True, kw_only=True)
class Watched(Regulariser):
    """Notes the learning rates it is given."""

    rates: list[float] = field(default_factory=list)

    def price(self, weights):
        return torch.zeros((), dtype=F64)

    def shrink(self, weights, lr):
        self.rates.append(lr)


def test_a_proximal_step_has_the_learning_rate_of_its_epoch():
    watched = Watched(lam=1.0)
    rows = terms(solver(lr=0.2, schedule=Exponential(0.5), regulariser=watched), small(), 3)
    assert watched.rates == [0.2] * 3 + [0.1] * 3 + [0.05] * 3
    assert len(rows) == 4


def test_behind_momentum_without_dampening_a_proximal_step_counts_less():
    for dampening, minimiser in ((0.0, 1 - 0.1 * 0.4), (0.9, 1 - 0.4)):
        with case(dampening=dampening):
            w = nn.Parameter(torch.full((1, 1), 3.0, dtype=F64))
            optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9, dampening=dampening)
            for _ in range(800):
                w.grad = w.detach() - 1  # of (w - 1)²/2
                optimizer.step()
                ProximalGroupLasso(lam=0.4).shrink([w.detach()], 0.05)
            assert float(w.detach()) == pytest.approx(minimiser, abs=1e-9)


def test_the_proximal_group_lasso_makes_whole_filters_zero():
    *_, last = solver(8, regulariser=ProximalGroupLasso(lam=1.0)).run(small(), 8, every=8)
    dead = [row for w in convolutions(last.observation.model) for row in w if (row == 0).all()]
    assert 0 < len(dead) < sum(len(w) for w in convolutions(last.observation.model))


def test_the_proximal_nuclear_norm_lowers_ranks():
    *_, plain = solver(8).run(small(), 8, every=8)
    *_, last = solver(8, regulariser=ProximalNuclearNorm(lam=1.0)).run(small(), 8, every=8)
    pairs = zip(convolutions(last.observation.model), convolutions(plain.observation.model), strict=True)
    ranks = [tuple(int(torch.linalg.matrix_rank(w.flatten(1))) for w in pair) for pair in pairs]
    assert all(low <= full for low, full in ranks)
    assert any(low < full for low, full in ranks)


# The packaged options.


def option(name: str, *words: str) -> SGD:
    """The solver of conf/solver as the command would build it."""
    found: SGD = build(configuration(f"solver={name}", "solver.num_steps=2", *words).solver)
    return found


def test_an_option_trains_a_network_and_records_the_price():
    for name in ("group_lasso", "nuclear_norm", "proximal_nuclear_norm"):
        with case(name=name):
            rows = terms(option(name), small(), 2)
            assert len(rows) == 3
            for row in rows:
                assert row["objective"] == row["term/loss"] + row["term/regulariser"]
                assert row["term/regulariser"] > 0


def test_an_option_takes_a_network_without_convolutions_once_it_acts_on_all_weights():
    p = problem(small_digits(60), mlp(small_digits(60)))
    assert terms(option("group_lasso", "solver.regulariser.layers=all"), p, 1)[-1]["term/regulariser"] > 0


def test_steps_of_fixed_length_are_an_option():
    p = problem(small_digits(60), mlp(small_digits(60)))
    first, *_, last = terms(option("normalised_sgd", "solver.optimizer.joint=true"), p, 2)
    assert last["objective"] < first["objective"]
