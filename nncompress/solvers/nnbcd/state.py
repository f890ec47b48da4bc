"""The state of NN-BCD and its working copy during a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nncompress import parallel
from nncompress.compressions.base import distance_sq
from nncompress.compressions.plan import Plan, Task
from nncompress.problem import Problem
from nncompress.solvers.nnbcd.chain import Chain, ChainLayer, activation

CHUNK = 1 << 22
"""Entries of a layer treated at once on the CPU: what a sweep needs beside the state and the Gram matrices."""

CHUNK_GPU = 1 << 28


Group = tuple[Tensor | None, ...]
"""One block of every layer, None for a layer without it."""


def each(group: Sequence[Tensor | None], function: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """Return `function` of every tensor of a group."""
    return tuple(None if tensor is None else function(tensor) for tensor in group)


class NNBCDState(NamedTuple):
    """Blocks of layer i at index i - 1.

    U, V are n x d_i (this process's samples are rows), W and T are outputs x inputs matrices (a convolution's
    flattened), b is (outputs,).
    """

    k: int
    chain: Chain
    W: tuple[Tensor, ...]
    b: tuple[Tensor | None, ...]  # None for a layer without bias
    U: tuple[Tensor, ...]
    V: tuple[Tensor, ...]
    products: tuple[Tensor | None, ...]  # map(V_{i-1}) W_iᵀ + 1 b_iᵀ, where the V block gives it
    theta: tuple[Any, ...]
    T: tuple[Tensor | None, ...]  # Δ(Θ) of each layer, None for an uncompressed one
    lam: tuple[Tensor | None, ...]  # multipliers of W = T, None without
    # where the last sweep ended, before its extrapolation: (W, b, U, V); all empty without one
    ended: tuple[tuple[Tensor | None, ...], ...]
    beta: tuple[float, float]  # weight of the extrapolation and its ceiling
    input_gram: Tensor | None  # of the input, which never changes
    # of the last sweep, and summed over all sweeps; float64
    step_sq: Tensor
    theta_sq: Tensor
    step_sq_sum: Tensor
    sweep_sq: Tensor  # of the sweep alone, which with extrapolation began further along than the last one ended
    sweep_sq_sum: Tensor
    guaranteed: Tensor


@dataclass
class Blocks:
    """The blocks of one sweep, with the paper's indices: V[0] is the input, index 0 is unused elsewhere."""

    plan: Plan
    chain: Chain
    Y: Tensor
    k: int
    W: list[Tensor]
    b: list[Tensor | None]
    U: list[Tensor]
    V: list[Tensor]
    products: list[Tensor | None]
    T: list[Tensor | None]
    lam: list[Tensor | None]
    theta: list[Any]
    input_gram: Tensor | None
    shapes: dict[str, torch.Size]
    step_sq: Tensor
    theta_sq: Tensor
    guaranteed: Tensor
    of_samples: Tensor  # (2,): this process's part of step_sq and guaranteed
    W_old: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, state: NNBCDState) -> Blocks:
        """Return the blocks of a state; tensors are shared, not copied."""
        zero = torch.zeros_like(state.step_sq)
        V0 = inputs_of(problem)
        shapes = {name: p.shape for name, p in problem.model.named_parameters()}
        return cls(
            plan=problem.plan, chain=state.chain, Y=targets_of(problem), k=state.k, input_gram=state.input_gram,
            W=[V0, *state.W], b=[None, *state.b], U=[V0, *state.U], V=[V0, *state.V], products=[None, *state.products],
            T=[None, *state.T], lam=[None, *state.lam], theta=list(state.theta), shapes=shapes,
            step_sq=zero, theta_sq=zero.clone(), guaranteed=zero.clone(), of_samples=zero.repeat(2),
        )  # fmt: skip

    def state(self, old: NNBCDState) -> NNBCDState:
        """Return the state behind `old`, after the sweep."""
        parallel.sum_(self.of_samples)
        self.step_sq += self.of_samples[0]
        self.guaranteed += self.of_samples[1]
        return self.put_into(old)._replace(
            k=old.k + 1, theta=tuple(self.theta), T=tuple(self.T[1:]), lam=tuple(self.lam[1:]), theta_sq=self.theta_sq,
            step_sq=self.step_sq, step_sq_sum=old.step_sq_sum + self.step_sq,
            sweep_sq=self.step_sq, sweep_sq_sum=old.sweep_sq_sum + self.step_sq,
            guaranteed=old.guaranteed + self.guaranteed,
        )  # fmt: skip

    def put_into(self, state: NNBCDState) -> NNBCDState:
        """Return the state with these W, b, U, V and their products."""
        W, b, U, V = self.groups()
        return state._replace(W=W, b=b, U=U, V=V, products=tuple(self.products[1:]))  # type: ignore[arg-type]

    def groups(self) -> tuple[Group, ...]:
        """Return (W, b, U, V)."""
        return tuple(self.W[1:]), tuple(self.b[1:]), tuple(self.U[1:]), tuple(self.V[1:])

    def put(self, groups: tuple[Group, ...]) -> None:
        """Replace (W, b, U, V), and the products that follow from them."""
        self.W[1:], self.b[1:], self.U[1:], self.V[1:] = groups  # type: ignore[assignment]
        for i in range(2, self.last + 1):
            self.refresh(i)

    @property
    def last(self) -> int:
        """Return N, the index of the output layer."""
        return len(self.W) - 1

    def layer(self, i: int) -> ChainLayer:
        """Return layer i of the chain."""
        return self.chain.layers[i - 1]

    def chunks(self, i: int, most: int | None = None) -> Iterator[slice]:
        """Return the samples, so many at a time that layer i's tensors stay small; on the CPU `most` at the most."""
        n, widest = len(self.Y), max(self.U[i].shape[1], self.V[i - 1].shape[1])
        cpu = self.Y.device.type == "cpu"
        size = max(1, (CHUNK if cpu else CHUNK_GPU) // widest)
        size = min(size, most) if cpu and most is not None else size
        return (slice(start, min(n, start + size)) for start in range(0, n, size))

    def product(self, i: int, rows: slice) -> Tensor:
        """Return map(V_{i-1}) W_iᵀ + 1 b_iᵀ for some samples."""
        return self.layer(i).map.product(self.V[i - 1][rows], self.W[i], self.b[i])

    def known_product(self, i: int, rows: slice) -> Tensor:
        """Return the same, taken over from the V block where that gave it."""
        product = self.products[i]
        return self.product(i, rows) if product is None else product[rows]

    def linear_part(self, i: int, rows: slice) -> Tensor:
        """Return U_i without what skips into it."""
        inner = self.layer(i).inner
        return self.U[i][rows] if inner is None else self.U[i][rows] - self.V[inner][rows]

    def activated_part(self, i: int, rows: slice) -> Tensor:
        """Return V_i without what skips into it."""
        outer = self.layer(i).outer
        return self.V[i][rows] if outer is None else self.V[i][rows] - self.V[outer][rows]

    def activation(self, i: int, rows: slice) -> Tensor:
        """Return sigma_i(U_i)."""
        return activation(self.U[i][rows], self.layer(i).slope)

    def weights(self) -> dict[str, Tensor]:
        """Return the network's parameters among the blocks, shaped as in the network."""
        named: dict[str, Tensor] = {}
        for layer, w, b in zip(self.chain.layers, self.W[1:], self.b[1:], strict=True):
            named[layer.weight] = w.view(self.shapes[layer.weight])
            if layer.bias is not None and b is not None:
                named[layer.bias] = b
        return named

    def layers_of(self, task: Task) -> dict[str, int]:
        """Return the paper's index of each weight of a task."""
        index = {layer.weight: i for i, layer in enumerate(self.chain.layers, 1)}
        return {name: index[name] for name in task.params}

    def moved(self, change_sq: Tensor, strength: float, of_samples: bool = False) -> None:
        """Account for a block that moved: its exact minimisation made L fall by at least strength * change_sq.

        `of_samples`: a block of samples (U, V), of which other processes hold the rest.
        """
        if of_samples:
            self.of_samples += torch.stack([change_sq, strength * change_sq])
        else:
            self.step_sq += change_sq
            self.guaranteed += strength * change_sq

    def replace(self, i: int, T: Tensor, tau: float) -> None:
        """Replace T(G_i); L falls as its term in T does."""
        old, lam = self.T[i], self.lam[i]
        if old is not None:
            self.theta_sq += distance_sq(T, old)
            self.guaranteed += tau / 2 * (distance_sq(self.W[i], old) - distance_sq(self.W[i], T))
            if lam is not None:
                self.guaranteed += torch.sum(lam * (old - T), dtype=torch.float64)
        self.T[i] = T

    def distance_sq(self) -> Tensor:
        """Return ‖W - T‖² over the compressed layers."""
        pairs = [(W, T) for W, T in zip(self.W[1:], self.T[1:], strict=True) if T is not None]
        return sum((distance_sq(W, T) for W, T in pairs), torch.zeros_like(self.step_sq))

    def few(self, i: int) -> bool:
        """Return whether the W_i block works on the side of the rows, which are fewer than half the columns."""
        rows = len(self.Y) * self.layer(i).map.positions
        return parallel.size() == 1 and 2 * rows < self.W[i].shape[1]

    def update_multipliers(self, tau: float) -> None:
        """Take lam <- lam - tau (W - T), by which L grows by tau ‖W - T‖²."""
        self.guaranteed -= tau * self.distance_sq()
        for i, (W, T, lam) in enumerate(zip(self.W, self.T, self.lam, strict=True)):
            if T is not None and lam is not None:
                self.lam[i] = lam - tau * (W - T)

    def project(self, i: int) -> None:
        """Overwrite W_i with T(G_i); the step is counted to where W_i ends up."""
        T = self.T[i]
        if T is not None:
            self.step_sq += distance_sq(T, self.W_old[i]) - distance_sq(self.W[i], self.W_old[i])
            self.W[i] = T.clone()
            self.refresh(i)

    def refresh(self, i: int) -> None:
        """Bring the product of layer i up to date after V_{i-1} or W_i changed behind the V block's back."""
        product = self.products[i]
        if product is not None:
            for rows in self.chunks(i):
                product[rows] = self.product(i, rows)


def inputs_of(problem: Problem) -> Tensor:
    """Return V_0 = X (n x d_0), this process's samples: a view of the data."""
    x = problem.data.train.x
    return x[parallel.share(len(x))].flatten(1)


def targets_of(problem: Problem) -> Tensor:
    """Return Y (n x d_N), one row of the identity for each label of this process's samples."""
    y = problem.data.train.y
    return nn.functional.one_hot(y[parallel.share(len(y))], problem.data.num_classes).to(problem.dtype)


def whole(problem: Problem, state: NNBCDState) -> NNBCDState:
    """Return the state with all processes' samples, on process 0."""
    n = len(problem.data.train)
    return _each_sample(state, lambda tensor: parallel.gather(tensor, n))


def own(problem: Problem, state: NNBCDState) -> NNBCDState:
    """Return the state with this process's samples, of one with all."""
    n = len(problem.data.train)
    return _each_sample(state, lambda tensor: tensor[parallel.share(n)].clone() if parallel.size() > 1 else tensor)


def _each_sample(state: NNBCDState, change: Callable[[Tensor], Tensor]) -> NNBCDState:
    """Return the state with `change` applied to every tensor that has a row for each sample."""

    U, V, products = (each(group, change) for group in (state.U, state.V, state.products))
    ended = (*state.ended[:2], *(each(group, change) for group in state.ended[2:]))  # W and b are as they were
    return state._replace(U=U, V=V, products=products, ended=ended)
