"""The LC algorithm on networks: what is kept, the first mu, the figures recorded, what is refused."""

import copy
import math
from functools import cache, partial

import pytest
import torch
from cases import case
from lc_cases import DESCENT, digits_problem, last_of
from own_parts import Residual
from problems import F64, gaussian, mlp, problem, randn
from torch import nn

from nncompress.compressions.additive import additive
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.rank_selection import rank_selection
from nncompress.compressions.plan import mixed, none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.sparsity.magnitude import l0, l0_penalty, l1_penalty
from nncompress.errors import ConfigError, Unsupported
from nncompress.metrics import evaluate
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.lc.lc import LC
from nncompress.solvers.lc.mu import find_mu0
from nncompress.solvers.training.descent import Exponential, full_gradient

SMALL = LC(num_steps=8, growth=1.8, epochs=10, lr=0.1, batch_size=50)


@cache
def codebook_run():
    """The iterates of a run on digits, and their problem."""
    p = digits_problem(codebook, K=2, layers="all")
    return p, list(SMALL.run(p, 8))


def test_lc_has_a_lower_loss_than_direct_compression():
    sparse, low = digits_problem(l0, keep=0.05, joint=True, layers="all"), digits_problem(low_rank, rank=2)
    runs = {"codebook": codebook_run()[1]} | {"l0": SMALL.run(sparse, 8), "low-rank": SMALL.run(low, 8)}
    for name, iterates in runs.items():
        with case(compression=name):
            start, *_, last = (i.observation.terms["objective"] for i in iterates)
            assert last < 0.5 * start


def test_the_result_is_the_step_of_the_lowest_objective_direct_compression_included():
    p, iterates = codebook_run()
    objectives = [i.observation.terms["objective"] for i in iterates]
    best = objectives.index(min(objectives))
    end = iterates[-1]
    _, _, terms, deployed, *_ = SMALL.result(p, end.state, end.observation)
    assert terms["step/kept"] == best
    assert evaluate(deployed, p.data.train, p.loss).loss == pytest.approx(min(objectives))
    ruined = LC(num_steps=2, mu0=1e-9, lr=3.0, epochs=3, batch_size=16, growth=1.0)
    *_, end = ruined.run(p, 2)
    assert end.observation.terms["step/kept"] == 0
    dc = p.plan.compress(p.plan.select(weights_of(p.model)))
    assert torch.equal(ruined.result(p, end.state, end.observation).theta[0].codes, dc[0].codes)


def test_the_penalty_leaves_uncompressed_parameters_to_the_loss():
    data = gaussian(n=40, d=6)
    p = problem(data, mlp(data, widths=(8,), bias=True), l0, keep=0.2)
    last = last_of(LC(num_steps=2, mu0=1e6, lr=0.1, batch_size=8, epochs=3), p)
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
    for (model, _, found, *_), decay in zip(terms, (0.0, 0.3), strict=True):
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


def test_the_weight_decay_of_adamw_is_no_part_of_the_loss():
    p = digits_problem(l0, keep=0.1)
    adamw, adam = (partial(o, weight_decay=0.1) for o in (torch.optim.AdamW, torch.optim.Adam))
    found = [last_of(LC(num_steps=0, mu0=1.0, optimizer=o), p).observation.terms["grad/norm"] for o in (adamw, adam)]
    plain = last_of(LC(num_steps=0, mu0=1.0), p).observation.terms["grad/norm"]
    assert found[0] == plain != found[1]


# --- the first mu


def test_penalties_start_at_mu0():
    p = digits_problem(l0_penalty, alpha=1e-3, layers="all")
    start, *_ = LC(num_steps=1, mu0=0.5).run(p, 0)
    w = torch.cat([w.flatten() for w in weights_of(p.model).values()])
    kept = sum(theta.values.numel() for theta in start.observation.theta)
    assert kept == int((w.abs() > (2 * 1e-3 / 0.5) ** 0.5).sum()) > 0
    assert start.observation.terms["term/penalty"] == pytest.approx(1e-3 * kept)


