"""Which channels of a network can go together: read from Torch-Pruning's dependency graph.

Fang, Ma, Song, Mi, Wang, "DepGraph: Towards any structural pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nncompress.errors import Unsupported
from nncompress.surgery.removal import kind_of

KEEPING_ZERO = frozenset(
    {"Relu", "LeakyRelu", "Hardtanh", "Elu", "Celu", "Gelu", "Silu", "Mish", "Hardswish", "Tanh", "Add", "Sub", "Mul"}
    | {"Mean", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "MaxPool2DWithIndices"}
    | {"MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "UpsampleNearest2D", "UpsampleBilinear2D"}
    | {"Squeeze", "Unsqueeze", "Clone"}
)
"""Autograd's names of the functions that work channel by channel and map 0 to 0."""
BY_CHANNEL = KEEPING_ZERO | {"Sigmoid", "Hardsigmoid", "Softplus"}
"""All that work channel by channel."""
WITH_TENSORS = ("CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "PRELU")
"""Torch-Pruning's types of the layers of which channels can be selected."""


class Index(NamedTuple):
    """A channel as Torch-Pruning's index mappings read it."""

    idx: int
    root_idx: int


class Place(NamedTuple):
    """One channel of one node of the dependency graph; side: the pruning function, of the inputs or of the outputs."""

    node: Any
    side: Any
    channel: int


Gone = dict[tuple[str, int], set[int]]
"""For the name of a layer and the dimension of its weight (0 outputs, 1 inputs) the channels to take out."""


@dataclass(frozen=True, kw_only=True)
class DependencyGraph:
    """The dependency graph of a copy of a network.

    - graph, types: Torch-Pruning's graph, and its types of layers by their names.
    - names: the names of the layers.
    - dead: for the name of each batch norm which of its channels are dead.
    """

    graph: Any
    types: Any
    names: Mapping[nn.Module, str]
    dead: Mapping[str, Sequence[bool]]

    def gone(self) -> Gone:
        """Return what can be taken out of which layer."""
        gone: Gone = {}
        seen: set[Place] = set()
        for root in self._roots():
            if root not in seen:
                coupled = self._find_coupled(root)
                seen |= coupled
                if all(self._can_go(place) for place in coupled):
                    self._take(coupled, gone)
        return gone

    def _roots(self) -> Iterator[Place]:
        """Yield the dead channels."""
        for module, node in self.graph.module2node.items():
            if self._is(node, "BN"):
                side = self.graph.get_pruner_of_module(module).prune_out_channels
                channels = self.dead.get(self.names[module], ())
                yield from (Place(node, side, channel) for channel, is_dead in enumerate(channels) if is_dead)

    def _find_coupled(self, root: Place) -> set[Place]:
        """Return all that has to be taken out together with a channel."""
        coupled, left = {root}, [root]
        while left:
            place = left.pop()
            new = {p for dep in place.node.dependencies for p in _map_channels(dep, place)} - coupled
            coupled |= new
            left.extend(new)
        return coupled

    def _can_go(self, place: Place) -> bool:
        """Return whether the channel can be selected there, and is zero where a layer that mixes channels reads it."""
        node = place.node
        if not self._is(node, *WITH_TENSORS):
            whole = self._is(node, "CONCAT") and node.module.offsets is not None and _has_all_inputs(node)
            return whole or self._is_flat(node) or _is_weight(node) or _by_channel(node, BY_CHANNEL)
        module, reads = node.module, self._reads(place)
        if self._is(node, "PRELU"):
            return True
        weight = module._parameters.get("weight")  # none: no scale, or computed from others
        within = weight is not None and place.channel < weight.shape[int(reads)]
        if self._is(node, "CONV"):
            within = within and module.groups == 1 and not module.transposed
        elif self._is(node, "DEPTHWISE_CONV"):  # `structure` names the groups of Conv2d alone
            within = within and isinstance(module, nn.Conv2d) and module.in_channels == module.out_channels
        return within and (not reads or all(self._is_zero(before) for before in self._inputs(place)))

    def _is_zero(self, place: Place) -> bool:
        """Return whether the network has zeros in this channel whatever its input is."""
        seen, left = {place}, [place]
        while left:
            here = left.pop()
            before = self._inputs(here)
            if self._is(here.node, "BN"):
                dead = self.dead.get(self.names[here.node.module], ())
                if not any(dead[here.channel : here.channel + 1]):
                    return False
            elif _function(here.node) == "Mul":
                if not any(self._is_zero(factor) for factor in before):
                    return False
            elif before and (self._is(here.node, "CONCAT", "RESHAPE", "PRELU") or _by_channel(here.node, KEEPING_ZERO)):
                left.extend(set(before) - seen)
                seen.update(before)
            else:
                return False
        return True

    def _inputs(self, place: Place) -> list[Place]:
        """Return where the values of a channel come from."""
        before = [dep for dep in place.node.dependencies if dep.target in place.node.inputs]
        if self._is(place.node, *WITH_TENSORS):
            before = [dep for dep in before if not _is_weight(dep.target)]
        return [p for dep in before for p in _map_channels(dep, place)]

    def _take(self, coupled: set[Place], gone: Gone) -> None:
        """Add coupled channels to `gone`, unless a layer were to be left without any (a grouped one with one)."""
        more: Gone = {}
        most = {}
        for place in coupled:
            node, module = place.node, place.node.module
            one_for_all = self._is(node, "PRELU") and len(module.weight) == 1
            if self._is(node, *WITH_TENSORS) and not one_for_all:
                key = (self.names[module], int(self._reads(place)))
                more.setdefault(key, gone.get(key, set()).copy()).add(place.channel)
                most[key] = module.weight.shape[key[1]] - (2 if self._is(node, "DEPTHWISE_CONV") else 1)
        if all(len(channels) <= most[key] for key, channels in more.items()):
            gone.update(more)

    def _reads(self, place: Place) -> bool:
        """Return whether it is an input of a layer that mixes channels."""
        return self._is(place.node, "CONV", "LINEAR") and not self.graph.is_out_channel_pruning_fn(place.side)

    def _is(self, node: Any, *kinds: str) -> bool:
        return node.type in [self.types[kind] for kind in kinds]

    def _is_flat(self, node: Any) -> bool:
        """Return whether it is a flattening and Torch-Pruning knows how many positions a channel has, if not one."""
        mapped = any(dep.index_mapping[0] is not None for dep in node.dependencies)
        sizes = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
        return self._is(node, "RESHAPE") and (mapped or math.prod(sizes[2:]) == 1)


def dependency_graph(network: nn.Module, x: Tensor, dead: Mapping[str, Sequence[bool]]) -> DependencyGraph:
    """Trace a copy of the network. x: some samples; dead: as for `DependencyGraph`.

    Raises:
        Unsupported: Torch-Pruning is not installed or cannot trace the network, or the outputs do without a layer.
    """
    traced = copy.deepcopy(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torch_pruning  # slow, and an extra
        except ImportError as error:
            raise Unsupported(
                "to take channels out of a network without a method scales() Torch-Pruning is required, found none; "
                "pip install 'nncompress[prune]'"
            ) from error
        try:
            with torch.enable_grad():
                graph = torch_pruning.DependencyGraph().build_dependency(
                    traced.requires_grad_(True), x, forward_fn=_outputs, verbose=False
                )
        except Exception as error:  # another's forward, another's tracing: anything
            raise Unsupported(
                f"Torch-Pruning must be able to trace the network, found {kind_of(error)}; give the network a method "
                "scales() or keep it masked"
            ) from error
    names = {module: name for name, module in traced.named_modules()}
    _check_whole(names, graph)
    return DependencyGraph(graph=graph, types=torch_pruning.ops.OPTYPE, names=names, dead=dead)


def _outputs(network: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs as a node of their own in the graph, even where a layer makes them."""
    outputs: Tensor = network(x)
    return outputs + 0


def _check_whole(names: Mapping[nn.Module, str], graph: Any) -> None:
    """Refuse a network with a layer of which it is not seen what it reads, since its shape could not follow."""
    layers = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    for module, name in names.items():
        if isinstance(module, layers) and module not in graph.module2node:
            raise Unsupported(
                f"every layer must take part in the outputs, found {name}, which does not; remove it, give the network "
                "a method scales() or keep it masked"
            )


def _map_channels(dep: Any, place: Place) -> list[Place]:
    """Return the channels at the other end of a dependency, none if it is of the other side."""
    if not dep.is_triggered_by(place.side):
        return []
    channels: list[Any] = [Index(place.channel, place.channel)]
    for mapping in dep.index_mapping:
        channels = mapping(channels) if mapping is not None else channels
    return [Place(dep.target, dep.handler, channel.idx) for channel in channels]


def _function(node: Any) -> str:
    """Return autograd's name of what makes a node: "Relu" for ReluBackward0."""
    name = getattr(node.grad_fn, "name", None)
    return str(name()).rpartition("Backward")[0] if name else ""


def _is_weight(node: Any) -> bool:
    """Return whether it is a layer's weight, transposed (Linear) or with another shape (PReLU)."""
    return _function(node) in ("T", "View") and not node.inputs


def _by_channel(node: Any, functions: frozenset[str]) -> bool:
    """Return whether it is one of the functions, of nothing that the graph does not hold but a constant factor."""
    function = _function(node)
    if function == "Mean":
        return _leaves_channels(node.grad_fn)
    return function in functions and (function == "Mul" or _has_all_inputs(node))


def _has_all_inputs(node: Any) -> bool:
    """Return whether no operand is missing: the network's own input, a constant, a parameter with one entry."""
    return len(node.inputs) == len(node.grad_fn.next_functions)


def _leaves_channels(mean: Any) -> bool:
    """Return whether a mean is over positions alone. Autograd keeps negative dimensions as unsigned numbers."""
    dims = getattr(mean, "_saved_dim", (1,))
    count = len(getattr(mean, "_saved_self_sym_sizes", ()))
    return all((dim - 2**64 + count if dim >= 2**63 else dim) > 1 for dim in dims)
