"""Whether torchrun started several processes, and what they agree on; torch is imported only where it did."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def several() -> bool:
    """Whether torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process is the first, once it has joined the others."""
    if not several():
        return True
    from nncompress import parallel

    parallel.start()
    return parallel.rank() == 0


def agreed(found: Callable[[], T]) -> T:
    """What the first process finds, in all of them; what goes wrong there goes wrong in all."""
    if not several():
        return found()
    from nncompress import parallel

    values: list[T] = []
    with parallel.together():
        if parallel.rank() == 0:
            values.append(found())
    return parallel.agreed(values)[0]
