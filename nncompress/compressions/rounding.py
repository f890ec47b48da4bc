"""Ranks and numbers of rows or channels as multiples of a number: hardware is fastest at multiples of 8."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nncompress.compressions.plan import Plan


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
