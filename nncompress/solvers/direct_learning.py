"""Direct learning: gradient descent in the compressed parameters themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from nncompress.compressions.base import Factorised
from nncompress.compressions.plan import Plan
from nncompress.errors import Unsupported
from nncompress.params import Params
from nncompress.problem import Problem, weights_of
from nncompress.solvers.base import Observation, Solver
from nncompress.solvers.descent import Cosine, Schedule, check_minibatches, epoch, epoch_terms, moved_sq, set_rate

REQUIREMENT = "direct learning needs factorised compressions (tt, tt_matrix, tucker, cp, low_rank)"


class FactorisedNetwork(nn.Module):
    """A network that computes with the weights Δ(Θ), the tensors of Θ being parameters.

    `theta` has the form that the plan gives it; `model` holds the weights as `fill` last decompressed them.
    """

    def __init__(self, model: nn.Module, plan: Plan, theta: Sequence[Any]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.plan = plan
        self.tensors = nn.ParameterList()
        self.theta = tuple(_mapped(self._learned, t) for t in theta)
        self.fill()

    def _learned(self, tensor: Tensor) -> Tensor:
        parameter = nn.Parameter(tensor.clone(memory_format=torch.contiguous_format))
        self.tensors.append(parameter)
        return parameter

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.model, dict(self.plan.decompress(self.theta)), (x,))
        return logits

    def learned(self) -> list[nn.Parameter]:
        """The tensors of Θ, then the parameters that are not compressed."""
        outside = [p for name, p in self.model.named_parameters() if name not in self.plan.shapes]
        return [*self.tensors, *outside]

    @torch.no_grad()
    def fill(self) -> None:
        """Put Δ(Θ) into `model`."""
        parameters = dict(self.model.named_parameters())
        for name, w in self.plan.decompress(self.theta).items():
            parameters[name].copy_(w)


class DirectState(NamedTuple):
    """The network with Θ in it, its optimiser, the order of the samples, and the squared steps of Δ(Θ) (float64)."""

    k: int
    network: FactorisedNetwork
    optimizer: Optimizer
    generator: Generator
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class DirectLearning(Solver[DirectState]):
    """min over Θ and the parameters outside the plan of L(Δ(Θ)), by minibatches through Δ; one step is one epoch.

    It starts from Θ = Π(w), w the initial weights. The tensors of Θ keep their shapes, hence Δ(Θ) its ranks;
    normal forms (orthonormal factors of Tucker, columns of equal norms of CP) are lost.

    num_steps: epochs. lr: initial learning rate, times `schedule`. optimizer: called with the tensors of Θ, the
    parameters outside the plan, and `lr`. rescale: start from Π(c w) with c such that ‖Δ(Θ)‖ = ‖w‖ in every task,
    since a low rank keeps little of random weights and training would begin slowly; for trained weights leave it out.
    """

    num_steps: int = 30
    lr: float = 0.01
    batch_size: int = 64
    optimizer: Callable[..., Optimizer] = Adam
    schedule: Schedule = field(default_factory=Cosine)
    rescale: bool = True
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_minibatches(self.lr, self.batch_size)

    def init(self, problem: Problem) -> DirectState:
        plan = problem.plan
        w = plan.select(weights_of(problem.model))
        theta = _start(plan, w)
        if self.rescale:
            theta = plan.compress(_scaled(plan, w, plan.decompress(theta)))
        network = FactorisedNetwork(problem.model, plan, theta)
        optimizer = self.optimizer(network.learned(), lr=self.lr)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return DirectState(0, network, optimizer, Generator().manual_seed(self.seed), zero, zero)

    def step(self, problem: Problem, state: DirectState) -> DirectState:
        k, network, optimizer, generator, _, step_sq_sum = state
        before = [p.detach().clone() for p in network.model.parameters()]
        set_rate(optimizer, self.lr * self.schedule.factor(k, self.num_steps))
        epoch(network, problem, optimizer=optimizer, batch_size=self.batch_size, generator=generator)
        network.fill()
        step_sq = moved_sq(network.model, before)
        return DirectState(k + 1, network, optimizer, generator, step_sq, step_sq_sum + step_sq)

    def observe(self, problem: Problem, state: DirectState) -> Observation:
        model = copy.deepcopy(state.network.model).eval()
        theta = tuple(_mapped(lambda tensor: tensor.detach().clone(), t) for t in state.network.theta)
        return Observation(model, theta, epoch_terms(problem, model, state))


def _start(plan: Plan, w: Params) -> tuple[Any, ...]:
    """Π(w); Unsupported, naming the weight, for a Θ in which descent makes no sense or no progress."""
    if not plan.tasks:
        raise Unsupported(f"{REQUIREMENT}; found no compressed weight; choose a compression, or use solver=sgd")
    for task in plan.tasks:
        if not isinstance(task.compression, Factorised):
            raise Unsupported(
                f"{REQUIREMENT}; found {task.compression} for {', '.join(task.params)}; "
                "use solver=nnbcd, or solver=sgd to compress afterwards"
            )
    theta = plan.compress(w)
    for task, t in zip(plan.tasks, theta, strict=True):
        if task.compression.penalty(t) != 0:
            raise Unsupported(
                f"{REQUIREMENT} of fixed ranks; found {task.compression}, a penalty, for {', '.join(task.params)}; "
                "give it a rank, or use solver=nnbcd"
            )
        if not plan.decompress_task(task, t).sq() > 0:
            raise Unsupported(
                f"direct learning needs initial weights that do not compress to zero, found that {task.compression} "
                f"makes {', '.join(task.params)} zero; choose another compression or other initial weights"
            )
    return theta


def _scaled(plan: Plan, w: Params, dense: Params) -> Params:
    """w times ‖w‖/‖Δ(Π(w))‖ in every task: these formats hold c Δ with every Δ, so that Π(c w) has the norm of w."""
    scaled: dict[str, Tensor] = {}
    for task in plan.tasks:
        total, kept = (Params({name: tensors[name] for name in task.params}).sq() for tensors in (w, dense))
        scaled |= {name: w[name] * (total / kept).sqrt() for name in task.params}
    return Params(scaled)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """(Nested) tuples and NamedTuples with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if not isinstance(value, tuple):
        return value
    items = [_mapped(function, item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
