"""Inertial NN-BCD: from where a sweep ended a step further along the way it went, kept while L does not rise."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress import parallel
from nncompress.compressions.base import distance_sq
from nncompress.solvers.nnbcd.figures import terms_of
from nncompress.solvers.nnbcd.state import Blocks, NNBCDState

INITIAL_BETA, GROWTH, CEILING_GROWTH, SHRINKAGE = 0.5, 1.05, 1.01, 1.5
"""The values of Ang and Gillis, "Accelerating nonnegative matrix factorization algorithms using extrapolation",
Neural Computation 31 (2019), whose rule for beta this is."""


def extrapolate(P: Blocks, state: NNBCDState, *, tau: float, gamma: float, rho: float, total: Tensor) -> NNBCDState:
    """P + beta (P - P_before) where L is not larger there, else P itself; P_before is where the last sweep ended.

    All of W, b, U, V move, T(G) stays. beta grows after a success up to its ceiling, and shrinks after a failure, which
    lowers the ceiling to where it failed. Costs the products that the V blocks had given for free and holds a second
    copy of the blocks. The state's step becomes that from where the last sweep ended to where this one did, of which
    `total` is the sum before; that of the sweep alone began further along.
    """
    beta, ceiling = state.beta
    value = terms_of(P, tau=tau, gamma=gamma, rho=rho).sum()
    here = _taken(P)
    step_sq = _distance_sq(state.ended, here)
    further = tuple(_moved(old, new, beta) for old, new in zip(state.ended, here, strict=True))
    _put(P, further)
    if bool(terms_of(P, tau=tau, gamma=gamma, rho=rho).sum() <= value):
        beta, ceiling = min(ceiling, GROWTH * beta), min(1.0, CEILING_GROWTH * ceiling)
        ended = here
    else:
        beta, ceiling = beta / SHRINKAGE, beta
        _put(P, here)
        ended = tuple(_copied(old, new) for old, new in zip(further, here, strict=True))
    return P.put_into(state)._replace(ended=ended, beta=(beta, ceiling), step_sq=step_sq, step_sq_sum=total + step_sq)


Group = tuple[Tensor | None, ...]


def _taken(P: Blocks) -> tuple[Group, ...]:
    return tuple(P.W[1:]), tuple(P.b[1:]), tuple(P.U[1:]), tuple(P.V[1:])


def _put(P: Blocks, groups: tuple[Group, ...]) -> None:
    P.W[1:], P.b[1:], P.U[1:], P.V[1:] = groups  # type: ignore[assignment]
    for i in range(2, P.last + 1):
        P.refresh(i)


def _distance_sq(old: tuple[Group, ...], new: tuple[Group, ...]) -> Tensor:
    """Return the squared distance of two (W, b, U, V), all processes' samples together."""
    W, b, U, V = (_group_distance_sq(o, x) for o, x in zip(old, new, strict=True))
    of_samples = U + V
    parallel.sum_(of_samples)
    return W + b + of_samples


def _group_distance_sq(old: Group, new: Group) -> Tensor:
    pairs = [(o, x) for o, x in zip(old, new, strict=True) if o is not None and x is not None]
    return sum((distance_sq(o, x) for o, x in pairs), torch.zeros((), dtype=torch.float64))


def _moved(old: Group, new: Group, beta: float) -> Group:
    """new + beta (new - old), written over `old`."""
    pairs = zip(old, new, strict=True)
    return tuple(None if o is None or x is None else o.mul_(-beta).add_(x, alpha=1 + beta) for o, x in pairs)


def _copied(old: Group, new: Group) -> Group:
    return tuple(None if o is None or x is None else o.copy_(x) for o, x in zip(old, new, strict=True))
