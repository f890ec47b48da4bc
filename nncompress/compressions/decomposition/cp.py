"""CP: W(i_1, ..., i_d) = sum over r of A_1[i_1, r] A_2[i_2, r] ... A_d[i_d, r], with `rank` terms.

Kolda and Bader, "Tensor decompositions and applications", SIAM Review 51(3), 2009, section 3.4 (alternating least
squares). For convolutions: Lebedev et al., "Speeding-up convolutional neural networks using fine-tuned
CP-decomposition", ICLR 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import Factorised, ThetaSize, check_count
from nncompress.compressions.decomposition.modes import Modes, kernel_modes, rank_clipped, row_modes, tensor_plan
from nncompress.compressions.decomposition.tucker import leading_vectors
from nncompress.compressions.plan import Layers, Plan, Tensors
from nncompress.compressions.products import Convolutions, Product, Step, two_factors
from nncompress.compressions.target import round_up


class CPFactors(NamedTuple):
    """The factor matrices A_k (n_k x rank); the r-th columns of all of them have equal norms."""

    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class CP(Factorised[CPFactors]):
    """Sums of at most `rank` tensors that are products of one vector for each mode.

    Π is alternating least squares from `start` or the higher-order SVD: a local minimum at best, never worse than
    `start`. Raises ValueError for settings out of range.

    - rank: the most terms, at least 1.
    - sweeps: the most sweeps over the modes (a tenth of them from a `start`), at least 1; 100 is this package's choice.
    - tolerance: a sweep that takes less than this part of the squared error away is the last; 1e-5 is this package's
      choice.
    """

    exact: ClassVar[bool] = False
    rank: int
    sweeps: int = 100
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        if self.sweeps < 1 or not self.tolerance >= 0:
            raise ValueError(f"sweeps must be positive, tolerance at least 0, found {self.sweeps} and {self.tolerance}")

    def project(self, w: Tensor, mu: float, start: CPFactors | None) -> CPFactors:
        if start is None:
            factors, sweeps = first_factors(w, min(self.rank, largest_rank(w.shape))), self.sweeps
        else:
            factors, sweeps = start.factors, -(-self.sweeps // 10)
        terms = self._iterate(w, _terms(factors), sweeps)
        share = terms.weights ** (1 / w.dim())
        return CPFactors(tuple(factor * share for factor in terms.factors))

    def _iterate(self, x: Tensor, terms: Terms, sweeps: int) -> Terms:
        """Sweep over the modes; half of them is contracted with x at once, for all modes of the other half."""
        rows, columns = _halves(x.shape)
        flat = x.reshape(math.prod(x.shape[: len(rows)]), -1)
        norm_sq = flat.square().sum(dtype=torch.float64)
        before = torch.inf
        for _ in range(sweeps):
            terms = _sweep(flat @ khatri_rao(terms.factors, columns), terms, rows)
            terms = _sweep(flat.T @ khatri_rao(terms.factors, rows), terms, columns)
            error_sq = float(norm_sq - 2 * terms.product + _norm_sq(terms))  # one scalar read a sweep
            if before - error_sq <= self.tolerance * error_sq:
                break
            before = error_sq
        return terms

    def decompress(self, theta: CPFactors) -> Tensor:
        shape = [len(factor) for factor in theta.factors]
        rows, columns = _halves(shape)
        return (khatri_rao(theta.factors, rows) @ khatri_rao(theta.factors, columns).T).reshape(shape)

    def size(self, shape: Sequence[int]) -> ThetaSize:
        rank = min(self.rank, largest_rank(shape))
        return ThetaSize("rank", (rank,), rank * sum(shape))

    def product(self, theta: CPFactors, shape: Sequence[int]) -> Product | None:
        """Multiply out the factors of the rows and of the columns, once: two of rank columns are left."""
        modes = tuple(len(factor) for factor in theta.factors)
        if len(shape) == 4 and modes == tuple(shape):
            return _convolutions(theta.factors)
        bond = row_modes(modes, shape[0])
        if bond is None:
            return None
        rows, columns = khatri_rao(theta.factors, range(bond)), khatri_rao(theta.factors, range(bond, len(modes)))
        return two_factors(rows, columns.T, shape)

    def clipped(self, shape: Sequence[int]) -> str | None:
        return rank_clipped(self.rank, largest_rank(shape), shape)


def largest_rank(shape: Sequence[int]) -> int:
    """Return a rank that no tensor of this shape exceeds: its longest fibres are one term each."""
    return math.prod(shape) // max(shape)


class Terms(NamedTuple):
    """An iterate: factors with columns of norm 1 (or 0), their Gram matrices, weights (rank,), <x, sum of terms>."""

    factors: tuple[Tensor, ...]
    grams: tuple[Tensor, ...]
    weights: Tensor
    product: Tensor


def _terms(factors: Sequence[Tensor]) -> Terms:
    norms = [torch.linalg.vector_norm(factor, dim=0) for factor in factors]
    units = tuple(factor / torch.where(norm > 0, norm, 1) for factor, norm in zip(factors, norms, strict=True))
    weights = math.prod(norms[1:], start=norms[0])
    return Terms(units, tuple(unit.T @ unit for unit in units), weights, weights.new_zeros(()))


def first_factors(x: Tensor, rank: int) -> tuple[Tensor, ...]:
    """Return the unfoldings' leading singular vectors; columns beyond their number are random, from a fixed seed."""
    random = torch.Generator().manual_seed(0)
    factors = []
    for k, n in enumerate(x.shape):
        vectors = leading_vectors(x, k, min(rank, n)).flip(1)
        more = torch.randn(n, rank - vectors.shape[1], generator=random).to(x)
        factors.append(torch.cat([vectors, more], dim=1))
    return tuple(factors)


