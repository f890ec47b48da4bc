"""Any solver with any compression: every option of conf/compression, from its YAML to the stored network."""

import itertools
import json

import pytest
import torch
from problems import ARCHITECTURE, OPTIONS, problem_of

from nncompress import checkpoint, metrics
from nncompress.compact.artefact import load, save_compact
from nncompress.errors import Unsupported
from nncompress.problem import Problem, weights_of, with_weights
from nncompress.solvers.baselines import DCRetrain
from nncompress.solvers.nnbcd import NNBCD
from nncompress.solvers.sgd import SGD


@pytest.fixture(params=OPTIONS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return problem_of(request.param)


def test_nnbcd_lowers_its_objective_at_every_sweep_as_much_as_it_must(problem):
    solver = NNBCD(num_steps=6)
    seen = [iterate.observation.terms for iterate in solver.run(problem, 6) if iterate.observation is not None]
    objective = [terms["objective"] for terms in seen]
    assert all(after <= before + 1e-10 for before, after in itertools.pairwise(objective))
    guaranteed = seen[-1]["decrease/guaranteed"]
    assert guaranteed <= objective[0] - objective[-1] + 1e-9 * abs(objective[0])


def test_nnbcd_resumes_to_the_same_weights_from_plain_tensors(problem):
    solver = NNBCD(num_steps=4)
    *_, whole = solver.run(problem, 4)
    *_, half = solver.run(problem, 2)
    restored = checkpoint.unpack(solver.init(problem), checkpoint.pack(half.state))
    *_, resumed = solver.run(problem, 4, state=restored)
    a, b = (problem.plan.decompress(iterate.state.theta) for iterate in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_retraining_does_not_raise_the_loss_and_keeps_the_size(problem):
    if not problem.plan.tasks:
        with pytest.raises(Unsupported, match="choose a compression"):
            DCRetrain().init(problem)
        return
    first, *_, last = (it.observation for it in DCRetrain(num_steps=2, lr=0.01).run(problem, 2) if it.observation)
    assert last.terms["objective"] <= first.terms["objective"]
    assert metrics.sizes(problem, last.theta) == metrics.sizes(problem, first.theta)


def test_the_stored_network_computes_what_the_deployed_one_does(problem, tmp_path):
    *_, last = SGD(num_steps=1).run(problem, 1)
    observation = last.observation
    save_compact(tmp_path, problem, observation, ARCHITECTURE)
    deployed = with_weights(observation.model, problem.plan.decompress(observation.theta)).float()
    x = problem.data.test.x.float()
    torch.testing.assert_close(load(tmp_path)(x), deployed(x), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 3


def test_sizes_add_up(problem):
    plan = problem.plan
    weights = plan.select(weights_of(problem.model))
    theta = plan.compress(weights)
    size = metrics.sizes(problem, theta)
    tasks = metrics.task_sizes(plan, weights, theta)
    outside = size["params/dense"] - plan.numel()
    assert size["bits/compressed"] == 32 * outside + sum(task["bits/compressed"] for task in tasks)
    assert size["params/compressed"] == outside + sum(task["params/compressed"] for task in tasks)
    assert metrics.huffman_bits(problem, theta) <= size["bits/compressed"]
    layers = metrics.layers_of(problem.model, problem.data.train.x[:1])
    assert 0 < metrics.macs(plan, theta, layers)["ratio/macs"] <= 1
