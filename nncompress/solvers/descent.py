"""The minibatch loop over a data set held on the device, and learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, nn
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
