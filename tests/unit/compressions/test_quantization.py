"""Quantised weights: the card's numbers, brute force, storage."""

import itertools
import math

import pytest
import torch
from cases import case
from problems import F64, randn

from nncompress.compressions.plan import Plan
from nncompress.compressions.quantization import codes
from nncompress.compressions.quantization import fixed as quantization
from nncompress.compressions.quantization.codebook import Codebook, codebook
from nncompress.compressions.quantization.fixed import (
    FixedCodebook,
    Quantization,
    ScaledBinary,
    ScaledCodebook,
    ScaledTernary,
    binary,
    fixed_codebook,
    power_entries,
    powers_of_two,
    scaled_binary,
    scaled_ternary,
    ternary,
)
from nncompress.compressions.quantization.uniform import FORMATS, LowPrecision, Uniform, low_precision, uniform

V = torch.tensor([-1.1, -0.9, -0.2, 0.05, 0.3, 0.8, 1.2, 1.3], dtype=F64)
BINARY, TERNARY = FixedCodebook((-1.0, 1.0)), FixedCodebook((-1.0, 0.0, 1.0))


def error(compression, w) -> float:
    return float((w - compression.decompress(compression.compress(w))).square().sum())


def test_errors_and_values_by_hand():
    for compression, expected in (
        (Codebook(1), 5.659688), (Codebook(2), 1.526875), (Codebook(3), 0.285), (Codebook(4), 0.15),
        (BINARY, 2.2225), (ScaledBinary(), 1.644688), (TERNARY, 0.3225), (ScaledTernary(), 0.3045),
        (ScaledCodebook((-1.0, 1.0)), 1.644688), (ScaledCodebook((-1.0, 0.0, 1.0)), 0.3045),
        (Uniform(1), 1.644688), (Uniform(2), 0.3045),
    ):  # fmt: skip
        for dtype in (F64, torch.float32):
            with case(compression=compression, dtype=dtype):
                assert error(compression, V.to(dtype)) == pytest.approx(expected, abs=1e-6)
    assert Codebook(2).compress(V).table[0].tolist() == pytest.approx([-0.5375, 0.9])
    assert Codebook(3).compress(V).table[0].tolist() == pytest.approx([-1, 0.05, 1.1])
    assert Codebook(4).compress(V).table[0].tolist() == pytest.approx([-1, 0.05, 0.8, 1.25])
    assert ScaledBinary().compress(V).table.item() == pytest.approx(0.73125)
    dense = ScaledTernary().decompress(ScaledTernary().compress(V))
    assert dense.tolist() == pytest.approx([-1.06, -1.06, 0, 0, 0, 1.06, 1.06, 1.06])


def test_no_codebook_of_few_weights_is_better():
    for K, seed in itertools.product((1, 2, 3), range(2)):
        with case(K=K, seed=seed):
            w = randn(7, seed=seed).round(decimals=1)
            sums = []
            for chosen in itertools.product(range(K), repeat=6):
                parts = [[x for x, k in zip(w.tolist(), (0, *chosen), strict=True) if k == j] for j in range(K)]
                sums.append(sum(sum((x - sum(part) / len(part)) ** 2 for x in part) for part in parts))
            assert error(Codebook(K), w) == pytest.approx(min(sums), abs=1e-12)


EVERY = [
    Codebook(2), Codebook(40), BINARY, TERNARY, ScaledBinary(), ScaledTernary(), ScaledCodebook((0.5, 1.0)),
    Uniform(1), Uniform(4), Uniform(4, symmetric=False), Uniform(16, symmetric=False), LowPrecision("bfloat16"),
]  # fmt: skip


