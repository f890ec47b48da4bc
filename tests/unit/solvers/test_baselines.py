"""The baselines of the learning-compression algorithm: closed forms, and what they leave as it is."""

from functools import partial

import pytest
import torch
from problems import F64, gaussian, mlp, problem, randn, small_digits
from torch import nn

from nncompress import metrics
from nncompress.compact.artefact import load, save_compact
from nncompress.compact.theta import power_of_two
from nncompress.compressions.additive import additive
from nncompress.compressions.codebook import codebook
from nncompress.compressions.codes import Coded
from nncompress.compressions.low_rank import low_rank
from nncompress.compressions.plan import none
from nncompress.compressions.quantization import (
    binary,
    fixed_codebook,
    powers_of_two,
    scaled_binary,
    scaled_ternary,
)
from nncompress.compressions.rank_selection import rank_selection
from nncompress.compressions.sparsity import l0, l0_penalty, l1, l1_penalty
from nncompress.compressions.structured import group_l0, n_m
from nncompress.compressions.tensor_train import tt
from nncompress.compressions.uniform import low_precision, uniform
from nncompress.errors import Unsupported
from nncompress.metrics import evaluate
from nncompress.params import Params
from nncompress.problem import Dataset, Problem, Split, weights_of, with_weights
from nncompress.solvers.baselines import IDC, DCRetrain, DirectCompression, Distillation, squared_error
from nncompress.solvers.descent import Constant
from nncompress.solvers.minibatches import Minibatches, epoch
from nncompress.solvers.sgd import SGD

N, INPUTS, OUTPUTS = 40, 6, 4
MOMENTUM = partial(torch.optim.SGD, momentum=0.9, nesterov=True)


def sparse_and_codebook(weights):
    return additive(weights, parts={"sparse": partial(l0, keep=4), "values": codebook})


FAMILIES = [
    pytest.param(l0, {"keep": 0.3}, id="l0"),
    pytest.param(l0, {"keep": 0.3, "joint": True}, id="l0-joint"),
    pytest.param(l1, {"radius": 2.0}, id="l1"),
    pytest.param(l0_penalty, {"alpha": 0.02}, id="l0-penalty"),
    pytest.param(l1_penalty, {"alpha": 0.1}, id="l1-penalty"),
    pytest.param(group_l0, {"keep": 0.5}, id="group-l0"),
    pytest.param(n_m, {}, id="n-m"),
    pytest.param(codebook, {"K": 3}, id="codebook"),
    pytest.param(codebook, {"K": 2, "per": "channel"}, id="codebook-channel"),
    pytest.param(fixed_codebook, {"scaled": True}, id="scaled-codebook"),
    pytest.param(scaled_binary, {"per": "shared"}, id="scaled-binary"),
    pytest.param(scaled_ternary, {"per": "channel"}, id="scaled-ternary"),
    pytest.param(uniform, {"bits": 3}, id="uniform"),
    pytest.param(uniform, {"bits": 3, "symmetric": False, "per": "channel"}, id="uniform-affine"),
    pytest.param(powers_of_two, {}, id="powers-of-two"),
    pytest.param(low_precision, {}, id="low-precision"),
    pytest.param(low_rank, {"rank": 3}, id="low-rank"),
    pytest.param(rank_selection, {"alpha": 0.03}, id="rank-selection"),
    pytest.param(rank_selection, {"alpha": 100.0}, id="rank-0"),
    pytest.param(tt, {"rank": 3}, id="tt"),
    pytest.param(sparse_and_codebook, {}, id="additive"),
]
every = pytest.mark.parametrize(("recipe", "settings"), FAMILIES)
FIXED = (binary, powers_of_two, low_precision)


def small(recipe, settings, activation="relu"):
    """A problem of 16-8-8-3 with biases, whose network stands for the reference."""
    data = gaussian(n=40, d=16)
    return problem(data, mlp(data, widths=(8, 8), bias=True, activation=activation), recipe, **settings)


def last(solver, p, steps, state=None):
    *_, final = solver.run(p, steps, state=state)
    return final


def fixed_parts(theta):
    """The positions, codes and shapes of Θ, as plain numbers."""
    if isinstance(theta, torch.Tensor):
        return None if theta.is_floating_point() else theta.tolist()
    return [fixed_parts(item) for item in theta] if isinstance(theta, tuple) else theta


