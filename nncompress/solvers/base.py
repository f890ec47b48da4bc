"""The solver contract and the one loop that runs every solver."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, final

import torch
from torch import nn

from nncompress.problem import Problem, with_weights

State = TypeVar("State", bound=Any)


class Observation(NamedTuple):
    """What a state amounts to: the dense network w, its compressed parameters Θ, and figures for the record.

    deployed: the network that a run would end with now, with Δ(Θ) in it or without its dead channels. details: what
    goes into `summary.json` alone (lists, histograms). notes: sentences that the user is told once.
    """

    model: nn.Module
    theta: tuple[Any, ...]
    terms: dict[str, float]
    deployed: nn.Module
    details: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()


def observation_of(
    problem: Problem, model: nn.Module, theta: tuple[Any, ...], terms: Mapping[str, float]
) -> Observation:
    """Return the observation whose deployed network is `model` with Δ(Θ) in it (itself when the plan is empty)."""
    deployed = with_weights(model, problem.plan.decompress(theta)) if problem.plan.tasks else model
    return Observation(model, theta, dict(terms), deployed)


@dataclass(frozen=True)
class Column:
    """A figure of a solver's own records that reports show beside those that every solver has.

    - key: of the record.
    - label: heading of the column, or name of the line; without one the column is in the .csv alone.
    - table: "convergence", of records; "compression", to whose lines the key of the summary is added; "summary", of
      sweeps; or "objective", the plot to whose lines it is added.
    - form: how its values are written.
    - dense: in the table "compression", the key of the same for the dense network.
    - above: a factor and another key; the column then tells whether the value is above factor times the other's.
    - note: the sentences under the table "convergence" that explain it.
    """

    key: str
    label: str = ""
    table: Literal["convergence", "compression", "summary", "objective"] = "convergence"
    form: Literal["number", "percent", "yes_no"] = "number"
    dense: str | None = None
    above: tuple[float, str] | None = None
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """Records against the step, one pair of axes of a plot.

    - label: of the vertical axis.
    - lines: what each line is, by the key of the record.
    - log: whether a vertical axis is logarithmic where the values span a decade, and begins at 0 where they do not.
    - parts: a prefix and a word, ("eta/", "sets"); each key that begins so is a thin line behind the others.
    """

    label: str
    lines: Mapping[str, str]
    log: bool = True
    parts: tuple[str, str] | None = None


@dataclass(frozen=True)
class Plot:
    """A plot of a solver's own records from the step `first` on, drawn when each of its panels has what to show."""

    name: str
    title: str
    panels: Sequence[Panel]
    first: int = 0


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

    - precision: the floating-point type the method is meant for (used by precision=auto).
    - parallel: whether it shares the samples out between the processes of torchrun.
    - from_reference: whether it starts from a trained network.
    - removes_channels: whether it takes the problem's target itself.
    - columns, plots: what reports show of the records that it alone has.
    - num_steps: steps of a run.
    - tolerance: as `finished` takes it.
    """

    precision: ClassVar[str] = "float32"
    parallel: ClassVar[bool] = False
    from_reference: ClassVar[bool] = False
    removes_channels: ClassVar[bool] = False
    columns: ClassVar[Sequence[Column]] = ()
    plots: ClassVar[Sequence[Plot]] = ()
    num_steps: int
    tolerance: float

    @abstractmethod
    def init(self, problem: Problem) -> State:
        """Return the state before the first step. Raises Unsupported, naming the layer, for what it cannot treat."""

    @abstractmethod
    def step(self, problem: Problem, state: State) -> State:
        """Return the next state. Takes over the tensors of `state`: use the returned one from here on."""

    @abstractmethod
    def observe(self, problem: Problem, state: State) -> Observation:
        """Return the networks and figures of a state, which it leaves unchanged."""

    def result(self, problem: Problem, state: State, observation: Observation) -> Observation:
        """Return what the run ends with, `observation` being that of its last state. Default: that observation."""
        return observation

    def finished(self, previous: float | None, terms: Mapping[str, float]) -> bool:
        """Return whether to stop, given the objective last observed and the figures observed now.

        Default: when the objective fell by less than `tolerance`, relatively.
        """
        objective = terms.get("objective")
        if self.tolerance <= 0 or previous is None or objective is None:
            return False
        return 0 <= previous - objective < self.tolerance * abs(previous)

    def whole(self, problem: Problem, state: State) -> State:
        """Return, on process 0, the state with what all processes hold of it, for a checkpoint. Default: the same."""
        return state

    def own(self, problem: Problem, state: State) -> State:
        """Return this process's part of a state that `whole` gave. Default: the same."""
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


def declarations(solver: Solver[Any]) -> dict[str, Any]:
    """Return the columns and plots that a solver adds to reports as plain values, for `columns.json`."""
    return {"columns": [asdict(each) for each in solver.columns], "plots": [asdict(each) for each in solver.plots]}


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
