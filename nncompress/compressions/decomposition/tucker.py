"""Tucker: a core with r_k entries a mode, and a matrix n_k x r_k for every mode that is made smaller.

De Lathauwer, De Moor and Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order
tensors", SIAM J. Matrix Anal. Appl. 21(4), 2000 (HOOI: algorithm 4.2). For convolutions: Kim et al., "Compression of
deep convolutional neural networks for fast and low power mobile applications", ICLR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nncompress.compressions.base import Factorised, ThetaSize
from nncompress.compressions.decomposition.modes import Modes, kernel_modes, rank_clipped, row_modes, tensor_plan
from nncompress.compressions.decomposition.svd import gram_matrix
from nncompress.compressions.plan import Layers, Plan, Tensors
from nncompress.compressions.products import Convolutions, Geometry, Product, Step, Use, on_patches
from nncompress.compressions.target import round_up


class CoreFactors(NamedTuple):
    """The core (r_1, ..., r_d) and orthonormal factors U_k (n_k x r_k); empty where r_k = n_k, for the identity."""

    core: Tensor
    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Tucker(Factorised[CoreFactors]):
    """Tensors with multilinear ranks of at most `ranks` (one for each mode, or one for all).

    A mode that its rank does not restrict (see `tucker_ranks`) is left whole.
    Π is higher-order orthogonal iteration from `start` or the truncated higher-order SVD: at most sqrt(d) times the
    best error without a start (d modes), never worse than `start`. Raises ValueError for settings out of range.

    - ranks: the largest ranks, at least 1.
    - sweeps: the most sweeps over the modes, at least 1; 20 is this package's choice.
    - tolerance: a sweep that takes less than this part of the squared error away is the last; 1e-5 is this package's
      choice.
    """

    exact: ClassVar[bool] = False
    ranks: int | tuple[int, ...]
    sweeps: int = 20
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        ranks = self.ranks if isinstance(self.ranks, tuple) else (self.ranks,)
        if not ranks or min(ranks) < 1:
            raise ValueError(f"ranks must be at least 1, found {self.ranks}")
        if self.sweeps < 1 or not self.tolerance >= 0:
            raise ValueError(f"sweeps must be positive, tolerance at least 0, found {self.sweeps} and {self.tolerance}")

    def project(self, w: Tensor, mu: float, start: CoreFactors | None) -> CoreFactors:
        ranks = tucker_ranks(w.shape, self.ranks)
        modes = [k for k, (n, r) in enumerate(zip(w.shape, ranks, strict=True)) if r < n]
        if start is not None and len(modes) > 1:
            factors = list(start.factors)
        else:
            factors = [leading_vectors(w, k, r) if k in modes else w.new_empty(0) for k, r in enumerate(ranks)]
        core = self._iterate(w, factors, modes) if len(modes) > 1 else _shrink(w, factors, modes)
        return CoreFactors(core.clone(memory_format=torch.contiguous_format), tuple(factors))

    def _iterate(self, w: Tensor, factors: list[Tensor], modes: Sequence[int]) -> Tensor:
        """Sweep over the modes, changing `factors`; return the core: ‖w‖² - ‖core‖² is the squared error."""
        norm_sq, before = w.square().sum(dtype=torch.float64), torch.inf
        for _ in range(self.sweeps):
            core = _sweep(w, factors, modes)
            error_sq = float(norm_sq - core.square().sum(dtype=torch.float64))  # one scalar read a sweep
            if before - error_sq <= self.tolerance * error_sq:
                break
            before = error_sq
        return core

    def decompress(self, theta: CoreFactors) -> Tensor:
        w = theta.core
        for k, factor in enumerate(theta.factors):
            w = mode_product(w, factor, k) if factor.numel() else w
        return w

    def size(self, shape: Sequence[int]) -> ThetaSize:
        ranks = tucker_ranks(shape, self.ranks)
        factors = sum(n * r for n, r in zip(shape, ranks, strict=True) if r < n)
        return ThetaSize("rank", ranks, math.prod(ranks) + factors)

    def product(self, theta: CoreFactors, shape: Sequence[int]) -> Product | None:
        ranks = tuple(theta.core.shape)
        modes = tuple(len(f) if f.numel() else r for f, r in zip(theta.factors, ranks, strict=True))
        if len(shape) == 4 and modes == tuple(shape):
            return _convolutions(theta)
        bond = row_modes(modes, shape[0])
        return None if bond is None else on_patches(ModeProducts(theta.core, theta.factors, bond), shape)

    def check(self, shape: Sequence[int]) -> None:
        if isinstance(self.ranks, tuple) and len(self.ranks) != len(shape):
            raise ValueError(
                f"ranks must be one number, or one for each of the modes {list(shape)}, found {list(self.ranks)}"
            )

    def clipped(self, shape: Sequence[int]) -> str | None:
        if isinstance(self.ranks, int):
            return rank_clipped(self.ranks, max(shape), shape)
        used = [min(r, n) for r, n in zip(self.ranks, shape, strict=True)]
        if used == list(self.ranks):
            return None
        return f"ranks {list(self.ranks)} are above the modes {list(shape)}, {used} are used"


def tucker_ranks(shape: Sequence[int], ranks: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the ranks stored for this shape: at most n_k, and n_k for a mode that its rank does not restrict.

    No tensor has a rank in mode k above the product of its other ranks: leaving such a mode whole allows the same
    tensors and takes fewer numbers. A matrix of rank r then has two factors, r (m + n) numbers.
    """
    used = list(map(min, (ranks,) * len(shape) if isinstance(ranks, int) else ranks, shape))
    for k, n in enumerate(shape):
        if used[k] >= math.prod(used[:k]) * math.prod(used[k + 1 :]):
            used[k] = n
    return tuple(used)


