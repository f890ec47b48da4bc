"""Direct learning: gradients reach Θ, ranks, positions, codes and norms are kept, penalties are refused."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import case
from problems import F64, gaussian, mlp, problem, small_digits
from runs import resume, rows, run
from torch import nn

from nncompress.artefact.model import load
from nncompress.compressions.additive import additive
from nncompress.compressions.decomposition.cp import cp
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.rank_selection import rank_selection
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.decomposition.tt_matrix import tt_matrix
from nncompress.compressions.decomposition.tucker import tucker
from nncompress.compressions.params import Params
from nncompress.compressions.plan import mixed, none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.quantization.fixed import scaled_ternary
from nncompress.compressions.sparsity.magnitude import l0, l1_penalty
from nncompress.compressions.sparsity.structured import group_l0, n_m
from nncompress.data.digits import digits
from nncompress.errors import Unsupported
from nncompress.experiment import checkpoint
from nncompress.metrics import describe_theta, evaluate
from nncompress.problem import Computation
from nncompress.solvers.lc.direct_learning import DirectLearning
from nncompress.solvers.training.descent import Constant


def low_rank_and_tucker(weights):
    parts = {
        "first": lambda w: low_rank(w, rank=2, layers=["fc1"]),
        "second": lambda w: tucker(w, rank=2, modes=[2, 4, 4, 2], layers=["fc2"]),
    }
    return mixed(weights, parts=parts)


RECIPES = {
    "tt": (tt, {"rank": 3}),
    "tt_matrix": (tt_matrix, {"rank": 3}),
    "tucker": (tucker, {"rank": 3}),
    "tucker-4": (tucker, {"rank": [2, 2, 2, 2], "modes": {"fc1": [4, 2, 2, 8], "fc2": [2, 4, 4, 2]}}),
    "cp": (cp, {"rank": 3}),
    "low_rank": (low_rank, {"rank": 3}),
    "mixed": (low_rank_and_tucker, {}),
    "l0": (l0, {"keep": 0.3}),
    "group_l0": (group_l0, {"keep": 0.5}),
    "n_m": (n_m, {}),
    "codebook": (codebook, {"K": 3}),
    "scaled_ternary": (scaled_ternary, {"per": "channel"}),
    "additive": (additive, {"parts": {"a": partial(l0, keep=5), "b": partial(low_rank, rank=1)}}),
}


def small(recipe, settings, activation="relu"):
    """A problem of 16-8-8-3 with biases."""
    data = gaussian(n=40, d=16)
    return problem(data, mlp(data, widths=(8, 8), bias=True, activation=activation), recipe, **settings)


def last(solver, p, steps, state=None):
    *_, final = solver.run(p, steps, every=steps, state=state)
    return final


def test_the_gradient_in_theta_and_the_other_parameters_is_that_of_finite_differences():
    for recipe_name, (recipe, settings) in RECIPES.items():
        p = small(recipe, settings, activation="tanh")
        network = DirectLearning().init(p).network
        p.loss(network(p.data.train.x), p.data.train.y).backward()

        def loss(p=p, network=network):
            weights = dict(network.model.named_parameters()) | dict(p.plan.decompress(network.theta))
            with torch.no_grad():
                return float(p.loss(torch.func.functional_call(p.model, weights, (p.data.train.x,)), p.data.train.y))

        for parameter in network.learned():
            if parameter.grad is None:  # Tucker's identity
                assert parameter.numel() == 0
                continue
            entries = parameter.detach().view(-1)
            for i in range(0, len(entries), 5):
                values = []
                for h in (1e-5, -1e-5):
                    entries[i] += h
                    values.append(loss())
                    entries[i] -= h
                with case(recipe=recipe_name, shape=parameter.shape, i=i):
                    difference = (values[0] - values[1]) / 2e-5
                    assert float(parameter.grad.view(-1)[i]) == pytest.approx(difference, abs=1e-8)


def test_the_deployed_network_is_the_trained_one_and_keeps_the_ranks_of_the_plan():
    for recipe_name, (recipe, settings) in RECIPES.items():
        p = small(recipe, settings)
        first, *_, final = (i.observation for i in DirectLearning(num_steps=5).run(p, 5, every=5) if i.observation)
        weights = p.plan.select(dict(final.model.named_parameters())).detach()
        with case(recipe=recipe_name):
            assert [describe_theta(t) for t in first.theta] == [describe_theta(t) for t in final.theta]
            assert all(torch.equal(w, p.plan.decompress(final.theta)[name]) for name, w in weights.items())
            assert all(not torch.equal(w, p.model.get_parameter(name)) for name, w in final.model.named_parameters())
            if recipe not in (cp, additive):  # whose projection finds local minima
                again = p.plan.decompress(p.plan.compress(weights))
                assert float((weights - again).sq() / weights.sq()) < 1e-20


def test_rescaled_factors_begin_with_the_norms_of_the_weights():
    rescaled, as_they_are = DirectLearning(), DirectLearning(rescale=False)
    for recipe_name, (recipe, settings) in RECIPES.items():
        p = small(recipe, settings)
        w = p.plan.select(dict(p.model.named_parameters())).detach()
        start, plain = (solver.observe(p, solver.init(p)) for solver in (rescaled, as_they_are))
        with case(recipe=recipe_name):
            for name, dense in p.plan.decompress(start.theta).items():
                assert float(dense.norm()) == pytest.approx(float(w[name].norm()), rel=1e-6)
            for name, dense in p.plan.decompress(p.plan.compress(w)).items():
                assert float(dense.norm()) < 0.99 * float(w[name].norm())
                assert torch.equal(dense, plain.model.get_parameter(name))


def resumed(solver, p, steps, path):
    """The last iterate of a run restored from a checkpoint after half of its steps."""
    checkpoint.save(path, {"state": checkpoint.pack(last(solver, p, steps // 2).state)})
    return last(solver, p, steps, checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path))


def test_a_restored_state_continues_bit_for_bit_and_the_problem_is_untouched(tmp_path):
    solver = DirectLearning(num_steps=4, batch_size=16)
    for recipe_name, (recipe, settings) in RECIPES.items():
        p = small(recipe, settings)
        before = {name: value.clone() for name, value in p.model.state_dict().items()}
        whole, again = last(solver, p, 4), resumed(solver, p, 4, tmp_path / "last.pt")
        with case(recipe=recipe_name):
            assert again.observation.terms == whole.observation.terms
            for a, b in zip(again.state.network.parameters(), whole.state.network.parameters(), strict=True):
                assert torch.equal(a, b)
            assert all(torch.equal(before[name], value) for name, value in p.model.state_dict().items())


def test_the_recorded_steps_are_those_of_the_decompressed_weights_and_the_other_parameters():
    p = small(tt, {"rank": 3})
    iterates = list(DirectLearning(num_steps=3).run(p, 3))
    networks = [Params(dict(iterate.observation.model.named_parameters())).detach() for iterate in iterates]
    steps = [float((b - a).sq()) for a, b in itertools.pairwise(networks)]
    terms = [iterate.observation.terms for iterate in iterates]
    assert "step_sq" not in terms[0]
    assert [term["step_sq"] for term in terms[1:]] == pytest.approx(steps, rel=1e-10)
    assert terms[3]["step_sq/sum"] == pytest.approx(sum(steps), rel=1e-10)


def test_one_step_on_all_samples_is_a_gradient_step_in_theta():
    p = small(low_rank, {"rank": 2})
    solver = DirectLearning(lr=0.5, optimizer=torch.optim.SGD, batch_size=40, schedule=Constant())
    state = solver.init(p)
    U, V = (tensor.detach().clone().requires_grad_() for tensor in state.network.theta[0])
    weights = dict(state.network.model.named_parameters()) | {"fc1.weight": U @ V}
    p.loss(torch.func.functional_call(p.model, weights, (p.data.train.x,)), p.data.train.y).backward()
    after = solver.observe(p, solver.step(p, state)).theta[0]
    torch.testing.assert_close(after.U, (U - 0.5 * U.grad).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.V, (V - 0.5 * V.grad).detach(), rtol=1e-12, atol=1e-12)


def test_every_format_lowers_the_loss_and_learns_digits():
    data = digits(train_size=700, test_size=300).to("cpu", F64)
    for recipe in (tt, tt_matrix, tucker, cp, low_rank):
        p = problem(data, mlp(data, widths=(32, 32), bias=True), recipe, rank=12)
        first, *_, final = (
            i.observation for i in DirectLearning(num_steps=10, batch_size=32).run(p, 10, every=10) if i.observation
        )
        with case(recipe=recipe):
            assert final.terms["objective"] < 0.1 * first.terms["objective"]
            assert evaluate(final.model, data.test, p.loss).accuracy > 0.88


def test_a_rescaled_start_learns_faster():
    data = small_digits(150)
    p = problem(data, mlp(data, widths=(64, 64)), tt, rank=4)
    losses = [last(DirectLearning(rescale=rescale), p, 3).observation.terms["objective"] for rescale in (True, False)]
    assert losses[0] < losses[1]


class Images(nn.Sequential):
    """A convolution without bias and batch normalisation."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )


