"""Two forms of one computation, timed in turn in one process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    time.sleep(0.2)  # until the threads of the other form's library no longer spin
    function()  # the caches and threads of this form's library are its own again
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(name: str, plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> None:
    """Print the medians of both, run in turn, and their ratio."""
    pairs = [(seconds(plain), seconds(ours)) for _ in range(repeats)]
    p, o = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    spread = f"pairwise {ratios[0]:.1f} to {ratios[-1]:.1f}"
    sys.stdout.write(f"{name:<28}{1e3 * p:>10.1f}{1e3 * o:>10.1f}{p / o:>9.1f}x   ({spread}, n={repeats})\n")
