"""The scaling factors of all batch norms as one vector: reading and writing them, masks over them, thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nncompress import parallel
from nncompress.compressions.base import FLOAT_BITS
from nncompress.compressions.target import round_up
from nncompress.errors import ConfigError, Unsupported
from nncompress.problem import Problem
from nncompress.surgery.channels import declares_scales, guard_channels, mask_channels, norm_of, scales_of
from nncompress.surgery.removal import remove_channels
from nncompress.surgery.uses import layers_of


@dataclass(frozen=True)
class Scales:
    """The scaling factors gamma of a network's batch norms, in forward order; m is their number."""

    names: tuple[str, ...]
    gammas: list[Tensor]
    shifts: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Scales:
        """Return those of every scale the network declares, else of every batch norm.

        Raises Unsupported when there is none, or one that is frozen.
        """
        scales = scales_of(model)
        norms = [norm_of(model, scale) for scale in scales]
        if not norms:
            raise Unsupported(
                "network slimming needs batch norms with scaling factors, found none in the network; choose a model "
                "with batch norm (vgg19, resnet164, densenet40), or another solver"
            )
        frozen = [s.norm for s, norm in zip(scales, norms, strict=True) if not norm.weight.requires_grad]
        if frozen:
            raise Unsupported(
                f"every scaling factor must be trainable, found that {frozen[0]} is frozen (requires_grad=False); "
                "unfreeze it"
            )
        names = tuple(scale.norm for scale in scales)
        return cls(names, [norm.weight for norm in norms], [norm.bias for norm in norms])

    @property
    def sizes(self) -> list[int]:
        """Return the channels of each batch norm."""
        return [len(gamma) for gamma in self.gammas]

    def gamma(self) -> Tensor:
        """Return all scaling factors (m,), detached."""
        return torch.cat([gamma.detach() for gamma in self.gammas])

    @torch.no_grad()
    def put(self, gamma: Tensor) -> None:
        """Overwrite the scaling factors with those of a vector (m,)."""
        torch._foreach_copy_(self.gammas, torch.split(gamma, self.sizes))

    @torch.no_grad()
    def mask(self, keep: list[Tensor]) -> None:
        """Multiply scaling factors and shifts by 1 or 0, one tensor for each batch norm."""
        torch._foreach_mul_(self.gammas, keep)
        torch._foreach_mul_(self.shifts, keep)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the parts of a vector (m,) by the names of the batch norms."""
        return dict(zip(self.names, torch.split(vector, self.sizes), strict=True))


def largest(scores: Tensor, count: int) -> Tensor:
    """Return the `count` largest of scores (m,), bool (m,); among equals the first."""
    keep = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.argsort(descending=True, stable=True)[:count]] = True
    return keep


def choose_channels(
    problem: Problem, model: nn.Module, keep: Tensor, scores: Tensor, *, fold: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Return which of the channels `keep` (m,) a network is left with, by batch norm, and notes of what had to change.

    Every layer is left a channel, or its residual branch goes (not with `fold`). Where the problem has a `round_to`, as
    many of the other channels stay, those with the largest `scores` (m,), as make the number of each batch norm a
    multiple of it, or all; where none is left there is none. With a target of the problem as many more channels go,
    those with the smallest scores, as it takes to meet it: as few as possible, by bisection, rounding included.
    Raises Unsupported for a target of a network that does not say how its channels are removed, or that one channel a
    layer exceeds.
    """
    scales = Scales.of(model)
    ranks = scores + (scores.max() + 1) * keep  # where one has to stay, rather one of `keep`

    def left(count: int) -> tuple[dict[str, Tensor], list[str]]:
        best = keep & largest(scores.masked_fill(~keep, -1), count)
        full, notes = guard_channels(model, scales.named(best), scales.named(ranks), branches=not fold)
        if problem.round_to > 1:
            for name, own in scales.named(ranks).items():
                least = round_up(int(full[name].sum()), problem.round_to, len(own))
                full[name] = largest(own.masked_fill(full[name], torch.inf), least)
        return full, notes

    if problem.target is None:
        return left(len(keep))
    if not declares_scales(model):
        raise Unsupported(
            "a target needs a network that says how its channels are removed (a method scales()), found "
            f"{type(model).__name__} without one; give no target"
        )
    return left(_count(problem, int(keep.sum()), lambda count: mask_channels(model, left(count)[0], fold=fold)))


def _count(problem: Problem, most: int, network: Callable[[int], nn.Module]) -> int:
    """Return the largest number of channels, at most `most`, with which a network meets the problem's target."""
    name, value = problem.target or ("ratio", 1.0)
    dense = size_of(problem, problem.model, name)
    limit = value * dense if value <= 1 else value
    least = size_of(problem, remove_channels(network(0)), name)
    if least > limit:
        channels = "one channel" if problem.round_to == 1 else f"{problem.round_to} channels (round_to)"
        raise Unsupported(
            f"target.{name}={value:g} must leave {channels} in every layer, which is {least / dense:.4g} of the "
            "network; give a larger target"
        )
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if size_of(problem, remove_channels(network(middle)), name) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def size_of(problem: Problem, network: nn.Module, name: str) -> int:
    """Return the size of a network by the name of a target: multiply-accumulates of one sample, bits, or parameters.

    Of bits, one a channel says which are left, as in `metrics.sizes`.
    """
    if name == "macs":
        layers = layers_of(network, problem.data.train.x[:1])
        return sum(layer.entries * layer.positions for layer in layers)
    dense, left = (sum(p.numel() for p in model.parameters()) for model in (problem.model, network))
    if name != "bits":
        return left
    return FLOAT_BITS * left + (sum(Scales.of(problem.model).sizes) if left < dense else 0)


def groups_of(model: nn.Module, decay_scales: bool) -> list[Any]:
    """Return the trainable parameters for an optimiser, in two groups when its weight decay spares the scales."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if decay_scales:
        return trained
    own = {id(gamma) for gamma in Scales.of(model).gammas}
    others = [p for p in trained if id(p) not in own]
    return [{"params": others}, {"params": [p for p in trained if id(p) in own], "weight_decay": 0.0}]


def check_slimming(problem: Problem, batch_size: int, fold: bool) -> None:
    """Raise Unsupported, saying what is missing, for a problem whose network cannot be slimmed, or not as is asked.

    Raises ConfigError for a batch larger than the data.
    """
    gamma = Scales.of(problem.model).gamma()
    choose_channels(problem, problem.model, torch.ones_like(gamma, dtype=torch.bool), gamma.abs())
    if fold and not declares_scales(problem.model):
        raise Unsupported(
            "folding needs a network that says which layers read a channel (a method scales()), found "
            f"{type(problem.model).__name__} without one; give solver.fold=false"
        )
    n, processes = len(problem.data.train), parallel.size()
    if batch_size * processes > n:
        batches = f"{batch_size} samples" if processes == 1 else f"{processes} times {batch_size} samples"
        raise ConfigError(
            f"a batch must fit in the training data, found batches of {batches} and {n} samples of data; give a "
            f"solver.batch_size of at most {n // processes}"
        )
    if problem.plan.tasks:
        raise Unsupported(
            f"network slimming removes channels and compresses no weights, found a plan for "
            f"{problem.plan.tasks[0].params[0]}; use compression=none, then another solver with reference=<this run>"
        )
