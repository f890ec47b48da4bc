"""The setting of a compression that reaches a size; ranks and row counts as multiples of a number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.plan import Plan, Recipe, plan_of, takes
from nncompress.compressions.products import Use
from nncompress.errors import ConfigError

if TYPE_CHECKING:
    from nncompress.compressions.plan import Plan

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
    """What a plan is to be at most: the name of a measure (as in the summary), how to take it, and the value."""

    name: str
    measure: Callable[[Plan], float]
    requested: float


class SizeFit(NamedTuple):
    """The plan found, the name and value of the setting that made it, and what it achieves."""

    plan: Plan
    name: str
    value: int | float
    achieved: float

    @property
    def setting(self) -> str:
        """`rank=17`."""
        return f"{self.name}={self.value}"


def fit(
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    target: SizeTarget,
    uses: Mapping[str, Use] | None = None,
    *,
    round_to: int = 1,
) -> SizeFit:
    """The largest plan of `recipe` that measures at most what is requested.

    The rank, the kept part, the codebook's size or the bits of the recipe are found by bisection, each try measured on
    the given weights, with the ranks and rows as `round_to` makes them. Raises ConfigError for a recipe without such a
    keyword and for a request that its smallest setting exceeds.
    """
    name = _knob(recipe)
    high, value = KNOBS[name]
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
    high = _first_beyond(lambda n: achieved(n) <= target.requested and not _full(tried[n][0]), high)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if achieved(middle) <= target.requested else (low, middle - 1)
    return SizeFit(tried[low][0], name, value(low), achieved(low))


def _knob(recipe: Recipe) -> str:
    names = [] if isinstance(recipe, Compression) else [name for name in KNOBS if takes(recipe, name)]
    if len(names) != 1:
        raise ConfigError(f"a target needs a compression with one of {', '.join(KNOBS)}; choose such a compression")
    return names[0]


def _full(plan: Plan) -> bool:
    """Whether no task has a larger setting than this one."""
    return len(plan.clipped()) == len(plan.tasks)


def _first_beyond(goes_on: Callable[[int], bool], highest: int) -> int:
    """The first power of two from 2 on for which `goes_on` is false (or `highest`)."""
    n = 2
    while n < highest and goes_on(n):
        n *= 2
    return min(n, highest)


def rounded(count: int, round_to: int, most: int) -> int:
    """`count` rounded up to a multiple of `round_to`, at most `most`; none, and what is not below `most`, stays.

    Raises ValueError for a `round_to` below 1.
    """
    check_round_to(round_to)
    return min(most, -(-count // round_to) * round_to) if 0 < count < most else count


def check_round_to(round_to: int) -> None:
    """Raise ValueError for a number of which there are no multiples."""
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1, found {round_to}")


class Change(NamedTuple):
    """What rounding changed in one task: the numbers of ranks or rows, and how many stored numbers that added.

    what, before, after, added are None where they depend on the weights.
    """

    params: str
    what: str | None
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    added: int | None


def changes(plan: Plan, plain: Plan) -> list[Change]:
    """What sets a plan apart from the one that the same recipe makes for the same weights without rounding."""
    found = []
    for task, other in zip(plan.tasks, plain.tasks, strict=True):
        shape = plan.seen(task)
        pairs = zip(task.compression.summands(shape), other.compression.summands(shape), strict=True)
        for (compression, seen), (unrounded, _) in pairs:
            if compression != unrounded:
                after, before = compression.size(seen), unrounded.size(seen)
                names = ", ".join(task.params)
                if after is None or before is None:
                    found.append(Change(names, None, None, None, None))
                elif after != before:
                    found.append(Change(names, after.what, before.counts, after.counts, after.params - before.params))
    return found
