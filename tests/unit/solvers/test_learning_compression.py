"""The LC algorithm: closed forms, multipliers, learning rates, what is kept, what is refused."""

import copy
import logging
import math
from functools import partial

import pytest
import torch
from problems import F64, gaussian, mlp, problem, randn, small_digits
from torch import nn

from nncompress.compressions.additive import additive
from nncompress.compressions.codebook import codebook
from nncompress.compressions.low_rank import LowRank, low_rank
from nncompress.compressions.mixed import mixed
from nncompress.compressions.plan import Plan, Task, none
from nncompress.compressions.quantization import binary
from nncompress.compressions.rank_selection import rank_selection
from nncompress.compressions.sparsity import l0, l0_penalty, l1_penalty
from nncompress.compressions.views import AsMatrix
from nncompress.errors import ConfigError, Diverged, Unsupported
from nncompress.metrics import evaluate
from nncompress.problem import Dataset, Problem, Split, weights_of, with_weights
from nncompress.solvers.descent import Constant, Exponential, full_gradient, stability_limit
from nncompress.solvers.learning_compression import LC
from nncompress.solvers.mu_start import found_mu0

DESCENT = partial(torch.optim.SGD, momentum=0.0)
NESTEROV = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
HEAVY_BALL = partial(torch.optim.SGD, momentum=0.9)


def quadratic(root, reference, recipe) -> Problem:
    """L(W) = 1/2 ‖root (W - reference)‖² over the weight of a linear network whose inputs are the unit vectors."""
    reference = torch.as_tensor(reference, dtype=F64)
    n = reference.shape[1]
    split = Split(torch.eye(n, dtype=F64), torch.arange(n))

    def loss(outputs, columns):
        return n / len(columns) / 2 * ((outputs - reference.T[columns]) @ root.T).square().sum()

    model = nn.Linear(n, len(reference), bias=False).to(F64)
    model.weight.data.copy_(reference)
    plan = recipe(weights_of(model))
    return Problem(model, Dataset(split, split, n, "quadratic"), plan, loss)


def rank_one(weights):
    return Plan.of([Task(("weight",), AsMatrix(), LowRank(1))], weights)


def exact(num_steps, **settings):
    """LC whose L steps are whole-batch descent close to the minimum of quadratics of curvature 1 to 9."""
    given = {"mu0": 1e-3, "growth": 1.1, "epochs": 25, "lr": 0.1, "batch_size": 100, "optimizer": DESCENT}
    given |= {"schedule": Constant(), "tolerance": 0.0, "keep_best": False}
    return LC(num_steps=num_steps, **(given | settings))


def last_of(solver, p):
    *_, last = solver.run(p, solver.num_steps, every=solver.num_steps)
    return last


def _compressed(p, w):
    return p.plan.compress(p.plan.select({"weight": w}))


ROOT = torch.diag(torch.tensor([3.0, 1.0], dtype=F64))
DIAGONAL, FULL = [[1.0, 0.0], [0.0, 1.2]], [[1.0, 0.5], [0.2, 1.2]]
BEST_FULL = [[0.96346, 0.56257], [0.67168, 0.39220]]


@pytest.mark.parametrize(
    ("reference", "multipliers", "mu0", "loss"),
    [
        (DIAGONAL, True, 1e-3, 0.72),
        (DIAGONAL, False, 1e-3, 4.5),
        (FULL, True, 1e-3, 0.461139),
        (FULL, False, 1e-3, 0.463023),
        (FULL, True, 10.0, 0.472278),
        (FULL, False, 10.0, 0.478070),
    ],
)
def test_the_loss_reached_on_the_rank_one_quadratic(reference, multipliers, mu0, loss):
    p = quadratic(ROOT, reference, rank_one)
    settings = {"num_steps": 120, "lr": 0.05, "epochs": 40} if mu0 > 1 else {"num_steps": 200}
    last = last_of(exact(mu0=mu0, multipliers=multipliers, **settings), p)
    assert last.observation.terms["objective"] == pytest.approx(loss, abs=2e-6)
    assert last.observation.terms["gap"] < 3e-4


def test_the_augmented_lagrangian_ends_at_the_weighted_truncation_with_lambda_the_gradient():
    last = last_of(exact(200), quadratic(ROOT, FULL, rank_one))
    _, theta, terms = last.observation
    dense = theta[0].U @ theta[0].V
    assert dense == pytest.approx(torch.tensor(BEST_FULL, dtype=F64), abs=1e-4)
    assert terms["kkt/distance"] < 1e-5
    assert terms["kkt/cosine"] == pytest.approx(1, abs=1e-9)
    assert terms["lam/norm"] == pytest.approx(terms["grad/norm"], rel=1e-5)


