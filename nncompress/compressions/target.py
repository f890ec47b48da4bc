"""The setting of a compression that reaches a size; ranks and row counts as multiples of a number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from nncompress.compressions.base import Compression, check_count
from nncompress.compressions.plan import Plan, Recipe, Tensors, plan_of, takes
from nncompress.compressions.products import Use
from nncompress.errors import ConfigError

log = logging.getLogger(__name__)

KNOBS: Mapping[str, tuple[int, Callable[[int], int | float]]] = {
    "rank": (1 << 16, int),
    "keep": (10_000, lambda n: n / 10_000),
    "K": (1 << 8, int),
    "bits": (16, int),
}
"""The keywords that set a recipe's size: the largest whole number tried and the value it stands for."""

_NO_HELP = "; this compression lowers another figure: try target.bits, or another compression"


class SizeTarget(NamedTuple):
    """An upper bound of a plan: the name of a measure (as in the summary), how to take it, and the value."""

    name: str
    measure: Callable[[Plan], float]
    requested: float


class SizeFit(NamedTuple):
    """A plan, the name and value of the setting that made it, and what it achieves."""

    plan: Plan
    name: str
    value: int | float
    achieved: float

    @property
    def setting(self) -> str:
        """`rank=17`."""
        return f"{self.name}={self.value}"


def fit(
    recipe: Recipe, weights: Tensors, target: SizeTarget, uses: Mapping[str, Use] | None = None, *, round_to: int = 1
) -> SizeFit:
    """Find the largest plan of `recipe` that measures at most what is requested.

    Its rank, kept part, codebook's size or bits are found by bisection, each try measured on the given weights, with
    the ranks and rows as `round_to` makes them. Raises ConfigError for a recipe without such a keyword and for a
    request that its smallest setting exceeds.
    """
    names = [] if isinstance(recipe, Compression) else [name for name in KNOBS if takes(recipe, name)]
    if len(names) != 1:
        raise ConfigError(f"a target needs a compression with one of {', '.join(KNOBS)}; choose such a compression")
    name = names[0]
    highest, value = KNOBS[name]
    tried: dict[int, tuple[Plan, float]] = {}

    def achieved(n: int) -> float:
        if n not in tried:
            plan = plan_of(recipe, weights, uses, round_to=round_to, **{name: value(n)})
            tried[n] = plan, target.measure(plan)
            log.info("target.%s: %s=%s gives %.6g", target.name, name, value(n), tried[n][1])
        return tried[n][1]

    low = 1
    if achieved(low) > target.requested:
        raise ConfigError(
            f"target.{target.name} must be at least {achieved(low):.6g}, reached at {name}={value(low)}"
            + (f" with round_to={round_to}" if round_to > 1 and takes(recipe, "round_to") else "")
            + f", found {target.requested:g}"
            + (_NO_HELP if achieved(low) >= 1 >= target.requested else "")
        )
    high = 2  # doubled until it is too large, or no task has a larger setting than this one
    while high < highest and achieved(high) <= target.requested:
        plan = tried[high][0]
        if len(plan.clipped()) == len(plan.tasks):
            break
        high = min(2 * high, highest)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if achieved(middle) <= target.requested else (low, middle - 1)
    return SizeFit(tried[low][0], name, value(low), achieved(low))


def round_up(count: int, round_to: int, most: int) -> int:
    """Round `count` up to a multiple of `round_to`, at most `most`; 0, and what is not below `most`, stays.

    Raises ValueError for a `round_to` below 1.
    """
    check_count("round_to", round_to)
    return min(most, -(-count // round_to) * round_to) if 0 < count < most else count


class Change(NamedTuple):
    """The change that rounding made to one task: numbers of ranks or rows, and how many stored numbers that added.

    what, before, after, added are None where they depend on the weights.
    """

    params: str
    what: str | None
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    added: int | None


def changes(plan: Plan, plain: Plan) -> list[Change]:
    """List the differences of a plan from the one that the same recipe makes for the same weights unrounded."""
    result = []
    for task, other in zip(plan.tasks, plain.tasks, strict=True):
        shape = plan.seen_shape(task)
        pairs = zip(task.compression.summands(shape), other.compression.summands(shape), strict=True)
        for (compression, seen), (unrounded, _) in pairs:
            if compression != unrounded:
                after, before = compression.size(seen), unrounded.size(seen)
                names = ", ".join(task.params)
                if after is None or before is None:
                    result.append(Change(names, None, None, None, None))
                elif after != before:
                    result.append(Change(names, after.what, before.counts, after.counts, after.params - before.params))
    return result
