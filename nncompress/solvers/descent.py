"""The minibatch loop over a data set held on the device, and learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.errors import Unsupported
from nncompress.metrics import EVALUATION_BATCH, evaluate
from nncompress.params import Params
from nncompress.problem import Loss, Problem, Split


class Schedule(ABC):
    """The learning rate as a multiple of its initial value."""

    @abstractmethod
    def factor(self, step: int, num_steps: int) -> float:
        """Multiple for epoch `step` (from 0) of `num_steps`."""


@dataclass(frozen=True)
class Constant(Schedule):
    """Always 1."""

    def factor(self, step: int, num_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to 0 at the last epoch (Loshchilov and Hutter, ICLR 2017, without restarts)."""

    def factor(self, step: int, num_steps: int) -> float:
        return (1 + math.cos(math.pi * step / max(1, num_steps))) / 2


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiplied by `decay` after every epoch."""

    decay: float = 0.99

    def factor(self, step: int, num_steps: int) -> float:
        return self.decay**step


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by `decay` at each milestone, a fraction of all epochs."""

    milestones: Sequence[float] = (0.5, 0.75)
    decay: float = 0.1

    def factor(self, step: int, num_steps: int) -> float:
        return self.decay ** sum(step >= fraction * num_steps for fraction in self.milestones)


class Descent(Protocol):
    """What the states of minibatch solvers have in common."""

    @property
    def k(self) -> int: ...
    @property
    def step_sq(self) -> Tensor: ...
    @property
    def step_sq_sum(self) -> Tensor: ...


def stability_limit(optimizer: Optimizer) -> float | None:
    """The learning rate times curvature from which descent on a quadratic is unstable; None for other methods than SGD.

    2 (1 + beta) with momentum beta, 2 (1 + beta)/(1 + 2 beta) with Nesterov's: where a root of the recursion's
    characteristic polynomial reaches -1 (Polyak 1964 for the former).
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    group = optimizer.param_groups[0]
    beta = float(group["momentum"])
    return 2 * (1 + beta) / (1 + 2 * beta if group["nesterov"] else 1)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """The learning rate of the next epoch."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def epoch(
    model: nn.Module,
    split: Split,
    loss: Loss,
    *,
    optimizer: Optimizer,
    batch_size: int,
    generator: Generator,
    add_gradient: Callable[[], None] | None = None,
) -> Tensor:
    """One pass over `split` in random order. No host synchronisation.

    The last batch may be smaller; one of a single sample joins the batch before it (batch norm needs two).
    `add_gradient` is called between the gradient of the loss and the optimiser's step, to add that of another term.
    Returns the mean loss of the samples as they came by, a 0-dimensional tensor.
    """
    model.train()
    total = split.x.new_zeros(())
    order = torch.randperm(len(split), generator=generator).to(split.y.device)
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        value = loss(model(split.x.index_select(0, batch)), split.y.index_select(0, batch))
        value.backward()  # type: ignore[no-untyped-call]
        if add_gradient is not None:
            add_gradient()
        optimizer.step()
        total += value.detach() * len(batch)
    return total / len(split)


def toward(model: nn.Module, target: Params, mu: float) -> Callable[[], None]:
    """Adds mu (w - target), the gradient of mu/2 ‖w - target‖², to that of the weights w of the model."""
    parameters = dict(model.named_parameters())
    w: list[Tensor] = [parameters[name] for name in target]
    goals = list(target.values())

    @torch.no_grad()
    def add() -> None:
        torch._foreach_add_([_gradient(p) for p in w], torch._foreach_sub(w, goals), alpha=mu)

    return add


def _gradient(p: Tensor) -> Tensor:
    """Its gradient, zeros where the loss does not depend on it."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def full_gradient(model: nn.Module, split: Split, loss: Loss) -> dict[str, Tensor]:
    """The gradient of the mean loss of `model`, in evaluation mode, on a whole split, by parameter."""
    was_training = model.training
    model.eval()
    model.zero_grad(set_to_none=True)
    for x, y in zip(torch.split(split.x, EVALUATION_BATCH), torch.split(split.y, EVALUATION_BATCH), strict=True):
        (loss(model(x), y) * (len(y) / len(split))).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return found


def moved_sq(model: nn.Module, before: list[Tensor]) -> Tensor:
    """‖parameters - before‖², a 0-dimensional float64 tensor; `before` in the order of `model.parameters()`."""
    moves = [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]
    return torch.stack([torch.linalg.vector_norm(m, dtype=torch.float64).square() for m in moves]).sum()


def epoch_terms(problem: Problem, model: nn.Module, state: Descent) -> dict[str, float]:
    """The record of an epoch: the training loss of `model`, the epochs so far and the squared steps."""
    terms = {"objective": evaluate(model, problem.data.train, problem.loss).loss, "epochs": state.k}
    if state.k > 0:
        terms |= {"step_sq": float(state.step_sq), "step_sq/sum": float(state.step_sq_sum)}
    return terms


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
    """Epochs of step k, counted from 0: of the first one `first`, None for twice as many as of the others."""
    if k > 0:
        return epochs
    return 2 * epochs if first is None else first


def check_epochs(epochs: int, first: int | None) -> None:
    """Raise ValueError for a step without an epoch."""
    if epochs < 1 or (first is not None and first < 1):
        raise ValueError(f"epochs must be at least 1, found {epochs} and first_epochs {first}")


def check_minibatches(lr: float, batch_size: int) -> None:
    """Raise ValueError for a learning rate that is not positive or an empty batch."""
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, found {lr}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
