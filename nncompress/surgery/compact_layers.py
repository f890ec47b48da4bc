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
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from nncompress.compressions.plan import Plan
from nncompress.compressions.products import Geometry, Product, Use
from nncompress.compressions.views import View
from nncompress.errors import ConfigError
from nncompress.surgery.autotune import Choice, fastest, said
from nncompress.surgery.channels import own_weights
from nncompress.surgery.theta import HeldTheta

log = logging.getLogger(__name__)

VERSION = attrgetter("_version")
"""How often a tensor was changed in place."""
CHAIN, RECONSTRUCT, CACHED = PLANS = ("chain", "reconstruct", "cached")


class CachedProduct(NamedTuple):
    """What was made of Θ, of which tensors, and how often these had been changed."""

    made: Any
    tensors: list[Tensor]
    version: int


class CompactLayer(nn.Module, ABC):
    """A layer whose weight is Δ(Θ), seen through a view; with the bias, if any, of the layer it stands for.

    Made of such a layer by `compact_layer`. plans: those it may take, of `PLANS`; `cached` needs the memory of the
    dense weight. `choices` tells what was measured and taken by how much it was given. Raises ConfigError for a plan
    that does not exist, and for `chain` alone where there is none.
    """

    bias: nn.Parameter | None
    theta: HeldTheta
    view: View
    shape: torch.Size
    plans: tuple[str, ...]
    name: str
    choices: dict[tuple[int, ...], Choice]
    _kept: dict[str, CachedProduct]
    _seen: dict[torch.Size, str]

    def hold(self, theta: HeldTheta, view: View, shape: torch.Size, plans: Sequence[str]) -> None:
        """Take Θ as the weight."""
        plans = (plans,) if isinstance(plans, str) else tuple(plans)
        wrong = [plan for plan in plans if plan not in PLANS]
        if wrong or not plans:
            raise ConfigError(f"plans must be some of {', '.join(PLANS)}, found {', '.join(wrong) or 'none'}")
        self.theta, self.view, self.shape, self.plans, self.name = theta, view, shape, plans, ""
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
        if _is_traced() or (torch.is_grad_enabled() and (x.requires_grad or self._learns())):
            return self._plain(x)
        plan = self._seen.get(x.shape)
        if plan is None:
            plan = self._seen[x.shape] = self._plan(x)
        return self.compute(x, plan)

    def _plan(self, x: Tensor) -> str:
        """The plan for x, measured unless one is known for about as many samples."""
        if x.numel() == 0:
            return RECONSTRUCT
        samples, *rest = x.shape
        key = (samples.bit_length(), *rest)
        if key not in self.choices:
            self.choices[key] = self._chosen(x)
        return self.choices[key].plan

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
        taken = {choice.plan, *(other.plan for other in self.choices.values())}
        self._kept = {plan: kept for plan, kept in self._kept.items() if plan in taken}
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
        use, product = self.use(x), self._made(CHAIN, self.product) if CHAIN in self.plans else None
        dense = len(x) * self.shape.numel() * use.positions
        chain = {} if product is None else {CHAIN: len(x) * product.macs(use)}
        return chain | {RECONSTRUCT: dense + self.shape.numel(), CACHED: dense}

    def _made(self, plan: str, make: Callable[[], Any]) -> Any:
        """What a plan keeps of Θ, made anew when Θ has changed."""
        tensors, kept = self.theta.tensors(), self._kept.get(plan)
        if kept is None or not all(map(is_, kept.tensors, tensors)) or sum(map(VERSION, tensors)) != kept.version:
            device = tensors[0].device.type if tensors else "cpu"
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                made = make()
            if any(tensor.is_inference() for tensor in tensors):  # these do not tell when they change
                return made
            kept = self._kept[plan] = CachedProduct(made, tensors, sum(map(VERSION, tensors)))
        return kept.made

    def _learns(self) -> bool:
        learned = self.theta.tensors() if self.bias is None else [*self.theta.tensors(), self.bias]
        return any(tensor.requires_grad for tensor in learned)

    def _no_chain(self) -> ConfigError:
        return ConfigError(f"{self.theta.compression} has no plan chain; take one of {', '.join(PLANS[1:])}")

    def _forget(self) -> None:
        """Drop all that was made or chosen for the tensors as they were."""
        self.choices, self._kept, self._seen = {}, {}, {}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()  # another device or type
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.shape))}, {self.theta.compression}, plans={', '.join(self.plans)}"


class CompactLinear(CompactLayer, nn.Linear):  # type: ignore[misc, override]
    """A Linear layer: x (..., inputs) to (..., outputs)."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, self.bias)

    def contract(self, x: Tensor, product: Product) -> Tensor:
        return product(x, self.bias)

    def use(self, x: Tensor) -> Use:
        return Use(tuple(self.shape), tuple(x.shape[1:-1]), tuple(x.shape[1:-1]))


class CompactConv2d(CompactLayer, nn.Conv2d):  # type: ignore[misc, override]
    """A Conv2d without groups: x (n, channels, height, width) or one image."""

    geometry: Geometry
    border: list[int] | None

    def hold(self, theta: HeldTheta, view: View, shape: torch.Size, plans: Sequence[str]) -> None:
        super().hold(theta, view, shape, plans)
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        padding = cast(tuple[int, int], self.padding) if plain else (0, 0)
        self.geometry = Geometry(cast(tuple[int, int], self.stride), padding, cast(tuple[int, int], self.dilation))
        self.border = None if plain else list(self._reversed_padding_repeated_twice)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dim() == 4 else super().forward(x[None])[0]

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
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return x if self.border is None else pad(x, self.border, mode=mode)


def compacted(
    network: nn.Module, plan: Plan, thetas: Sequence[HeldTheta], *, plans: Sequence[str] = PLANS
) -> list[CompactLayer | None]:
    """Change layers of `network` with a task of their own, so that they hold its Θ: for each task the layer or None.

    They are Linear and ungrouped Conv2d (no subclasses) that share their weight with nothing and have neither hooks nor
    buffers or modules of their own; the weights of the other tasks are left as they are.
    """
    layers, found = own_weights(network, nn.Linear, nn.Conv2d), list[CompactLayer | None]()
    for task, theta in zip(plan.tasks, thetas, strict=True):
        layer = layers.get(task.params[0]) if len(task.params) == 1 else None
        made = compact_layer(layer, task.view, theta, plans=plans) if layer is not None and _fits(layer) else None
        if made is not None:
            made.name = task.params[0]
        found.append(made)
    return found


def compact_layer(layer: nn.Module, view: View, theta: HeldTheta, *, plans: Sequence[str] = PLANS) -> CompactLayer:
    """A Linear or ungrouped Conv2d, changed into one whose weight is Δ(Θ) through a view; all else of it stays.

    It is the same object, so that whatever else refers to the layer refers to the compact one.
    """
    kinds: dict[type, type[CompactLayer]] = {nn.Linear: CompactLinear, nn.Conv2d: CompactConv2d}
    kind = kinds.get(type(layer))
    if kind is None:
        raise ConfigError(f"a compact layer stands for a Linear or Conv2d, found {type(layer).__name__}")
    shape = cast(Tensor, layer.weight).shape
    del layer.weight
    layer.__class__ = kind
    compact = cast(CompactLayer, layer)
    compact.hold(theta, view, shape, plans)
    return compact


def _is_traced() -> bool:
    """Whether the network is exported, compiled or traced and nothing can be measured."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


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


def _fits(layer: nn.Module) -> bool:
    if not (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)):
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any((*hooks, layer._buffers, layer._modules, layer._parameters.keys() - {"weight", "bias"}))
