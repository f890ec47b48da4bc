"""A trained network compressed at once and without retraining, at many ratios, each from the same weights.

Zimmer, Spiegel, Pokutta, "Compression-aware training of neural networks using Frank-Wolfe", arXiv 2205.11921 (2022).
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn

from nncompress.compressions.decomposition.svd import exact_svd, singular_values
from nncompress.compressions.plan import check_finite
from nncompress.errors import ConfigError
from nncompress.problem import weights_of
from nncompress.surgery.channels import own_weights
from nncompress.surgery.norms import norms_behind
from nncompress.surgery.pruning import smaller

log = logging.getLogger(__name__)

ROUNDING = 1e-9
"""How far below a whole number a rank may lie: (1 - 0.9) 10 is 0.99999..."""


@dataclass(frozen=True, kw_only=True)
class OneShot(ABC):
    """A way to take a part of a network's numbers away, in [0, 1).

    - at: the parts, in place of those that all methods are given.

    Raises:
        ConfigError: a part is outside [0, 1).
    """

    acts_on: ClassVar[str]
    """What a network must have for it, in words."""

    at: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_parts("at", self.at or ())

    @abstractmethod
    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that the compression acts on, by name."""

    @abstractmethod
    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        """Return `network`, which may be changed, or what becomes of it, without `part` of its numbers."""

    @abstractmethod
    def squared_distances(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        """Return ‖w - its compression‖² (0-dimensional, float64) of the `weights` at each part."""

    @final
    @torch.no_grad()
    def compressed_network(self, model: nn.Module, x: Tensor, part: float) -> nn.Module:
        """Return a copy in evaluation mode without a part of its numbers, and without their memory where possible.

        Args:
            x: some samples (n, *input_shape).

        Raises:
            ConfigError: the part is outside [0, 1).
            Diverged: a weight, which is named, is not finite.
        """
        check_parts("part", [part])
        check_finite(dict(model.named_parameters()))
        return self.apply(copy.deepcopy(model).eval(), x, part).eval()

    @final
    @torch.no_grad()
    def distances(self, model: nn.Module, parts: Sequence[float]) -> list[float]:
        """Return ‖w - its compression‖ / ‖w‖ over the weights it acts on, at each part (0 without any), without data.

        Raises:
            ConfigError, Diverged: as with `compressed_network`.
        """
        check_parts("part", parts)
        weights = self.weights(model)
        check_finite(weights)
        if not weights or not parts:
            return [0.0 for _ in parts]
        total = torch.stack([w.double().square().sum() for w in weights.values()]).sum()
        shares = torch.stack(self.squared_distances(model, parts)) / torch.where(total > 0, total, 1)
        return list(shares.sqrt().tolist())


@dataclass(frozen=True, kw_only=True)
class Filters(OneShot):
    """Take round(part c_out) filters of the smallest norm out of every convolution (arXiv 2205.11921); one stays.

    Among equals the first ones stay. The distance is that of the filters.

    - norm: 1 or 2, of a filter's entries; 1 is the authors'.
    - joint: take round(part sum c_out) filters, those that are smallest in the whole network; one stays in every layer.
    - shifts: with a filter goes its bias, its scale and shift in the batch norms that read nothing but what the
      convolution returns, and their memory, where `surgery.pruning.smaller` can take them out. Without, the filters
      alone become 0 and what the batch norm makes of 0 remains, as in the authors' code.

    Raises:
        ValueError: another norm.
    """

    acts_on: ClassVar[str] = "a Conv2d"

    norm: float = 1.0
    joint: bool = False
    shifts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2, found {self.norm}")

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: model.get_parameter(name).detach() for name in own_weights(model, nn.Conv2d)}

    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        dead = self._dead_filters(self._norms(network), part)
        norms = norms_behind(network, x[:1]) if self.shifts else {}
        for name, gone in dead.items():
            layer = cast(nn.Conv2d, network.get_submodule(name))
            for module in [layer, *norms.get(name, ())]:
                module.weight[gone] = 0
                if self.shifts and module.bias is not None:
                    module.bias[gone] = 0
        if not self.shifts:
            return network
        network, obstacle = smaller(network, x)
        if obstacle is not None:
            log.info("%s", obstacle)
        return network

    def squared_distances(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        norms = self._norms(model)
        squares = torch.cat([w.double().flatten(1).square().sum(1) for w in self.weights(model).values()])
        return [squares[torch.cat([*self._dead_filters(norms, part).values()])].sum() for part in parts]

    def _norms(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the norms of the filters (channels out,) of every convolution."""
        weights = {name.removesuffix("weight").rstrip("."): w for name, w in self.weights(model).items()}
        return {name: torch.linalg.vector_norm(w.flatten(1), self.norm, dim=1) for name, w in weights.items()}

    def _dead_filters(self, norms: Mapping[str, Tensor], part: float) -> dict[str, Tensor]:
        """Return which filters of every convolution go: bool (channels out,)."""
        if not self.joint:
            return {name: _smallest(n, min(round(part * len(n)), len(n) - 1)) for name, n in norms.items()}
        scores = [n.index_fill(0, n.argmax(), math.inf) for n in norms.values()]
        total = sum(map(len, scores))
        gone = _smallest(torch.cat(scores), min(round(part * total), total - len(scores)))
        return dict(zip(norms, torch.split(gone, [*map(len, scores)]), strict=True))


@dataclass(frozen=True, kw_only=True)
class Weights(OneShot):
    """Set the round(part n) smallest of all n entries of the weights to 0, among equals the last ones.

    - everything: the weights are all parameters, biases and batch norm included (Miao et al., "Learning
      pruning-friendly networks via Frank-Wolfe", ICLR 2022), not those of two or more dimensions alone, as in
      arXiv 2205.11921.
    """

    acts_on: ClassVar[str] = "a parameter"

    everything: bool = False

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in model.named_parameters()} if self.everything else weights_of(model)

    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        tensors = self.weights(network).values()
        values = torch.cat([w.abs().flatten() for w in tensors])
        dead = _smallest(values, round(part * len(values)))
        for w, gone in zip(tensors, torch.split(dead, [w.numel() for w in tensors]), strict=True):
            w.masked_fill_(gone.view(w.shape), 0)
        return network

    def squared_distances(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        values = torch.cat([w.abs().flatten() for w in self.weights(model).values()])
        squares = values.sort().values.double().square()
        return [squares[: round(part * len(squares))].sum() for part in parts]


@dataclass(frozen=True, kw_only=True)
class LowRank(OneShot):
    """Replace every convolution by the best one of rank r = max(1, floor((1 - part) min(c_out, c_in kh kw))).

    It becomes two layers: the first makes r channels with the original kernel, the second, 1x1, all of them
    (arXiv 2205.11921). They have r (c_in kh kw + c_out) numbers, which may be more than before. Grouped convolutions,
    subclasses and weights that several layers share stay as they are.

    - linear: Linear layers too; the paper has convolutions alone.
    """

    acts_on: ClassVar[str] = "a Conv2d without groups (or a Linear, with linear=true)"

    linear: bool = False

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: model.get_parameter(name).detach() for name in self._layers(model)}

    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        new = {layer: factorise(layer, rank_at(part, layer.weight.shape)) for layer in self._layers(network).values()}
        if network in new:
            return new[network]
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if module in new:
                network.set_submodule(name, new[module])
        return network

    def squared_distances(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        matrices = [w.flatten(1) for w in self.weights(model).values()]
        spectra = [singular_values(matrix).double().square() for matrix in matrices]
        ranks = [[rank_at(part, matrix.shape) for matrix in matrices] for part in parts]
        return [torch.stack([s[r:].sum() for s, r in zip(spectra, rs, strict=True)]).sum() for rs in ranks]

    def _layers(self, model: nn.Module) -> dict[str, Any]:
        """Return the layers to replace by the names of their weights."""
        kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear) if self.linear else (nn.Conv2d,)
        layers = own_weights(model, *kinds)
        return {name: m for name, m in layers.items() if type(m) in kinds and getattr(m, "groups", 1) == 1}


def _smallest(values: Tensor, count: int) -> Tensor:
    """Return which of values (n,) are the `count` smallest, among equals the last ones: bool (n,)."""
    gone = torch.zeros_like(values, dtype=torch.bool)
    gone[values.flip(0).argsort(stable=True)[:count]] = True  # backwards, so that the last ones come first
    return gone.flip(0)


def check_parts(name: str, parts: Sequence[float]) -> None:
    """Refuse parts outside [0, 1).

    Raises:
        ConfigError: with all of them, after `name`.
    """
    wrong = ", ".join(f"{part}" for part in parts if not 0 <= part < 1)
    if wrong:
        raise ConfigError(f"{name} must be the part to take away, in [0, 1), found {wrong}; 0.9 leaves a tenth")


def rank_at(part: float, shape: Sequence[int]) -> int:
    """Return max(1, floor((1 - part) m)), m the smaller side of a weight (c_out, ...) as a matrix with c_out rows."""
    return max(1, math.floor((1 - part) * min(shape[0], math.prod(shape[1:])) + ROUNDING))


@torch.no_grad()
def factorise(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """Return two layers that do what `layer` does with the best approximation U diag(s) V of its weight of that rank.

    The first has the weights diag(s) V, the kernel, stride, padding and dilation of the layer and no bias, the second
    (1x1) the weights U and the bias. The convolution must be without groups. arXiv 2205.11921.
    """
    U, s, V = exact_svd(layer.weight.detach().flatten(1), rank)
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Conv2d):  # without values: random ones would change the global generator
        first = nn.Conv2d(
            layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
            bias=False, padding_mode=layer.padding_mode, device="meta",
        )  # fmt: skip
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device="meta")
    else:
        first = nn.Linear(layer.in_features, rank, bias=False, device="meta")
        second = nn.Linear(rank, layer.out_features, bias=False, device="meta")
    for module, weight in ((first, s.unsqueeze(1) * V), (second, U)):
        values = weight.detach().reshape(module.get_parameter("weight").shape)
        module.weight = nn.Parameter(values.clone(memory_format=torch.contiguous_format))
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, second)
