"""The convolutional network of the NN-BCD paper."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class NNBCDCNN(nn.Module):
    """conv1, ReLU, then Linear layers fc2, fc3, ... with ReLU between; logits (n, num_classes) of images out.

    The filter index runs fastest in the input of fc2. The defaults are those of arXiv 2303.06815 on MNIST.
    Raises ValueError for inputs that are no images (channels, height, width) of at least the filter's size.

    - filters, kernel_size, stride, padding: the convolution; 32 filters 3x3, stride 2, no padding.
    - pool: above 1, average pooling of that size behind the first ReLU; 1, none.
    - widths: the hidden layers' sizes; 1024 and 1024.
    - bias: whether all layers have biases; false.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        filters: int = 32,
        kernel_size: int = 3,
        stride: int = 2,
        padding: int = 0,
        pool: int = 1,
        widths: Sequence[int] = (1024, 1024),
        bias: bool = False,
    ) -> None:
        if min(filters, kernel_size, stride, pool) < 1:
            found = f"{filters}, {kernel_size}, {stride}, {pool}"
            raise ValueError(f"filters, kernel_size, stride and pool must be at least 1, found {found}")
        super().__init__()
        sizes = [(size + 2 * padding - kernel_size) // stride + 1 for size in input_shape[1:]]
        if len(input_shape) != 3 or min(sizes) < pool:
            raise ValueError(
                f"nnbcd_cnn needs images (channels, height, width) of at least {kernel_size}x{kernel_size} pixels that "
                f"leave {pool}x{pool} to the pooling, found {tuple(input_shape)}; choose such data "
                "(dataset=mnist) and leave dataset.flatten=false"
            )
        self.conv1 = nn.Conv2d(input_shape[0], filters, kernel_size, stride=stride, padding=padding, bias=bias)
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.act = nn.ReLU()
        inputs = [filters * (sizes[0] // pool) * (sizes[1] // pool), *widths]
        for k, (before, after) in enumerate(zip(inputs, [*widths, num_classes], strict=True), 2):
            self.add_module(f"fc{k}", nn.Linear(before, after, bias=bias))
        self.hidden = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, num_classes) of x (n, channels, height, width)."""
        x = self.pool(self.act(self.conv1(x))).permute(0, 2, 3, 1).flatten(1)
        for k in range(2, self.hidden + 2):
            x = self.act(self.get_submodule(f"fc{k}")(x))
        logits: Tensor = self.get_submodule(f"fc{self.hidden + 2}")(x)
        return logits
