"""The network that is deployed when channels are dead: without them, where they can be taken out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nncompress.channels import declares_scales, kept_in
from nncompress.compact.dependency import pruned
from nncompress.compact.removal import removed
from nncompress.errors import Unsupported

TOLERANCE = 1e-5
"""Largest difference of the outputs of the masked and the smaller network, relative to the largest output."""


def smaller(network: nn.Module, x: Tensor) -> tuple[nn.Module, str | None]:
    """`network` without its dead channels; or itself, masked, and why in words. x (n, *input_shape): some samples."""
    if all(bool(mask.all()) for mask in kept_in(network).values()):
        return network, None
    try:
        found = removed(network) if declares_scales(network) else pruned(network, x)
        _check_equal(network, found, x)
    except Unsupported as error:
        return network, f"the network stays as large as it was, its dead channels masked: {error}"
    return found, None


@torch.no_grad()
def _check_equal(network: nn.Module, found: nn.Module, x: Tensor) -> None:
    a, b = (model(x) for model in (network.eval(), found.eval()))
    difference, largest = float((a - b).abs().max()), float(a.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise Unsupported(
            f"what is left must compute the same, found outputs of up to {largest:.3g} that differ by "
            f"{difference:.3g}; correct the network's scales()"
        )
