"""Inertial NN-BCD: from where a sweep ended a step further along the way it went, kept while L does not rise."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress import parallel
from nncompress.compressions.base import distance_sq
from nncompress.solvers.nnbcd.figures import terms_of
from nncompress.solvers.nnbcd.state import Blocks, Group, NNBCDState

INITIAL_BETA, GROWTH, CEILING_GROWTH, SHRINKAGE = 0.5, 1.05, 1.01, 1.5
"""The values of Ang and Gillis, "Accelerating nonnegative matrix factorization algorithms using extrapolation",
Neural Computation 31 (2019), whose rule for beta this is."""


def extrapolate(P: Blocks, state: NNBCDState, *, tau: float, gamma: float, rho: float, total: Tensor) -> NNBCDState:
    """Return P + beta (P - P_before) where L is not larger there, else P; P_before is where the last sweep ended.

    All of W, b, U, V move, T(G) stays. beta grows after a success up to its ceiling, and shrinks after a failure, which
    lowers the ceiling to where it failed. Costs the products that the V blocks had given for free and holds a second
    copy of the blocks. The state's step becomes that from where the last sweep ended to where this one did, of which
    `total` is the sum before; that of the sweep alone began further along.
    """
    beta, ceiling = state.beta
    value = terms_of(P, tau=tau, gamma=gamma, rho=rho).sum()
    here = P.groups()
    step_sq = _distance_sq(state.ended, here)
    further = tuple(_further(old, new, beta) for old, new in zip(state.ended, here, strict=True))
    P.put(further)
    if bool(terms_of(P, tau=tau, gamma=gamma, rho=rho).sum() <= value):
        beta, ceiling = min(ceiling, GROWTH * beta), min(1.0, CEILING_GROWTH * ceiling)
        ended = here
    else:
        beta, ceiling = beta / SHRINKAGE, beta
        P.put(here)
        ended = tuple(_copy(old, new) for old, new in zip(further, here, strict=True))
    return P.put_into(state)._replace(ended=ended, beta=(beta, ceiling), step_sq=step_sq, step_sq_sum=total + step_sq)


def _distance_sq(old: tuple[Group, ...], new: tuple[Group, ...]) -> Tensor:
    """Return the squared distance of two (W, b, U, V), all processes' samples together."""

    def of_group(o: Group, x: Group) -> Tensor:
        squares = [distance_sq(a, b) for a, b in zip(o, x, strict=True) if a is not None and b is not None]
        return sum(squares, torch.zeros((), dtype=torch.float64))

    W, b, U, V = (of_group(o, x) for o, x in zip(old, new, strict=True))
    of_samples = U + V
    parallel.sum_(of_samples)
    return W + b + of_samples


def _further(old: Group, new: Group, beta: float) -> Group:
    """Write new + beta (new - old) over `old` and return it."""
    pairs = zip(old, new, strict=True)
    return tuple(None if o is None or x is None else o.mul_(-beta).add_(x, alpha=1 + beta) for o, x in pairs)


def _copy(old: Group, new: Group) -> Group:
    """Write `new` over `old` and return it."""
    return tuple(None if o is None or x is None else o.copy_(x) for o, x in zip(old, new, strict=True))
