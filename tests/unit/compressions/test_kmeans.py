"""k-means in one dimension is global: against all partitions, the plain recursion and scikit-learn (slow)."""

import itertools

import pytest
import torch
from cases import case
from problems import F64

from nncompress.compressions.base import sort_rows
from nncompress.compressions.quantization import kmeans_exact
from nncompress.compressions.quantization.kmeans import Clusters, Points, clusters_at, compand, lloyd, points_of
from nncompress.compressions.quantization.kmeans_bounds import PositionBlocks, bounds, windows


def numbers(kind: str, count: int, seed: int) -> torch.Tensor:
    """Samples that are hard in different ways: ties, heavy points, heavy tails, clumps, symmetry, saturation."""
    g = torch.Generator().manual_seed(seed)
    normal, uniform = torch.randn(count, generator=g, dtype=F64), torch.rand(count, generator=g, dtype=F64)
    sign = torch.where(uniform < 0.5, -1.0, 1.0)
    return {
        "normal": normal,
        "laplace": sign * torch.rand(count, generator=g, dtype=F64).log(),
        "bimodal": normal + 5 * sign,
        "cauchy": torch.tan(3.141 * (uniform - 0.5)),
        "pruned": normal * (uniform < 0.1),
        "rounded": (4 * normal).round(),
        "clumps": (8 * uniform).floor() + 1e-3 * normal,
        "lognormal": (2 * normal).exp(),
        "symmetric": torch.cat([normal[: count // 2], -normal[: (count + 1) // 2]]),
        "saturated": torch.tanh(5 * normal),
        "grid": torch.arange(count, dtype=F64),
        "constant": torch.full((count,), 0.3, dtype=F64),
    }[kind]


KINDS = (
    *("normal", "laplace", "bimodal", "cauchy", "lognormal", "saturated"),
    *("pruned", "rounded", "clumps", "symmetric", "grid", "constant"),
)


def centred(rows: torch.Tensor) -> Points:
    rows = sort_rows(rows).double()
    return points_of(rows - rows.mean(1, keepdim=True))


def searched(rows: torch.Tensor, K: int, pieces: int = kmeans_exact.PIECES) -> Clusters:
    points = centred(rows)
    return kmeans_exact.search(points, lloyd(points, compand(points, K)), pieces)


def plain_errors(row: torch.Tensor, K: int) -> list[float]:
    """The least error with 1, ..., K clusters by D_k(j) = min_i D_{k-1}(i) + c(i, j)."""
    x = row.double().sort().values
    x = x - x.mean()
    s, q = (torch.cat([x.new_zeros(1), v.cumsum(0)]) for v in (x, x * x))
    n = torch.arange(len(x) + 1, dtype=F64)
    n = n - n[:, None]
    cost = (q - q[:, None]) - (s - s[:, None]) ** 2 / n.clamp_min(1)
    cost = torch.where(n > 0, cost, torch.where(n == 0, 0.0, torch.inf))
    best, errors = torch.full((len(x) + 1,), torch.inf, dtype=F64), []
    best[0] = 0
    for _ in range(K):
        best = (best[:, None] + cost).amin(0)
        errors.append(float(best[-1]))
    return errors


def spread(rows: torch.Tensor) -> torch.Tensor:
    """The sum of squares (R,) about the mean of each row."""
    return (rows - rows.mean(1, keepdim=True)).square().sum(1)


def test_no_partition_of_few_numbers_is_better():
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        row = torch.randint(-4, 5, (8,), generator=g).double() if seed % 2 else torch.randn(8, generator=g, dtype=F64)
        x = row.sort().values
        cost = {(a, b): float((x[a:b] - x[a:b].mean()).square().sum()) for a in range(8) for b in range(a + 1, 9)}
        for K in range(1, 6):
            with case(seed=seed, K=K):
                cuts = ((0, *inner, 8) for inner in itertools.combinations(range(1, 8), K - 1))
                best = min(sum(cost[pair] for pair in itertools.pairwise(c)) for c in cuts)
                assert float(searched(row[None], K, pieces=1).error) == pytest.approx(best, abs=1e-12)


def test_the_search_through_blocks_finds_the_minimum_of_the_plain_recursion():
    tried = {40: ((1, 2), (1, 7), (8, 2), (8, 3)), 250: ((1, 3), (1, 20), (8, 7), (8, 20))}  # pieces, K
    for kind, (seed, count) in itertools.product(KINDS, enumerate(tried)):
        row = numbers(kind, count, seed)
        errors, scale = plain_errors(row, 20), float(spread(row[None])) + 1e-300
        for pieces, K in tried[count]:
            with case(kind=kind, count=count, pieces=pieces, K=K):
                assert abs(float(searched(row[None], K, pieces).error) - errors[K - 1]) <= 1e-12 * scale


def test_many_clusters_and_long_rows_agree_with_the_plain_recursion():
    for kind, count, K in (("normal", 600, 80), ("clumps", 700, 40), ("laplace", 1500, 3)):
        with case(kind=kind, count=count, K=K):
            row = numbers(kind, count, 7)
            error = float(searched(row[None], K, 2).error)
            assert abs(error - plain_errors(row, K)[-1]) <= 1e-12 * float(spread(row[None]))


def test_rows_of_different_kinds_are_searched_together_alone_and_in_halves(monkeypatch):
    rows = torch.stack([numbers(kind, 120, 3) for kind in KINDS])
    tolerance = 1e-12 * spread(rows)
    least = torch.tensor([plain_errors(row, 6)[-1] for row in rows], dtype=F64)
    alone = torch.cat([searched(row[None], 6).error for row in rows])
    assert (alone - least).abs().le(tolerance).all()
    assert (searched(rows, 6).error - least).abs().le(tolerance).all()
    halves, narrow_halves = [], kmeans_exact._narrow_halves
    monkeypatch.setattr(kmeans_exact, "_narrow_halves", lambda *given: halves.append(0) or narrow_halves(*given))
    monkeypatch.setattr(kmeans_exact, "MAX_ROW_PAIRS", 1 << 11)
    assert (searched(rows, 6).error - least).abs().le(tolerance).all()
    assert halves


def test_bounds_are_below_the_reduced_costs_of_all_positions_in_the_blocks():
    """Both sides sum to a path's error less the best known, so potentials that differ show up here."""
    g, seen = torch.Generator().manual_seed(0), 0
    for kind in KINDS:
        points = centred(numbers(kind, 300, 5)[None])
        best = lloyd(points, compand(points, 4))
        blocks = kmeans_exact._cut(points, best, 3)
        blocks = blocks._replace(low=torch.zeros_like(blocks.low))
        if torch.equal(blocks.first, blocks.last):
            continue
        seen += 1
        m = bounds(points, blocks, best)
        B = kmeans_exact._backward(m, blocks)[:, 0]
        F = kmeans_exact._forward(m, blocks)[:, 0]
        cuts = torch.randint(1, points.x.shape[1], (300, 5), generator=g).sort(1).values
        cuts[:, 0], cuts[:, -1] = 0, points.x.shape[1]
        over = clusters_at(Points(*(sums.expand(300, -1) for sums in points)), cuts).error - best.error
        block = torch.searchsorted(blocks.first[0], cuts, right=True) - 1
        k = torch.arange(5)
        with case(kind=kind):
            assert int(block.max()) < blocks.first.shape[1]
            assert ((F[k, block] + B[k, block]).amax(1) <= over + 1e-9 * points.q[0, -1]).all()
    assert seen >= 10


def test_a_search_that_gives_up_returns_the_best_it_knows(monkeypatch):
    row = numbers("bimodal", 2000, 1)[None]
    points = centred(row)
    start = lloyd(points, compand(points, 8))
    least = float(searched(row, 8).error)
    monkeypatch.setattr(kmeans_exact, "MAX_PAIRS", 0)
    assert least <= float(searched(row, 8).error) <= float(start.error)
    monkeypatch.undo()
    monkeypatch.setattr(kmeans_exact, "MAX_CENTRES", 4)
    assert least <= float(searched(row, 8).error) <= float(start.error)


def test_more_clusters_than_distinct_numbers_leave_no_error():
    rows = torch.tensor([[2.0, -1, 2, 2, 0, -1], [1, 1, 1, 1, 1, 1]], dtype=F64)
    assert searched(rows, 3).error.max() <= 1e-14
    assert searched(rows, 5).error.max() <= 1e-14


@pytest.mark.slow
def test_scikit_learn_is_never_better():
    from sklearn.cluster import KMeans

    for kind, K in itertools.product(("normal", "laplace", "bimodal"), (2, 5, 16)):
        with case(kind=kind, K=K):
            row = numbers(kind, 4000, 11)
            other = KMeans(K, n_init=3, random_state=0).fit(row.numpy()[:, None]).inertia_
            assert float(searched(row[None], K).error) <= other * (1 + 1e-9)


def test_lloyd_never_increases_the_error():
    points = centred(numbers("laplace", 500, 2)[None])
    errors = [float(lloyd(points, compand(points, 6), steps).error) for steps in range(1, 15)]
    assert errors == sorted(errors, reverse=True)


def test_rows_are_sorted_by_their_values():
    for dtype in (torch.float32, F64):
        with case(dtype=dtype):
            g = torch.Generator().manual_seed(0)
            rows = torch.randn(5, 999, generator=g).to(dtype)
            rows[2, ::7] = 0.0
            rows[2, 1::7] = -0.0
            rows[3] = rows[3] * 1e-42  # denormal in single precision
            assert torch.equal(sort_rows(rows), rows.sort(1).values)
            assert torch.equal(sort_rows(rows.T.contiguous().T), rows.sort(1).values)


def test_points_count_equal_numbers_once():
    points = points_of(torch.tensor([[-1.0, -1, 0, 2], [3, 3, 3, 3]], dtype=F64))
    assert points.x.tolist() == [[-1, 0, 2], [3, 3, 3]]
    assert points.n.tolist() == [[0, 2, 3, 4], [0, 4, 4, 4]]
    assert points.s.tolist() == [[0, -2, -2, 0], [0, 12, 12, 12]]
    assert points.q.tolist() == [[0, 2, 2, 6], [0, 36, 36, 36]]


def test_blocks_gather_what_leads_to_each():
    low = torch.tensor([[0, 0, 1], [0, 1, 1]])
    blocks = PositionBlocks(low, low, low, low + 1, [])
    values = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert blocks.width == 2
    assert blocks.sources(windows(values, 2), slice(1, 3)).tolist() == [[[1, 2], [2, 3]], [[5, 6], [5, 6]]]
