"""What networks share: their first weights, and the images they take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SCHEMES = ("torch", "xavier")
"""How weights are drawn at first, see `initialise`."""


@torch.no_grad()
def initialise(model: nn.Module, scheme: str) -> None:
    """Draw the weights anew: `xavier` uniform with zero biases (Glorot and Bengio 2010); `torch` leaves PyTorch's own.

    Raises ValueError for another scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"initial must be one of {', '.join(SCHEMES)}, found {scheme!r}")
    for module in model.modules() if scheme == "xavier" else ():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def initialise_normed(model: nn.Module, initial_scale: float) -> None:
    """Draw convolutions from N(0, 2/(k² c_out)) (He et al. 2015, fan out); scale batch norms by `initial_scale`."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, initial_scale)


def image_channels(network: str, input_shape: Sequence[int], least: int) -> int:
    """Return the channels of images (channels, height, width); `least` is the smallest height and width that will do.

    Raises ValueError for samples of another shape, naming the network.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise ValueError(
            f"{network} needs images (channels, height, width) of at least {least}x{least}, found "
            f"{tuple(input_shape)}; choose such a data set (dataset=cifar10) and leave dataset.flatten=false"
        )
    return input_shape[0]


def scale_channels(channels: int, width: float) -> int:
    """Multiply the channels by `width`, to at least one. Raises ValueError for a width that is not above 0."""
    if not width > 0:
        raise ValueError(f"width must be above 0, found {width}")
    return max(1, round(channels * width))


def head(channels: int, num_classes: int) -> nn.Sequential:
    """Chain what follows the last block: batch norm, ReLU, the average over the image, a linear layer."""
    layers = nn.Sequential()
    layers.add_module("bn", nn.BatchNorm2d(channels))
    layers.add_module("relu", nn.ReLU(inplace=True))
    layers.add_module("pool", nn.AdaptiveAvgPool2d(1))
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("fc", nn.Linear(channels, num_classes))
    return layers
