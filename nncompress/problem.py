"""What is solved: a network, its data and a plan of compression. Never how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
