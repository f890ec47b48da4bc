"""Take dead channels out of a network: as it says itself, else as the dependency graph of its layers says."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nncompress.errors import Unsupported
from nncompress.surgery.channels import declares_scales, kept_in
from nncompress.surgery.dependency import Gone, dependency_graph
from nncompress.surgery.removal import check_equal, kind_of, remove_channels, reshape, structure


def smaller(network: nn.Module, x: Tensor) -> tuple[nn.Module, str | None]:
    """Return `network` without its dead channels; or itself, masked, and why in words. x (n, *input_shape): samples."""
    if all(bool(mask.all()) for mask in kept_in(network).values()):
        return network, None
    try:
        if not declares_scales(network):
            return prune(network, x), None
        try:
            without = remove_channels(network)
        except Exception as error:  # what a network says of itself may be anything
            raise Unsupported(
                f"scales() must name the layers that make and read each channel, found {kind_of(error)}; the masked "
                "network is kept"
            ) from error
        check_equal(network, without, x)
    except Unsupported as error:
        return network, f"no channel is taken out: {error}"
    return without, None


def prune(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of a network that declares no scales, without the channels whose scale and shift are zero.

    A channel goes with all that is coupled to it (a residual stream, both sides of a depthwise convolution), and only
    where no layer that is left reads anything but zeros from it; any other stays, masked, and so does the last one of a
    layer. x (n, *input_shape): some samples, on which the outputs are compared in evaluation mode.

    Raises:
        Unsupported: Torch-Pruning is not installed or cannot trace the network, a layer takes no part in the outputs,
            no dead channel can be taken out, or the outputs differ.
    """
    dead = {name: (~mask).tolist() for name, mask in kept_in(network).items()}
    without = copy.deepcopy(network)
    if not any(any(channels) for channels in dead.values()):
        return without
    gone = dependency_graph(network, x[:2], dead).gone()
    if not gone:
        raise Unsupported(
            "a dead channel can be taken out only where all layers behind it read zeros from it and no other channel "
            "is added to it, found none such; give the network a method scales() or keep it masked"
        )
    _shrink(without, gone)
    check_equal(network, without, x)
    return without


@torch.no_grad()
def _shrink(network: nn.Module, gone: Gone) -> None:
    """Take channels out as a stored network is loaded: new shapes first, then what is in them."""
    tensors: dict[str, Tensor] = {}
    about = structure(network)
    for (layer, dim), channels in gone.items():
        module = network.get_submodule(layer)
        kept = [channel for channel in range(module.weight.shape[dim]) if channel not in channels]  # type: ignore[index]
        for field, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dim() > dim:
                name = f"{layer}.{field}"
                whole = tensors.get(name, tensor)
                tensors[name] = whole.index_select(dim, torch.tensor(kept, device=tensor.device))
        if layer in about["groups"]:
            about["groups"][layer] = len(kept)
    reshape(network, tensors, about)
    state = network.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
