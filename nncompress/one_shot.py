"""A trained network compressed at once and without retraining, at many ratios, each from the same weights.

Zimmer, Spiegel, Pokutta, "Compression-aware training of neural networks using Frank-Wolfe", arXiv 2205.11921 (2022).
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn

from nncompress.batch_norms import norms_behind, recalibrated, with_statistics
from nncompress.compact.smaller import smaller
from nncompress.compressions.plan import check_finite
from nncompress.compressions.truncated_svd import singular_values
from nncompress.errors import ConfigError, Unsupported
from nncompress.low_rank_network import factorised, rank_at
from nncompress.metrics import evaluate, layers_of
from nncompress.problem import Problem, weights_of

log = logging.getLogger(__name__)

COMPARED = 4
"""Samples on which a smaller network is compared with the zeroed one."""


@dataclass(frozen=True, kw_only=True)
class OneShot(ABC):
    """A way to take a part of a network's numbers away, in [0, 1).

    at: the parts, in place of those that all methods are given. A subclass has to give `acts_on`, `weights`, `apply`
    and `lost`.
    """

    acts_on: ClassVar[str]
    """What a network must have for it, in words."""

    at: Sequence[float] | None = None

    @abstractmethod
    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors that the compression acts on, by name."""

    @abstractmethod
    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        """`network`, which may be changed, or what becomes of it, without `part` of its numbers."""

    @abstractmethod
    def lost(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        """‖w - its compression‖² (0-dimensional, float64) of the `weights` at each part."""

    @final
    @torch.no_grad()
    def compressed(self, model: nn.Module, x: Tensor, part: float) -> nn.Module:
        """A copy in evaluation mode without a part of its numbers, and without their memory where that is possible.

        x (n, *input_shape): some samples. Raises ConfigError for a part outside [0, 1); Diverged, naming the weight,
        when one is not finite.
        """
        _check_parts("part", [part])
        check_finite(dict(model.named_parameters()))
        return self.apply(copy.deepcopy(model).eval(), x, part).eval()

    @final
    @torch.no_grad()
    def distances(self, model: nn.Module, parts: Sequence[float]) -> list[float]:
        """‖w - its compression‖ / ‖w‖ over the weights it acts on, at each part (0 without any); no data is needed.

        Raises as `compressed` does.
        """
        _check_parts("part", parts)
        weights = self.weights(model)
        check_finite(weights)
        if not weights or not parts:
            return [0.0 for _ in parts]
        total = torch.stack([w.double().square().sum() for w in weights.values()]).sum()
        shares = torch.stack(self.lost(model, parts)) / torch.where(total > 0, total, 1)
        return list(shares.sqrt().tolist())


@dataclass(frozen=True, kw_only=True)
class Filters(OneShot):
    """round(part c_out) filters of the smallest norm of every convolution go (arXiv 2205.11921), at least one stays.

    norm: 1 or 2, of a filter's entries. joint: round(part sum c_out) filters go, those that are smallest in the whole
    network, and one stays in every layer. Among equals the first ones stay. shifts: with a filter go its bias and its
    scale and shift in the batch norms that read nothing but what the convolution returns, then also their memory, where
    `compact.smaller` can take them out; without, the filters alone become 0 and what the batch norm makes of 0 remains,
    as in the authors' code. The distance is that of the filters. Raises ValueError for another norm.
    """

    acts_on: ClassVar[str] = "a Conv2d"

    norm: float = 1.0
    joint: bool = False
    shifts: bool = True

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2, found {self.norm}")

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        convolutions = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
        return {f"{name}.weight": m.weight.detach() for name, m in convolutions}

    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        dead = self._dead(self._norms(network), part)
        norms = norms_behind(network, x[:1]) if self.shifts else {}
        for name, gone in dead.items():
            layer = cast(nn.Conv2d, network.get_submodule(name))
            layer.weight[gone] = 0
            for module in [layer, *norms.get(name, ())] if self.shifts else []:
                if module.bias is not None:
                    module.bias[gone] = 0
            for module in norms.get(name, ()):
                module.weight[gone] = 0
        if not self.shifts:
            return network
        found, words = smaller(network, x)
        if words is not None:
            log.info("%s", words)
        return found

    def lost(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        norms = self._norms(model)
        squares = torch.cat([w.double().flatten(1).square().sum(1) for w in self.weights(model).values()])
        return [squares[torch.cat([*self._dead(norms, part).values()])].sum() for part in parts]

    def _norms(self, model: nn.Module) -> dict[str, Tensor]:
        """The norms of the filters (channels out,) of every convolution."""
        weights = {name.removesuffix(".weight"): w for name, w in self.weights(model).items()}
        return {name: torch.linalg.vector_norm(w.flatten(1), self.norm, dim=1) for name, w in weights.items()}

    def _dead(self, norms: Mapping[str, Tensor], part: float) -> dict[str, Tensor]:
        """Which filters go: bool (channels out,)."""
        if not self.joint:
            return {name: _smallest(n, min(round(part * len(n)), len(n) - 1)) for name, n in norms.items()}
        scores = [n.index_fill(0, n.argmax(), math.inf) for n in norms.values()]
        total = sum(map(len, scores))
        gone = _smallest(torch.cat(scores), min(round(part * total), total - len(scores)))
        return dict(zip(norms, torch.split(gone, [*map(len, scores)]), strict=True))


@dataclass(frozen=True, kw_only=True)
class Weights(OneShot):
    """The round(part n) smallest of all n entries of the weights become 0; among equals the last ones.

    The weights are the parameters of two or more dimensions (arXiv 2205.11921). everything: all parameters, biases and
    batch norm included (Miao et al., "Learning pruning-friendly networks via Frank-Wolfe", ICLR 2022).
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

    def lost(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        values = torch.cat([w.abs().flatten() for w in self.weights(model).values()])
        squares = values.sort().values.double().square()
        return [squares[: round(part * len(squares))].sum() for part in parts]


@dataclass(frozen=True, kw_only=True)
class LowRank(OneShot):
    """Every convolution becomes the best one of rank max(1, floor((1 - part) min(c_out, c_in kh kw))), as two layers.

    The first makes r channels with the original kernel, the second, 1x1, all of them (arXiv 2205.11921); r numbers
    c_in kh kw + c_out, which may be more than before. Of grouped convolutions and subclasses nothing is taken. linear:
    Linear layers too.
    """

    acts_on: ClassVar[str] = "a Conv2d without groups (or a Linear, with linear=true)"

    linear: bool = False

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{name}.weight": m.weight.detach() for name, m in model.named_modules() if self._takes(m)}

    def apply(self, network: nn.Module, x: Tensor, part: float) -> nn.Module:
        new: dict[nn.Module, nn.Module] = {}
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if self._takes(module):
                if module not in new:
                    new[module] = factorised(module, rank_at(part, module.weight.shape))
                network.set_submodule(name, new[module])
        return network

    def lost(self, model: nn.Module, parts: Sequence[float]) -> list[Tensor]:
        matrices = [w.flatten(1) for w in self.weights(model).values()]
        spectra = [singular_values(matrix).double().square() for matrix in matrices]
        ranks = [[rank_at(part, matrix.shape) for matrix in matrices] for part in parts]
        return [torch.stack([s[r:].sum() for s, r in zip(spectra, rs, strict=True)]).sum() for rs in ranks]

    def _takes(self, module: Any) -> bool:
        return (type(module) is nn.Conv2d and module.groups == 1) or (self.linear and type(module) is nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Study:
    """The `methods` by their names, the parts they take away, and the rest of what `one_shot` is given."""

    methods: Mapping[str, OneShot]
    at: Sequence[float]
    recalibrate: int
    seed: int

    def suited(self, model: nn.Module) -> Study:
        """The study with the methods that find something to take away in a network; of the others it is logged.

        Raises Unsupported when there is none.
        """
        useless = {name: method for name, method in self.methods.items() if not method.weights(model)}
        if len(useless) == len(self.methods):
            raise Unsupported(
                "compress_at needs a method that the network has something for, found "
                f"{', '.join(useless) or 'none'} in compress_by; give compress_by another, or leave compress_at out"
            )
        for name, method in useless.items():
            log.info("compress_by.%s is left out: it requires %s", name, method.acts_on)
        return replace(self, methods={name: m for name, m in self.methods.items() if name not in useless})

    def distances(self, model: nn.Module) -> dict[str, float]:
        """As the function `distances`."""
        return distances(model, self.methods, self.at)

    def rows(self, problem: Problem, network: nn.Module) -> list[dict[str, Any]]:
        """As `one_shot`."""
        return one_shot(problem, network, self.methods, self.at, recalibrate=self.recalibrate, seed=self.seed)


@torch.no_grad()
def one_shot(
    problem: Problem,
    network: nn.Module,
    methods: Mapping[str, OneShot],
    at: Sequence[float],
    *,
    recalibrate: int,
    seed: int,
) -> list[dict[str, Any]]:
    """What is left of a trained `network` on the test data at every part of every method, a row each.

    Part 0 is the network itself. recalibrate: with so many training samples, drawn with `seed`, every row comes again
    with the statistics of the batch norms `recalibrated` (0: without). `ratio/*` are those of the numbers that are not
    zero, and of the operations with them, to all of the problem's network; `stability` is 1 - (a0 - a)/a0 with the
    accuracies a and, of the network itself, a0; `smaller` says whether zeros take no memory. Raises as `check_methods`
    does; ConfigError for another `recalibrate`; Diverged, naming the weight, when one is not finite.
    """
    check_methods(methods, at, network)
    check_finite(dict(network.named_parameters()))
    samples, x = _samples(problem, network, recalibrate, seed), problem.data.train.x[:COMPARED]
    dense = _measured(problem, network, samples)
    accuracy, numbers = dense[0]["accuracy/test"], _numbers(network)
    rows = []
    for name, method in methods.items():
        parts = [0.0, *(part for part in _parts(method, at) if part > 0)]
        for part, distance in zip(parts, method.distances(network, parts), strict=True):
            found = method.compressed(network, x, part) if part > 0 else network
            about = {"method": name, "part": part, "distance": distance, "smaller": _numbers(found) < numbers}
            for row in _measured(problem, found, samples) if part > 0 else dense:
                stability = 1 - (accuracy - row["accuracy/test"]) / accuracy if accuracy > 0 else None
                rows.append(about | row | {"stability": stability})
    return rows


def distances(model: nn.Module, methods: Mapping[str, OneShot], at: Sequence[float]) -> dict[str, float]:
    """The distances of a network from its compressions, as `distance/<method>/<part>`. Raises as `one_shot` does."""
    check_methods(methods, at, model)
    chosen = {name: _parts(method, at) for name, method in methods.items()}
    return {
        f"distance/{name}/{part:g}": distance
        for name, parts in chosen.items()
        for part, distance in zip(parts, methods[name].distances(model, parts), strict=True)
    }


def check_methods(methods: Mapping[str, OneShot], at: Sequence[float], model: nn.Module) -> None:
    """Raise ConfigError for a part outside [0, 1), Unsupported for a method that finds nothing in the network."""
    _check_parts("compress_at", at)
    for name, method in methods.items():
        _check_parts(f"compress_by.{name}.at", method.at or ())
        if not method.weights(model):
            raise Unsupported(
                f"compress_by.{name} requires {method.acts_on}, found none in {type(model).__name__}; "
                f"leave it out with ~compress_by.{name}"
            )


def _measured(problem: Problem, network: nn.Module, samples: Tensor | None) -> list[dict[str, Any]]:
    """Accuracy, loss and sizes of a network, without and (given samples) with recalibration."""
    networks = [network] if samples is None else [network, recalibrated(network, samples)]
    dense, stored = _numbers(problem.model), sum(int(torch.count_nonzero(p)) for p in network.parameters())
    sample = problem.data.train.x[:1]
    before = sum(layer.entries * layer.positions for layer in layers_of(problem.model, sample))
    size = {"ratio/params": stored / dense, "ratio/macs": _macs(network, sample) / before if before else 1.0}
    rows = []
    for again, candidate in enumerate(networks):
        loss, accuracy = evaluate(candidate, problem.data.test, problem.loss)
        rows.append({"recalibrated": again > 0, "accuracy/test": accuracy, "loss/test": loss} | size)
    return rows


def _macs(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one sample x (1, *input_shape) with the weights that are not zero."""
    nonzero = {name: int(torch.count_nonzero(w)) for name, w in weights_of(network).items()}
    layers = layers_of(network, x)
    return sum((layer.entries if layer.name is None else nonzero[layer.name]) * layer.positions for layer in layers)


def _samples(problem: Problem, network: nn.Module, count: int, seed: int) -> Tensor | None:
    """`count` training samples, at most all, without replacement; None where nothing is to be recalibrated."""
    if count < 0 or count == 1:
        raise ConfigError(f"recalibrate must be 0, or at least 2 samples (one has no variance), found {count}")
    if count == 0 or not with_statistics(network):
        return None
    x = problem.data.train.x
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
    return x[drawn.to(x.device)]


def _smallest(values: Tensor, count: int) -> Tensor:
    """Of values (n,) the `count` smallest, among equals the last ones: bool (n,)."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = values.sort().values[count - 1]
    gone = values < limit
    equal = (values == limit).nonzero().squeeze(1)
    gone[equal[len(equal) - count + int(gone.sum()) :]] = True
    return gone


def _numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _parts(method: OneShot, at: Sequence[float]) -> list[float]:
    """The parts of a method, rising, each once."""
    return sorted({float(part) for part in (at if method.at is None else method.at)})


def _check_parts(name: str, parts: Sequence[float]) -> None:
    wrong = ", ".join(f"{part}" for part in parts if not 0 <= part < 1)
    if wrong:
        raise ConfigError(f"{name} must be the part to take away, in [0, 1), found {wrong}; 0.9 leaves a tenth")
