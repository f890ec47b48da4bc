"""Residual multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """stem (Linear, ReLU), then `blocks` blocks x + ReLU(fc(x)), then the output layer head; logits (n, num_classes).

    `input_shape` is that of one sample and is flattened; all hidden layers have `width` units. Raises ValueError for a
    width or a number of blocks below 1.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: int = 256, blocks: int = 3, bias: bool = True
    ) -> None:
        if width < 1 or blocks < 1:
            raise ValueError(f"width and blocks must be at least 1, found {width} and {blocks}")
        super().__init__()
        self.stem = nn.Linear(math.prod(input_shape), width, bias=bias)
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(blocks))
        self.head = nn.Linear(width, num_classes, bias=bias)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, num_classes) of x (n, *input_shape)."""
        x = self.act(self.stem(x.flatten(1)))
        for block in self.blocks:
            x = x + self.act(block(x))
        logits: Tensor = self.head(x)
        return logits
