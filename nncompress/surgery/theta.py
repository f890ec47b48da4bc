"""Θ as a module, whose parameters are its free tensors and whose buffers are all else; layers whose weight it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from nncompress.compressions.base import Compression, map_leaves
from nncompress.compressions.views import View

VERSION = attrgetter("_version")
"""How often a tensor was changed in place."""


class HeldTheta(nn.Module):
    """The Θ of one compression; `Compression.map_free` says which of its tensors are free.

    scaled: each free tensor is held times its `Compression.sensitivity` (to the nearest power of two, so that nothing
    is rounded): a value that many weights share would take far larger steps than they in descent, and is so moved by
    the mean of their gradients.
    """

    def __init__(self, compression: Compression[Any], theta: Any, *, scaled: bool = False) -> None:
        super().__init__()
        self.compression = compression
        free, units = self._free(theta), self._free(compression.sensitivity(theta)) if scaled else []
        self.scales = [self._store(power_of_two(unit)) for unit in units]
        for k, scale in enumerate(self.scales):
            free[k] = free[k] * self.get_buffer(scale)
        self.free = nn.ParameterList([tensor.detach().contiguous().clone() for tensor in free])
        fixed = compression.map_free(theta, lambda tensor: tensor.new_empty(0))
        self.template = map_leaves(fixed, Tensor, lambda tensor: _Place(self._store(tensor)))

    @property
    def value(self) -> Any:
        """Return Θ in the form that the compression gives it, with gradients to what is free."""
        fixed = map_leaves(self.template, _Place, lambda place: self.get_buffer(place.name))
        free: list[Tensor] = list(self.free)
        if self.scales:
            free = [tensor / self.get_buffer(scale) for tensor, scale in zip(free, self.scales, strict=True)]
        tensors = iter(free)
        return self.compression.map_free(fixed, lambda _: next(tensors))

    def delta(self) -> Tensor:
        """Return Δ(Θ)."""
        return self.compression.decompress(self.value)

    def tensors(self) -> list[Tensor]:
        """Return all that Θ is made of, as it is now."""
        free = cast(nn.Module, self._modules["free"])  # by its name it would take longer, a loop over it far longer
        return cast(list[Tensor], [*free._parameters.values(), *self._buffers.values()])

    def _free(self, theta: Any) -> list[Tensor]:
        free: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            free.append(tensor)
            return tensor

        self.compression.map_free(theta, keep)
        return free

    def _store(self, tensor: Tensor) -> str:
        """Register a buffer and return its name.

        A buffer is part of a checkpoint: where Π breaks ties otherwise, on another machine, its Θ would not fit.
        """
        name = f"fixed{len(self._buffers)}"
        self.register_buffer(name, tensor.detach())
        return name


@dataclass(frozen=True)
class _Place:
    """What stands for a buffer in the template."""

    name: str


class CachedValue(NamedTuple):
    """What was made of a layer's tensors, of which ones, and how often these had been changed."""

    value: Any
    tensors: list[Tensor]
    version: int


class ThetaLayer(nn.Module):
    """A layer of torch whose weight is Δ(Θ), seen through a view; all else of it is as it was."""

    theta: HeldTheta
    view: View
    shape: torch.Size
    name: str
    _kept: dict[str, CachedValue]

    def hold(self, theta: HeldTheta, view: View, shape: torch.Size) -> None:
        """Take Θ as the weight, which has this shape."""
        self.theta, self.view, self.shape, self.name = theta, view, shape, ""
        self._forget()

    @property
    def weight(self) -> Tensor:
        """Return Δ(Θ), shaped as the layer's weight."""
        return self.view.split(self.theta.delta(), [self.shape])[0]

    def is_recorded(self, x: Tensor) -> bool:
        """Return whether gradients are needed, or the network is exported, compiled or traced: nothing is kept then."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return True
        return torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in self._tensors()))

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what `make` makes of Θ, without gradients; made anew when Θ or the bias has changed."""
        tensors, kept = self._tensors(), self._kept.get(key)
        if kept is None or not all(map(is_, kept.tensors, tensors)) or sum(map(VERSION, tensors)) != kept.version:
            device = tensors[0].device.type if tensors else "cpu"
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                value = make()
            if any(tensor.is_inference() for tensor in tensors):  # these do not tell when they change
                return value
            kept = self._kept[key] = CachedValue(value, tensors, sum(map(VERSION, tensors)))
        return kept.value

    def _tensors(self) -> list[Tensor]:
        """Return all that the layer is made of, as it is now."""
        return [*self.theta.tensors(), *(p for p in self._parameters.values() if p is not None)]

    def _forget(self) -> None:
        """Drop all that was made for the tensors as they were."""
        self._kept = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()  # another device or type
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.shape))}, {self.theta.compression}"


class OwnLayer(ThetaLayer):
    """A layer that computes with what its compression makes of Θ (`Compression.layer`), which is kept until Θ changes.

    Where gradients are needed, and when the network is exported, that is made at every pass; if it then has parameters
    of its own, which would take the gradients in place of Θ, the layer multiplies with the rebuilt weight.
    """

    def forward(self, x: Tensor) -> Tensor:
        recorded = self.is_recorded(x)
        layer: nn.Module | None = self._layer() if recorded else self.kept("layer", self._layer)
        if layer is None or (recorded and any(all(p is not t for t in self._tensors()) for p in layer.parameters())):
            rebuilt: Tensor = super().forward(x)
            return rebuilt
        computed: Tensor = layer.train(self.training)(x)
        return computed

    def _layer(self) -> nn.Module | None:
        return self.theta.compression.layer(self.theta.value, self)


def power_of_two(sizes: Tensor) -> Tensor:
    """Return the powers of two within a factor of sqrt 2 of positive numbers; 1 for 0. Products with them are exact."""
    x = torch.where(sizes > 0, sizes, 1) / math.sqrt(2)
    return x / torch.frexp(x).mantissa
