"""Different compressions for different layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.plan import Plan, Recipe, Task, part_named, plan_of
from nncompress.compressions.products import Use


def mixed(
    weights: Mapping[str, Tensor],
    *,
    parts: Mapping[str, Recipe | Compression[Any] | None],
    uses: Mapping[str, Use] | None = None,
    round_to: int = 1,
) -> Plan:
    """The tasks of all `parts` (recipes by a name of your choice), each with its own `layers`.

    Layers that no part names stay as they are; a part that is None counts as left out. `uses` and `round_to` are for
    the parts. Raises ConfigError for a weight that two parts name.
    """
    tasks: list[Task] = []
    for key, part in ((key, part) for key, part in parts.items() if part is not None):
        with part_named(key):
            tasks += plan_of(part, weights, uses, round_to=round_to).tasks
    return Plan.of(tasks, weights)
