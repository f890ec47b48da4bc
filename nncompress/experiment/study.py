"""One trained network at many ratios: compressed at once by several methods, each time from the same weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.compressions.plan import check_finite
from nncompress.errors import ConfigError, Unsupported
from nncompress.experiment.one_shot import OneShot, check_parts
from nncompress.metrics import evaluate
from nncompress.problem import Problem, weights_of
from nncompress.surgery.norms import recalibrate_norms, with_statistics
from nncompress.surgery.removal import kind_of
from nncompress.surgery.uses import layers_of

log = logging.getLogger(__name__)

COMPARED = 4
"""Samples on which a smaller network is compared with the zeroed one."""


@dataclass(frozen=True, kw_only=True)
class OneShotStudy:
    """What a network is compressed to without retraining, arXiv 2205.11921: parts to take away by several methods.

    - methods: the methods by their names.
    - at: the parts, in [0, 1), of a method without its own.
    - recalibrate: so many training samples, drawn with `seed`, for the statistics of batch norms; 0: none.

    Raises:
        ConfigError: a part or a number out of range.
    """

    methods: Mapping[str, OneShot]
    at: Sequence[float]
    recalibrate: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_parts("compress_at", self.at)
        if self.recalibrate < 0 or self.recalibrate == 1:
            raise ConfigError(
                f"recalibrate must be 0, or at least 2 samples (one has no variance), found {self.recalibrate}"
            )

    def for_network(self, model: nn.Module) -> OneShotStudy:
        """Return the study with the methods that have something to act on in a network; of the others it is logged.

        Raises:
            Unsupported: there is none.
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
        """Return the distances of a network from its compressions, as `distance/<method>/<part>`, without data."""
        return {
            f"distance/{name}/{part:g}": distance
            for name, method in self.methods.items()
            for part, distance in zip(self._parts(method), method.distances(model, self._parts(method)), strict=True)
        }

    @torch.no_grad()
    def rows(self, problem: Problem, network: nn.Module) -> Iterator[dict[str, Any]]:
        """Yield a row for every part of every method: what is left of a trained `network` on the test data.

        Part 0 is the network itself. With `recalibrate` every row of a network with batch norms comes again with their
        statistics anew. `ratio/*` are those of the numbers that are not zero, and of the operations with them, to all
        of the problem's network; `stability` is 1 - (a0 - a)/a0 with the accuracies a and, of the network itself, a0;
        `smaller` says whether zeros take no memory. A method that leaves a network that cannot be computed ends there,
        and it is logged.

        Raises:
            Diverged: a weight, which is named, is not finite.
        """
        check_finite(dict(network.named_parameters()))
        samples, x = None, problem.data.train.x[:COMPARED]
        if self.recalibrate > 0 and with_statistics(network):
            samples = problem.data.train.some(self.recalibrate, self.seed).x
        dense = _measure(problem, network, samples)
        accuracy, numbers = dense[0]["accuracy/test"], _count(network)
        for name, method in self.methods.items():
            parts = [0.0, *(part for part in self._parts(method) if part > 0)]
            for part, distance in zip(parts, method.distances(network, parts), strict=True):
                try:
                    compressed = method.compressed_network(network, x, part) if part > 0 else network
                    rows = _measure(problem, compressed, samples) if part > 0 else dense
                except Exception as error:  # a forward that needs the layers as they were
                    log.warning("compress_by.%s is left out from %g on: %s", name, part, kind_of(error))
                    break
                about = {"method": name, "part": part, "distance": distance, "smaller": _count(compressed) < numbers}
                for row in rows:
                    stability = 1 - (accuracy - row["accuracy/test"]) / accuracy if accuracy > 0 else None
                    yield about | row | {"stability": stability}

    def _parts(self, method: OneShot) -> list[float]:
        """Return the parts of a method, rising, each once."""
        return sorted({float(part) for part in (self.at if method.at is None else method.at)})


def _measure(problem: Problem, network: nn.Module, samples: Tensor | None) -> list[dict[str, Any]]:
    """Return accuracy, loss and sizes of a network, without and (given samples) with recalibration."""
    networks = [network] if samples is None else [network, recalibrate_norms(network, samples)]
    nonzero, sample = sum(int(torch.count_nonzero(p)) for p in network.parameters()), problem.data.train.x[:1]
    dense = sum(layer.entries * layer.positions for layer in layers_of(problem.model, sample))
    macs = _macs(network, sample) / dense if dense else 1.0
    size = {"ratio/params": nonzero / _count(problem.model), "ratio/macs": macs}
    rows = []
    for again, candidate in enumerate(networks):
        loss, accuracy = evaluate(candidate, problem.data.test, problem.loss)
        rows.append({"recalibrated": again > 0, "accuracy/test": accuracy, "loss/test": loss} | size)
    return rows


def _macs(network: nn.Module, x: Tensor) -> int:
    """Return the multiply-accumulates of one sample x (1, *input_shape) with the weights that are not zero."""
    nonzero = {name: int(torch.count_nonzero(w)) for name, w in weights_of(network).items()}
    layers = layers_of(network, x)
    return sum((layer.entries if layer.name is None else nonzero[layer.name]) * layer.positions for layer in layers)


def _count(network: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(p.numel() for p in network.parameters())
