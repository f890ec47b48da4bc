"""How large a constraint set is: by its Euclidean diameter, for every kind of set alike."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import nn

from nncompress.constraints.base import Constraint

DRAWS = 100
"""Initialisations of a layer whose norms are averaged, at most."""

ACCURACY = 1e-3
"""Fewer when the standard error of the mean is below this part of it."""


class SetSize(ABC):
    """A rule for the diameter of a set."""

    @abstractmethod
    def diameter(self, constraint: Constraint, shapes: Sequence[torch.Size], norms: Sequence[float]) -> float:
        """Return the Euclidean diameter for parameters of these shapes and mean initial norms, constrained together."""


@dataclass(frozen=True, kw_only=True)
class FromInitialisation(SetSize):
    """2 w times the mean Euclidean norm of the parameters as their layers initialise them.

    - w: the factor, positive and finite, else ValueError; 30 is this package's choice, as the published code leaves it
      to a search.
    """

    w: float = 30.0

    def __post_init__(self) -> None:
        _check("w", self.w)

    def diameter(self, constraint: Constraint, shapes: Sequence[torch.Size], norms: Sequence[float]) -> float:
        return 2 * self.w * math.hypot(*norms)


@dataclass(frozen=True, kw_only=True)
class Diameter(SetSize):
    """The diameter itself.

    - value: the diameter, positive and finite, else ValueError.
    """

    value: float

    def __post_init__(self) -> None:
        _check("value", self.value)

    def diameter(self, constraint: Constraint, shapes: Sequence[torch.Size], norms: Sequence[float]) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Radius(SetSize):
    """The radius of the set.

    - value: the radius, positive and finite, else ValueError.
    """

    value: float

    def __post_init__(self) -> None:
        _check("value", self.value)

    def diameter(self, constraint: Constraint, shapes: Sequence[torch.Size], norms: Sequence[float]) -> float:
        return 2 * self.value * constraint.reach(constraint.seen_shape(shapes))


def initial_norms(model: nn.Module) -> Mapping[str, float]:
    """Return each parameter's mean Euclidean norm over random initialisations of its layer; the model is left.

    A layer initialises itself by `reset_parameters`, on the CPU in float32 and from the same seed always; a parameter
    of a module without that method has the norm it has. 1 for what is initialised to zero.
    """
    means: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for prefix, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            norms = _mean_norms(module, list(own)) if own and _initialises_itself(module) else {}
            for name, p in own.items():
                norm = norms.get(name, float(p.detach().norm()))
                means[f"{prefix}.{name}".lstrip(".")] = norm if norm > 0 else 1.0
    return means


def _initialises_itself(module: nn.Module) -> bool:
    """Return whether it has a method `reset_parameters` that needs no arguments."""
    method = getattr(module, "reset_parameters", None)
    return callable(method) and all(p.default is not p.empty for p in signature(method).parameters.values())


@torch.no_grad()
def _mean_norms(module: nn.Module, names: Sequence[str]) -> dict[str, float]:
    """Return the mean norms of a module's own parameters, drawn anew until they are accurate."""
    fresh = copy.deepcopy(module).to("cpu", torch.float32)
    norms = torch.empty(0, len(names), dtype=torch.float64)  # (draws, parameters)
    while len(norms) < DRAWS:
        fresh.reset_parameters()  # type: ignore[operator]
        drawn = [float(fresh.get_parameter(name).norm()) for name in names]
        norms = torch.cat([norms, norms.new_tensor([drawn])])
        if len(norms) >= 4 and bool((norms.std(0) / math.sqrt(len(norms)) <= ACCURACY * norms.mean(0)).all()):
            break  # fewer may agree by chance
    return dict(zip(names, norms.mean(0).tolist(), strict=True))


def _check(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, found {value}")