def test_zeros_constants_and_single_weights_are_taken():
    for compression, dtype in itertools.product(EVERY, (F64, torch.float32)):
        ws = torch.zeros(5, dtype=dtype), torch.full((3, 2), -0.5, dtype=dtype), torch.full((1,), 2.0, dtype=dtype)
        for w in ws:
            with case(compression=compression, w=w):
                dense = compression.decompress(compression.compress(w))
                assert (dense.shape, dense.dtype) == (w.shape, dtype)
                assert dense.isfinite().all()
                if compression not in (BINARY, TERNARY) and not isinstance(compression, ScaledCodebook):
                    torch.testing.assert_close(dense, w, rtol=1e-6, atol=1e-12)


def test_few_thresholds_are_passed_like_many(monkeypatch):
    for count, few in ((3, 0), (3, 1000), (40, 0), (40, 1000), (255, 0), (255, 1000), (256, 0), (300, 0)):
        with case(count=count, few=few):
            rows = randn(4, 200).round(decimals=1)
            thresholds = randn(4, count, seed=1).round(decimals=1).sort(1).values
            monkeypatch.setattr(codes, "FEW", few)
            found = codes.digitize(rows, thresholds)
            assert torch.equal(found.long(), (rows[:, :, None] >= thresholds[:, None]).sum(2))
            assert found.dtype == (torch.uint8 if count <= 255 else torch.int32)


def test_a_large_codebook_with_a_scale_for_each_channel_takes_the_nearest_entries():
    entries = tuple(torch.linspace(-1, 1, 41, dtype=F64).tolist())
    w, compression = randn(3, 60), ScaledCodebook(entries, per_channel=True)
    theta = compression.compress(w)
    distances = (w[:, :, None] - compression.levels(theta.table)[:, None]).abs().amin(2)
    torch.testing.assert_close((w - compression.decompress(theta)).abs(), distances, rtol=0, atol=1e-14)


def test_codebooks_of_several_weights_are_those_of_each_alone():
    ws, compression = [randn(3, 50, seed=seed) for seed in range(4)], Codebook(5, per_channel=True)
    for w, theta in zip(ws, compression.project_many(ws, 1.0, [None] * 4), strict=True):
        alone = compression.compress(w)
        assert torch.equal(theta.codes, alone.codes)
        torch.testing.assert_close(theta.table, alone.table, rtol=0, atol=1e-12)


def test_integers_times_the_scale_are_the_levels():
    for symmetric in (True, False):
        with case(symmetric=symmetric):
            compression, w = Uniform(5, symmetric, per_channel=True), randn(3, 100)
            theta = compression.compress(w)
            looked_up = compression.levels(theta.table).gather(1, theta.codes.long())
            torch.testing.assert_close(compression.decompress(theta), looked_up, rtol=0, atol=1e-15)


def test_powers_of_two_by_hand_and_by_the_closed_form():
    compression = FixedCodebook(power_entries(3))
    w = torch.tensor([0.9, 0.76, 0.74, 0.3, 0.19, 0.18, 0.06, 0.03, -0.4], dtype=F64)
    expected = [1, 1, 0.5, 0.25, 0.25, 0.125, 0, 0, -0.5]
    assert compression.decompress(compression.compress(w)).tolist() == expected
    v = randn(500)
    dense = compression.decompress(compression.compress(v))
    for value, found in zip(v.tolist(), dense.tolist(), strict=True):
        f = -math.log2(abs(value))
        size = 0.0 if f > 4 else 1.0 if f <= 0 else 0.125 if f > 3 else 2.0 ** -math.floor(f + math.log2(1.5))
        assert found == math.copysign(size, value) or size == found == 0


def test_ties_go_away_from_zero_and_the_sign_of_zero_is_one():
    w = torch.tensor([0.0, 0.5, -0.5], dtype=F64)
    assert BINARY.decompress(BINARY.compress(w)).tolist() == [1, 1, -1]
    assert TERNARY.decompress(TERNARY.compress(w)).tolist() == [0, 1, -1]
    assert ScaledBinary().compress(w[:1]).codes.tolist() == [1]


