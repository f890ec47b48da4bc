"""Take channels out of a network: smaller convolutions, batch norms and linear layers, the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd as Convolution

from nncompress.errors import Unsupported
from nncompress.surgery.channels import Scale, kept_in, mark_reshaped, norm_of, scales_of

TOLERANCE = 1e-5
"""Largest difference of the outputs of the masked and the smaller network, relative to the largest output."""


class SelectedNorm(nn.Module):
    """The batch norm of some channels of a tensor that others read too: x (n, channels, ...) to (n, selected, ...)."""

    indices: Tensor

    def __init__(self, indices: Tensor, norm: nn.Module) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected channels, normalised."""
        normalised: Tensor = self.norm(x.index_select(1, self.indices))
        return normalised


class NoBranch(nn.Module):
    """In place of a residual branch that gives nothing: 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a 0-dimensional zero."""
        return x.new_zeros(())


@torch.no_grad()
def remove_channels(model: nn.Module) -> nn.Module:
    """Return a copy without the channels whose scale and shift are zero; in evaluation mode it computes the same.

    A residual branch none of whose layers has a channel is taken out; any other layer keeps one. Source of the scheme:
    Liu et al., "Learning efficient convolutional networks through network slimming", ICCV 2017. Where the residual
    stream or a concatenation is normalised they select channels behind the batch norm; here before it: less to compute.
    """
    network, keep = copy.deepcopy(model), kept_in(model)
    scales = scales_of(network)
    at_work = {scale.branch for scale in scales if bool(keep[scale.norm].any())}
    without = {scale.branch for scale in scales if scale.branch} - at_work
    for scale in scales:
        kept = keep[scale.norm].nonzero().squeeze(1)
        if scale.branch not in without and len(kept) < len(keep[scale.norm]):
            _remove(network, scale, kept if len(kept) else kept.new_zeros(1))
            mark_reshaped(network)
    for branch in without:
        network.set_submodule(str(branch), NoBranch())
        mark_reshaped(network)
    return network


@torch.no_grad()
def check_equal(network: nn.Module, smaller: nn.Module, x: Tensor) -> None:
    """Raise Unsupported unless a smaller network gives the outputs of the masked one for samples x.

    In float64: on a GPU convolutions of float32 may be rounded more than the tolerance.
    """
    x = x.double()
    expected = copy.deepcopy(network).double().eval()(x)
    try:
        outputs = copy.deepcopy(smaller).double().eval()(x)
    except Exception as error:  # a forward of which the number of channels is a part
        raise Unsupported(
            f"the network must work with fewer channels, found {kind_of(error)}; the masked network is kept"
        ) from error
    same = outputs.shape == expected.shape
    difference = float((outputs - expected).abs().max()) if same else float("inf")
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise Unsupported(
            "the smaller network must give the outputs of the masked one, found a largest difference of "
            f"{difference:.3g}; the masked network is kept"
        )


def kind_of(error: Exception) -> str:
    """Return an error's class and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def structure(network: nn.Module) -> dict[str, Any]:
    """Return what `reshape` has to know besides the tensors: selections, missing branches, groups of convolutions."""
    modules = dict(network.named_modules())
    return {
        "selected": [name for name, module in modules.items() if isinstance(module, SelectedNorm)],
        "without": [name for name, module in modules.items() if isinstance(module, NoBranch)],
        "groups": {name: m.groups for name, m in modules.items() if isinstance(m, Convolution) and m.groups > 1},
    }


@torch.no_grad()
def reshape(network: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Give a network, as its constructor makes it, the structure and shapes of another from which channels were taken.

    Args:
        tensors: the other's state by name, of which the shapes are read.
        about: its `structure`.

    Raises:
        AttributeError, KeyError: the two are not the same network.
    """
    device = next(network.parameters()).device
    for name in about["without"]:
        network.set_submodule(name, NoBranch())
    for name in about["selected"]:
        indices = torch.zeros(tensors[f"{name}.indices"].shape, dtype=torch.int64, device=device)
        network.set_submodule(name, SelectedNorm(indices, network.get_submodule(name)))
    for name, tensor in tensors.items():
        place, _, field = name.rpartition(".")
        module = network.get_submodule(place)
        own = getattr(module, field)
        if own is None or own.shape != tensor.shape:
            like = next(network.parameters()) if own is None else own
            _put(module, field, like.new_zeros(tensor.shape))
            _state_sizes(module, about["groups"].get(place))
    mark_reshaped(network)


def _remove(network: nn.Module, scale: Scale, kept: Tensor) -> None:
    """Leave the channels `kept` (numbers, ascending) of one scale."""
    module, norm = network.get_submodule(scale.norm), norm_of(network, scale)
    if scale.producer is not None:
        _select(network.get_submodule(scale.producer), kept, 0)
    elif isinstance(module, SelectedNorm):
        module.indices = module.indices[kept]
    else:
        network.set_submodule(scale.norm, SelectedNorm(kept, norm))
    _select(norm, kept, 0)
    for name in scale.consumers:
        _select(network.get_submodule(name), kept, 1)


def _select(module: nn.Module, kept: Tensor, dim: int) -> None:
    """Leave the outputs (dim 0: of all its tensors) or inputs (dim 1: of its weight) `kept` of a layer."""
    for field, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.dim() > dim:
            _put(module, field, tensor.detach().index_select(dim, kept))
    _state_sizes(module, None)


def _put(module: nn.Module, field: str, tensor: Tensor) -> None:
    """Replace a parameter (or make one), or a buffer."""
    if field in module._buffers:
        module._buffers[field] = tensor
    else:
        old = module._parameters.get(field)
        module.register_parameter(field, nn.Parameter(tensor, requires_grad=old is None or old.requires_grad))


def _state_sizes(module: Any, groups: int | None) -> None:
    """Make the sizes a layer states those of its tensors."""
    if isinstance(module, Convolution) and not module.transposed:
        module.groups = groups or module.groups
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(cast(Tensor, module.weight))
