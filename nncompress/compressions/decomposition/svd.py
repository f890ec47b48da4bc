"""The best approximation of low rank of a matrix: exact for small ones, certified to TOLERANCE for large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Of a large matrix: by how much the error may exceed the least possible one, relative to it."""

LARGE = 512
"""Below this many rows or columns an eigendecomposition is as fast as an iteration."""

FIRST_TEST = 4
"""Krylov blocks before the result of a cold start is tested; every second block afterwards.

A warm start is tested from its first block on.
"""


class SVD(NamedTuple):
    """U diag(s) V with U (..., m, r), s (..., r) falling, V (..., r, n)."""

    U: Tensor
    s: Tensor
    V: Tensor


def truncated_svd(a: Tensor, rank: int, start: tuple[Tensor, Tensor] | None = None) -> SVD:
    """Approximate `a` (m x n) by rank `rank` <= min(m, n), within TOLERANCE of the least Frobenius error.

    That is up to rounding errors, of some eps ‖a‖. A matrix that is large against its rank takes a block Krylov
    iteration (Musco and Musco, NeurIPS 2015), whose result is returned when `_optimal` proves it; every other one takes
    `exact_svd`. Factors `start` (m x rank, rank x n) of a nearby matrix make the iteration faster. Deterministic: the
    random start has a fixed seed.
    """
    if not is_large(a.shape, rank):
        return exact_svd(a, rank)
    if a.shape[0] > a.shape[1]:
        left, s, right = truncated_svd(a.T, rank, None if start is None else (start[1].T, start[0].T))
        return SVD(right.T, s, left.T)
    guess = start[1].T if start is not None and len(start[1]) == rank else None
    return _krylov_svd(a, rank, guess) or exact_svd(a, rank)


def is_large(shape: Sequence[int], rank: int) -> bool:
    """Return whether the iteration pays: there is room for two tests."""
    return min(shape) >= LARGE and _blocks(min(shape), rank) >= FIRST_TEST + 2


def _blocks(rows: int, rank: int) -> int:
    """Return the most Krylov blocks that are tried: more than five eighths of the rows are no faster than all."""
    return 5 * rows // (8 * _width(rank))