def _halves(shape: Sequence[int]) -> tuple[range, range]:
    """Return the modes in two runs with the smallest sum of sizes."""
    middle = min(range(1, len(shape) + 1), key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))
    return range(middle), range(middle, len(shape))


def _sweep(t: Tensor, terms: Terms, modes: range) -> Terms:
    """Update the factors of `modes` in turn; t (n_a ... n_b, rank) is x contracted with all others."""
    if len(modes) < 2:
        return _update_factor(t, terms, modes[0]) if modes else terms
    first, second = modes[: len(modes) // 2], modes[len(modes) // 2 :]
    t = t.reshape(math.prod(len(terms.factors[k]) for k in first), -1, t.shape[1])
    terms = _sweep((t * khatri_rao(terms.factors, second)).sum(1), terms, first)
    return _sweep((t * khatri_rao(terms.factors, first)[:, None]).sum(0), terms, second)


def _update_factor(mttkrp: Tensor, terms: Terms, k: int) -> Terms:
    """Replace A_k by the minimiser of ‖x - terms‖² + lam ‖A_k - old A_k‖², lam of the order of rounding errors.

    With G the entrywise product of the other Gram matrices, A_k (G + lam I) = mttkrp + lam old A_k. The proximal term
    keeps the step defined and the error falling where terms have become parallel (G singular).
    """
    others = [gram for j, gram in enumerate(terms.grams) if j != k]
    g = math.prod(others[1:], start=others[0]) if others else torch.ones_like(terms.grams[0])
    lam = 8 * len(g) * torch.finfo(g.dtype).eps
    old = terms.factors[k] * terms.weights
    shifted = g + lam * torch.eye(len(g), dtype=g.dtype, device=g.device)
    new = torch.linalg.solve_ex(shifted, (mttkrp + lam * old).T).result.T
    weights = torch.linalg.vector_norm(new, dim=0)
    unit = new / torch.where(weights > 0, weights, 1)
    return Terms(
        (*terms.factors[:k], unit, *terms.factors[k + 1 :]),
        (*terms.grams[:k], unit.T @ unit, *terms.grams[k + 1 :]),
        weights,
        (mttkrp * new).sum(dtype=torch.float64),
    )


def _norm_sq(terms: Terms) -> Tensor:
    """Return ‖sum of terms‖²."""
    g = math.prod(terms.grams[1:], start=terms.grams[0])
    return (terms.weights * (g @ terms.weights)).sum(dtype=torch.float64)


def khatri_rao(factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    """Return the columns' outer products over `modes`, (product of n_k, rank), row-major; ones for no modes."""
    product = factors[0].new_ones(1, factors[0].shape[1])
    for k in modes:
        product = (product[:, None] * factors[k]).reshape(-1, product.shape[1])
    return product


def _convolutions(factors: Sequence[Tensor]) -> Product:
    """Chain 1 x 1 to a channel for each term, height x 1, 1 x width, 1 x 1 to the outputs (Lebedev et al.)."""
    outputs, inputs, height, width = factors
    rank = outputs.shape[1]
    steps = (
        Step(inputs.T[:, :, None, None], (False, False)),
        Step(height.T[:, None, :, None], (True, False), rank),
        Step(width.T[:, None, None, :], (False, True), rank),
        Step(outputs[:, :, None, None], (False, False)),
    )
    return Convolutions(steps)


def cp(weights: Tensors, *, rank: int = 64, modes: Modes = None, layers: Layers = "hidden", round_to: int = 1) -> Plan:
    """Compress each chosen weight by a sum of `rank` terms.

    `modes`: by default a convolution's own dimensions and about 16 a mode of a matrix. `round_to`: ranks are rounded up
    to multiples of it, at most to the largest rank.
    """

    def terms(sizes: tuple[int, ...], shape: Sequence[int]) -> CP:
        return CP(round_up(rank, round_to, largest_rank(sizes)))

    return tensor_plan(weights, layers, modes, kernel_modes, terms)
