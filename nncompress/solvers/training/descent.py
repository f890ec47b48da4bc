"""What minibatch solvers share beside the loop over batches: learning-rate schedules, figures, checks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nncompress.compressions.params import Params
from nncompress.errors import Unsupported
from nncompress.metrics import evaluate, evaluation_batch
from nncompress.problem import Loss, Problem, Split

ROUNDING = 1e-9
"""By how much a fraction of all epochs may miss a whole number of them: .7 of 90 are 63."""


class Schedule(ABC):
    """The learning rate as a multiple of its initial value."""

    @abstractmethod
    def factor(self, step: float, num_steps: int) -> float:
        """Return the multiple for epoch `step` (from 0, or a time within it) of `num_steps`."""


@dataclass(frozen=True)
class Constant(Schedule):
    """Always 1."""

    def factor(self, step: float, num_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to 0 where the last epoch ends (Loshchilov and Hutter, ICLR 2017, without restarts)."""

    def factor(self, step: float, num_steps: int) -> float:
        return (1 + math.cos(math.pi * step / max(1, num_steps))) / 2


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiplied by `decay` after every epoch."""

    decay: float = 0.99

    def factor(self, step: float, num_steps: int) -> float:
        return math.pow(self.decay, step)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by `decay` at each milestone, a fraction of all epochs."""

    milestones: Sequence[float] = (0.5, 0.75)
    decay: float = 0.1

    def factor(self, step: float, num_steps: int) -> float:
        return self.decay ** sum(step >= fraction * num_steps - ROUNDING for fraction in self.milestones)


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from 1 to `end` where the last epoch ends. Raises ValueError for a negative end."""

    end: float = 0.0

    def __post_init__(self) -> None:
        if not self.end >= 0:
            raise ValueError(f"end must be at least 0, found {self.end}")

    def factor(self, step: float, num_steps: int) -> float:
        return 1 + (self.end - 1) * step / max(1, num_steps)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiplied by `decay` after every `every` epochs. Raises ValueError for less than one epoch."""

    every: int = 30
    decay: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, found {self.every}")

    def factor(self, step: float, num_steps: int) -> float:
        return float(self.decay ** (step // self.every))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A straight rise over the first `epochs` epochs, to 1 behind the last of them, times `then` from there on.

    Goyal et al., "Accurate, large minibatch SGD", arXiv 1706.02677. `then` counts its epochs from the end of the rise.
    Raises ValueError for a negative number of epochs.
    """

    epochs: int = 5
    then: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs must be at least 0, found {self.epochs}")

    def factor(self, step: float, num_steps: int) -> float:
        if step < self.epochs:
            return (step + 1) / (self.epochs + 1)
        return self.then.factor(step - self.epochs, num_steps - self.epochs)


class Descent(Protocol):
    """What the states of minibatch solvers have in common."""

    @property
    def k(self) -> int: ...
    @property
    def step_sq(self) -> Tensor: ...
    @property
    def step_sq_sum(self) -> Tensor: ...


def stability_limit(optimizer: Optimizer) -> float | None:
    """Return the learning rate times curvature from which descent on a quadratic is unstable; None unless it is SGD.

    2 (1 + beta) with momentum beta, 2 (1 + beta)/(1 + 2 beta) with Nesterov's: where a root of the recursion's
    characteristic polynomial reaches -1 (Polyak 1964 for the former).
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    group = optimizer.param_groups[0]
    beta = float(group["momentum"])
    return 2 * (1 + beta) / (1 + 2 * beta if group["nesterov"] else 1)


def optimizer_of(factory: Callable[..., Optimizer], parameters: Iterable[Any], lr: float) -> Optimizer:
    """Return what `factory` makes of parameters (or groups of them): on a GPU the fused form, if there is one."""
    groups = list(parameters)
    tensors = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    settings = getattr(factory, "keywords", {})  # of a partial
    fusible = "fused" in signature(factory).parameters and not {"fused", "foreach"} & set(settings)
    fused = {"fused": True} if fusible and all(p.is_cuda for p in tensors) else {}
    return factory(groups, lr=lr, **fused)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def toward(model: nn.Module, target: Params, mu: float) -> Callable[[], None]:
    """Return what adds mu (w - target), the gradient of mu/2 ‖w - target‖², to that of the weights w of the model."""
    parameters = dict(model.named_parameters())
    w: list[Tensor] = [parameters[name] for name in target]
    goals = list(target.values())

    @torch.no_grad()
    def add() -> None:
        torch._foreach_add_([gradient_of(p) for p in w], torch._foreach_sub(w, goals), alpha=mu)

    return add


def gradient_of(p: Tensor) -> Tensor:
    """Return its gradient, made zeros where the loss does not depend on it."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def full_gradient(model: nn.Module, split: Split, loss: Loss) -> dict[str, Tensor]:
    """Return the gradient of the mean loss of `model`, in evaluation mode, on a whole split, by parameter."""
    was_training = model.training
    model.eval()
    model.zero_grad(set_to_none=True)
    size = evaluation_batch(split.x)
    for x, y in zip(torch.split(split.x, size), torch.split(split.y, size), strict=True):
        (loss(model(x), y) * (len(y) / len(split))).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return gradients


def moved_sq(model: nn.Module, before: list[Tensor]) -> Tensor:
    """Return ‖parameters - before‖², a 0-dimensional float64 tensor; `before` as `model.parameters()` are ordered."""
    moves = [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]
    return torch.stack([torch.linalg.vector_norm(m, dtype=torch.float64).square() for m in moves]).sum()


def epoch_terms(problem: Problem, model: nn.Module, state: Descent) -> dict[str, float]:
    """Return the record of an epoch: the training loss of `model`, the epochs so far and the squared steps."""
    return {
        "objective": evaluate(model, problem.data.train, problem.loss).loss,
        "epochs": state.k,
        **step_terms(state),
    }


def step_terms(state: Descent) -> dict[str, float]:
    """Return the squared steps for the record, nothing before the first step."""
    return {"step_sq": float(state.step_sq), "step_sq/sum": float(state.step_sq_sum)} if state.k > 0 else {}


def check_trainable(problem: Problem) -> None:
    """Raise Unsupported, naming the weight, when the plan holds one that is frozen, or none at all."""
    if not problem.plan.tasks:
        raise Unsupported(
            "compressed weights are needed, found none in the plan; choose a compression, or use solver=sgd"
        )
    for name, p in problem.model.named_parameters():
        if name in problem.plan.shapes and not p.requires_grad:
            raise Unsupported(
                f"every compressed weight must be trainable, found that {name} is frozen (requires_grad=False); "
                "unfreeze it, or leave it out by compression.layers"
            )


def epochs_of(k: int, epochs: int, first: int | None) -> int:
    """Return the epochs of step k, from 0: of the first one `first`, None for twice as many as of the others."""
    if k > 0:
        return epochs
    return 2 * epochs if first is None else first


def check_epochs(epochs: int, first: int | None) -> None:
    """Raise ValueError for a step without an epoch."""
    if epochs < 1 or (first is not None and first < 1):
        raise ValueError(f"epochs must be at least 1, found {epochs} and first_epochs {first}")


def check_minibatches(lr: float, batch_size: int, label_smoothing: float = 0.0, mixup: float = 0.0) -> None:
    """Raise ValueError for a learning rate that is not positive, an empty batch, or a regularisation out of range."""
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, found {lr}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, found {label_smoothing}")
    if not 0 <= mixup < math.inf:
        raise ValueError(f"mixup must be at least 0 and finite, found {mixup}")
