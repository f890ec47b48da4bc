"""The contract of every solver, and the minibatch loop."""

import copy
import itertools
from functools import partial

import pytest
import torch
from problems import F64, gaussian, mlp, problem, small_digits
from torch import nn

from nncompress import checkpoint
from nncompress.compressions.codebook import codebook
from nncompress.compressions.low_rank import low_rank
from nncompress.compressions.plan import none
from nncompress.compressions.rank_selection import rank_selection
from nncompress.compressions.sparsity import L0Penalty, l0
from nncompress.compressions.tensor_train import tt
from nncompress.constraints.assignment import Assignment
from nncompress.constraints.k_support import GroupKSupport, KSupport
from nncompress.constraints.lp import L2
from nncompress.constraints.spectral import SpectralKSupport
from nncompress.metrics import evaluate
from nncompress.problem import with_weights
from nncompress.solvers.baselines import IDC, DCRetrain, Distillation
from nncompress.solvers.descent import Constant, Cosine, Exponential, MultiStep
from nncompress.solvers.direct_learning import DirectLearning
from nncompress.solvers.frank_wolfe import FrankWolfe, LossFeedback
from nncompress.solvers.learning_compression import LC
from nncompress.solvers.minibatches import Minibatches, epoch
from nncompress.solvers.network_slimming import NetworkSlimming
from nncompress.solvers.nnbcd import NNBCD
from nncompress.solvers.normalised_sgd import NormalisedSGD
from nncompress.solvers.regularisers import GroupLasso, ProximalNuclearNorm
from nncompress.solvers.rescaling import FastGradientRescaling
from nncompress.solvers.sgd import SGD
from nncompress.solvers.slimming import Slimming

CASES = [
    pytest.param(NNBCD(), tt, {"rank": 12}, True, id="nnbcd-tt"),
    pytest.param(NNBCD(tau=1.0, alpha=1.0), l0, {"keep": 0.3}, True, id="nnbcd-l0"),
    pytest.param(NNBCD(plain=True), tt, {"rank": 12}, False, id="nnbcd-plain"),
    pytest.param(NNBCD(), l0, {"keep": 0.3, "joint": True}, True, id="nnbcd-bias-joint"),
    pytest.param(SGD(num_steps=12, batch_size=16), l0, {"keep": 0.5}, False, id="sgd-l0"),
    pytest.param(
        SGD(num_steps=12, batch_size=16, optimizer=torch.optim.Adam, lr=0.003), tt, {"rank": 30}, False, id="adam-tt"
    ),
    pytest.param(
        SGD(num_steps=12, batch_size=16, average=0.9, label_smoothing=0.1, mixup=0.2), none, {}, True, id="sgd-averaged"
    ),
    pytest.param(
        SGD(num_steps=12, batch_size=16, regulariser=GroupLasso(lam=1e-3, layers="all")),
        none,
        {},
        True,
        id="sgd-group-lasso",
    ),
    pytest.param(
        SGD(num_steps=12, batch_size=16, average=0.9, regulariser=ProximalNuclearNorm(lam=1e-2, layers="hidden")),
        low_rank,
        {"rank": 8},
        True,
        id="sgd-averaged-proximal-nuclear-norm",
    ),
    pytest.param(
        SGD(num_steps=12, batch_size=16, optimizer=partial(NormalisedSGD, weight_decay=0.01)),
        l0,
        {"keep": 0.5},
        True,
        id="normalised-sgd-l0",
    ),
    pytest.param(
        FrankWolfe(constraint=Assignment(set=KSupport(k=0.3)), num_steps=12, batch_size=16, lr=0.2),
        l0,
        {"keep": 0.5},
        True,
        id="frank-wolfe-l0",
    ),
    pytest.param(
        FrankWolfe(
            constraint=Assignment(
                set=GroupKSupport(k=0.5), params="weights", joint=True, rest=Assignment(set=L2(), joint=True)
            ),
            num_steps=12,
            batch_size=16,
            lr=0.5,
            momentum=0.8,
            dampening=0.4,
            rescaling=FastGradientRescaling(),
        ),
        none,
        {},
        True,
        id="frank-wolfe-filters-joint-dampened",
    ),
    pytest.param(
        FrankWolfe(
            constraint=Assignment(set=SpectralKSupport(k=0.3, rounds=1), params="weights"),
            num_steps=12,
            batch_size=16,
            lr=0.3,
            delay=0.25,
            feedback=LossFeedback(start=0, every=1),
        ),
        low_rank,
        {"rank": 20},
        False,
        id="frank-wolfe-spectral-delay",
    ),
    pytest.param(DirectLearning(num_steps=60, batch_size=16), tt, {"rank": 12}, True, id="direct-tt"),
    pytest.param(
        DirectLearning(num_steps=60, batch_size=16, optimizer=torch.optim.SGD, lr=0.1),
        low_rank,
        {"rank": 8},
        False,
        id="direct-sgd-low-rank",
    ),
    pytest.param(DCRetrain(num_steps=60, batch_size=16), l0, {"keep": 0.3}, True, id="dc-retrain-l0"),
    pytest.param(DCRetrain(num_steps=60, batch_size=16), codebook, {"K": 4}, True, id="dc-retrain-codebook"),
    pytest.param(Distillation(num_steps=60, batch_size=16), codebook, {"K": 4}, True, id="distillation-codebook"),
    pytest.param(Distillation(num_steps=60, batch_size=16), low_rank, {"rank": 8}, False, id="distillation-low-rank"),
    pytest.param(IDC(num_steps=60, epochs=1, batch_size=16), codebook, {"K": 8}, True, id="idc-codebook"),
    pytest.param(IDC(num_steps=60, epochs=1, batch_size=16), l0, {"keep": 0.5}, False, id="idc-l0"),
    pytest.param(LC(epochs=1, batch_size=16, tolerance=0.0), codebook, {"K": 4}, True, id="lc-codebook"),
    pytest.param(LC(epochs=1, batch_size=16, mu0=0.1), rank_selection, {"alpha": 1e-4}, True, id="lc-rank-selection"),
    pytest.param(LC(epochs=1, batch_size=16, multipliers=False), l0, {"keep": 0.3, "joint": True}, False, id="qp-l0"),
    pytest.param(Slimming(num_steps=60, lam=0.05, beta=1.0, batch_size=16), none, {}, False, id="slimming"),
    pytest.param(
        Slimming(num_steps=60, lam=1.0, beta=1.0, penalty=L0Penalty, project=False, mixup=0.2, batch_size=16),
        none,
        {},
        True,
        id="slimming-l0",
    ),
    pytest.param(
        NetworkSlimming(num_steps=60, fine_tune=57, percent=0.3, batch_size=16), none, {}, False, id="network-slimming"
    ),
]
every = pytest.mark.parametrize(("solver", "recipe", "settings", "bias"), CASES)


