"""Which of several ways to compute the same is the fastest here and now: counted first, then measured once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

HOPELESS, CHEAP = 32.0, 1 << 24
"""A way with so many times the operations of another is not measured, unless they are few."""
SLOW = 3.0
"""A way that is so many times slower than another at first sight is not measured more closely."""
BLOCKS, BLOCK_SECONDS, MOST_CALLS = 7, 1e-3, 20
"""Each way is timed in blocks of calls, in turn with the others."""
TIE = 1.03
"""Within this factor of the fastest the first one is taken."""


class Choice(NamedTuple):
    """The way that is taken, and of each way the seconds of a call (if measured) and the multiply-accumulates."""

    way: str
    seconds: dict[str, float]
    macs: dict[str, int]

    def __str__(self) -> str:
        times = [f"{name} {1e3 * seconds:.3g} ms" for name, seconds in self.seconds.items() if seconds]
        hopeless = [f"{name} not measured" for name in self.macs if name not in self.seconds]
        return f"{self.way} ({', '.join([*times, *hopeless]) or 'the only one'})"


def fastest(ways: Mapping[str, Callable[[], object]], macs: Mapping[str, int], device: torch.device) -> Choice:
    """Choose the way to take; `macs` of one call of each, in the order of preference where they are equally fast."""
    least = max(1, min(macs.values()))
    seconds = measure({name: way for name, way in ways.items() if macs[name] <= max(CHEAP, HOPELESS * least)}, device)
    best = min(seconds.values())
    taken = next(name for name in ways if seconds.get(name, float("inf")) <= TIE * best)
    return Choice(taken, seconds, dict(macs))


def measure(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Measure the seconds of a call of each way: the median over blocks of calls, in turn."""
    if len(ways) == 1:
        return dict.fromkeys(ways, 0.0)
    first = {}
    for name, way in ways.items():
        way()  # what is made once
        first[name] = min(_seconds(way, 1, device) for _ in range(2))
    best = min(first.values())
    close = [name for name in ways if first[name] <= SLOW * best]
    blocks: dict[str, list[float]] = {name: [] for name in close}
    for _ in range(BLOCKS if len(close) > 1 else 0):
        for name in close:
            calls = max(1, min(MOST_CALLS, round(BLOCK_SECONDS / max(first[name], 1e-9))))
            blocks[name].append(_seconds(ways[name], calls, device))
    return first | {name: statistics.median(times) for name, times in blocks.items() if times}


def _seconds(way: Callable[[], object], calls: int, device: torch.device) -> float:
    """Measure one call, the mean of several; the device is waited for."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        way()
    _synchronise(device)
    return (time.perf_counter() - start) / calls


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
