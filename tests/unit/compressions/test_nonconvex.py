"""The square-root and the transformed l1 penalties: closed forms, thresholds, brute force, limits."""

import itertools
import math

import pytest
import torch
from cases import case
from problems import F64, randn

from nncompress.compressions.sparsity.magnitude import Sparse
from nncompress.compressions.sparsity.nonconvex import (
    LHalfPenalty,
    TransformedL1Penalty,
    half_threshold,
    transformed_l1_threshold,
)

LEVELS = (1e-3, 0.05, 0.3, 1.0, 7.0)
SHAPES = (0.01, 0.4, 1.0, 5.0, 300.0)
COMPRESSIONS = [
    *(LHalfPenalty(alpha) for alpha in (1e-3, 0.2, 3.0)),
    *(TransformedL1Penalty(alpha, a) for alpha, a in itertools.product((1e-3, 0.2, 3.0), SHAPES)),
]
SETTINGS = [(compression, mu) for compression in COMPRESSIONS for mu in (0.07, 1.0, 40.0)]


def vector(*entries):
    return torch.tensor(entries, dtype=F64)


def cost(compression, x):
    """alpha times the penalty of each entry, written out anew."""
    x = x.double().abs()
    if isinstance(compression, LHalfPenalty):
        return compression.alpha * x.pow(0.5)
    return compression.alpha * (compression.a + 1) * x / (compression.a + x)


def threshold(compression, mu):
    """As published: Xu et al. (2012) with λ = 2 alpha / mu, Zhang and Xin (2017) with λ = alpha / mu."""
    level = compression.alpha / mu
    if isinstance(compression, LHalfPenalty):
        return 54 ** (1 / 3) / 4 * (2 * level) ** (2 / 3)
    a = compression.a
    return level * (a + 1) / a if level <= a**2 / (2 * (a + 1)) else math.sqrt(2 * level * (a + 1)) - a / 2


def projected(compression, w, mu):
    return compression.decompress(compression.compress(w, mu))


def test_no_point_of_a_fine_grid_is_better():
    for compression, mu in SETTINGS:
        with case(compression=compression, mu=mu):
            t = threshold(compression, mu)
            w = torch.cat([t * vector(0, 0.3, 0.9, 0.999, 1.001, 1.1, 2, 10), randn(6)])
            w = torch.cat([w, -w])
            grid = torch.linspace(-0.1, 1.1, 6001, dtype=F64)[:, None] * w
            grid = torch.cat([grid, torch.zeros_like(w)[None]])
            best = (mu / 2 * (grid - w).square() + cost(compression, grid)).amin(dim=0)
            x = projected(compression, w, mu)
            found = mu / 2 * (x - w).square() + cost(compression, x)
            assert ((found - best) <= 1e-14 * (mu / 2 * w.square())).all()


def test_zero_up_to_the_published_threshold_and_not_beyond():
    for compression, mu in SETTINGS:
        with case(compression=compression, mu=mu):
            t = threshold(compression, mu)
            below, above = projected(compression, t * vector(1 - 1e-12, 1 + 1e-9), mu)
            assert below == 0
            assert above > 0


def test_odd_nondecreasing_and_shrinking():
    for compression in COMPRESSIONS:
        with case(compression=compression):
            t = threshold(compression, 1.0)
            w = torch.cat([torch.linspace(0, 4, 999, dtype=F64) * t, torch.linspace(0, 50, 999, dtype=F64)])
            w = w.sort().values
            x = projected(compression, w, 1.0)
            assert torch.equal(projected(compression, -w, 1.0), -x)
            assert (x <= w).all()
            assert (x.diff() >= -1e-14 * w[1:]).all()


def test_half_thresholding_jumps_to_two_thirds_of_the_threshold():
    for level in LEVELS:
        with case(level=level):
            t = 1.5 * level ** (2 / 3)
            after = float(half_threshold(vector(t * (1 + 1e-10)), level))
            assert after == pytest.approx(level ** (2 / 3), rel=1e-9)
            assert after == pytest.approx(2 / 3 * t, rel=1e-9)


