"""k-means in one dimension is global: against all partitions, against the plain recursion, against scikit-learn."""

import itertools

import pytest
import torch
from sklearn.cluster import KMeans

from nncompress.compressions import kmeans_search
from nncompress.compressions.kmeans import Clusters, Points, clusters_at, companded, lloyd, points_of, sort_rows
from nncompress.compressions.kmeans_bounds import Blocks, bounds, windows

F64 = torch.float64


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


def searched(rows: torch.Tensor, K: int, pieces: int = kmeans_search.PIECES) -> Clusters:
    points = centred(rows)
    return kmeans_search.search(points, lloyd(points, companded(points, K)), pieces)


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


@pytest.mark.parametrize("seed", range(20))
def test_no_partition_of_few_numbers_is_better(seed):
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(-4, 5, (8,), generator=g).double() if seed % 2 else torch.randn(8, generator=g, dtype=F64)
    x = row.sort().values
    for K in range(1, 6):
        cuts = ((0, *inner, 8) for inner in itertools.combinations(range(1, 8), K - 1))
        best = min(sum(float((x[a:b] - x[a:b].mean()).square().sum()) for a, b in itertools.pairwise(c)) for c in cuts)
        assert float(searched(row[None], K, pieces=1).error) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [1, 8])
def test_the_search_through_blocks_finds_the_minimum_of_the_plain_recursion(kind, pieces):
    for seed, count in enumerate((40, 250)):
        row = numbers(kind, count, seed)
        errors = plain_errors(row, 20)
        scale = float((row - row.mean()).square().sum()) + 1e-300
        for K in (2, 3, 7, 20):
            assert abs(float(searched(row[None], K, pieces).error) - errors[K - 1]) <= 1e-12 * scale


@pytest.mark.parametrize(("kind", "count", "K"), [("normal", 1000, 100), ("clumps", 700, 40), ("laplace", 1500, 3)])
def test_many_clusters_and_long_rows_agree_with_the_plain_recursion(kind, count, K):
    row = numbers(kind, count, 7)
    scale = float((row - row.mean()).square().sum())
    assert abs(float(searched(row[None], K, 2).error) - plain_errors(row, K)[-1]) <= 1e-12 * scale


def test_rows_of_different_kinds_are_searched_together(monkeypatch):
    rows = torch.stack([numbers(kind, 200, 3) for kind in KINDS])
    alone = torch.cat([searched(row[None], 6).error for row in rows])
    together = searched(rows, 6)
    tolerance = 1e-12 * (rows - rows.mean(1, keepdim=True)).square().sum(1)
    assert (together.error - alone).abs().le(tolerance).all()
    monkeypatch.setattr(kmeans_search, "MAX_ROW_PAIRS", 1 << 11)  # the rows are searched in halves
    assert (searched(rows, 6).error - alone).abs().le(tolerance).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_below_the_reduced_costs_of_all_positions_in_the_blocks(kind):
    """Both sides sum to a path's error less the best known, so potentials that differ show up here."""
    points = centred(numbers(kind, 300, 5)[None])
    best = lloyd(points, companded(points, 4))
    blocks = kmeans_search._cut(points, best, 3)
    blocks = blocks._replace(low=torch.zeros_like(blocks.low))
    if torch.equal(blocks.first, blocks.last):
        return
    G = blocks.first.shape[1]
    m = bounds(points, blocks, best)
    B = kmeans_search._backward(m, blocks)[:, 0]
    F = kmeans_search._forward(m, blocks)[:, 0]
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        cuts = torch.cat(
            [
                torch.tensor([0]),
                torch.randint(1, points.x.shape[1], (3,), generator=g).sort().values,
                torch.tensor([points.x.shape[1]]),
            ]
        )[None]
        over = float(clusters_at(points, cuts).error - best.error)
        for k in range(5):
            block = int((blocks.first[0] <= cuts[0, k]).sum()) - 1
            assert block < G
            assert float(F[k, block] + B[k, block]) <= over + 1e-9 * float(points.q[0, -1])


def test_a_search_that_gives_up_returns_the_best_it_knows(monkeypatch):
    row = numbers("bimodal", 2000, 1)[None]
    points = centred(row)
    start = lloyd(points, companded(points, 8))
    least = float(searched(row, 8).error)
    monkeypatch.setattr(kmeans_search, "MAX_PAIRS", 0)
    assert least <= float(searched(row, 8).error) <= float(start.error)
    monkeypatch.undo()
    monkeypatch.setattr(kmeans_search, "MAX_CENTRES", 4)
    assert least <= float(searched(row, 8).error) <= float(start.error)


def test_more_clusters_than_distinct_numbers_leave_no_error():
    rows = torch.tensor([[2.0, -1, 2, 2, 0, -1], [1, 1, 1, 1, 1, 1]], dtype=F64)
    assert searched(rows, 3).error.max() <= 1e-14
    assert searched(rows, 5).error.max() <= 1e-14


@pytest.mark.parametrize("kind", ["normal", "laplace", "bimodal"])
@pytest.mark.parametrize("K", [2, 5, 16])
def test_scikit_learn_is_never_better(kind, K):
    row = numbers(kind, 4000, 11)
    other = KMeans(K, n_init=3, random_state=0).fit(row.numpy()[:, None]).inertia_
    assert float(searched(row[None], K).error) <= other * (1 + 1e-9)


def test_lloyd_never_increases_the_error():
    points = centred(numbers("laplace", 500, 2)[None])
    errors = [float(lloyd(points, companded(points, 6), steps).error) for steps in range(1, 15)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_are_sorted_by_their_values(dtype):
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
    blocks = Blocks(low, low, low, low + 1, [])
    values = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert blocks.width == 2
    assert blocks.sources(windows(values, 2), slice(1, 3)).tolist() == [[[1, 2], [2, 3]], [[5, 6], [5, 6]]]
