"""Choosing the size of a compression so that the whole network meets a target ratio."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

from nncompress.compressions.plan import Plan
from nncompress.errors import ConfigError

KNOBS: Mapping[str, tuple[int, Callable[[int], int | float]]] = {
    "rank": (1 << 16, int),
    "keep": (10_000, lambda n: n / 10_000),
}
"""The keywords that set a recipe's size: the largest whole number tried and the value it stands for."""


def fit_ratio(recipe: Callable[..., Plan], weights: Mapping[str, Tensor], dense: int, ratio: float) -> tuple[Plan, str]:
    """The largest plan of `recipe` with compressed over dense parameters of the whole network at most `ratio`.

    `dense` counts all parameters of the network. The rank or keep of the recipe is found by bisection, each try
    measured on the given weights. Also returns the setting found, as text. Raises ConfigError for a recipe without
    such a keyword and for a ratio that its smallest setting exceeds.
    """
    names = inspect.signature(recipe).parameters.keys() & KNOBS.keys()
    if len(names) != 1:
        raise ConfigError(f"target.ratio needs a compression with one of {', '.join(KNOBS)}; choose such a compression")
    name = names.pop()
    high, value = KNOBS[name]

    def achieved(n: int) -> float:
        plan = recipe(weights, **{name: value(n)})
        stored = plan.num_params(plan.compress(plan.select(weights)))
        return (dense - plan.numel() + stored) / dense

    low = 1
    if achieved(low) > ratio:
        raise ConfigError(
            f"target.ratio must be at least {achieved(low):.4g}, reached at {name}={value(low)}, found {ratio:g}"
        )
    high = _first_beyond(achieved, ratio, high)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if achieved(middle) <= ratio else (low, middle - 1)
    return recipe(weights, **{name: value(low)}), f"{name}={value(low)} gives ratio/params {achieved(low):.4g}"


def _first_beyond(achieved: Callable[[int], float], ratio: float, highest: int) -> int:
    """The first power of two that exceeds the ratio (or `highest`)."""
    n = 2
    while n < highest and achieved(n) <= ratio:
        n *= 2
    return min(n, highest)
