"""Stochastic Frank-Wolfe: training within sets whose vertices are compressed networks.

Zimmer, Spiegel, Pokutta, "Compression-aware training of neural networks using Frank-Wolfe", arXiv 2205.11921 (2024).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn

from nncompress import parallel
from nncompress.constraints.assignment import Assignment, Body, diameters
from nncompress.constraints.base import Constraint
from nncompress.constraints.size import initial_norms
from nncompress.errors import ConfigError, Unsupported
from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Observation, Solver, observation_of
from nncompress.solvers.frank_wolfe.bodies import enter, gap, gauges
from nncompress.solvers.frank_wolfe.columns import COLUMNS, PLOTS
from nncompress.solvers.frank_wolfe.sfw import SFW, GradientRescaling, Rescaling
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, batch_lengths, epoch
from nncompress.surgery.norms import shared_norms

log = logging.getLogger(__name__)

SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True, kw_only=True)
class LossFeedback:
    """A factor of the learning rate that follows the training loss (Miao et al., ICLR 2022, "SFW-pruning").

    After every `every` epochs from epoch `start` on it is multiplied by `fall` if the mean loss of the last 5 epochs
    exceeds that of the last 10, by `rise` if it is lower; all as published. Raises ValueError for factors that are not
    positive.
    """

    start: int = 20
    every: int = 5
    fall: float = 0.7
    rise: float = 1.06

    def __post_init__(self) -> None:
        if self.start < 0 or self.every < 1 or not min(self.fall, self.rise) > 0:
            raise ValueError(
                "start must be at least 0, every at least 1, fall and rise positive, found "
                f"{self.start}, {self.every}, {self.fall} and {self.rise}"
            )

    def change(self, epochs: int, losses: Tensor) -> float:
        """Return the factor behind this many epochs, `losses` (10,) being those of the last ones."""
        if epochs < max(self.start, len(losses)) or epochs % self.every:
            return 1.0
        short, long = float(losses[-5:].mean()), float(losses.mean())
        return self.fall if short > long else self.rise if short < long else 1.0


class FrankWolfeState(NamedTuple):
    """The network, its optimiser, the order of the samples, the sets' diameters (bodies,), and what was measured.

    figures (bodies, 2): eta and the part of the minibatches in which it was clipped, means of the last epoch. losses
    (10,): of the last epochs; factor: what LossFeedback made of them. warned: whether clipping has been spoken of.
    """

    k: int
    model: nn.Module
    optimizer: SFW
    generator: Generator
    diameters: Tensor
    figures: Tensor
    losses: Tensor
    factor: Tensor
    warned: int
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class FrankWolfe(Solver[FrankWolfeState]):
    """Minimise L(w) over w subject to w_l in C_l, a convex set for each parameter (or for several together).

    After every minibatch, with g its gradient, for each set:

        m <- mu m + (1 - dampening) g          (at first m = g)                                         (1)
        v  = LMO(m), a vertex of C_l: sparse, with few filters, or of low rank                          (2)
        w <- w + eta (v - w),                  eta = that of `rescaling` for the learning rate,         (3)
                                               clipped to [0, 1]

    so that w stays in C_l, a convex combination of vertices and of a vanishing part of its start: near its compressed
    versions, which need no retraining (see compress_at). Weight decay has no place here. One step is one epoch; Θ =
    Π(w) at every observation, as for SGD. Zimmer et al., arXiv 2205.11921, where all experiment values are left open.

    - constraint: which parameters lie in which set.
    - num_steps: epochs.
    - lr: learning rate, times `schedule`, which is followed within the epochs; 0.1 as in the code's debug preset, like
      momentum (mu) and the linear schedule.
    - dampening: as in (1); 0 as in the code of 2022 (that of 2020: mu).
    - rescaling: eta; by the gradient, so that a step has the length lr ‖m‖, as that of SGD.
    - delay: the part of the epochs in which all entries may be nonzero in a vertex, before k is that of the sets; their
      diameters stay.
    - feedback: another factor of the learning rate, by the loss.
    - label_smoothing, mixup: as in `Minibatches`.
    - gap_samples: training samples for the Frank-Wolfe gap at an observation; 0: all.
    - tolerance: stop when the objective falls by less, relatively, between observations (0: never).
    """

    parallel: ClassVar[bool] = True
    columns = COLUMNS
    plots = PLOTS

    constraint: Assignment
    num_steps: int = 100
    lr: float = 0.1
    batch_size: int = 128
    momentum: float = 0.9
    dampening: float = 0.0
    rescaling: Rescaling = field(default_factory=GradientRescaling)
    schedule: descent.Schedule = field(default_factory=descent.Linear)
    delay: float = 0.0
    feedback: LossFeedback | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    gap_samples: int = 1024
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.constraint, Assignment):
            raise ValueError(
                f"constraint must say which parameters lie in which set, found {self.constraint!r}; choose one with "
                "constraint=k_support, group_k_support, spectral_k_support, ..."
            )
        descent.check_minibatches(self.lr, self.batch_size, self.label_smoothing, self.mixup)
        for name, value in (("momentum", self.momentum), ("dampening", self.dampening), ("delay", self.delay)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {value}")
        if self.lr > self.rescaling.largest_rate:
            most = self.rescaling.largest_rate
            raise ValueError(f"lr must be at most {most:g} with {type(self.rescaling).__name__}, found {self.lr}")
        if self.gap_samples < 0:
            raise ValueError(f"gap_samples must be at least 0, found {self.gap_samples}")

    def init(self, problem: Problem) -> FrankWolfeState:
        model = shared_norms(copy.deepcopy(problem.model))
        bodies, parameters = self.constraint.bodies(model), dict(model.named_parameters())
        self._check(problem, bodies)
        sizes = diameters(bodies, parameters, initial_norms(problem.model))
        constraints = self._constraints(0, model, bodies, sizes)
        enter(model, bodies, constraints)
        optimizer = SFW(
            [[parameters[name] for name in body.names] for body in bodies],
            constraints,
            lr=self.lr,
            momentum=self.momentum,
            dampening=self.dampening,
            rescaling=self.rescaling,
        )
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return FrankWolfeState(
            0, model, optimizer, Generator().manual_seed(self.seed), sizes, zero.cpu().expand(len(bodies), 2),
            torch.zeros(10), torch.ones(()), 0, zero, zero,
        )  # fmt: skip

    def step(self, problem: Problem, state: FrankWolfeState) -> FrankWolfeState:
        k, model, optimizer = state.k, state.model, state.optimizer
        bodies = self.constraint.bodies(model)
        constraints = self._constraints(k, model, bodies, state.diameters)
        enter(model, bodies, constraints)  # when they have changed: behind a delay, or another num_steps
        optimizer.constrain(constraints)
        before = [p.detach().clone() for p in model.parameters()]
        minibatches = Minibatches(self.batch_size, state.generator, self.label_smoothing, self.mixup)
        count = len(batch_lengths(len(problem.data.train), self.batch_size))
        rates = self._rates(state, count)
        descent.set_rate(optimizer, next(rates))
        loss = epoch(
            problem,
            model,
            minibatches,
            optimizer=optimizer,  # (1) to (3)
            after_step=lambda: descent.set_rate(optimizer, next(rates)),
        )
        parallel.check_alike([*model.state_dict().values()], "network")
        figures = (optimizer.totals / count).cpu()
        losses = torch.cat([state.losses[1:], loss.cpu().float()[None]])
        change = 1.0 if self.feedback is None else self.feedback.change(k + 1, losses)
        step_sq = descent.moved_sq(model, before)
        return state._replace(
            k=k + 1, figures=figures, losses=losses, factor=state.factor * change,
            warned=state.warned or self._warn(k, bodies, figures), step_sq=step_sq,
            step_sq_sum=state.step_sq_sum + step_sq,
        )  # fmt: skip

    def observe(self, problem: Problem, state: FrankWolfeState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        theta = problem.plan.compress(problem.plan.select(weights_of(model)))
        bodies = self.constraint.bodies(model)
        constraints = self._constraints(max(0, state.k - 1), model, bodies, state.diameters)
        train = problem.data.train
        gradients = descent.full_gradient(model, train.some(self.gap_samples or len(train), self.seed), problem.loss)
        terms = descent.epoch_terms(problem, model, state) | {"fw_gap": gap(model, bodies, constraints, gradients)}
        terms |= gauges(model, bodies, constraints)
        if state.k > 0:
            held = [i for i, constraint in enumerate(constraints) if constraint is not None]
            terms |= {f"eta/{bodies[i].name}": float(state.figures[i, 0]) for i in held}
            terms |= {"eta": float(state.figures[held, 0].mean()), "eta/clipped": float(state.figures[held, 1].mean())}
        return observation_of(problem, model, theta, terms)

    def _check(self, problem: Problem, bodies: Sequence[Body]) -> None:
        """Refuse what cannot be trained, or not as is asked."""
        if not bodies:
            raise Unsupported("a network with a trainable parameter is needed, found none; unfreeze some")
        if self.delay > 0 and all(b.constraint is None or b.constraint.full() == b.constraint for b in bodies):
            raise ConfigError(
                f"solver.delay needs a set with a k below 1, found delay={self.delay} and none; give delay=0 or "
                "another constraint"
            )

    def _rates(self, state: FrankWolfeState, count: int) -> Iterator[float]:
        """Return the learning rates of the minibatches of an epoch, and one more."""
        for i in range(count + 1):
            yield self.lr * self.schedule.factor(state.k + i / count, self.num_steps) * float(state.factor)

    def _delay_epoch(self) -> int:
        """Return the epoch in which k becomes that of the sets, at the latest the last one."""
        return math.floor(self.delay * self.num_steps + descent.ROUNDING)

    def _constraints(self, k: int, model: nn.Module, bodies: Sequence[Body], sizes: Tensor) -> list[Constraint | None]:
        """Return the sets of epoch k."""
        parameters = dict(model.named_parameters())
        constraints: list[Constraint | None] = []
        for body, size in zip(bodies, sizes.tolist(), strict=True):
            constraint = body.constraint
            if constraint is not None:
                constraint = constraint.full() if k < self._delay_epoch() else constraint
                constraint = constraint.at_diameter(size, *(parameters[name].shape for name in body.names))
            constraints.append(constraint)
        return constraints

    def _warn(self, k: int, bodies: Sequence[Body], figures: Tensor) -> int:
        """Log which step sizes were clipped in every minibatch; return whether there were any."""
        names = [body.name for body, clipped in zip(bodies, figures[:, 1].tolist(), strict=True) if clipped == 1]
        if names:
            log.warning(
                "the step size eta must stay below 1, found it clipped to 1 in every minibatch of epoch %d for %s: the "
                "weights jump from vertex to vertex; give a smaller solver.lr or a larger constraint.size.w",
                k + 1, ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""),
            )  # fmt: skip
        return int(bool(names))
