"""The loop over minibatches beside a plain one: order, augmentation, smoothed labels, mixup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from cases import case
from minibatch_cases import BLANK, CHANGES, Seen, assert_same, convolutional, descent, generator, images, trained
from problems import F64, problem
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from nncompress.compressions.plan import none
from nncompress.errors import ConfigError
from nncompress.problem import Augmentation, Dataset
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.slimming.network_slimming import NetworkSlimming
from nncompress.solvers.slimming.proximal import Slimming
from nncompress.solvers.training import minibatches
from nncompress.solvers.training.minibatches import Minibatches, epoch


@dataclass(frozen=True, kw_only=True)
class Noted(Augmentation):
    """Adds a random number to each sample and keeps what it was given."""

    given: list[tuple[Tensor, Tensor, Tensor]]

    @property
    def columns(self) -> int:
        return 1

    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        self.given.append((x, drawn, blank))
        return x + drawn[:, :, None, None]


def plain(
    data: Dataset,
    model: nn.Module,
    batches: list[int],
    numbers: Generator,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    decay: float = 0.0,
) -> float:
    """An epoch with weight decay in the gradient, and all weights shrunk by a thousandth behind each batch."""
    optimizer, train, total = descent(model), data.train, 0.0
    order = torch.randperm(len(train), generator=numbers)
    drawn = data.augmentation.draw(len(train), numbers) if data.augmentation else None
    model.train()
    for end, size in zip(np.cumsum(batches), batches, strict=True):
        rows = order[end - size : end]
        x, y = train.x[rows], train.y[rows]
        if data.augmentation and drawn is not None:
            x = data.augmentation.apply(x, drawn[end - size : end].to(x.dtype), data.blank)
        model.zero_grad()
        value = loss(model(x), y)
        value.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.grad += decay * p
            optimizer.step()
            for p in model.parameters():
                p.mul_(1 - decay)
        total += float(value.detach()) * size
    return total / len(train)


def test_an_epoch_equals_a_plain_loop_bit_for_bit() -> None:
    decay = 1e-3
    for augmentation in (None, CHANGES):
        data, ours, theirs = images(augmentation=augmentation), convolutional(), convolutional()
        p, optimizer, weights = problem(data, ours, none), descent(ours), list(ours.parameters())

        @torch.no_grad()
        def add(weights: list[nn.Parameter] = weights) -> None:
            for w in weights:
                w.grad += decay * w

        @torch.no_grad()
        def after(weights: list[nn.Parameter] = weights) -> None:
            for w in weights:
                w.mul_(1 - decay)

        about = Minibatches(4, generator())
        ours.eval()
        value = epoch(p, ours, about, optimizer=optimizer, add_gradient=add, after_step=after)
        with case(augmentation=augmentation):
            assert float(value) == plain(data, theirs, [4, 4, 2], generator(), decay=decay)
            assert_same(ours, theirs)


def test_the_gradient_is_added_to_before_the_step_and_the_rest_follows_it() -> None:
    model, events = nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).to(F64), []

    class Told(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            events.append("step")
            super().step(closure)

    optimizer = Told(model.parameters(), lr=0.1)
    p = problem(images(), model, none)

    def add() -> None:
        assert all(w.grad is not None and bool(w.grad.any()) for w in model.parameters())
        events.append("add")

    about = Minibatches(5, generator())
    epoch(p, model, about, optimizer=optimizer, add_gradient=add, after_step=lambda: events.append("after"))
    assert events == 2 * ["add", "step", "after"]


def test_every_sample_comes_once_and_a_last_one_alone_joins_the_batch_before() -> None:
    for n, size, batches in (
        (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (9, 3, [3, 3, 3]), (5, 8, [5]), (3, 1, [1, 2]), (1, 4, [1]),
    ):  # fmt: skip
        data = images(n)
        model = nn.Sequential(Seen(), nn.Flatten(), nn.Linear(40, 3)).to(F64)
        about, optimizer = Minibatches(size, generator()), descent(model, lr=1e-9)
        order = generator()
        for _ in range(2):
            epoch(problem(data, model, none), model, about, optimizer=optimizer)
            with case(n=n, size=size):
                assert [len(x) for x in model[0].given] == batches
                assert torch.equal(torch.cat(model[0].given), data.train.x[torch.randperm(n, generator=order)])
            model[0].given.clear()


def test_samples_are_changed_anew_in_every_epoch_with_the_blank_of_the_data() -> None:
    noted = Noted(given=[])
    trained(images(augmentation=noted), epochs=2)
    drawn = torch.cat([numbers for _, numbers, _ in noted.given])
    assert len(drawn.unique()) == 20
    assert all(torch.equal(blank, BLANK) for *_, blank in noted.given)
    numbers = generator()
    for k in range(2):
        order = torch.randperm(10, generator=numbers)
        assert torch.equal(torch.cat([x for x, *_ in noted.given[3 * k : 3 * k + 3]]), images().train.x[order])
        assert torch.equal(drawn[10 * k : 10 * k + 10], noted.draw(10, numbers).to(F64))


def test_nothing_is_changed_in_evaluation() -> None:
    solvers: list[Any] = [SGD(batch_size=4, average=0.5), Slimming(batch_size=4, curvature=2)]
    for solver in solvers:
        noted = Noted(given=[])
        p = problem(images(augmentation=noted), convolutional(), none)
        with case(solver=solver):
            for iterate in solver.run(p, 2):
                assert len(noted.given) == 3 * iterate.step
            solver.result(p, iterate.state, iterate.observation)
            assert len(noted.given) == 6


def test_the_returned_loss_is_the_mean_over_all_samples() -> None:
    data = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).to(F64)
    value = epoch(problem(data, model, none), model, Minibatches(4, generator()), optimizer=descent(model, lr=0.0))
    assert value.shape == ()
    assert not value.requires_grad
    exact = cross_entropy(model(data.train.x), data.train.y).detach()
    assert float(value) == pytest.approx(float(exact), rel=1e-14)


def test_the_same_generator_state_gives_the_same_epoch_and_another_one_another() -> None:
    data, settings = images(augmentation=CHANGES), {"mixup": 0.4, "smoothing": 0.1}
    (first, values), (second, others) = (trained(data, epochs=2, **settings) for _ in range(2))
    assert values == others
    assert_same(first, second)
    assert values[0] != values[1]


def test_smoothed_labels_are_those_of_torch() -> None:
    data, theirs = images(), convolutional()
    ours, (value,) = trained(data, smoothing=0.2)
    smoothed = partial(cross_entropy, label_smoothing=0.2)
    assert float(value) == plain(data, theirs, [4, 4, 2], generator(), loss=smoothed)
    assert_same(ours, theirs)


def test_smoothed_labels_need_the_cross_entropy() -> None:
    with pytest.raises(
        ConfigError, match=r"label smoothing needs the cross-entropy, found another loss; give solver\."
    ):
        trained(images(), smoothing=0.2, loss=nn.functional.nll_loss)


def test_mixup_averages_each_sample_and_its_loss_with_the_one_before() -> None:
    data, theirs, numbers, total = images(augmentation=CHANGES), convolutional(), generator(), 0.0
    ours, (value,) = trained(data, mixup=0.4, smoothing=0.1)
    order = torch.randperm(10, generator=numbers)
    drawn = CHANGES.draw(10, numbers).to(F64)
    weights = np.random.default_rng(int(torch.randint(2**31, (), generator=numbers))).beta(0.4, 0.4, 3)
    optimizer = descent(theirs)
    for k, rows in enumerate(order.split(4)):
        x, y = CHANGES.apply(data.train.x[rows], drawn[4 * k : 4 * k + 4], BLANK), data.train.y[rows]
        before = [(i - 1) % len(rows) for i in range(len(rows))]
        logits = theirs(weights[k] * x + (1 - weights[k]) * x[before])
        losses = [cross_entropy(logits, labels, label_smoothing=0.1) for labels in (y, y[before])]
        loss = weights[k] * losses[0] + (1 - weights[k]) * losses[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows) / 10
    assert float(value) == pytest.approx(total, rel=1e-13)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_without_mixup_nothing_is_drawn_for_it() -> None:
    p, numbers, plain = problem(images(), convolutional(), none), generator(), generator()
    epoch(p, p.model, Minibatches(4, numbers, mixup=0.0), optimizer=descent(p.model))
    torch.randperm(10, generator=plain)
    assert torch.equal(numbers.get_state(), plain.get_state())


def test_the_weights_of_mixup_are_those_of_a_beta_distribution() -> None:
    for alpha in (0.2, 1.0, 5.0):
        weights = minibatches._mixing(20_000, Minibatches(1, generator(), mixup=alpha))
        assert float(weights.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(weights.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_the_weights_of_mixup_are_numbers_between_0_and_1_for_any_alpha() -> None:
    for alpha in (1e-6, 1e-300, 1e6):
        weights = minibatches._mixing(1000, Minibatches(1, generator(), mixup=alpha))
        with case(alpha=alpha):
            assert bool(((weights >= 0) & (weights <= 1)).all())


def test_settings_out_of_range_are_refused() -> None:
    regularisation = (
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, found 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 and below 1, found -0.1"),
        ({"mixup": -0.1}, "mixup must be at least 0 and finite, found -0.1"),
        ({"mixup": float("inf")}, "mixup must be at least 0 and finite, found inf"),
        ({"mixup": float("nan")}, "mixup must be at least 0 and finite, found nan"),
    )
    refused: list[tuple[Any, dict[str, float], str]] = [
        (solver, setting, said) for solver in (SGD, Slimming, NetworkSlimming) for setting, said in regularisation
    ]
    average = "average must be at least 0 and below 1, found"
    refused += [(SGD, {"average": past}, average) for past in (-0.1, 1.0, float("nan"))]
    refused += [(SGD, {"lr": 0.0}, "lr must be positive and finite, found 0.0"), (SGD, {"batch_size": 0}, "found 0")]
    for solver, setting, said in refused:
        with case(solver=solver, setting=setting), pytest.raises(ValueError, match=said):
            solver(**setting)
