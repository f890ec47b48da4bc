"""The weights of a network in their constraint sets: scaled into them, how far out they are, the Frank-Wolfe gap."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nncompress.constraints.assignment import Body
from nncompress.constraints.base import Constraint

log = logging.getLogger(__name__)

ROUNDING = 1e-5
"""By how much of the radius a gauge may exceed it."""


@torch.no_grad()
def enter(model: nn.Module, bodies: Sequence[Body], constraints: Sequence[Constraint | None]) -> None:
    """Scale what lies outside its set into it."""
    scaled = {}
    for body, constraint, own in _constrained_bodies(model, bodies, constraints):
        gauge = float(constraint.norms(constraint.join(own)[None])[0])
        if gauge > constraint.radius * (1 + ROUNDING):
            scaled[body.name] = constraint.radius / gauge
            torch._foreach_mul_(own, scaled[body.name])
    if scaled:
        least = min(scaled, key=lambda name: scaled[name])
        log.info(
            "%d of %d parameters lay outside their sets and were scaled into them, %s the most, by %.3g",
            len(scaled), len(bodies), least, scaled[least],
        )  # fmt: skip


@torch.no_grad()
def gauges(model: nn.Module, bodies: Sequence[Body], constraints: Sequence[Constraint | None]) -> dict[str, float]:
    """Return the gauge of the parameters of each set over its radius, as gauge/<name>, and the largest, as `gauge`.

    All are at most 1, up to rounding.
    """
    parts = {
        f"gauge/{body.name}": float(constraint.norms(constraint.join(own)[None])[0]) / constraint.radius
        for body, constraint, own in _constrained_bodies(model, bodies, constraints)
    }
    return parts | {"gauge": max(parts.values(), default=0.0)}


@torch.no_grad()
def gap(
    model: nn.Module,
    bodies: Sequence[Body],
    constraints: Sequence[Constraint | None],
    gradients: Mapping[str, Tensor],
) -> float:
    """Return <g, w - LMO(g)> over all sets, gradients g by parameter: at least 0, and 0 where w is stationary in them.

    <g, LMO(g)> is minus the radius times the dual norm of g, exactly also where the oracle is not.
    """
    total = 0.0
    for body, constraint, own in _constrained_bodies(model, bodies, constraints):
        g = constraint.join([gradients.get(n, torch.zeros_like(p)) for n, p in zip(body.names, own, strict=True)])
        total += float((constraint.join(own).double() * g.double()).sum())
        total += constraint.radius * float(constraint.dual_norms(g[None])[0])
    return total


def _constrained_bodies(
    model: nn.Module, bodies: Sequence[Body], constraints: Sequence[Constraint | None]
) -> Iterator[tuple[Body, Constraint, list[Tensor]]]:
    """Return the bodies in a set, with it and their parameters."""
    parameters = dict(model.named_parameters())
    for body, constraint in zip(bodies, constraints, strict=True):
        if constraint is not None:
            yield body, constraint, [parameters[name].detach() for name in body.names]
