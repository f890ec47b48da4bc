"""A residual perceptron with batch norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from nncompress.surgery.channels import Scale


class Block(nn.Module):
    """x + fc2(ReLU(norm(fc1(x)))) for x (n, width); `inner` units between the two layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner, bias=False)
        self.norm = nn.BatchNorm1d(inner)
        self.fc2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape as x."""
        skipped: Tensor = x + self.fc2(self.norm(self.fc1(x)).relu())
        return skipped


class ResidualNet(nn.Module):
    """stem, `blocks` blocks with a skip each, head; logits (n, num_classes) of x (n, *input_shape).

    `input_shape` and `num_classes` come from the data set. Raises ValueError for a size below 1.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: int = 64, inner: int = 64, blocks: int = 2
    ) -> None:
        if min(width, inner, blocks) < 1:
            raise ValueError(f"width, inner and blocks must be at least 1, found {width}, {inner} and {blocks}")
        super().__init__()
        self.stem = nn.Linear(math.prod(input_shape), width)
        self.blocks = nn.Sequential(*(Block(width, inner) for _ in range(blocks)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, num_classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x.flatten(1)).relu()))
        return logits

    def scales(self) -> list[Scale]:
        """Return the units that slimming may take out: those between the two layers of a block."""
        names = [f"blocks.{name}" for name, _ in self.blocks.named_children()]
        return [Scale(f"{name}.norm", f"{name}.fc1", (f"{name}.fc2",)) for name in names]
