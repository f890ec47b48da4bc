"""How long networks take for the same samples, measured in turns so that a machine that drifts hurts all alike."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nncompress.errors import NNCompressError

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # the timer's, which would tell of no CUDA
from torch.utils.benchmark import Measurement, Timer  # noqa: E402

ROUNDS = 5
"""Turns that every network has."""
WARM_UP = 3
"""Passes of every network before the first turn, or fewer where they take longer than its turns."""


class Latency(NamedTuple):
    """Seconds of a forward pass: median and quartiles over `blocks` of passes, and the median of each round."""

    median: float
    lower: float
    upper: float
    blocks: int
    rounds: tuple[float, ...]


class Ratio(NamedTuple):
    """How many times longer one network takes than another in a round: the median, the least, the greatest."""

    median: float
    least: float
    greatest: float


@torch.no_grad()
def side_by_side(networks: Mapping[str, nn.Module], x: Tensor, seconds: float) -> dict[str, Latency]:
    """Return the latency of each network on samples x (n, *input_shape), where it and they are.

    Each is measured for at least `seconds`, in rounds in which every network has its turn (a `blocked_autorange` of
    torch.utils.benchmark: blocks of passes long enough for the clock, a GPU synchronised).

    Raises:
        NNCompressError: so many samples do not fit the memory.
    """
    timers = {
        name: Timer("network(x)", globals={"network": network, "x": x}, num_threads=torch.get_num_threads())
        for name, network in networks.items()
    }
    rounds: dict[str, list[Measurement]] = {name: [] for name in networks}
    try:
        for network in networks.values():
            _warm_up(network, x, seconds)
        for _ in range(ROUNDS):
            for name, timer in timers.items():
                rounds[name].append(timer.blocked_autorange(min_run_time=seconds / ROUNDS))
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise NNCompressError(
            f"the latency of {len(x)} samples needs more memory than {x.device} has; give smaller ones with "
            "batch_sizes=[...]"
        ) from error
    return {name: _latency(measurements) for name, measurements in rounds.items()}


def ratio(of: Latency, to: Latency) -> Ratio:
    """Return how many times longer the first takes than the second."""
    rounds = [a / b for a, b in zip(of.rounds, to.rounds, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))


def _warm_up(network: nn.Module, x: Tensor, seconds: float) -> None:
    start = time.perf_counter()
    for _ in range(WARM_UP):
        network(x)
        if time.perf_counter() - start > seconds:
            return


def _latency(measurements: list[Measurement]) -> Latency:
    """Return the latency that the rounds of a network show together."""
    (merged,) = Measurement.merge(measurements)
    times = merged.times
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Latency(merged.median, lower, upper, len(times), tuple(each.median for each in measurements))
