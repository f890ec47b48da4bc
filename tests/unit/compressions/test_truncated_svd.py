"""The truncated decomposition: exact for small matrices, certified for large ones."""

import itertools
import math
from functools import cache

import pytest
import torch
from cases import case
from matrices import best, norm, orthonormal, projected, with_spectrum
from problems import F64, randn
from torch import Tensor

from nncompress.compressions.decomposition import svd as numerics
from nncompress.compressions.decomposition import svd as numerics_svd
from nncompress.compressions.decomposition.low_rank import Factors, LowRank
from nncompress.compressions.decomposition.svd import (
    SVD,
    TOLERANCE,
    exact_svd,
    is_large,
    singular_values,
    truncated_svd,
)

SPECTRA = {
    "harmonic": lambda i: 1 / i,
    "root": lambda i: i**-0.5,
    "fast": lambda i: 0.8**i,
    "slow": lambda i: 0.98**i,
    "gap": lambda i: torch.where(i <= 12, 1.0, 1e-3).to(F64),
    "tie": lambda i: torch.where(i <= 15, 1.0, 0.1).to(F64),
    "flat": lambda i: torch.ones_like(i),
}
M, N = 520, 560


@cache
def large(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A large matrix, and its U, s and V by construction, or by LAPACK for noise."""
    if name == "noise":
        w = randn(M, N)
        return w, *torch.linalg.svd(w, full_matrices=False)
    s = SPECTRA[name](torch.arange(1, M + 1, dtype=F64))
    return with_spectrum(s, M, N), orthonormal(M, M), s, orthonormal(N, M).T


def product(svd: SVD) -> Tensor:
    return (svd.U * svd.s).double() @ svd.V.double()


@pytest.fixture
def no_exact_svd(monkeypatch):
    def refuse(a, rank):
        raise RuntimeError("the iteration was to be enough")

    monkeypatch.setattr(numerics, "exact_svd", refuse)


def test_true_rank_matrices_are_recovered():
    for shape in ((30, 50), (50, 30), (M, N)):
        exact = with_spectrum([3.0, 2.0, 1e-2, 1e-3], *shape)
        for (dtype, rounding), rank in itertools.product(((F64, 1e-13), (torch.float32, 3e-6)), (4, 6)):
            with case(shape=shape, dtype=dtype, rank=rank):
                w = exact.to(dtype)
                assert norm(w - projected(LowRank(rank), w)) <= rounding * norm(w)


def test_zero_constant_and_one_entry_matrices_are_their_own_projection():
    for shape, dtype in itertools.product(((6, 9), (9, 6), (M, N)), (F64, torch.float32)):
        one = torch.zeros(shape, dtype=dtype)
        one[2, 1] = -3
        for k, w in enumerate((torch.zeros(shape, dtype=dtype), torch.full(shape, -2.0, dtype=dtype), one)):
            with case(shape=shape, dtype=dtype, k=k):
                assert norm(projected(LowRank(3), w) - w) <= 3e-6 * norm(w)


def test_the_scale_does_not_matter():
    noise, U, s, V = large("noise")
    for w, expected in ((randn(8, 12), best(randn(8, 12), 4)), (noise, (U[:, :4] * s[:4]) @ V[:4])):
        for dtype, scale in ((F64, 1e-100), (F64, 1e100), (torch.float32, 1e-25), (torch.float32, 1e25)):
            with case(shape=w.shape, dtype=dtype, scale=scale):
                ours = projected(LowRank(4), w.to(dtype) * scale) / scale
                assert norm(ours - expected) <= 1e-5 * norm(w)


def test_singular_values_are_right_over_a_wide_range():
    s = torch.logspace(0, -12, 30, dtype=F64)
    for dtype, rounding in ((F64, 1e-14), (torch.float32, 1e-7)):
        w = with_spectrum(s, 40, 30).to(dtype)
        for a in (w, w.T):
            with case(dtype=dtype, shape=a.shape):
                torch.testing.assert_close(singular_values(a), s, rtol=0, atol=10 * rounding)
                torch.testing.assert_close(exact_svd(a, 30).s.double(), s, rtol=0, atol=10 * rounding)


@pytest.mark.usefixtures("no_exact_svd")
def test_large_matrices_are_certified_and_within_the_tolerance():
    assert is_large((M, N), 12)
    for k, name in enumerate(("noise", *SPECTRA)):
        w, _, s, _ = large(name)
        for dtype, rounding, transposed in ((F64, 1e-14, k % 2), (torch.float32, 3e-6, 1 - k % 2)):
            with case(name=name, dtype=dtype, transposed=transposed):
                a = w.T if transposed else w
                error = norm(a - product(truncated_svd(a.to(dtype), 12)))
                assert error <= (1 + TOLERANCE) * norm(s[12:]) + rounding * norm(w)


@pytest.mark.usefixtures("no_exact_svd")
def test_no_start_however_bad_spoils_the_result():
    for name, transposed in (("noise", False), ("harmonic", True), ("fast", False)):
        w, U, s, V = large(name)
        if transposed:
            w, U, V = w.T, V.T, U.T
        starts = {
            "leading": Factors(U[:, :12], V[:12]),
            "trailing": Factors(U[:, -12:], V[-12:]),
            "inner": Factors(U[:, 6:18], V[6:18]),
            "zero": Factors(0 * U[:, :12], 0 * V[:12]),
            "other rank": Factors(U[:, :3], V[:3]),
        }
        for kind, start in starts.items():
            with case(name=name, start=kind):
                assert norm(w - product(truncated_svd(w, 12, start))) <= (1 + TOLERANCE) * norm(s[12:])


def test_the_certificate_knows_the_leading_space_among_the_invariant_ones():
    s = torch.tensor([5.0, 4, 3, 2.9, 2, 1], dtype=F64)
    w, eye, nothing = torch.diag(s), torch.eye(6, dtype=F64), torch.zeros(6, 3, dtype=F64)
    for columns in ([0, 1, 2], [0, 1, 3], [1, 2, 3], [3, 4, 5]):
        U = eye[:, columns]
        bound = torch.tensor(math.inf, dtype=F64)
        found = numerics_svd._optimal(s[columns], w - U @ U.T @ w, nothing, bound, w.square().sum())
        assert found == (columns == [0, 1, 2])


def test_the_certificate_never_accepts_what_is_not_within_the_tolerance():
    w = with_spectrum(torch.linspace(2, 1, 60, dtype=F64), 60, 70)
    leading = torch.linalg.svd(w).U[:, :5]
    for angle in (0.0, 1e-3, 0.03, 0.1, 0.3):
        U = torch.linalg.qr(leading + angle * torch.linalg.qr(randn(60, 5)).Q).Q
        L = w.T @ U
        rest = w - U @ L.T
        _, s, Z = torch.linalg.svd(L, full_matrices=False)
        accepted = numerics_svd._optimal(s, rest, rest @ L @ Z.T, torch.tensor(math.inf, dtype=F64), w.square().sum())
        within = norm(rest) <= (1 + TOLERANCE) * norm(w - best(w, 5))
        with case(angle=angle):
            assert within or not accepted
            assert accepted or angle > 1e-3


def test_what_the_iteration_cannot_prove_is_decomposed_exactly(monkeypatch):
    monkeypatch.setattr(numerics, "_optimal", lambda *arguments: False)
    w, U, s, V = large("noise")
    assert norm(product(truncated_svd(w, 8)) - (U[:, :8] * s[:8]) @ V[:8]) <= 1e-12 * norm(w)


def test_a_large_projection_repeats_itself_and_is_idempotent():
    w = randn(N, M, dtype=torch.float32)
    once, again = LowRank(10).compress(w), LowRank(10).compress(w)
    assert torch.equal(once.U, again.U)
    assert torch.equal(once.V, again.V)
    dense = once.U @ once.V
    assert norm(projected(LowRank(10), dense) - dense) <= 3e-6 * norm(dense)
    assert norm(LowRank(10).decompress(LowRank(10).compress(dense, start=once)) - dense) <= 3e-6 * norm(dense)
