"""Stochastic Frank-Wolfe written from the paper's formulas, and the sets and problems that its tests share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from problems import F64, gaussian, mlp, problem, randn
from torch import Tensor, nn

from nncompress.constraints.assignment import Assignment
from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.size import FromInitialisation
from nncompress.constraints.spectral import Nuclear, Spectral, SpectralKSparse, SpectralKSupport
from nncompress.problem import Computation, Problem
from nncompress.solvers.frank_wolfe.frank_wolfe import FrankWolfe
from nncompress.solvers.frank_wolfe.sfw import (
    DiameterRescaling,
    FastGradientRescaling,
    GradientRescaling,
    NoRescaling,
    Rescaling,
)

VECTORS: list[Any] = [L1(), L2(), Lp(p=3.0), Linf(), KSparse(k=0.3), KSupport(k=0.3)]
MATRICES: list[Any] = [GroupKSupport(k=0.5), Nuclear(), SpectralKSupport(k=0.5), SpectralKSparse(k=0.5)]
SETS = [*VECTORS, *MATRICES]
INEXACT: list[Any] = [Nuclear(rounds=1), SpectralKSupport(k=0.3, rounds=1), SpectralKSparse(k=0.3, rounds=1)]
RULES = [NoRescaling(), DiameterRescaling(), GradientRescaling(), FastGradientRescaling()]


def count(s: Any, n: int) -> int:
    """How many of n magnitudes are nonzero in a vertex: a part of them, rounded down, at least one."""
    return max(1, math.floor(s.k * n))


def magnitudes_of_vertex(s: Any, z: Tensor) -> Tensor:
    """The magnitudes (of entries, groups, singular values) of the vertex of radius 1 for those of the gradient, z."""
    if isinstance(s, L1 | Nuclear):
        return (z == z.max()).to(z)
    if isinstance(s, L2):
        return z / z.norm()
    if isinstance(s, Linf):
        return torch.ones_like(z)
    if isinstance(s, Lp):
        q = s.p / (s.p - 1)
        return z ** (q - 1) / (z**q).sum() ** ((q - 1) / q)
    kept = torch.zeros_like(z)
    kept[z.argsort(descending=True)[: count(s, len(z))]] = 1
    if isinstance(s, KSparse | SpectralKSparse):
        return kept
    return kept * z / (kept * z).norm()


def vertex(s: Any, body: Sequence[Tensor]) -> list[Tensor]:
    """argmin <v, g> over a set, for the gradients of tensors that are constrained together."""
    if isinstance(s, Spectral):
        U, values, Vt = torch.linalg.svd(body[0].flatten(1), full_matrices=False)
        return [-s.radius * ((U * magnitudes_of_vertex(s, values)) @ Vt).reshape(body[0].shape)]
    size = [g.flatten(1).norm(dim=1) if isinstance(s, GroupKSupport) else g.abs().flatten() for g in body]
    found = torch.split(magnitudes_of_vertex(s, torch.cat(size)), [len(z) for z in size])
    factors = [f / z.clamp_min(1e-300) for f, z in zip(found, size, strict=True)]
    return [
        -s.radius * (g.flatten(1) * f[:, None]).view(g.shape) if isinstance(s, GroupKSupport) else
        -s.radius * g * f.view(g.shape)
        for g, f in zip(body, factors, strict=True)
    ]  # fmt: skip


def diameter(s: Any, body: Sequence[Tensor]) -> float:
    n = sum(w.numel() for w in body)
    longest = {
        Lp: lambda: n ** (0.5 - 1 / s.p),
        Linf: lambda: math.sqrt(n),
        KSparse: lambda: math.sqrt(count(s, n)),
        SpectralKSparse: lambda: math.sqrt(count(s, min(body[0].flatten(1).shape))),
    }
    return 2 * s.radius * longest.get(type(s), lambda: 1.0)()


def norm(body: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(w.square().sum()) for w in body))


def step_size(rule: Rescaling, lr: float, m: float, distance: float, diameter: float) -> float:
    """eta before it is clipped."""
    wanted = {
        NoRescaling: lr,
        DiameterRescaling: lr / diameter,
        GradientRescaling: lr * m / max(distance, 1e-30),
        FastGradientRescaling: lr * m / (diameter / 2),
    }
    return wanted[type(rule)]


class Reference:
    """The update of one set after another, tensor by tensor."""

    def __init__(self, bodies: Sequence[Sequence[Tensor]], sets: Sequence[Any], **settings: Any) -> None:
        self.w = [[w.detach().clone() for w in body] for body in bodies]
        self.sets = sets
        self.lr, self.mu, self.dampening = settings["lr"], settings["momentum"], settings["dampening"]
        self.rule = settings["rescaling"]
        self.m: list[list[Tensor]] = []
        self.etas: list[list[float]] = []

    def step(self, gradients: Sequence[Sequence[Tensor]]) -> None:
        if not self.m:
            self.m = [[g.clone() for g in body] for body in gradients]
        else:
            self.m = [
                [self.mu * m + (1 - self.dampening) * g for m, g in zip(ms, gs, strict=True)]
                for ms, gs in zip(self.m, gradients, strict=True)
            ]
        self.etas.append([self._move(s, w, m) for s, w, m in zip(self.sets, self.w, self.m, strict=True)])

    def _move(self, s: Any, w: list[Tensor], m: list[Tensor]) -> float:
        if s is None:
            w[:] = [a - self.lr * b for a, b in zip(w, m, strict=True)]
            return 0.0
        v = vertex(s, m)
        distance = norm([b - a for a, b in zip(w, v, strict=True)])
        wanted = step_size(self.rule, self.lr, norm(m), distance, diameter(s, w))
        eta = min(max(wanted, 0.0), 1.0)
        w[:] = [(1 - eta) * a + eta * b for a, b in zip(w, v, strict=True)]
        return wanted


def parameters(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = F64) -> list[Tensor]:
    return [nn.Parameter(0.3 * randn(*shape, seed=seed + i, dtype=dtype)) for i, shape in enumerate(shapes)]


def enter(bodies: Sequence[Sequence[Tensor]], sets: Sequence[Any]) -> None:
    """Scale tensors into their sets."""
    with torch.no_grad():
        for body, s in zip(bodies, sets, strict=True):
            if s is not None:
                gauge = float(s.norms(s.join(body)[None])[0])
                for w in body:
                    w.mul_(min(1.0, s.radius / gauge))


def mlp_problem(computation: Computation | None = None) -> Problem:
    """Three layers with biases on 120 Gaussian samples."""
    data = gaussian()
    found = problem(data, mlp(data, bias=True))
    return Problem(found.model, found.data, found.plan, computation=computation or Computation())


def all_in(s: Any, **settings: Any) -> Assignment:
    return Assignment(set=s, **settings)


def papers(s: Any, w: float, params: Any = "convolutions") -> Assignment:
    size = FromInitialisation(w=w)
    return Assignment(set=s, params=params, size=size, rest=Assignment(set=L2(), size=size))


def terms(solver: FrankWolfe, p: Problem, steps: int | None = None) -> list[dict[str, float]]:
    return [it.observation.terms for it in solver.run(p, solver.num_steps if steps is None else steps)]
