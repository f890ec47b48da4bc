"""Sets with a k: what it counts, that exactly the k largest stay, and the k-support norm."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import case
from constraint_cases import Shape, directions, dot, nonzero_rows, nonzeros, rank, shares
from problems import F64, randn
from torch import Tensor

from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.spectral import SpectralKSparse, SpectralKSupport


def nonzero_groups(v: Tensor) -> int:
    return int(nonzero_rows(v).sum())


K_SETS: list[tuple[Any, Shape, Callable[[Tensor], int]]] = [
    (KSparse, (20,), nonzeros),
    (KSupport, (4, 5), nonzeros),
    (GroupKSupport, (20, 2, 2), nonzero_groups),
    (SpectralKSupport, (20, 5, 5), rank),
    (SpectralKSparse, (30, 20), rank),
]


def test_k_is_a_fraction_up_to_1_and_a_count_above():
    settings = [
        ({"k": 1}, 20),
        ({"k": 1.0}, 20),
        ({"k": 0.15}, 3),
        ({"k": 0.29}, 5),
        ({"k": 0.01}, 1),
        ({"k": 2}, 2),
        ({"k": 2.0}, 2),
        ({"k": 15}, 15),
        ({"k": 20}, 20),
        ({"k": 500}, 20),
        ({"k": 0.05, "least": 10}, 10),
        ({"k": 0.5, "least": 4}, 10),
        ({"k": 0.05, "least": 30}, 20),
    ]
    for (kind, shape, count), (fields, expected) in itertools.product(K_SETS, settings):
        with case(kind=kind, **fields):
            v = kind(**fields).lmo(randn(*shape))
            assert count(v) == expected
            assert float(kind(**fields).gauge(v)) == pytest.approx(1, abs=1e-10)


def test_ties_leave_exactly_k():
    for kind, shape, count in K_SETS:
        rows, columns = shape[0], math.prod(shape[1:])
        equal = torch.eye(rows, columns, dtype=F64) if count is rank else torch.ones(shape, dtype=F64)
        for k, (dtype, within) in itertools.product((3, 17), ((F64, 1e-10), (torch.float32, 1e-5))):
            with case(kind=kind, k=k, dtype=dtype):
                g = equal.view(shape).to(dtype)
                v = kind(k=k).lmo(g)
                assert count(v) == k
                assert dot(g, v) == pytest.approx(-float(kind(k=k).dual_norm(g)), abs=within)


def test_a_k_that_is_neither_a_fraction_nor_a_count_is_refused():
    for kind, *_ in K_SETS:
        for k in (0, 0.0, -1, -0.5, 2.5, math.nan, math.inf):
            with pytest.raises(ValueError, match=rf"\bk must be a part .*found {k};"):
                kind(k=k)
        with pytest.raises(ValueError, match="least must be at least 1, found 0"):
            kind(least=0)


def test_a_fraction_that_is_a_whole_count_up_to_rounding_is_that_count():
    assert 0.29 * 100 < 29
    assert nonzeros(KSparse(k=0.29).lmo(randn(100))) == 29


def test_exactly_the_k_largest_of_many_entries_are_kept():
    x = randn(5000)
    spreads = {
        "normal": x,
        "many equal": x.round(decimals=1),
        "close": 1 + x.round(decimals=1) * 2**-12,
        "last bits": (0x3F807FFF - torch.arange(5000, dtype=torch.int32) % 3).view(torch.float32),
    }
    for (spread, values), dtype in itertools.product(spreads.items(), (torch.float32, F64)):
        g = values.to(dtype)
        descending = g.abs().sort(descending=True).values
        for k in (2, 50, 2500, 4000, 4999, 5000):
            with case(spread=spread, dtype=dtype, k=k):
                wanted = descending[:k][descending[:k] > 0]
                kept = g.abs()[KSupport(k=k).lmo(g) != 0]
                assert torch.equal(kept.sort(descending=True).values, wanted)
                assert nonzeros(KSparse(k=k).lmo(g)) == len(wanted)
                groups_kept = g.abs()[nonzero_rows(GroupKSupport(k=k).lmo(g[:, None]))]
                assert torch.equal(groups_kept.sort(descending=True).values, wanted)


# The k-support norm.


def test_the_k_support_norm_is_between_the_two_sides_of_its_variational_problem():
    """sum x²/a for a feasible a is no less; its Lagrangian, minimised over a, is no more; both meet."""
    points = torch.cat([randn(8, 8), directions((8,))[::200], torch.ones(1, 8, dtype=F64), torch.eye(8, dtype=F64)])
    for k in range(1, 9):
        a, lam = shares(points.abs(), k)
        assert float(a.sum(1).max()) <= k + 1e-12
        upper = (points**2 / a).sum(1)
        lower = upper + lam[:, 0] ** 2 * (a.sum(1) - k)
        for i, x in enumerate(points):
            with case(k=k, x=x):
                square = float(KSupport(k=k / 8).gauge(x)) ** 2
                assert float(lower[i]) - 1e-9 <= square <= float(upper[i]) + 1e-9


def test_the_k_support_norm_lies_between_its_bounds():
    for k, x in itertools.product(range(1, 9), directions((8,))[::200]):
        with case(k=k, x=x):
            norm, l1 = float(KSupport(k=k / 8).gauge(x)), float(x.abs().sum())
            assert max(float(x.norm()), l1 / math.sqrt(k)) - 1e-10 <= norm <= l1 + 1e-10
            if nonzeros(x) <= k:
                assert norm == pytest.approx(float(x.norm()), abs=1e-10)


def test_the_k_support_norm_of_many_entries_is_right_in_single_precision():
    x = randn(20_000)
    for k in (0.01, 0.5, 0.99):
        with case(k=k):
            assert float(KSupport(k=k).gauge(x.float())) == pytest.approx(float(KSupport(k=k).gauge(x)), rel=1e-4)
