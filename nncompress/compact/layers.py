"""Linear layers and convolutions that hold Θ in place of their weight and compute with it.

Three plans compute the same, up to rounding: `chain` multiplies with the factors (`Compression.product`), `reconstruct`
rebuilds the weight and multiplies with it, `cached` multiplies with a rebuilt weight that is kept. Which is the fastest
depends on the layer, the number of samples and the machine. Without gradients a layer measures its plans the first time
it sees a number of samples (to a factor of two) and says in the log what it takes. With gradients, or when it is
exported, operations are counted alone: equal seeds then give equal records. Θ may change in place, by
`load_state_dict` or by other tensors in its place; what is written through `Tensor.data` goes unnoticed.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter, is_
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from nncompress.channels import own_weights
from nncompress.compact.planning import Choice, fastest, said
from nncompress.compact.theta import HeldTheta
from nncompress.compressions.plan import Plan
from nncompress.compressions.products import Geometry, Product, Use
from nncompress.compressions.views import View
from nncompress.errors import ConfigError

log = logging.getLogger(__name__)

VERSION = attrgetter("_version")
"""How often a tensor was changed in place."""
CHAIN, RECONSTRUCT, CACHED = PLANS = ("chain", "reconstruct", "cached")


class CompactLayer(nn.Module, ABC):
    """A layer whose weight is Δ(Θ), seen through a view; with the bias, if any, of the layer it stands for.

    plans: those it may take, of `PLANS`; `cached` needs the memory of the dense weight. `choices` tells what was
    measured and taken by how much it was given. Raises ConfigError for a plan that does not exist, and for `chain`
    alone where there is none.
    """

    bias: nn.Parameter | None
    choices: dict[tuple[int, ...], Choice]
    _kept: dict[str, tuple[int, list[Tensor], Any]]

    def __init__(
        self, theta: HeldTheta, view: View, shape: Sequence[int], *, bias: nn.Parameter | None, plans: Sequence[str]
    ) -> None:
        super().__init__()
        wrong = [plan for plan in plans if plan not in PLANS]
        if wrong or not plans:
            raise ConfigError(f"plans must be some of {', '.join(PLANS)}, found {', '.join(wrong) or 'none'}")
        self.theta, self.view, self.shape = theta, view, torch.Size(shape)
        self.register_parameter("bias", bias)
        self.plans = tuple(plans)
        self.name = ""
        self._forget()
        if self.plans == (CHAIN,) and self.product() is None:
            raise self._no_chain()

    @property
    def weight(self) -> Tensor:
        """Δ(Θ), shaped as the layer's weight."""
        return self.view.split(self.theta.delta(), [self.shape])[0]

    def product(self) -> Product | None:
        """What the plan `chain` multiplies with; None where Θ offers no such form."""
        return self.theta.compression.product(self.theta.value, self.shape)

    @abstractmethod
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer with a dense weight."""

    @abstractmethod
    def contract(self, x: Tensor, product: Product) -> Tensor:
        """The layer with a product in place of the weight."""

    @abstractmethod
    def use(self, x: Tensor) -> Use:
        """How the weight is used on one sample of x."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or self._learns())):
            return self._plain(x)
        if x.numel() == 0:
            return self.multiply(x, self.weight)
        samples, *rest = x.shape
        key = (samples.bit_length(), *rest)
        choice = self.choices.get(key)
        if choice is None:
            choice = self._chosen(x)
            self.choices[key] = choice
        return self.compute(x, choice.plan)

    def compute(self, x: Tensor, plan: str) -> Tensor:
        """The layer by one plan; what that makes of Θ alone it keeps for the next time, without gradients to Θ."""
        if plan != CHAIN:
            return self.multiply(x, self._made(CACHED, lambda: self.weight) if plan == CACHED else self.weight)
        product = self._made(CHAIN, self.product)
        if product is None:
            raise self._no_chain()
        return self.contract(x, product)

    def _chosen(self, x: Tensor) -> Choice:
        """The plan for as many samples as x has."""
        macs = self._macs(x)
        plans = [plan for plan in self.plans if plan in macs]
        if not plans:
            raise self._no_chain()
        ways: dict[str, Callable[[], object]] = {plan: partial(self.compute, x, plan) for plan in plans}
        with torch.no_grad():
            choice = fastest(ways, {plan: macs[plan] for plan in plans}, x.device)
        if choice.plan != CACHED and all(other.plan != CACHED for other in self.choices.values()):
            self._kept.pop(CACHED, None)
        log.info("%s, %d samples: %s", self.name, len(x), said(choice))
        return choice

    def _plain(self, x: Tensor) -> Tensor:
        """With gradients: by the product if it has fewer operations than the dense weight, or by the rebuilt weight."""
        product = self.product() if CHAIN in self.plans else None
        if product is not None and product.plain and x.numel():
            use = self.use(x)
            if self.plans == (CHAIN,) or product.macs(use) <= self.shape.numel() * use.positions:
                return self.contract(x, product)
        return self.multiply(x, self.weight)

    def _macs(self, x: Tensor) -> dict[str, int]:
        """Multiply-accumulates of each plan; for `reconstruct` at least one for each weight more."""
        use, product = self.use(x), self._made(CHAIN, self.product)
        dense = len(x) * self.shape.numel() * use.positions
        chain = {} if product is None else {CHAIN: len(x) * product.macs(use)}
        return chain | {RECONSTRUCT: dense + self.shape.numel(), CACHED: dense}

    def _made(self, plan: str, make: Callable[[], Any]) -> Any:
        """What a plan keeps of Θ, made anew when Θ has changed."""
        tensors = self._tensors()
        version = sum(map(VERSION, tensors))
        kept = self._kept.get(plan)
        if kept is None or kept[0] != version or len(kept[1]) != len(tensors) or not all(map(is_, kept[1], tensors)):
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept[plan] = (version, tensors, make())
        return kept[2]

    def _tensors(self) -> list[Tensor]:
        """What Θ is made of, without what was made in inference mode: it does not count its changes."""
        return [tensor for tensor in self.theta.tensors() if not tensor.is_inference()]

    def _learns(self) -> bool:
        learned = self._tensors() if self.bias is None else [*self._tensors(), self.bias]
        return any(tensor.requires_grad for tensor in learned)

    def _no_chain(self) -> ConfigError:
        return ConfigError(f"{self.theta.compression} has no plan chain; take one of {', '.join(PLANS[1:])}")

    def _forget(self) -> None:
        """Drop all that was made or chosen for the tensors as they were."""
        self.choices, self._kept = {}, {}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()  # another device or type
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.shape))}, {self.theta.compression}, plans={', '.join(self.plans)}"


