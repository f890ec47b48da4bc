"""A network as a chain of linear layers, and the linear map of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ChainLayer:
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

    layers: tuple[ChainLayer, ...]

    def leaving(self, j: int) -> list[tuple[int, bool]]:
        """Return the layers that V_j skips to, and whether it is added to their U (else to their V)."""
        inner = [(i, True) for i, layer in enumerate(self.layers, 1) if layer.inner == j]
        return inner + [(i, False) for i, layer in enumerate(self.layers, 1) if layer.outer == j]


def activation(u: Tensor, slope: float, out: Tensor | None = None) -> Tensor:
    """Return sigma(u), elementwise, as a new tensor or written to `out`."""
    if slope == 0.0:
        return torch.clamp_min(u, 0, out=out)
    result: Tensor = nn.functional.leaky_relu(u, slope)
    return result if out is None else out.copy_(result)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """U = rows(V) Wᵀ for a weight W (outputs x inputs), at `positions` places of every sample.

    V is n x width and U n x (positions * outputs), the output index running fastest. `index`
    (positions x inputs x q) says which entries of a sample are averaged (over q) to make each entry of its rows; the
    entry `width` stands for a padded zero. None: the rows are V itself.
    """

    width: int
    positions: int
    index: Tensor | None

    @classmethod
    def of(cls, width: int, index: Tensor) -> LinearMap:
        """Return the map of an index (..., inputs, q), leading dimensions being positions."""
        positions = index[..., 0, 0].numel()
        straight = positions == 1 and index.shape[-1] == 1
        whole = straight and torch.equal(index.flatten(), torch.arange(width))
        return cls(width, positions, None if whole else index.reshape(positions, *index.shape[-2:]).contiguous())

    def to(self, device: torch.device) -> LinearMap:
        """Return the same map for tensors on `device`."""
        return self if self.index is None else LinearMap(self.width, self.positions, self.index.to(device))

    def rows(self, V: Tensor) -> Tensor:
        """Return (n * positions) x inputs: V itself, or what the weight sees at each position of each sample."""
        if self.index is None:
            return V
        _, inputs, q = self.index.shape
        rows = nn.functional.pad(V, (0, 1)).index_select(1, self.index.flatten()).view(-1, inputs, q)
        return rows.squeeze(2) if q == 1 else rows.mean(dim=2)

    def product(self, V: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return rows(V) Wᵀ + 1 bᵀ, n x (positions * outputs)."""
        rows = self.rows(V)
        product = torch.mm(rows, W.T) if b is None else torch.addmm(b, rows, W.T)
        return product.view(len(V), -1)

    def matrix(self, W: Tensor) -> Tensor:
        """Return the matrix B with U = V Bᵀ, (positions * outputs) x width: W itself where the rows are V."""
        if self.index is None:
            return W
        positions, inputs, q = self.index.shape
        B = W.new_zeros(positions, len(W), self.width + 1)
        shape = (positions, len(W), inputs * q)
        index = self.index.view(positions, 1, -1).expand(shape)
        B.scatter_add_(2, index, (W / q).repeat_interleave(q, dim=1).expand(shape))
        return B.view(-1, self.width + 1)[:, : self.width].contiguous()


def windows(index: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)) -> Tensor:
    """Return the windows of an index (channels, height, width, q), (height', width', channels, k_h, k_w, q)."""
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), 1):
        index = index.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
    return index.permute(1, 2, 0, 4, 5, 3)  # from (channels, height', width', q, kernel_h, kernel_w)


def pad_index(index: Tensor, padding: Sequence[int], zero: int) -> Tensor:
    """Return an index (channels, height, width, q) with `zero` around it: padding left, right, top and bottom."""
    return nn.functional.pad(index.movedim(3, 0), tuple(padding), value=zero).movedim(0, 3)
