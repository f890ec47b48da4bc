"""Different compressions for different layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nncompress.compressions.base import Compression, Use
from nncompress.compressions.plan import Plan, Recipe, plan_of


def mixed(
    weights: Mapping[str, Tensor],
    *,
    parts: Mapping[str, Recipe | Compression[Any]],
    uses: Mapping[str, Use] | None = None,
) -> Plan:
    """The tasks of all `parts` (recipes by a name of your choice), each with its own `layers`.

    Layers that no part names stay as they are. Raises ConfigError for a weight that two parts name.
    """
    plans = [plan_of(part, weights, uses) for part in parts.values()]
    return Plan.of([task for plan in plans for task in plan.tasks], weights)
