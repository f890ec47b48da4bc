"""The Linear and Conv2d layers that a sample passes, and how often each weight is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nncompress.compressions.products import Use
from nncompress.errors import ConfigError, one_line


class Layer(NamedTuple):
    """One use of a Linear or Conv2d weight by a network: its name (None for one that is no parameter of its own).

    `use` is None for a grouped convolution, which has no factorised form here.
    """

    name: str | None
    entries: int
    positions: int
    use: Use | None


def layers_of(model: nn.Module, x: Tensor) -> list[Layer]:
    """Return the uses of Linear and Conv2d weights on one sample x (1 x input_shape), in their order.

    Raises:
        ConfigError: the network does not take the sample.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    layers: list[Layer] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        layers.append(_layer(module, args[0].shape, output.shape, names))

    try:
        watch(model, x, hook, (nn.Linear, nn.Conv2d))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"model: the network must take samples of shape {tuple(x.shape[1:])}, found that its forward pass fails "
            f"({one_line(error)}); choose another model or data set (dataset.flatten=...)"
        ) from error
    return layers


@torch.no_grad()
def watch(model: nn.Module, x: Tensor, hook: Callable[..., None], kinds: tuple[type[nn.Module], ...]) -> None:
    """Pass samples x through `model` in evaluation mode, `hook` called behind every use of a module of these kinds.

    It is given the module, the tuple of its inputs and its output.
    """
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, kinds)]
    was_training = model.training
    try:
        model.eval()(x)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


def _layer(module: Any, given: torch.Size, made: torch.Size, names: Mapping[int, str]) -> Layer:
    """Return the use of a Linear or Conv2d that made a tensor of shape `made` of one of shape `given`."""
    weight: Tensor = module.weight
    convolution = isinstance(module, nn.Conv2d)
    inputs, outputs = (given[-2:], made[-2:]) if convolution else (given[1:-1], made[1:-1])
    use = Use(tuple(weight.shape), tuple(inputs), tuple(outputs))
    grouped = convolution and module.groups > 1
    return Layer(names.get(id(weight)), weight.numel(), use.positions, None if grouped else use)


def uses_of(layers: Iterable[Layer]) -> dict[str, Use]:
    """Return uses by the names of the weights, for recipes (the first, where a weight is used more than once)."""
    uses: dict[str, Use] = {}
    for layer in layers:
        if layer.name is not None and layer.use is not None:
            uses.setdefault(layer.name, layer.use)
    return uses
