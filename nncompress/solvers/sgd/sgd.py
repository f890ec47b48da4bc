"""Minibatch stochastic gradient descent: the dense reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress import parallel
from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Column, Observation, Solver, observation_of
from nncompress.solvers.sgd.regularisers import Regulariser
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, batch_lengths, epoch
from nncompress.surgery.norms import shared_norms


class SGDState(NamedTuple):
    """The network, the average of its past weights (if asked), its optimiser, the order of the samples, and the squared
    steps (float64)."""

    k: int
    model: nn.Module
    averaged: nn.Module | None
    optimizer: Optimizer
    generator: Generator
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class SGD(Solver[SGDState]):
    """Minimise L(w) + lam R(w) over w by minibatches, L the mean loss on the training data; one step is one epoch.

    w is trained without regard to the plan; Θ = Π(w) at every observation (direct compression).

    - num_steps: epochs.
    - lr: initial learning rate, times `schedule`.
    - batch_size: samples of a minibatch, of each process under torchrun.
    - optimizer: called with the parameters and `lr`.
    - label_smoothing, mixup: as in `Minibatches`; they change what is trained, not the losses recorded.
    - average: the network is the exponential moving average of the weights after every minibatch, with this factor of
      the past (at most (1 + t)/(10 + t) in minibatch t); 0: the last weights.
    - regulariser: lam R(w); None: 0.
    - tolerance: stop when the objective falls by less, relatively, between observations (0: never).
    """

    parallel: ClassVar[bool] = True
    columns = (Column("term/loss", "loss"), Column("term/regulariser", "regulariser"))

    num_steps: int = 20
    lr: float = 0.1
    batch_size: int = 64
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, nesterov=True))
    schedule: descent.Schedule = field(default_factory=descent.Cosine)
    label_smoothing: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    regulariser: Regulariser | None = None
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size, self.label_smoothing, self.mixup)
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and below 1, found {self.average}")

    def init(self, problem: Problem) -> SGDState:
        model = shared_norms(copy.deepcopy(problem.model))
        if self.regulariser is not None:
            self.regulariser.weights(model)  # refuses a network at once
        averaged = copy.deepcopy(model) if self.average > 0 else None
        optimizer = descent.optimizer_of(self.optimizer, model.parameters(), self.lr)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return SGDState(0, model, averaged, optimizer, Generator().manual_seed(self.seed), zero, zero)

    def step(self, problem: Problem, state: SGDState) -> SGDState:
        k, model, averaged, optimizer, generator, _, step_sq_sum = state
        before = [p.detach().clone() for p in model.parameters()]
        lr = self.lr * self.schedule.factor(k, self.num_steps)
        descent.set_rate(optimizer, lr)
        minibatches = Minibatches(self.batch_size, generator, self.label_smoothing, self.mixup)
        add, after = self._additions(problem, state, lr)
        epoch(problem, model, minibatches, optimizer=optimizer, add_gradient=add, after_step=after)
        parallel.check_alike([*model.state_dict().values()], "network")
        step_sq = descent.moved_sq(model, before)
        return SGDState(k + 1, model, averaged, optimizer, generator, step_sq, step_sq_sum + step_sq)

    def observe(self, problem: Problem, state: SGDState) -> Observation:
        model = copy.deepcopy(state.model if state.averaged is None else state.averaged).eval()
        plan = problem.plan
        theta = plan.compress(plan.select(weights_of(model)))
        terms = descent.epoch_terms(problem, model, state)
        if self.regulariser is not None:
            loss = terms["objective"]
            price = float(self.regulariser.price([w.detach() for w in self.regulariser.weights(model)]))
            terms |= {"objective": loss + price, "term/loss": loss, "term/regulariser": price}
        return observation_of(problem, model, theta, terms)

    def _additions(
        self, problem: Problem, state: SGDState, lr: float
    ) -> tuple[Callable[[], None] | None, Callable[[], None]]:
        """Return what is done in every minibatch before the optimiser's step, and behind it (shrink, then average)."""
        add: Callable[[], None] | None = None
        behind: list[Callable[[], None]] = []
        if self.regulariser is not None:
            weights = self.regulariser.weights(state.model)
            add = partial(self.regulariser.add_gradient, weights)
            behind.append(partial(self.regulariser.shrink, weights, lr))
        if state.averaged is not None:
            behind.append(self._averaging(problem, state, state.averaged))

        def after() -> None:
            for act in behind:
                act()

        return add, after

    def _averaging(self, problem: Problem, state: SGDState, averaged: nn.Module) -> Callable[[], None]:
        """Return what takes the weights into their average after every minibatch; running statistics as they are."""
        t = state.k * len(batch_lengths(len(problem.data.train), self.batch_size))
        ours: list[Tensor] = list(averaged.parameters())
        theirs: list[Tensor] = list(state.model.parameters())
        buffers = list(zip(averaged.buffers(), state.model.buffers(), strict=True))

        @torch.no_grad()
        def add() -> None:
            nonlocal t
            torch._foreach_lerp_(ours, theirs, 1 - min(self.average, (1 + t) / (10 + t)))
            for own, given in buffers:
                own.copy_(given)
            t += 1

        return add
