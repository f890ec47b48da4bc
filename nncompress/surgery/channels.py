"""Channels that batch norms scale: which layers make and read them, masks over them, and the masked network.

A network says what can be removed by a method `scales()` that returns a list of `Scale`; of any other network every
batch norm is a scale of which nothing more is known.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

SHOWN = 4
"""Names that a message lists."""
Keep = Mapping[str, Tensor]
"""For the name of each scale's batch norm which of its channels stay: bool (channels,)."""


@dataclass(frozen=True)
class Scale:
    """A batch norm whose channels can be removed, with the layers around it; modules by their dotted names.

    - norm: the batch norm.
    - producer: the convolution whose output it alone reads, so that dead channels are not made at all; None where
      others read it too (a residual stream, a concatenation), so that they are selected before the norm.
    - consumers: all convolutions and linear layers that read the norm's output, by way of ReLU and of functions that
      keep constants channel by channel (pooling).
    - branch: the part of a residual sum that the norm lies in and that is taken out when no channel of the norm is
      left; None, the default: one channel has to stay.
    """

    norm: str
    producer: str | None
    consumers: tuple[str, ...]
    branch: str | None = None


def scales_of(model: nn.Module) -> list[Scale]:
    """Return the scales a network declares and still has, in forward order; of another its affine batch norms."""
    declared = _declared_scales(model)
    if declared is not None:
        modules = dict(model.named_modules())
        return [scale for scale in declared if scale.norm in modules]
    norms = (name for name, module in model.named_modules() if isinstance(module, BatchNorm) and module.affine)
    return [Scale(name, None, ()) for name in norms]


def declares_scales(model: nn.Module) -> bool:
    """Return whether a network says which of its channels can be removed."""
    return _declared_scales(model) is not None


def _declared_scales(model: nn.Module) -> list[Scale] | None:
    """Return what its method `scales()` returns; None of another method of that name."""
    method = getattr(model, "scales", None)
    if not callable(method) or signature(method).parameters:
        return None
    scales = method()
    return scales if isinstance(scales, list) and all(isinstance(scale, Scale) for scale in scales) else None


def own_weights(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """Return the layers of some kinds by the names of their weights, each once.

    Left out are weights that several layers share, or that are computed from other parameters.
    """
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, kinds) else None
        if weight is not None and uses[id(weight)] == 1:
            layers[f"{name}.weight".lstrip(".")] = module
    return layers


def norm_of(model: nn.Module, scale: Scale) -> BatchNorm:
    """Return the batch norm of a scale, which may have come to lie behind a selection of channels."""
    module = model.get_submodule(scale.norm)
    return cast(BatchNorm, module if isinstance(module, BatchNorm) else module.norm)


def kept_in(model: nn.Module) -> dict[str, Tensor]:
    """Return the channels whose scale and shift are not both zero, of every scale."""
    norms = {scale.norm: norm_of(model, scale) for scale in scales_of(model)}
    return {name: (norm.weight != 0) | (norm.bias != 0) for name, norm in norms.items()}


def guard_channels(
    model: nn.Module, keep: Keep, scores: Keep, *, branches: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """Return `keep` so completed that every layer works, and what that changed, in words.

    Where no channel of a scale is left, the whole residual branch it lies in goes (with `branches`), else the channel
    with the largest of the `scores` stays.
    """
    scales, result, notes = scales_of(model), dict(keep), []
    without = {scale.branch for scale in scales if branches and scale.branch and not bool(keep[scale.norm].any())}
    alone = []
    for scale in scales:
        mask = keep[scale.norm]
        if scale.branch in without:
            result[scale.norm] = torch.zeros_like(mask)
        elif not bool(mask.any()):
            result[scale.norm] = torch.zeros_like(mask).index_fill_(0, scores[scale.norm].argmax(), True)
            alone.append(scale.norm)
    if without:
        gone = _few(sorted(str(name) for name in without))
        notes.append(f"a layer has no channel left in {gone}: the block is its shortcut alone")
    if alone:
        notes.append(f"no channel is left in {_few(alone)}: the one with the largest scale stays")
    return result, notes


def _few(names: list[str]) -> str:
    """List the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@torch.no_grad()
def mask_channels(model: nn.Module, keep: Keep, *, fold: bool = False) -> nn.Module:
    """Return a copy in which the channels that are not kept have scale and shift 0.

    `fold`: what such a channel then no longer gives, ReLU of its shift, is given to its consumers: added to their bias
    (one is made where there is none), or subtracted from the running mean of the batch norm behind them. The network
    computes the same as with scale 0 alone, but at borders that a convolution pads with zeros.
    """
    network = copy.deepcopy(model)
    for scale in scales_of(network):
        norm, dead = norm_of(network, scale), ~keep[scale.norm]
        if fold and bool((norm.bias[dead] > 0).any()):
            _fold(network, scale, torch.where(dead, norm.bias.relu(), 0))
        norm.weight.masked_fill_(dead, 0)
        norm.bias.masked_fill_(dead, 0)
    return network


def mark_reshaped(network: nn.Module) -> None:
    """Note that a network's tensors are no longer those of its constructor, so that its file says so."""
    network._reshaped = True  # type: ignore[assignment]


def is_reshaped(network: nn.Module) -> bool:
    """Return whether channels have been taken out of a network or biases put in."""
    return bool(getattr(network, "_reshaped", False))


def _fold(network: nn.Module, scale: Scale, constant: Tensor) -> None:
    """Add to the consumers what a constant (channels,) of every position makes in them."""
    behind = {s.producer: norm_of(network, s) for s in scales_of(network) if s.producer is not None}
    for name in scale.consumers:
        layer = cast(nn.Conv2d | nn.Linear, network.get_submodule(name))
        made = layer.weight.flatten(2).sum(2) @ constant if layer.weight.dim() > 2 else layer.weight @ constant
        norm = behind.get(name)
        if norm is not None and norm.running_mean is not None:
            norm.running_mean -= made
        elif layer.bias is None:
            layer.bias = nn.Parameter(made)
            mark_reshaped(network)
        else:
            layer.bias += made
