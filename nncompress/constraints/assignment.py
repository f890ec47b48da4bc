"""Which parameters of a network lie in which set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nncompress.compressions.plan import matching
from nncompress.constraints.base import Constraint
from nncompress.constraints.size import FromInitialisation, SetSize
from nncompress.errors import ConfigError
from nncompress.surgery.channels import own_weights


class Body(NamedTuple):
    """A set and the parameters, by name, that lie in it: one, or several together. None: they are not constrained."""

    names: tuple[str, ...]
    constraint: Constraint | None
    size: SetSize

    @property
    def name(self) -> str:
        """That of the first parameter, and how many more there are."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which set each parameter of a network lies in; frozen parameters are left out.

    - set: the set; its radius is not read.
    - params: "all" (the published code constrains every parameter), "weights" (of two or more dimensions),
      "convolutions" (those of Conv2d layers, as `own_weights` finds them), or name patterns, a layer's name standing
      for its weight.
    - size: the diameter; from the initialisation, as in the published code.
    - joint: one set for all of `params` together instead of one for each; false, as in the published code.
    - rest: another assignment, of the parameters left; None: these are not constrained.
    """

    set: Constraint
    params: str | Sequence[str] = "all"
    size: SetSize = field(default_factory=FromInitialisation)
    joint: bool = False
    rest: Assignment | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (("set", self.set, Constraint), ("size", self.size, SetSize)):
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}, found {value!r}")
        if not isinstance(self.rest, Assignment | None):
            raise ValueError(f"rest must be an Assignment or null, found {self.rest!r}")
        if not self.params:
            raise ValueError("params must be all, weights, convolutions or patterns of names, found none")

    def bodies(self, model: nn.Module) -> list[Body]:
        """Return the sets of a network's parameters, each in one of them, in the order of the rules.

        Raises ConfigError for a pattern that matches nothing and for a parameter that does not fit its set.
        """
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return list(self._bodies(model, trained))

    def _bodies(self, model: nn.Module, left: Mapping[str, Tensor]) -> Iterator[Body]:
        chosen = self._choose(model, left)
        for name in chosen:
            self.set.check(name, left[name].shape)
        for names in [tuple(chosen)] if self.joint and chosen else [(name,) for name in chosen]:
            self.set.seen_shape([left[name].shape for name in names])  # refuses what it cannot see together
            yield Body(names, self.set, self.size)
        others = {name: p for name, p in left.items() if name not in set(chosen)}
        if self.rest is not None:
            yield from self.rest._bodies(model, others)
        else:
            yield from (Body((name,), None, self.size) for name in others)

    def _choose(self, model: nn.Module, left: Mapping[str, Tensor]) -> list[str]:
        """Return the names of `params` among those that no rule has taken yet."""
        if self.params == "all":
            return list(left)
        if self.params == "weights":
            chosen = [name for name, p in left.items() if p.dim() >= 2]
        elif self.params == "convolutions":
            chosen = [name for name in own_weights(model, nn.Conv2d) if name in left]
        else:
            patterns = [self.params] if isinstance(self.params, str) else self.params
            try:
                taken = {name for pattern in patterns for name in matching(left, pattern)}
            except ConfigError as error:
                raise ConfigError(
                    f"constraint.params, of the parameters that no rule before has taken: {error}"
                ) from error
            return [name for name in left if name in taken]
        if not chosen:
            raise ConfigError(
                f"constraint.params={self.params} must match a parameter, found none among {', '.join(left)}; give "
                "other params"
            )
        return chosen


def diameters(bodies: Sequence[Body], parameters: Mapping[str, Tensor], norms: Mapping[str, float]) -> Tensor:
    """Return the diameter of each body, float64 (0 where nothing is constrained); norms: those of `initial_norms`."""
    result = torch.zeros(len(bodies), dtype=torch.float64)
    for k, (names, constraint, size) in enumerate(bodies):
        if constraint is not None:
            shapes, initial = [parameters[name].shape for name in names], [norms[name] for name in names]
            result[k] = size.diameter(constraint, shapes, initial)
    return result
