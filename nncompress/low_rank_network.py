"""Layers of low rank: a convolution or a linear layer as two that are smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nncompress.compressions.truncated_svd import exact_svd

ROUNDING = 1e-9
"""How far below a whole number a rank may lie: (1 - 0.9) 10 is 0.99999..."""


def rank_at(part: float, shape: Sequence[int]) -> int:
    """max(1, floor((1 - part) m)), m the smaller side of a weight (c_out, ...) as a matrix with c_out rows."""
    return max(1, math.floor((1 - part) * min(shape[0], math.prod(shape[1:])) + ROUNDING))


@torch.no_grad()
def factorised(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """Two layers that compute what `layer` does with the best approximation U diag(s) V of its weight of that rank.

    The first has the weights diag(s) V, the kernel, stride, padding and dilation of the layer and no bias, the second
    (1x1) the weights U and the bias. The convolution must be without groups. arXiv 2205.11921.
    """
    U, s, V = exact_svd(layer.weight.detach().flatten(1), rank)
    first, second = _convolutions(layer, rank) if isinstance(layer, nn.Conv2d) else _linear(layer, rank)
    first.weight = _parameter(s.unsqueeze(1) * V, first.weight)
    second.weight = _parameter(U, second.weight)
    if layer.bias is not None:
        second.bias = _parameter(layer.bias, layer.bias)
    return nn.Sequential(first, second)


def _convolutions(layer: nn.Conv2d, rank: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Without values: random ones would change the global generator."""
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    return first, nn.Conv2d(rank, layer.out_channels, 1, bias=False, device="meta")


def _linear(layer: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    first = nn.Linear(layer.in_features, rank, bias=False, device="meta")
    return first, nn.Linear(rank, layer.out_features, bias=False, device="meta")


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().reshape(like.shape).clone(memory_format=torch.contiguous_format))
