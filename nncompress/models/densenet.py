"""Densely connected networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nncompress.models.common import head, image_channels, initialise_normed, scale_channels
from nncompress.surgery.channels import Scale

BLOCKS = 3


class DenseLayer(nn.Module):
    """x with the `growth` channels that batch norm, ReLU and a 3x3 convolution make of it behind its own."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(before)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, before + growth, height, width) for x (n, before, height, width)."""
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution that keeps the number of channels, 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, channels, height // 2, width // 2) for x (n, channels, height, width)."""
        return functional.avg_pool2d(self.conv(self.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """3x3 convolution to 2 growth channels, three dense blocks with transitions between, batch norm, averages, linear.

    Huang et al., "Densely connected convolutional networks" (2017), without bottlenecks and compression; 1 059 298
    parameters by default on 10 classes.

    - depth: 3n + 4 with n layers in each block; 40, as in the slimming papers.
    - growth: the channels that a layer adds; 12, as in the slimming papers.
    - width: multiplies the growth; 1.
    - initial_scale: the first scale of all batch norms; 0.5, as in the slimming papers.

    Raises ValueError for another depth, a growth below 1, and for inputs that are no images (channels, height, width)
    of at least 4x4.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 40,
        growth: int = 12,
        width: float = 1.0,
        initial_scale: float = 0.5,
    ) -> None:
        super().__init__()
        in_block, rest = divmod(depth - 4, BLOCKS)
        if rest or in_block < 1:
            raise ValueError(f"depth must be 3n + 4 with n at least 1, found {depth}; choose 22 or 40, for example")
        if growth < 1:
            raise ValueError(f"growth must be at least 1, found {growth}")
        growth = scale_channels(growth, width)
        before = 2 * growth
        self.conv1 = nn.Conv2d(image_channels("densenet", input_shape, 4), before, 3, padding=1, bias=False)
        self.features = nn.Sequential()
        for block in range(1, BLOCKS + 1):
            for k in range(1, in_block + 1):
                self.features.add_module(f"dense{block}_{k}", DenseLayer(before, growth))
                before += growth
            if block < BLOCKS:
                self.features.add_module(f"transition{block}", Transition(before))
        self.head = head(before, num_classes)
        initialise_normed(self, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, num_classes) of x (n, channels, height, width)."""
        logits: Tensor = self.head(self.features(self.conv1(x)))
        return logits

    def scales(self) -> list[Scale]:
        """Return all batch norms; each reads a concatenation that others read too."""
        parts = [f"features.{name}" for name, _ in self.features.named_children()]
        return [*(Scale(f"{part}.bn", None, (f"{part}.conv",)) for part in parts), Scale("head.bn", None, ("head.fc",))]
