"""Which weights are compressed, seen how, by what: tasks, and the plan they make for a whole network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nncompress.compressions.base import Compression, not_finite
from nncompress.compressions.params import Params
from nncompress.compressions.products import Use
from nncompress.compressions.views import AsVector, View, stand_in
from nncompress.errors import ConfigError, Diverged

Tensors = Mapping[str, Tensor]
"""The weights of a network by name, in the order of its layers."""

Layers = str | Sequence[str]
"""Which weights a recipe compresses: "hidden" (all but the output layer's), "all", or name patterns (`matches`)."""

Recipe = Callable[..., "Plan"]
"""A function of a network's weights (and of `uses` and `round_to`, where it has such keywords) that makes a plan."""


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
    def of(cls, tasks: Iterable[Task], weights: Tensors) -> Plan:
        """Bind tasks to the weights of a network: every pattern becomes the names it matches.

        Raises ConfigError for a pattern that matches nothing, a weight in two tasks, a view or a compression that
        does not fit.
        """
        bound: list[Task] = []
        shapes: dict[str, torch.Size] = {}
        for task in tasks:
            names = tuple(dict.fromkeys(name for pattern in task.params for name in matching(weights, pattern)))
            twice = [name for name in names if name in shapes]
            if twice:
                raise ConfigError(
                    f"a weight belongs to one task at most, found {twice[0]} in two; "
                    "give them different layers, or add them up with compression=additive"
                )
            shapes.update((name, weights[name].shape) for name in names)
            bound.append(Task(names, task.view, task.compression))
        plan = cls(tuple(bound), shapes)
        for task in plan.tasks:
            task.view.check(task.params, [shapes[name] for name in task.params])
            try:
                task.compression.check(plan.seen_shape(task))
            except ValueError as error:
                raise ConfigError(f"{', '.join(task.params)}: {error}") from error
        return plan

    def select(self, weights: Tensors) -> Params:
        """Return the compressed weights among all those of a network."""
        return Params({name: weights[name] for name in self.shapes})

    def compress(self, w: Params, mu: float = 1.0, start: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Return Π of every task: one Θ each; tasks of one compression and shape are done together.

        Raises Diverged, naming the weight, when one is not finite.
        """
        check_finite(w)
        starts = start if start is not None else [None] * len(self.tasks)
        joined = [task.view.join([w[name] for name in task.params]) for task in self.tasks]
        thetas: list[Any] = [None] * len(self.tasks)
        for js in self._alike(joined):
            compression = self.tasks[js[0]].compression
            group = compression.compress_many([joined[j] for j in js], mu, [starts[j] for j in js])
            for j, theta in zip(js, group, strict=True):
                thetas[j] = theta
        return tuple(thetas)

    def _alike(self, joined: Sequence[Tensor]) -> list[list[int]]:
        """Group the positions of the tasks by compression and shape."""
        kinds: list[tuple[Any, ...]] = []  # not a dictionary: a user's compression need not be hashable
        groups: list[list[int]] = []
        for j, (task, v) in enumerate(zip(self.tasks, joined, strict=True)):
            kind = (task.compression, v.shape, v.dtype)
            if kind not in kinds:
                kinds.append(kind)
                groups.append([])
            groups[kinds.index(kind)].append(j)
        return groups

    def decompress(self, theta: Sequence[Any]) -> Params:
        """Return Δ(Θ): the compressed weights, named and shaped as in the network."""
        parts = [self.decompress_task(task, t) for task, t in zip(self.tasks, theta, strict=True)]
        return Params({name: tensor for part in parts for name, tensor in part.items()})

    def update_task(
        self, task: Task, w: Mapping[str, Tensor], mu: float, start: Any, dense: Mapping[str, Tensor]
    ) -> tuple[Any, Params]:
        """Return Π and Δ of one task; `dense` is Δ(start) (not read without a start)."""
        joined = task.view.join([w[name] for name in task.params])
        old = None if start is None else task.view.join([dense[name] for name in task.params])
        theta, new = task.compression.update(joined, mu, start, old)
        return theta, self._split(task, new)

    def decompress_task(self, task: Task, theta: Any) -> Params:
        """Return Δ(Θ) of one task."""
        return self._split(task, task.compression.decompress(theta))

    def _split(self, task: Task, joined: Tensor) -> Params:
        tensors = task.view.split(joined, [self.shapes[name] for name in task.params])
        return Params(dict(zip(task.params, tensors, strict=True)))

    def penalty(self, theta: Sequence[Any]) -> float:
        """Return C(Θ) of all tasks."""
        return float(sum(task.compression.penalty(t) for task, t in zip(self.tasks, theta, strict=True)))

    def bits(self, theta: Sequence[Any]) -> int:
        """Count the bits of all tasks."""
        return sum(task.compression.bits(t) for task, t in zip(self.tasks, theta, strict=True))

    def huffman_bits(self, theta: Sequence[Any]) -> int:
        """Count the bits of all tasks, codes and positions Huffman-coded where that is less."""
        return sum(task.compression.least_bits(t) for task, t in zip(self.tasks, theta, strict=True))

    def num_params(self, theta: Sequence[Any]) -> int:
        """Count the stored numbers of all tasks."""
        return sum(task.compression.num_params(t) for task, t in zip(self.tasks, theta, strict=True))

    def numel(self) -> int:
        """Count the entries of all compressed weights."""
        return sum(shape.numel() for shape in self.shapes.values())

    def seen_shape(self, task: Task) -> torch.Size:
        """Return the shape in which the compression of a task sees its weights."""
        return task.view.join([stand_in(self.shapes[name]) for name in task.params]).shape

    def clipped(self) -> list[str]:
        """Return the settings that are larger than a weight allows and what is used instead, one sentence a task."""
        sentences = [(task, task.compression.clipped(self.seen_shape(task))) for task in self.tasks]
        return [f"{', '.join(task.params)}: {sentence}" for task, sentence in sentences if sentence]


def check_finite(w: Mapping[str, Tensor]) -> None:
    """Raise Diverged, naming the weight, when one is not finite."""
    if not w:
        return
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in w.values()])
    if not finite.all():
        name = next(name for name, whole in zip(w, finite.tolist(), strict=True) if not whole)
        raise Diverged(f"the weights to compress must be finite, found {not_finite(w[name])} in {name}")


def matches(name: str, pattern: str) -> bool:
    """Return whether a weight's name fits a pattern (shell wildcards; a layer's name stands for its weight)."""
    return any(fnmatchcase(name, form) for form in (pattern, f"{pattern}.weight", f"*.{pattern}.weight"))


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that fit a pattern. Raises ConfigError when there are none."""
    names = list(names)
    fitting = [name for name in names if matches(name, pattern)]
    if not fitting:
        raise ConfigError(f"a layer pattern must match a weight, found {pattern!r}; the weights are {', '.join(names)}")
    return fitting


def choose(weights: Tensors, layers: Layers) -> list[str]:
    """Return the names of the weights a recipe compresses."""
    if layers in ("all", "hidden"):
        chosen_names = list(weights) if layers == "all" else list(weights)[:-1]
        if not chosen_names:
            raise ConfigError(f"layers={layers} must leave a weight to compress, found {len(weights)}; use layers=all")
        return chosen_names
    patterns = [layers] if isinstance(layers, str) else layers
    if not patterns:
        raise ConfigError(
            f"layers must be hidden, all or patterns of the weights {', '.join(weights)}, found none; "
            "compression=none leaves all of them alone"
        )
    chosen = {name for pattern in patterns for name in matching(weights, pattern)}
    return [name for name in weights if name in chosen]


def each_layer(
    weights: Tensors, *, compression: Compression[Any], layers: Layers = "hidden", joint: bool = False
) -> Plan:
    """Compress every chosen weight alike, each flattened and on its own, or (`joint`) all as one vector.

    How a user's own compression is applied.
    """
    return Plan.of([Task(group, AsVector(), compression) for group in groups_of(weights, layers, joint)], weights)


def groups_of(weights: Tensors, layers: Layers, joint: bool) -> list[tuple[str, ...]]:
    """Return the names of the chosen weights, each by itself or (`joint`) all together."""
    names = choose(weights, layers)
    return [tuple(names)] if joint else [(name,) for name in names]


def plan_of(
    part: Recipe | Compression[Any],
    weights: Tensors,
    uses: Mapping[str, Use] | None = None,
    *,
    round_to: int = 1,
    **settings: Any,
) -> Plan:
    """Make the plan of a recipe for these weights, or that of a Compression applied to each layer.

    `settings` replace the recipe's own; `uses` reaches the recipes that take it, and a `round_to` above 1 those that
    take it and are given none of their own. Raises ConfigError for what makes no plan.
    """
    recipe = partial(each_layer, compression=part) if isinstance(part, Compression) else part
    if not callable(recipe):
        raise ConfigError(f"a compression is a node with a _target_, found {part!r}; see conf/compression for examples")
    if uses is not None and takes(recipe, "uses"):
        settings["uses"] = uses
    given = isinstance(recipe, partial) and "round_to" in recipe.keywords
    if round_to > 1 and takes(recipe, "round_to") and not given:
        settings["round_to"] = round_to
    plan = recipe(weights, **settings)
    if not isinstance(plan, Plan):
        raise ConfigError(f"a compression must make a Plan or be a Compression, found {type(plan).__name__}")
    return plan


@contextmanager
def part_named(key: str) -> Iterator[None]:
    """Turn a refusal within it into a ConfigError that begins with the part's place in the configuration."""
    try:
        yield
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"parts.{key}: {error}") from error


def takes(recipe: Recipe, keyword: str) -> bool:
    """Return whether a recipe's signature names `keyword`."""
    return keyword in inspect.signature(recipe).parameters


def none(weights: Tensors) -> Plan:
    """Compress nothing: the dense network."""
    return Plan.of((), weights)


def mixed(
    weights: Tensors,
    *,
    parts: Mapping[str, Recipe | Compression[Any] | None],
    uses: Mapping[str, Use] | None = None,
    round_to: int = 1,
) -> Plan:
    """Plan the tasks of all `parts` (recipes by a name of your choice), each with its own `layers`.

    Layers that no part names stay as they are; a part that is None counts as left out. `uses` and `round_to` are for
    the parts. Raises ConfigError for a weight that two parts name.
    """
    tasks: list[Task] = []
    for key, part in parts.items():
        with part_named(key):
            tasks += plan_of(part, weights, uses, round_to=round_to).tasks if part is not None else ()
    return Plan.of(tasks, weights)
