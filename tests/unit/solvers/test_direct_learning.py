"""Direct learning: gradients reach Θ, ranks, positions, codes and norms are kept, penalties are refused."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import F64, gaussian, mlp, problem, small_digits
from torch import nn

from nncompress import checkpoint
from nncompress.cli import main
from nncompress.compact.artefact import load
from nncompress.compressions.additive import additive
from nncompress.compressions.codebook import codebook
from nncompress.compressions.cp import cp
from nncompress.compressions.low_rank import low_rank
from nncompress.compressions.mixed import mixed
from nncompress.compressions.plan import none
from nncompress.compressions.quantization import scaled_ternary
from nncompress.compressions.rank_selection import rank_selection
from nncompress.compressions.sparsity import l0, l1_penalty
from nncompress.compressions.structured import group_l0, n_m
from nncompress.compressions.tensor_train import tt
from nncompress.compressions.tt_matrix import tt_matrix
from nncompress.compressions.tucker import tucker
from nncompress.data.digits import digits
from nncompress.errors import Unsupported
from nncompress.metrics import evaluate, held
from nncompress.params import Params
from nncompress.problem import Computation, with_weights
from nncompress.solvers.descent import Constant
from nncompress.solvers.direct_learning import DirectLearning


def low_rank_and_tucker(weights):
    parts = {
        "first": lambda w: low_rank(w, rank=2, layers=["fc1"]),
        "second": lambda w: tucker(w, rank=2, modes=[2, 4, 4, 2], layers=["fc2"]),
    }
    return mixed(weights, parts=parts)


RECIPES = [
    pytest.param(tt, {"rank": 3}, id="tt"),
    pytest.param(tt_matrix, {"rank": 3}, id="tt_matrix"),
    pytest.param(tucker, {"rank": 3}, id="tucker"),
    pytest.param(tucker, {"rank": [2, 2, 2, 2], "modes": {"fc1": [4, 2, 2, 8], "fc2": [2, 4, 4, 2]}}, id="tucker-4"),
    pytest.param(cp, {"rank": 3}, id="cp"),
    pytest.param(low_rank, {"rank": 3}, id="low_rank"),
    pytest.param(low_rank_and_tucker, {}, id="mixed"),
    pytest.param(l0, {"keep": 0.3}, id="l0"),
    pytest.param(group_l0, {"keep": 0.5}, id="group_l0"),
    pytest.param(n_m, {}, id="n_m"),
    pytest.param(codebook, {"K": 3}, id="codebook"),
    pytest.param(scaled_ternary, {"per": "channel"}, id="scaled_ternary"),
    pytest.param(additive, {"parts": {"a": partial(l0, keep=5), "b": partial(low_rank, rank=1)}}, id="additive"),
]
every = pytest.mark.parametrize(("recipe", "settings"), RECIPES)


def small(recipe, settings, activation="relu"):
    """A problem of 16-8-8-3 with biases."""
    data = gaussian(n=40, d=16)
    return problem(data, mlp(data, widths=(8, 8), bias=True, activation=activation), recipe, **settings)


def last(solver, p, steps, state=None):
    *_, final = solver.run(p, steps, state=state)
    return final


@every
def test_the_gradient_in_theta_and_the_other_parameters_is_that_of_finite_differences(recipe, settings):
    p = small(recipe, settings, activation="tanh")
    network = DirectLearning().init(p).network
    p.loss(network(p.data.train.x), p.data.train.y).backward()

    def loss():
        return evaluate(with_weights(network.model, p.plan.decompress(network.theta)), p.data.train, p.loss).loss

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
            assert float(parameter.grad.view(-1)[i]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


@every
def test_the_deployed_network_is_the_trained_one_and_keeps_the_ranks_of_the_plan(recipe, settings):
    p = small(recipe, settings)
    solver = DirectLearning(num_steps=5)
    first, final = solver.observe(p, solver.init(p)), last(solver, p, 5).observation
    assert [held(t) for t in first.theta] == [held(t) for t in final.theta]
    weights = p.plan.select(dict(final.model.named_parameters())).detach()
    assert all(torch.equal(w, p.plan.decompress(final.theta)[name]) for name, w in weights.items())
    assert all(not torch.equal(w, p.model.get_parameter(name)) for name, w in final.model.named_parameters())
    if recipe not in (cp, additive):  # whose projection finds local minima
        again = p.plan.decompress(p.plan.compress(weights))
        assert float((weights - again).sq() / weights.sq()) < 1e-20


@every
def test_rescaled_factors_begin_with_the_norms_of_the_weights(recipe, settings):
    p = small(recipe, settings)
    w = p.plan.select(dict(p.model.named_parameters())).detach()
    start = DirectLearning().observe(p, DirectLearning().init(p))
    plain = DirectLearning(rescale=False).observe(p, DirectLearning(rescale=False).init(p))
    for name, dense in p.plan.decompress(start.theta).items():
        assert float(dense.norm()) == pytest.approx(float(w[name].norm()), rel=1e-6)
    for name, dense in p.plan.decompress(p.plan.compress(w)).items():
        assert float(dense.norm()) < 0.99 * float(w[name].norm())
        assert torch.equal(dense, plain.model.get_parameter(name))


@every
def test_a_restored_state_continues_bit_for_bit_and_the_problem_is_untouched(recipe, settings, tmp_path):
    p = small(recipe, settings)
    before = {name: value.clone() for name, value in p.model.state_dict().items()}
    solver = DirectLearning(num_steps=6, batch_size=16)
    whole = last(solver, p, 6)
    checkpoint.save(tmp_path / "last.pt", {"state": checkpoint.pack(last(solver, p, 3).state)})
    loaded = checkpoint.load(tmp_path / "last.pt")["state"]
    resumed = last(solver, p, 6, state=checkpoint.restore(solver.init(p), loaded, tmp_path / "last.pt"))
    assert resumed.observation.terms == whole.observation.terms
    for a, b in zip(resumed.state.network.parameters(), whole.state.network.parameters(), strict=True):
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


@pytest.mark.parametrize("recipe", [tt, tt_matrix, tucker, cp, low_rank])
def test_every_format_lowers_the_loss_and_learns_digits(recipe):
    data = digits().to("cpu", F64)
    p = problem(data, mlp(data, widths=(64, 64), bias=True), recipe, rank=12)
    seen = [iterate.observation for iterate in DirectLearning(num_steps=8, batch_size=32).run(p, 8, every=8)]
    assert seen[-1].terms["objective"] < 0.1 * seen[0].terms["objective"]
    assert evaluate(seen[-1].model, data.test, p.loss).accuracy > 0.88


def test_a_rescaled_start_learns_faster():
    data = small_digits()
    p = problem(data, mlp(data, widths=(64, 64)), tt, rank=4)
    losses = [last(DirectLearning(rescale=rescale), p, 3).observation.terms["objective"] for rescale in (True, False)]
    assert losses[0] < losses[1]


class Images(nn.Sequential):
    """A convolution without bias and batch normalisation."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )


