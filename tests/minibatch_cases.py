"""Small images, a small convolutional network, and epochs of minibatches on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from problems import F64, problem
from torch import Generator, Tensor, nn

from nncompress.compressions.plan import none
from nncompress.data.augmentation import Augmentations, Crop, Flip
from nncompress.problem import Dataset, Split
from nncompress.solvers.training.minibatches import Minibatches, epoch

BLANK = torch.tensor(-0.7, dtype=F64)


CHANGES = Augmentations(parts=[Crop(padding=1), Flip()])


class Seen(nn.Module):
    """Keeps what it passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x.detach().clone(memory_format=torch.preserve_format))
        return x


def images(n: int = 10, dtype: torch.dtype = F64, **settings: Any) -> Dataset:
    """Random images 2x5x4 of three classes."""
    g = torch.Generator().manual_seed(7)
    split = Split(torch.randn(n, 2, 5, 4, generator=g, dtype=F64).to(dtype), torch.randint(3, (n,), generator=g))
    return Dataset(split, split, 3, "images", blank=BLANK.to(dtype), **settings)


def convolutional(dtype: torch.dtype = F64) -> nn.Sequential:
    """Two convolutions with batch norm, and what the second one saw."""
    torch.manual_seed(0)
    blocks = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*blocks, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).to(dtype)


def descent(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def generator(seed: int = 3) -> Generator:
    return torch.Generator().manual_seed(seed)


def trained(data: Dataset, size: int = 4, epochs: int = 1, **settings: Any) -> tuple[nn.Module, list[Tensor]]:
    """The small network after some epochs and their losses; settings of `Minibatches` and of `Problem`."""
    ours = {key: settings.pop(key) for key in ("smoothing", "mixup") if key in settings}
    p = replace(problem(data, convolutional(data.train.x.dtype), none), **settings)
    optimizer, about = descent(p.model), Minibatches(size, generator(), **ours)
    return p.model, [epoch(p, p.model, about, optimizer=optimizer) for _ in range(epochs)]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, one), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
