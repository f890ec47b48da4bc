"""The loop over minibatches beside a plain one: order, augmentation, mixup, short types, schedules, the average."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from problems import F64, gaussian, problem, randn
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.augmentation import Augmentation, Augmentations, Crop, Cutout, Flip, Rotation
from nncompress.compressions.nonconvex import LHalfPenalty, TransformedL1Penalty
from nncompress.compressions.plan import none
from nncompress.compressions.sparsity import L0Penalty, L1Penalty
from nncompress.errors import ConfigError
from nncompress.problem import Computation, Dataset, Problem, Split
from nncompress.solvers import minibatches
from nncompress.solvers.descent import Constant, Cosine, Linear, StepDecay, WarmUp, optimizer_of, set_rate
from nncompress.solvers.minibatches import Minibatches, epoch
from nncompress.solvers.network_slimming import NetworkSlimming
from nncompress.solvers.sgd import SGD
from nncompress.solvers.shared_norm import SharedNorm, shared_norms
from nncompress.solvers.slimming import Slimming

BLANK = torch.tensor(-0.7, dtype=F64)
CHANGES = Augmentations(parts=[Crop(padding=1), Flip()])


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


class Seen(nn.Module):
    """Keeps what it passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x.detach().clone(memory_format=torch.preserve_format))
        return x


