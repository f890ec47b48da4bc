"""The selection of ranks: the example, enumeration, prices."""

import itertools

import pytest
import torch
from cases import case
from matrices import best, norm, projected, with_spectrum
from problems import F64, randn

from nncompress.compressions.decomposition.low_rank import Factors
from nncompress.compressions.decomposition.rank_selection import RankSelection, rank_selection
from nncompress.compressions.products import Use
from nncompress.errors import ConfigError

S = (5.0, 3.0, 1.5, 0.7, 0.2)


def rank_of(theta: Factors) -> int:
    return theta.U.shape[1]


def test_ranks_of_the_example():
    w = with_spectrum(S, 5, 5)
    for alpha, mu, rank in ((0.01, 0.1, 3), (0.05, 0.1, 1), (0.1, 0.1, 1), (0.001, 0.5, 4)):
        with case(alpha=alpha, mu=mu):
            theta = RankSelection(alpha).compress(w, mu)
            assert rank_of(theta) == rank
            assert norm(theta.U @ theta.V - best(w, rank)) <= 1e-13
            assert rank_of(RankSelection(alpha).compress(w.float(), mu)) == rank
    # where no cost is above that of the dense matrix
    for alpha, mu, rank in ((0.01, 0.1, 5), (0.05, 0.1, 1), (0.1, 0.1, 1), (0.001, 0.5, 5)):
        with case(alpha=alpha, mu=mu):
            capped = RankSelection(alpha, capped=True)
            theta = capped.compress(w, mu)
            assert rank_of(theta) == rank
            assert theta.is_dense == (rank == 5)
            assert capped.num_params(theta) == min(10 * rank, 25)
            assert capped.bits(theta) == 32 * min(10 * rank, 25)
            assert float(capped.penalty(theta)) == pytest.approx(alpha * min(10 * rank, 25))
            assert norm(capped.decompress(theta) - best(w, rank)) <= 1e-13


def test_the_chosen_rank_is_the_best_of_all_by_enumeration():
    shapes = (5, 5), (4, 9), (9, 4), (1, 6), (12, 10)
    for (m, n), capped, seed in itertools.product(shapes, (False, True), range(18)):
        g = torch.Generator().manual_seed(seed)
        s = torch.rand(min(m, n), generator=g, dtype=F64).sort(descending=True).values
        alpha, mu, positions = 10 ** float(-3 * torch.rand((), generator=g)), 10.0 ** (seed % 3), 1 + seed % 2
        w, compression = with_spectrum(s, m, n, seed), RankSelection(alpha, positions, capped)
        costs = [min(r * (m + n), m * n) if capped else r * (m + n) for r in range(min(m, n) + 1)]
        values = [alpha * positions * c + mu / 2 * float((s[r:] ** 2).sum()) for r, c in enumerate(costs)]
        theta = compression.compress(w, mu)
        found = mu / 2 * float((w - compression.decompress(theta)).square().sum()) + float(compression.penalty(theta))
        with case(shape=(m, n), compression=compression, mu=mu, seed=seed):
            assert found == pytest.approx(min(values), rel=1e-10)
            assert capped or rank_of(theta) == values.index(min(values))


def test_of_equal_ranks_the_smaller_is_taken():
    w = torch.diag(torch.tensor([2.0, 1.0], dtype=F64))  # threshold sqrt(2 * 0.125 * 4) = 1
    assert rank_of(RankSelection(0.125).compress(w)) == 1
    assert rank_of(RankSelection(0.1249).compress(w)) == 2
    assert rank_of(RankSelection(0.5).compress(w)) == 0
    assert rank_of(RankSelection(0.75, capped=True).compress(torch.eye(2, dtype=F64))) == 0  # 3 or 1


def test_rank_0_stores_nothing_and_gives_0():
    theta = RankSelection(1.0).compress(randn(3, 4), 1e-6)
    assert (theta.U.shape, theta.V.shape, theta.is_dense) == ((3, 0), (0, 4), False)
    assert torch.equal(RankSelection(1.0).decompress(theta), torch.zeros(3, 4, dtype=F64))
    assert RankSelection(1.0).bits(theta) == RankSelection(1.0).penalty(theta) == 0
    assert RankSelection(1.0).macs(theta, Use((3, 4))) == 0


def test_rank_selection_of_zeros_is_rank_0_and_without_a_price_everything():
    w = randn(3, 4)
    for capped in (False, True):
        with case(capped=capped):
            free = RankSelection(0.0, capped=capped)
            assert torch.equal(projected(free, torch.zeros(3, 4, dtype=F64)), torch.zeros(3, 4, dtype=F64))
            assert rank_of(RankSelection(0.1, capped=capped).compress(torch.zeros(3, 4))) == 0
            torch.testing.assert_close(projected(free, w), w)


def test_the_price_is_for_numbers_or_for_operations():
    weights = {"conv.weight": randn(4, 3, 3, 3), "fc.weight": randn(6, 8), "out.weight": randn(2, 6)}
    uses = {"conv.weight": Use((4, 3, 3, 3), (9, 9), (5, 4)), "fc.weight": Use((6, 8))}
    stored = rank_selection(weights, alpha=0.1)
    used = rank_selection(weights, alpha=0.1, criterion="flops", uses=uses, capped=True)
    assert [task.compression for task in stored.tasks] == [RankSelection(0.1)] * 2
    assert [task.compression for task in used.tasks] == [RankSelection(0.1, n, capped=True) for n in (20, 1)]
    (theta, _) = used.compress(used.select(weights), mu=5.0)
    compression = used.tasks[0].compression
    assert float(compression.penalty(theta)) == pytest.approx(0.1 * compression.macs(theta, uses["conv.weight"]))


def test_a_normalised_price_makes_the_rank_independent_of_the_scale():
    w = with_spectrum(S, 5, 5)
    expected = dict.fromkeys((0.01, 1.0, 30.0), 3)
    found = {}
    for scale in expected:
        weights = {"a.weight": scale * w}
        plan = rank_selection(weights, alpha=0.01 / norm(w) ** 2, normalised=True, layers="all")
        found[scale] = rank_of(plan.compress(plan.select(weights), mu=0.1)[0])
    assert found == expected


def test_rank_selection_says_what_it_needs():
    weights = {"a.weight": randn(4, 5), "b.weight": randn(4, 5)}
    with pytest.raises(ConfigError, match=r"needs the network's uses of a\.weight"):
        rank_selection(weights, criterion="flops")
    with pytest.raises(ConfigError, match="criterion must be storage or flops, found bits"):
        rank_selection(weights, criterion="bits")
    with pytest.raises(ValueError, match="scheme must be 1 or 2"):
        rank_selection(weights, scheme=0)
