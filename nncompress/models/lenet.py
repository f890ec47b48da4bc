"""LeNet-5 in the form shipped with Caffe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nncompress.models.initial import initialise


class LeNet5(nn.Module):
    """conv 20@5x5, pool, conv 50@5x5, pool, 500 hidden ReLU units; 431 080 parameters on 28x28 grey images.

    Source: Caffe's LeNet for MNIST, as used in Han et al. 2015 and the LC papers. `initial` is one of
    `models.initial.SCHEMES`. Raises ValueError for another scheme and for images (channels, height, width) too small
    for two 5x5 convolutions and poolings.
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
        """Logits (n, num_classes) of x (n, channels, height, width)."""
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        logits: Tensor = self.fc2(self.dropout(self.act(self.fc1(x.flatten(1)))))
        return logits