class NoWaiting(TorchDispatchMode):
    """Fails where a value is read from a tensor, which on a GPU would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
        assert func.overloadpacket.__name__ not in waits, func
        return func(*args, **(kwargs or {}))


def images(n: int = 10, dtype: torch.dtype = F64, **settings: Any) -> Dataset:
    """Random images 2x5x4 of three classes."""
    g = torch.Generator().manual_seed(7)
    split = Split(torch.randn(n, 2, 5, 4, generator=g, dtype=F64).to(dtype), torch.randint(3, (n,), generator=g))
    return Dataset(split, split, 3, "images", blank=BLANK.to(dtype), **settings)


def convolutional(dtype: torch.dtype = F64) -> nn.Sequential:
    """Two convolutions with batch norm, and what the second one saw."""
    torch.manual_seed(0)
    blocks = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*blocks, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).to(dtype)


def descent(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def generator(seed: int = 3) -> Generator:
    return torch.Generator().manual_seed(seed)


def trained(data: Dataset, size: int = 4, epochs: int = 1, **settings: Any) -> tuple[nn.Module, list[Tensor]]:
    """The small network after some epochs and their losses; settings of `Minibatches` and of `Problem`."""
    ours = {key: settings.pop(key) for key in ("smoothing", "mixup") if key in settings}
    p = replace(problem(data, convolutional(data.train.x.dtype), none), **settings)
    optimizer, about = descent(p.model), Minibatches(size, generator(), **ours)
    return p.model, [epoch(p, p.model, about, optimizer=optimizer) for _ in range(epochs)]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, one), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


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


@pytest.mark.parametrize("augmentation", [None, CHANGES], ids=["as-it-is", "augmented"])
def test_an_epoch_equals_a_plain_loop_bit_for_bit(augmentation: Augmentation | None) -> None:
    data, ours, theirs, decay = images(augmentation=augmentation), convolutional(), convolutional(), 1e-3
    p, optimizer, weights = problem(data, ours, none), descent(ours), list(ours.parameters())

    @torch.no_grad()
    def add() -> None:
        for w in weights:
            w.grad += decay * w

    @torch.no_grad()
    def after() -> None:
        for w in weights:
            w.mul_(1 - decay)

    about = Minibatches(4, generator())
    ours.eval()
    value = epoch(p, ours, about, optimizer=optimizer, add_gradient=add, after_step=after)
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


@pytest.mark.parametrize(
    ("n", "size", "batches"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (9, 3, [3, 3, 3]), (5, 8, [5]), (3, 1, [1, 2]), (1, 4, [1])],
)
def test_every_sample_comes_once_and_a_last_one_alone_joins_the_batch_before(
    n: int, size: int, batches: list[int]
) -> None:
    data = images(n)
    model = nn.Sequential(Seen(), nn.Flatten(), nn.Linear(40, 3)).to(F64)
    about, optimizer = Minibatches(size, generator()), descent(model, lr=1e-9)
    order = generator()
    for _ in range(2):
        epoch(problem(data, model, none), model, about, optimizer=optimizer)
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


@pytest.mark.parametrize("solver", [SGD(batch_size=4, average=0.5), Slimming(batch_size=4, curvature=2)])
def test_nothing_is_changed_in_evaluation(solver: Any) -> None:
    noted = Noted(given=[])
    p = problem(images(augmentation=noted), convolutional(), none)
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


@pytest.mark.parametrize("alpha", [1e-6, 1e-300, 1e6])
def test_the_weights_of_mixup_are_numbers_between_0_and_1_for_any_alpha(alpha: float) -> None:
    weights = minibatches._mixing(1000, Minibatches(1, generator(), mixup=alpha))
    assert bool(((weights >= 0) & (weights <= 1)).all())


@pytest.mark.parametrize("solver", [SGD, Slimming, NetworkSlimming])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, found 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 and below 1, found -0.1"),
        ({"mixup": -0.1}, "mixup must be at least 0 and finite, found -0.1"),
        ({"mixup": float("inf")}, "mixup must be at least 0 and finite, found inf"),
        ({"mixup": float("nan")}, "mixup must be at least 0 and finite, found nan"),
    ],
)
def test_regularisation_out_of_range_is_refused(solver: Any, setting: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        solver(**setting)


@pytest.mark.parametrize("average", [-0.1, 1.0, float("nan")])
def test_an_average_out_of_range_is_refused(average: float) -> None:
    with pytest.raises(ValueError, match="average must be at least 0 and below 1, found"):
        SGD(average=average)


HALF = Computation(half=True)


def halved(data: Dataset, size: int = 4, at: int = 3, **settings: Any) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """The network after an epoch in bfloat16, the loss, and what a module of it was given and gave."""
    model = convolutional(data.train.x.dtype).to(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    model[at].register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    p = replace(problem(data, model, none), computation=HALF, **settings)
    return model, epoch(p, model, Minibatches(size, generator()), optimizer=descent(model)), seen


def test_in_bfloat16_weights_and_gradients_stay_float32_and_close_to_those_of_float32() -> None:
    data = images(40, dtype=torch.float32, augmentation=CHANGES)
    model, value, seen = halved(data, size=10)
    wide, (exact,) = trained(data, size=10)
    assert {x.dtype for x in seen} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert float(value) == pytest.approx(float(exact), rel=0.02)
    assert value != exact
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.05, atol=0.02)


def test_in_bfloat16_images_and_filters_keep_channels_last() -> None:
    data = images(dtype=torch.float32, augmentation=Augmentations(parts=[*CHANGES.parts, Cutout(size=2), Rotation()]))
    for at in (0, 3):
        model, _, seen = halved(data, at=at)
        assert all(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in seen)
    weights = [model[0].weight, model[3].weight]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert all(w.grad.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_in_bfloat16_logits_are_compared_with_the_labels_in_float32() -> None:
    seen = []

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return cross_entropy(logits, y)

    halved(images(dtype=torch.float32), loss=loss)
    assert seen == 3 * [torch.float32]


def test_samples_that_are_no_images_are_computed_in_bfloat16_too() -> None:
    model = nn.Sequential(nn.Linear(12, 8), Seen(), nn.ReLU(), nn.Linear(8, 3))
    p = replace(problem(gaussian(dtype=torch.float32), model, none), computation=HALF)
    epoch(p, model, Minibatches(40, generator()), optimizer=descent(model))
    assert {x.dtype for x in model[1].given} == {torch.bfloat16}


def test_in_full_precision_type_and_layout_are_those_of_the_data() -> None:
    model = nn.Sequential(Seen(), nn.Conv2d(2, 3, 3), Seen(), nn.Flatten(), nn.Linear(18, 3)).to(F64)
    p = problem(images(), model, none)
    epoch(p, model, Minibatches(4, generator()), optimizer=descent(model))
    assert all(x.dtype == F64 and x.is_contiguous() for x in model[0].given + model[2].given)


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


def test_a_rate_is_that_of_all_groups() -> None:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.2)])
    set_rate(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


SCHEDULES = [
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


@pytest.mark.parametrize(("schedule", "factors"), SCHEDULES, ids=[str(schedule) for schedule, _ in SCHEDULES])
def test_the_factors_of_a_schedule(schedule: Any, factors: list[float]) -> None:
    assert [schedule.factor(k, 4) for k in range(5)] == pytest.approx(factors, abs=1e-15)


@pytest.mark.parametrize("make", [lambda: Linear(-0.1), lambda: StepDecay(0), lambda: WarmUp(-1)])
def test_a_schedule_out_of_range_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must be at least [01], found"):
        make()


def test_the_rate_of_an_epoch_is_the_schedules() -> None:
    solver = SGD(num_steps=4, lr=0.4, schedule=WarmUp(1, StepDecay(2, 0.1)), batch_size=5)
    p = problem(images(), convolutional(), none)
    state, found = solver.init(p), []
    for _ in range(4):
        state = solver.step(p, state)
        found.append(state.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.04])


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


@pytest.mark.parametrize(
    ("n", "batches"), [(10, 3), pytest.param(9, 2, id="a-last-sample-joins"), pytest.param(8, 2, id="even")]
)
@pytest.mark.parametrize("past", [0.15, 0.99])
def test_the_observed_network_is_the_average_of_the_weights(n: int, batches: int, past: float) -> None:
    p = problem(images(n), convolutional(), none)
    factory = partial(torch.optim.SGD, momentum=0.9)
    solver = SGD(batch_size=4, average=past, optimizer=factory, lr=0.1, schedule=Constant())
    *_, last = solver.run(p, 3)
    expected = averaged(p, 4, batches, past, 3)
    for (name, one), other in zip(
        last.observation.model.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14, msg=name)


def test_the_average_changes_nothing_of_the_descent() -> None:
    p = problem(images(), convolutional(), none)
    *_, ours = SGD(batch_size=4, average=0.9).run(p, 2)
    *_, theirs = SGD(batch_size=4).run(p, 2)
    assert_same(ours.state.model, theirs.state.model)
    assert theirs.state.averaged is None


NORMS = [(6, 3), (5, 3, 4), (4, 3, 2, 5)]
every_shape = pytest.mark.parametrize("shape", NORMS, ids=str)


def norm_of(shape: tuple[int, ...], **settings: Any) -> nn.Module:
    """Torch's batch norm for samples of this shape, its parameters and buffers not those of the start."""
    torch.manual_seed(1)
    made = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][len(shape) - 2](3, eps=1e-3, momentum=0.3, **settings)
    for tensor in [*made.parameters(), made.running_mean, made.running_var]:
        nn.init.uniform_(tensor, 0.5, 2)
    return made.to(F64)


