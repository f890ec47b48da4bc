"""Linear layers and convolutions that hold Θ in place of their weight and compute with it.

A layer computes as its compression says (`Compression.layer`) or in one of three ways that give the same, up to
rounding: `chain` multiplies with the factors (`Compression.product`), `reconstruct` rebuilds the weight and multiplies
with it, `cached` multiplies with a rebuilt weight that is kept. Which is the fastest depends on the layer, the number
of samples and the machine. Without gradients a layer measures its ways the first time it sees a number of samples (to a
factor of two) and says in the log what it takes. With gradients, or when it is exported, operations are counted alone:
equal seeds then give equal records. Θ may change in place, by `load_state_dict` or by other tensors in its place; what
is written through `Tensor.data` goes unnoticed.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from nncompress.compressions.plan import Plan
from nncompress.compressions.products import Geometry, Product, Use
from nncompress.compressions.views import View
from nncompress.errors import ConfigError
from nncompress.surgery.autotune import Choice, fastest
from nncompress.surgery.channels import own_weights
from nncompress.surgery.theta import HeldTheta, OwnLayer, ThetaLayer

log = logging.getLogger(__name__)

CHAIN, RECONSTRUCT, CACHED = WAYS = ("chain", "reconstruct", "cached")


class CompactLayer(ThetaLayer, ABC):
    """A layer that computes with Θ in the fastest of some ways.

    ways: those it may take, of `WAYS`; `cached` needs the memory of the dense weight. `choices` tells what was measured
    and taken by how much it was given.
    """

    bias: nn.Parameter | None
    ways: tuple[str, ...]
    choices: dict[tuple[int, ...], Choice]
    _seen: dict[torch.Size, str]

    def allow(self, ways: Sequence[str]) -> None:
        """Set the ways it may take.

        Raises:
            ConfigError: there is no such way, or `chain` is the only one and Θ offers none.
        """
        ways = (ways,) if isinstance(ways, str) else tuple(ways)
        wrong = [way for way in ways if way not in WAYS]
        if wrong or not ways:
            raise ConfigError(f"ways must be some of {', '.join(WAYS)}, found {', '.join(wrong) or 'none'}")
        if ways == (CHAIN,) and self.product() is None:
            raise self._no_chain()
        self.ways = ways

    def product(self) -> Product | None:
        """Return what the way `chain` multiplies with; None where Θ offers no such form."""
        return self.theta.compression.product(self.theta.value, self.shape)

    @abstractmethod
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute the layer with a dense weight."""

    @abstractmethod
    def contract(self, x: Tensor, product: Product) -> Tensor:
        """Compute the layer with a product in place of the weight."""

    @abstractmethod
    def use(self, x: Tensor) -> Use:
        """Return how the weight is used on one sample of x."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_recorded(x):
            return self._by_counts(x)
        way = self._seen.get(x.shape)
        if way is None:
            way = self._seen[x.shape] = self._way(x)
        return self.compute(x, way)

    def compute(self, x: Tensor, way: str) -> Tensor:
        """Compute the layer in one way; what that makes of Θ alone is kept for the next time, without gradients."""
        if way != CHAIN:
            return self.multiply(x, self.kept(CACHED, lambda: self.weight) if way == CACHED else self.weight)
        product = self.kept(CHAIN, self.product)
        if product is None:
            raise self._no_chain()
        return self.contract(x, product)

    def _way(self, x: Tensor) -> str:
        """Return the way for x, measured unless one is known for about as many samples."""
        if x.numel() == 0:
            return RECONSTRUCT
        samples, *rest = x.shape
        key = (samples.bit_length(), *rest)
        if key not in self.choices:
            self.choices[key] = self._choose_way(x)
        return self.choices[key].way

    def _choose_way(self, x: Tensor) -> Choice:
        """Choose the way for as many samples as x has."""
        macs = self._macs(x)
        ways = [way for way in self.ways if way in macs]
        if not ways:
            raise self._no_chain()
        calls: dict[str, Callable[[], object]] = {way: partial(self.compute, x, way) for way in ways}
        with torch.no_grad():
            choice = fastest(calls, {way: macs[way] for way in ways}, x.device)
        taken = {choice.way, *(other.way for other in self.choices.values())}
        self._kept = {way: kept for way, kept in self._kept.items() if way in taken}
        log.info("%s, %d samples: %s", self.name, len(x), choice)
        return choice

    def _by_counts(self, x: Tensor) -> Tensor:
        """Compute with gradients: by the product if it has fewer operations than the dense weight, or by the latter."""
        product = self.product() if CHAIN in self.ways else None
        if product is not None and product.plain and x.numel():
            use = self.use(x)
            if self.ways == (CHAIN,) or product.macs(use) <= self.shape.numel() * use.positions:
                return self.contract(x, product)
        return self.multiply(x, self.weight)

    def _macs(self, x: Tensor) -> dict[str, int]:
        """Return the multiply-accumulates of each way; for `reconstruct` at least one for each weight more."""
        use, product = self.use(x), self.kept(CHAIN, self.product) if CHAIN in self.ways else None
        dense = len(x) * self.shape.numel() * use.positions
        chain = {} if product is None else {CHAIN: len(x) * product.macs(use)}
        return chain | {RECONSTRUCT: dense + self.shape.numel(), CACHED: dense}

    def _no_chain(self) -> ConfigError:
        return ConfigError(f"{self.theta.compression} has no way chain; take one of {', '.join(WAYS[1:])}")

    def _forget(self) -> None:
        super()._forget()
        self.choices, self._seen = {}, {}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ways={', '.join(self.ways)}"


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

    def hold(self, theta: HeldTheta, view: View, shape: torch.Size) -> None:
        super().hold(theta, view, shape)
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        padding = cast(tuple[int, int], self.padding) if plain else (0, 0)
        self.geometry = Geometry(cast(tuple[int, int], self.stride), padding, cast(tuple[int, int], self.dilation))
        self.border = None if plain else list(self._reversed_padding_repeated_twice)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dim() == 4 else super().forward(x[None])[0]

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(self._pad_border(x), weight, self.bias, *self.geometry)

    def contract(self, x: Tensor, product: Product) -> Tensor:
        return product(self._pad_border(x), self.bias, self.geometry)

    def use(self, x: Tensor) -> Use:
        inputs = tuple(self._pad_border(x[:1]).shape[2:])
        return Use(tuple(self.shape), inputs, self.geometry.outputs(inputs, self.shape[2:]))

    def _pad_border(self, x: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return x if self.border is None else pad(x, self.border, mode=mode)


def replace_layers(
    network: nn.Module, plan: Plan, thetas: Sequence[HeldTheta], *, ways: Sequence[str] = WAYS
) -> list[ThetaLayer | None]:
    """Change layers of `network` with a task of their own, so that they hold its Θ: for each task the layer or None.

    They share their weight with nothing; `compact_layer` says which. The weights of the others are left as they are.
    """
    layers, changed = own_weights(network, nn.Module), list[ThetaLayer | None]()
    for task, theta in zip(plan.tasks, thetas, strict=True):
        layer = layers.get(task.params[0]) if len(task.params) == 1 else None
        compact = None if layer is None else compact_layer(layer, task.view, theta, ways=ways)
        if compact is not None:
            compact.name = task.params[0]
        changed.append(compact)
    return changed


def compact_layer(layer: nn.Module, view: View, theta: HeldTheta, *, ways: Sequence[str] = WAYS) -> ThetaLayer | None:
    """Change a layer into one whose weight is Δ(Θ) through a view, all else of it as it was; None where none is made.

    It is the same object, so that whatever else refers to the layer refers to the compact one. It must be of a class of
    torch, without hooks, and with neither buffers nor modules nor parameters beside weight and bias: one that its
    compression has a layer for, or a Linear or an ungrouped Conv2d (no subclasses).
    """
    kind = _compact_kind(layer, theta)
    if kind is None:
        return None
    shape = cast(Tensor, layer.weight).shape
    del layer.weight
    layer.__class__ = kind
    compact = cast(ThetaLayer, layer)
    compact.hold(theta, view, shape)
    if isinstance(compact, CompactLayer):
        compact.allow(ways)
    return compact


@torch.no_grad()
def _compact_kind(layer: nn.Module, theta: HeldTheta) -> type[ThetaLayer] | None:
    """Return the class of the compact layer, if there is one."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    more = any((*hooks, layer._buffers, layer._modules, layer._parameters.keys() - {"weight", "bias"}))
    if more or not type(layer).__module__.startswith("torch.nn."):
        return None
    if theta.compression.layer(theta.value, layer) is not None:
        return _own_kind(type(layer))  # type: ignore[arg-type]
    if type(layer) is nn.Linear:
        return CompactLinear
    return CompactConv2d if type(layer) is nn.Conv2d and layer.groups == 1 else None


@cache
def _own_kind(kind: type[nn.Module]) -> type[OwnLayer]:
    """Return the class of layers of a kind that compute with what their compression makes of Θ."""
    return type(f"Own{kind.__name__}", (OwnLayer, kind), {})


def chosen_ways(network: nn.Module) -> list[dict[str, Any]]:
    """Return what every layer that chooses has chosen, a row for each number of samples (the least it stands for).

    Milliseconds are None where a way was not measured, multiply-accumulates (of all samples) where there is none.
    """
    return [
        {"layer": layer.name, "samples": 1 << max(0, key[0] - 1), "way": choice.way}
        | {f"ms/{way}": 1e3 * choice.seconds[way] if choice.seconds.get(way) else None for way in WAYS}
        | {"macs/chain": choice.macs.get(CHAIN), "macs/dense": choice.macs.get(CACHED)}
        for layer in network.modules()
        if isinstance(layer, CompactLayer)
        for key, choice in layer.choices.items()
    ]