def test_transformed_l1_rises_from_zero_below_the_critical_level_and_jumps_above():
    for a, part in itertools.product(SHAPES, (0.01, 0.5, 0.9)):
        with case(a=a, part=part):
            level = part * a**2 / (2 * (a + 1))
            t = level * (a + 1) / a
            slope = 1 / (1 - 2 * level * (a + 1) / a**2)  # of the result in |v|, at the threshold
            after = float(transformed_l1_threshold(vector(t * (1 + 1e-6)), level, a))
            assert after == pytest.approx(slope * 1e-6 * t, rel=1e-3)
    for a, times in itertools.product(SHAPES, (1.1, 2.0, 50.0)):
        with case(a=a, times=times):
            level = times * a**2 / (2 * (a + 1))
            root = math.sqrt(2 * level * (a + 1))
            after = float(transformed_l1_threshold(vector((root - a / 2) * (1 + 1e-10)), level, a))
            assert after == pytest.approx(root - a, rel=1e-6)


def test_minimisers_by_hand():
    # x = 4: v = x + 4 / (2 sqrt(x)) = 5, above 3/2 4^(2/3) = 3.78
    torch.testing.assert_close(half_threshold(vector(5, -5, 3.77), 4.0), vector(4, -4, 0), rtol=1e-15, atol=0)
    # x = 1, a = 1: v = x + 0.5 * 2 / (1 + x)² = 1.25, above sqrt(2) - 1/2 = 0.914
    found = transformed_l1_threshold(vector(1.25, -1.25, 0.91), 0.5, 1.0)
    torch.testing.assert_close(found, vector(1, -1, 0), rtol=1e-15, atol=0)


def test_a_tie_gives_zero():
    assert half_threshold(vector(1.5, -1.5), 1.0).tolist() == [0, 0]  # 1 is as good
    assert transformed_l1_threshold(vector(3.5, -3.5), 4.0, 1.0).tolist() == [0, 0]  # 3 is as good
    assert half_threshold(vector(1.5).float(), 1.0).tolist() == [0]
    assert transformed_l1_threshold(vector(3.5).float(), 4.0, 1.0).tolist() == [0]


def test_in_low_precision_never_worse_than_zero_next_to_the_threshold():
    for compression, dtype in itertools.product(COMPRESSIONS, (torch.float32, torch.bfloat16, torch.float16)):
        with case(compression=compression, dtype=dtype):
            v = [torch.tensor(threshold(compression, 1.0), dtype=dtype)]
            for _ in range(8):
                v = [torch.nextafter(v[0], torch.zeros_like(v[0])), *v, torch.nextafter(v[-1], 2 * v[-1])]
            w = torch.stack(v)
            x = projected(compression, w, 1.0)
            assert x.dtype == dtype
            assert x.count_nonzero() in (8, 9)
            u, x = w.double(), x.double()
            gain = x * (u - x / 2) - cost(compression, x)  # objective of 0 less that of x, without cancellation
            assert (gain >= -1e-15 * u.square()).all()


def test_what_rounding_makes_worse_than_zero_is_zero():
    level = (2 / 3 * (1 - 1e-8)) ** 1.5  # the threshold is next below 1, where x = 2/3
    assert float(half_threshold(vector(1), level)) == pytest.approx(2 / 3)
    assert half_threshold(torch.ones(1, dtype=torch.bfloat16), level).tolist() == [0]
    level = (1.2 - 1e-8) ** 2 / 2.8  # and here, with a = 0.4, x = 0.8
    assert float(transformed_l1_threshold(vector(1), level, 0.4)) == pytest.approx(0.8)
    assert transformed_l1_threshold(torch.ones(1, dtype=torch.bfloat16), level, 0.4).tolist() == [0]


