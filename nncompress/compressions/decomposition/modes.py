"""Modes: the sizes into which a weight, row-major, is split to become a tensor of higher order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nncompress.compressions.base import Compression
from nncompress.compressions.plan import Layers, Plan, Task, Tensors, choose, matches
from nncompress.compressions.views import AsTensor
from nncompress.errors import ConfigError

Modes = Sequence[int] | Mapping[str, Sequence[int]] | None
"""What a recipe takes: None for its default, one list for all chosen weights, or lists by name pattern."""


def given_modes(names: Sequence[str], modes: Modes, key: str = "modes") -> dict[str, tuple[int, ...]]:
    """Look up the modes of those of the named weights for which `modes` gives some.

    Raises ConfigError, speaking of `compression.<key>`, for a pattern that fits no name, two that fit the same, and
    for anything but whole numbers from 1.
    """
    lists = modes if isinstance(modes, Mapping) else {} if modes is None else {"*": modes}
    unknown = [pattern for pattern in lists if not any(matches(name, pattern) for name in names)]
    if unknown:
        raise ConfigError(f"compression.{key} must name compressed layers ({', '.join(names)}), found {unknown[0]!r}")
    given: dict[str, tuple[int, ...]] = {}
    for name in names:
        fitting = [tuple(value) for pattern, value in lists.items() if matches(name, pattern)]
        if len(fitting) > 1:
            raise ConfigError(f"one entry of compression.{key} must match {name}, found {len(fitting)}")
        if fitting and not (fitting[0] and all(isinstance(n, int) and n > 0 for n in fitting[0])):
            raise ConfigError(
                f"compression.{key} of {name} must be whole numbers from 1, found {list(fitting[0])}; give such a "
                f"list, or null for the default"
            )
        given.update((name, sizes) for sizes in fitting)
    return given


def tensor_plan(
    weights: Tensors,
    layers: Layers,
    modes: Modes,
    default: Callable[[torch.Size], tuple[int, ...]],
    compression: Callable[[tuple[int, ...], torch.Size], Compression[Any]],
) -> Plan:
    """Compress each chosen weight as a tensor of the modes given for it, or of those that `default` makes of its shape.

    `compression` makes one of the modes and the weight's shape.
    """
    names = choose(weights, layers)
    given = given_modes(names, modes)
    tasks = []
    for name in names:
        shape = weights[name].shape
        sizes = given.get(name) or default(shape)
        tasks.append(Task((name,), AsTensor(sizes), compression(sizes, shape)))
    return Plan.of(tasks, weights)


def rank_clipped(rank: int, largest: int, modes: Sequence[int]) -> str | None:
    """Say that a rank is above the largest that tensors of these modes have, where it is."""
    return f"rank {rank} is above the largest of modes {list(modes)}, {largest} is used" if rank > largest else None


def balanced_modes(shape: Sequence[int], size: int = 4) -> tuple[int, ...]:
    """Return modes of about `size` for a weight: every dimension is split into factors as equal as its primes allow.

    No mode mixes rows with columns, so one bond of the train separates outputs from inputs.
    """
    return tuple(factor for n in shape for factor in balanced_factors(n, max(1, round(math.log(n, size)))))


def kernel_modes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a convolution's own dimensions; for a matrix modes of about 16: two or three for rows and columns."""
    return tuple(shape) if len(shape) > 2 else balanced_modes(shape, 16)


def balanced_factors(n: int, count: int) -> list[int]:
    """Return at most `count` factors of n, as equal as its primes allow, ascending and above 1; [1] for n = 1."""
    factors = [1] * count
    for prime in sorted(_primes(n), reverse=True):
        factors[factors.index(min(factors))] *= prime
    return sorted(factor for factor in factors if factor > 1) or [1]


def _primes(n: int) -> list[int]:
    primes, p = [], 2
    while p * p <= n:
        while n % p == 0:
            primes.append(p)
            n //= p
        p += 1
    return primes + [n] * (n > 1)


def row_modes(modes: Sequence[int], rows: int) -> int | None:
    """Return how many of the first modes multiply to `rows`; None when a mode mixes rows with columns."""
    return next((k for k in range(len(modes) + 1) if math.prod(modes[:k]) == rows), None)