def least_squares(recipe, **settings):
    """min ‖X Wᵀ - T‖²/n over a matrix W, of which the reference is a random one; every label is its sample's number."""
    x, targets = randn(N, INPUTS, seed=1), randn(N, OUTPUTS, seed=2)
    split = Split(x, torch.arange(N))
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False)).to(F64)
    with torch.no_grad():
        model[0].weight.copy_(randn(OUTPUTS, INPUTS, seed=3))

    def loss(logits, y):
        return squared_error(logits, targets[y])

    plan = recipe(weights_of(model), layers="all", **settings)
    return Problem(model, Dataset(split, split, OUTPUTS, "least squares"), plan, loss), x, targets


def descended(p, kind=DCRetrain, lr=0.1, steps=300):
    """Θ after full gradient steps with momentum."""
    solver = kind(num_steps=steps, lr=lr, batch_size=N, optimizer=MOMENTUM, schedule=Constant())
    *_, final = solver.run(p, steps, every=steps)
    return final.observation.theta


def on_support(x, targets, W):
    """The least-squares weights among those with the nonzero entries of W."""
    found = torch.zeros_like(W)
    for row, (own, target) in enumerate(zip(W, targets.T, strict=True)):
        kept = own.nonzero().squeeze(1)
        found[row, kept] = torch.linalg.lstsq(x[:, kept], target[:, None]).solution.squeeze(1)
    return found


@every
def test_direct_compression_is_that_of_the_reference_and_trains_nothing(recipe, settings):
    p = small(recipe, settings)
    first, final = (iterate.observation for iterate in DirectCompression().run(p, 1))
    theta = p.plan.compress(p.plan.select(weights_of(p.model)))
    dense, expected = p.plan.decompress(final.theta), p.plan.decompress(theta)
    assert all(torch.equal(dense[name], expected[name]) for name in expected)
    assert all(torch.equal(a, b) for a, b in zip(final.model.parameters(), p.model.parameters(), strict=True))
    deployed = with_weights(p.model, expected)
    value = evaluate(deployed, p.data.train, p.loss).loss + p.plan.penalty(theta)
    assert first.terms["objective"] == final.terms["objective"] == pytest.approx(value, rel=1e-12)
    assert final.terms["epochs"] == 0


@every
def test_retraining_starts_from_direct_compression_and_keeps_positions_codes_and_bits(recipe, settings):
    p = small(recipe, settings)
    theta = p.plan.compress(p.plan.select(weights_of(p.model)))
    solver = DCRetrain(num_steps=5, batch_size=16)
    first, final = solver.observe(p, solver.init(p)), last(solver, p, 5).observation
    for name, w in p.plan.decompress(theta).items():
        assert torch.equal(first.model.get_parameter(name), w)
    assert fixed_parts(first.theta) == fixed_parts(final.theta) == fixed_parts(theta)
    assert [type(t) for t in final.theta] == [type(t) for t in theta]
    assert metrics.sizes(p, final.theta) == metrics.sizes(p, theta)
    for name, w in p.plan.decompress(final.theta).items():
        assert torch.equal(final.model.get_parameter(name), w)
    assert final.terms["objective"] < first.terms["objective"]
    assert final.terms["epochs"] == 5


@every
def test_the_gradient_of_what_is_learned_is_that_of_the_dense_weights_through_decompression(recipe, settings):
    p = small(recipe, settings, activation="tanh")
    network = DCRetrain().init(p).network
    p.loss(network(p.data.train.x), p.data.train.y).backward()
    dense = with_weights(network.model, {})
    p.loss(dense(p.data.train.x), p.data.train.y).backward()
    gradient = Params({name: dense.get_parameter(name).grad for name in p.plan.shapes})
    for tensor in network.tensors:
        for i in range(0, tensor.numel(), 3):
            with torch.no_grad():
                before = p.plan.decompress(network.theta)
                tensor.view(-1)[i] += 1e-5
                move = p.plan.decompress(network.theta) - before
                tensor.view(-1)[i] -= 1e-5
            expected = float(sum((gradient[name] * move[name]).sum() for name in move)) / 1e-5
            assert float(tensor.grad.view(-1)[i]) == pytest.approx(expected, rel=1e-4, abs=1e-8)


@every
def test_the_retrained_network_is_stored_and_loaded(recipe, settings, tmp_path):
    p = small(recipe, settings)
    observation = last(DCRetrain(num_steps=2), p, 2).observation
    architecture = {"_target_": "nncompress.models.mlp.MLP", "widths": [8, 8], "activation": "relu", "bias": True}
    save_compact(tmp_path, p, observation, architecture)
    x = p.data.test.x.float()
    torch.testing.assert_close(load(tmp_path)(x), observation.model.float()(x), rtol=1e-4, atol=1e-4)


