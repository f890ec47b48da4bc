"""Which weights are compressed, seen how, by what: tasks, and the plan they make for a whole network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.views import AsVector, View
from nncompress.errors import ConfigError
from nncompress.params import Params


@dataclass(frozen=True)
class Task:
    """Weights (by name pattern; several are compressed together), the view of them, and their compression."""

    params: Sequence[str]
    view: View
    compression: Compression[Any]


@dataclass(frozen=True)
class Plan:
    """The tasks of a network: itself a compression, acting on Params. Made by `Plan.of`."""

    tasks: tuple[Task, ...]
    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, tasks: Iterable[Task], weights: Mapping[str, Tensor]) -> Plan:
        """Tasks bound to the weights of a network: every pattern becomes the names it matches.

        Raises ConfigError for a pattern that matches nothing, a weight in two tasks, a view that does not fit.
        """
        bound: list[Task] = []
        shapes: dict[str, torch.Size] = {}
        for task in tasks:
            names = tuple(dict.fromkeys(name for pattern in task.params for name in matching(weights, pattern)))
            twice = [name for name in names if name in shapes]
            if twice:
                raise ConfigError(f"a weight belongs to one task at most, found {twice[0]} in two")
            task.view.check(names, [weights[name].shape for name in names])
            shapes.update((name, weights[name].shape) for name in names)
            bound.append(Task(names, task.view, task.compression))
        return cls(tuple(bound), shapes)

    def select(self, weights: Mapping[str, Tensor]) -> Params:
        """The compressed weights among all those of a network."""
        return Params({name: weights[name] for name in self.shapes})

    def compress(self, w: Params, mu: float = 1.0, start: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Π of every task: one Θ each."""
        starts = start if start is not None else [None] * len(self.tasks)
        joined = [task.view.join([w[name] for name in task.params]) for task in self.tasks]
        return tuple(
            task.compression.compress(v, mu, theta) for task, v, theta in zip(self.tasks, joined, starts, strict=True)
        )

    def decompress(self, theta: Sequence[Any]) -> Params:
        """Δ(Θ): the compressed weights, named and shaped as in the network."""
        parts = [self.decompress_task(task, t) for task, t in zip(self.tasks, theta, strict=True)]
        return Params({name: tensor for part in parts for name, tensor in part.items()})

    def update_task(
        self, task: Task, w: Mapping[str, Tensor], mu: float, start: Any, dense: Mapping[str, Tensor]
    ) -> tuple[Any, Params]:
        """Π and Δ of one task; `dense` is Δ(start) (not read without a start)."""
        joined = task.view.join([w[name] for name in task.params])
        old = None if start is None else task.view.join([dense[name] for name in task.params])
        theta, new = task.compression.update(joined, mu, start, old)
        return theta, self._split(task, new)

    def decompress_task(self, task: Task, theta: Any) -> Params:
        """Δ(Θ) of one task."""
        return self._split(task, task.compression.decompress(theta))

    def _split(self, task: Task, joined: Tensor) -> Params:
        tensors = task.view.split(joined, [self.shapes[name] for name in task.params])
        return Params(dict(zip(task.params, tensors, strict=True)))

    def bits(self, theta: Sequence[Any]) -> int:
        """Bits of all tasks."""
        return sum(task.compression.bits(t) for task, t in zip(self.tasks, theta, strict=True))

    def num_params(self, theta: Sequence[Any]) -> int:
        """Stored real numbers of all tasks."""
        return sum(task.compression.num_params(t) for task, t in zip(self.tasks, theta, strict=True))

    def numel(self) -> int:
        """Entries of all compressed weights."""
        return sum(shape.numel() for shape in self.shapes.values())


def matches(name: str, pattern: str) -> bool:
    """Whether a weight's name fits a pattern (shell wildcards; a layer's name stands for its weight)."""
    return any(fnmatchcase(name, form) for form in (pattern, f"{pattern}.weight", f"*.{pattern}.weight"))


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that fit a pattern; ConfigError when there are none."""
    names = list(names)
    found = [name for name in names if matches(name, pattern)]
    if not found:
        raise ConfigError(f"a layer pattern must match a weight, found {pattern!r}; the weights are {', '.join(names)}")
    return found


def choose(weights: Mapping[str, Tensor], layers: str | Sequence[str]) -> list[str]:
    """Names of the weights a recipe compresses: "hidden" (all but the output layer's), "all", or patterns."""
    if layers in ("all", "hidden"):
        chosen_names = list(weights) if layers == "all" else list(weights)[:-1]
        if not chosen_names:
            raise ConfigError(f"layers={layers} must leave a weight to compress, found {len(weights)}; use layers=all")
        return chosen_names
    patterns = [layers] if isinstance(layers, str) else layers
    chosen = {name for pattern in patterns for name in matching(weights, pattern)}
    return [name for name in weights if name in chosen]


def each_layer(
    weights: Mapping[str, Tensor], *, compression: Compression[Any], layers: str | Sequence[str] = "hidden"
) -> Plan:
    """The same compression for every chosen weight, each flattened and on its own: how a user's own is applied."""
    return Plan.of([Task((name,), AsVector(), compression) for name in choose(weights, layers)], weights)


def none(weights: Mapping[str, Tensor]) -> Plan:
    """No compression: the dense network."""
    return Plan.of((), weights)
