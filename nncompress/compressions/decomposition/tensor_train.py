"""Tensor train: T(i_1, ..., i_d) = G_1[i_1] G_2[i_2] ... G_d[i_d] with ranks of at most `rank`.

Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 33(5), 2011 (TT-SVD: algorithm 1, theorem 2.2).
Holtz, Rohwedder and Schneider, "The alternating linear scheme for tensor optimization in the tensor train format",
SIAM J. Sci. Comput. 34(2), 2012 (alternating least squares).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import Factorised, ThetaSize, distance_sq
from nncompress.compressions.decomposition.modes import Modes, balanced_modes, given_modes
from nncompress.compressions.decomposition.train_products import tt_product
from nncompress.compressions.plan import Plan, Task, choose
from nncompress.compressions.products import Product
from nncompress.compressions.target import rounded
from nncompress.compressions.views import AsTensor


class Cores(NamedTuple):
    """The cores G_k, each r_{k-1} x n_k x r_k, with r_0 = r_d = 1."""

    cores: tuple[Tensor, ...]


@dataclass(frozen=True)
class TensorTrain(Factorised[Cores]):
    """Tensors with TT ranks of at most `rank`; Π is TT-SVD, at most sqrt(d-1) times the best error (d modes).

    With a `start` the better of TT-SVD and `start` is returned, so that a block that calls `compress` again and
    again never gets worse; from there `als` sweeps of alternating least squares lower the error further.
    Raises ValueError for a rank below 1 and for a negative `als`.
    """

    exact: ClassVar[bool] = False

    rank: int
    als: int = field(default=0, repr=False)  # of the search, not of the set

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, found {self.rank}")
        if self.als < 0:
            raise ValueError(f"als, a number of sweeps, must be at least 0, found {self.als}")

    def project(self, w: Tensor, mu: float, start: Cores | None) -> Cores:
        theta = tt_project(w, self.rank, start)
        if self.als == 0 or w.ndim < 3:  # for two modes TT-SVD is the best there is
            return theta
        return Cores(tt_als(w, _better(w, theta, start).cores, self.als))

    def decompress(self, theta: Cores) -> Tensor:
        return tt_to_tensor(theta.cores)

    def size(self, shape: Sequence[int]) -> ThetaSize:
        return train_size(shape, self.rank)

    def clipped(self, shape: Sequence[int]) -> str | None:
        return rank_clipped(shape, self.rank)

    def product(self, theta: Cores, shape: Sequence[int]) -> Product | None:
        return tt_product(theta.cores, shape)


def tt_project(w: Tensor, rank: int, start: Cores | None) -> Cores:
    """The TT-SVD of `w`, in memory of its own."""
    cores = tt_svd(w, tt_ranks(w.shape, rank), None if start is None else start.cores)
    storage = w.untyped_storage().data_ptr()  # a bond that truncates nothing may hand on w itself
    return Cores(tuple(c.clone() if c.untyped_storage().data_ptr() == storage else c for c in cores))


def _better(w: Tensor, theta: Cores, start: Cores | None) -> Cores:
    """The nearer to `w`; `theta` where the ranks of `start` are others."""
    if start is None or [core.shape for core in start.cores] != [core.shape for core in theta.cores]:
        return theta
    new, old = (distance_sq(w, tt_to_tensor(cores)) for cores in (theta.cores, start.cores))
    return start if old < new else theta


def rank_clipped(modes: Sequence[int], rank: int) -> str | None:
    """What to say of a rank that no bond of a train with these modes reaches."""
    largest = max(tt_ranks(modes, rank))
    above = largest < rank
    return f"rank {rank} is above the largest of modes {list(modes)}, {largest} is used" if above else None


def rounded_rank(rank: int, round_to: int, modes: Sequence[int]) -> int:
    """A TT rank rounded up to a multiple of `round_to`, at most to the largest that trains with these modes have."""
    return rounded(rank, round_to, max(tt_ranks(modes, math.prod(modes))))


def train_size(modes: Sequence[int], rank: int) -> ThetaSize:
    """The size of trains with these modes whose ranks are at most `rank`."""
    ranks = tt_ranks(modes, rank)
    cores = zip((1, *ranks[:-1]), modes, ranks, strict=True)
    return ThetaSize("rank", ranks[:-1], sum(math.prod(core) for core in cores))


def tt_ranks(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """r_1, ..., r_d with r_k = min(rank, r_{k-1} n_k, n_{k+1} ... n_d) and r_d = 1."""
    ranks, left = [], 1
    for k, n in enumerate(shape):
        left = min(rank, left * n, math.prod(shape[k + 1 :]))
        ranks.append(left)
    return tuple(ranks)


def tt_svd(w: Tensor, ranks: Sequence[int], start: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
    """Cores of the TT-SVD of `w` (n_1, ..., n_d) with the given ranks (r_1, ..., r_{d-1}, 1).

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
    """Q (m x r) and B (r x n) with Q B the best approximation of rank r of `a` (m x n).

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


def gram_matrix(a: Tensor) -> Tensor:
    """a aᵀ; one of its two equal off-diagonal blocks is copied instead of computed."""
    half = len(a) // 2
    gram = a.new_empty(len(a), len(a))
    gram[:half, :half] = a[:half] @ a[:half].T
    gram[half:] = a[half:] @ a.T
    gram[:half, half:] = gram[half:, :half].T
    return gram


def _leading_space(gram: Tensor, r: int, guess: Tensor | None) -> Tensor:
    """An orthonormal basis (m x r) of the span of the eigenvectors of the r largest eigenvalues."""
    if guess is not None and guess.shape[1] == r and gram.device.type == "cpu":
        basis = _refined(gram, guess)
        if basis is not None:
            return basis
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -r:]


REFINEMENTS = 6


def _refined(gram: Tensor, guess: Tensor) -> Tensor | None:
    """Subspace iteration from a guess; None unless the result is certainly the leading space.

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
    """Cores of the same ranks after `sweeps` >= 1 sweeps of alternating least squares, no further from `w` (d modes).

    A sweep goes to the left and back. Between orthonormal neighbours the best core is `w` contracted with them. Only
    two contractions a sweep are with `w` itself: to both sides of its middle bond they leave small tensors.
    """
    middle = middle_bond(w.shape)
    heads, r = w.shape[:middle], cores[middle].shape[0]
    matrix = w.reshape(math.prod(heads), -1)
    left, right = _orthogonal(_mirrored(cores[:middle])), _orthogonal(cores[middle:])
    columns = _columns(right)
    for _ in range(sweeps):
        image = _flipped((matrix @ columns.T).reshape(*heads, r))
        left, rows = _round_trip(image.reshape(r, -1), left)
        image = _flipped(rows.reshape(r, *reversed(heads))).reshape(-1, r).T @ matrix
        right, columns = _round_trip(image, right)
    first = (image @ columns.T) @ right[0].reshape(r, -1)
    return (*_mirrored(left), first.reshape(right[0].shape), *right[1:])


