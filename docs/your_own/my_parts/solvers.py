"""Projected stochastic gradient descent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Observation, Solver, observation_of
from nncompress.solvers.lc.direct_learning import put
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, epoch


class ProjectedState(NamedTuple):
    """The network, whose compressed weights are Δ(Θ), Θ, optimiser, order of the samples, and the squared steps."""

    k: int
    model: nn.Module
    theta: tuple[Any, ...]
    optimizer: Optimizer
    generator: Generator
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class ProjectedSGD(Solver[ProjectedState]):
    """Minimise L(w) + C(Θ) subject to w = Δ(Θ), from Θ = Π(w); one step is one epoch, in which for every minibatch

        w <- w - lr g            the optimiser's step, g the gradient of the minibatch's loss                        (1)
        Θ <- Π(w), w <- Δ(Θ)     with mu = 1/lr: of a set the nearest point, of a penalty its proximal operator      (2)

    Bertsekas, "On the Goldstein-Levitin-Polyak gradient projection method", IEEE TAC 21(2), 1976, with minibatches in
    place of the gradient. Parameters that no task names are trained along.

    - num_steps: epochs.
    - lr: initial learning rate, times `schedule`.
    - every: minibatches between two projections; an epoch ends with one.

    Raises ValueError for a value out of range.
    """

    num_steps: int = 30
    lr: float = 0.05
    batch_size: int = 64
    every: int = 1
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, nesterov=True))
    schedule: descent.Schedule = field(default_factory=descent.Cosine)
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size)
        if self.every < 1:
            raise ValueError(f"every must be at least 1, found {self.every}")

    def init(self, problem: Problem) -> ProjectedState:
        descent.check_trainable(problem)
        model = copy.deepcopy(problem.model)
        theta = self._project(problem, model, 1 / self.lr, None)
        parameters = (p for p in model.parameters() if p.requires_grad)
        optimizer = descent.optimizer_of(self.optimizer, parameters, self.lr)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return ProjectedState(0, model, theta, optimizer, Generator().manual_seed(self.seed), zero, zero)

    def step(self, problem: Problem, state: ProjectedState) -> ProjectedState:
        k, model, theta, optimizer, generator, _, step_sq_sum = state
        before = [p.detach().clone() for p in model.parameters()]
        lr = self.lr * self.schedule.factor(k, self.num_steps)
        descent.set_rate(optimizer, lr)
        mu, t = 1 / lr, 0

        def after() -> None:
            nonlocal theta, t
            t += 1
            if t % self.every == 0:
                theta = self._project(problem, model, mu, theta)

        epoch(problem, model, Minibatches(self.batch_size, generator), optimizer=optimizer, after_step=after)
        if t % self.every != 0:
            theta = self._project(problem, model, mu, theta)
        step_sq = descent.moved_sq(model, before)
        return ProjectedState(k + 1, model, theta, optimizer, generator, step_sq, step_sq_sum + step_sq)

    def observe(self, problem: Problem, state: ProjectedState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        terms = descent.epoch_terms(problem, model, state)
        terms["objective"] += problem.plan.penalty(state.theta)
        return observation_of(problem, model, state.theta, terms)

    def _project(self, problem: Problem, model: nn.Module, mu: float, start: tuple[Any, ...] | None) -> tuple[Any, ...]:
        """Return Θ = Π(w), and put Δ(Θ) into the network."""
        plan = problem.plan
        theta = plan.compress(plan.select(weights_of(model)), mu, start)
        put(model, plan.decompress(theta))
        return theta