@pytest.mark.parametrize("scheme", [1, 2])
def test_convolutions_are_learned_and_batch_norm_keeps_its_statistics(scheme):
    data = digits(train_size=300, flatten=False).to("cpu", F64)
    torch.manual_seed(0)
    p = problem(data, Images().to(F64), low_rank, rank=2, scheme=scheme)
    final = last(DirectLearning(num_steps=8, batch_size=30), p, 8)
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


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (low_rank, {"rank": 4}), (tucker, {"rank": 4}), (l0, {"keep": 0.4}), (codebook, {"K": 8}),
        (codebook, {"K": 16, "per": "shared"}), (group_l0, {"keep": 0.8}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("half", [False, True])
def test_in_networks_of_all_kinds_the_deployed_one_is_the_trained_one(recipe, settings, half, tmp_path):
    data = digits(train_size=120, flatten=False).to("cpu", torch.float32 if half else F64)
    torch.manual_seed(0)
    p = problem(data, Mixed().to(data.train.x.dtype), recipe, layers="all", **settings)
    p = replace(p, computation=Computation(half=half))
    solver = DirectLearning(num_steps=4, batch_size=30)
    first, *_, final = solver.run(p, 4)
    model, network = final.observation.model, final.state.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(data.test.x), network(data.test.x))
    assert model.decode.weight is model.encode.weight
    assert int(model.norm.num_batches_tracked) == 16
    assert bool((model.mean != 0).all())
    assert final.observation.terms["objective"] < first.observation.terms["objective"]
    checkpoint.save(tmp_path / "last.pt", {"state": checkpoint.pack(last(solver, p, 2).state)})
    loaded = checkpoint.load(tmp_path / "last.pt")["state"]
    resumed = last(solver, p, 4, state=checkpoint.restore(solver.init(p), loaded, tmp_path / "last.pt")).observation
    assert all(map(torch.equal, resumed.model.state_dict().values(), model.state_dict().values()))


REFUSED = [
    (none, {}, "compressed weights are needed, found none in the plan; choose a compression"),
    (rank_selection, {"alpha": 1e-3}, r"needs a Θ of fixed size, found RankSelection\(.*\), a penalty, for fc1"),
    (l1_penalty, {"alpha": 1e-3}, r"found L1Penalty\(.*\), a penalty, for fc1.weight; take a constraint instead"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "settings", "said"), REFUSED)
def test_empty_plans_and_penalties_are_refused_in_a_sentence(recipe, settings, said):
    with pytest.raises(Unsupported, match=said):
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


@pytest.mark.parametrize("setting", [{"lr": 0.0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="found"):
        DirectLearning(**setting)


WORDS = [
    "solver=direct_learning",
    "model=tt_mlp",
    "model.widths=[32,32]",
    "compression.rank=8",
    "dataset.train_size=200",
]
SGD = ["solver.optimizer._target_=torch.optim.SGD", "solver.lr=0.05", "deterministic=true"]


@pytest.mark.parametrize(
    "more", [[], SGD, ["compression=tucker"], ["compression=cp"]], ids=["tt", "sgd", "tucker", "cp"]
)
def test_a_run_has_no_gap_resumes_and_stores_the_trained_network(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("nncompress.experiment.write_run_report", lambda folder: [])
    words = ["train", *WORDS, *more]
    schedule = "solver.schedule._target_=nncompress.solvers.descent.Constant"
    try:
        for folder, steps in (("whole", 6), ("part", 3)):
            assert main([*words, schedule, f"solver.num_steps={steps}", f"hydra.run.dir={tmp_path / folder}"]) == 0
        assert main(["train", f"resume={tmp_path / 'part'}", "solver.num_steps=6"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    lines = [(tmp_path / name / "records.jsonl").read_text().splitlines() for name in ("whole", "part")]
    whole, resumed = ([{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in rows] for rows in lines)
    assert whole == resumed
    assert all(row["gap"] == 0 and row["accuracy/test"] == row["accuracy/dense_test"] for row in whole)
    assert whole[-1]["objective"] < whole[0]["objective"]
    found = evaluate(load(tmp_path / "whole/model"), digits(train_size=200).test, nn.functional.cross_entropy)
    assert found.loss == pytest.approx(whole[-1]["loss/test"], rel=1e-5)
