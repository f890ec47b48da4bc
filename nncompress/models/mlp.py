"""Multilayer perceptrons, with shortcuts or without, and LeNet-5."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from nncompress.models.common import initialise

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """Linear layers fc1, fc2, ... with an activation between them; logits (n, num_classes) out.

    - input_shape: that of one sample, which is flattened.
    - widths: the hidden layers' sizes; 256 and 256 are this package's choice, small enough for a CPU.
    - activation: one of `ACTIVATIONS`; relu.
    - bias: whether the layers have biases; true.
    - initial: one of `models.common.SCHEMES`; torch, PyTorch's own.

    Raises ValueError for a width below 1 or an unknown activation or scheme.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (256, 256),
        activation: str = "relu",
        bias: bool = True,
        initial: str = "torch",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
        if any(width < 1 for width in widths):
            raise ValueError(f"widths must be at least 1, found {list(widths)}")
        super().__init__()
        sizes = [math.prod(input_shape), *widths, num_classes]
        self.flatten = nn.Flatten()
        for k in range(1, len(sizes)):
            self.add_module(f"fc{k}", nn.Linear(sizes[k - 1], sizes[k], bias=bias))
            if k < len(sizes) - 1:
                self.add_module(f"act{k}", ACTIVATIONS[activation]())
        initialise(self, initial)


class ResidualMLP(nn.Module):
    """stem (Linear, ReLU), then `blocks` blocks x + ReLU(fc(x)), then the output layer head; logits (n, num_classes).

    - input_shape: that of one sample, which is flattened.
    - width: the units of every hidden layer; 256 is this package's choice.
    - blocks: how many blocks; 3 is this package's choice.
    - bias: whether the layers have biases; true.

    Raises ValueError for a width or a number of blocks below 1.
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
        """Return the logits (n, num_classes) of x (n, *input_shape)."""
        x = self.act(self.stem(x.flatten(1)))
        for block in self.blocks:
            x = x + self.act(block(x))
        logits: Tensor = self.head(x)
        return logits


class LeNet5(nn.Module):
    """conv 20@5x5, pool, conv 50@5x5, pool, 500 hidden ReLU units; 431 080 parameters on 28x28 grey images.

    Source: Caffe's LeNet for MNIST, as used in Han et al. 2015 and the LC papers.

    - dropout: of the hidden units; 0, none.
    - initial: one of `models.common.SCHEMES`; torch, PyTorch's own.

    Raises ValueError for another scheme and for images (channels, height, width) too small for two 5x5 convolutions
    and poolings.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, dropout: float = 0.0, initial: str = "torch"
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise ValueError(
                f"lenet5 needs images (channels, height, width) of at least 16x16, found {tuple(input_shape)}; "
                "choose such a data set (dataset=mnist) and leave dataset.flatten=false"
            )
        channels, height, width = input_shape
        flat = 50 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(flat, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        initialise(self, initial)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, num_classes) of x (n, channels, height, width)."""
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        logits: Tensor = self.fc2(self.dropout(self.act(self.fc1(x.flatten(1)))))
        return logits
