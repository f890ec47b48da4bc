"""Matrices of known singular values, and their best approximations."""

from functools import cache

import torch
from problems import F64, randn
from torch import Tensor


@cache
def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random orthonormal columns."""
    return torch.linalg.qr(randn(rows, columns, seed=seed + rows)).Q


def with_spectrum(s, m: int, n: int, seed: int = 0) -> Tensor:
    """A matrix with singular values s and random singular vectors."""
    s = torch.as_tensor(s, dtype=F64)
    return (orthonormal(m, len(s), seed) * s) @ orthonormal(n, len(s), seed).T


def best(w: Tensor, rank: int) -> Tensor:
    """LAPACK's truncation, in double precision."""
    U, s, V = torch.linalg.svd(w.double(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]


def norm(w: Tensor) -> float:
    """The Frobenius norm, in double precision."""
    return float(torch.linalg.vector_norm(w.double()))


def projected(compression, w: Tensor, mu: float = 1.0) -> Tensor:
    """Δ(Π(w))."""
    return compression.decompress(compression.compress(w, mu))