def test_retraining_a_fixed_support_solves_the_normal_equations_on_it():
    p, x, targets = least_squares(l0, keep=0.4)
    W = p.plan.decompress(p.plan.compress(p.plan.select(weights_of(p.model))))["0.weight"]
    found = p.plan.decompress(descended(p))["0.weight"]
    torch.testing.assert_close(found, on_support(x, targets, W), rtol=1e-9, atol=1e-9)


def test_retraining_a_codebook_solves_least_squares_over_its_values():
    p, x, targets = least_squares(codebook, K=3)
    codes = p.plan.compress(p.plan.select(weights_of(p.model)))[0].codes.reshape(OUTPUTS, INPUTS)
    one_hot = nn.functional.one_hot(codes.long(), 3).to(F64)
    design = torch.einsum("ns,jsk->njk", x, one_hot).reshape(-1, 3)
    expected = torch.linalg.lstsq(design, targets.reshape(-1, 1)).solution
    torch.testing.assert_close(descended(p)[0].table, expected.T, rtol=1e-9, atol=1e-9)


def test_retraining_a_uniform_grid_solves_least_squares_over_its_scale_and_offset():
    p, x, targets = least_squares(uniform, bits=2, symmetric=False)
    codes = p.plan.compress(p.plan.select(weights_of(p.model)))[0].codes.reshape(OUTPUTS, INPUTS).to(F64)
    design = torch.stack([x @ codes.T, x @ torch.ones_like(codes).T], dim=2).reshape(-1, 2)
    expected = torch.linalg.lstsq(design, targets.reshape(-1, 1)).solution
    torch.testing.assert_close(descended(p)[0].table, expected.T, rtol=1e-9, atol=1e-9)


def test_retraining_a_low_rank_reaches_the_least_loss_of_reduced_rank_regression():
    p, x, targets = least_squares(low_rank, rank=2)
    full = torch.linalg.lstsq(x, targets).solution.T
    V = torch.linalg.svd(x @ full.T, full_matrices=False).Vh[:2]
    found = p.plan.decompress(descended(p, lr=0.05, steps=600))["0.weight"]
    least = float(squared_error(x @ (V.T @ V @ full).T, targets))
    assert float(squared_error(x @ found.T, targets)) == pytest.approx(least, rel=1e-6)
    assert float(squared_error(x @ full.T, targets)) < 0.99 * least


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
    data = small_digits()
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
    data = small_digits()
    model = mlp(data, widths=(32,), bias=True)
    reference = last(SGD(num_steps=12, batch_size=16), problem(data, model), 12).observation.model
    p = problem(data, reference, codebook, K=2, layers="all")
    training = {"num_steps": 20, "batch_size": 16}
    solvers = DirectCompression(), DCRetrain(**training), Distillation(lr=0.03, **training)
    models = [last(solver, p, solver.num_steps).observation for solver in solvers]
    losses = [evaluate(with_weights(o.model, p.plan.decompress(o.theta)), data.train, p.loss).loss for o in models]
    assert losses[1] < 0.5 * losses[0]
    assert losses[2] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("recipe", "settings"), [(l1, {"radius": 3.0}), (l1_penalty, {"alpha": 0.3}), (l0_penalty, {"alpha": 0.2})]
)
def test_an_l1_ball_and_penalties_choose_the_support_and_bind_it_no_longer(recipe, settings):
    p, x, targets = least_squares(recipe, **settings)
    W = p.plan.decompress(p.plan.compress(p.plan.select(weights_of(p.model))))["0.weight"]
    assert 0 < int(W.count_nonzero()) < W.numel()
    theta = descended(p)
    found = p.plan.decompress(theta)["0.weight"]
    torch.testing.assert_close(found, on_support(x, targets, W), rtol=1e-9, atol=1e-9)
    final = last(DCRetrain(num_steps=1), p, 1).observation
    assert final.terms["objective"] == pytest.approx(evaluate(final.model, p.data.train, p.loss).loss, rel=1e-12)


def test_a_penalty_is_weighed_against_mu():
    p = small(l0_penalty, {"alpha": 0.02})
    counts = [p.plan.num_params(DirectCompression(mu=mu).init(p).theta) for mu in (0.5, 8.0)]
    assert counts[0] < counts[1]