def test_direct_compression_is_where_the_path_starts():
    p = quadratic(ROOT, FULL, rank_one)
    start, *_ = exact(1).run(p, 0)
    assert start.observation.terms["objective"] == pytest.approx(1.550386, abs=1e-6)
    assert start.observation.terms["loss/w"] == 0


def test_multipliers_move_a_binary_pair_that_the_penalty_leaves_where_direct_compression_put_it():
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)).T

    def run(reference, multipliers):
        # the weight is a column: L = 1/2 (w - reference)' H (w - reference)
        p = quadratic(root, torch.tensor(reference, dtype=F64)[:, None], partial(binary, layers="all"))
        last = last_of(exact(120, multipliers=multipliers, lr=0.5, epochs=40), p)
        dense = p.plan.decompress(last.observation.theta)["weight"]
        return dense.flatten().tolist(), last.observation.terms["objective"]

    assert run((1.6, -0.2), True) == ([1, 1], pytest.approx(0.252))
    assert run((1.6, -0.2), False) == ([1, -1], pytest.approx(0.932))
    assert run((0.2, 0.15), True) == ([1, 1], pytest.approx(1.29325))  # LC is local: (1, -1) has 0.15325


def test_an_l_step_solves_its_linear_system():
    root, reference = randn(3, 3, seed=1), randn(3, 3, seed=2)
    p = quadratic(root, reference, rank_one)
    hessian = root.T @ root
    lr = 1 / float(torch.linalg.eigvalsh(hessian)[-1] + 1)
    solver = exact(2, mu0=0.7, growth=1.5, lr=lr, epochs=3000)
    _, first, second = (iterate.state for iterate in solver.run(p, 2))  # one module: w is that of the last step
    dense, lam = p.plan.decompress(first.theta)["weight"], first.lam[0]
    mu = 0.7 * 1.5
    expected = torch.linalg.solve(hessian + mu * torch.eye(3), hessian @ reference + mu * dense + lam)
    assert second.model.weight.detach() == pytest.approx(expected, abs=1e-7)
    projected, found = (p.plan.decompress(t)["weight"] for t in (_compressed(p, expected - lam / mu), second.theta))
    assert found == pytest.approx(projected, abs=1e-6)
    assert second.lam[0] == pytest.approx(lam - mu * (expected - found), abs=1e-6)


def test_the_quadratic_penalty_uses_no_multipliers_but_records_their_estimate():
    p = quadratic(ROOT, FULL, rank_one)
    solver = exact(3, multipliers=False)
    *_, last = solver.run(p, 3)
    w, dense = last.state.model.weight.detach(), p.plan.decompress(last.state.theta)["weight"]
    assert last.state.lam[0] == pytest.approx(-1e-3 * 1.1**2 * (w - dense))
    projected = p.plan.tasks[0].compression.compress(w)
    assert dense == pytest.approx(projected.U @ projected.V)


def test_with_no_loss_a_rate_of_one_over_mu_reaches_the_target_in_one_step():
    p = quadratic(torch.zeros(2, 2, dtype=F64), FULL, rank_one)
    solver = exact(1, mu0=4.0, lr=100.0, epochs=1, first_epochs=1)
    dense = p.plan.decompress(p.plan.compress(p.plan.select(weights_of(p.model))))["weight"]
    last = last_of(solver, p)
    assert last.observation.terms["lr"] == 0.25
    assert last.state.model.weight.detach() == pytest.approx(dense, abs=1e-12)


@pytest.mark.parametrize(("optimizer", "stable", "unstable"), [(NESTEROV, 1.35, 1.36), (HEAVY_BALL, 3.79, 3.81)])
def test_the_limit_of_stability_of_momentum_on_the_penalty(optimizer, stable, unstable):
    def distance(product, epochs):
        p = quadratic(torch.zeros(2, 2, dtype=F64), FULL, rank_one)
        solver = exact(1, mu0=1.0, lr=product, epochs=epochs, first_epochs=epochs, optimizer=optimizer, clip=False)
        dense = p.plan.decompress(p.plan.compress(p.plan.select(weights_of(p.model))))["weight"]
        return float((last_of(solver, p).state.model.weight.detach() - dense).norm())

    limit = stability_limit(optimizer([torch.zeros(1, requires_grad=True)], lr=1.0))
    assert stable < limit < unstable
    assert distance(stable, 2000) < 0.1
    assert distance(unstable, 2000) > 10


