"""Initial weights of Linear and Conv2d layers."""

from __future__ import annotations

import torch
from torch import nn

SCHEMES = ("torch", "xavier")


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
