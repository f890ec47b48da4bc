"""Reading a network's chain of layers off its traced graph, or refusing it by the name of what does not fit."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from nncompress.errors import Unsupported
from nncompress.solvers.nnbcd.chain import Chain, ChainLayer, LinearMap, pad_index, windows

REQUIREMENT = (
    "NN-BCD needs a chain of Linear and Conv2d layers with ReLU, LeakyReLU or Identity between them (average pooling, "
    "flatten, permute and identity skips allowed)"
)

IN_PLACE = (operator.iadd, "add_")
ADDITIONS = (operator.add, torch.add, "add", *IN_PLACE)
POOLING = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
FLATTENING = (torch.flatten, "flatten", "view", "reshape")


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the network: entries of U_layer (`activated` false) or V_layer, averaged over q of an index.

    index (*shape, q): which entries. summed: V_layer with what skips to it.
    """

    layer: int
    activated: bool
    index: Tensor
    summed: bool = False


def chain_of(model: nn.Module, input_shape: Sequence[int]) -> Chain:
    """Return the chain of a network for samples of `input_shape`. Raises Unsupported, naming what does not fit."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise Unsupported(f"{REQUIREMENT}; {type(model).__name__} cannot be traced: {error}") from error
    trace = _Trace(model, tuple(input_shape))
    for node in graph.nodes:
        if not _is_batch_size(node):
            trace.read(node)
    layers = trace.layers
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
    own = dict(model.named_parameters())
    shared = [name for name in names if names.count(name) > 1 or name not in own]
    if shared:
        why = "used twice" if names.count(shared[0]) > 1 else "shared or computed from others"
        raise Unsupported(f"{REQUIREMENT}, each with a weight and a bias of its own; found {shared[0]!r} {why}")
    if not layers:
        raise Unsupported(f"{REQUIREMENT}; found no Linear layer in {type(model).__name__}")
    last = layers[-1]
    if last.slope != 1.0:
        raise Unsupported(f"{REQUIREMENT}; found an activation behind the output layer {last.weight!r}")
    if (last.inner, last.outer) != (None, None):
        raise Unsupported(f"{REQUIREMENT}; found a skip into the output layer {last.weight!r}")
    return Chain(tuple(layers))


@dataclass
class _Trace:
    """The layers found so far and what each node of the graph stands for."""

    model: nn.Module
    input_shape: tuple[int, ...]
    layers: list[ChainLayer] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    values: dict[fx.Node, Value] = field(default_factory=dict)

    def read(self, node: fx.Node) -> None:
        """Add one node. Raises Unsupported for what has no place in a chain."""
        sources = [source for source in node.all_input_nodes if not _is_batch_size(source)]
        if node.op == "placeholder":
            if self.values:
                raise self._refusal(node, "a second input")
            self.widths.append(torch.Size(self.input_shape).numel())
            self.values[node] = Value(0, True, _whole(self.input_shape))
        elif node.op == "output":
            self._read_output(node, sources)
        elif len(sources) == 2 and node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs:
            self.values[node] = self._add(node, *sources)
        elif len(sources) != 1:
            raise self._refusal(node, "a branch")
        else:
            self.values[node] = self._map(node, self.values[sources[0]])

    def _map(self, node: fx.Node, value: Value) -> Value:
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not value.activated and self._users(node.all_input_nodes[0]) > 1:
            raise self._refusal(node, "a branch")
        if type(module) in (nn.Linear, nn.Conv2d):
            return self._layer(node, module, value)
        if _flattens(module, node):
            return replace(value, index=value.index.flatten(0, -2))
        if module is None and node.target in ("permute", torch.permute):
            axes = [*node.args[1:], *node.kwargs.values()]
            order = axes[0] if isinstance(axes[0], tuple | list) else axes
            if order[0] == 0 and len(order) == value.index.dim():
                places = [int(axis) % len(order) - 1 for axis in order[1:]]  # type: ignore[arg-type]
                return replace(value, index=value.index.permute(*places, -1))
        pooled = _pool(module, node, value.index)
        if pooled is not None:
            return replace(value, activated=True, index=pooled)  # V = U where no activation comes before
        return self._activate(node, value, _slope(module, node))

    def _activate(self, node: fx.Node, value: Value, slope: float) -> Value:
        if value.activated:
            if slope != 1.0:
                raise self._refusal(node, "an activation", "that does not directly follow a Linear or Conv2d layer")
            return value
        if slope == 1.0:
            return value
        self.layers[value.layer - 1] = replace(self.layers[value.layer - 1], slope=slope)
        return replace(value, activated=True)

    def _layer(self, node: fx.Node, module: Any, value: Value) -> Value:
        if value.layer != len(self.layers) or self._before_skip(value):
            raise self._refusal(node, "a branch")
        index = value.index
        if isinstance(module, nn.Conv2d):
            index = self._patches(node, module, index)
        elif index.shape[-2] != module.in_features:
            raise self._refusal(node, "inputs that do not fit")
        name, (*places, _, _) = str(node.target), index.shape
        bias = None if module.bias is None else f"{name}.bias"
        layer = ChainLayer(f"{name}.weight", bias, 1.0, LinearMap.of(self.widths[-1], index))
        outputs = len(module.weight)
        self.layers.append(layer)
        self.widths.append(layer.map.positions * outputs)
        entries = _whole((*places, outputs))
        return Value(len(self.layers), False, entries.movedim(2, 0) if isinstance(module, nn.Conv2d) else entries)

    def _patches(self, node: fx.Node, module: nn.Conv2d, index: Tensor) -> Tensor:
        """Return the index (height', width', inputs, q) of a convolution on (channels, height, width, q)."""
        if module.groups > 1 or module.padding_mode != "zeros":
            raise self._refusal(node, "a grouped convolution" if module.groups > 1 else "padding other than zeros")
        if index.dim() != 4 or index.shape[0] != module.in_channels:
            raise self._refusal(node, "inputs that do not fit")
        around: Sequence[int] = module._reversed_padding_repeated_twice
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        return windows(pad_index(index, around, self.widths[-1]), kernel, stride, dilation).flatten(2, 4)

    def _add(self, node: fx.Node, first: fx.Node, second: fx.Node) -> Value:
        """Return the sum of a layer's U or V and an earlier V: an identity skip."""
        (early, late) = sorted((self.values[first], self.values[second]), key=lambda value: value.layer)
        node_of_late = first if self.values[first] is late else second
        i, j = late.layer, early.layer
        if node.target in IN_PLACE and list(first.users)[-1] is not node:
            raise self._refusal(node, "a sum written over a tensor that is used again")
        straight = early.index.shape == late.index.shape and torch.equal(early.index, late.index)
        alone = self._users(node_of_late) == 1 and early.activated and j < i == len(self.layers)
        alone = alone and not self._before_skip(early)
        if not (straight and alone and early.index.shape[-1] == 1 and self.widths[i] == self.widths[j]):
            raise self._refusal(node, "a branch")
        layer = self.layers[i - 1]
        # without an activation in between, the sum goes to U: what follows may still be one
        if (layer.outer if late.activated else layer.inner) is not None:
            raise self._refusal(node, "a second skip into one layer")
        self.layers[i - 1] = replace(layer, outer=j) if late.activated else replace(layer, inner=j)
        return replace(late, summed=late.activated)

    def _before_skip(self, value: Value) -> bool:
        """Return whether the value is V_i without what skips to it, which NN-BCD keeps no copy of."""
        return value.layer > 0 and self.layers[value.layer - 1].outer is not None and not value.summed

    def _read_output(self, node: fx.Node, sources: list[fx.Node]) -> None:
        value = self.values.get(sources[0]) if len(sources) == 1 else None
        if value is None or value.layer != len(self.layers):
            raise self._refusal(node, "a branch")
        whole = value.layer == 0 or torch.equal(value.index.flatten(), torch.arange(self.widths[-1]))
        if not whole or value.index.dim() != 2:
            raise self._refusal(sources[0], "a reshape or pooling behind the output layer")

    def _users(self, node: fx.Node) -> int:
        return sum(not _is_batch_size(user) for user in node.users)

    def _refusal(self, node: fx.Node, found: str, then: str = "") -> Unsupported:
        return Unsupported(f"{REQUIREMENT}; found {found} at {_name(node)!r}{' ' * bool(then)}{then}")


