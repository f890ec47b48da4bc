"""The network that is deployed when channels are dead: without them, where they can be taken out."""

from __future__ import annotations

from torch import Tensor, nn

from nncompress.channels import declares_scales, kept_in
from nncompress.compact.dependency import pruned
from nncompress.compact.removal import check_equal, kind_of, removed
from nncompress.errors import Unsupported


def smaller(network: nn.Module, x: Tensor) -> tuple[nn.Module, str | None]:
    """`network` without its dead channels; or itself, masked, and why in words. x (n, *input_shape): some samples."""
    if all(bool(mask.all()) for mask in kept_in(network).values()):
        return network, None
    try:
        if not declares_scales(network):
            return pruned(network, x), None
        found = _removed(network)
        check_equal(network, found, x)
    except Unsupported as error:
        return network, f"no channel is taken out: {error}"
    return found, None


def _removed(network: nn.Module) -> nn.Module:
    try:
        return removed(network)
    except Exception as error:  # what a network says of itself may be anything
        raise Unsupported(
            f"scales() must name the layers that make and read each channel, found {kind_of(error)}; the masked "
            "network is kept"
        ) from error
