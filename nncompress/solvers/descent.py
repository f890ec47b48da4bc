"""The minibatch loop over a data set held on the device, and learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.problem import Loss, Split


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


def epoch(
    model: nn.Module, split: Split, loss: Loss, *, optimizer: Optimizer, batch_size: int, generator: Generator
) -> None:
    """One pass over the split in random order; the last batch may be smaller. No host synchronisation inside."""
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


def check_minibatches(lr: float, batch_size: int) -> None:
    """Raise ValueError for a learning rate that is not positive or an empty batch."""
    if not lr > 0:
        raise ValueError(f"lr must be positive, found {lr}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
