"""Θ as a module: its free tensors are parameters, all else in it are buffers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nncompress.compressions.base import Compression, map_leaves


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
        self.scales = [self._stored(power_of_two(unit)) for unit in units]
        for k, scale in enumerate(self.scales):
            free[k] = free[k] * self.get_buffer(scale)
        self.free = nn.ParameterList([tensor.detach().contiguous().clone() for tensor in free])
        fixed = compression.map_free(theta, lambda tensor: tensor.new_empty(0))
        self.template = map_leaves(fixed, Tensor, lambda tensor: _Place(self._stored(tensor)))

    @property
    def value(self) -> Any:
        """Θ in the form that the compression gives it, with gradients to what is free."""
        fixed = map_leaves(self.template, _Place, lambda place: self.get_buffer(place.name))
        free: list[Tensor] = list(self.free)
        if self.scales:
            free = [tensor / self.get_buffer(scale) for tensor, scale in zip(free, self.scales, strict=True)]
        found = iter(free)
        return self.compression.map_free(fixed, lambda _: next(found))

    def delta(self) -> Tensor:
        """Δ(Θ)."""
        return self.compression.decompress(self.value)

    def tensors(self) -> list[Tensor]:
        """All that Θ is made of, as it is now."""
        free = cast(nn.Module, self._modules["free"])  # by its name it would take longer, a loop over it far longer
        return cast(list[Tensor], [*free._parameters.values(), *self._buffers.values()])

    def _free(self, theta: Any) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.compression.map_free(theta, keep)
        return found

    def _stored(self, tensor: Tensor) -> str:
        """The name of a new buffer.

        A buffer is part of a checkpoint: where Π breaks ties otherwise, on another machine, its Θ would not fit.
        """
        name = f"fixed{len(self._buffers)}"
        self.register_buffer(name, tensor.detach())
        return name


@dataclass(frozen=True)
class _Place:
    """What stands for a buffer in the template."""

    name: str


def power_of_two(sizes: Tensor) -> Tensor:
    """The powers of two within a factor of sqrt 2 of positive numbers; 1 for 0. Products with them are exact."""
    x = torch.where(sizes > 0, sizes, 1) / math.sqrt(2)
    return x / torch.frexp(x).mantissa