@every_shape
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_a_norm_over_one_process_computes_what_that_of_torch_does(shape: tuple[int, ...], affine: bool) -> None:
    theirs = norm_of(shape, affine=affine)
    ours = SharedNorm(copy.deepcopy(theirs))
    for k in range(3):
        x = randn(*shape, seed=k) * 3 + 1
        a, b = (x.clone().requires_grad_() for _ in range(2))
        weights = randn(*shape, seed=9)
        found, expected = ours(a), theirs(b)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        for output in (found, expected):
            (output * weights).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-12)
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14, msg=name)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-11, atol=1e-13)


@every_shape
def test_the_gradient_of_a_norm_over_processes_is_that_of_its_differences(shape: tuple[int, ...]) -> None:
    norm = SharedNorm(norm_of(shape))
    inputs = (randn(*shape).requires_grad_(), norm.weight, norm.bias)
    assert torch.autograd.gradcheck(lambda x, weight, bias: norm(x), inputs)


def test_a_norm_over_processes_shares_parameters_and_buffers_with_the_one_it_replaces() -> None:
    norm = norm_of((2, 3))
    shared = SharedNorm(norm)
    assert shared.weight is norm.weight
    assert shared.running_mean is norm.running_mean
    assert list(shared.state_dict()) == list(norm.state_dict())
    with pytest.raises(ValueError, match=r"batch norm needs \(n, channels, ...\), found 1 dimensions"):
        shared.eval()(torch.ones(3, dtype=F64))


def test_one_process_keeps_the_norms_of_torch() -> None:
    model = convolutional()
    assert shared_norms(model) is model
    assert not any(isinstance(module, SharedNorm) for module in model.modules())


EVERYTHING = Augmentations(parts=[Crop(padding=1), Flip(), Rotation(), Cutout(size=2)])


def watched_epochs(solver: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many epochs a step has, each of them watched: one that waits raises AssertionError."""
    p = problem(images(augmentation=EVERYTHING), convolutional(), none)
    state, watched = solver.init(p), []

    def watching(*args: Any, **settings: Any) -> Tensor:
        with NoWaiting():
            watched.append(epoch(*args, **settings))
        return watched[-1]

    for module in ("sgd", "slimming", "network_slimming"):
        monkeypatch.setattr(f"nncompress.solvers.{module}.epoch", watching)
    solver.step(p, state)
    return len(watched)


WATCHED = {
    "sgd": SGD(batch_size=4, label_smoothing=0.1, average=0.9),
    "l1": Slimming(batch_size=4, penalty=L1Penalty),
    "l0": Slimming(batch_size=4, penalty=L0Penalty),
    "l-half": Slimming(batch_size=4, penalty=LHalfPenalty),
    "transformed-l1": Slimming(batch_size=4, penalty=TransformedL1Penalty),
    "network-slimming": NetworkSlimming(batch_size=4),
}


@pytest.mark.parametrize("name", WATCHED)
def test_no_value_is_waited_for_within_an_epoch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched_epochs(WATCHED[name], monkeypatch) == 1


def test_a_value_that_is_waited_for_would_be_noticed() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(torch.ones(1).sum())
    with NoWaiting(), pytest.raises(AssertionError, match="nonzero"):
        torch.ones(3).nonzero()
