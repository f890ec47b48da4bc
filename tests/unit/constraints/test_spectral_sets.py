"""Spectral sets: leading singular pairs, matrices without full rank, block power iteration."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from cases import case
from constraint_cases import SPECTRAL, TAU, dot, numbers, rank
from problems import F64, randn
from torch import Tensor

from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport

APPROXIMATE: list[Any] = [SpectralKSupport(k=0.1, rounds=10, radius=TAU), SpectralKSparse(k=0.1, rounds=10, radius=TAU)]
STARTED = [*APPROXIMATE, Nuclear(rounds=10)]


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed)).Q


def svd_vertex(s: Any, g: Tensor) -> Tensor:
    u, values, vh = torch.linalg.svd(g, full_matrices=False)
    k = getattr(s, "k", 1)
    kept = values[:k] / values[:k].norm() if isinstance(s, SpectralKSupport) else torch.ones(k, dtype=F64)
    return -s.radius * (u[:, :k] * kept) @ vh[:k]


def with_singular_values(values: Tensor, columns: int) -> Tensor:
    return orthogonal(len(values), 1) @ torch.diag(values) @ orthogonal(columns, 2)[: len(values)]


def test_a_set_is_invariant_under_orthogonal_maps_and_transposition():
    for s, shape in itertools.product(SPECTRAL, ((4, 6), (6, 4), (5, 5))):
        with case(s=s, shape=shape):
            g, left, right = randn(*shape), orthogonal(shape[0], 1), orthogonal(shape[1], 2)
            assert torch.allclose(s.lmo(left @ g @ right), left @ s.lmo(g) @ right, rtol=0, atol=1e-9)
            assert float(s.gauge(left @ g @ right)) == pytest.approx(float(s.gauge(g)), abs=1e-9)
            assert torch.allclose(s.lmo(g.T), s.lmo(g).T, rtol=0, atol=1e-9)


def test_vertices_are_the_leading_singular_pairs():
    for s, shape in itertools.product(SPECTRAL, ((12, 30), (30, 12))):
        with case(s=s, shape=shape):
            g = randn(*shape)
            assert torch.allclose(s.lmo(g), svd_vertex(s, g), rtol=0, atol=1e-8)
            assert rank(s.lmo(g)) == getattr(s, "k", 1)


def test_a_matrix_without_full_rank_has_a_feasible_and_optimal_vertex():
    spectra = [(1, 0, 0, 0), (3, 1, 0, 0), (1, 1, 1, 1), (1, 1e-9, 0, 0), (1, 1e-5, 1e-9, 1e-12)]
    for s, values, rounds in itertools.product(SPECTRAL, spectra, (0, 10)):
        g = with_singular_values(numbers(*values), 6)
        for w in (g, g.T, g.float(), g.T.float()):
            with case(s=s, values=values, rounds=rounds, shape=w.shape, dtype=w.dtype):
                v = dataclasses.replace(s, rounds=rounds).lmo(w).to(F64)
                assert bool(v.isfinite().all())
                assert float(dataclasses.replace(s, rounds=0).gauge(v)) <= TAU * (1 + 1e-5)
                expected = dot(w.to(F64), svd_vertex(s, w.to(F64)))
                assert dot(w.to(F64), v) == pytest.approx(expected, abs=1e-5 if w.dtype is torch.float32 else 1e-7)


def test_small_singular_values_cost_little_in_single_precision():
    values = torch.cat([torch.ones(1, dtype=F64), 1e-4 * torch.logspace(0, -2, 31, dtype=F64)])
    g = with_singular_values(values, 64).float()
    for s, k in itertools.product(SPECTRAL, (0.1, 0.5)):
        with case(s=s, k=k):
            s = dataclasses.replace(s, **({"k": k} if hasattr(s, "k") else {}))
            v = s.lmo(g).to(F64)
            assert float(s.gauge(v)) <= TAU * (1 + 1e-5)
            assert dot(g.to(F64), v) == pytest.approx(-TAU * float(s.dual_norm(g.to(F64))), rel=1e-4)


def test_a_matrix_of_one_row_or_column_is_normalised():
    g = randn(7)
    for s, rounds, w in itertools.product(SPECTRAL, (0, 10), (g[None], g[:, None])):
        with case(s=s, rounds=rounds, shape=w.shape):
            v = dataclasses.replace(s, rounds=rounds).lmo(w)
            assert torch.allclose(v, -TAU * w / w.norm(), rtol=0, atol=1e-10)


# Block power iteration.


def test_negative_rounds_are_refused():
    for s in SPECTRAL:
        with pytest.raises(ValueError, match="rounds must be at least 0, found -1"):
            dataclasses.replace(s, rounds=-1)


def test_rounds_give_a_feasible_point_of_almost_the_optimal_value():
    sets = [*APPROXIMATE, Nuclear(rounds=20, radius=TAU)]
    for s, shape, seed in itertools.product(sets, [(64, 576), (576, 64), (64, 64, 3, 3)], range(3)):
        with case(s=s, shape=shape, seed=seed):
            g, exact = randn(*shape, seed=seed), dataclasses.replace(s, rounds=0)
            v, best = s.lmo(g), dot(g, exact.lmo(g))
            assert float(exact.gauge(v)) <= TAU * (1 + 1e-8)
            assert rank(v) <= 6
            assert dot(g, v) <= 0.97 * best
            assert dot(g, v) >= best - 1e-9


def test_many_rounds_reach_the_vertex():
    g = with_singular_values(numbers(4, 2, 1, 0.5), 6)
    for s in SPECTRAL:
        with case(s=s):
            assert torch.allclose(dataclasses.replace(s, rounds=60).lmo(g), s.lmo(g), rtol=0, atol=1e-8)


def test_rounds_start_from_the_same_numbers_and_leave_the_generator_alone():
    g = randn(20, 30)
    for s in STARTED:
        with case(s=s):
            torch.manual_seed(1)
            state = torch.get_rng_state()
            first = s.lmo(g)
            assert torch.equal(torch.get_rng_state(), state)
            torch.manual_seed(2)
            assert torch.equal(s.lmo(g), first)


def test_rounds_give_a_tensor_the_same_vertex_whatever_comes_with_it():
    gradients = [randn(20, 30, seed=seed) for seed in range(3)]
    for s in STARTED:
        for g, v in zip(gradients, s.lmo_many(gradients), strict=True):
            with case(s=s):
                assert torch.allclose(v, s.lmo(g), rtol=0, atol=1e-8)
