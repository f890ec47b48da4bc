"""The minibatch loop over a data set held on the device, and learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.metrics import evaluate
from nncompress.problem import Problem


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


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """The learning rate of the next epoch."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def epoch(model: nn.Module, problem: Problem, *, optimizer: Optimizer, batch_size: int, generator: Generator) -> None:
    """One pass over the training data in random order; the last batch may be smaller. No host synchronisation."""
    split, loss = problem.data.train, problem.loss
    model.train()
    order = torch.randperm(len(split), generator=generator).to(split.y.device)
    for batch in torch.split(order, batch_size):
        optimizer.zero_grad(set_to_none=True)
        loss(model(split.x[batch]), split.y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def moved_sq(model: nn.Module, before: list[Tensor]) -> Tensor:
    """‖parameters - before‖², a 0-dimensional float64 tensor; `before` in the order of `model.parameters()`."""
    moves = [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]
    return torch.stack([torch.linalg.vector_norm(m, dtype=torch.float64).square() for m in moves]).sum()


def epoch_terms(problem: Problem, model: nn.Module, state: Descent) -> dict[str, float]:
    """The record of an epoch: the training loss of `model` and the squared steps."""
    terms = {"objective": evaluate(model, problem.data.train, problem.loss).loss}
    if state.k > 0:
        terms |= {"step_sq": float(state.step_sq), "step_sq/sum": float(state.step_sq_sum)}
    return terms


def check_minibatches(lr: float, batch_size: int) -> None:
    """Raise ValueError for a learning rate that is not positive or an empty batch."""
    if not lr > 0:
        raise ValueError(f"lr must be positive, found {lr}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
