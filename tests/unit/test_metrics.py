"""Sizes of whole networks, by hand."""

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
