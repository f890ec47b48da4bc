"""What every measurement of a compact network begins with: random inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.compact.artefact import Artefact


def samples(artefact: Artefact, count: int, seed: int = 0) -> Tensor:
    """Random inputs (count, *input_shape) of the network, normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *artefact.description["input_shape"], generator=generator)
