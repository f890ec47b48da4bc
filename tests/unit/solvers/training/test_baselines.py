"""Direct compression, distillation and iterated direct compression: closed forms, and what they leave as it is."""

import pytest
import torch
from baseline_cases import FAMILIES, N, descended, last, least_squares, on_support, small
from cases import case
from problems import mlp, problem, small_digits

from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.params import Params
from nncompress.compressions.plan import none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.sparsity.magnitude import l0, l0_penalty
from nncompress.errors import Unsupported
from nncompress.metrics import evaluate
from nncompress.problem import Dataset, Problem, Split, weights_of, with_weights
from nncompress.solvers.lc.baselines import IDC, DCRetrain, DirectCompression, Distillation, squared_error
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.training.descent import Constant
from nncompress.solvers.training.minibatches import Minibatches, epoch


def test_direct_compression_is_that_of_the_reference_and_trains_nothing():
    for name, (recipe, settings) in FAMILIES.items():
        p = small(recipe, settings)
        first, final = (iterate.observation for iterate in DirectCompression().run(p, 1))
        theta = p.plan.compress(p.plan.select(weights_of(p.model)))
        dense, expected = p.plan.decompress(final.theta), p.plan.decompress(theta)
        deployed = with_weights(p.model, expected)
        value = evaluate(deployed, p.data.train, p.loss).loss + p.plan.penalty(theta)
        with case(family=name):
            assert all(torch.equal(dense[weight], expected[weight]) for weight in expected)
            assert all(torch.equal(a, b) for a, b in zip(final.model.parameters(), p.model.parameters(), strict=True))
            assert first.terms["objective"] == final.terms["objective"] == pytest.approx(value, rel=1e-12)
            assert final.terms["epochs"] == 0


def test_distillation_solves_the_normal_equations_for_the_logits_of_the_reference():
    p, x, _ = least_squares(l0, keep=0.4)
    reference = p.model[0].weight.detach()
    W = p.plan.decompress(p.plan.compress(p.plan.select(weights_of(p.model))))["0.weight"]
    found = p.plan.decompress(descended(p, Distillation))["0.weight"]
    torch.testing.assert_close(found, on_support(x, x @ reference.T, W), rtol=1e-9, atol=1e-9)


def test_distillation_stays_at_the_reference_when_nothing_is_compressed_away():
    p = small(l0, {"keep": 1.0})
    terms = last(Distillation(optimizer=torch.optim.SGD), p, 3).observation.terms
    assert terms["objective"] == pytest.approx(0, abs=1e-20)
    assert terms["step_sq/sum"] == pytest.approx(0, abs=1e-20)


def test_distillation_records_the_squared_distance_of_the_logits_and_needs_no_labels():
    p = small(low_rank, {"rank": 2})
    final = last(Distillation(num_steps=4), p, 4).observation
    with torch.no_grad():
        distance = (p.model(p.data.train.x) - final.model(p.data.train.x)).square().sum() / len(p.data.train)
    assert final.terms["objective"] == pytest.approx(float(distance), rel=1e-12)
    blank = Split(p.data.train.x, torch.zeros_like(p.data.train.y))
    other = Problem(p.model, Dataset(blank, blank, 3, "no labels"), p.plan)
    unlabelled = last(Distillation(num_steps=4), other, 4).observation
    assert all(torch.equal(a, b) for a, b in zip(final.model.parameters(), unlabelled.model.parameters(), strict=True))


def test_distillation_brings_the_logits_nearer_and_leaves_the_reference_as_it_was():
    data = small_digits(150)
    p = problem(data, mlp(data, widths=(32,), bias=True), codebook, K=2)
    p.model.train()
    first, *_, final = Distillation(num_steps=10).run(p, 10, every=10)
    assert final.observation.terms["objective"] < 0.5 * first.observation.terms["objective"]
    assert p.model.training


