"""Published and small numbers of the constraint sets, and what a set is a special case of."""

import math
from typing import Any

import pytest
import torch
from cases import case
from constraint_cases import TAU, dot, nonzeros, numbers, quadratic_steps, rank
from problems import F64, randn

from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport


def test_vertices_of_a_small_vector():
    g = numbers(0.5, -2, 1, 0, 1.5)
    for s, vertex, value in [
        (KSupport(k=2, radius=3.0), (0, 2.4, 0, 0, -1.8), -7.5),
        (KSupport(k=0.2, radius=3.0), (0, 3, 0, 0, 0), -6),
        (KSupport(k=5, radius=3.0), None, -8.2158),
        (KSparse(k=2, radius=3.0), (0, 3, 0, 0, -3), -10.5),
        (KSparse(k=5, radius=3.0), (-3, 3, -3, 0, -3), -15),
        (Lp(p=1.5, radius=3.0), (-0.1392, 2.228, -0.557, 0, -1.2532), -6.96238),
        (Lp(p=3, radius=3.0), (-1.1662, 2.3323, -1.6492, 0, -2.0199), -9.92679),
        (L1(radius=3.0), (0, 3, 0, 0, 0), -6),
        (L2(radius=3.0), (-0.547723, 2.19089, -1.095445, 0, -1.643168), -8.2158),
        (Linf(radius=3.0), (-3, 3, -3, 0, -3), -15),
    ]:
        with case(s=s):
            v = s.lmo(g)
            assert dot(g, v) == pytest.approx(value, abs=5e-5)
            assert vertex is None or torch.allclose(v, numbers(*vertex), rtol=0, atol=5e-5)


def test_vertices_of_a_diagonal_matrix():
    g = torch.diag(numbers(3, 2, 1))
    for s, diagonal, value in [
        (SpectralKSupport(k=1 / 3, radius=3.0), (-3, 0, 0), -9),
        (SpectralKSupport(k=2, radius=3.0), (-2.4962, -1.6641, 0), -10.8167),
        (SpectralKSupport(k=3, radius=3.0), (-2.405351, -1.603567, -0.801784), -11.2250),
        (SpectralKSparse(k=2, radius=3.0), (-3, -3, 0), -15),
        (SpectralKSparse(k=3, radius=3.0), (-3, -3, -3), -18),
        (Nuclear(radius=3.0), (-3, 0, 0), -9),
    ]:
        with case(s=s):
            assert dot(g, s.lmo(g)) == pytest.approx(value, abs=5e-5)
            assert torch.allclose(s.lmo(g), torch.diag(numbers(*diagonal)), rtol=0, atol=5e-5)


def test_k_support_norms_of_small_vectors_groups_and_matrices():
    for x, k, norm in [
        ((3, 2, 1), 1 / 3, 6),
        ((3, 2, 1), 2, 4.242641),
        ((3, 2, 1), 3, 3.741657),
        ((1, 1, 1, 1), 2, 2.828427),
        ((5, 1, 1, 1), 2, 5.830952),
        ((5, 4, 0.5, 0.2, 0.1), 3, 6.452906),
    ]:
        with case(x=x, k=k):
            w = numbers(*x)
            assert float(KSupport(k=k).gauge(w)) == pytest.approx(norm, abs=1e-6)
            assert float(KSupport(k=k).gauge(-w.flip(0))) == pytest.approx(norm, abs=1e-6)
            assert float(GroupKSupport(k=k).gauge(w[:, None] * numbers(0.6, -0.8))) == pytest.approx(norm, abs=1e-6)
            assert float(SpectralKSupport(k=k).gauge(torch.diag(w))) == pytest.approx(norm, abs=1e-6)


def test_radii_of_the_sets_of_diameter_4():
    for s, shape, radius in [
        (L1(), (16,), 2),
        (L2(), (16,), 2),
        (Lp(p=1.5), (10,), 2),  # the largest l2 norm of the unit ball is 1 for p <= 2
        (Lp(p=2), (10,), 2),
        (Lp(p=4), (16,), 1),  # and n^(1/2 - 1/p) for p >= 2
        (Lp(p=4), (4, 2, 2), 1),
        (Linf(), (16,), 0.5),
        (KSparse(k=4), (16,), 1),
        (KSparse(k=0.25), (4, 4), 1),
        (KSupport(k=4), (16,), 2),
        (GroupKSupport(k=2), (4, 4), 2),
        (Nuclear(), (4, 4), 2),
        (SpectralKSupport(k=2), (4, 4), 2),
        (SpectralKSparse(k=4), (9, 4, 2), 1),
        (SpectralKSparse(k=0.5), (8, 3, 3), 1),
        (SpectralKSparse(k=1), (9, 2, 2), 1),
    ]:
        with case(s=s, shape=shape):
            assert s.at_diameter(4.0, shape).radius == pytest.approx(radius, rel=1e-12)
            assert s.diameter(shape) == pytest.approx(4 / radius, rel=1e-12)


