"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from nncompress.models.initial import initialise

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """Linear layers fc1, fc2, ... with an activation between them; logits (n, num_classes) out.

    `input_shape` is that of one sample and is flattened; `widths` are the hidden layers' sizes; `initial` is one of
    `models.initial.SCHEMES`. Raises ValueError for a width below 1 or an unknown activation or scheme.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (256, 256),
        activation: str = "relu",
        bias: bool = True,
        initial: str = "torch",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
        if any(width < 1 for width in widths):
            raise ValueError(f"widths must be at least 1, found {list(widths)}")
        super().__init__()
        sizes = [math.prod(input_shape), *widths, num_classes]
        self.flatten = nn.Flatten()
        for k in range(1, len(sizes)):
            self.add_module(f"fc{k}", nn.Linear(sizes[k - 1], sizes[k], bias=bias))
            if k < len(sizes) - 1:
                self.add_module(f"act{k}", ACTIVATIONS[activation]())
        initialise(self, initial)