@pytest.mark.parametrize("recipe", FIXED)
def test_where_the_weights_are_fixed_the_other_parameters_learn(recipe):
    p = small(recipe, {})
    first, final = (iterate.observation for iterate in list(DCRetrain(num_steps=4).run(p, 4))[::4])
    for name, w in final.model.named_parameters():
        assert torch.equal(w, first.model.get_parameter(name)) == (name in p.plan.shapes)
    assert final.terms["objective"] < first.terms["objective"]


def test_nothing_left_to_learn_is_refused_in_a_sentence():
    data = gaussian(n=40, d=16)
    p = problem(data, mlp(data, bias=False), binary, layers="all")
    with pytest.raises(Unsupported, match=r"something must be left to learn, found that FixedCodebook\(.*\) fixes"):
        DCRetrain().init(p)


TRAINING = [DCRetrain(), Distillation(), IDC()]


@pytest.mark.parametrize("solver", TRAINING, ids=lambda solver: type(solver).__name__)
def test_frozen_weights_and_empty_plans_are_refused_in_a_sentence(solver):
    p = small(l0, {"keep": 0.3})
    p.model.get_parameter("fc2.weight").requires_grad_(False)
    with pytest.raises(Unsupported, match=r"found that fc2.weight is frozen \(requires_grad=False\)"):
        solver.init(p)
    with pytest.raises(Unsupported, match="found none in the plan; choose a compression"):
        solver.init(small(none, {}))


@pytest.mark.parametrize("solver", TRAINING, ids=lambda solver: type(solver).__name__)
def test_a_frozen_bias_stays(solver):
    p = small(l0, {"keep": 0.3})
    bias = p.model.get_parameter("fc1.bias").requires_grad_(False)
    final = last(solver, p, 2).observation
    assert torch.equal(final.model.get_parameter("fc1.bias"), bias)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (DirectCompression, {"mu": 0.0}),
        (DCRetrain, {"mu": float("inf")}),
        (DCRetrain, {"lr": 0.0}),
        (Distillation, {"batch_size": 0}),
        (IDC, {"epochs": 0}),
        (IDC, {"first_epochs": 0}),
        (IDC, {"mu": -1.0}),
    ],
)
def test_settings_out_of_range_are_refused(kind, setting):
    with pytest.raises(ValueError, match="found"):
        kind(**setting)


QUANTISED = [case for case in FAMILIES if case.id.startswith(("codebook", "scaled", "uniform"))]


@pytest.mark.parametrize(("recipe", "settings"), QUANTISED)
def test_the_sensitivity_of_a_table_is_the_norm_of_the_columns_of_its_jacobian(recipe, settings):
    p = small(recipe, settings)
    task, theta = p.plan.tasks[0], p.plan.compress(p.plan.select(weights_of(p.model)))[0]
    jacobian = torch.func.jacrev(lambda table: task.compression.decompress(Coded(theta.codes, table)))(theta.table)
    expected = jacobian.reshape(-1, *theta.table.shape).norm(dim=0)
    torch.testing.assert_close(task.compression.sensitivity(theta).table, expected, rtol=1e-12, atol=0)


def test_a_step_moves_a_value_of_a_codebook_by_about_the_mean_gradient_of_its_weights():
    p = small(codebook, {"K": 2})
    solver = DCRetrain(lr=0.1, batch_size=40, optimizer=torch.optim.SGD, schedule=Constant())
    state = solver.init(p)
    before = solver.observe(p, state)
    p.loss(before.model(p.data.train.x), p.data.train.y).backward()
    moved = solver.observe(p, solver.step(p, state)).theta
    for task, old, new in zip(p.plan.tasks, before.theta, moved, strict=True):
        gradient = before.model.get_parameter(task.params[0]).grad.flatten()
        for k in range(2):
            mean = gradient[old.codes == k].mean()
            assert 0.5 <= float((old.table - new.table)[0, k] / (0.1 * mean)) <= 2.0


def test_powers_of_two_are_exact_and_near():
    sizes = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.3, 1e-6, 485.0], dtype=F64)
    powers = power_of_two(sizes)
    assert powers[:3].tolist() == [1.0, 1.0, 2.0]
    ratio = (powers / sizes)[1:]
    assert bool(((ratio >= 0.5**0.5) & (ratio <= 2**0.5)).all())
    assert bool((torch.frexp(powers).mantissa == 0.5).all())
