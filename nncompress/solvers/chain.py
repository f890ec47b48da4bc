"""A network as a chain of linear layers with piecewise linear activations between them, as NN-BCD sees it."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from nncompress.errors import Unsupported

REQUIREMENT = "NN-BCD needs a chain of Linear layers with ReLU, LeakyReLU or Identity between them"


@dataclass(frozen=True)
class Layer:
    """One linear layer and the activation behind it: sigma(u) = u for u >= 0, slope * u below."""

    weight: str
    bias: str | None
    slope: float


@dataclass(frozen=True)
class Chain:
    """The layers 1, ..., N in order; the last one has no activation (slope 1)."""

    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Chain:
        """Read the chain off a traced network. Raises Unsupported, naming the layer that does not fit."""
        layers: list[Layer] = []
        activated = True
        for name, slope in _operations(model):
            if slope is None:
                linear = model.get_submodule(name)
                layers.append(Layer(f"{name}.weight", f"{name}.bias" if linear.bias is not None else None, 1.0))
                activated = False
            elif activated:
                if slope != 1.0:
                    raise Unsupported(f"{REQUIREMENT}; found an activation at {name!r} that follows no Linear layer")
            else:
                layers[-1] = Layer(layers[-1].weight, layers[-1].bias, slope)
                activated = slope != 1.0
        names = [layer.weight for layer in layers]
        shared = [name for name in names if names.count(name) > 1 or name not in dict(model.named_parameters())]
        if shared:
            raise Unsupported(f"{REQUIREMENT}, each with a weight of its own; found {shared[0]!r} used twice")
        if not layers:
            raise Unsupported(f"{REQUIREMENT}; found no Linear layer in {type(model).__name__}")
        if layers[-1].slope != 1.0:
            raise Unsupported(f"{REQUIREMENT}; found an activation behind the output layer {layers[-1].weight!r}")
        return cls(tuple(layers))


def _operations(model: nn.Module) -> list[tuple[str, float | None]]:
    """(name, None) for a linear layer, (name, slope) for an activation, in the order of computation."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise Unsupported(f"{REQUIREMENT}; {type(model).__name__} cannot be traced: {error}") from error
    operations: list[tuple[str, float | None]] = []
    for node in graph.nodes:
        if node.op == "output" or _is_batch_size(node):
            continue
        users = [user for user in node.users if not _is_batch_size(user)]
        inputs = [source for source in node.all_input_nodes if not _is_batch_size(source)]
        if len(users) != 1 or len(inputs) != (node.op != "placeholder"):
            raise Unsupported(f"{REQUIREMENT}; found a branch at {_name(node)!r}")
        if node.op == "placeholder":
            continue
        if _is_flatten(model, node):
            if operations:
                raise Unsupported(f"{REQUIREMENT}; found a reshape inside the chain at {_name(node)!r}")
        elif node.op == "call_module" and type(model.get_submodule(node.target)) is nn.Linear:
            operations.append((node.target, None))
        else:
            operations.append((_name(node), _slope(model, node)))
    return operations


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node only asks for the number of samples, as in x.view(x.size(0), -1)."""
    if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
        return True
    return node.target is operator.getitem and _is_batch_size(node.all_input_nodes[0])


def _is_flatten(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node turns samples into rows, x (n, ...) to (n, d)."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.Flatten)
    if node.target in ("view", "reshape"):
        shape = node.args[1] if isinstance(node.args[1], tuple) else node.args[1:]
        return len(shape) == 2 and -1 in [size for size in shape if isinstance(size, int)]
    start = [*node.args[1:], *node.kwargs.values()]
    return node.target in (torch.flatten, "flatten") and start == [1]


def _slope(model: nn.Module, node: fx.Node) -> float:
    """Slope below zero of a piecewise linear activation."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
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
    found = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    raise Unsupported(f"{REQUIREMENT}; found {found} at {_name(node)!r}")


def activation(u: Tensor, slope: float, out: Tensor | None = None) -> Tensor:
    """sigma(u), elementwise, as a new tensor or written to `out`."""
    if slope == 0.0:
        return torch.clamp_min(u, 0, out=out)
    result: Tensor = nn.functional.leaky_relu(u, slope)
    return result if out is None else out.copy_(result)