def test_frank_wolfe_on_the_l2_ball_reaches_the_projection():
    c = 3 * randn(6, seed=1)
    x, gaps = quadratic_steps(L2(radius=TAU), torch.eye(6, dtype=F64), c, L2(radius=TAU).feasible(randn(6)), 100)
    assert torch.allclose(x, TAU * c / c.norm(), rtol=0, atol=1e-6)
    assert gaps[-1] < 1e-6


def test_frank_wolfe_on_the_l1_ball_reaches_the_soft_thresholded_point():
    c = numbers(3, -2, 0.5, 0.1, 0)  # projected on the ball of radius 3: thresholded at 1
    x, _ = quadratic_steps(L1(radius=3.0), torch.eye(5, dtype=F64), c, torch.zeros(5, dtype=F64), 200)
    assert torch.allclose(x, numbers(2, -1, 0, 0, 0), rtol=0, atol=1e-6)
    assert not x[2:].any()


def test_frank_wolfe_on_the_nuclear_ball_reaches_the_soft_thresholded_singular_values():
    left, right = torch.linalg.qr(randn(4, 4)).Q, torch.linalg.qr(randn(6, 6, seed=1)).Q[:4]
    c = left @ torch.diag(numbers(3, 2, 0.5, 0.1)) @ right
    x, _ = quadratic_steps(Nuclear(radius=3.0), torch.eye(24, dtype=F64), c, torch.zeros(4, 6, dtype=F64), 200)
    assert torch.allclose(x, left @ torch.diag(numbers(2, 1, 0, 0)) @ right, rtol=0, atol=1e-6)


SPECIAL: list[tuple[Any, Any]] = [
    (KSupport(k=1 / 24), L1()),
    (KSupport(k=1), L2()),
    (KSupport(k=24), L2()),
    (Lp(p=2), L2()),
    (KSparse(k=1 / 24), L1()),
    (KSparse(k=1), Linf()),
    (GroupKSupport(k=1), L2()),
    (SpectralKSupport(k=0.25), Nuclear()),
    (SpectralKSupport(k=1), L2()),
    (SpectralKSparse(k=0.25), Nuclear()),
    (KSupport(k=5).full(), L2()),
    (KSparse(k=5).full(), Linf()),
    (GroupKSupport(k=2).full(), L2()),
    (SpectralKSupport(k=2).full(), L2()),
]


def test_special_cases_are_the_same_set():
    for one, other in SPECIAL:
        for seed in range(3):
            with case(one=one, other=other, seed=seed):
                g = randn(4, 3, 2, seed=seed)
                assert torch.allclose(one.lmo(g), other.lmo(g), rtol=0, atol=1e-10)
                assert float(one.gauge(g)) == pytest.approx(float(other.gauge(g)), abs=1e-10)
                assert float(one.dual_norm(g)) == pytest.approx(float(other.dual_norm(g)), abs=1e-10)
                assert one.diameter(g.shape) == pytest.approx(other.diameter(g.shape), rel=1e-12)


def test_groups_of_one_entry_are_entries():
    g = randn(10)
    for k in (0.1, 2, 7, 10):
        with case(k=k):
            assert torch.equal(GroupKSupport(k=k).lmo(g[:, None])[:, 0], KSupport(k=k).lmo(g))
            assert torch.equal(GroupKSupport(k=k).gauge(g[:, None]), KSupport(k=k).gauge(g))


def test_l1_and_nuclear_break_ties():
    assert nonzeros(L1().lmo(torch.ones(7, dtype=F64))) == 1
    assert rank(Nuclear().lmo(torch.eye(5, dtype=F64))) == 1


def test_a_p_outside_of_1_to_infinity_is_refused():
    for p in (1, 0.5, 0, -2, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"\bp\b must be above 1 and finite .*found {p}"):
            Lp(p=p)


def test_a_small_gradient_in_single_precision_survives_large_powers():
    g = randn(50)
    for p in (1.05, 1.2, 20.0):
        with case(p=p):
            v = Lp(p=p).lmo((1e-6 * g).float())
            assert torch.allclose(v.to(F64), Lp(p=p).lmo(g), rtol=0, atol=1e-4)
            assert float(Lp(p=p).gauge(v)) == pytest.approx(1, abs=1e-4)


def test_the_lp_ball_takes_numbers_of_any_size():
    for size in (1e-38, 1e-11, 1e-6, 1e18):
        for p in (1.01, 3.0, 50.0):
            with case(size=size, p=p):
                g = size * torch.ones(1000)
                ball, q = Lp(p=p), p / (p - 1)
                assert float(ball.dual_norm(g)) == pytest.approx(size * 1000 ** (1 / q), rel=1e-4)
                assert float(ball.gauge(g)) == pytest.approx(size * 1000 ** (1 / p), rel=1e-4)
                if size > 1e-11:
                    assert float(ball.gauge(ball.lmo(g))) == pytest.approx(1, rel=1e-4)