def test_the_first_mu_found_for_a_penalty_is_near_the_least_at_which_every_task_keeps_something():
    for recipe in (l0_penalty, l1_penalty, rank_selection):
        p = digits_problem(recipe, alpha=1e-3, layers="all")
        w = p.plan.select(weights_of(p.model))
        mu0 = find_mu0(p, w, math.inf)

        def keeps(mu, p=p, w=w):
            theta = p.plan.compress(w, mu)
            return all(bool(dense.any()) for dense in p.plan.decompress(theta).values())

        with case(recipe=recipe, mu0=mu0):
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
    p = digits_problem(low_rank, rank=2)  # 150 samples
    w = p.plan.select(weights_of(p.model))
    assert find_mu0(p, w, 20.0) == 1 / 20
    solver = LC(num_steps=5, epochs=2, lr=0.1, batch_size=25, schedule=Exponential(0.5))
    start, *_ = solver.run(p, 0)  # 4 epochs of 6 batches, then 2
    assert start.observation.terms["mu"] == pytest.approx((1 - 0.9) / (0.1 * 6 * (4 + 0.5 * 2)))


def test_where_no_mu_empties_a_penalised_task_the_first_mu_is_that_of_constraints():
    def penalty_and_codebook(weights):
        parts = {"sparse": partial(l0_penalty, alpha=1e-3), "codebook": partial(codebook, K=2)}
        return additive(weights, parts=parts, layers="all")

    p = digits_problem(penalty_and_codebook)
    assert 1e-6 < find_mu0(p, p.plan.select(weights_of(p.model)), math.inf) < 1


def test_tasks_that_stay_zero_at_any_mu_do_not_raise_the_first_mu():
    def mix(weights):
        kept = partial(rank_selection, alpha=1e-3, layers=["fc1"])
        return mixed(weights, parts={"first": kept, "second": partial(l0, keep=0, layers=["fc2"])})

    p = digits_problem(mix)
    alone = digits_problem(rank_selection, alpha=1e-3, layers=["fc1"])
    found = [find_mu0(q, q.plan.select(weights_of(q.model)), math.inf) for q in (p, alone)]
    assert found[0] == found[1] < 1


def test_mu_that_leaves_the_numbers_of_the_type_is_refused():
    p = digits_problem(l0, keep=0.1)
    single = Problem(copy.deepcopy(p.model).float(), p.data.to("cpu", torch.float32), p.plan)
    with pytest.raises(ConfigError, match=r"between 1.2e-38 and 3.4e\+38 \(float32\), found mu0 0.001 times 10.0"):
        LC(num_steps=60, growth=10.0, mu0=1e-3).init(single)
    with pytest.raises(ConfigError, match="found mu0 1e-50"):
        LC(mu0=1e-50).init(single)
    assert LC(num_steps=60, growth=10.0, mu0=1e-3).init(p).mu0 == 1e-3  # float64


# --- networks


class Unused(nn.Module):
    """A layer that the loss does not reach."""

    def __init__(self):
        super().__init__()
        self.fc, self.extra = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x)


def test_a_weight_that_the_loss_does_not_reach_is_compressed_all_the_same():
    data = gaussian(n=40, d=6)
    torch.manual_seed(0)
    p = problem(data, Unused().to(F64), codebook, K=2, layers="all")
    last = last_of(LC(num_steps=2, mu0=1.0, epochs=2, lr=0.1, batch_size=8), p)
    assert last.observation.terms["gap"] < 0.5


def test_a_network_with_batch_norm_and_a_skip_is_compressed():
    split = Split(randn(60, 1, 6, 6), torch.arange(60) % 3)
    torch.manual_seed(0)
    model = Residual((1, 6, 6), 3).to(F64)
    p = Problem(model, Dataset(split, split, 3, "images"), codebook(weights_of(model), K=2, layers="all"))
    last = last_of(LC(num_steps=4, growth=2.0, epochs=2, lr=0.1, batch_size=20), p)
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


def test_values_out_of_range_are_refused():
    for settings, words in (
        ({"mu0": 0.0}, r"mu0 must be positive and finite \(null: found from the data\), found 0.0"),
        ({"mu0": -1e-3}, "mu0 must be positive"),
        ({"mu0": float("nan")}, "mu0 must be positive"),
        ({"growth": 0.9}, "growth must be at least 1"),
        ({"lr": math.inf}, "lr must be positive and finite"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"first_epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
    ):
        with case(settings=settings), pytest.raises(ValueError, match=words):
            LC(**settings)
