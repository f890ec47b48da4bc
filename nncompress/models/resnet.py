"""ResNet-18 for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nncompress.models.common import image_channels, initialise_normed, scale_channels
from nncompress.surgery.channels import Scale


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))), the shortcut 1x1 with batch norm where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut.add_module("conv", nn.Conv2d(before, after, 1, stride=stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum (n, after, height / stride, width / stride) for x (n, before, height, width)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(self.shortcut(x) + y)
        return out


class ResNet18(nn.Module):
    """3x3 convolution without pooling, four stages of two blocks of 64, 128, 256, 512 channels, averages, linear.

    He et al., "Deep residual learning for image recognition" (2016), with the stem for images of 32x32; 11 173 962
    parameters on 10 classes.
    Raises ValueError for another width, and for inputs that are no images (channels, height, width) of at least 8x8.

    - width: multiplies all numbers of channels, above 0; 1.
    - initial_scale: the first scale of all batch norms; 1, PyTorch's own.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: float = 1.0, initial_scale: float = 1.0
    ) -> None:
        super().__init__()
        before = scale_channels(64, width)
        self.conv1 = nn.Conv2d(image_channels("resnet18", input_shape, 8), before, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential()
        for stage, channels in enumerate((64, 128, 256, 512)):
            for k in range(2):
                after = scale_channels(channels, width)
                self.blocks.append(BasicBlock(before, after, 2 if stage > 0 and k == 0 else 1))
                before = after
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)
        initialise_normed(self, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, num_classes) of x (n, channels, height, width)."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits

    def scales(self) -> list[Scale]:
        """Return the first batch norm of each block; the others act on the residual stream, which all blocks share."""
        blocks = [f"blocks.{name}" for name, _ in self.blocks.named_children()]
        return [Scale(f"{block}.bn1", f"{block}.conv1", (f"{block}.conv2",)) for block in blocks]
