"""What the learning-compression algorithm is compared with, all from a trained reference network w̄.

Carreira-Perpinan, "Model compression as constrained optimization, with application to neural nets. Part I: general
framework", arXiv 1707.01209 (2017).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.metrics import evaluate, evaluation_batch
from nncompress.problem import Problem, Split, weights_of
from nncompress.solvers.base import Observation, Solver, observation_of
from nncompress.solvers.lc.columns import WEIGHTS_LOSS
from nncompress.solvers.lc.direct_learning import ThetaDescent, ThetaState, put
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, epoch


class DirectState(NamedTuple):
    """Θ, which no step changes."""

    k: int
    theta: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class DirectCompression(Solver[DirectState]):
    """Take Θ = Π(w̄): nothing is trained, and steps change nothing. The objective is L(Δ(Θ)) + C(Θ).

    - mu: weight of ‖w̄ - Δ(Θ)‖²/2 beside the price C of a penalty; 1 is the default of `compress`.
    """

    from_reference: ClassVar[bool] = True
    columns = (WEIGHTS_LOSS,)

    num_steps: int = 0
    mu: float = 1.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        _check_mu(self.mu)

    def init(self, problem: Problem) -> DirectState:
        return DirectState(0, _compress(problem, problem.model, self.mu))

    def step(self, problem: Problem, state: DirectState) -> DirectState:
        return state._replace(k=state.k + 1)

    def observe(self, problem: Problem, state: DirectState) -> Observation:
        model = copy.deepcopy(problem.model).eval()
        return _observation(problem, model, state.theta, {"epochs": 0})


@dataclass(frozen=True, kw_only=True)
class DCRetrain(ThetaDescent):
    """Minimise L(Δ(Θ)) over the free tensors of Θ and the parameters outside the plan, from Θ = Π(w̄).

    Direct compression, then retraining, positions and codes staying as they are: of sparse weights the kept ones are
    trained, of a codebook its values, of a low rank the factors. A penalty or an l1 ball chooses what is kept and binds
    it no longer (debiasing): the objective is the loss alone. One step is one epoch.

    - mu: weight of ‖w̄ - Δ(Θ)‖²/2 beside the price of a penalty; the rest as in `ThetaDescent`.
    """

    from_reference: ClassVar[bool] = True

    mu: float = 1.0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size)
        _check_mu(self.mu)

    def start(self, problem: Problem) -> tuple[Any, ...]:
        return _compress(problem, problem.model, self.mu)


@dataclass(frozen=True, kw_only=True)
class Distillation(DCRetrain):
    """Minimise 1/n sum ‖f(x; w̄) - f(x; Δ(Θ))‖² over what `DCRetrain` trains; f gives logits, x are the training inputs.

    The reference teaches the compressed network, without labels, on samples that are not augmented. Ba and Caruana, "Do
    deep nets really need to be deep?", NIPS 2014.
    """

    def lesson(self, problem: Problem) -> Problem:
        teacher, x = copy.deepcopy(problem.model).eval(), problem.data.train.x
        data = replace(problem.data, train=Split(x, _logits(teacher, x)), augmentation=None)
        return replace(problem, data=data, loss=squared_error)

    def terms(self, problem: Problem, model: nn.Module, state: ThetaState) -> dict[str, float]:
        split = state.lesson.data.train
        error = float(squared_error(_logits(model, split.x).double(), split.y.double()))
        return super().terms(problem, model, state) | {"objective": error}


class IDCState(NamedTuple):
    """The network w, Θ, the order of the samples, epochs so far, and the squared steps of w (float64)."""

    k: int
    model: nn.Module
    theta: tuple[Any, ...]
    generator: Generator
    epochs: int
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class IDC(Solver[IDCState]):
    """Compress directly, again and again: from w = w̄ and Θ = Π(w̄), one step is

        w <- argmin L(w) by minibatches from Δ(Θ), without a penalty        (1)
        Θ <- Π(w)                                                           (2)

    which goes back and forth between the loss and the compression (arXiv 1707.01209). The objective is
    L(Δ(Θ)) + C(Θ).

    - num_steps: such steps. Like epochs, lr, schedule and optimizer those of LC, so that both train equally long.
    - epochs: of a step; first_epochs: of the first one, None: twice as many.
    - lr: learning rate, times `schedule` of the step.
    - optimizer: called anew in every step with the trained parameters and `lr`.
    - mu: weight of ‖w - Δ(Θ)‖²/2 beside the price C of a penalty.
    """

    from_reference: ClassVar[bool] = True
    columns = (WEIGHTS_LOSS,)

    num_steps: int = 40
    epochs: int = 20
    first_epochs: int | None = None
    lr: float = 0.1
    batch_size: int = 256
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, nesterov=True))
    schedule: descent.Schedule = field(default_factory=lambda: descent.Exponential(0.98))
    mu: float = 1.0
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size)
        _check_mu(self.mu)
        descent.check_epochs(self.epochs, self.first_epochs)

    def init(self, problem: Problem) -> IDCState:
        descent.check_trainable(problem)
        model, generator = copy.deepcopy(problem.model), Generator().manual_seed(self.seed)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return IDCState(0, model, _compress(problem, model, self.mu), generator, 0, zero, zero)

    def step(self, problem: Problem, state: IDCState) -> IDCState:
        k, model, theta, generator, epochs, _, step_sq_sum = state
        before = [p.detach().clone() for p in model.parameters()]
        put(model, problem.plan.decompress(theta))
        more = descent.epochs_of(k, self.epochs, self.first_epochs)
        rate = self.lr * self.schedule.factor(k, self.num_steps)
        optimizer = descent.optimizer_of(self.optimizer, (p for p in model.parameters() if p.requires_grad), rate)
        for _ in range(more):
            epoch(problem, model, Minibatches(self.batch_size, generator), optimizer=optimizer)  # (1)
        theta = _compress(problem, model, self.mu, theta)  # (2)
        step_sq = descent.moved_sq(model, before)
        return IDCState(k + 1, model, theta, generator, epochs + more, step_sq, step_sq_sum + step_sq)

    def observe(self, problem: Problem, state: IDCState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        terms: dict[str, float] = {"epochs": state.epochs}
        terms |= descent.step_terms(state)
        return _observation(problem, model, state.theta, terms)


def squared_error(given: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of ‖given - wanted‖² over the samples (n, classes), a 0-dimensional tensor."""
    return (given - wanted).square().sum(dim=1).mean()


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return what `model`, in evaluation mode, gives for inputs (n, ...), a batch at a time."""
    return torch.cat([model(part) for part in torch.split(x, evaluation_batch(x))])


def _compress(problem: Problem, model: nn.Module, mu: float, start: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    """Return Π of the weights of `model`."""
    return problem.plan.compress(problem.plan.select(weights_of(model)), mu, start)


def _observation(problem: Problem, model: nn.Module, theta: tuple[Any, ...], terms: dict[str, float]) -> Observation:
    """Return the observation with L(Δ(Θ)) + C(Θ) and the loss of the weights w of `model` themselves before `terms`."""
    observation = observation_of(problem, model, theta, terms)
    losses = [evaluate(network, problem.data.train, problem.loss).loss for network in (observation.deployed, model)]
    figures = {"objective": losses[0] + problem.plan.penalty(theta), "loss/w": losses[1]}
    return observation._replace(terms=figures | terms)


def _check_mu(mu: float) -> None:
    if not 0 < mu < math.inf:
        raise ValueError(f"mu must be positive and finite, found {mu}")
