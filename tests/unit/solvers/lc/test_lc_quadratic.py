"""The LC algorithm on quadratics: closed forms, multipliers, learning rates and their limits."""

import logging
from functools import partial

import pytest
import torch
from cases import case
from lc_cases import DESCENT, FULL, ROOT, descending, exact, last_of, quadratic, rank_one
from problems import F64, randn

from nncompress.compressions.quantization.fixed import binary
from nncompress.errors import Diverged
from nncompress.problem import weights_of
from nncompress.solvers.training.descent import Exponential, stability_limit

NESTEROV = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
HEAVY_BALL = partial(torch.optim.SGD, momentum=0.9)
DIAGONAL = [[1.0, 0.0], [0.0, 1.2]]
BEST_FULL = [[0.96346, 0.56257], [0.67168, 0.39220]]


def weight_of(p, theta):
    return p.plan.decompress(theta)["weight"]


def compressed(p, w):
    return weight_of(p, p.plan.compress(p.plan.select({"weight": w})))


def start_of(p):
    """Δ(Θ) of direct compression."""
    return compressed(p, weights_of(p.model)["weight"])


def assert_reached(solver, reference, loss):
    terms = last_of(solver, quadratic(ROOT, reference, rank_one)).observation.terms
    with case(solver=solver, reference=reference):
        assert terms["objective"] == pytest.approx(loss, abs=2e-6)
        assert terms["gap"] < 3e-4


def test_the_loss_reached_on_the_rank_one_quadratic():
    for reference, settings, loss in (
        (DIAGONAL, {}, 0.72),
        (FULL, {}, 0.461139),
        (FULL, {"mu0": 10.0}, 0.472278),
        (FULL, {"mu0": 10.0, "multipliers": False}, 0.478070),
    ):
        assert_reached(exact(120, ROOT, **settings), reference, loss)
    assert_reached(exact(200, ROOT, multipliers=False), DIAGONAL, 4.5)


@pytest.mark.slow
def test_the_loss_reached_on_the_rank_one_quadratic_by_descent_is_that_of_exact_l_steps():
    for multipliers, loss in ((True, 0.461139), (False, 0.463023)):
        assert_reached(exact(200, ROOT, multipliers=multipliers), FULL, loss)
        assert_reached(descending(200, multipliers=multipliers), FULL, loss)


def test_the_augmented_lagrangian_ends_at_the_weighted_truncation_with_lambda_the_gradient():
    _, theta, terms, *_ = last_of(exact(140, ROOT), quadratic(ROOT, FULL, rank_one)).observation
    dense = theta[0].U @ theta[0].V
    assert dense == pytest.approx(torch.tensor(BEST_FULL, dtype=F64), abs=1e-4)
    assert terms["kkt/distance"] < 1e-5
    assert terms["kkt/cosine"] == pytest.approx(1, abs=1e-9)
    assert terms["lam/norm"] == pytest.approx(terms["grad/norm"], rel=1e-5)


def test_direct_compression_is_where_the_path_starts():
    start, *_ = descending(1).run(quadratic(ROOT, FULL, rank_one), 0)
    assert start.observation.terms["objective"] == pytest.approx(1.550386, abs=1e-6)
    assert start.observation.terms["loss/w"] == 0


def test_multipliers_move_a_binary_pair_that_the_penalty_leaves_where_direct_compression_put_it():
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)).T

    def run(reference, multipliers):
        # the weight is a column: L = 1/2 (w - reference)' H (w - reference)
        p = quadratic(root, torch.tensor(reference, dtype=F64)[:, None], partial(binary, layers="all"))
        observation = last_of(exact(100, root, multipliers=multipliers), p).observation
        return weight_of(p, observation.theta).flatten().tolist(), observation.terms["objective"]

    assert run((1.6, -0.2), True) == ([1, 1], pytest.approx(0.252))
    assert run((1.6, -0.2), False) == ([1, -1], pytest.approx(0.932))
    assert run((0.2, 0.15), True) == ([1, 1], pytest.approx(1.29325))  # LC is local: (1, -1) has 0.15325


def test_an_l_step_solves_its_linear_system():
    root, reference = torch.eye(3, dtype=F64) + 0.2 * randn(3, 3, seed=1), randn(3, 3, seed=2)
    p = quadratic(root, reference, rank_one)
    hessian = root.T @ root
    lr = 1 / float(torch.linalg.eigvalsh(hessian)[-1] + 1)
    solver = descending(2, mu0=0.7, growth=1.5, lr=lr, epochs=60)
    _, first, second = (iterate.state for iterate in solver.run(p, 2))  # one module: w is that of the last step
    dense, lam = weight_of(p, first.theta), first.lam[0]
    mu = 0.7 * 1.5
    expected = torch.linalg.solve(hessian + mu * torch.eye(3), hessian @ reference + mu * dense + lam)
    assert second.model.weight.detach() == pytest.approx(expected, abs=1e-7)
    projected, found = compressed(p, expected - lam / mu), weight_of(p, second.theta)
    assert found == pytest.approx(projected, abs=1e-6)
    assert second.lam[0] == pytest.approx(lam - mu * (expected - found), abs=1e-6)


