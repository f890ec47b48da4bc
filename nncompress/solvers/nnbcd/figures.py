"""The figures of NN-BCD's iterates: L with its terms, and the smallest limiting subgradient."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress import parallel
from nncompress.metrics import effective_sparsity
from nncompress.solvers.nnbcd import blocks
from nncompress.solvers.nnbcd.state import Blocks

ROWS = 256
"""Samples whose gradients are taken at once on the CPU: few, so that the temporaries stay in the cache."""
TERMS = ("fit", "activation", "linear", "compression", "multipliers")


def terms_of(P: Blocks, *, tau: float, gamma: float, rho: float) -> Tensor:
    """Return the terms of L(P) that are listed in TERMS, a float64 tensor on the blocks' device."""
    squares = torch.zeros(3, dtype=torch.float64, device=P.Y.device)
    N = P.last
    for i in range(1, N + 1):
        for rows in P.chunks(i):
            fit = blocks.sq(P.V[N][rows] - P.Y[rows]) if i == N else torch.zeros_like(squares[0])
            activations = blocks.sq(P.activated_part(i, rows) - P.activation(i, rows))
            squares += torch.stack([fit, activations, blocks.sq(P.linear_part(i, rows) - P.known_product(i, rows))])
    parallel.sum_(squares)
    scales = squares.new_tensor([0.5, gamma / 2, rho / 2])
    distance, product = torch.zeros_like(P.step_sq), torch.zeros_like(P.step_sq)
    for W, T, lam in zip(P.W[1:], P.T[1:], P.lam[1:], strict=True):
        if T is not None:
            distance += blocks.sq(W - T)
            if lam is not None:
                product -= torch.sum(lam * (W - T), dtype=torch.float64)
    return torch.cat([scales * squares, torch.stack([tau / 2 * distance, product])])


def figures(P: Blocks, *, tau: float, gamma: float, rho: float) -> dict[str, float]:
    """Return L(P), its terms, and the squared norm of the smallest limiting subgradient of L in (V, U, W, b)."""
    values = terms_of(P, tau=tau, gamma=gamma, rho=rho).tolist()
    terms = {f"term/{name}": value for name, value in zip(TERMS, values, strict=True)}
    if all(lam is None for lam in P.lam):
        del terms["term/multipliers"]
    penalty = P.plan.penalty(P.theta)
    if penalty:
        terms["term/penalty"] = penalty
    return {"objective": sum(terms.values()), **terms, "grad_sq": subgradient_sq(P, tau=tau, gamma=gamma, rho=rho)}


def sparsity(P: Blocks) -> dict[str, float]:
    """Return the effective sparsity of what is deployed; nothing with biases, skips, convolutions, or without a 0."""
    weights = [W if T is None else T for W, T in zip(P.W[1:], P.T[1:], strict=True)]
    layers = P.chain.layers
    if any(part is not None for layer in layers for part in (layer.bias, layer.inner, layer.outer)):
        return {}
    if any(len(P.shapes[layer.weight]) != 2 for layer in layers):
        return {}
    return {"sparsity/effective": effective_sparsity(weights)} if any(bool((w == 0).any()) for w in weights) else {}


def subgradient_sq(P: Blocks, *, tau: float, gamma: float, rho: float) -> float:
    """Return the squared distance of 0 to the limiting subdifferential of L in (V, U, W, b)."""
    of_samples = torch.zeros_like(P.step_sq)
    in_weights = [torch.zeros_like(w) for w in P.W[1:]]
    in_biases = [torch.zeros_like(w[:, 0]) for w in P.W[1:]]
    widest = max(range(1, P.last + 1), key=lambda i: P.U[i].shape[1])
    for rows in P.chunks(widest, ROWS):
        of_samples += _of_chunk(P, rows, in_weights, in_biases, gamma, rho)
    parallel.sum_(of_samples, *in_weights, *in_biases)
    total = of_samples
    for W, T, lam, b, grad_W, grad_b in zip(P.W[1:], P.T[1:], P.lam[1:], P.b[1:], in_weights, in_biases, strict=True):
        if T is not None:
            grad_W.add_(W - T, alpha=tau)
        if lam is not None:
            grad_W.sub_(lam)
        total = total + blocks.sq(grad_W) + (0.0 if b is None else blocks.sq(grad_b))
    return float(total)


def _of_chunk(
    P: Blocks, rows: slice, in_weights: list[Tensor], in_biases: list[Tensor], gamma: float, rho: float
) -> Tensor:
    """Return the part of the blocks U, V for some samples; adds theirs to the gradients in the weights and biases."""
    N = P.last
    in_V = {N: P.V[N][rows] - P.Y[rows]}

    def add(i: int, gradient: Tensor, sign: int = 1) -> None:
        in_V[i] = in_V[i].add_(gradient, alpha=sign) if i in in_V else gradient.mul(sign)

    total = torch.zeros_like(P.step_sq)
    for i in range(N, 0, -1):
        layer, seen = P.layer(i), P.layer(i).map.rows(P.V[i - 1][rows])
        in_U = torch.sub(P.linear_part(i, rows), P.known_product(i, rows)).mul_(rho)  # of the linear layer
        misfit = torch.sub(P.activated_part(i, rows), P.activation(i, rows)).mul_(gamma)
        total += blocks.subgradient_sq(P.U[i][rows], P.activated_part(i, rows), in_U, gamma, layer.slope)
        flat = in_U.view(len(seen), -1)
        in_weights[i - 1].addmm_(flat.T, seen, alpha=-1)
        in_biases[i - 1] -= flat.sum(dim=0)
        add(i, misfit)
        if i > 1:
            add(i - 1, in_U @ layer.map.matrix(P.W[i]), -1)
        if layer.inner is not None:
            add(layer.inner, in_U, -1)
        if layer.outer is not None:
            add(layer.outer, misfit, -1)
    return total + sum(blocks.sq(in_V[i]) for i in range(1, N + 1))
