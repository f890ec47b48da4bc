"""Minibatch stochastic gradient descent: the dense reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Observation, Solver
from nncompress.solvers.descent import Cosine, Schedule, check_minibatches, epoch, epoch_terms, moved_sq, set_rate


class SGDState(NamedTuple):
    """The network, its optimiser, the order of the samples, and the squared steps (float64)."""

    k: int
    model: nn.Module
    optimizer: Optimizer
    generator: Generator
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class SGD(Solver[SGDState]):
    """min over w of L(w), the mean loss on the training data, by minibatches; one step is one epoch.

    w is trained without regard to the plan; Θ = Π(w) at every observation (direct compression).

    num_steps: epochs. lr: initial learning rate, times `schedule`. optimizer: called with the parameters and `lr`.
    """

    num_steps: int = 20
    lr: float = 0.1
    batch_size: int = 64
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, nesterov=True))
    schedule: Schedule = field(default_factory=Cosine)
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_minibatches(self.lr, self.batch_size)

    def init(self, problem: Problem) -> SGDState:
        model = copy.deepcopy(problem.model)
        optimizer = self.optimizer(model.parameters(), lr=self.lr)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return SGDState(0, model, optimizer, Generator().manual_seed(self.seed), zero, zero)

    def step(self, problem: Problem, state: SGDState) -> SGDState:
        k, model, optimizer, generator, _, step_sq_sum = state
        before = [p.detach().clone() for p in model.parameters()]
        set_rate(optimizer, self.lr * self.schedule.factor(k, self.num_steps))
        train, loss = problem.data.train, problem.loss
        epoch(model, train, loss, optimizer=optimizer, batch_size=self.batch_size, generator=generator)
        step_sq = moved_sq(model, before)
        return SGDState(k + 1, model, optimizer, generator, step_sq, step_sq_sum + step_sq)

    def observe(self, problem: Problem, state: SGDState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        plan = problem.plan
        theta = plan.compress(plan.select(weights_of(model)))
        return Observation(model, theta, epoch_terms(problem, model, state))
