"""What is solved: a network, its data and a plan of compression. Never how."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from nncompress.compressions.plan import Plan

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """Inputs x (n, *input_shape), float, and class labels y (n,), int64, on one device."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Split:
        """The split on `device`, its inputs as `dtype`."""
        return Split(self.x.to(device=device, dtype=dtype), self.y.to(device=device))


@dataclass(frozen=True)
class Dataset:
    """A training and a test split held whole as tensors; `name` and `preprocessing` go into the records."""

    train: Split
    test: Split
    num_classes: int
    name: str
    preprocessing: str = "none"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """Both splits on `device`, inputs as `dtype`."""
        return Dataset(
            self.train.to(device, dtype), self.test.to(device, dtype), self.num_classes, self.name, self.preprocessing
        )


@dataclass(frozen=True)
class Problem:
    """Minimise the loss of `model` on `data` while the weights of `plan` are compressed.

    `loss` takes logits (n, classes) and labels (n,) and gives their mean loss. Solvers leave a problem untouched:
    they work on copies of `model`.
    """

    model: nn.Module
    data: Dataset
    plan: Plan
    loss: Loss = field(default=nn.functional.cross_entropy)

    @property
    def device(self) -> torch.device:
        """Where model and data live."""
        return self.data.train.x.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of model and data."""
        return self.data.train.x.dtype


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights a compression may act on: every parameter of two or more dimensions, in the model's order."""
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() >= 2}


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` in evaluation mode with some parameters replaced by `weights`."""
    network = copy.deepcopy(model).eval()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    return network
