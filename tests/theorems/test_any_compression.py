"""Any solver with any compression: every option of conf/compression, from its YAML to the stored network."""

import copy
import itertools
import json
from functools import cache
from typing import Any

import pytest
import torch
from artefact_cases import about
from cases import case
from problems import ARCHITECTURE, OPTIONS, problem_of

from nncompress import metrics
from nncompress.artefact.model import load
from nncompress.artefact.save import save
from nncompress.errors import Unsupported
from nncompress.experiment import checkpoint
from nncompress.problem import weights_of, with_weights
from nncompress.solvers.lc.baselines import DCRetrain
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.sgd.sgd import SGD
from nncompress.surgery.uses import layers_of

FAMILIES = {
    "sparse": ["group_l0", "l0", "l0_penalty", "l1", "l1_penalty", "l_half_penalty", "n_m", "transformed_l1_penalty"],
    "quantised": [
        *("binary", "codebook", "fixed_codebook", "low_precision", "powers_of_two"),
        *("scaled_binary", "scaled_ternary", "ternary", "uniform"),
    ],
    "factored": ["cp", "low_rank", "rank_selection", "tt", "tt_matrix", "tucker"],
}
FAMILIES["others"] = [option for option in OPTIONS if option not in itertools.chain(*FAMILIES.values())]
every = pytest.mark.parametrize("options", [pytest.param(options, id=family) for family, options in FAMILIES.items()])
SOLVER, STEPS, HALF = NNBCD(num_steps=6), 6, 3


@cache
def run_of(option: str) -> tuple[list[dict[str, float]], list[Any], dict[str, torch.Tensor]]:
    """What NN-BCD observes, its state at half, packed, and its last weights."""
    problem, seen, halves = problem_of(option), [], []
    for iterate in SOLVER.run(problem, STEPS):
        if iterate.observation is not None:
            seen.append(iterate.observation.terms)
        if iterate.step == HALF:
            halves.append(copy.deepcopy(checkpoint.pack(iterate.state)))  # the next step takes it over
    return seen, halves[0], problem.plan.decompress(iterate.state.theta)


@every
def test_nnbcd_lowers_its_objective_at_every_sweep_as_much_as_it_must(options):
    for option in options:
        with case(option=option):
            seen, _, _ = run_of(option)
            objective = [terms["objective"] for terms in seen]
            assert len(objective) == STEPS + 1
            assert all(after <= before + 1e-10 for before, after in itertools.pairwise(objective))
            guaranteed = seen[-1]["decrease/guaranteed"]
            assert guaranteed <= objective[0] - objective[-1] + 1e-9 * abs(objective[0])


@every
def test_nnbcd_resumes_to_the_same_weights_from_plain_tensors(options):
    for option in options:
        with case(option=option):
            problem = problem_of(option)
            _, half, whole = run_of(option)
            restored = checkpoint.unpack(SOLVER.init(problem), half)
            resumed = [*SOLVER.run(problem, STEPS, state=restored)]
            assert [iterate.step for iterate in resumed] == [4, 5, 6]
            found = problem.plan.decompress(resumed[-1].state.theta)
            assert all(torch.equal(whole[name], found[name]) for name in whole)


@every
def test_retraining_does_not_raise_the_loss_and_keeps_the_size(options):
    for option in options:
        with case(option=option):
            problem = problem_of(option)
            if not problem.plan.tasks:
                with pytest.raises(Unsupported, match="choose a compression"):
                    DCRetrain().init(problem)
                continue
            solver = DCRetrain(num_steps=2, lr=0.01)
            first, *_, last = (it.observation for it in solver.run(problem, 2) if it.observation)
            assert last.terms["objective"] <= first.terms["objective"]
            assert metrics.sizes(problem, last.theta) == metrics.sizes(problem, first.theta)


@every
def test_the_stored_network_computes_what_the_deployed_one_does(options, tmp_path):
    for option in options:
        with case(option=option):
            problem, folder = problem_of(option), tmp_path / option
            folder.mkdir()
            *_, last = SGD(num_steps=1).run(problem, 1)
            observation = last.observation
            save(folder, observation.model, problem.plan, observation.theta, about(problem.data, ARCHITECTURE))
            deployed = with_weights(observation.model, problem.plan.decompress(observation.theta)).float()
            x = problem.data.test.x.float()
            torch.testing.assert_close(load(folder)(x), deployed(x), rtol=1e-4, atol=1e-4)
            assert json.loads((folder / "model.json").read_text())["format"] == 5


@every
def test_sizes_add_up(options):
    for option in options:
        with case(option=option):
            problem = problem_of(option)
            plan = problem.plan
            weights = plan.select(weights_of(problem.model))
            theta = plan.compress(weights)
            size = metrics.sizes(problem, theta)
            tasks = metrics.task_sizes(plan, weights, theta)
            outside = size["params/dense"] - plan.numel()
            assert size["bits/compressed"] == 32 * outside + sum(task["bits/compressed"] for task in tasks)
            assert size["params/compressed"] == outside + sum(task["params/compressed"] for task in tasks)
            assert metrics.huffman_bits(problem, theta) <= size["bits/compressed"]
            layers = layers_of(problem.model, problem.data.train.x[:1])
            assert 0 < metrics.macs(plan, theta, layers)["ratio/macs"] <= 1