def _round_trip(a: Tensor, cores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The cores of `a` (r_0 x n_1 ... n_p), each the best for the others, from the first to the last and back.

    They come with orthonormal rows (the factor r_0 x r_0 before the first is left out), as does their `_columns`.
    """
    rights = [a.new_ones(1, 1)]
    for core in reversed(cores[1:]):
        rights.append((core.reshape(-1, core.shape[2]) @ rights[-1]).reshape(core.shape[0], -1))
    lefts = [a]
    for core, right in zip(cores[:-1], reversed(rights[1:]), strict=True):
        unfolding = lefts[-1].reshape(core.shape[0] * core.shape[1], -1)
        lefts.append(torch.linalg.qr(unfolding @ right.T).Q.T @ unfolding)
    found, right = [], rights[0]
    for core, rest in zip(reversed(cores), reversed(lefts), strict=True):
        best = rest.reshape(core.shape[0] * core.shape[1], -1) @ right.T
        rows = torch.linalg.qr(best.reshape(core.shape[0], -1).T).Q.T
        found.append(rows.reshape(core.shape))
        right = (rows.reshape(-1, core.shape[2]) @ right).reshape(core.shape[0], -1)
    return found[::-1], right


def _orthogonal(cores: Sequence[Tensor]) -> list[Tensor]:
    """The last cores of a train with orthonormal rows; the factor before the first is left out."""
    found, factor = [], torch.eye(1, dtype=cores[0].dtype, device=cores[0].device)
    for core in reversed(cores):
        q, r = torch.linalg.qr((core @ factor).reshape(core.shape[0], -1).T)
        found.append(q.T.reshape(core.shape))
        factor = r.T
    return found[::-1]


def _mirrored(cores: Sequence[Tensor]) -> list[Tensor]:
    """The train of the tensor whose modes are in reverse order."""
    return [_flipped(core).contiguous() for core in reversed(cores)]


def _flipped(a: Tensor) -> Tensor:
    return a.permute(*reversed(range(a.ndim)))


def tt_to_tensor(cores: Sequence[Tensor]) -> Tensor:
    """The tensor (n_1, ..., n_d) of the cores, contracted from both ends towards the bond that best halves it."""
    if len(cores) == 1:
        return cores[0].reshape(-1)
    shape = [core.shape[1] for core in cores]
    middle = middle_bond(shape)
    return (_rows(cores[:middle]) @ _columns(cores[middle:])).reshape(shape)


def middle_bond(shape: Sequence[int]) -> int:
    """The number of modes before the bond that best halves a tensor of at least two."""
    return min(range(1, len(shape)), key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))


def _rows(cores: Sequence[Tensor]) -> Tensor:
    """(n_1 ... n_k) x r_k: the first cores, contracted from the left end."""
    product = cores[0].reshape(-1, cores[0].shape[2])
    for core in cores[1:]:
        product = (product @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
    return product


def _columns(cores: Sequence[Tensor]) -> Tensor:
    """r_k x (n_{k+1} ... n_d): the last cores, contracted from the right end."""
    product = cores[-1].reshape(cores[-1].shape[0], -1)
    for core in reversed(cores[:-1]):
        product = (core.reshape(-1, core.shape[2]) @ product).reshape(core.shape[0], -1)
    return product


def tt(
    weights: Mapping[str, Tensor],
    *,
    rank: int = 48,
    als: int = 0,
    modes: Modes = None,
    layers: str | Sequence[str] = "hidden",
    round_to: int = 1,
) -> Plan:
    """One tensor train of rank `rank` for each chosen weight, with `als` sweeps of alternating least squares.

    `modes`: None for balanced factors, one list for all chosen weights, or a mapping from a name pattern to a list.
    `layers`: "hidden" (all weights but the output layer's), "all", or name patterns. `round_to`: the rank is rounded up
    to a multiple of it; bonds that allow less have all they allow.
    """
    names = choose(weights, layers)
    given = given_modes(names, modes)
    tasks = []
    for name in names:
        sizes = given.get(name, balanced_modes(weights[name].shape))
        tasks.append(Task((name,), AsTensor(sizes), TensorTrain(rounded_rank(rank, round_to, sizes), als)))
    return Plan.of(tasks, weights)
