"""The learning-compression (LC) algorithm: any compression, by alternating training and projection.

Carreira-Perpinan, "Model compression as constrained optimization, with application to neural nets. Part I: general
framework", arXiv 1707.01209 (2017).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.compressions.params import Params
from nncompress.errors import ConfigError, Diverged
from nncompress.metrics import evaluate, gap
from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Observation, Solver, observation_of
from nncompress.solvers.lc.columns import COLUMNS, PLOTS
from nncompress.solvers.lc.figures import divergence, multiplier_figures, objective_of, parts_of
from nncompress.solvers.lc.mu import find_mu0
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, epoch

log = logging.getLogger(__name__)

DIVERGED_ABOVE = 10.0
"""A loss after an L step beyond this multiple of the lowest objective so far (at least of 1) is divergence."""


class BestStep(NamedTuple):
    """The step with the lowest objective so far: its weights w, Θ and L(Δ(Θ)) + C(Θ)."""

    step: int
    model: nn.Module
    theta: tuple[Any, ...]
    objective: float


class LCState(NamedTuple):
    """The weights w, Θ, the multipliers λ in the order of the plan's weights, and the figures of the last step.

    objective: L(Δ(Θ)) + C(Θ). error: ‖v - Δ(Θ)‖ / ‖v‖ of the last C step, v = w - λ/mu. rate: the largest learning
    rate of the last L step, as clipped. epochs: passes over the data so far.
    """

    k: int
    model: nn.Module
    theta: tuple[Any, ...]
    lam: tuple[Tensor, ...]
    generator: Generator
    mu0: float
    epochs: int
    objective: float
    error: float
    rate: float
    step_sq: Tensor
    step_sq_sum: Tensor
    kept: BestStep


@dataclass(frozen=True, kw_only=True)
class LC(Solver[LCState]):
    """Minimise L(w) + C(Θ) over w and Θ subject to w = Δ(Θ), from a trained reference w̄; one step: an L and a C step.

        start:    w = w̄, Θ = Π(w̄), λ = 0
        mu        = mu0 growth^k
        L step:   w <- argmin L(w) + mu/2 ‖w - Δ(Θ) - λ/mu‖², by minibatches from the last w                (1)
        C step:   Θ <- Π(w - λ/mu) = argmin mu/2 ‖w - λ/mu - Δ(Θ)‖² + C(Θ)                                  (2)
        λ         <- λ - mu (w - Δ(Θ))                                                                      (3)

    This is the augmented Lagrangian; without `multipliers` λ is 0 in both steps (the quadratic penalty), and
    -mu (w - Δ(Θ)), to which the multipliers of a minimum are the limit, is recorded in its place. Weights outside the
    plan are trained in the L step. A compression with a penalty C is evaluated at mu0 in the start.
    The learning rate is clipped at 1/mu: the penalty alone is stable below 2 (1 + beta)/mu with momentum beta, below
    2 (1 + beta)/((1 + 2 beta) mu) with Nesterov's.

    Carreira-Perpinan, arXiv 1707.01209. Its settings for LeNet-300-100: mu0 9e-5, growth 1.1, 40 steps of 20 epochs
    (40 in the first), batches of 256.

    - num_steps: L and C steps; 40 as published, like epochs, first_epochs, batch_size and optimizer.
    - mu0: the first mu; None: found from the data (`mu.find_mu0`), since the published are found by trial.
    - growth: factor of mu per step; the LC papers take 1.1 to 1.4.
    - multipliers: false: the quadratic penalty, which seldom leaves direct compression where Π is discrete.
    - epochs: of an L step; first_epochs: of the first one, None: twice as many.
    - lr: learning rate, times `schedule` of the step and `epoch_schedule` of the epoch within it.
    - optimizer: called anew in every L step with the trained parameters and `lr`. Its weight decay is part of L in the
      L step and in the gradient compared with λ, not in the losses recorded.
    - clip: clip the learning rate at 1/mu, at which one step solves the penalty term.
    - keep_best: end with the step of the lowest L(Δ(Θ)) + C(Θ) on the training data, Π(w̄) included, since the last need
      not be it; false: with the last. This evaluation is part of a step's time.
    - tolerance: stop when ‖w - Δ(Θ)‖ / ‖w‖ is below it.
    """

    from_reference: ClassVar[bool] = True
    columns = COLUMNS
    plots = PLOTS

    num_steps: int = 40
    mu0: float | None = None
    growth: float = 1.2
    multipliers: bool = True
    epochs: int = 20
    first_epochs: int | None = None
    lr: float = 0.1
    batch_size: int = 256
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, nesterov=True))
    schedule: descent.Schedule = field(default_factory=lambda: descent.Exponential(0.98))
    epoch_schedule: descent.Schedule = field(default_factory=descent.Constant)
    clip: bool = True
    keep_best: bool = True
    tolerance: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size)
        if self.mu0 is not None and not 0 < self.mu0 < math.inf:
            raise ValueError(f"mu0 must be positive and finite (null: found from the data), found {self.mu0}")
        if not self.growth >= 1:
            raise ValueError(f"growth must be at least 1, found {self.growth}")
        descent.check_epochs(self.epochs, self.first_epochs)

    def init(self, problem: Problem) -> LCState:
        descent.check_trainable(problem)
        plan, model = problem.plan, copy.deepcopy(problem.model)
        w = plan.select(weights_of(model))
        mu0 = find_mu0(problem, w, self._reach(problem)) if self.mu0 is None else self.mu0
        self._check_range(mu0, problem.dtype)
        theta = plan.compress(w, mu0)
        dense = plan.decompress(theta)
        lam = tuple(torch.zeros_like(tensor) for tensor in w.values())
        objective = objective_of(problem, model, theta, dense)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        kept = BestStep(0, copy.deepcopy(model), theta, objective)
        generator = Generator().manual_seed(self.seed)
        self._warn(mu0)
        return LCState(0, model, theta, lam, generator, mu0, 0, objective, gap(w, dense), 0.0, zero, zero, kept)

    def step(self, problem: Problem, state: LCState) -> LCState:
        plan, model, k = problem.plan, state.model, state.k
        mu = self._mu(state)
        lam = Params(dict(zip(plan.shapes, state.lam, strict=True))) * float(self.multipliers)
        before = [p.detach().clone() for p in model.parameters()]
        target = plan.decompress(state.theta) + lam / mu
        rate = self._minimise(problem, state, target, mu)  # L step (1)
        w = plan.select(weights_of(model))
        v = w - lam / mu
        theta = plan.compress(v, mu, start=state.theta)  # C step (2)
        dense = plan.decompress(theta)
        lam = lam - mu * (w - dense)  # (3)
        objective, step_sq = objective_of(problem, model, theta, dense), descent.moved_sq(model, before)
        kept = state.kept
        if objective < kept.objective:
            kept = BestStep(k + 1, copy.deepcopy(model), theta, objective)
        return LCState(
            k + 1, model, theta, tuple(lam.values()), state.generator, state.mu0, state.epochs + self._epochs(k),
            objective, gap(v, dense), rate, step_sq, state.step_sq_sum + step_sq, kept,
        )  # fmt: skip

    def observe(self, problem: Problem, state: LCState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        theta, w = state.theta, problem.plan.select(weights_of(model))
        lam = Params(dict(zip(problem.plan.shapes, state.lam, strict=True)))
        terms = {
            **parts_of(state.objective, problem.plan.penalty(theta)),
            "loss/w": evaluate(model, problem.data.train, problem.loss).loss,
            "gap": gap(w, problem.plan.decompress(theta)),
            "mu": self._mu(state, -1),
            "lr": state.rate,
            "epochs": state.epochs,
            "c_step/error": state.error,
            "step/kept": state.kept.step if self.keep_best else state.k,
            **multiplier_figures(problem, model, w, lam, self._decay()),
            **descent.step_terms(state),
        }
        return observation_of(problem, model, theta, terms)

    def result(self, problem: Problem, state: LCState, observation: Observation) -> Observation:
        kept = state.kept
        if not self.keep_best or kept.step == state.k:
            return observation
        terms = observation.terms | parts_of(kept.objective, problem.plan.penalty(kept.theta))
        return observation_of(problem, copy.deepcopy(kept.model).eval(), kept.theta, terms)

    def finished(self, previous: float | None, terms: Mapping[str, float]) -> bool:
        return terms["gap"] < self.tolerance

    def _check_range(self, mu0: float, dtype: torch.dtype) -> None:
        """Raise ConfigError when mu leaves the numbers of a type on its way."""
        info = torch.finfo(dtype)
        last = math.log(mu0) + max(0, self.num_steps - 1) * math.log(self.growth)
        if mu0 < info.tiny or last > math.log(info.max):
            raise ConfigError(
                f"mu must stay between {info.tiny:.2g} and {info.max:.2g} ({str(dtype).removeprefix('torch.')}), found "
                f"mu0 {mu0:.3g} times {self.growth} to the power of up to {self.num_steps - 1}; give another "
                "solver.mu0, a smaller solver.growth or fewer solver.num_steps"
            )

    def _reach(self, problem: Problem) -> float:
        """Return the sum of the learning rates of the first quarter of all L steps, times 1/(1 - beta).

        beta is the momentum; infinite for other methods than SGD.
        """
        optimizer = self._some_optimizer()
        beta = float(optimizer.param_groups[0].get("momentum", 0.0))
        if not isinstance(optimizer, torch.optim.SGD) or beta >= 1:
            return math.inf
        steps = range(math.ceil(self.num_steps / 4))
        epochs = [(k, e) for k in steps for e in range(self._epochs(k))] or [(0, 0)]
        batches = math.ceil(len(problem.data.train) / self.batch_size)
        return sum(self._rate(k, e) for k, e in epochs) * batches / (1 - beta)

    def _rate(self, k: int, e: int) -> float:
        """Return the learning rate of epoch e of L step k, not clipped."""
        return self.lr * self.schedule.factor(k, self.num_steps) * self.epoch_schedule.factor(e, self._epochs(k))

    def _some_optimizer(self) -> Optimizer:
        """Return the optimiser on a number of its own, to be asked for its settings."""
        return self.optimizer([torch.zeros((), requires_grad=True)], lr=self.lr)

    def _mu(self, state: LCState, ahead: int = 0) -> float:
        """Return mu of the next step, or of the last one with `ahead` -1 (mu0 before the first)."""
        return float(state.mu0 * self.growth ** max(0, state.k + ahead))

    def _epochs(self, k: int) -> int:
        return descent.epochs_of(k, self.epochs, self.first_epochs)

    def _minimise(self, problem: Problem, state: LCState, target: Params, mu: float) -> float:
        """Take the L step on the state's model and return the largest learning rate it used."""
        model, largest = state.model, 0.0
        optimizer = descent.optimizer_of(self.optimizer, (p for p in model.parameters() if p.requires_grad), self.lr)
        minibatches = Minibatches(self.batch_size, state.generator)
        pull = descent.toward(model, target, mu)
        loss = torch.zeros(())
        for e in range(self._epochs(state.k)):
            rate = min(self._rate(state.k, e), 1 / mu) if self.clip else self._rate(state.k, e)
            largest = max(largest, rate)
            descent.set_rate(optimizer, rate)
            loss = epoch(problem, model, minibatches, optimizer=optimizer, add_gradient=pull)
        if not float(loss) <= DIVERGED_ABOVE * max(1.0, state.kept.objective):
            raise Diverged(divergence(state.k + 1, float(loss), largest, mu, descent.stability_limit(optimizer)))
        return largest

    def _decay(self) -> float:
        """Return the optimiser's weight decay, where it is the gradient of a term of L (AdamW's is not)."""
        group = self._some_optimizer().param_groups[0]
        return 0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0))

    def _warn(self, mu0: float) -> None:
        """Log when learning rates that are not clipped will leave the penalty's limit of stability."""
        limit = descent.stability_limit(self._some_optimizer())
        if self.clip or limit is None:
            return
        for k in range(self.num_steps):
            product = self._rate(k, 0) * mu0 * self.growth**k
            if product >= limit:
                log.warning(
                    "lr times mu reaches %.3g in step %d, where L steps are unstable from %.3g: use solver.clip=true",
                    product, k + 1, limit,
                )  # fmt: skip
                return
