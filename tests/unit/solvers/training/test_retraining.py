"""Retraining after direct compression: closed forms, gradients through decompression, what stays as it is."""

import pytest
import torch
from artefact_cases import about
from baseline_cases import FAMILIES, INPUTS, OUTPUTS, descended, fixed_parts, last, least_squares, on_support, small
from cases import case
from problems import F64, gaussian, mlp, problem
from torch import nn

from nncompress import metrics
from nncompress.artefact.model import load
from nncompress.artefact.save import save
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.params import Params
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.quantization.codes import Coded
from nncompress.compressions.quantization.fixed import binary, powers_of_two
from nncompress.compressions.quantization.uniform import low_precision, uniform
from nncompress.compressions.sparsity.magnitude import l0, l0_penalty, l1, l1_penalty
from nncompress.errors import Unsupported
from nncompress.metrics import evaluate
from nncompress.problem import weights_of, with_weights
from nncompress.solvers.lc.baselines import DCRetrain, squared_error
from nncompress.solvers.training.descent import Constant
from nncompress.surgery.theta import power_of_two


def test_retraining_starts_from_direct_compression_and_keeps_positions_codes_and_bits():
    solver = DCRetrain(num_steps=3, batch_size=16)
    for family, (recipe, settings) in FAMILIES.items():
        p = small(recipe, settings)
        theta = p.plan.compress(p.plan.select(weights_of(p.model)))
        first, *_, final = (iterate.observation for iterate in solver.run(p, 3, every=3) if iterate.observation)
        with case(family=family):
            for name, w in p.plan.decompress(theta).items():
                assert torch.equal(first.model.get_parameter(name), w)
            for name, w in p.plan.decompress(final.theta).items():
                assert torch.equal(final.model.get_parameter(name), w)
            assert fixed_parts(first.theta) == fixed_parts(final.theta) == fixed_parts(theta)
            assert [type(t) for t in final.theta] == [type(t) for t in theta]
            assert metrics.sizes(p, final.theta) == metrics.sizes(p, theta)
            assert final.terms["objective"] < first.terms["objective"]
            assert final.terms["epochs"] == 3


def test_the_gradient_of_what_is_learned_is_that_of_the_dense_weights_through_decompression():
    for family, (recipe, settings) in FAMILIES.items():
        p = small(recipe, settings, activation="tanh")
        network = DCRetrain().init(p).network
        p.loss(network(p.data.train.x), p.data.train.y).backward()
        dense = with_weights(network.model, {})
        p.loss(dense(p.data.train.x), p.data.train.y).backward()
        gradient = Params({name: dense.get_parameter(name).grad for name in p.plan.shapes})
        before = p.plan.decompress(network.theta).detach()
        for tensor in network.tensors:
            for i in range(0, tensor.numel(), 4):
                with torch.no_grad():
                    tensor.view(-1)[i] += 1e-5
                    move = p.plan.decompress(network.theta) - before
                    tensor.view(-1)[i] -= 1e-5
                expected = float(sum((gradient[name] * move[name]).sum() for name in move)) / 1e-5
                with case(family=family, i=i):
                    assert float(tensor.grad.view(-1)[i]) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_the_retrained_network_is_stored_and_loaded(tmp_path):
    architecture = {"_target_": "nncompress.models.MLP", "widths": [8, 8], "activation": "relu", "bias": True}
    for family, (recipe, settings) in FAMILIES.items():
        p = small(recipe, settings)
        observation = last(DCRetrain(num_steps=2), p, 2).observation
        save(tmp_path / family, observation.model, p.plan, observation.theta, about(p.data, architecture))
        x = p.data.test.x.float()
        found, expected = load(tmp_path / family)(x), observation.model.float()(x)
        with case(family=family):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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


def test_an_l1_ball_and_penalties_choose_the_support_and_bind_it_no_longer():
    for recipe, settings in ((l1, {"radius": 3.0}), (l1_penalty, {"alpha": 0.3}), (l0_penalty, {"alpha": 0.2})):
        p, x, targets = least_squares(recipe, **settings)
        W = p.plan.decompress(p.plan.compress(p.plan.select(weights_of(p.model))))["0.weight"]
        found = p.plan.decompress(descended(p))["0.weight"]
        final = last(DCRetrain(num_steps=1), p, 1).observation
        with case(recipe=recipe):
            assert 0 < int(W.count_nonzero()) < W.numel()
            torch.testing.assert_close(found, on_support(x, targets, W), rtol=1e-9, atol=1e-9)
            loss = evaluate(final.model, p.data.train, p.loss).loss
            assert final.terms["objective"] == pytest.approx(loss, rel=1e-12)


def test_where_the_weights_are_fixed_the_other_parameters_learn():
    for recipe in (binary, powers_of_two, low_precision):
        p = small(recipe, {})
        first, *_, final = (
            iterate.observation for iterate in DCRetrain(num_steps=4).run(p, 4, every=4) if iterate.observation
        )
        with case(recipe=recipe):
            for name, w in final.model.named_parameters():
                assert torch.equal(w, first.model.get_parameter(name)) == (name in p.plan.shapes)
            assert final.terms["objective"] < first.terms["objective"]


def test_nothing_left_to_learn_is_refused_in_a_sentence():
    data = gaussian(n=40, d=16)
    p = problem(data, mlp(data, bias=False), binary, layers="all")
    with pytest.raises(Unsupported, match=r"something must be left to learn, found that FixedCodebook\(.*\) fixes"):
        DCRetrain().init(p)


def test_the_sensitivity_of_a_table_is_the_norm_of_the_columns_of_its_jacobian():
    quantised = [name for name in FAMILIES if name.startswith(("codebook", "scaled", "uniform"))]
    assert len(quantised) == 7
    for name in quantised:
        p = small(*FAMILIES[name])
        task, theta = p.plan.tasks[0], p.plan.compress(p.plan.select(weights_of(p.model)))[0]

        def decompress(table, task=task, theta=theta):
            return task.compression.decompress(Coded(theta.codes, table))

        expected = torch.func.jacrev(decompress)(theta.table).reshape(-1, *theta.table.shape).norm(dim=0)
        with case(family=name):
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
