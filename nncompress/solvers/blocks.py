"""The closed-form block updates of NN-BCD, one function each.

Samples are rows here: V, U are n x d, the paper's d x n matrices transposed, for which matrix products are faster (the
layers' widths are round numbers, n is not). Weights W are outputs x inputs as in the paper.

Li et al., "On Model Compression for Neural Networks: Framework, Algorithm, and Convergence Guarantee",
arXiv 2303.06815; without compression: Zeng et al., ICML 2019, arXiv 1803.00225.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRIMAL_BELOW = (math.sqrt(5) - 1) / 2
"""The V block of width d is solved on the side of the next width d' when d' < 0.618 d: 4 d d' + 2 d'^2 then costs
less than 2 d d' + 2 d^2 multiply-accumulates a sample."""

BLOCK = 256
"""Columns of a block in Gram matrices and triangular solves."""

CHUNK = 1 << 16
"""Entries of an elementwise update treated at once on the CPU, so that its temporaries stay in the cache."""


def output_activation(Y: Tensor, U: Tensor, V: Tensor, gamma: float, alpha: float) -> Tensor:
    """V_N = argmin 1/2 ‖V - Y‖² + gamma/2 ‖V - U‖² + alpha/2 ‖V - V_old‖²."""
    return (Y + gamma * U + alpha * V) / (1 + gamma + alpha)


def output_preactivation(V: Tensor, product: Tensor, gamma: float, rho: float) -> Tensor:
    """U_N = argmin gamma/2 ‖V_N - U‖² + rho/2 ‖U - V_{N-1} W_Nᵀ‖², the product given."""
    return (gamma * V + rho * product) / (gamma + rho)


def activation_step_(target: Tensor, W: Tensor, U: Tensor, rho: float, gamma: float) -> Tensor:
    """V_i = argmin rho/2 ‖U - V Wᵀ‖² + gamma/2 ‖V - target‖², W = W_{i+1} (d' x d), U = U_{i+1}, target = sigma(U_i).

    By Cholesky of rho WᵀW + gamma I, or of the smaller W Wᵀ + gamma/rho I (Woodbury) where that costs less.
    Written over `target`.
    """
    rows, columns = W.shape
    if rows < PRIMAL_BELOW * columns:
        factor = torch.linalg.cholesky(_plus_diagonal(W @ W.T, gamma / rho))
        return target.addmm_(solve_(torch.addmm(U, target, W.T, alpha=-1), factor), W)
    factor = torch.linalg.cholesky(_plus_diagonal(rho * (W.T @ W), gamma))
    return solve_(target.addmm_(U, W, beta=gamma, alpha=rho), factor)


def solve_(B: Tensor, factor: Tensor) -> Tensor:
    """B (L Lᵀ)⁻¹ for B (n x d) and the lower Cholesky factor L, in place: two substitutions by blocks of columns.

    Diagonal blocks are inverted once, so that all work on the n rows is matrix products.
    """
    d = len(factor)
    blocks = [(start, min(d, start + BLOCK)) for start in range(0, d, BLOCK)]
    inverses = [_triangular_inverse(factor[start:stop, start:stop]) for start, stop in blocks]
    for (start, stop), inverse in zip(blocks, inverses, strict=True):
        column = B[:, start:stop].addmm_(B[:, :start], factor[start:stop, :start].T, alpha=-1)
        column.copy_(column @ inverse.T)
    for (start, stop), inverse in reversed(list(zip(blocks, inverses, strict=True))):
        column = B[:, start:stop].addmm_(B[:, stop:], factor[stop:, start:stop], alpha=-1)
        column.copy_(column @ inverse)
    return B


def preactivation_step_(
    U: Tensor, V: Tensor, product: Tensor, *, rho: float, gamma: float, alpha: float, slope: float
) -> Tensor:
    """U <- argmin gamma/2 ‖V - sigma(U)‖² + rho/2 ‖U - product‖² + alpha/2 ‖U - U_old‖², entry by entry, in place.

    `product` becomes the residual U - product. Returns ‖U - U_old‖² in float64.
    """
    share, g = rho / (rho + alpha), (rho + alpha) / gamma
    size = CHUNK if U.device.type == "cpu" else U.numel()
    squares = []
    for u, a, p in zip(*(torch.split(t.view(-1), size) for t in (U, V, product)), strict=True):
        new = activation_prox(a, torch.lerp(u, p, share), g, slope)
        u.sub_(new)
        squares.append(torch.dot(u, u))
        u.copy_(new)
        torch.sub(new, p, out=p)
    return torch.stack(squares).sum(dtype=torch.float64)


