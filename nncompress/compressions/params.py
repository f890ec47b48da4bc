"""Named tensors that add, subtract and scale: the vectors w, lam, gamma of the papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class Params(Mapping[str, Tensor]):
    """An immutable vector made of named tensors; both operands of `+` and `-` must have the same names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __add__(self, other: Params) -> Params:
        return self._zip(other, torch.add)

    def __sub__(self, other: Params) -> Params:
        return self._zip(other, torch.sub)

    def __mul__(self, scale: float | Tensor) -> Params:
        return self.map(lambda t: t * scale)

    __rmul__ = __mul__

    def __truediv__(self, scale: float | Tensor) -> Params:
        return self.map(lambda t: t / scale)

    def __neg__(self) -> Params:
        return self.map(torch.neg)

    def __repr__(self) -> str:
        return "Params(" + ", ".join(f"{name}: {tuple(t.shape)}" for name, t in self.items()) + ")"

    def map(self, function: Callable[[Tensor], Tensor]) -> Params:
        """Return the same names with `function` applied to every tensor."""
        return Params({name: function(t) for name, t in self.items()})

    def detach(self) -> Params:
        """Return the same values without gradient history."""
        return self.map(Tensor.detach)

    def clone(self) -> Params:
        """Return a copy that shares no memory."""
        return self.map(Tensor.clone)

    def sq(self) -> Tensor:
        """Return the squared Euclidean norm, a 0-dimensional tensor (0 for no tensors)."""
        return sum((t.square().sum() for t in self.values()), torch.zeros(()))

    def numel(self) -> int:
        """Return the number of entries."""
        return sum(t.numel() for t in self.values())

    def _zip(self, other: Params, function: Callable[[Tensor, Tensor], Tensor]) -> Params:
        if self.keys() != other.keys():
            raise ValueError(f"both vectors must have the same names, found {list(self)} and {list(other)}")
        return Params({name: function(t, other[name]) for name, t in self.items()})
