"""Epochs on a pretended GPU: captured graphs, fused optimisers, and no value that is waited for."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import case
from minibatch_cases import assert_same, convolutional, descent, generator, images, trained
from problems import problem
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.compressions.plan import none
from nncompress.compressions.sparsity.magnitude import L0Penalty, L1Penalty
from nncompress.compressions.sparsity.nonconvex import LHalfPenalty, TransformedL1Penalty
from nncompress.data.augmentation import Augmentations, Crop, Cutout, Flip, Rotation
from nncompress.problem import Computation, Problem
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.slimming.network_slimming import NetworkSlimming
from nncompress.solvers.slimming.proximal import Slimming
from nncompress.solvers.training import minibatches
from nncompress.solvers.training.descent import optimizer_of
from nncompress.solvers.training.minibatches import Minibatches, epoch


class NoReplay:
    """In the place of a captured graph: none may be made."""

    def __init__(self, *_: Any) -> None:
        raise AssertionError("a graph was captured")


class Pretended:
    """In the place of a captured graph: counts itself, and computes."""

    made: list[int]

    def __init__(self, gradient: Any, batch: Any) -> None:
        self.gradient = gradient
        self.made.append(len(batch.rows))

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.gradient.compute(batch)


class OnGPU(minibatches._Gradient):
    """Takes the data to lie on a GPU."""

    def __init__(self, problem: Problem, model: nn.Module, minibatches: Any) -> None:
        super().__init__(problem, model, minibatches)
        self.problem: Any = SimpleNamespace(
            data=problem.data, computation=problem.computation, device=torch.device("cuda"), dtype=problem.dtype
        )


GRAPHS = Computation(graphs=True)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches are taken to be on a GPU; the sizes of those for which a graph is captured."""
    monkeypatch.setattr(minibatches, "_Gradient", OnGPU)
    monkeypatch.setattr(minibatches, "_Replay", Pretended)
    monkeypatch.setattr(Pretended, "made", [], raising=False)
    return Pretended.made


def test_graphs_asked_for_on_a_cpu_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatches, "_Replay", NoReplay)
    (ours, values), (theirs, others) = (trained(images(), epochs=2, computation=c) for c in (GRAPHS, Computation()))
    assert values == others
    assert_same(ours, theirs)


def test_a_graph_is_captured_once_for_all_epochs_and_the_result_is_the_same(on_gpu: list[int]) -> None:
    ours, values = trained(images(12), epochs=3, computation=GRAPHS)
    assert on_gpu == [4]
    theirs, others = trained(images(12), epochs=3)
    assert values == others
    assert_same(ours, theirs)


def test_a_smaller_last_batch_needs_no_graph_of_its_own(on_gpu: list[int]) -> None:
    trained(images(10), epochs=3, computation=GRAPHS)
    assert on_gpu == [4]


def test_no_graph_is_captured_for_a_single_batch_or_unasked(on_gpu: list[int]) -> None:
    trained(images(12), computation=Computation())
    trained(images(5), computation=GRAPHS)
    assert on_gpu == []


def test_other_networks_and_data_have_graphs_of_their_own(on_gpu: list[int]) -> None:
    for data in (images(8), images(12)):
        p = replace(problem(data, convolutional(), none), computation=GRAPHS)
        for model in (p.model, copy.deepcopy(p.model)):
            epoch(p, model, Minibatches(4, generator()), optimizer=descent(model))
    assert on_gpu == 4 * [4]


def test_where_no_graph_can_be_captured_training_goes_on_with_one_sentence_in_the_log(
    on_gpu: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(minibatches, "_Replay", refuse)
    ours, values = trained(images(12), epochs=3, computation=GRAPHS)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("CUDA graphs cannot be used (operation not permitted when stream is capturing")
    assert "\n" not in told[0]
    theirs, others = trained(images(12), epochs=3)
    assert values == others
    assert_same(ours, theirs)


def test_a_capture_that_fails_leaves_the_running_statistics_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    def refuse() -> None:
        raise RuntimeError("no graphs here")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in (("Stream", lambda: stream), ("current_stream", lambda: stream), ("stream", nullcontext)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    monkeypatch.setattr(minibatches, "_Gradient", OnGPU)
    ours, values = trained(images(12), epochs=2, computation=GRAPHS)
    theirs, others = trained(images(12), epochs=2)
    assert values == others
    assert_same(ours, theirs)


def test_an_optimiser_is_fused_where_all_parameters_are_on_a_gpu_and_it_can_be() -> None:
    def able(parameters: Any, lr: float, fused: bool = False) -> dict[str, Any]:
        return {"lr": lr, "fused": fused}

    def unable(parameters: Any, lr: float) -> dict[str, Any]:
        return {"lr": lr}

    here, there = SimpleNamespace(is_cuda=False), SimpleNamespace(is_cuda=True)
    made: list[Any] = [
        optimizer_of(factory, parameters, 0.1)
        for factory, parameters in (
            (able, [there, there]), (partial(able), [{"params": [there]}, {"params": [there], "weight_decay": 0.0}]),
            (able, [there, here]), (able, iter([here])), (able, [{"params": [there]}, {"params": [here]}]),
            (unable, [there]),
        )
    ]  # fmt: skip
    assert made == [{"lr": 0.1, "fused": fused} for fused in (True, True, False, False, False)] + [{"lr": 0.1}]


def test_a_users_own_choice_of_the_form_of_an_optimiser_stands() -> None:
    def able(parameters: Any, lr: float, fused: bool | None = None) -> bool | None:
        return fused

    found: Any = optimizer_of(partial(able, fused=False), [SimpleNamespace(is_cuda=True)], 0.1)
    assert found is False


def test_on_a_cpu_the_optimiser_is_the_factorys() -> None:
    w = nn.Parameter(torch.ones(2))
    found = optimizer_of(partial(torch.optim.SGD, momentum=0.9), [{"params": [w]}], 0.3)
    assert (found.defaults["lr"], found.defaults["momentum"], found.defaults["fused"]) == (0.3, 0.9, None)


class NoWaiting(TorchDispatchMode):
    """Fails where a value is read from a tensor, which on a GPU would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
        assert func.overloadpacket.__name__ not in waits, func
        return func(*args, **(kwargs or {}))


EVERYTHING = Augmentations(parts=[Crop(padding=1), Flip(), Rotation(), Cutout(size=2)])


def watched_epochs(solver: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many epochs a step has, each of them watched: one that waits raises AssertionError."""
    p = problem(images(augmentation=EVERYTHING), convolutional(), none)
    state, watched = solver.init(p), []

    def watching(*args: Any, **settings: Any) -> Tensor:
        with NoWaiting():
            watched.append(epoch(*args, **settings))
        return watched[-1]

    for module in ("sgd.sgd", "slimming.proximal", "slimming.network_slimming"):
        monkeypatch.setattr(f"nncompress.solvers.{module}.epoch", watching)
    solver.step(p, state)
    return len(watched)


def test_no_value_is_waited_for_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    penalties = (L1Penalty, L0Penalty, LHalfPenalty, TransformedL1Penalty)
    for solver in (
        SGD(batch_size=4, label_smoothing=0.1, average=0.9),
        *(Slimming(batch_size=4, penalty=penalty) for penalty in penalties),
        NetworkSlimming(batch_size=4),
    ):
        with case(solver=solver):
            assert watched_epochs(solver, monkeypatch) == 1


def test_a_value_that_is_waited_for_would_be_noticed() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(torch.ones(1).sum())
    with NoWaiting(), pytest.raises(AssertionError, match="nonzero"):
        torch.ones(3).nonzero()
