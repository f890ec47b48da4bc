"""What holds of every solver: the same records from the same seed, also over a checkpoint; a set accuracy."""

import itertools
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from cases import case
from problems import F64, gaussian, mlp, problem, small_digits
from torch import nn

from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.rank_selection import rank_selection
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.plan import Recipe, none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.sparsity.magnitude import L0Penalty, l0, l1_penalty
from nncompress.constraints.assignment import Assignment
from nncompress.constraints.k_support import GroupKSupport, KSupport
from nncompress.constraints.lp import L2
from nncompress.constraints.spectral import SpectralKSupport
from nncompress.errors import CheckpointError, Unsupported
from nncompress.experiment import checkpoint
from nncompress.metrics import evaluate
from nncompress.solvers.base import Solver
from nncompress.solvers.frank_wolfe.frank_wolfe import FrankWolfe, LossFeedback
from nncompress.solvers.frank_wolfe.sfw import FastGradientRescaling
from nncompress.solvers.lc.baselines import IDC, DCRetrain, Distillation
from nncompress.solvers.lc.direct_learning import DirectLearning
from nncompress.solvers.lc.lc import LC
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.sgd.normalised_sgd import NormalisedSGD
from nncompress.solvers.sgd.regularisers import GroupLasso, ProximalNuclearNorm
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.slimming.network_slimming import NetworkSlimming
from nncompress.solvers.slimming.proximal import Slimming


class Case(NamedTuple):
    """A solver, a compression, whether the network has biases, and the steps after which it has learned digits."""

    solver: Solver[Any]
    recipe: Recipe
    settings: dict[str, Any]
    bias: bool
    steps: int


SHORT = {"num_steps": 12, "batch_size": 16}
LONG = {"num_steps": 60, "batch_size": 16}
FILTERS = Assignment(set=GroupKSupport(k=0.5), params="weights", joint=True, rest=Assignment(set=L2(), joint=True))
SPECTRAL = Assignment(set=SpectralKSupport(k=0.3, rounds=1), params="weights")
CASES = {
    "nnbcd-tt": Case(NNBCD(), tt, {"rank": 12}, True, 60),
    "nnbcd-l0": Case(NNBCD(tau=1.0, alpha=1.0), l0, {"keep": 0.3}, True, 40),
    "nnbcd-plain": Case(NNBCD(plain=True), tt, {"rank": 12}, False, 60),
    "nnbcd-bias-joint": Case(NNBCD(), l0, {"keep": 0.3, "joint": True}, True, 60),
    "sgd-l0": Case(SGD(**SHORT), l0, {"keep": 0.5}, False, 12),
    "adam-tt": Case(SGD(optimizer=torch.optim.Adam, lr=0.003, **SHORT), tt, {"rank": 30}, False, 12),
    "sgd-averaged": Case(SGD(average=0.9, label_smoothing=0.1, mixup=0.2, **SHORT), none, {}, True, 12),
    "sgd-group-lasso": Case(SGD(regulariser=GroupLasso(lam=1e-3, layers="all"), **SHORT), none, {}, True, 12),
    "sgd-averaged-proximal-nuclear-norm": Case(
        SGD(average=0.9, regulariser=ProximalNuclearNorm(lam=1e-2, layers="hidden"), **SHORT),
        low_rank, {"rank": 8}, True, 12,
    ),
    "normalised-sgd-l0": Case(
        SGD(optimizer=partial(NormalisedSGD, weight_decay=0.01), **SHORT), l0, {"keep": 0.5}, True, 12
    ),
    "frank-wolfe-l0": Case(
        FrankWolfe(constraint=Assignment(set=KSupport(k=0.3)), lr=0.2, **SHORT), l0, {"keep": 0.5}, True, 12
    ),
    "frank-wolfe-filters-joint-dampened": Case(
        FrankWolfe(constraint=FILTERS, lr=0.5, momentum=0.8, dampening=0.4, rescaling=FastGradientRescaling(), **SHORT),
        none, {}, True, 12,
    ),
    "frank-wolfe-spectral-delay": Case(
        FrankWolfe(constraint=SPECTRAL, lr=0.3, delay=0.25, feedback=LossFeedback(start=0, every=1), **SHORT),
        low_rank, {"rank": 20}, False, 12,
    ),
    "direct-tt": Case(DirectLearning(**LONG), tt, {"rank": 12}, True, 14),
    "direct-sgd-low-rank": Case(
        DirectLearning(optimizer=torch.optim.SGD, lr=0.1, **LONG), low_rank, {"rank": 8}, False, 40
    ),
    "dc-retrain-l0": Case(DCRetrain(**LONG), l0, {"keep": 0.3}, True, 8),
    "dc-retrain-codebook": Case(DCRetrain(**LONG), codebook, {"K": 4}, True, 8),
    "distillation-codebook": Case(Distillation(**LONG), codebook, {"K": 4}, True, 8),
    "distillation-low-rank": Case(Distillation(**LONG), low_rank, {"rank": 8}, False, 8),
    "idc-codebook": Case(IDC(epochs=1, **LONG), codebook, {"K": 8}, True, 4),
    "idc-l0": Case(IDC(epochs=1, **LONG), l0, {"keep": 0.5}, False, 8),
    "lc-codebook": Case(LC(epochs=1, batch_size=16, tolerance=0.0), codebook, {"K": 4}, True, 6),
    "lc-rank-selection": Case(LC(epochs=1, batch_size=16, mu0=0.1), rank_selection, {"alpha": 1e-4}, True, 8),
    "qp-l0": Case(
        LC(epochs=1, batch_size=16, multipliers=False), l0, {"keep": 0.3, "joint": True}, False, 12
    ),
    "slimming": Case(Slimming(lam=0.05, beta=1.0, **LONG), none, {}, False, 8),
    "slimming-l0": Case(
        Slimming(lam=1.0, beta=1.0, penalty=L0Penalty, project=False, mixup=0.2, **LONG), none, {}, True, 8
    ),
    "network-slimming": Case(NetworkSlimming(fine_tune=57, percent=0.3, **LONG), none, {}, False, 12),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)


