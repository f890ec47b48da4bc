"""What is solved: a network, its data and a plan of compression. Never how."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Generator, Tensor, nn

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
        """Return the split on `device`, its inputs as `dtype`."""
        return Split(self.x.to(device=device, dtype=dtype), self.y.to(device=device))

    def some(self, count: int, seed: int) -> Split:
        """Draw at most `count` of the samples, without replacement, by `seed`."""
        if count >= len(self):
            return self
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].to(self.y.device)
        return Split(self.x[drawn], self.y[drawn])

    def lay_out(self, memory_format: torch.memory_format) -> Split:
        """Return the split with images in a memory format."""
        return replace(self, x=self.x.contiguous(memory_format=memory_format)) if self.x.dim() == 4 else self


class Augmentation(ABC):
    """A random change of images x (n, channels, height, width), in two parts: the random numbers, and their use.

    `apply` works without host synchronisation and on shapes that do not depend on data, as CUDA graphs need.
    """

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many random numbers the change of one sample takes."""

    @property
    def smallest_side(self) -> int:
        """Pixels that height and width must have at least; 0 when samples need not be images. Default: 1."""
        return 1

    @abstractmethod
    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        """Return the changed images, with the shape, type, device and memory format of x, which is left as it is.

        x (n, c, h, w), of any floating-point type; drawn (n, columns), float32 as `draw` gives it, on the device of x;
        blank (c, 1, 1) or (), on the device of x: the value of what comes in from outside.
        """

    @final
    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draw numbers (n, columns), float32 on the CPU, uniform in [0, 1): all that is random for n samples."""
        return torch.rand(n, self.columns, generator=generator)

    @final
    def check(self, input_shape: Sequence[int]) -> None:
        """Raise ValueError unless samples of this shape are images, large enough for the change."""
        least = self.smallest_side
        if least and (len(input_shape) != 3 or min(input_shape[1:]) < least):
            raise ValueError(
                f"augmentation needs images (channels, height, width) with sides of at least {least}, "
                f"found samples of shape {tuple(input_shape)}; choose such data, or augmentation=none"
            )


@dataclass(frozen=True)
class Dataset:
    """A training and a test split held whole as tensors.

    - train, test, num_classes: the splits and the number of their labels.
    - name, preprocessing: texts for the records.
    - validation: samples held out of the training data; None, none.
    - augmentation: what training does to its samples anew in every epoch; None, nothing.
    - blank: what a raw value of 0 (black) has become, a number for each channel (channels, 1, 1) or one for all; 0.
    - classes: the names of the labels 0, 1, ...; None where they have no names.
    """

    train: Split
    test: Split
    num_classes: int
    name: str
    preprocessing: str = "none"
    validation: Split | None = None
    augmentation: Augmentation | None = None
    blank: Tensor = field(default_factory=lambda: torch.zeros(()))
    classes: tuple[str, ...] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """Return all splits on `device`, inputs as `dtype`."""
        return replace(self._map_splits(lambda split: split.to(device, dtype)), blank=self.blank.to(device, dtype))

    def lay_out(self, memory_format: torch.memory_format) -> Dataset:
        """Return the data set with images in a memory format."""
        return self._map_splits(lambda split: split.lay_out(memory_format))

    def _map_splits(self, change: Callable[[Split], Split]) -> Dataset:
        """Return the data set with `change` applied to all splits."""
        validation = None if self.validation is None else change(self.validation)
        return replace(self, train=change(self.train), test=change(self.test), validation=validation)


@dataclass(frozen=True)
class Computation:
    """How minibatches are computed; evaluation is in the network's own type.

    - half: convolutions and matrix products in bfloat16 (autocast), images channels_last; false.
    - graphs: batches of one size replayed as CUDA graphs on a GPU; false.
    """

    half: bool = False
    graphs: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Return a context within which the network is computed as `half` says."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.half)

    def lay_out(self, x: Tensor) -> Tensor:
        """Lay out images (n, channels, height, width) in the memory format that is fastest; leave anything else."""
        return x.contiguous(memory_format=torch.channels_last) if self.half and x.dim() == 4 else x


@dataclass(frozen=True)
class Problem:
    """Minimise the loss of `model` on `data` while the weights of `plan` are compressed.

    Solvers leave a problem untouched: they work on copies of `model`.

    - model, data, plan: the network, its data, and which weights are compressed how.
    - loss: takes logits (n, classes) and labels (n,) and gives their mean loss; cross-entropy, as in the papers.
    - computation: how minibatches are computed.
    - target: the size that solvers which remove channels reach: `ratio`, `bits` or `macs`, and the number; None, none.
    - round_to: they leave each layer a multiple of so many channels; 1, any number.
    """

    model: nn.Module
    data: Dataset
    plan: Plan
    loss: Loss = field(default=nn.functional.cross_entropy)
    computation: Computation = field(default_factory=Computation)
    target: tuple[str, float] | None = None
    round_to: int = 1

    @property
    def device(self) -> torch.device:
        """Where model and data live."""
        return self.data.train.x.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of model and data."""
        return self.data.train.x.dtype


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights a compression may act on: every parameter of two or more dimensions, in the model's order."""
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() >= 2}


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `model` in evaluation mode with some parameters replaced by `weights`."""
    network = copy.deepcopy(model).eval()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    return network
