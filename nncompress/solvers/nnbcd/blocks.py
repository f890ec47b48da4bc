"""The closed-form block updates of NN-BCD, one function each.

Samples are rows here: V, U are n x d, the paper's d x n matrices transposed, for which matrix products are faster (the
layers' widths are round numbers, n is not). Weights W are outputs x inputs as in the paper.

Li et al., "On Model Compression for Neural Networks: Framework, Algorithm, and Convergence Guarantee",
arXiv 2303.06815; without compression: Zeng et al., ICML 2019, arXiv 1803.00225.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256
"""Columns of a block in Gram matrices and triangular solves."""

CHUNK = 1 << 16
"""Entries of an elementwise update treated at once on the CPU, so that its temporaries stay in the cache."""


def output_activation(Y: Tensor, U: Tensor, V: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return V_N = argmin 1/2 ‖V - Y‖² + gamma/2 ‖V - U‖² + alpha/2 ‖V - V_old‖²."""
    return (Y + gamma * U + alpha * V) / (1 + gamma + alpha)


def output_preactivation(V: Tensor, product: Tensor, gamma: float, rho: float) -> Tensor:
    """Return U_N = argmin gamma/2 ‖V_N - U‖² + rho/2 ‖U - V_{N-1} W_Nᵀ‖², the product given."""
    return (gamma * V + rho * product) / (gamma + rho)