def test_only_sgd_has_a_known_limit_of_stability():
    parameter = [torch.zeros(1, requires_grad=True)]
    assert stability_limit(torch.optim.SGD(parameter, lr=1.0)) == 2
    assert stability_limit(torch.optim.Adam(parameter, lr=1.0)) is None


def test_a_rate_beyond_the_limit_is_warned_of_and_its_divergence_names_the_limit(caplog):
    p = quadratic(ROOT, FULL, rank_one)
    solver = exact(3, mu0=30.0, lr=0.1, epochs=400, optimizer=NESTEROV, clip=False)
    with caplog.at_level(logging.WARNING), pytest.raises(Diverged, match=r"below 1\.357.*here it is 3\b.*clip=true"):
        list(solver.run(p, 3))
    assert "unstable from 1.36: use solver.clip=true" in caplog.text


def test_a_rate_too_large_for_the_loss_itself_is_said_to_be():
    p = quadratic(ROOT, FULL, rank_one)
    with pytest.raises(Diverged, match=r"found nan|found inf|found \d.*use a smaller solver.lr; the records"):
        list(exact(2, mu0=1e-3, lr=5.0, epochs=200).run(p, 2))


def test_learning_rates_are_clipped_at_one_over_mu():
    p = quadratic(ROOT, FULL, rank_one)
    rates = [i.observation.terms["lr"] for i in exact(4, mu0=1.0, growth=4.0, lr=0.1, epochs=1).run(p, 4)]
    assert rates == pytest.approx([0, 0.1, 0.1, 1 / 16, 1 / 64])


def test_the_rate_follows_the_schedule_of_the_step_and_of_the_epoch():
    p = quadratic(ROOT, FULL, rank_one)
    solver = exact(3, lr=0.1, epochs=2, schedule=Exponential(0.5), epoch_schedule=Exponential(0.1))
    rates = [i.observation.terms["lr"] for i in solver.run(p, 3)]
    assert rates == pytest.approx([0, 0.1, 0.05, 0.025])  # the largest of a step is its first epoch's


def test_the_first_l_step_has_twice_the_epochs_unless_told_otherwise():
    p = quadratic(ROOT, FULL, rank_one)
    assert [i.observation.terms["epochs"] for i in exact(2, epochs=3).run(p, 2)] == [0, 6, 9]
    assert [i.observation.terms["epochs"] for i in exact(2, epochs=3, first_epochs=1).run(p, 2)] == [0, 1, 4]


def test_the_penalty_leaves_uncompressed_parameters_to_the_loss():
    data = gaussian(n=40, d=6)
    p = problem(data, mlp(data, widths=(8,), bias=True), l0, keep=0.2)
    solver = LC(num_steps=2, mu0=1e6, lr=0.1, batch_size=8, epochs=3)
    last = last_of(solver, p)
    before, after = dict(p.model.named_parameters()), dict(last.observation.model.named_parameters())
    assert not any(torch.equal(before[name], after[name]) for name in before)
    dense = p.plan.decompress(last.observation.theta)["fc1.weight"]
    assert after["fc1.weight"].detach() == pytest.approx(dense, abs=1e-5)  # pulled onto Δ(Θ) by a large mu
    assert int((dense != 0).sum()) == 10


def test_the_gradient_figures_are_those_of_the_whole_loss_and_its_weight_decay():
    data = gaussian(n=40, d=6)
    p = problem(data, mlp(data, widths=(8,), bias=True), l0, keep=0.2)
    decayed = partial(torch.optim.SGD, weight_decay=0.3)
    terms = [
        last_of(LC(num_steps=1, epochs=1, batch_size=8, lr=0.01, optimizer=o), p).observation
        for o in (DESCENT, decayed)
    ]
    for (model, _, found), decay in zip(terms, (0.0, 0.3), strict=True):
        network = copy.deepcopy(model)
        loss = p.loss(network(data.train.x), data.train.y) + decay / 2 * network.fc1.weight.square().sum()
        (gradient,) = torch.autograd.grad(loss, [network.fc1.weight])
        assert found["grad/norm"] == pytest.approx(float(gradient.norm()))


def test_the_full_gradient_is_in_evaluation_mode_and_leaves_none_behind():
    data = gaussian(n=30, d=6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).to(F64).train()
    found = full_gradient(model, data.train, nn.functional.cross_entropy)
    network = copy.deepcopy(model).eval()
    loss = nn.functional.cross_entropy(network(data.train.x), data.train.y)
    for (name, _), expected in zip(
        network.named_parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
    ):
        assert found[name] == pytest.approx(expected)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def digits_problem(recipe, **settings):
    """Digits with a network trained for a few epochs of descent: the reference."""
    data = small_digits(300)
    model = mlp(data, widths=(32,), bias=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return problem(data, model, recipe, **settings)


SMALL = LC(num_steps=12, growth=1.8, epochs=30, lr=0.1, batch_size=50)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (codebook, {"K": 2, "layers": "all"}),
        (l0, {"keep": 0.05, "joint": True, "layers": "all"}),
        (low_rank, {"rank": 2}),
    ],
)
def test_lc_has_a_lower_loss_than_direct_compression(recipe, settings):
    p = digits_problem(recipe, **settings)
    start, *_, last = (i.observation.terms["objective"] for i in SMALL.run(p, 12))
    assert last < 0.5 * start


