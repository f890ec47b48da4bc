"""A network as a chain of linear layers with piecewise linear activations between them, as NN-BCD sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nncompress.solvers.linear_map import LinearMap


@dataclass(frozen=True)
class Layer:
    """Layer i: U_i = map(V_{i-1}) Wᵀ + 1 bᵀ (+ V_inner), V_i = sigma(U_i) (+ V_outer).

    sigma(u) = u for u >= 0, slope * u below. `inner` and `outer` are the indices of earlier layers (0: the input) that
    identity skips come from.
    """

    weight: str
    bias: str | None
    slope: float
    map: LinearMap
    inner: int | None = None
    outer: int | None = None


@dataclass(frozen=True)
class Chain:
    """The layers 1, ..., N in order; the last one has no activation (slope 1) and no skip."""

    layers: tuple[Layer, ...]

    def leaving(self, j: int) -> list[tuple[int, bool]]:
        """The layers that V_j skips to, and whether it is added to their U (else to their V)."""
        inner = [(i, True) for i, layer in enumerate(self.layers, 1) if layer.inner == j]
        return inner + [(i, False) for i, layer in enumerate(self.layers, 1) if layer.outer == j]


def activation(u: Tensor, slope: float, out: Tensor | None = None) -> Tensor:
    """sigma(u), elementwise, as a new tensor or written to `out`."""
    if slope == 0.0:
        return torch.clamp_min(u, 0, out=out)
    result: Tensor = nn.functional.leaky_relu(u, slope)
    return result if out is None else out.copy_(result)