def test_iterated_direct_compression_returns_to_the_same_point_when_each_descent_is_exact():
    p, x, targets = least_squares(l0, keep=0.4)
    solver = IDC(num_steps=3, epochs=300, lr=0.1, batch_size=N, schedule=Constant())
    seen = [iterate.observation for iterate in solver.run(p, 3)]
    full = torch.linalg.lstsq(x, targets).solution.T
    again = p.plan.decompress(p.plan.compress(Params({"0.weight": full})))["0.weight"]
    for observation in seen[1:]:
        torch.testing.assert_close(observation.model[0].weight.detach(), full, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(p.plan.decompress(observation.theta)["0.weight"], again, rtol=1e-9, atol=1e-9)
    assert [observation.terms["epochs"] for observation in seen] == [0, 600, 900, 1200]
    best = float(squared_error(x @ on_support(x, targets, again).T, targets))
    assert seen[-1].terms["objective"] > best + 1e-3


def test_a_step_of_iterated_direct_compression_is_plain_training_from_the_compressed_weights():
    p = small(codebook, {"K": 3})
    solver = IDC(num_steps=4, epochs=2, first_epochs=3, lr=0.1, batch_size=16)
    state = solver.init(p)
    model = with_weights(p.model, p.plan.decompress(state.theta))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        epoch(p, model, Minibatches(16, generator), optimizer=optimizer)
    after = solver.step(p, state)
    assert all(torch.equal(a, b) for a, b in zip(after.model.parameters(), model.parameters(), strict=True))
    theta = p.plan.compress(p.plan.select(weights_of(model)))
    torch.testing.assert_close(after.theta[0].table, theta[0].table, rtol=1e-12, atol=1e-12)
    moves = [(a - b).detach().square().sum() for a, b in zip(model.parameters(), p.model.parameters(), strict=True)]
    assert float(after.step_sq) == pytest.approx(float(sum(moves)), rel=1e-10)
    assert after.epochs == 3
    assert solver.step(p, after).epochs == 5


def test_retraining_and_distillation_recover_most_of_what_direct_compression_loses():
    data = small_digits(150)
    model = mlp(data, widths=(32,), bias=True)
    reference = last(SGD(num_steps=12, batch_size=16), problem(data, model), 12).observation.model
    p = problem(data, reference, codebook, K=2, layers="all")
    training = {"num_steps": 20, "batch_size": 16}
    solvers = DirectCompression(), DCRetrain(**training), Distillation(lr=0.03, **training)
    models = [last(solver, p, solver.num_steps).observation for solver in solvers]
    losses = [evaluate(with_weights(o.model, p.plan.decompress(o.theta)), data.train, p.loss).loss for o in models]
    assert losses[1] < 0.5 * losses[0]
    assert losses[2] < 0.5 * losses[0]


def test_a_penalty_is_weighed_against_mu():
    p = small(l0_penalty, {"alpha": 0.02})
    counts = [p.plan.num_params(DirectCompression(mu=mu).init(p).theta) for mu in (0.5, 8.0)]
    assert counts[0] < counts[1]


TRAINING = [DCRetrain(), Distillation(), IDC()]


def test_frozen_weights_and_empty_plans_are_refused_in_a_sentence():
    p = small(l0, {"keep": 0.3})
    p.model.get_parameter("fc2.weight").requires_grad_(False)
    for solver in TRAINING:
        with case(solver=solver):
            with pytest.raises(Unsupported, match=r"found that fc2.weight is frozen \(requires_grad=False\)"):
                solver.init(p)
            with pytest.raises(Unsupported, match="found none in the plan; choose a compression"):
                solver.init(small(none, {}))


def test_a_frozen_bias_stays():
    for solver in TRAINING:
        p = small(l0, {"keep": 0.3})
        bias = p.model.get_parameter("fc1.bias").requires_grad_(False)
        final = last(solver, p, 2).observation
        with case(solver=solver):
            assert torch.equal(final.model.get_parameter("fc1.bias"), bias)


def test_settings_out_of_range_are_refused():
    for kind, setting in (
        (DirectCompression, {"mu": 0.0}), (DCRetrain, {"mu": float("inf")}), (DCRetrain, {"lr": 0.0}),
        (Distillation, {"batch_size": 0}), (IDC, {"epochs": 0}), (IDC, {"first_epochs": 0}), (IDC, {"mu": -1.0}),
    ):  # fmt: skip
        with case(kind=kind, setting=setting), pytest.raises(ValueError, match="found"):
            kind(**setting)
