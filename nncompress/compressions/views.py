"""How the weights of a task are laid out before they are compressed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.errors import ConfigError


def stand_in(shape: Sequence[int]) -> Tensor:
    """Return a tensor of this shape whose values do not matter, a byte an entry.

    On the meta device the first `torch.cat` of a process imports 0.9 s of torch's Python code.
    """
    return torch.empty(tuple(shape), dtype=torch.bool)


class View(ABC):
    """An invertible rearrangement of the weights of one task into one tensor."""

    @abstractmethod
    def join(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the weights as the one tensor to compress; only laid out anew, so that `stand_in`s may be joined."""

    @abstractmethod
    def split(self, joined: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Return the inverse of `join`: one tensor for each shape, in the same order."""

    @abstractmethod
    def check(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        """Raise ConfigError when weights of these shapes cannot be seen this way."""


def _check_one(names: Sequence[str], form: str) -> None:
    if len(names) != 1:
        raise ConfigError(f"a task that sees its weight as a {form} takes one weight, found {', '.join(names)}")


@dataclass(frozen=True)
class AsVector(View):
    """All weights of the task, flattened and put end to end."""

    def join(self, weights: Sequence[Tensor]) -> Tensor:
        return torch.cat([w.reshape(-1) for w in weights]) if len(weights) > 1 else weights[0].reshape(-1)

    def split(self, joined: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        parts = torch.split(joined, [shape.numel() for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def check(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        """Accept any weights."""


@dataclass(frozen=True)
class AsMatrix(View):
    """One weight as a matrix (Idelbayev and Carreira-Perpinan, CVPR 2020).

    - scheme: 1 for (outputs) x (everything else), of any weight, hence the default; 2, for convolutions of height x
      width, for (outputs height) x (inputs width), whose low-rank factors are two one-dimensional convolutions. Raises
      ValueError for another one.
    """

    scheme: int = 1

    def __post_init__(self) -> None:
        if self.scheme not in (1, 2):
            raise ValueError(f"scheme must be 1 or 2, found {self.scheme}")

    def join(self, weights: Sequence[Tensor]) -> Tensor:
        w = weights[0]
        if self.scheme == 2:
            outputs, inputs, height, width = w.shape
            return w.transpose(1, 2).reshape(outputs * height, inputs * width)
        return w.reshape(w.shape[0], -1)

    def split(self, joined: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        if self.scheme == 2:
            outputs, inputs, height, width = shapes[0]
            return [joined.reshape(outputs, height, inputs, width).transpose(1, 2).contiguous()]
        return [joined.reshape(shapes[0])]

    def check(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        _check_one(names, "matrix")
        if self.scheme == 2 and len(shapes[0]) != 4:
            raise ConfigError(
                f"scheme 2 needs a convolution's weight (outputs, inputs, height, width), found {names[0]} "
                f"{tuple(shapes[0])}; use scheme 1 for it"
            )


@dataclass(frozen=True)
class AsTensor(View):
    """One weight, row-major, as a tensor.

    - modes: the tensor's sizes; their product is the number of the weight's entries.
    """

    modes: tuple[int, ...]

    def join(self, weights: Sequence[Tensor]) -> Tensor:
        return weights[0].reshape(self.modes)

    def split(self, joined: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [joined.reshape(shapes[0])]

    def check(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        _check_one(names, "tensor")
        if math.prod(self.modes) != shapes[0].numel() or min(self.modes, default=0) < 1:
            raise ConfigError(
                f"the modes of {names[0]} must multiply to its {shapes[0].numel()} entries {tuple(shapes[0])}, "
                f"found {list(self.modes)} = {math.prod(self.modes)}; give modes with that product, or null for the "
                "default"
            )