def test_the_result_is_the_step_of_the_lowest_objective_direct_compression_included():
    p = digits_problem(codebook, K=2, layers="all")
    iterates = list(SMALL.run(p, 12))
    objectives = [i.observation.terms["objective"] for i in iterates]
    best = objectives.index(min(objectives))
    end = iterates[-1]
    model, theta, terms = SMALL.result(p, end.state, end.observation)
    assert terms["step/kept"] == best
    deployed = with_weights(model, p.plan.decompress(theta))
    assert evaluate(deployed, p.data.train, p.loss).loss == pytest.approx(min(objectives))
    ruined = LC(num_steps=2, mu0=1e-9, lr=3.0, epochs=3, batch_size=16, growth=1.0)
    *_, end = ruined.run(p, 2)
    assert end.observation.terms["step/kept"] == 0
    dc = p.plan.compress(p.plan.select(weights_of(p.model)))
    assert torch.equal(ruined.result(p, end.state, end.observation).theta[0].codes, dc[0].codes)


def test_it_stops_when_the_gap_is_below_the_tolerance():
    p = quadratic(ROOT, FULL, rank_one)
    *before, last = exact(300, tolerance=1e-2).run(p, 300)
    assert last.step < 150
    assert last.observation.terms["gap"] < 1e-2
    assert all(i.observation.terms["gap"] >= 1e-2 for i in before)


def test_penalties_start_at_mu0():
    p = digits_problem(l0_penalty, alpha=1e-3, layers="all")
    start, *_ = LC(num_steps=1, mu0=0.5).run(p, 0)
    w = torch.cat([w.flatten() for w in weights_of(p.model).values()])
    kept = sum(theta.values.numel() for theta in start.observation.theta)
    assert kept == int((w.abs() > (2 * 1e-3 / 0.5) ** 0.5).sum()) > 0
    assert start.observation.terms["term/penalty"] == pytest.approx(1e-3 * kept)


@pytest.mark.parametrize("recipe", [l0_penalty, l1_penalty, rank_selection])
def test_the_first_mu_found_for_a_penalty_is_near_the_least_at_which_every_task_keeps_something(recipe):
    p = digits_problem(recipe, alpha=1e-3, layers="all")
    w = p.plan.select(weights_of(p.model))
    mu0 = found_mu0(p, w, math.inf)

    def keeps(mu):
        theta = p.plan.compress(w, mu)
        return all(bool(dense.any()) for dense in p.plan.decompress(theta).values())

    assert keeps(mu0)
    assert not keeps(mu0 / 2)


def test_the_first_mu_found_makes_the_penalty_a_hundredth_of_the_loss_of_direct_compression():
    p = digits_problem(codebook, K=2, layers="all")
    start, *_ = LC(num_steps=1, epochs=1000, lr=1e4).run(p, 0)
    terms = start.observation.terms
    w = p.plan.select(weights_of(p.model))
    penalty = terms["mu"] / 2 * float((w - p.plan.decompress(start.observation.theta)).sq())
    assert penalty == pytest.approx(0.01 * (terms["objective"] - terms["loss/w"]))


def test_the_first_mu_found_lets_a_quarter_of_the_l_steps_move_the_weights():
    p = digits_problem(low_rank, rank=2)  # 300 samples
    w = p.plan.select(weights_of(p.model))
    assert found_mu0(p, w, 20.0) == 1 / 20
    solver = LC(num_steps=5, epochs=2, lr=0.1, batch_size=50, schedule=Exponential(0.5))
    start, *_ = solver.run(p, 0)  # 4 epochs of 6 batches, then 2
    assert start.observation.terms["mu"] == pytest.approx((1 - 0.9) / (0.1 * 6 * (4 + 0.5 * 2)))


def test_where_no_mu_empties_a_penalised_task_the_first_mu_is_that_of_constraints():
    def penalty_and_codebook(weights):
        parts = {"sparse": partial(l0_penalty, alpha=1e-3), "codebook": partial(codebook, K=2)}
        return additive(weights, parts=parts, layers="all")

    p = digits_problem(penalty_and_codebook)
    w = p.plan.select(weights_of(p.model))
    assert 1e-6 < found_mu0(p, w, math.inf) < 1