def test_convolutions_are_learned_and_batch_norm_keeps_its_statistics():
    data = digits(train_size=300, test_size=300, flatten=False).to("cpu", F64)
    for scheme in (1, 2):
        torch.manual_seed(0)
        p = problem(data, Images().to(F64), low_rank, rank=2, scheme=scheme)
        final = last(DirectLearning(num_steps=8, batch_size=30), p, 8)
        with case(scheme=scheme):
            assert int(final.observation.model[1].num_batches_tracked) == 80
            assert int(p.model[1].num_batches_tracked) == 0
            assert evaluate(final.observation.model, data.test, p.loss).accuracy > 0.85


class Mixed(nn.Module):
    """A layer used twice, weights that two layers share, statistics that forward replaces by new tensors."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.first, self.twice, self.encode, self.decode = (nn.Linear(n, 24) for n in (96, 24, 24, 24))
        self.decode.weight = self.encode.weight
        self.register_buffer("mean", torch.zeros(24))
        self.out = nn.Linear(24, 10)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(1)
        x = self.twice(self.twice(self.first(x)).relu())
        x = self.decode(self.encode(x).relu())
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.out(x - self.mean)


def test_in_networks_of_all_kinds_the_deployed_one_is_the_trained_one(tmp_path):
    recipes = (
        (low_rank, {"rank": 4}), (tucker, {"rank": 4}), (l0, {"keep": 0.4}), (codebook, {"K": 8}),
        (codebook, {"K": 16, "per": "shared"}), (group_l0, {"keep": 0.8}),
    )  # fmt: skip
    solver = DirectLearning(num_steps=2, batch_size=30)
    for (recipe, settings), half in [(pair, False) for pair in recipes] + [(pair, True) for pair in recipes[::2]]:
        data = digits(train_size=120, test_size=100, flatten=False).to("cpu", torch.float32 if half else F64)
        torch.manual_seed(0)
        p = problem(data, Mixed().to(data.train.x.dtype), recipe, layers="all", **settings)
        p = replace(p, computation=Computation(half=half))
        first, *_, final = (i for i in solver.run(p, 2, every=2) if i.observation)
        model, network = final.observation.model, final.state.network.eval()
        with case(recipe=recipe, settings=settings, half=half):
            with torch.no_grad():
                torch.testing.assert_close(model(data.test.x), network(data.test.x))
            assert model.decode.weight is model.encode.weight
            assert int(model.norm.num_batches_tracked) == 8
            assert bool((model.mean != 0).all())
            assert final.observation.terms["objective"] < first.observation.terms["objective"]
            if half:
                again = resumed(solver, p, 2, tmp_path / "last.pt").observation
                assert all(map(torch.equal, again.model.state_dict().values(), model.state_dict().values()))


def test_empty_plans_and_penalties_are_refused_in_a_sentence():
    for recipe, settings, said in (
        (none, {}, "compressed weights are needed, found none in the plan; choose a compression"),
        (rank_selection, {"alpha": 1e-3}, r"needs a Θ of fixed size, found RankSelection\(.*\), a penalty, for fc1"),
        (l1_penalty, {"alpha": 1e-3}, r"found L1Penalty\(.*\), a penalty, for fc1.weight; take a constraint instead"),
    ):
        with case(recipe=recipe), pytest.raises(Unsupported, match=said):
            DirectLearning().init(small(recipe, settings))


def test_positions_and_codes_stay_those_of_the_start():
    p = small(l0, {"keep": 0.3})
    final = last(DirectLearning(num_steps=3), p, 3).observation
    first = DirectLearning().observe(p, DirectLearning().init(p))
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(first.theta, final.theta, strict=True))
    p = small(codebook, {"K": 3})
    final = last(DirectLearning(num_steps=3), p, 3).observation
    first = DirectLearning().observe(p, DirectLearning().init(p))
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(first.theta, final.theta, strict=True))
    assert all(not torch.equal(a.table, b.table) for a, b in zip(first.theta, final.theta, strict=True))


def test_weights_that_compress_to_zero_are_refused():
    p = small(low_rank, {"rank": 2})
    with torch.no_grad():
        p.model.get_parameter("fc2.weight").zero_()
    with pytest.raises(Unsupported, match=r"found that LowRank\(rank=2\) makes fc2.weight zero; choose"):
        DirectLearning().init(p)
    with pytest.raises(Unsupported, match=r"found that RankSelection\(.*\) makes fc1.weight zero; choose"):
        DirectLearning().init(small(rank_selection, {"alpha": 1e3}))


def test_settings_out_of_range_are_refused():
    for setting in ({"lr": 0.0}, {"batch_size": 0}):
        with case(setting=setting), pytest.raises(ValueError, match="found"):
            DirectLearning(**setting)


def test_a_run_has_no_gap_resumes_and_stores_the_trained_network(apart, tmp_path):
    words = [
        "solver=direct_learning", "model=tt_mlp", "model.widths=[16,16]", "compression.rank=8",
        "dataset.train_size=100", "dataset.test_size=100",
        "solver.schedule._target_=nncompress.solvers.training.Constant",
    ]  # fmt: skip
    sgd = ["solver.optimizer._target_=torch.optim.SGD", "solver.lr=0.05", "deterministic=true"]
    for name, more in (("tt", []), ("sgd", sgd), ("tucker", ["compression=tucker"]), ("cp", ["compression=cp"])):
        whole, part = tmp_path / name / "whole", tmp_path / name / "part"
        run(whole, *words, *more, "solver.num_steps=4")
        records = rows(whole)
        with case(name=name):
            assert all(row["gap"] == 0 and row["accuracy/test"] == row["accuracy/dense_test"] for row in records)
            assert records[-1]["objective"] < records[0]["objective"]
            test = digits(train_size=100, test_size=100).test
            found = evaluate(load(whole / "model"), test, nn.functional.cross_entropy)
            assert found.loss == pytest.approx(records[-1]["loss/test"], rel=1e-5)
            if name == "tt":  # the states of all are restored above
                run(part, *words, *more, "solver.num_steps=2")
                resume(part, "solver.num_steps=4")
                assert rows(part) == records
