"""The constraint sets, each with a gauge written from its definition and not from the package."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from problems import F64, randn
from torch import Tensor

from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport

TAU = 1.5
VECTOR, MATRIX, CONV, TALL = (9,), (4, 6), (5, 2, 2, 2), (7, 3)
SPECTRAL: list[Any] = [Nuclear(radius=TAU), SpectralKSupport(k=2, radius=TAU), SpectralKSparse(k=2, radius=TAU)]
Shape = tuple[int, ...]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def rank(v: Tensor) -> int:
    return int(torch.linalg.matrix_rank(v.flatten(1), rtol=1e-7))


def nonzeros(v: Tensor) -> int:
    return int(v.count_nonzero())


def nonzero_rows(v: Tensor) -> Tensor:
    return v.flatten(1).any(1)


def entries(x: Tensor) -> Tensor:
    """(samples, *shape) -> the absolute values of the entries, (samples, n)."""
    return x.flatten(1).abs()


def groups(x: Tensor) -> Tensor:
    """(samples, *shape) -> the l2 norms of the groups, (samples, shape[0])."""
    return x.flatten(2).norm(dim=2)


def singular_values(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.flatten(2))


def shares(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The a and the multiplier of min {sum z²/a : 0 < a <= 1, sum a <= k}: a = min(1, z/lam), by bisection on lam."""
    low, high = torch.zeros_like(z[:, :1]), (z.sum(1, keepdim=True) / k).clamp(1e-200)
    for _ in range(70):
        lam = (low + high) / 2
        over = (z / lam).clamp(max=1).sum(1, keepdim=True) > k
        low, high = torch.where(over, lam, low), torch.where(over, high, lam)
    return (z / high).clamp(1e-300, 1), high


def k_support_norm(z: Tensor, k: int) -> Tensor:
    a, _ = shares(z.detach(), k)
    return (z**2 / a).sum(1).sqrt()


def k_sparse_norm(z: Tensor, k: int) -> Tensor:
    return torch.maximum(z.amax(1), z.sum(1) / k)


class Example(NamedTuple):
    """A set, a shape, what the set sees of a tensor, and the norm of what it sees."""

    constraint: Any
    shape: Shape
    seen: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]

    def gauge(self, x: Tensor) -> Tensor:
        """Of each x (samples, *shape): (samples,)."""
        return self.norm(self.seen(x))


def _examples() -> list[Example]:
    vector_sets = [
        (L1(radius=TAU), lambda z: z.sum(1)),
        (L2(radius=TAU), lambda z: z.norm(dim=1)),
        (Lp(p=1.5, radius=TAU), lambda z: (z**1.5).sum(1) ** (1 / 1.5)),
        (Lp(p=3, radius=TAU), lambda z: (z**3).sum(1) ** (1 / 3)),
        (Linf(radius=TAU), lambda z: z.amax(1)),
        (KSparse(k=3, radius=TAU), lambda z: k_sparse_norm(z, 3)),
        (KSparse(k=7, radius=TAU), lambda z: k_sparse_norm(z, 7)),
        (KSupport(k=3, radius=TAU), lambda z: k_support_norm(z, 3)),
        (KSupport(k=7, radius=TAU), lambda z: k_support_norm(z, 7)),
    ]
    group_sets = [(GroupKSupport(k=k, radius=TAU), lambda z, k=k: k_support_norm(z, k)) for k in (2, 3)]
    norms = [lambda z: z.sum(1), lambda z: k_support_norm(z, 2), lambda z: k_sparse_norm(z, 2)]
    found = [Example(s, shape, entries, norm) for s, norm in vector_sets for shape in (VECTOR, CONV)]
    found += [Example(s, shape, groups, norm) for s, norm in group_sets for shape in (MATRIX, CONV)]
    spectral_sets = zip(SPECTRAL, norms, strict=True)
    found += [Example(s, shape, singular_values, norm) for s, norm in spectral_sets for shape in (MATRIX, CONV, TALL)]
    return found


EXAMPLES = _examples()


def each_class(*seen: Callable[[Tensor], Tensor]) -> pytest.MarkDecorator:
    """Give a test the examples of one class after another; of those that see a tensor so, or of all."""
    chosen: dict[str, list[Example]] = {}
    for example in EXAMPLES:
        if example.seen in (seen or (entries, groups, singular_values)):
            chosen.setdefault(type(example.constraint).__name__, []).append(example)
    return pytest.mark.parametrize("examples", [pytest.param(found, id=name) for name, found in chosen.items()])


@cache
def directions(shape: Shape) -> Tensor:
    """10 000 of them: dense, sparse, signs, with few groups, of low rank, and close to -g."""
    rows, columns = shape[0], math.prod(shape[1:])
    uniform = torch.Generator().manual_seed(1)

    def share(m: int, n: int) -> Tensor:
        """Rows of 0 and 1 with every density."""
        return (torch.rand(m, n, generator=uniform) < torch.rand(m, 1, generator=uniform)).to(F64)

    dense = randn(2000, rows, columns, seed=2)
    sparse = randn(2000, rows, columns, seed=3) * share(2000, rows * columns).view(2000, rows, columns)
    signs = randn(2000, rows, columns, seed=4).sign() * share(2000, rows * columns).view(2000, rows, columns)
    few_groups = randn(1000, rows, columns, seed=5) * share(1000, rows)[:, :, None]
    smaller = min(rows, columns)
    low_rank = (randn(1000, rows, smaller, seed=6) * share(1000, smaller)[:, None]) @ randn(
        1000, smaller, columns, seed=7
    )
    close = randn(2000, rows, columns, seed=8) * share(2000, 1)[:, :, None] * 0.5 - randn(*shape).view(rows, columns)
    return torch.cat([dense, sparse, signs, few_groups, low_rank, close]).view(-1, *shape)


@cache
def _seen_of_directions(seen: Callable[[Tensor], Tensor], shape: Shape) -> Tensor:
    return seen(directions(shape))


@cache
def gauges_of_directions(example: Example) -> Tensor:
    return example.norm(_seen_of_directions(example.seen, example.shape))


def quadratic_steps(s: Any, q: Tensor, c: Tensor, x: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """Frank-Wolfe for min 1/2 <x - c, q (x - c)> over s, exact line search: the last iterate and all gaps."""
    gaps = []
    for _ in range(steps):
        grad = (q @ (x - c).flatten()).view_as(x)
        d = s.lmo(grad) - x
        gaps.append(-dot(grad, d))
        x = x + min(1.0, gaps[-1] / max(dot(d.flatten(), q @ d.flatten()), 1e-300)) * d
    return x, gaps
