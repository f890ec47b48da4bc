"""The solver contract and the one loop that runs every solver."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn

from nncompress.problem import Problem

State = TypeVar("State", bound=Any)


class Observation(NamedTuple):
    """What a state amounts to: the dense network w, its compressed parameters Θ, and figures for the record."""

    model: nn.Module
    theta: tuple[Any, ...]
    terms: dict[str, float]


class Slimmed(NamedTuple):
    """A network with its dead channels masked, and what they were chosen by, by the names of their batch norms."""

    network: nn.Module
    factors: Mapping[str, Tensor]


class Iterate(NamedTuple):
    """The state after `step` steps and the seconds spent in `init` and `step`; observed or not.

    finished: `Solver.finished` says that it is the last one.
    """

    step: int
    seconds: float
    state: Any
    observation: Observation | None
    finished: bool = False


class Solver(ABC, Generic[State]):
    """A method. Subclasses are frozen dataclasses of hyper-parameters; every iterate lives in the state.

    A state is a NamedTuple of tensors, modules, optimisers and generators with the step number `k` first.
    `precision` is the floating-point type the method is meant for (used by precision=auto); `parallel` says whether
    it shares the samples out between the processes of torchrun, `from_reference` whether it starts from a trained
    network, `removes_channels` whether it takes the problem's target itself.
    """

    precision: ClassVar[str] = "float32"
    parallel: ClassVar[bool] = False
    from_reference: ClassVar[bool] = False
    removes_channels: ClassVar[bool] = False
    num_steps: int
    tolerance: float

    @abstractmethod
    def init(self, problem: Problem) -> State:
        """The state before the first step. Raises Unsupported, naming the layer, for a network it cannot treat."""

    @abstractmethod
    def step(self, problem: Problem, state: State) -> State:
        """The next state. Takes over the tensors of `state`: use the returned one from here on."""

    @abstractmethod
    def observe(self, problem: Problem, state: State) -> Observation:
        """The networks and figures of a state, which it leaves unchanged."""

    def result(self, problem: Problem, state: State, observation: Observation) -> Observation:
        """What the run ends with, `observation` being that of its last state. Default: that observation."""
        return observation

    def slimmed(self, problem: Problem, state: State) -> Slimmed | None:
        """What a solver that removes channels leaves of the network. Default: None, it is `model` with Δ(Θ) in it."""
        return None

    def unrounded(self, problem: Problem, state: State) -> nn.Module | None:
        """The network `slimmed` would give if its channels were not to be multiples of the problem's `round_to`.

        Only its dead channels count: what the others hold may be of another step. Default: None, as for `slimmed`.
        """
        return None

    def finished(self, previous: float | None, terms: Mapping[str, float]) -> bool:
        """Whether to stop, given the objective last observed and the figures observed now.

        Default: when the objective fell by less than `tolerance`, relatively.
        """
        objective = terms.get("objective")
        if self.tolerance <= 0 or previous is None or objective is None:
            return False
        return 0 <= previous - objective < self.tolerance * abs(previous)

    def whole(self, problem: Problem, state: State) -> State:
        """On process 0, the state with what all processes hold of it, for a checkpoint. Default: the state itself."""
        return state

    def own(self, problem: Problem, state: State) -> State:
        """This process's part of a state that `whole` made. Default: the state itself."""
        return state

    @final
    def run(
        self,
        problem: Problem,
        num_steps: int,
        every: int = 1,
        state: State | None = None,
        previous: float | None = None,
    ) -> Iterator[Iterate]:
        """Iterate until step `num_steps`, observing the start, every `every` steps and the last.

        With a `state` (from a checkpoint) the iteration continues behind its step; `previous` then is the objective
        last observed. Stops early at an observation that `finished` says is the last. The clock runs in `init` and
        `step`.
        """
        clock = Clock(problem.device)
        if state is None:
            with clock:
                state = self.init(problem)
            observation = self.observe(problem, state)
            previous = observation.terms.get("objective")
            yield Iterate(state.k, clock.seconds, state, observation)
        while state.k < num_steps:
            with clock:
                state = self.step(problem, state)
            seen = self.observe(problem, state) if state.k % every == 0 or state.k == num_steps else None
            finished = seen is not None and self.finished(previous, seen.terms)
            yield Iterate(state.k, clock.seconds, state, seen, finished)
            if finished:
                return
            if seen is not None:
                previous = seen.terms.get("objective")


class Clock:
    """A stopwatch that runs inside `with` and waits for the device before it starts and stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def __enter__(self) -> Clock:
        self._synchronise()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._synchronise()
        self.seconds += time.perf_counter() - self._start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
