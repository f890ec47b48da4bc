"""The state of NN-BCD, its working copy during a sweep, and the figures of a state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nncompress.compressions.base import distance_sq
from nncompress.compressions.plan import Plan, Task
from nncompress.problem import Problem
from nncompress.solvers import blocks
from nncompress.solvers.chain import Chain, activation


class NNBCDState(NamedTuple):
    """Blocks of layer i at index i - 1; U, V are n x d_i (samples are rows), W and T are d_i x d_{i-1}, b is (d_i,)."""

    k: int
    chain: Chain
    W: tuple[Tensor, ...]
    b: tuple[Tensor | None, ...]  # None for a layer without bias
    U: tuple[Tensor, ...]
    V: tuple[Tensor, ...]
    theta: tuple[Any, ...]
    T: tuple[Tensor | None, ...]  # Δ(Θ) of each layer, None for an uncompressed one
    # of the input, which never changes: Cholesky factor for W_1
    input_factor: Tensor
    # of the last sweep, and summed over all sweeps; float64
    step_sq: Tensor
    theta_sq: Tensor
    step_sq_sum: Tensor
    guaranteed: Tensor


@dataclass
class Blocks:
    """The blocks of one sweep, with the paper's indices: V[0] is the input, index 0 is unused elsewhere."""

    k: int
    plan: Plan
    chain: Chain
    Y: Tensor
    W: list[Tensor]
    b: list[Tensor | None]
    U: list[Tensor]
    V: list[Tensor]
    T: list[Tensor | None]
    theta: list[Any]
    input_factor: Tensor
    step_sq: Tensor
    theta_sq: Tensor
    guaranteed: Tensor
    W_old: dict[int, Tensor] = field(default_factory=dict)
    spares: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, state: NNBCDState) -> Blocks:
        """The blocks of a state; tensors are shared, not copied."""
        zero = torch.zeros_like(state.step_sq)
        V0 = inputs_of(problem)
        return cls(
            k=state.k,
            plan=problem.plan,
            chain=state.chain,
            Y=targets_of(problem),
            W=[V0, *state.W],
            b=[None, *state.b],
            U=[V0, *state.U],
            V=[V0, *state.V],
            T=[None, *state.T],
            theta=list(state.theta),
            input_factor=state.input_factor,
            step_sq=zero,
            theta_sq=zero.clone(),
            guaranteed=state.guaranteed.clone(),
        )

    def state(self, old: NNBCDState) -> NNBCDState:
        """The state behind `old`, after the sweep."""
        return NNBCDState(
            k=old.k + 1,
            chain=self.chain,
            W=tuple(self.W[1:]),
            b=tuple(self.b[1:]),
            U=tuple(self.U[1:]),
            V=tuple(self.V[1:]),
            theta=tuple(self.theta),
            T=tuple(self.T[1:]),
            input_factor=self.input_factor,
            step_sq=self.step_sq,
            theta_sq=self.theta_sq,
            step_sq_sum=old.step_sq_sum + self.step_sq,
            guaranteed=self.guaranteed,
        )

    def slope(self, i: int) -> float:
        """Slope of sigma_i below zero (1 for the output layer)."""
        return self.chain.layers[i - 1].slope

    def product(self, i: int, out: Tensor | None = None) -> Tensor:
        """V_{i-1} W_iᵀ + 1 b_iᵀ, as a new tensor or written to `out`."""
        return affine(self.W[i], self.b[i], self.V[i - 1], out)

    def spare(self, i: int) -> Tensor:
        """A tensor of the shape of V_i for temporary use, one for each width: fresh memory is slow to touch."""
        width = self.V[i].shape[1]
        if width not in self.spares:
            self.spares[width] = torch.empty_like(self.V[i])
        return self.spares[width]

    def exchange(self, i: int) -> None:
        """Make the spare tensor V_i, and the old V_i spare."""
        width = self.V[i].shape[1]
        self.V[i], self.spares[width] = self.spares[width], self.V[i]

    def without_bias(self, i: int) -> Tensor:
        """U_i - 1 b_iᵀ."""
        b = self.b[i]
        return self.U[i] if b is None else self.U[i] - b

    def layers_of(self, task: Task) -> dict[str, int]:
        """The paper's index of each weight of a task."""
        index = {layer.weight: i for i, layer in enumerate(self.chain.layers, 1)}
        return {name: index[name] for name in task.params}

    def moved(self, change_sq: Tensor, strength: float) -> None:
        """Account for a block that moved: its exact minimisation made L fall by at least strength * change_sq."""
        self.step_sq += change_sq
        self.guaranteed += strength * change_sq

    def replace(self, i: int, T: Tensor, tau: float) -> None:
        """Replace T(G_i); L falls as tau/2 ‖W_i - T‖² does."""
        old = self.T[i]
        if old is not None:
            self.theta_sq += distance_sq(T, old)
            self.guaranteed += tau / 2 * (distance_sq(self.W[i], old) - distance_sq(self.W[i], T))
        self.T[i] = T

    def project(self, i: int) -> None:
        """Overwrite W_i with T(G_i); the step is counted to where W_i ends up."""
        T = self.T[i]
        if T is not None:
            self.step_sq += distance_sq(T, self.W_old[i]) - distance_sq(self.W[i], self.W_old[i])
            self.W[i] = T.clone()