def activation_prox(a: Tensor, b: Tensor, g: float, slope: float = 0.0) -> Tensor:
    """argmin over u of 1/2 (sigma(u) - a)² + g/2 (u - b)², entry by entry, sigma(u) = max(u, 0) + slope min(u, 0).

    The minimiser of each linear piece is clipped to its half-line and the better of the two is taken; the negative
    one on ties. For ReLU that is m + [g b + t a > 0] max((a + g b)/(1 + g) - m, 0), m = min(b, 0),
    t = sqrt(g (g + 1)) - g.
    """
    positive: Tensor = torch.add(a, b, alpha=g).mul_(1 / (1 + g))
    if slope == 1.0:
        return positive
    if slope == 0.0:
        m = b.clamp_max(0)
        sign = torch.add(b, a, alpha=(math.sqrt(g * (g + 1)) - g) / g)
        jump = torch.ops.aten.threshold_backward(positive.sub_(m).relu_(), sign, 0)  # [sign > 0] * (...), one pass
        return m.add_(jump)
    positive.clamp_min_(0)
    negative = (slope * a + g * b).div_(slope**2 + g).clamp_max_(0)
    value_positive = (positive - a).square_() + g * (positive - b).square_()
    value_negative = (slope * negative - a).square_() + g * (negative - b).square_()
    return torch.where(value_positive < value_negative, positive, negative)


def gram(V: Tensor, bias: bool) -> Tensor:
    """VᵀV (d x d), of V with a column of ones behind it when `bias`. Only the lower triangle is filled in."""
    n, d = V.shape
    out = V.new_zeros(d + bias, d + bias)
    for start in range(0, d, BLOCK):
        stop = min(d, start + BLOCK)
        out[start:stop, :stop] = V[:, start:stop].T @ V[:, :stop]
    if bias:
        out[d, :d] = V.sum(dim=0)
        out[d, d] = n
    return out


def cross(R: Tensor, V: Tensor, bias: bool) -> Tensor:
    """RᵀV (d' x d), with the column Rᵀ1 behind it when `bias`."""
    product = torch.mm(R.T, V)
    return torch.cat([product, R.sum(dim=0)[:, None]], dim=1) if bias else product


def weight_factor(gram: Tensor, rho: float, diagonal: Tensor) -> Tensor:
    """Lower Cholesky factor of rho VᵀV + diag(diagonal); reads the lower triangle of `gram`."""
    factor: Tensor = torch.linalg.cholesky((rho * gram).add_(torch.diag(diagonal)))
    return factor


def weight_step(pull: Tensor, cross: Tensor, factor: Tensor, rho: float) -> Tensor:
    """What (W_i, b_i) moves by: (pull + rho RᵀV)(rho VᵀV + diag)⁻¹, residual R = U_i - V_{i-1} W_oldᵀ - 1 b_oldᵀ.

    pull = tau (T(G) - W_old) (0 in the bias column), diag = alpha + tau (alpha for the bias). The same minimiser of
    the ridge problem, jointly in W_i and b_i, as (alpha W_old + tau T + rho UᵀV)(...)⁻¹, with rounding errors that
    shrink with the move.
    """
    return solve_(torch.add(pull, cross, alpha=rho), factor)


def subgradient_sq(U: Tensor, V: Tensor, smooth: Tensor, gamma: float, slope: float) -> Tensor:
    """Squared distance of 0 to the limiting subdifferential in U_i of gamma/2 ‖V - sigma(U)‖² + (smooth part).

    `smooth` is the gradient of the smooth part. Where u = 0 the kink offers [-gamma slope v, -gamma v] if it is
    convex and its two ends if it is concave; the element nearest to -smooth is taken.
    """
    g = torch.where(U > 0, gamma * (U - V), gamma * slope * (slope * U - V)) + smooth
    left, right = smooth - gamma * slope * V, smooth - gamma * V
    ends = torch.minimum(left.abs(), right.abs())
    inside = (left <= 0) & (right >= 0)
    return sq(torch.where(U == 0, torch.where(inside, 0, ends), g))


def sq(x: Tensor) -> Tensor:
    """‖x‖² accumulated in float64, a 0-dimensional tensor."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm.square()


def _triangular_inverse(factor: Tensor) -> Tensor:
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse


def _plus_diagonal(matrix: Tensor, value: float) -> Tensor:
    matrix.diagonal().add_(value)
    return matrix