def _sweep(t: Tensor, factors: list[Tensor], modes: Sequence[int]) -> Tensor:
    """Update the factors of `modes` in turn, each the best given the others, and return the core.

    `t` is w times the transposed factors of all other modes. The product with one half of the modes serves the whole
    other half (a dimension tree: w is read twice a sweep, not once a mode).
    """
    if len(modes) == 1:
        k = modes[0]
        factors[k] = leading_vectors(t, k, factors[k].shape[1])
        return mode_product(t, factors[k].T, k)
    first, second = modes[: len(modes) // 2], modes[len(modes) // 2 :]
    _sweep(_shrink(t, factors, second), factors, first)
    return _sweep(_shrink(t, factors, first), factors, second)


def _shrink(t: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    for k in modes:
        t = mode_product(t, factors[k].T, k)
    return t


def mode_product(t: Tensor, matrix: Tensor, k: int) -> Tensor:
    """Return t times `matrix` (m x n_k) along mode k."""
    before, after = t.shape[:k], t.shape[k + 1 :]
    if math.prod(after) < 32:  # a product for each of the entries before would be many small ones
        product: Tensor = torch.tensordot(matrix.to(t.dtype), t, ([1], [k]))  # t: of a product under autocast, perhaps
        return product.movedim(0, k)
    return (matrix @ t.reshape(math.prod(before), t.shape[k], -1)).reshape(*before, len(matrix), *after)


def leading_vectors(t: Tensor, k: int, r: int) -> Tensor:
    """Return the r leading left singular vectors of the unfolding of mode k, from its Gram matrix."""
    unfolding = t.movedim(k, 0).reshape(t.shape[k], -1)
    vectors: Tensor = torch.linalg.eigh(gram_matrix(unfolding)).eigenvectors
    return vectors[:, -r:].contiguous()


@dataclass(frozen=True)
class ModeProducts(Product):
    """A Tucker form whose first `bond` modes are the rows: the columns' factors, the core, the rows' factors."""

    core: Tensor
    factors: tuple[Tensor, ...]
    bond: int

    def __call__(self, x: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None) -> Tensor:
        t = x.reshape(-1, *self._modes[self.bond :])
        for k in self._order(self.bond, len(self._modes)):
            t = mode_product(t, self.factors[k].T, k - self.bond + 1)
        rows = self.core.shape[: self.bond]
        t = (t.reshape(len(t), -1) @ self.core.reshape(math.prod(rows), -1).T).reshape(-1, *rows)
        for k in reversed(self._order(0, self.bond)):
            t = mode_product(t, self.factors[k], k + 1)
        y = t.reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    def macs(self, use: Use) -> int:
        ranks, modes, bond = self.core.shape, self._modes, self.bond
        columns, rows = chain_macs(modes[bond:], ranks[bond:]), chain_macs(modes[:bond], ranks[:bond])
        return use.positions * (columns + math.prod(ranks) + rows)

    @property
    def _modes(self) -> list[int]:
        return [len(f) if f.numel() else r for f, r in zip(self.factors, self.core.shape, strict=True)]

    def _order(self, first: int, end: int) -> list[int]:
        """Return the modes that are made smaller, as `chain_macs` takes them."""
        modes, ranks = self._modes, self.core.shape
        smaller = [k for k in range(first, end) if ranks[k] < modes[k]]
        return sorted(smaller, key=lambda k: 1 / modes[k] - 1 / ranks[k])


def _convolutions(theta: CoreFactors) -> Product:
    """Chain inputs to r_2 channels, the core's convolution to r_1 channels, those to the outputs; a full rank is free.

    Factors of the kernel's own modes are part of the middle convolution.
    """
    core, (outputs, inputs, *kernel) = theta.core, theta.factors
    for k, factor in enumerate(kernel, 2):
        core = mode_product(core, factor, k) if factor.numel() else core
    steps = [Step(core, (True, True))]
    if inputs.numel():
        steps.insert(0, Step(inputs.T[:, :, None, None], (False, False)))
    if outputs.numel():
        steps.append(Step(outputs[:, :, None, None], (False, False)))
    return Convolutions(tuple(steps))


def chain_macs(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Count the multiply-accumulates of taking a tensor (n_1, ..., n_d) to (r_1, ..., r_d), or back, mode by mode.

    A mode costs r_k times the entries at that moment and leaves r_k / n_k of them; exchanging two neighbours shows
    that the modes with the largest 1 / r_k - 1 / n_k come first in the cheapest order. Modes of full rank are free.
    """
    total, entries = 0, math.prod(modes)
    pairs = [(n, r) for n, r in zip(modes, ranks, strict=True) if r < n]
    for n, r in sorted(pairs, key=lambda pair: 1 / pair[0] - 1 / pair[1]):
        total += entries * r
        entries = entries // n * r
    return total


def tucker(
    weights: Tensors,
    *,
    rank: int | Sequence[int] = 12,
    modes: Modes = None,
    layers: Layers = "hidden",
    round_to: int = 1,
) -> Plan:
    """Compress each chosen weight by a Tucker decomposition.

    `rank`: one for all modes, or a list with one for each; for a convolution in its own modes (outputs, inputs,
    kernel) it is for the two of channels, the kernel stays whole. `modes`: by default these, and about 16 a mode of a
    matrix. `round_to`: ranks (not those of a kernel's own modes) are rounded up to multiples of it, at most to their
    modes.
    """

    def tucker_of(sizes: tuple[int, ...], shape: Sequence[int]) -> Tucker:
        return Tucker(_rounded_ranks(rank, round_to, sizes, shape))

    return tensor_plan(weights, layers, modes, kernel_modes, tucker_of)


def _rounded_ranks(
    rank: int | Sequence[int], round_to: int, modes: tuple[int, ...], shape: Sequence[int]
) -> int | tuple[int, ...]:
    """Return the ranks as multiples of `round_to`, those of a kernel's own modes as they are or else full."""
    own = modes == tuple(shape)
    kernel = tuple(shape[2:]) if own else ()
    if isinstance(rank, int):
        if not kernel:
            return round_up(rank, round_to, max(modes))
        rank = (rank, rank)
    ranks = (*rank, *kernel) if len(rank) == 2 else tuple(rank)
    if len(ranks) != len(modes):  # refused when the plan is made
        return ranks
    channels = 2 if own else len(modes)
    pairs = zip(ranks[:channels], modes, strict=False)
    return (*(round_up(r, round_to, n) for r, n in pairs), *ranks[channels:])