class CompactLinear(CompactLayer):
    """A Linear layer: x (..., inputs) to (..., outputs)."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, self.bias)

    def contract(self, x: Tensor, product: Product) -> Tensor:
        return product(x, self.bias)

    def use(self, x: Tensor) -> Use:
        return Use(tuple(self.shape), tuple(x.shape[1:-1]), tuple(x.shape[1:-1]))


class CompactConv2d(CompactLayer):
    """A Conv2d without groups: x (n, channels, height, width)."""

    def __init__(self, theta: HeldTheta, view: View, layer: nn.Conv2d, *, plans: Sequence[str]) -> None:
        super().__init__(theta, view, layer.weight.shape, bias=cast(nn.Parameter | None, layer.bias), plans=plans)
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        padding = cast(tuple[int, int], layer.padding) if plain else (0, 0)
        self.geometry = Geometry(cast(tuple[int, int], layer.stride), padding, cast(tuple[int, int], layer.dilation))
        self.border = None if plain else list(layer._reversed_padding_repeated_twice)
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(self._bordered(x), weight, self.bias, *self.geometry)

    def contract(self, x: Tensor, product: Product) -> Tensor:
        return product(self._bordered(x), self.bias, self.geometry)

    def use(self, x: Tensor) -> Use:
        size = self._bordered(x[:1]).shape[2:]
        made = [
            (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
            for n, k, stride, padding, dilation in zip(size, self.shape[2:], *self.geometry, strict=True)
        ]
        return Use(tuple(self.shape), tuple(size), tuple(made))

    def _bordered(self, x: Tensor) -> Tensor:
        return x if self.border is None else pad(x, self.border, mode=self.mode)


def compacted(
    network: nn.Module, plan: Plan, thetas: Sequence[HeldTheta], *, plans: Sequence[str] = PLANS
) -> tuple[nn.Module, list[CompactLayer | None]]:
    """`network`, changed: layers with a task of their own hold its Θ. Also these layers, for each task one or None.

    They are Linear and ungrouped Conv2d (no subclasses) that share their weight with nothing and have neither hooks nor
    buffers or modules of their own; the weights of the other tasks are left as they are.
    """
    layers, found = own_weights(network, nn.Linear, nn.Conv2d), list[CompactLayer | None]()
    for task, theta in zip(plan.tasks, thetas, strict=True):
        layer = layers.get(task.params[0]) if len(task.params) == 1 else None
        found.append(compact_layer(layer, task.view, theta, plans=plans) if _fits(layer) else None)
        made = found[-1]
        if made is None:
            continue
        made.train(cast(nn.Module, layer).training).name = task.params[0]
        if layer is network:
            return made, found
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if module is layer:
                network.set_submodule(name, made)
    return network, found


def compact_layer(
    layer: nn.Module | None, view: View, theta: HeldTheta, *, plans: Sequence[str] = PLANS
) -> CompactLayer:
    """What stands for a Linear or ungrouped Conv2d whose weight is Δ(Θ) through a view; it has the same bias."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ConfigError(f"a compact layer stands for a Linear or Conv2d, found {type(layer).__name__}")
    made: CompactLayer
    if isinstance(layer, nn.Conv2d):
        made = CompactConv2d(theta, view, layer, plans=plans)
    else:
        made = CompactLinear(theta, view, layer.weight.shape, bias=layer.bias, plans=plans)
    for field in layer.__constants__:  # in_features, stride, ...: a network may read them
        setattr(made, field, getattr(layer, field))
    return made


def chosen_plans(network: nn.Module) -> list[dict[str, Any]]:
    """What every compact layer of a network chose, a row for each number of samples (the least that it stands for).

    Milliseconds are None where a plan was not measured, multiply-accumulates (of all samples) where there is none.
    """
    return [
        {"layer": layer.name, "samples": 1 << max(0, key[0] - 1), "plan": choice.plan}
        | {f"ms/{plan}": _milliseconds(choice.seconds.get(plan)) for plan in PLANS}
        | {"macs/chain": choice.macs.get(CHAIN), "macs/dense": choice.macs.get(CACHED)}
        for layer in network.modules()
        if isinstance(layer, CompactLayer)
        for key, choice in layer.choices.items()
    ]


def _milliseconds(seconds: float | None) -> float | None:
    return None if not seconds else 1e3 * seconds


def _fits(layer: nn.Module | None) -> bool:
    if layer is None or not (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)):
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any((*hooks, layer._buffers, layer._modules, layer._parameters.keys() - {"weight", "bias"}))