def test_the_quadratic_penalty_uses_no_multipliers_but_records_their_estimate():
    p = quadratic(ROOT, FULL, rank_one)
    state = last_of(descending(3, multipliers=False), p).state
    w, dense = state.model.weight.detach(), weight_of(p, state.theta)
    assert state.lam[0] == pytest.approx(-1e-3 * 1.1**2 * (w - dense))
    assert dense == pytest.approx(compressed(p, w))


def test_with_no_loss_a_rate_of_one_over_mu_reaches_the_target_in_one_step():
    p = quadratic(torch.zeros(2, 2, dtype=F64), FULL, rank_one)
    last = last_of(descending(1, mu0=4.0, lr=100.0, epochs=1, first_epochs=1), p)
    assert last.observation.terms["lr"] == 0.25
    assert last.state.model.weight.detach() == pytest.approx(start_of(p), abs=1e-12)


def test_the_limit_of_stability_of_momentum_on_the_penalty():
    """Of the L step without a loss for some epochs, and of the same recursion for many."""
    p = quadratic(torch.zeros(2, 2, dtype=F64), FULL, rank_one)

    def distances(optimizer, product, steps):
        """From the target, after each step of descent on 1/2 ‖W - target‖²."""
        w = (torch.tensor(FULL, dtype=F64) - start_of(p)).requires_grad_()
        descent = optimizer([w], lr=product)
        for _ in range(steps):
            w.grad = w.detach().clone()
            descent.step()
            yield float(w.detach().norm())

    for optimizer, limit, stable, unstable in ((NESTEROV, 3.8 / 2.8, 1.35, 1.36), (HEAVY_BALL, 3.8, 3.79, 3.81)):
        with case(optimizer=optimizer):
            found = stability_limit(optimizer([torch.zeros(1, requires_grad=True)], lr=1.0))
            assert found == pytest.approx(limit, rel=1e-12)
            assert stable < found < unstable
            for product in (stable, unstable):
                settings = {"mu0": 1.0, "lr": product, "epochs": 60, "first_epochs": 60, "clip": False}
                last = last_of(descending(1, optimizer=optimizer, **settings), p)
                after = list(distances(optimizer, product, 2000))
                distance = float((last.state.model.weight.detach() - start_of(p)).norm())
                assert distance == pytest.approx(after[59], rel=1e-9)
                assert after[-1] < 0.1 if product < limit else after[-1] > 10


def test_only_sgd_has_a_known_limit_of_stability():
    parameter = [torch.zeros(1, requires_grad=True)]
    assert stability_limit(torch.optim.SGD(parameter, lr=1.0)) == 2
    assert stability_limit(torch.optim.Adam(parameter, lr=1.0)) is None


def test_a_rate_beyond_the_limit_is_warned_of_and_its_divergence_names_the_limit(caplog):
    solver = descending(3, mu0=30.0, lr=0.1, epochs=60, optimizer=NESTEROV, clip=False)
    with caplog.at_level(logging.WARNING), pytest.raises(Diverged, match=r"below 1\.357.*here it is 3\b.*clip=true"):
        list(solver.run(quadratic(ROOT, FULL, rank_one), 3))
    assert "unstable from 1.36: use solver.clip=true" in caplog.text


def test_a_rate_too_large_for_the_loss_itself_is_said_to_be():
    with pytest.raises(Diverged, match=r"found nan|found inf|found \d.*use a smaller solver.lr; the records"):
        list(descending(2, mu0=1e-3, lr=5.0, epochs=60).run(quadratic(ROOT, FULL, rank_one), 2))


def test_learning_rates_are_clipped_at_one_over_mu():
    solver = descending(4, mu0=1.0, growth=4.0, lr=0.1, epochs=1)
    rates = [i.observation.terms["lr"] for i in solver.run(quadratic(ROOT, FULL, rank_one), 4)]
    assert rates == pytest.approx([0, 0.1, 0.1, 1 / 16, 1 / 64])


def test_the_rate_follows_the_schedule_of_the_step_and_of_the_epoch():
    solver = descending(3, lr=0.1, epochs=2, schedule=Exponential(0.5), epoch_schedule=Exponential(0.1))
    rates = [i.observation.terms["lr"] for i in solver.run(quadratic(ROOT, FULL, rank_one), 3)]
    assert rates == pytest.approx([0, 0.1, 0.05, 0.025])  # the largest of a step is its first epoch's


def test_the_first_l_step_has_twice_the_epochs_unless_told_otherwise():
    p = quadratic(ROOT, FULL, rank_one)
    assert [i.observation.terms["epochs"] for i in descending(2, epochs=3).run(p, 2)] == [0, 6, 9]
    assert [i.observation.terms["epochs"] for i in descending(2, epochs=3, first_epochs=1).run(p, 2)] == [0, 1, 4]


def test_it_stops_when_the_gap_is_below_the_tolerance():
    *before, last = exact(300, ROOT, tolerance=1e-2).run(quadratic(ROOT, FULL, rank_one), 300)
    assert last.step < 150
    assert last.observation.terms["gap"] < 1e-2
    assert all(i.observation.terms["gap"] >= 1e-2 for i in before)


def test_an_l_step_leaves_a_reference_without_loss_and_gap_alone():
    p = quadratic(ROOT, [[1.0, 0.5], [2.0, 1.0]], rank_one)  # of rank one, and the minimum
    last = last_of(descending(3, mu0=0.5, optimizer=DESCENT), p)
    assert last.observation.terms["gap"] < 1e-12
    assert last.observation.terms["objective"] < 1e-20