def rows(iterates):
    return [iterate.observation.terms for iterate in iterates]


def normed(data, widths):
    """A multilayer perceptron with batch norms, for solvers that remove channels."""
    torch.manual_seed(0)
    sizes = [data.train.x[0].numel(), *widths]
    layers = [nn.Sequential(nn.Linear(m, n), nn.BatchNorm1d(n), nn.ReLU()) for m, n in itertools.pairwise(sizes)]
    for _, norm, _ in layers:
        nn.init.constant_(norm.weight, 0.5)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], data.num_classes)).to(F64)


def network(solver, data, bias, widths=(16, 16)):
    return normed(data, widths) if solver.removes_channels else mlp(data, widths=widths, bias=bias)


def make(recipe, settings, bias, data=None, solver=SGD):
    data = gaussian() if data is None else data
    return problem(data, network(solver, data, bias), recipe, **settings)


@every
def test_same_seed_gives_the_same_records_and_the_problem_is_untouched(solver, recipe, settings, bias):
    p = make(recipe, settings, bias, solver=solver)
    before = copy.deepcopy(p.model.state_dict()), p.data.train.x.clone()
    first, second = rows(solver.run(p, 4)), rows(solver.run(p, 4))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), p.model.state_dict().values(), strict=True))
    assert torch.equal(before[1], p.data.train.x)


@every
def test_a_restored_state_continues_bit_for_bit(solver, recipe, settings, bias, tmp_path):
    p = make(recipe, settings, bias, solver=solver)
    whole = rows(solver.run(p, 8))
    *_, half = solver.run(p, 4)
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"state": checkpoint.pack(half.state)})
    loaded = checkpoint.load(path)
    state = checkpoint.restore(solver.init(p), loaded["state"], path)
    assert rows(solver.run(p, 8, state=state)) == whole[5:]


@every
def test_the_deployed_network_learns_digits(solver, recipe, settings, bias):
    data = small_digits()
    model = network(solver, data, bias, widths=(64, 64))
    if solver.from_reference:
        *_, trained = SGD(num_steps=12, batch_size=16).run(problem(data, model), 12, every=12)
        model = trained.observation.model
    p = problem(data, model, recipe, **settings)
    *_, last = solver.run(p, 12 if isinstance(solver, SGD | FrankWolfe) else 60, every=100)
    model, theta, _ = last.observation
    slimmed = solver.slimmed(p, last.state)
    deployed = with_weights(model, p.plan.decompress(theta)) if slimmed is None else slimmed.network
    assert evaluate(deployed, p.data.train, p.loss).accuracy > 0.5
    assert evaluate(model, p.data.train, p.loss).accuracy > 0.85


@every
def test_observations_come_at_the_start_every_so_often_and_at_the_end(solver, recipe, settings, bias):
    iterates = list(solver.run(make(recipe, settings, bias, solver=solver), 5, every=2))
    assert [iterate.step for iterate in iterates] == [0, 1, 2, 3, 4, 5]
    assert [iterate.step for iterate in iterates if iterate.observation] == [0, 2, 4, 5]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(iterates))


def test_tolerance_stops_when_the_objective_stalls():
    p = make(tt, {"rank": 12}, False)
    assert len(list(NNBCD(tolerance=0.5).run(p, 100))) < 100


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    small, large = make(tt, {"rank": 3}, False), make(tt, {"rank": 3}, True)
    from nncompress.errors import CheckpointError

    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.restore(SGD().init(large), checkpoint.pack(SGD().init(small)), tmp_path / "last.pt")


def test_schedules():
    assert [Cosine().factor(k, 4) for k in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert Constant().factor(7, 9) == 1
    assert Exponential(0.5).factor(3, 9) == 0.125
    assert [MultiStep((0.5, 0.75), 0.1).factor(k, 8) for k in (0, 4, 6)] == pytest.approx([1, 0.1, 0.01])


def test_an_epoch_visits_every_sample_once_in_the_generators_order():
    data = gaussian(n=10)
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    model = Spy(12, 3).to(F64)
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    p = problem(data, model, none)
    epoch(p, model, Minibatches(4, generator), optimizer=optimizer)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    assert [len(x) for x in seen] == [4, 4, 2]
    assert torch.equal(torch.cat(seen), data.train.x[order])


@pytest.mark.parametrize("setting", [{"lr": 0.0}, {"batch_size": 0}])
def test_sgd_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="found"):
        SGD(**setting)
