"""Points on noisy rings: made from a seed, no file."""

from __future__ import annotations

import math

import torch
from torch import Generator

from nncompress.problem import Dataset, Split


def rings(
    *, train_size: int = 600, test_size: int = 600, classes: int = 3, noise: float = 0.3, seed: int = 0
) -> Dataset:
    """Return points (2,) of the plane around circles of radius 1, 2, ...; the label is the circle.

    Angles are uniform, distances from the centre normal around the radius with standard deviation `noise`; coordinates
    are divided by the largest radius. Both splits are independent draws. Raises ValueError for a size or a number of
    classes below 1 and a negative noise.
    """
    if min(train_size, test_size, classes) < 1 or noise < 0:
        raise ValueError(
            "train_size, test_size and classes must be at least 1 and noise at least 0, found "
            f"{train_size}, {test_size}, {classes} and {noise}"
        )
    generator = Generator().manual_seed(seed)

    def drawn(n: int) -> Split:
        y = torch.randint(classes, (n,), generator=generator)
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        radius = y + 1 + noise * torch.randn(n, generator=generator)
        return Split(torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None] / classes, y)

    train, test = drawn(train_size), drawn(test_size)
    names = tuple(f"ring {k + 1}" for k in range(classes))
    return Dataset(train, test, classes, "rings", f"noise {noise}, seed {seed}", classes=names)
