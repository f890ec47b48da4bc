"""Direct learning: gradient descent in the compressed parameters themselves."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from nncompress.compressions.base import map_tensors
from nncompress.compressions.params import Params
from nncompress.compressions.plan import Plan
from nncompress.errors import Unsupported
from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Observation, Solver, observation_of
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, epoch
from nncompress.surgery.compact_layers import replace_layers
from nncompress.surgery.theta import HeldTheta


class CompressedNetwork(nn.Module):
    """A network that computes with Θ: its free tensors are learned, its others stay fixed.

    `Compression.map_free` says what is free: values, codebooks, scales, factors; each is held scaled (`HeldTheta`).
    Layers with a Θ of their own compute with it (`surgery.compact_layers`); where several weights share one, they
    are Δ(Θ).
    `model` holds the weights as `fill` last decompressed them and shares all else with the network that is trained.
    """

    def __init__(self, model: nn.Module, plan: Plan, theta: Sequence[Any]) -> None:
        super().__init__()
        self.plan, self.model = plan, copy.deepcopy(model)
        outside = [p for name, p in self.model.named_parameters() if name not in plan.shapes]
        shared: list[Tensor] = [*outside, *self.model.buffers()]
        self.network = copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})
        pairs = zip(plan.tasks, theta, strict=True)
        self.held = nn.ModuleList([HeldTheta(task.compression, t, scaled=True) for task, t in pairs])
        layers = replace_layers(self.network, plan, list(self._thetas()))
        self.joint = [j for j, layer in enumerate(layers) if layer is None]
        self.fill()

    @property
    def theta(self) -> tuple[Any, ...]:
        """Return Θ in the form that the plan gives it, with gradients to what is learned."""
        return tuple(held.value for held in self._thetas())

    @property
    def tensors(self) -> list[Tensor]:
        """Return the free tensors of Θ, each times its scale."""
        return [tensor for held in self._thetas() for tensor in held.free]

    def _thetas(self) -> Iterator[HeldTheta]:
        return (cast(HeldTheta, held) for held in self.held)

    def forward(self, x: Tensor) -> Tensor:
        weights: dict[str, Tensor] = {}
        thetas = list(self._thetas())
        for j in self.joint:
            weights |= self.plan.decompress_task(self.plan.tasks[j], thetas[j].value)
        logits: Tensor = functional_call(self.network, weights, (x,)) if weights else self.network(x)
        return logits

    def learned(self) -> list[nn.Parameter]:
        """Return the free tensors of Θ, then the trainable parameters that are not compressed."""
        outside = [p for name, p in self.model.named_parameters() if name not in self.plan.shapes and p.requires_grad]
        return [*(cast(nn.Parameter, tensor) for tensor in self.tensors), *outside]

    @torch.no_grad()
    def fill(self) -> None:
        """Put Δ(Θ) into `model`, and buffers that training replaced by new ones."""
        put(self.model, self.plan.decompress(self.theta))
        trained = dict(self.network.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(trained[name])


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Overwrite parameters of `model`."""
    parameters = dict(model.named_parameters())
    for name, w in weights.items():
        parameters[name].copy_(w)