def _width(rank: int) -> int:
    """Return the columns of a Krylov block; those beyond the rank are for the flattest spectra, those of noise."""
    return rank + max(16, 3 * rank // 8)


def exact_svd(a: Tensor, rank: int) -> SVD:
    """Return the `rank` leading singular triplets of a (..., m, n), to working accuracy.

    Below double precision the eigenvectors of the Gram matrix of the smaller side, in double precision, serve: what
    squaring loses, singular values below 1e-8 of the largest, is below the rounding of `a`.
    """
    if a.dtype == torch.float64:
        U, s, V = torch.linalg.svd(a, full_matrices=False)
        return SVD(U[..., :rank], s[..., :rank], V[..., :rank, :])
    if a.shape[-2] > a.shape[-1]:
        left, s, right = exact_svd(a.mT, rank)
        return SVD(right.mT, s, left.mT)
    wide = a.double()
    U = torch.linalg.eigh(wide @ wide.mT).eigenvectors[..., -rank:].flip(-1)
    image = U.mT @ wide
    s = torch.linalg.vector_norm(image, dim=-1)
    V = image / torch.where(s > 0, s, 1).unsqueeze(-1)
    return SVD(U.to(a.dtype), s.to(a.dtype), V.to(a.dtype))


def singular_values(a: Tensor) -> Tensor:
    """Return all singular values of a (..., m, n), falling, in float64 and to the accuracy of `exact_svd`."""
    if a.dtype == torch.float64:
        values: Tensor = torch.linalg.svdvals(a)
        return values
    wide = (a if a.shape[-2] <= a.shape[-1] else a.mT).double()
    squares: Tensor = torch.linalg.eigvalsh(wide @ wide.mT)
    return squares.flip(-1).clamp_min(0).sqrt()


def _krylov_svd(a: Tensor, rank: int, guess: Tensor | None) -> SVD | None:
    """Approximate `a` (m <= n) in the Krylov space of aᵀa and a block; None unless the result is proved to be good.

    The block is random but for its first columns, which are the `guess` (n x rank), if any.
    """
    total, limits = torch.linalg.vector_norm(a) ** 2, torch.finfo(a.dtype)
    if not limits.tiny ** (1 / 3) < total < limits.max ** (1 / 3):
        return None  # products of squares would leave the range of the numbers
    generator = torch.Generator(a.device).manual_seed(0)
    block = torch.randn((a.shape[1], _width(rank)), generator=generator, device=a.device, dtype=a.dtype)
    test = FIRST_TEST
    if guess is not None:
        block[:, :rank], test = guess, 1
    basis = torch.linalg.qr(block).Q
    image = a @ basis
    for blocks in range(1, _blocks(len(a), rank) + 1):
        if blocks == test == FIRST_TEST and 2 * torch.linalg.vector_norm(image) ** 2 < total:
            test += 2  # so flat a spectrum takes longer: the test would be in vain
        if blocks == test:
            svd = _rayleigh_ritz(a, basis, image, rank, total)
            if svd is not None:
                return svd
            test += 2
        block = a.T @ image[:, -_width(rank) :]
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        block -= basis @ (basis.T @ block)  # once is not enough where the space is nearly exhausted
        basis, image = torch.cat([basis, block], 1), torch.cat([image, a @ block], 1)
    return None


def _rayleigh_ritz(a: Tensor, basis: Tensor, image: Tensor, rank: int, total: Tensor) -> SVD | None:
    """Approximate `a` with rows in the span of `basis`, improved by half a step; None unless proved good.

    `image` is a @ basis and `total` ‖a‖².
    """
    values, vectors = _gram_eigen(image, rank)
    Q = basis @ vectors[:, -rank:]
    U = torch.linalg.qr(image @ vectors[:, -rank:]).Q
    L = a.T @ U  # n x r: U Lᵀ is the best approximation with columns in the span of U
    V, s, Z = torch.linalg.svd(L, full_matrices=False)
    rest = torch.addmm(a, U, L.T, alpha=-1)
    coupling = rest @ (L - Q @ (Q.T @ L))  # = rest @ L, as rest @ Q = 0, without its rounding errors
    # a aᵀ = image imageᵀ + a (I - basis basisᵀ) aᵀ: the next Ritz value and the trace that the basis misses bound the
    # eigenvalues of rest restᵀ (up to the rounding of the sums)
    bound = values[-rank - 1] + total - values.sum() + 16 * torch.finfo(a.dtype).eps * total
    return SVD(U @ Z.T, s, V.T) if _optimal(s, rest, coupling, bound, total) else None


def _gram_eigen(a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return rising eigenvalues and eigenvectors of aᵀa; by the slower way if the `rank` last would be inaccurate."""
    values, vectors = torch.linalg.eigh(a.T @ a)
    if values[-rank] > 1e3 * torch.finfo(a.dtype).eps * values[-1]:
        return values, vectors
    svd = torch.linalg.svd(torch.linalg.qr(a, mode="r").R)
    return svd.S.square().flip(0), svd.Vh.flip(0).T


def _optimal(s: Tensor, rest: Tensor, coupling: Tensor, bound: Tensor, total: Tensor) -> bool:
    """Return whether ‖rest‖ is certainly within TOLERANCE of the least error, up to rounding.

    With C = rest = a - U Lᵀ, UᵀC = 0, X = coupling = C L and a basis that starts with U, a aᵀ = [[LᵀL, Xᵀ], [X, CCᵀ]].
    For any t above the eigenvalues of CCᵀ it is at most diag(LᵀL + Xᵀ (t - CCᵀ)⁻¹ X, t I) (Schur complement), so no r
    of its eigenvalues sum to more than ‖L‖² + tr Xᵀ (t - CCᵀ)⁻¹ X + sum_i max(t - s_i², 0): the least error squared is
    at least ‖C‖² minus the last two terms. This is duality for the sum of the largest eigenvalues (Overton and
    Womersley, Math. Programming 62, 1993). t is the largest that leaves half of the budget to each term. The
    eigenvalues of CCᵀ are at most ‖C‖², and at most `bound`; if that does not do, a Cholesky factor of t - CCᵀ, which
    exists only for t above them, gives the exact trace. Each condition is one read from the device.
    """
    error = torch.linalg.vector_norm(rest) ** 2
    if error <= (16 * torch.finfo(s.dtype).eps) ** 2 * total:
        return True  # nothing is left but rounding errors
    budget = (1 - (1 + TOLERANCE) ** -2) * error / 2
    t = ((budget + s.square().flip(0).cumsum(0)) / torch.arange(1, len(s) + 1, device=s.device)).min()
    outside = torch.linalg.vector_norm(coupling) ** 2
    if outside <= (t - torch.minimum(error, bound)) * budget:
        return True
    if outside > t * budget / 4:
        return False  # (t - CCᵀ)⁻¹ is at least 1 / t and mostly several times that: a factor would be in vain
    gap = _lower_gram(rest).neg_()
    gap.diagonal().add_(t)
    factor, failed = torch.linalg.cholesky_ex(gap)
    inside = torch.linalg.solve_triangular(factor, coupling, upper=False)
    return bool((failed == 0) & (torch.linalg.vector_norm(inside) ** 2 <= budget))


def _lower_gram(c: Tensor) -> Tensor:
    """Return c cᵀ on and below its diagonal, in half of the operations; what is above is not to be read."""
    half = len(c) // 2
    if half < LARGE // 4:
        return c @ c.T
    gram = c.new_zeros(len(c), len(c))
    gram[:half, :half] = _lower_gram(c[:half])
    gram[half:, :half] = c[half:] @ c[:half].T
    gram[half:, half:] = _lower_gram(c[half:])
    return gram


def gram_matrix(a: Tensor) -> Tensor:
    """Return a aᵀ; one of its two equal off-diagonal blocks is copied instead of computed."""
    half = len(a) // 2
    gram = a.new_empty(len(a), len(a))
    gram[:half, :half] = a[:half] @ a[:half].T
    gram[half:] = a[half:] @ a.T
    gram[:half, half:] = gram[half:, :half].T
    return gram
