"""Learning rates by schedule, and the average of the weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import case
from minibatch_cases import assert_same, convolutional, descent, generator, images
from problems import problem
from torch import nn

from nncompress.compressions.plan import none
from nncompress.problem import Problem
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.training.descent import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    MultiStep,
    StepDecay,
    WarmUp,
    set_rate,
)
from nncompress.solvers.training.minibatches import Minibatches, epoch

SCHEDULES: list[tuple[Any, list[float]]] = [
    (Constant(), [1, 1, 1, 1, 1]),
    (Cosine(), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
    (Exponential(0.5), [1, 0.5, 0.25, 0.125, 0.0625]),
    (MultiStep((0.5, 0.75), 0.1), [1, 1, 0.1, 0.01, 0.01]),
    (Linear(), [1, 0.75, 0.5, 0.25, 0]),
    (Linear(0.2), [1, 0.8, 0.6, 0.4, 0.2]),
    (Linear(3.0), [1, 1.5, 2, 2.5, 3]),
    (StepDecay(2, 0.1), [1, 1, 0.1, 0.1, 0.01]),
    (StepDecay(1, 0.5), [1, 0.5, 0.25, 0.125, 0.0625]),
    (WarmUp(3), [0.25, 0.5, 0.75, 1, 1]),
    (WarmUp(0, Linear()), [1, 0.75, 0.5, 0.25, 0]),
    (WarmUp(2, Linear()), [1 / 3, 2 / 3, 1, 0.5, 0]),
    (WarmUp(1, Cosine()), [0.5, 1, 0.75, 0.25, 0]),
    (WarmUp(1, WarmUp(1, StepDecay(2, 0.1))), [0.5, 0.5, 1, 1, 0.1]),
    (WarmUp(9, Constant()), [0.1, 0.2, 0.3, 0.4, 0.5]),
]


def test_the_factors_of_a_schedule() -> None:
    for schedule, factors in SCHEDULES:
        with case(schedule=schedule):
            assert [schedule.factor(k, 4) for k in range(5)] == pytest.approx(factors, abs=1e-15)
    assert [MultiStep((0.5, 0.75), 0.1).factor(k, 8) for k in (0, 3, 4, 5, 6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert Constant().factor(7, 9) == 1


def test_a_schedule_out_of_range_is_refused() -> None:
    makers: list[Callable[[], object]] = [lambda: Linear(-0.1), lambda: StepDecay(0), lambda: WarmUp(-1)]
    for k, make in enumerate(makers):
        with case(k=k), pytest.raises(ValueError, match=r"must be at least [01], found"):
            make()


def test_the_rate_of_an_epoch_is_the_schedules() -> None:
    solver = SGD(num_steps=4, lr=0.4, schedule=WarmUp(1, StepDecay(2, 0.1)), batch_size=5)
    p = problem(images(), convolutional(), none)
    state, found = solver.init(p), []
    for _ in range(4):
        state = solver.step(p, state)
        found.append(state.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.04])


def test_a_rate_is_that_of_all_groups() -> None:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.2)])
    set_rate(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def averaged(p: Problem, size: int, batches: int, past: float, epochs: int) -> nn.Module:
    """The average of the weights after each of `batches` minibatches an epoch, computed from a plain descent."""
    model, total, numbers, count = copy.deepcopy(p.model), copy.deepcopy(p.model), generator(0), 0
    optimizer = descent(model)

    def after() -> None:
        nonlocal count
        factor = min(past, (1 + count) / (10 + count))
        for mean, w in zip(total.parameters(), model.parameters(), strict=True):
            mean.data = factor * mean.data + (1 - factor) * w.data
        count += 1

    for _ in range(epochs):
        epoch(p, model, Minibatches(size, numbers), optimizer=optimizer, after_step=after)
    assert count == batches * epochs
    for own, given in zip(total.buffers(), model.buffers(), strict=True):
        own.copy_(given)
    return total


def test_the_observed_network_is_the_average_of_the_weights() -> None:
    factory = partial(torch.optim.SGD, momentum=0.9)
    for (n, batches), past in itertools.product(((10, 3), (9, 2), (8, 2)), (0.15, 0.99)):  # of 9 the last joins
        p = problem(images(n), convolutional(), none)
        solver = SGD(batch_size=4, average=past, optimizer=factory, lr=0.1, schedule=Constant())
        *_, last = solver.run(p, 3)
        found, expected = last.observation.model.state_dict(), averaged(p, 4, batches, past, 3).state_dict()
        with case(n=n, past=past):
            for (name, one), other in zip(found.items(), expected.values(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14, msg=name)


def test_the_average_changes_nothing_of_the_descent() -> None:
    p = problem(images(), convolutional(), none)
    *_, ours = SGD(batch_size=4, average=0.9).run(p, 2)
    *_, theirs = SGD(batch_size=4).run(p, 2)
    assert_same(ours.state.model, theirs.state.model)
    assert theirs.state.averaged is None