def test_scaled_codebooks_beat_every_assignment():
    for entries in ((-1.0, 1.0), (-1.0, 0.0, 1.0), (-2.0, 0.5, 1.0), (0.0, 1.0), (1.0, 3.0)):
        chosen = torch.tensor(list(itertools.product(entries, repeat=6)), dtype=F64)
        for seed in range(6):
            with case(entries=entries, seed=seed):
                w = randn(6, seed=seed)
                won = (chosen @ w).square() / chosen.square().sum(1)  # by the best scale of each assignment
                best = float(w @ w - won.nan_to_num().max())
                assert error(ScaledCodebook(entries), w) == pytest.approx(best, abs=1e-10)


def test_many_weights_are_fitted_from_several_scales_nearly_as_well(monkeypatch):
    for size, unit in ((1.0, 1.0), (1e-2, 1.0), (1.0, 1e-3)):
        with case(size=size, unit=unit):
            w = size * randn(4, 500)
            compression = ScaledCodebook(tuple(unit * k for k in (-2.0, -1.0, 0.0, 1.0, 2.0)), per_channel=True)
            exact = error(compression, w)
            with monkeypatch.context() as patch:
                patch.setattr(quantization, "MAX_BREAKPOINTS", 0)
                assert (1 - 1e-12) * exact <= error(compression, w) <= 1.02 * exact


def test_scaled_signs_equal_the_scaled_codebook():
    for compression, entries in ((ScaledBinary(), (-1.0, 1.0)), (ScaledTernary(), (-1.0, 0.0, 1.0))):
        for seed in range(10):
            with case(compression=compression, seed=seed):
                w = randn(50, seed=seed).round(decimals=1)
                assert error(compression, w) == pytest.approx(error(ScaledCodebook(entries), w), abs=1e-10)


def test_channels_have_tables_of_their_own():
    w = randn(5, 40)
    for make, settings in {
        Codebook: (3,), ScaledBinary: (), ScaledTernary: (), Uniform: (3,), ScaledCodebook: ((-2.0, 0.0, 1.0),),
    }.items():  # fmt: skip
        whole, alone = make(*settings, per_channel=True), make(*settings)
        dense = whole.decompress(whole.compress(w))
        for row, found in zip(w, dense, strict=True):
            with case(make=make):
                expected = alone.decompress(alone.compress(row))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_uniform_grids_are_uniform_and_better_than_the_full_range():
    w = randn(2000)
    for symmetric, b in itertools.product((True, False), (2, 3, 4, 8)):
        with case(symmetric=symmetric, b=b):
            compression = Uniform(b, symmetric)
            theta = compression.compress(w)
            levels = compression.levels(theta.table)[0]
            assert len(levels) == 2**b - symmetric
            torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(len(levels) - 1), rtol=0, atol=1e-12)
            low, high = (-w.abs().max(), w.abs().max()) if symmetric else (w.min(), w.max())
            grid = torch.linspace(float(low), float(high), len(levels), dtype=F64)
            assert error(compression, w) <= float((w[:, None] - grid).abs().amin(1).square().sum())
            assert compression.bits(theta) == 2000 * b + 32 * (1 if symmetric else 2)


def test_uniform_never_loses_to_its_start_over_many_steps():
    compression, w = Uniform(3, symmetric=False), randn(300)
    theta, errors = None, []
    for _ in range(8):
        theta = compression.compress(w, start=theta)
        errors.append(float((w - compression.decompress(theta)).square().sum()))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))


def test_low_precision_takes_the_nearest_number_of_its_format():
    w = torch.cat([randn(300), 1e-3 * randn(50, seed=1), torch.tensor([1e6, -1e6, 0.0], dtype=F64)])
    for name, dtype in FORMATS.items():
        with case(name=name):
            compression, bits = LowPrecision(name), 8 if "float8" in name else 16
            numbers = torch.arange(2**bits, dtype=torch.int32).to(torch.uint8 if bits == 8 else torch.int16)
            every = numbers.view(dtype).double()
            every = every[every.isfinite()].unique()
            theta = compression.compress(w)
            k = torch.searchsorted(every, w).clamp(1, len(every) - 1)
            best = torch.minimum((w - every[k - 1]).abs(), (w - every[k]).abs())
            torch.testing.assert_close((w - compression.decompress(theta)).abs(), best, rtol=1e-6, atol=0)
            assert compression.bits(theta) == w.numel() * bits


