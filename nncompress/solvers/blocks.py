"""The closed-form block updates of NN-BCD, one function each, and their statistics over samples.

Li et al., "On Model Compression for Neural Networks: Framework, Algorithm, and Convergence Guarantee",
arXiv 2303.06815; without compression: Zeng et al., ICML 2019, arXiv 1803.00225. Samples are columns (d x n).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRIMAL_BELOW = (math.sqrt(5) - 1) / 2
"""The V block of width d is solved on the side of the next width d' when d' < 0.618 d: 4 d d' + 2 d'^2 then costs
less than 2 d d' + 2 d^2 multiply-accumulates a sample."""

CHUNK = 1 << 18
"""Entries of an elementwise update treated at once on the CPU, so that its temporaries stay in the cache."""


def output_activation(Y: Tensor, U: Tensor, V: Tensor, gamma: float, alpha: float) -> Tensor:
    """V_N = argmin 1/2 ‖V - Y‖² + gamma/2 ‖V - U‖² + alpha/2 ‖V - V_old‖²."""
    return (Y + gamma * U + alpha * V) / (1 + gamma + alpha)


def output_preactivation(V: Tensor, product: Tensor, gamma: float, rho: float) -> Tensor:
    """U_N = argmin gamma/2 ‖V_N - U‖² + rho/2 ‖U - W_N V_{N-1}‖²."""
    return (gamma * V + rho * product) / (gamma + rho)


def activation_step(W: Tensor, U: Tensor, target: Tensor, rho: float, gamma: float) -> Tensor:
    """V_i = argmin rho/2 ‖U - W V‖² + gamma/2 ‖V - target‖² with W = W_{i+1} (d' x d), target = sigma(U_i).

    By Cholesky of rho WᵀW + gamma I, or of the smaller W Wᵀ + gamma/rho I (Woodbury) where that costs less.
    """
    rows, columns = W.shape
    if rows < PRIMAL_BELOW * columns:
        factor = torch.linalg.cholesky(_plus_diagonal(W @ W.T, gamma / rho))
        return torch.addmm(target, W.T, torch.cholesky_solve(torch.addmm(U, W, target, alpha=-1), factor))
    factor = torch.linalg.cholesky(_plus_diagonal(rho * (W.T @ W), gamma))
    return torch.cholesky_solve(torch.addmm(target, W.T, U, beta=gamma, alpha=rho), factor)


def preactivation_step_(U: Tensor, V: Tensor, b: Tensor, g: float, slope: float) -> Tensor:
    """U <- prox(V, b) entry by entry (see `activation_prox`), in place; returns ‖U - U_old‖² in float64."""
    size = CHUNK if U.device.type == "cpu" else U.numel()
    step_sq = torch.zeros((), dtype=torch.float64, device=U.device)
    for u, a, c in zip(*(torch.split(t.reshape(-1), size) for t in (U, V, b)), strict=True):
        new = activation_prox(a, c, g, slope)
        step_sq += sq(u.sub_(new))
        u.copy_(new)
    return step_sq


def activation_prox(a: Tensor, b: Tensor, g: float, slope: float = 0.0) -> Tensor:
    """argmin over u of 1/2 (sigma(u) - a)² + g/2 (u - b)², entry by entry, sigma(u) = max(u, 0) + slope min(u, 0).

    The minimiser of each linear piece is clipped to its half-line and the better of the two is taken; the negative
    one on ties. For ReLU the comparison reduces to the sign of g b + t a with t = sqrt(g (g + 1)) - g.
    """
    positive: Tensor = torch.add(a, b, alpha=g).mul_(1 / (1 + g))
    if slope == 1.0:
        return positive
    if slope == 0.0:
        t = math.sqrt(g * (g + 1)) - g
        below = torch.where(torch.add(b, a, alpha=t / g) > 0, positive, b)
        return torch.where(b < 0, below, positive.clamp_min_(0))
    positive.clamp_min_(0)
    negative = (slope * a + g * b).div_(slope**2 + g).clamp_max_(0)
    value_positive = (positive - a).square_() + g * (positive - b).square_()
    value_negative = (slope * negative - a).square_() + g * (negative - b).square_()
    return torch.where(value_positive < value_negative, positive, negative)


def gram(V: Tensor, bias: bool) -> Tensor:
    """V Vᵀ (d x d), of V with a row of ones below it when `bias`. Only the lower triangle is filled in."""
    d = len(V)
    size = d + bias
    out = V.new_zeros(size, size)
    block = max(256, -(-d // 4))
    for start in range(0, d, block):
        stop = min(d, start + block)
        out[start:stop, :stop] = V[start:stop] @ V[:stop].T
    if bias:
        out[d, :d] = V.sum(dim=1)
        out[d, d] = V.shape[1]
    return out


def cross(U: Tensor, V: Tensor, bias: bool) -> Tensor:
    """U Vᵀ (d' x d), with the column U 1 behind it when `bias`."""
    product = torch.mm(U, V.T)
    return torch.cat([product, U.sum(dim=1, keepdim=True)], dim=1) if bias else product


def weight_factor(gram: Tensor, rho: float, diagonal: Tensor) -> Tensor:
    """Lower Cholesky factor of rho V Vᵀ + diag(diagonal); reads the lower triangle of `gram`."""
    factor: Tensor = torch.linalg.cholesky((rho * gram).add_(torch.diag(diagonal)))
    return factor


def weight_step(anchor: Tensor, cross: Tensor, factor: Tensor, rho: float) -> Tensor:
    """(W_i, b_i) = (anchor + rho U Vᵀ)(rho V Vᵀ + diag)⁻¹, the minimiser of the ridge problem in W_i and b_i jointly.

    anchor = alpha W_old + tau T(G) (alpha b_old in the bias column), diag = alpha + tau (alpha for the bias).
    """
    new: Tensor = torch.cholesky_solve(torch.add(anchor, cross, alpha=rho).T, factor).T.contiguous()
    return new


def subgradient_sq(U: Tensor, V: Tensor, smooth: Tensor, gamma: float, slope: float) -> Tensor:
    """Squared distance of 0 to the limiting subdifferential in U_i of gamma/2 ‖V - sigma(U)‖² + (smooth part).

    `smooth` is the gradient of the smooth part. Where u = 0 the kink offers [-gamma slope v, -gamma v] if it is
    convex (v <= 0) and its two ends if it is concave; the element nearest to -smooth is taken.
    """
    g = torch.where(U > 0, gamma * (U - V), gamma * slope * (slope * U - V)) + smooth
    left, right = smooth - gamma * slope * V, smooth - gamma * V
    ends = torch.minimum(left.abs(), right.abs())
    inside = (V <= 0) & (left <= 0) & (right >= 0)
    return sq(torch.where(U == 0, torch.where(inside, 0, ends), g))


def sq(x: Tensor) -> Tensor:
    """‖x‖² accumulated in float64, a 0-dimensional tensor."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm.square()


def _plus_diagonal(matrix: Tensor, value: float) -> Tensor:
    matrix.diagonal().add_(value)
    return matrix