class ActivationStep:
    """V_i = argmin rho/2 ‖U - V Bᵀ‖² + c/2 ‖V - target‖²; B (d' x d): the next layer's matrix, c = gamma without skips.

    By Cholesky of B Bᵀ + c/rho I (d' x d', Woodbury) where d' <= d, else of rho BᵀB + c I. The small side never does
    more work: it gives the product V Bᵀ of the new V, which the next sweep needs, for free.
    """

    def __init__(self, B: Tensor, rho: float, c: float) -> None:
        self.B, self.rho, self.c = B, rho, c
        self.small = gives_product(B.shape)
        matrix = _plus_diagonal(B @ B.T, c / rho) if self.small else _plus_diagonal(rho * (B.T @ B), c)
        self.factor = Factor(matrix)

    def __call__(self, target: Tensor, U: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return V, written over `target` (n x d), and V Bᵀ or None."""
        if self.small:
            C = self.factor.solve_(torch.addmm(U, target, self.B.T, alpha=-1))
            return target.addmm_(C, self.B), torch.sub(U, C, alpha=self.c / self.rho)
        return self.factor.solve_(target.addmm_(U, self.B, beta=self.c, alpha=self.rho)), None


def gives_product(shape: Sequence[int]) -> bool:
    """Return whether `ActivationStep` works on the small side of a matrix of this shape and gives V Bᵀ."""
    return shape[0] <= shape[1]


class Factor:
    """The lower Cholesky factor L of a positive definite matrix, ready to solve with many right-hand sides.

    Diagonal blocks of L are inverted once, so that all later work is matrix products. Without a host synchronisation:
    a matrix that is not positive definite gives NaN.
    """

    def __init__(self, matrix: Tensor) -> None:
        lower, info = torch.linalg.cholesky_ex(matrix)
        lower.diagonal().add_(torch.where(info == 0, 0.0, torch.nan))
        d = len(matrix)
        self.lower = lower
        self.blocks = [(start, min(d, start + BLOCK)) for start in range(0, d, BLOCK)]
        self.inverses = [
            torch.linalg.solve_triangular(lower[i:j, i:j], torch.eye(j - i, out=lower.new_empty(0)), upper=False)
            for i, j in self.blocks
        ]

    def solve_(self, B: Tensor) -> Tensor:
        """Return B (L Lᵀ)⁻¹ for B (n x d), in place: two substitutions by blocks of columns."""
        steps = list(zip(self.blocks, self.inverses, strict=True))
        for (start, stop), inverse in steps:
            column = B[:, start:stop].addmm_(B[:, :start], self.lower[start:stop, :start].T, alpha=-1)
            column.copy_(column @ inverse.T)
        for (start, stop), inverse in reversed(steps):
            column = B[:, start:stop].addmm_(B[:, stop:], self.lower[stop:, start:stop], alpha=-1)
            column.copy_(column @ inverse)
        return B


def preactivation_step_(
    U: Tensor, V: Tensor, product: Tensor, *, rho: float, gamma: float, alpha: float, slope: float
) -> Tensor:
    """Take U <- argmin gamma/2 ‖V - sigma(U)‖² + rho/2 ‖U - product‖² + alpha/2 ‖U - U_old‖², entry by entry.

    In place; `product` becomes the residual U - product. Returns ‖U - U_old‖² in float64.
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
    """Return argmin over u of 1/2 (sigma(u) - a)² + g/2 (u - b)², entry by entry.

    sigma(u) = max(u, 0) + slope min(u, 0). The minimiser of each linear piece is clipped to its half-line and the
    better of the two is taken; the negative one on ties. For ReLU that is
    m + [g b + t a > 0] max((a + g b)/(1 + g) - m, 0), m = min(b, 0), t = sqrt(g (g + 1)) - g.
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


def add_gram_(out: Tensor, rows: Tensor, bias: bool) -> None:
    """Add rowsᵀrows (d x d) to `out`, the lower triangle only; of rows with a column of ones behind when `bias`."""
    m, d = rows.shape
    for start in range(0, d, BLOCK):
        stop = min(d, start + BLOCK)
        out[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])
    if bias:
        out[d, :d] += rows.sum(dim=0)
        out[d, d] += m


def add_cross_(out: Tensor, R: Tensor, rows: Tensor, bias: bool) -> None:
    """Add Rᵀrows (d' x d) to `out`, with the column Rᵀ1 behind it when `bias`."""
    d = rows.shape[1]
    out[:, :d].addmm_(R.T, rows)
    if bias:
        out[:, d] += R.sum(dim=0)


def weight_step(pull: Tensor, cross: Tensor, gram: Tensor, diagonal: Tensor, rho: float) -> Tensor:
    """Return what (W_i, b_i) moves by: (pull + rho RᵀV)(rho VᵀV + diag)⁻¹, R = U_i - V_{i-1} W_oldᵀ - 1 b_oldᵀ.

    `cross` is RᵀV; of `gram`, VᵀV, the lower triangle is read. pull = tau (T(G) - W_old) (0 in the bias column),
    diag = alpha + tau (alpha for the bias). The same minimiser of the ridge problem, jointly in W_i and b_i, as
    (alpha W_old + tau T + rho UᵀV)(...)⁻¹, with rounding errors that shrink with the move.
    """
    matrix = rho * gram
    matrix.diagonal().add_(diagonal)
    return Factor(matrix).solve_(torch.add(pull, cross, alpha=rho))


def weight_step_few(pull: Tensor, R: Tensor, rows: Tensor, diagonal: Tensor, rho: float) -> Tensor:
    """Return `weight_step` for fewer rows than columns: Cholesky of V diag⁻¹ Vᵀ + I/rho instead (Woodbury).

    `rows` (m x d) has the column of ones behind it where there is a bias.
    """
    scaled = rows / diagonal
    factor = Factor(_plus_diagonal(scaled @ rows.T, 1 / rho))
    move = torch.addmm(pull, R.T, rows, alpha=rho).div_(diagonal)
    return move.addmm_(factor.solve_(move @ rows.T), scaled, alpha=-1)


def subgradient_sq(U: Tensor, V: Tensor, smooth: Tensor, gamma: float, slope: float) -> Tensor:
    """Return the squared distance of 0 to the subdifferential in U_i of gamma/2 ‖V - sigma(U)‖² + (smooth part).

    `smooth` is the gradient of the smooth part. Where u = 0 the kink offers [-gamma slope v, -gamma v] if it is
    convex and its two ends if it is concave; the element nearest to -smooth is taken.
    """
    if slope == 0.0:
        g: Tensor = torch.ops.aten.threshold_backward(U - V, U, 0)  # [U > 0] * (U - V), one pass
    else:
        g = torch.where(U > 0, U - V, slope * (slope * U - V))
    g = g.mul_(gamma).add_(smooth)
    kink = (U == 0).nonzero(as_tuple=True)  # few, if any
    v, s = V[kink], smooth[kink]
    left, right = s - gamma * slope * v, s - gamma * v
    inside = (left <= 0) & (right >= 0)
    g[kink] = torch.where(inside, 0, torch.minimum(left.abs(), right.abs()))
    return sq(g)


def sq(x: Tensor) -> Tensor:
    """Return ‖x‖² accumulated in float64, a 0-dimensional tensor."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm.square()


def _plus_diagonal(matrix: Tensor, value: float) -> Tensor:
    matrix.diagonal().add_(value)
    return matrix