def _whole(shape: Sequence[int]) -> Tensor:
    """Return the index (*shape, 1) of all entries in their order."""
    return torch.arange(torch.Size(shape).numel()).view(*shape, 1)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _is_batch_size(node: fx.Node) -> bool:
    """Return whether a node only asks for the number of samples, as in x.view(x.size(0), -1)."""
    if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
        return True
    return node.target is operator.getitem and _is_batch_size(node.all_input_nodes[0])


def _flattens(module: nn.Module | None, node: fx.Node) -> bool:
    """Return whether a node turns samples into rows, x (n, ...) to (n, d)."""
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    if node.target in ("view", "reshape"):
        shape = node.args[1] if isinstance(node.args[1], tuple) else node.args[1:]
        one = shape[1:] if isinstance(shape[0], fx.Node) else shape[:1]  # where -1 leaves each sample one row
        return len(shape) == 2 and list(one) == [-1]
    return node.target in FLATTENING and [*node.args[1:], *node.kwargs.values()] == [1]


def _pool(module: nn.Module | None, node: fx.Node, index: Tensor) -> Tensor | None:
    """Return the index (channels, height', width', q') behind an average pooling; None for other nodes."""
    if isinstance(module, nn.AvgPool2d):
        settings = {key: getattr(module, key) for key in POOLING}
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        settings = {"output_size": module.output_size}
    elif node.target is nn.functional.avg_pool2d:
        settings = dict(zip(POOLING, node.args[1:], strict=False)) | node.kwargs
    elif node.target is nn.functional.adaptive_avg_pool2d:
        settings = dict(zip(("output_size",), node.args[1:], strict=False)) | node.kwargs
    else:
        return None
    if index.dim() != 4:
        raise Unsupported(f"{REQUIREMENT}; found pooling of something else than images at {_name(node)!r}")
    if "output_size" in settings:
        if settings["output_size"] not in (1, (1, 1), [1, 1]):
            raise Unsupported(f"{REQUIREMENT}; found adaptive pooling to more than one place at {_name(node)!r}")
        kernel = stride = (index.shape[1], index.shape[2])
    else:
        kernel = _pair(settings["kernel_size"])
        stride = _pair(settings.get("stride") or kernel)
    if _pair(settings.get("padding", 0)) != (0, 0) or settings.get("ceil_mode") or settings.get("divisor_override"):
        special = "padding, ceil_mode or divisor_override"
        raise Unsupported(f"{REQUIREMENT}; found average pooling with {special} at {_name(node)!r}")
    # (height', width', channels, kernel, kernel, q) to (channels, height', width', q')
    return windows(index, kernel, stride).permute(2, 0, 1, 3, 4, 5).flatten(3)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _slope(module: nn.Module | None, node: fx.Node) -> float:
    """Return the slope below zero of a piecewise linear activation."""
    if module is not None:
        match module:
            case nn.ReLU():
                return 0.0
            case nn.LeakyReLU():
                return float(module.negative_slope)
            case nn.Identity():
                return 1.0
        if isinstance(module, nn.Dropout) and module.p == 0:
            return 1.0
        raise Unsupported(f"{REQUIREMENT}; found {type(module).__name__} at {_name(node)!r}")
    if node.target in (torch.relu, nn.functional.relu, "relu"):
        return 0.0
    if node.target is nn.functional.leaky_relu:
        arguments = inspect.signature(nn.functional.leaky_relu).bind(*node.args, **node.kwargs)
        arguments.apply_defaults()
        return float(arguments.arguments["negative_slope"])
    function = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    raise Unsupported(f"{REQUIREMENT}; found {function} at {_name(node)!r}")