LENET300 = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}


def test_storage_of_lenet300():
    w = {  # of 64 values, for K-means to be fast
        name: torch.randint(64, shape, generator=torch.Generator().manual_seed(0)).float() - 32
        for name, shape in LENET300.items()
    }
    for recipe, settings, ratio in (
        (codebook, {"K": 2}, 30.52), (codebook, {"K": 3}, 15.63), (codebook, {"K": 4}, 15.63),
        (codebook, {"K": 8}, 10.50), (codebook, {"K": 16}, 7.90), (codebook, {"K": 32}, 6.33),
        (codebook, {"K": 64}, 5.28), (binary, {}, 30.54), (scaled_ternary, {}, 15.64), (ternary, {}, 15.64),
    ):  # fmt: skip
        with case(recipe=recipe.__name__, **settings):
            plan: Plan = recipe(w, layers="all", **settings)
            bits = plan.bits(plan.compress(plan.select(w))) + 32 * 410
            assert 8_531_520 / bits == pytest.approx(ratio, abs=0.0051)
            assert settings != {"K": 2} or bits == 279_512


def test_tables_are_of_a_layer_a_channel_or_all_layers():
    w = {"a.weight": randn(4, 6), "b.weight": randn(3, 4, seed=1), "out.weight": randn(2, 3)}
    for recipe in (codebook, scaled_binary, scaled_ternary, uniform):
        with case(recipe=recipe.__name__):
            plans = {per: recipe(w, per=per) for per in ("layer", "channel", "shared")}
            tables = {per: [len(t.table) for t in plan.compress(plan.select(w))] for per, plan in plans.items()}
            assert tables == {"layer": [1, 1], "channel": [4, 3], "shared": [1]}


def test_huffman_estimate_of_codes_by_hand():
    theta = TERNARY.compress(torch.tensor([0.0, 0, 0, 0, 1, 1, -1, 0], dtype=F64))
    assert TERNARY.bits(theta) == 16
    assert TERNARY.huffman_bits(theta) == 5 + 2 * 2 + 2 + 3 * 8
    assert isinstance(TERNARY, Quantization)


def test_large_codes_take_more_than_a_byte():
    theta = Uniform(9).compress(randn(10_000))
    assert theta.codes.dtype == torch.int32
    assert int(theta.codes.max()) > 255
    assert Uniform(8).compress(randn(100)).codes.dtype == torch.uint8


def test_settings_out_of_range_are_refused():
    for number, make in enumerate((
        lambda: Codebook(0), lambda: Uniform(0), lambda: Uniform(17), lambda: LowPrecision("float4"),
        lambda: FixedCodebook(()), lambda: FixedCodebook((1.0, 1.0)), lambda: ScaledCodebook((0.0,)),
        lambda: power_entries(-1), lambda: power_entries(200),
        lambda: fixed_codebook({"a": randn(2, 2)}, per="channel", layers="all"),
        lambda: powers_of_two({"a": randn(2, 2)}, C=-1, layers="all"),
        lambda: codebook({"a": randn(2, 2)}, per="row", layers="all"),
        lambda: fixed_codebook({"a": randn(2, 2)}, entries=[2, 1], layers="all"),
        lambda: low_precision({"a": randn(2, 2)}, format="half", layers="all"),
    )):  # fmt: skip
        with case(number=number), pytest.raises(ValueError, match="found"):
            make()


def test_a_codebook_larger_than_its_weights_is_clipped_and_said():
    plan = codebook({"a": randn(2, 3)}, K=9, layers="all")
    assert plan.clipped() == ["a: K 9 is above the 6 weights of a codebook, 6 is used"]
    assert plan.compress(plan.select({"a": randn(2, 3)}))[0].table.shape == (1, 6)
