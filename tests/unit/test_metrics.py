"""Sizes of whole networks, by hand."""

from typing import NamedTuple

import pytest
import torch
from problems import gaussian, mlp, problem

from nncompress import metrics
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.params import Params
from nncompress.compressions.plan import none
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.metrics import Evaluation, evaluate, gap
from nncompress.problem import Split

DATA = gaussian(d=12, classes=3)


def network() -> torch.nn.Module:
    """192 + 16 and 48 + 3 parameters."""
    return mlp(DATA, widths=(16,), bias=True)


def test_sizes_count_the_whole_network_and_the_tasks_alone() -> None:
    p = problem(DATA, network(), low_rank, rank=2)
    size = metrics.sizes(p, p.plan.compress(p.plan.select(dict(p.model.named_parameters()))))
    assert size == {
        "params/dense": 259,
        "params/compressed": 123,  # 259 - 192 + 2 (16 + 12)
        "bits/dense": 32 * 259,
        "bits/compressed": 32 * 123,
        "ratio/params": pytest.approx(123 / 259),
        "ratio/bits": pytest.approx(123 / 259),
        "ratio/tasks": pytest.approx(56 / 192),
    }
    p = problem(DATA, network(), l0, keep=40)
    theta = p.plan.compress(p.plan.select(dict(p.model.named_parameters())))
    size = metrics.sizes(p, theta)
    assert size["params/compressed"] == 67 + 40
    assert size["bits/compressed"] == 32 * 67 + p.plan.bits(theta) > 32 * 107  # positions too
    assert size["ratio/tasks"] == pytest.approx(40 / 192)
    assert metrics.sizes(problem(DATA, network(), none), ())["ratio/tasks"] == 1.0


def test_loss_accuracy_and_gap_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]).double()
    split = Split(logits, torch.tensor([0, 1, 1]))
    expected = float(torch.nn.functional.cross_entropy(split.x, split.y))
    found = evaluate(torch.nn.Identity(), split, torch.nn.functional.cross_entropy)
    assert found == Evaluation(pytest.approx(expected, rel=1e-12), pytest.approx(2 / 3))
    w = Params({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
    assert gap(w, Params({"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([4.0])})) == pytest.approx(3 / 5)


class Parts(NamedTuple):
    """A Θ with tensors of every kind."""

    values: torch.Tensor
    codes: torch.Tensor
    constant: torch.Tensor
    pair: tuple[torch.Tensor, torch.Tensor]


def test_weight_histograms_count_the_real_numbers_of_each_tensor_of_theta_and_of_all_else_but_zeros() -> None:
    p = problem(DATA, network(), low_rank, rank=2)
    values = torch.tensor([[0.0, -1.0, 3.0], [0.0, 3.0, 1.0]], dtype=torch.bfloat16)
    theta = Parts(values, torch.arange(5), torch.ones(3), (torch.tensor(2.0), torch.tensor([1.0, 2.0])))
    weights = metrics.weight_histograms(p.plan, (theta,), p.model)
    name = p.plan.tasks[0].params[0]
    assert weights["tensors"] == 3
    assert [each["name"] for each in weights["largest"]] == [f"{name} values", f"{name} pair.1", metrics.REST]
    first, _, rest = weights["largest"]
    assert (first["shape"], first["zeros"], first["low"], first["high"]) == ([2, 3], pytest.approx(1 / 3), -1.0, 3.0)
    assert [(at, n) for at, n in enumerate(first["counts"]) if n] == [(0, 1), (20, 1), (39, 2)]
    assert (rest["shape"], sum(rest["counts"])) == ([16 + 48 + 3], 67)


def test_weight_histograms_are_of_the_largest_tensors_and_count_tied_weights_once() -> None:
    p = problem(DATA, network(), none)
    assert metrics.weight_histograms(p.plan, (), p.model)["largest"][0]["shape"] == [259]
    tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert metrics.weight_histograms(p.plan, (), tied)["largest"][0]["shape"] == [9 + 3 + 3]
    plan = problem(DATA, network(), low_rank, rank=2).plan
    parts = [torch.linspace(0, 1, n) for n in range(2, 10)]
    weights = metrics.weight_histograms(plan, ((parts,),), torch.nn.Identity())
    assert weights["tensors"] == 8
    assert [each["shape"] for each in weights["largest"]] == [[n] for n in range(4, 10)]
