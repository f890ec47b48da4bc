"""Sums of compressions: w ≈ Δ_1(Θ_1) + Δ_2(Θ_2) + ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.plan import Layers, Plan, Recipe, Task, Tensors, groups_of, part_named, plan_of, takes
from nncompress.compressions.products import Product, Sum, Use
from nncompress.compressions.views import AsVector, View, stand_in
from nncompress.errors import ConfigError


class Parts(NamedTuple):
    """One Θ for each summand."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """One summand: how it sees the weights, and its compression."""

    view: View
    compression: Compression[Any]


@dataclass(frozen=True)
class Additive(Compression[Parts]):
    """The sum of several compressions of the same weights; Π by block coordinate descent.

    Each pass minimises over one part after the other, Θ_j <- Π_j(w - sum over i != j of Δ_i(Θ_i)), from a sum of zeros
    or from `start`; once every part has a Θ the objective does not rise from one block to the next.
    Idelbayev and Carreira-Perpinan, "More general and effective model compression via an additive combination of
    compressions", ECML 2021. Raises ValueError for settings out of range.

    - parts: the summands, in the order of a pass, at least two.
    - shapes: those of the weights that are seen end to end.
    - passes: the most rounds over the parts, at least 1; 10, as in the published code.
    - tolerance: a round that lowers the objective by less than this part of it is the last; 1e-4 is this package's
      choice.
    """

    exact: ClassVar[bool] = False
    parts: tuple[Part, ...]
    shapes: tuple[tuple[int, ...], ...]
    passes: int = 10
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"a sum needs at least 2 parts, found {len(self.parts)}")
        if self.passes < 1 or not self.tolerance >= 0:
            raise ValueError(
                f"passes must be at least 1 and tolerance at least 0, found {self.passes} and {self.tolerance}"
            )

    def project(self, w: Tensor, mu: float, start: Parts | None) -> Parts:
        thetas: list[Any] = [None] * len(self.parts) if start is None else list(start.parts)
        deltas = [torch.zeros_like(w) if theta is None else self._delta(j, theta) for j, theta in enumerate(thetas)]
        residual = w - torch.stack(deltas).sum(dim=0)
        before = torch.inf
        for _ in range(self.passes):
            for j, part in enumerate(self.parts):
                target = residual + deltas[j]
                seen, old = self._join_for(part, target), self._join_for(part, deltas[j])
                theta, dense = part.compression.update(seen, mu, thetas[j], None if thetas[j] is None else old)
                thetas[j], deltas[j] = theta, self._flat(part, dense)
                residual = target - deltas[j]
            value = mu / 2 * residual.square().sum(dtype=torch.float64) + self.penalty(Parts(tuple(thetas)))
            if before - value <= self.tolerance * value:  # one read from the device
                break
            before = float(value)
        return Parts(tuple(thetas))

    def decompress(self, theta: Parts) -> Tensor:
        return torch.stack([self._delta(j, t) for j, t in enumerate(theta.parts)]).sum(dim=0)

    def bits(self, theta: Parts) -> int:
        return sum(compression.bits(t) for compression, t in self._pairs(theta))

    def num_params(self, theta: Parts) -> int:
        return sum(compression.num_params(t) for compression, t in self._pairs(theta))

    def penalty(self, theta: Parts) -> float | Tensor:
        return sum(compression.penalty(t) for compression, t in self._pairs(theta))

    def map_free(self, theta: Parts, function: Callable[[Tensor], Tensor]) -> Parts:
        """Apply `function` to the free tensors of all parts."""
        return Parts(tuple(compression.map_free(t, function) for compression, t in self._pairs(theta)))

    def sensitivity(self, theta: Parts) -> Parts:
        return Parts(tuple(compression.sensitivity(t) for compression, t in self._pairs(theta)))

    def huffman_bits(self, theta: Parts) -> int:
        return sum(compression.least_bits(t) for compression, t in self._pairs(theta))

    def product(self, theta: Parts, shape: Sequence[int]) -> Product | None:
        """Return the sum of the parts' products, where all have one."""
        if len(self.shapes) > 1:
            return None
        products = [compression.product(t, shape) for compression, t in self._pairs(theta)]
        return None if None in products else Sum(tuple(product for product in products if product is not None))

    def summands(self, shape: Sequence[int]) -> list[tuple[Compression[Any], Sequence[int]]]:
        return [summand for part in self.parts for summand in part.compression.summands(self._shape(part, shape))]

    def check(self, shape: Sequence[int]) -> None:
        for part in self.parts:
            part.compression.check(self._shape(part, shape))

    def clipped(self, shape: Sequence[int]) -> str | None:
        sentences = [part.compression.clipped(self._shape(part, shape)) for part in self.parts]
        return "; ".join(sentence for sentence in sentences if sentence) or None

    def _pairs(self, theta: Parts) -> Iterator[tuple[Compression[Any], Any]]:
        """Pair each part's compression with its Θ."""
        return zip((part.compression for part in self.parts), theta.parts, strict=True)

    def _delta(self, j: int, theta: Any) -> Tensor:
        return self._flat(self.parts[j], self.parts[j].compression.decompress(theta))

    def _join_for(self, part: Part, flat: Tensor) -> Tensor:
        """Lay out the weights, end to end, as a part sees them."""
        return part.view.join(AsVector().split(flat, [torch.Size(shape) for shape in self.shapes]))

    def _shape(self, part: Part, shape: Sequence[int]) -> torch.Size:
        """Return the shape in which a part sees weights that have this one end to end."""
        return self._join_for(part, stand_in(shape)).shape

    def _flat(self, part: Part, joined: Tensor) -> Tensor:
        return AsVector().join(part.view.split(joined, [torch.Size(shape) for shape in self.shapes]))

    def __str__(self) -> str:
        return " + ".join(str(part.compression) for part in self.parts)


