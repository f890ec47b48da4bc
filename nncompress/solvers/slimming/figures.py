"""What is recorded of a network whose channels are removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.problem import Problem
from nncompress.solvers.base import Observation
from nncompress.surgery.channels import kept_in
from nncompress.surgery.pruning import smaller

COMPARED = 32
"""Training samples on which a network is compared with what is left of it."""
FACTOR_DECADES = (-8, 1)
"""Powers of ten between which factors are counted, in quarters of a decade."""


def channel_observation(
    problem: Problem, model: nn.Module, masked: nn.Module, terms: Mapping[str, float]
) -> Observation:
    """Return the observation whose deployed network is `masked` without its dead channels.

    `terms` are followed by how many channels with a scaling factor there are and are left. A note says why channels
    stay masked, where they cannot be removed.
    """
    deployed, note = smaller(masked, problem.data.train.x[:COMPARED])
    kept = torch.cat(list(kept_in(masked).values()))
    counts = {"channels/kept": int(kept.sum()), "channels/total": len(kept)}
    return Observation(model, (), {**terms, **counts}, deployed, notes=() if note is None else (note,))


def channel_details(masked: nn.Module, factors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how many channels each batch norm is left with, and how the factors they were chosen by are distributed.

    factors (channels,): by the names of the batch norms.
    """
    kept = kept_in(masked)
    left, total = sum(int(mask.sum()) for mask in kept.values()), sum(len(mask) for mask in kept.values())
    magnitudes = torch.cat([tensor.detach().abs().flatten() for tensor in factors.values()]).cpu()
    positive = magnitudes[magnitudes > 0].log10().clamp(*FACTOR_DECADES)
    histogram = torch.histc(positive, 4 * (FACTOR_DECADES[1] - FACTOR_DECADES[0]), *FACTOR_DECADES)
    return {
        "channels/kept": left,
        "channels/total": total,
        "ratio/channels": left / total,
        "channels": [{"norm": name, "channels": len(mask), "kept": int(mask.sum())} for name, mask in kept.items()],
        "factors": {
            "decades": list(FACTOR_DECADES),
            "counts": [int(count) for count in histogram],
            "zero": len(magnitudes) - len(positive),
        },
    }


def unrounded_details(problem: Problem, masked: nn.Module) -> dict[str, int]:
    """Return what is left of a network whose channels are not made multiples: parameters, channels with a factor."""
    network, _ = smaller(masked, problem.data.train.x[:COMPARED])
    return {
        "round_to/params": sum(p.numel() for p in network.parameters()),
        "round_to/channels": sum(int(kept.sum()) for kept in kept_in(network).values()),
    }