def test_float32_gives_the_minimiser_of_float64_rounded():
    w = randn(500, dtype=torch.float32)
    for compression in COMPRESSIONS:
        with case(compression=compression):
            assert torch.equal(projected(compression, w, 1.0), projected(compression, w.double(), 1.0).float())


def test_without_a_penalty_the_weights_stay_as_they_are():
    free = (LHalfPenalty(0.0), TransformedL1Penalty(0.0), TransformedL1Penalty(0.0, 0.01))
    for compression, dtype in itertools.product(free, (F64, torch.float32, torch.bfloat16)):
        with case(compression=compression, dtype=dtype):
            w = torch.cat([randn(20, dtype=dtype), torch.zeros(2, dtype=dtype)])
            assert torch.equal(projected(compression, w, 0.3), w)


def test_large_a_is_soft_and_small_a_is_hard_thresholding():
    w = 3 * randn(200)
    soft = w.sign() * (w.abs() - 0.4).clamp_min(0)
    torch.testing.assert_close(transformed_l1_threshold(w, 0.4, 1e8), soft, rtol=0, atol=1e-7)
    torch.testing.assert_close(transformed_l1_threshold(w, 0.4, 1e15), soft, rtol=0, atol=1e-14)
    hard = torch.where(w.abs() > math.sqrt(2 * 0.4), w, 0.0)
    torch.testing.assert_close(transformed_l1_threshold(w, 0.4, 1e-8), hard, rtol=0, atol=1e-7)
    assert torch.equal(transformed_l1_threshold(w, 0.4, 1e-100), hard)


def test_penalties_by_hand():
    theta = Sparse(torch.tensor([0, 2]), vector(4, -9), (3,))
    assert float(LHalfPenalty(0.3).penalty(theta)) == pytest.approx(0.3 * (2 + 3), rel=1e-15)
    assert float(TransformedL1Penalty(0.3, 1.0).penalty(theta)) == pytest.approx(0.3 * 2 * (4 / 5 + 9 / 10), rel=1e-15)
    assert float(TransformedL1Penalty(0.3, 6.0).penalty(theta)) == pytest.approx(0.3 * 7 * (0.4 + 0.6), rel=1e-15)
    assert float(TransformedL1Penalty(1.0, 5.0).penalty(Sparse(torch.arange(1), vector(1), (1,)))) == 1


def test_extreme_levels_and_weights_give_finite_numbers():
    w = vector(0, 1e-300, 1e-30, 1e-3, 1, 1e30, 1e150)
    for level in (1e-300, 1e-30, 1.0, 1e30, math.inf):
        for x in (half_threshold(w, level), *(transformed_l1_threshold(w, level, a) for a in (1e-100, 1.0, 1e100))):
            assert torch.isfinite(x).all()
            assert ((x >= 0) & (x <= w)).all()
            assert level < math.inf or x.count_nonzero() == 0


def test_numbers_that_are_not_finite_stay():
    v = vector(math.nan, math.inf, -math.inf)
    for x in (half_threshold(v, 0.3), transformed_l1_threshold(v, 0.3, 2.0)):
        assert torch.equal(torch.nan_to_num(x), torch.nan_to_num(v))
        assert x[0].isnan()


def test_settings_out_of_range_are_refused():
    for number, make in enumerate((
        lambda: LHalfPenalty(-1.0), lambda: LHalfPenalty(math.nan), lambda: LHalfPenalty(math.inf),
        lambda: TransformedL1Penalty(-1.0), lambda: TransformedL1Penalty(math.inf, 1.0),
        lambda: TransformedL1Penalty(1.0, 0.0), lambda: TransformedL1Penalty(1.0, -2.0),
        lambda: TransformedL1Penalty(1.0, math.nan), lambda: TransformedL1Penalty(1.0, math.inf),
    )):  # fmt: skip
        with case(number=number), pytest.raises(ValueError, match=r"must be .* found"):
            make()
