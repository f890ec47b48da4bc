"""Block-circulant weights: every row of a block is the row above, shifted by one place.

Cheng et al., "An exploration of parameter redundancy in deep networks with circulant projections", ICCV 2015; Ding et
al., "CirCNN: accelerating and compressing deep neural networks using block-circulant weight matrices", MICRO 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nncompress.compressions.base import Factorised
from nncompress.compressions.plan import Plan, Task, choose
from nncompress.compressions.views import AsTensor


class Diagonals(NamedTuple):
    """A value for each wrapped diagonal of each block, and the shape of the weight that they fill."""

    values: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Circulant(Factorised[Diagonals]):
    """Weights (outputs, inputs, ...) whose blocks of `block` x `block` outputs and inputs are circulant matrices.

    Entry (i, j) of a block depends on (j - i) mod `block` alone. Blocks at the border are cut off; the positions of a
    kernel have matrices of their own. Such weights are a linear space, in which the entries of a wrapped diagonal are
    equal: Π is their mean, exact. Raises ValueError for a block below 1.
    """

    exact: ClassVar[bool] = True

    block: int

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be at least 1, found {self.block}")

    def project(self, w: Tensor, mu: float, start: Diagonals | None) -> Diagonals:
        label, counts = labels(tuple(w.shape), self.block, w.device)
        sums = w.new_zeros(len(counts)).index_add_(0, label.flatten(), w.flatten())
        return Diagonals(sums / counts, tuple(w.shape))

    def decompress(self, theta: Diagonals) -> Tensor:
        return theta.values[labels(theta.shape, self.block, theta.values.device)[0]]

    def layer(self, theta: Diagonals, layer: nn.Module) -> nn.Module | None:
        """Linear layers of whole blocks multiply by Fourier transforms; all others by the rebuilt weight."""
        if not isinstance(layer, nn.Linear) or any(n % self.block for n in theta.shape):
            return None
        rows, columns = (n // self.block for n in theta.shape)
        return CirculantLinear(theta.values.reshape(rows, columns, self.block), layer.bias)

    def sensitivity(self, theta: Diagonals) -> Diagonals:
        """A value moves as many weights as its diagonal has."""
        counts = labels(theta.shape, self.block, theta.values.device)[1]
        return Diagonals(counts.to(theta.values.dtype).sqrt(), theta.shape)

    def check(self, shape: Sequence[int]) -> None:
        if len(shape) < 2:
            raise ValueError(f"circulant needs outputs and inputs, found a tensor of shape {list(shape)}")

    def clipped(self, shape: Sequence[int]) -> str | None:
        most = max(shape[:2])
        words = f"block {self.block} is above the {most} of its shape {list(shape)}: its values are not shared"
        return words if self.block > most else None


class CirculantLinear(nn.Module):
    """A Linear layer of circulant blocks: x (..., inputs) to (..., outputs), each block a product of spectra.

    values (row blocks, column blocks, block): the first row of each block. What does not depend on x is computed once.
    """

    def __init__(self, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.columns, self.block = values.shape[1:]
        self.spectrum = torch.fft.rfft(values).conj()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        spectra = torch.fft.rfft(x.unflatten(-1, (self.columns, self.block)))
        y = torch.fft.irfft(torch.einsum("...jf,ijf->...if", spectra, self.spectrum), n=self.block).flatten(-2)
        return y if self.bias is None else y + self.bias


@lru_cache(maxsize=64)
def labels(shape: tuple[int, ...], block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which value each entry of a weight is, shaped like it, and how many entries each value has."""
    outputs, inputs, *kernel = (torch.arange(n, device=device) for n in shape)
    i, j = outputs[:, None], inputs[None, :]
    place = (i // block * -(-shape[1] // block) + j // block) * block + (j - i) % block
    for positions in kernel:
        place = place[..., None] * len(positions) + positions
    # A block that is cut off may lack diagonals: those that occur are numbered anew.
    _, label, counts = torch.unique(place, return_inverse=True, return_counts=True)
    return label, counts


def circulant(weights: Mapping[str, Tensor], *, block: int = 8, layers: str | Sequence[str] = "hidden") -> Plan:
    """Return circulant blocks in each chosen weight."""
    names = choose(weights, layers)
    tasks = [Task((name,), AsTensor(tuple(weights[name].shape)), Circulant(block)) for name in names]
    return Plan.of(tasks, weights)
