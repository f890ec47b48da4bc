"""The contract of every compression: one item a class and fact, with all its settings inside."""

import pytest
import torch
from cases import case
from compression_cases import CASES, CLASSES
from problems import F64, randn

from nncompress.compressions.base import distance_sq
from nncompress.errors import Diverged
from nncompress.experiment import checkpoint

PENALTIES = {"L0Penalty", "L1Penalty", "LHalfPenalty", "TransformedL1Penalty"}
"""Their proximal operator shrinks again."""

every = pytest.mark.parametrize("cases", CLASSES)
with_a_set = pytest.mark.parametrize("cases", [param for param in CLASSES if param.id not in PENALTIES])
with_an_exact_case = pytest.mark.parametrize("cases", [p for p in CLASSES if any(c.exact for c in p.values[0])])


def objective(compression, w, theta, mu):
    """mu/2 ‖w - Δ(Θ)‖² + C(Θ)."""
    return mu / 2 * float(distance_sq(w, compression.decompress(theta))) + float(compression.penalty(theta))


@every
def test_decompress_has_the_shape_dtype_and_device_of_w_is_finite_and_w_is_unchanged(cases):
    for name, compression, shape, _ in cases:
        zeros, ones = torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64)
        for kind, weights in {"normal": randn(*shape), "tiny": 1e-30 * randn(*shape), "0": zeros, "1": ones}.items():
            for dtype in (torch.float32, F64):
                with case(name=name, weights=kind, dtype=dtype):
                    w = weights.to(dtype)
                    before = w.clone()
                    rebuilt = compression.decompress(compression.compress(w))
                    assert (rebuilt.shape, rebuilt.dtype, rebuilt.device) == (w.shape, dtype, w.device)
                    assert torch.isfinite(rebuilt).all()
                    assert torch.equal(w, before)
                    assert not rebuilt.requires_grad


@every
def test_theta_shares_no_memory_with_w_tracks_no_gradient_and_is_rebuilt_from_its_parts(cases):
    for name, compression, shape, _ in cases:
        with case(name=name):
            w = randn(*shape)
            theta = compression.compress(w)
            before = compression.decompress(theta).clone()
            w.zero_()
            assert torch.equal(compression.decompress(theta), before)
            other = compression.compress(randn(*shape, seed=1).requires_grad_())
            assert not compression.decompress(other).requires_grad
            assert hasattr(type(theta), "_fields")
            rebuilt = checkpoint.unpack(other, checkpoint.pack(theta))
            assert torch.equal(compression.decompress(rebuilt), before)
            assert compression.bits(theta) >= compression.num_params(theta) >= 0
            assert compression.huffman_bits(theta) >= 0
            compression.check(shape)


@with_a_set
def test_projection_on_a_set_is_idempotent(cases):
    seen = 0
    for name, compression, shape, exact in cases:
        first = compression.compress(randn(*shape))
        if float(compression.penalty(first)) > 0:
            continue
        seen += 1
        with case(name=name):
            once = compression.decompress(first)
            twice = compression.decompress(compression.compress(once, start=first))
            torch.testing.assert_close(twice, once, rtol=0, atol=1e-7)
            if exact:
                torch.testing.assert_close(compression.decompress(compression.compress(once)), once, rtol=0, atol=1e-7)
    assert seen > 0


@every
def test_never_worse_than_a_feasible_start(cases):
    for name, compression, shape, _ in cases:
        for seed, mu in enumerate((0.3, 1.0, 20.0) * 2):
            with case(name=name, mu=mu, seed=seed):
                start = compression.compress(randn(*shape, seed=seed), mu)
                w = compression.decompress(start) + 0.05 * randn(*shape, seed=100 + seed)
                theta = compression.compress(w, mu, start)
                before = objective(compression, w, start, mu)
                assert objective(compression, w, theta, mu) <= before * (1 + 1e-12) + 1e-14


@with_an_exact_case
def test_exact_projections_are_never_beaten_by_feasible_points(cases):
    for name, compression, shape, exact in cases:
        if not exact:
            continue
        w = randn(*shape)
        for mu in (0.5, 4.0):
            best = objective(compression, w, compression.compress(w, mu), mu)
            for seed in range(16):  # half of the points are near
                with case(name=name, mu=mu, seed=seed):
                    other = compression.compress(w + (0.1, 1.0)[seed % 2] * randn(*shape, seed=seed), mu)
                    assert objective(compression, w, other, mu) >= best - 1e-12


def test_weights_that_are_not_finite_are_refused():
    for param in CASES:
        compression, shape, _ = param.values
        w = randn(*shape)
        w.view(-1)[1], w.view(-1)[3] = torch.nan, torch.inf
        with case(name=param.id), pytest.raises(Diverged, match=f"1 NaN and 1 infinite of {w.numel()} entries"):
            compression.compress(w)