def rows(iterates):
    return [iterate.observation.terms for iterate in iterates if iterate.observation]


def normed(data, widths):
    """A multilayer perceptron with batch norms, for solvers that remove channels."""
    torch.manual_seed(0)
    sizes = [data.train.x[0].numel(), *widths]
    layers = [nn.Sequential(nn.Linear(m, n), nn.BatchNorm1d(n), nn.ReLU()) for m, n in itertools.pairwise(sizes)]
    for _, norm, _ in layers:
        nn.init.constant_(norm.weight, 0.5)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], data.num_classes)).to(F64)


def network(data, bias, *, norms, widths=(16, 16)):
    return normed(data, widths) if norms else mlp(data, widths=widths, bias=bias)


def made(name):
    """The problem of a case on random data."""
    solver, recipe, settings, bias, _ = CASES[name]
    data = gaussian()
    return problem(data, network(data, bias, norms=solver.removes_channels), recipe, **settings)


@cache
def whole(name):
    """The problem of a case after a run of 8 steps on it, and the records of that run."""
    p = made(name)
    return p, rows(CASES[name].solver.run(p, 8))


@cache
def half(name):
    """The iterates of a run of 4 steps on the same problem, observed when asked."""
    return list(CASES[name].solver.run(whole(name)[0], 4, every=3))


@cache
def digit_data():
    return small_digits(200)


@cache
def reference(bias, norms):
    """A network that has learned the digits."""
    data = digit_data()
    *_, trained = SGD(**SHORT).run(problem(data, network(data, bias, norms=norms, widths=(48, 48))), 12, every=12)
    return trained.observation.model


@every
def test_the_same_seed_gives_the_same_records_when_asked_and_the_problem_is_untouched(name):
    (p, records), iterates = whole(name), half(name)
    assert [iterate.step for iterate in iterates] == [0, 1, 2, 3, 4]
    assert [iterate.step for iterate in iterates if iterate.observation] == [0, 3, 4]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(iterates))
    assert rows(iterates) == [records[k] for k in (0, 3, 4)]
    before = made(name)
    for (key, value), other in zip(p.model.state_dict().items(), before.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert torch.equal(p.data.train.x, before.data.train.x)


@every
def test_a_restored_state_continues_bit_for_bit(name, tmp_path):
    (p, records), solver = whole(name), CASES[name].solver
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"state": checkpoint.pack(half(name)[-1].state)})
    state = checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path)
    assert rows(solver.run(p, 8, state=state)) == records[5:]


@every
def test_the_deployed_network_learns_digits(name):
    solver, recipe, settings, bias, steps = CASES[name]
    data, norms = digit_data(), solver.removes_channels
    start = reference(bias, norms) if solver.from_reference else network(data, bias, norms=norms, widths=(48, 48))
    p = problem(data, start, recipe, **settings)
    *_, last = solver.run(p, steps, every=100)
    model, theta, _, deployed, *_ = last.observation
    weights = dict(deployed.named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in p.plan.decompress(theta).items())
    assert evaluate(deployed, data.train, p.loss).accuracy > 0.5
    assert evaluate(model, data.train, p.loss).accuracy > 0.85


def test_networks_that_a_solver_cannot_treat_are_refused_with_a_sentence():
    data = gaussian()
    network, tanh, frozen = mlp(data, bias=True), mlp(data, activation="tanh"), mlp(data).requires_grad_(False)
    weight = r"every compressed weight must be trainable, found that fc1\.weight is frozen .*; unfreeze it, or"
    norms = "network slimming needs batch norms with scaling factors, found none in the network; choose a model"
    for solver, model, recipe, settings, said in (
        (NNBCD(), tanh, none, {}, "NN-BCD needs a chain of Linear and Conv2d layers with ReLU.*; found Tanh at"),
        *((kind(), frozen, l0, {"keep": 0.5}, weight) for kind in (LC, DCRetrain, Distillation, IDC, DirectLearning)),
        (DirectLearning(), network, l1_penalty, {"alpha": 1e-3}, "a penalty, for fc1.weight; take a constraint"),
        (
            FrankWolfe(constraint=Assignment(set=L2())),
            frozen,
            none,
            {},
            "a network with a trainable parameter is needed, found none",
        ),
        (Slimming(), network, none, {}, norms),
        (NetworkSlimming(), network, none, {}, norms),
        (SGD(regulariser=GroupLasso(lam=1e-3)), network, none, {}, "acts on convolutions, found none in the network;"),
    ):
        with case(solver=solver), pytest.raises(Unsupported, match=said):
            solver.init(problem(data, model, recipe, **settings))


def test_a_solver_whose_objective_stalls_stops_by_its_tolerance():
    data = gaussian()
    p = problem(data, mlp(data), tt, rank=12)
    assert len(list(NNBCD(tolerance=0.5).run(p, 100))) < 100


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    data = gaussian()
    small, large = problem(data, mlp(data), tt, rank=3), problem(data, mlp(data, bias=True), tt, rank=3)
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.restore(SGD().init(large), checkpoint.pack(SGD().init(small)), tmp_path / "last.pt")