class ThetaState(NamedTuple):
    """The network with Θ in it, its optimiser, the order of the samples, what is learned, the squared steps of Δ(Θ)."""

    k: int
    network: CompressedNetwork
    optimizer: Optimizer
    generator: Generator
    lesson: Problem
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class ThetaDescent(Solver[ThetaState], ABC):
    """Minimise over the free tensors of Θ and the parameters outside the plan, by minibatches through Δ.

    One step is one epoch. Positions, codes and ranks stay those of `start`, hence the bits; an l1 ball, the price of a
    penalty and normal forms (orthonormal factors of Tucker, columns of equal norms of CP) bind the start alone.

    - num_steps: epochs.
    - lr: initial learning rate, times `schedule`.
    - optimizer: called with the free tensors of Θ, the parameters outside the plan, and `lr`; Adam, as SGD needs a
      small `lr` where factors are large or logits are learned.
    - tolerance: stop when the objective falls by less, relatively, between observations (0: never).
    """

    num_steps: int = 100
    lr: float = 0.01
    batch_size: int = 64
    optimizer: Callable[..., Optimizer] = Adam
    schedule: descent.Schedule = field(default_factory=descent.Cosine)
    tolerance: float = 0.0
    seed: int = 0

    @abstractmethod
    def start(self, problem: Problem) -> tuple[Any, ...]:
        """Return Θ to start from. Raises Unsupported, naming the weight, where descent makes no sense."""

    def lesson(self, problem: Problem) -> Problem:
        """Return the problem whose loss on whose data is learned. Default: the problem itself."""
        return problem

    def terms(self, problem: Problem, model: nn.Module, state: ThetaState) -> dict[str, float]:
        """Return the figures of a state whose network `model` is. Default: those of minibatch descent."""
        return descent.epoch_terms(problem, model, state)

    def init(self, problem: Problem) -> ThetaState:
        descent.check_trainable(problem)
        network = CompressedNetwork(problem.model, problem.plan, self.start(problem))
        learned = network.learned()
        if not any(parameter.numel() for parameter in learned):
            raise Unsupported(
                f"something must be left to learn, found that {problem.plan.tasks[0].compression} fixes every weight "
                "and no other parameter is trainable; leave out layers (compression.layers=hidden) or add biases"
            )
        optimizer = descent.optimizer_of(self.optimizer, learned, self.lr)
        generator = Generator().manual_seed(self.seed)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return ThetaState(0, network, optimizer, generator, self.lesson(problem), zero, zero)

    def step(self, problem: Problem, state: ThetaState) -> ThetaState:
        k, network, optimizer, generator, lesson, _, step_sq_sum = state
        before = [p.detach().clone() for p in network.model.parameters()]
        descent.set_rate(optimizer, self.lr * self.schedule.factor(k, self.num_steps))
        epoch(lesson, network, Minibatches(self.batch_size, generator), optimizer=optimizer)
        network.fill()
        step_sq = descent.moved_sq(network.model, before)
        return ThetaState(k + 1, network, optimizer, generator, lesson, step_sq, step_sq_sum + step_sq)

    @torch.no_grad()
    def observe(self, problem: Problem, state: ThetaState) -> Observation:
        model = copy.deepcopy(state.network.model).eval()
        theta = tuple(map_tensors(t, torch.clone) for t in state.network.theta)
        return observation_of(problem, model, theta, self.terms(problem, model, state))


@dataclass(frozen=True, kw_only=True)
class DirectLearning(ThetaDescent):
    """Minimise L(Δ(Θ)) over Θ and the parameters outside the plan, from Θ = Π(w), w the initial weights.

    What of Θ is not a free tensor (`ThetaDescent`), positions and codes, stays as it is at the start.

    - rescale: start from Π(c w), c = ‖w‖ / ‖Δ(Π(w))‖ in every task, since of random weights a low rank keeps little and
      training would begin slowly. Where c Δ(Θ) has the form of Δ(Θ) (all but fixed codebooks, low precision and l1
      balls), it has the norm of w. For weights that were trained: false.
    """

    num_steps: int = 30
    rescale: bool = True

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size)

    def start(self, problem: Problem) -> tuple[Any, ...]:
        plan = problem.plan
        w = plan.select(weights_of(problem.model))
        theta = plan.compress(w)
        _check_start(plan, theta)
        return plan.compress(_rescale(plan, w, plan.decompress(theta))) if self.rescale else theta


def _check_start(plan: Plan, theta: Sequence[Any]) -> None:
    """Raise Unsupported, naming the weight, for a Θ in which descent makes no sense or no progress."""
    for task, t in zip(plan.tasks, theta, strict=True):
        if task.compression.penalty(t) != 0:
            raise Unsupported(
                f"direct learning needs a Θ of fixed size, found {task.compression}, a penalty, for "
                f"{', '.join(task.params)}; take a constraint instead (low_rank, l0), or use solver=lc"
            )
        if not plan.decompress_task(task, t).sq() > 0:
            raise Unsupported(
                f"direct learning needs initial weights that do not compress to zero, found that {task.compression} "
                f"makes {', '.join(task.params)} zero; choose another compression or other initial weights"
            )


def _rescale(plan: Plan, w: Params, dense: Params) -> Params:
    """Return w times ‖w‖/‖Δ(Π(w))‖ in every task; Π(c w) has the norm of w where c Δ is a Δ as well."""
    scaled: dict[str, Tensor] = {}
    for task in plan.tasks:
        total, kept = (Params({name: tensors[name] for name in task.params}).sq() for tensors in (w, dense))
        scaled |= {name: w[name] * (total / kept).sqrt() for name in task.params}
    return Params(scaled)
