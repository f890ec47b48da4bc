"""Sizes and operations counted as in published tables of network slimming, to compare with them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from nncompress.surgery.channels import norm_of, scales_of
from nncompress.surgery.uses import watch


def params_with_selection(model: nn.Module) -> int:
    """Count all parameters and, for each scale without a producer, one number per channel of its batch norm.

    The README of the PyTorch re-implementation of network slimming (github.com/Eric-mingjie/network-slimming) agrees
    with this for ResNet-164 and DenseNet-40: 0/1 vectors that select channels count as parameters there.
    """
    selected = sum(norm_of(model, scale).num_features for scale in scales_of(model) if scale.producer is None)
    return sum(p.numel() for p in model.parameters()) + selected


def script_flops(model: nn.Module, x: Tensor) -> int:
    """Count the operations of the modules on one sample x (1 x input_shape), additions and multiplications apart.

    Convolutions and linear layers: 2 for each weight and position, 1 for each bias and position; batch norm: 2 for each
    element; ReLU: 1; pooling: the size of its window for each output. What is no module counts nothing, so VGG's
    average and DenseNet's transitions pool for free, as in the script of the proximal network slimming repository.
    """
    found: list[int] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(_operations(module, args[0][0].numel(), output[0].numel()))

    watch(model, x, hook, (nn.Module,))
    return sum(found)


def _operations(module: Any, inputs: int, outputs: int) -> int:
    """Return those of one use of a module with so many elements in and out of a sample."""
    match module:
        case nn.Conv2d() | nn.Linear():
            return (2 * math.prod(module.weight.shape[1:]) + (module.bias is not None)) * outputs
        case nn.BatchNorm2d():
            return 2 * outputs
        case nn.ReLU():
            return outputs
        case nn.MaxPool2d() | nn.AvgPool2d():
            return _area(module.kernel_size) * outputs
        case nn.AdaptiveAvgPool2d():
            return inputs
        case _:
            return 0


def _area(size: int | tuple[int, int]) -> int:
    return size * size if isinstance(size, int) else math.prod(size)
