"""What every measurement of a compact network begins with: random inputs, and the size of the dense network."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.compact.artefact import Artefact


def samples(artefact: Artefact, count: int, seed: int = 0) -> Tensor:
    """Random inputs (count, *input_shape) of the network, normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *artefact.description["input_shape"], generator=generator)


def dense_bytes(artefact: Artefact) -> int:
    """Bytes of the parameters and buffers of the dense network, 4 for each number."""
    state: dict[str, Tensor] = artefact.dense().state_dict()
    return 4 * sum(tensor.numel() for tensor in state.values())
