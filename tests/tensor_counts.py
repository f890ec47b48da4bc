"""Products of tensors with their multiply-accumulates counted, and errors of tensor formats."""

import math

import torch
from problems import randn
from torch import Tensor
from torch.nn.functional import conv2d

from nncompress.compressions.products import Use

SHAPE, STRIDE, PADDING = (6, 5, 3, 2), (2, 1), (1, 1)
IMAGE = (1, 5, 7, 6)


def relative_error(compression, w: Tensor, **start) -> float:
    """‖w - Δ(Π(w))‖ / ‖w‖."""
    rebuilt = compression.decompress(compression.compress(w, **start))
    return float(torch.linalg.vector_norm(w - rebuilt) / torch.linalg.vector_norm(w))


class Counting:
    """einsum that adds up its multiply-accumulates: the product of all sizes that occur."""

    def __init__(self):
        self.macs = 0

    def __call__(self, spec: str, a: Tensor, b: Tensor) -> Tensor:
        left, right = spec.split("->")[0].split(",")
        self.macs += math.prod(dict(zip(left + right, (*a.shape, *b.shape), strict=True)).values())
        return torch.einsum(spec, a, b)


def convolution(x: Tensor, kernel: Tensor, count: Counting, **settings) -> Tensor:
    """A convolution, counted."""
    y = conv2d(x, kernel, **settings)
    count.macs += y.numel() * kernel[0].numel()
    return y


def conv_use() -> tuple[Tensor, Use]:
    """An input of a convolution with a kernel of SHAPE, and what it is used for."""
    x = randn(*IMAGE, seed=8)
    y = conv2d(x, randn(*SHAPE), stride=STRIDE, padding=PADDING)
    return x, Use(SHAPE, IMAGE[2:], tuple(y.shape[2:]))


def weights() -> dict[str, Tensor]:
    """Two layers and an output layer."""
    return {"fc1.weight": randn(8, 6), "fc2.weight": randn(8, 8, seed=1), "out.weight": randn(3, 8, seed=2)}