def additive(
    weights: Tensors,
    *,
    parts: Mapping[str, Recipe | Compression[Any]],
    passes: int = 10,
    joint: bool = False,
    layers: Layers = "hidden",
    uses: Mapping[str, Use] | None = None,
    round_to: int = 1,
) -> Plan:
    """Sum up `parts` (recipes by a name of your choice) for each chosen weight, or (`joint`) for all as one vector.

    `uses` and `round_to` are for the parts. Raises ConfigError for a part that cannot take its weights as one task.
    """

    def total(group: Sequence[str]) -> Additive:
        chosen = {name: weights[name] for name in group}
        summands = tuple(_part(key, part, chosen, uses, round_to) for key, part in parts.items())
        return Additive(summands, tuple(tuple(w.shape) for w in chosen.values()), passes)

    return Plan.of([Task(group, AsVector(), total(group)) for group in groups_of(weights, layers, joint)], weights)


def _part(
    key: str, recipe: Recipe | Compression[Any], weights: Tensors, uses: Mapping[str, Use] | None, round_to: int
) -> Part:
    """Return how a recipe compresses these weights as one."""
    given = recipe.keywords if isinstance(recipe, partial) else {}
    with part_named(key):
        if "layers" in given:
            raise ConfigError(f"the layers of a part are those of the sum, found {given['layers']}; leave them out")
        settings: dict[str, Any] = {"layers": "all"}
        if len(weights) > 1 and isinstance(recipe, Compression):
            settings["joint"] = True
        elif len(weights) > 1 and callable(recipe):
            settings |= {"joint": True} if takes(recipe, "joint") else {"per": "shared"} if takes(recipe, "per") else {}
        tasks = plan_of(recipe, weights, uses, round_to=round_to, **settings).tasks
        entrywise = bool(tasks) and all((t.view, t.compression) == (AsVector(), tasks[0].compression) for t in tasks)
        if len(tasks) != 1 and not entrywise:  # what is the same for every entry is joint as it is
            raise ConfigError(
                f"a part of a joint sum must see {', '.join(weights)} as one vector, found {len(tasks)} tasks; "
                "use such a compression (l0, codebook, ...) or joint=false"
            )
    return Part(tasks[0].view, tasks[0].compression)
