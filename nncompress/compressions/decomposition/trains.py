"""The algorithms of tensor trains: TT-SVD, alternating least squares, contraction; cores are r_{k-1} x n_k x r_k.

Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 33(5), 2011 (TT-SVD: algorithm 1, theorem 2.2).
Holtz, Rohwedder and Schneider, "The alternating linear scheme for tensor optimization in the tensor train format",
SIAM J. Sci. Comput. 34(2), 2012 (alternating least squares).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nncompress.compressions.decomposition.svd import gram_matrix

REFINEMENTS = 6
"""The most iterations that refine a guess of a leading space."""


def tt_ranks(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return r_1, ..., r_d with r_k = min(rank, r_{k-1} n_k, n_{k+1} ... n_d) and r_d = 1."""
    ranks, left = [], 1
    for k, n in enumerate(shape):
        left = min(rank, left * n, math.prod(shape[k + 1 :]))
        ranks.append(left)
    return tuple(ranks)


def tt_svd(w: Tensor, ranks: Sequence[int], start: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
    """Return the cores of the TT-SVD of `w` (n_1, ..., n_d) with the given ranks (r_1, ..., r_{d-1}, 1).

    Equal to sequential truncated singular value decompositions of the unfoldings, up to rotations of the ranks.
    Cores `start` of a nearby tensor with these ranks make it faster, not different.
    """
    cores, rest, left = [], w.reshape(1, -1), 1
    guess = None if start is None else start[0].reshape(-1, start[0].shape[2])
    for k, (n, r) in enumerate(zip(w.shape[:-1], ranks, strict=False)):
        unfolding = rest.reshape(left * n, -1)
        basis, rest = _truncate(unfolding, r, guess, None if start is None else start[k + 1 :])
        cores.append(basis.reshape(left, n, r))
        if start is not None and guess is not None:
            # the next guess: the start's core, its left rank turned into the new basis
            turned = (basis.T @ guess) @ start[k + 1].reshape(start[k + 1].shape[0], -1)
            guess = turned.reshape(-1, start[k + 1].shape[2])
        left = r
    return (*cores, rest.reshape(left, w.shape[-1], 1))


def _truncate(a: Tensor, r: int, left: Tensor | None, right: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return Q (m x r) and B (r x n) with Q B the best approximation of rank r of `a` (m x n).

    A bond that truncates nothing needs no decomposition: one factor is the identity (no later bond of the same
    sweep truncates after r = n). Elsewhere the eigenvectors of the Gram matrix of the smaller side serve; squaring
    the singular values limits the accuracy to sqrt(eps) ‖a‖ in the worst case. `left` (m x r) and the cores `right`
    (r x n) guess the two spaces.
    """
    m, n = a.shape
    if r == m:
        return torch.eye(m, dtype=a.dtype, device=a.device), a
    if r == n:
        return a, torch.eye(n, dtype=a.dtype, device=a.device)
    if m <= n:
        basis = _leading_space(gram_matrix(a), r, left)
        return basis, basis.T @ a
    gram = gram_matrix(a.T)
    rows = _leading_space(gram, r, None if right is None else _columns(right).T)
    rows = rows @ torch.linalg.eigh(rows.T @ gram @ rows).eigenvectors  # now the columns of a @ rows are orthogonal
    image = a @ rows
    scale = torch.linalg.vector_norm(image, dim=0)
    tiny = torch.finfo(a.dtype).eps * scale.max()
    return image * torch.where(scale > tiny, 1 / scale, 0), scale[:, None] * rows.T


def _leading_space(gram: Tensor, r: int, guess: Tensor | None) -> Tensor:
    """Return an orthonormal basis (m x r) of the span of the eigenvectors of the r largest eigenvalues."""
    if guess is not None and guess.shape[1] == r and gram.device.type == "cpu":
        basis = _refine(gram, guess)
        if basis is not None:
            return basis
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -r:]


def _refine(gram: Tensor, guess: Tensor) -> Tensor | None:
    """Iterate the subspace from a guess; None unless the result is certainly the leading space.

    With Ritz values theta_i, residual R and the part of the trace outside the space, which bounds every eigenvalue
    there, the angle is at most ‖R‖ / (min theta_i - rest) (Davis and Kahan, SIAM J. Numer. Anal. 7, 1970).
    """
    eps = torch.finfo(gram.dtype).eps
    trace, floor = gram.trace(), 8 * eps * torch.linalg.matrix_norm(gram)
    basis: Tensor = torch.linalg.qr(gram @ guess)[0]
    for _ in range(REFINEMENTS):
        image = gram @ basis
        ritz = basis.T @ image
        gap = torch.linalg.eigvalsh(ritz)[0] - (trace - ritz.trace()).clamp_min(0)
        if not gap > floor:
            return None
        if torch.linalg.matrix_norm(image - basis @ ritz) <= max(eps**0.625 * gap, floor):
            return basis
        basis = torch.linalg.qr(image)[0]
    return None


def tt_als(w: Tensor, cores: Sequence[Tensor], sweeps: int) -> tuple[Tensor, ...]:
    """Improve cores by `sweeps` >= 1 sweeps of alternating least squares, at their ranks, no further from `w`.

    A sweep goes to the left and back. Between orthonormal neighbours the best core is `w` contracted with them. Only
    two contractions a sweep are with `w` itself: to both sides of its middle bond they leave small tensors.
    """
    middle = middle_bond(w.shape)
    heads, r = w.shape[:middle], cores[middle].shape[0]
    matrix = w.reshape(math.prod(heads), -1)
    left, right = _orthogonal(_mirror(cores[:middle])), _orthogonal(cores[middle:])
    columns = _columns(right)
    for _ in range(sweeps):
        image = _flip((matrix @ columns.T).reshape(*heads, r))
        left, rows = _round_trip(image.reshape(r, -1), left)
        image = _flip(rows.reshape(r, *reversed(heads))).reshape(-1, r).T @ matrix
        right, columns = _round_trip(image, right)
    first = (image @ columns.T) @ right[0].reshape(r, -1)
    return (*_mirror(left), first.reshape(right[0].shape), *right[1:])


def _round_trip(a: Tensor, cores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the cores of `a` (r_0 x n_1 ... n_p), each the best for the others, from the first to the last and back.

    They come with orthonormal rows (the factor r_0 x r_0 before the first is left out), as does their `_columns`.
    """
    rights = [a.new_ones(1, 1)]
    for core in reversed(cores[1:]):
        rights.append((core.reshape(-1, core.shape[2]) @ rights[-1]).reshape(core.shape[0], -1))
    lefts = [a]
    for core, right in zip(cores[:-1], reversed(rights[1:]), strict=True):
        unfolding = lefts[-1].reshape(core.shape[0] * core.shape[1], -1)
        lefts.append(torch.linalg.qr(unfolding @ right.T).Q.T @ unfolding)
    result, right = [], rights[0]
    for core, rest in zip(reversed(cores), reversed(lefts), strict=True):
        best = rest.reshape(core.shape[0] * core.shape[1], -1) @ right.T
        rows = torch.linalg.qr(best.reshape(core.shape[0], -1).T).Q.T
        result.append(rows.reshape(core.shape))
        right = (rows.reshape(-1, core.shape[2]) @ right).reshape(core.shape[0], -1)
    return result[::-1], right


def _orthogonal(cores: Sequence[Tensor]) -> list[Tensor]:
    """Make the rows of the last cores of a train orthonormal; the factor before the first is left out."""
    result, factor = [], torch.eye(1, dtype=cores[0].dtype, device=cores[0].device)
    for core in reversed(cores):
        q, r = torch.linalg.qr((core @ factor).reshape(core.shape[0], -1).T)
        result.append(q.T.reshape(core.shape))
        factor = r.T
    return result[::-1]


def _mirror(cores: Sequence[Tensor]) -> list[Tensor]:
    """Return the train of the tensor whose modes are in reverse order."""
    return [_flip(core).contiguous() for core in reversed(cores)]


def _flip(a: Tensor) -> Tensor:
    return a.permute(*reversed(range(a.ndim)))


def tt_to_tensor(cores: Sequence[Tensor]) -> Tensor:
    """Contract the cores to their tensor (n_1, ..., n_d), from both ends towards the bond that best halves it."""
    if len(cores) == 1:
        return cores[0].reshape(-1)
    shape = [core.shape[1] for core in cores]
    middle = middle_bond(shape)
    return (_rows(cores[:middle]) @ _columns(cores[middle:])).reshape(shape)


def middle_bond(shape: Sequence[int]) -> int:
    """Return the number of modes before the bond that best halves a tensor of at least two."""
    return min(range(1, len(shape)), key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))


def _rows(cores: Sequence[Tensor]) -> Tensor:
    """Return (n_1 ... n_k) x r_k: the first cores, contracted from the left end."""
    product = cores[0].reshape(-1, cores[0].shape[2])
    for core in cores[1:]:
        product = (product @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
    return product


def _columns(cores: Sequence[Tensor]) -> Tensor:
    """Return r_k x (n_{k+1} ... n_d): the last cores, contracted from the right end."""
    product = cores[-1].reshape(cores[-1].shape[0], -1)
    for core in reversed(cores[:-1]):
        product = (core.reshape(-1, core.shape[2]) @ product).reshape(core.shape[0], -1)
    return product
