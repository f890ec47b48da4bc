"""Sparse weights: closed forms, brute force, and the bits of positions."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import case
from problems import F64, randn

from nncompress.compressions.bits import huffman_bits, huffman_position_bits, index_bits, position_bits
from nncompress.compressions.products import Use
from nncompress.compressions.sparsity.magnitude import L0, L1, L0Penalty, L1Penalty, Sparse, l0, largest
from nncompress.compressions.sparsity.structured import NM, GroupL0, group_l0, n_m

V = torch.tensor([-1.1, -0.9, -0.2, 0.05, 0.3, 0.8, 1.2, 1.3], dtype=F64)


def projected(compression, w, mu=1.0):
    return compression.decompress(compression.compress(torch.as_tensor(w, dtype=F64), mu))


def test_l0_beats_every_support_of_its_size():
    w = randn(7)
    kept = projected(L0(3), w)
    best = min(
        float((w - torch.zeros(7, dtype=F64).index_copy(0, torch.tensor(s), w[list(s)])).square().sum())
        for s in itertools.combinations(range(7), 3)
    )
    assert float((w - kept).square().sum()) == pytest.approx(best, abs=1e-14)


def test_of_equal_magnitudes_the_first_are_kept():
    assert projected(L0(2), [1.0, -1, 1, 1]).tolist() == [1, -1, 0, 0]
    assert projected(NM(2, 4), [[1.0, -1, 1, 1]]).tolist() == [[1, -1, 0, 0]]
    for seed, count in itertools.product(range(10), (0, 1, 7, 39, 40)):
        with case(seed=seed, count=count):
            values = torch.randint(5, (40,), generator=torch.Generator().manual_seed(seed)).double()
            plain = values.sort(descending=True, stable=True).indices[:count].sort().values
            assert torch.equal(largest(values, count), plain)


def test_l1_projection_by_hand():
    for w, radius, expected in (
        ([3, 1, 0.1], 2, [2, 0, 0]),
        ([3, 3], 2, [1, 1]),
        (V.tolist(), 2, [-0.44, -0.24, 0, 0, 0, 0.14, 0.54, 0.64]),
        (V.tolist(), 100, V.tolist()),
        ([0, 0], 1, [0, 0]),
        ([-5], 2, [-2]),
    ):
        with case(w=w, radius=radius):
            torch.testing.assert_close(projected(L1(radius), w), torch.tensor(expected, dtype=F64), rtol=0, atol=1e-14)


def test_l1_projection_satisfies_its_optimality_conditions():
    for seed in range(10):
        with case(seed=seed):
            w = randn(30, seed=seed)
            p = projected(L1(3.0), w)
            assert float(p.abs().sum()) == pytest.approx(3.0, abs=1e-12)
            # <w - p, x - p> <= 0 for every vertex x of the ball
            gradient = w - p
            assert float(3.0 * gradient.abs().max() - gradient @ p) <= 1e-12


def test_penalties_by_hand():
    theta = L0Penalty(0.3).compress(V, 2.0)
    dense = L0Penalty(0.3).decompress(theta)
    assert dense.tolist() == [-1.1, -0.9, 0, 0, 0, 0.8, 1.2, 1.3]
    assert float((V - dense).square().sum() + 2 * L0Penalty(0.3).penalty(theta) / 2.0) == pytest.approx(1.6325)
    assert projected(L0Penalty(0.3), [0.5477, 0.5478], 2.0).tolist() == [0, 0.5478]  # threshold .547723
    dense = projected(L1Penalty(0.3), V, 2.0)  # threshold .15
    torch.testing.assert_close(dense, torch.tensor([-0.95, -0.75, -0.05, 0, 0.15, 0.65, 1.05, 1.15], dtype=F64))


def test_penalties_beat_a_grid():
    grid = torch.linspace(-3, 3, 6001, dtype=F64)
    for v in (-2.0, -0.6, 0.1, 0.55, 1.7):
        for compression, cost in ((L0Penalty(0.4), (grid != 0).double()), (L1Penalty(0.4), grid.abs())):
            with case(v=v, compression=compression):
                theta = compression.compress(torch.tensor([v], dtype=F64), 1.5)
                ours = 0.75 * float(compression.decompress(theta) - v) ** 2 + float(compression.penalty(theta))
                assert ours <= float((0.75 * (grid - v).square() + 0.4 * cost).min()) + 1e-12


def test_groups_beat_every_choice_of_rows():
    w = randn(18)
    compression = GroupL0(3, ((3, 2), (4, 3)))
    kept = compression.decompress(compression.compress(w))
    rows = [*torch.arange(6).split(2), *torch.arange(6, 18).split(3)]
    errors = [
        float(w.square().sum() - sum(w[rows[r]].square().sum() for r in chosen))
        for chosen in itertools.combinations(range(7), 3)
        if min(chosen) < 3 <= max(chosen)  # at least one row of each weight
    ]
    assert float((w - kept).square().sum()) == pytest.approx(min(errors), abs=1e-12)


def test_joint_groups_never_empty_a_layer():
    w = {"a.weight": 1e-6 * randn(8, 6), "b.weight": randn(9, 8, seed=1)}
    plan = group_l0(w, keep=4, joint=True, layers="all")
    dense = plan.decompress(plan.compress(plan.select(w)))
    alive = [int(dense[name].abs().sum(dim=1).count_nonzero()) for name in w]
    assert alive == [1, 3]


def test_groups_of_a_convolution_are_its_filters_and_bits_count_a_mask_or_positions():
    w = {"conv.weight": randn(16, 3, 2, 2)}
    plan = group_l0(w, keep=0.25, layers="all")
    theta = plan.compress(plan.select(w))
    filters = plan.decompress(theta)["conv.weight"].flatten(1).abs().sum(dim=1)
    assert int(filters.count_nonzero()) == 4
    assert plan.num_params(theta) == 4 * 12
    assert plan.bits(theta) == 32 * 48 + min(16, position_bits(filters.nonzero().squeeze(1)))
    assert plan.tasks[0].compression.macs(theta[0], Use((16, 3, 2, 2), (6, 6), (5, 5))) == 25 * 48


def test_n_m_beats_every_mask_of_each_group():
    w = randn(4, 10)
    dense = projected(NM(2, 4), w)
    for row, kept in zip(w, dense, strict=True):
        for first in range(0, 10, 4):
            group, found = row[first : first + 4], kept[first : first + 4]
            best = min(
                float(group.square().sum() - group[list(places)].square().sum())
                for places in itertools.combinations(range(len(group)), 2)
            )
            assert float((group - found).square().sum()) == pytest.approx(best, abs=1e-14)
            assert int(found.count_nonzero()) <= 2


def test_n_m_runs_along_the_inputs_of_a_convolution_and_stores_two_bits_a_place():
    w = randn(3, 8, 3, 3)
    kept = projected(NM(1, 4), w) != 0
    assert torch.equal(kept[:, :4].sum(dim=1), torch.ones(3, 3, 3, dtype=torch.int64))
    theta = NM(2, 4).compress(randn(6, 8))
    assert NM(2, 4).bits(theta) == 24 * (32 + 2)  # as sparse tensor cores store it


def test_what_pads_a_short_group_is_not_counted():
    for shape, n, m in (((5, 1), 2, 4), ((3, 7, 2, 2), 2, 4), ((2, 9), 3, 8)):
        with case(shape=shape, n=n, m=m):
            compression = NM(n, m)
            theta = compression.compress(randn(*shape))
            assert compression.num_params(theta) == int(torch.count_nonzero(compression.decompress(theta)))
            assert compression.macs(theta, Use(shape)) == compression.num_params(theta)


def test_numbers_that_are_not_finite_do_not_break_the_selection():
    w = randn(20)
    w[3] = torch.nan
    assert L0(5).update(w)[1].shape == w.shape


def test_settings_out_of_range_are_refused_and_those_that_do_not_fit_are_said():
    for number, make in enumerate((
        lambda: L0(1.5), lambda: L0(0.0), lambda: L0(-1), lambda: L1(0.0), lambda: L1(math.nan),
        lambda: L0Penalty(-1.0), lambda: L1Penalty(-1.0), lambda: GroupL0(0.0, ((2, 2),)),
        lambda: NM(3, 2), lambda: NM(0, 2),
    )):  # fmt: skip
        with case(number=number), pytest.raises(ValueError, match="found"):
            make()
    w = {"a.weight": randn(4, 3), "b.weight": randn(2, 2)}
    assert l0(w, keep=9, layers="all").clipped() == ["b.weight: keep 9 is above the 4 entries there are, 4 are kept"]
    assert group_l0(w, keep=3, layers="all").clipped() == ["b.weight: keep 3 is above the 2 rows there are, 2 are kept"]
    assert n_m(w, layers="all").clipped() == []
    assert group_l0(w, keep=1, joint=True, layers="all").clipped() == [
        "a.weight, b.weight: keep 1 leaves a weight without rows, 2 are kept, at least one of each"
    ]
    assert int(torch.count_nonzero(projected(L0(1e-9), randn(20)))) == 1


def test_sparse_products_cost_their_entries():
    theta = Sparse(torch.arange(3), torch.ones(3), (2, 3))
    assert L0(3).macs(theta, Use((2, 3))) == 3
    assert L0(3).macs(theta, Use((2, 3), (7,), (7,))) == 21


# Bits of positions and codes


def test_bits_by_hand():
    # gaps 1, 3, 4, counted from -1: two-bit fields hold up to 3, so 1 + 1 + 2 fields; three bits: 3 fields
    assert position_bits(torch.tensor([0, 3, 7])) == min(2 * 4, 3 * 3)
    assert position_bits(torch.tensor([], dtype=torch.int64)) == 0
    assert position_bits(torch.tensor([3])) == 3  # gap 4: two 2-bit fields or one 3-bit field
    # frequencies 1, 1, 2, 4 have code lengths 3, 3, 2, 1; the table has eight bits for each length
    assert huffman_bits(torch.tensor([4, 1, 0, 2, 1])) == 3 + 3 + 4 + 4 + 5 * 8
    assert huffman_bits(torch.tensor([4, 1, 2, 1]), 256) == 3 + 3 + 4 + 4 + 4 * (8 + 8)
    assert huffman_bits(torch.tensor([7])) == 8
    assert huffman_bits(torch.tensor([0, 0])) == 0
    assert [index_bits(count) for count in (1, 2, 3, 4, 5, 256, 257)] == [0, 1, 2, 2, 3, 8, 9]


def test_pruning_lenet300_to_five_percent_stores_sixteen_times_less():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(266_200, generator=g)
    theta = L0(13_310).compress(w)
    ratio = 32 * (266_200 + 410) / (L0(13_310).bits(theta) + 32 * 410)
    assert ratio == pytest.approx(16.34, abs=0.05)  # random mask, 6-bit gaps


def test_huffman_codes_are_near_the_entropy_and_shorter_than_fields_for_a_random_mask():
    counts = torch.randint(1, 1000, (64,), generator=torch.Generator().manual_seed(0))
    p = counts.double() / counts.sum()
    entropy = float(-(p * p.log2()).sum() * counts.sum())
    text = huffman_bits(counts) - 8 * 64
    assert entropy <= text <= entropy + int(counts.sum())
    rng = np.random.default_rng(0)
    positions = torch.from_numpy(np.sort(rng.choice(100_000, 5000, replace=False)))
    assert huffman_position_bits(positions) < position_bits(positions)
    assert huffman_position_bits(positions[:0]) == 0
    entropy = 100_000 * -(0.05 * math.log2(0.05) + 0.95 * math.log2(0.95))
    assert huffman_position_bits(positions) > 0.99 * entropy