def test_tasks_that_stay_zero_at_any_mu_do_not_raise_the_first_mu():
    def mix(weights):
        kept = partial(rank_selection, alpha=1e-3, layers=["fc1"])
        return mixed(weights, parts={"first": kept, "second": partial(l0, keep=0, layers=["fc2"])})

    p = digits_problem(mix)
    alone = digits_problem(rank_selection, alpha=1e-3, layers=["fc1"])
    found = [found_mu0(q, q.plan.select(weights_of(q.model)), math.inf) for q in (p, alone)]
    assert found[0] == found[1] < 1


def test_mu_that_leaves_the_numbers_of_the_type_is_refused():
    p = digits_problem(l0, keep=0.1)
    single = Problem(p.model.float(), p.data.to("cpu", torch.float32), p.plan)
    with pytest.raises(ConfigError, match=r"between 1.2e-38 and 3.4e\+38 \(float32\), found mu0 0.001 times 10.0"):
        LC(num_steps=60, growth=10.0, mu0=1e-3).init(single)
    with pytest.raises(ConfigError, match="found mu0 1e-50"):
        LC(mu0=1e-50).init(single)
    LC(num_steps=60, growth=10.0, mu0=1e-3).init(digits_problem(l0, keep=0.1))  # float64


def test_a_weight_that_the_loss_does_not_reach_is_compressed_all_the_same():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.extra = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x)

    data = gaussian(n=40, d=6)
    torch.manual_seed(0)
    p = problem(data, Unused().to(F64), codebook, K=2, layers="all")
    *_, last = LC(num_steps=2, mu0=1.0, epochs=2, lr=0.1, batch_size=8).run(p, 2)
    assert last.observation.terms["gap"] < 0.5


def test_an_l_step_leaves_a_reference_without_loss_and_gap_alone():
    p = quadratic(ROOT, [[1.0, 0.5], [2.0, 1.0]], rank_one)  # of rank one, and the minimum
    *_, last = exact(3, mu0=0.5).run(p, 3)
    assert last.observation.terms["gap"] < 1e-12
    assert last.observation.terms["objective"] < 1e-20


def test_the_weight_decay_of_adamw_is_no_part_of_the_loss():
    p = digits_problem(l0, keep=0.1)
    adamw, adam = (partial(o, weight_decay=0.1) for o in (torch.optim.AdamW, torch.optim.Adam))
    found = [last_of(LC(num_steps=0, mu0=1.0, optimizer=o), p).observation.terms["grad/norm"] for o in (adamw, adam)]
    plain = last_of(LC(num_steps=0, mu0=1.0), p).observation.terms["grad/norm"]
    assert found[0] == plain != found[1]


class Residual(nn.Module):
    """Convolution, batch norm, a skip connection."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, num_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.bn(self.conv(x)))
        return self.out(x.mean((2, 3)))


def test_a_network_with_batch_norm_and_a_skip_is_compressed():
    split = Split(randn(60, 1, 8, 8), torch.arange(60) % 3)
    torch.manual_seed(0)
    model = Residual((1, 8, 8), 3).to(F64)
    p = Problem(model, Dataset(split, split, 3, "images"), codebook(weights_of(model), K=2, layers="all"))
    *_, last = LC(num_steps=8, growth=2.0, epochs=4, lr=0.1, batch_size=20).run(p, 8)
    assert all(len(dense.unique()) <= 2 for dense in p.plan.decompress(last.observation.theta).values())
    assert not torch.equal(last.observation.model.bn.running_mean, model.bn.running_mean)


def test_a_task_on_a_frozen_parameter_and_a_plan_without_tasks_are_refused():
    data = gaussian(n=20, d=6)
    model = mlp(data, widths=(8,))
    model.fc1.weight.requires_grad_(False)
    with pytest.raises(Unsupported, match=r"fc1\.weight is frozen .*compression\.layers"):
        LC().init(problem(data, model, l0, keep=0.2))
    with pytest.raises(Unsupported, match="choose a compression"):
        LC().init(problem(data, mlp(data), none))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mu0": 0.0}, "mu0 must be positive"),
        ({"mu0": -1e-3}, "mu0 must be positive"),
        ({"mu0": float("nan")}, "mu0 must be positive"),
        ({"growth": 0.9}, "growth must be at least 1"),
        ({"lr": math.inf}, "lr must be positive and finite"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"first_epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
    ],
)
def test_values_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LC(**settings)