def inputs_of(problem: Problem) -> Tensor:
    """V_0 = X (n x d_0), a view of the data."""
    return problem.data.train.x.flatten(1)


def targets_of(problem: Problem) -> Tensor:
    """Y (n x d_N), one row of the identity for each label."""
    return nn.functional.one_hot(problem.data.train.y, problem.data.num_classes).to(problem.dtype)


def affine(W: Tensor, b: Tensor | None, V: Tensor, out: Tensor | None = None) -> Tensor:
    """V Wᵀ + 1 bᵀ."""
    return torch.mm(V, W.T, out=out) if b is None else torch.addmm(b, V, W.T, out=out)


def figures(P: Blocks, *, tau: float, gamma: float, rho: float) -> dict[str, float]:
    """L(P) with its terms, and the squared norm of the smallest limiting subgradient of L in (V, U, W, b)."""
    N = len(P.W) - 1
    misfit = P.V[N] - P.Y
    activations, linear, compression = (torch.zeros_like(P.step_sq) for _ in range(3))
    grad_sq = blocks.sq(misfit.add(P.V[N] - P.U[N], alpha=gamma))
    for i in range(N, 0, -1):
        activations += blocks.sq(P.V[i] - activation(P.U[i], P.slope(i)))
        R = P.product(i).sub_(P.U[i])
        linear += blocks.sq(R)
        R.mul_(rho)
        grad_sq += blocks.subgradient_sq(P.U[i], P.V[i], -R, gamma, P.slope(i))
        grad_W = torch.mm(R.T, P.V[i - 1])
        T = P.T[i]
        if T is not None:
            compression += blocks.sq(P.W[i] - T)
            grad_W.add_(P.W[i] - T, alpha=tau)
        grad_sq += blocks.sq(grad_W)
        if P.b[i] is not None:
            grad_sq += blocks.sq(R.sum(dim=0))
        if i > 1:  # the gradient in V_{i-1}
            grad_V = torch.sub(P.V[i - 1], activation(P.U[i - 1], P.slope(i - 1)))
            grad_sq += blocks.sq(torch.addmm(grad_V, R, P.W[i], beta=gamma))
    terms = {
        "term/fit": float(blocks.sq(misfit)) / 2,
        "term/activation": gamma / 2 * float(activations),
        "term/linear": rho / 2 * float(linear),
        "term/compression": tau / 2 * float(compression),
    }
    penalty = P.plan.penalty(P.theta)
    if penalty:
        terms["term/penalty"] = penalty
    return {"objective": sum(terms.values()), **terms, "grad_sq": float(grad_sq)}
