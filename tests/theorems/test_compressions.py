"""The contract of every compression, and the numbers of each."""

import itertools
import math

import pytest
import tensorly as tl
import torch
from compression_cases import CASES
from problems import F64, randn
from tensorly.decomposition import tensor_train

from nncompress import checkpoint
from nncompress.compressions.base import distance_sq
from nncompress.compressions.tensor_train import TensorTrain, balanced_modes, tt_ranks
from nncompress.errors import Diverged


def low_rank_train(shape: tuple[int, ...], rank: int, seed: int = 0) -> torch.Tensor:
    """A tensor of exact TT rank `rank`."""
    ranks = (1, *tt_ranks(shape, rank))
    cores = [randn(ranks[k], n, ranks[k + 1], seed=seed + k) for k, n in enumerate(shape)]
    return torch.from_numpy(tl.tt_to_tensor([core.numpy() for core in cores]))


every = pytest.mark.parametrize(("compression", "shape", "exact"), CASES)


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_decompress_has_the_shape_dtype_and_device_of_w_and_w_is_unchanged(compression, shape, exact, dtype):
    w = randn(*shape, dtype=dtype)
    before = w.clone()
    rebuilt = compression.decompress(compression.compress(w))
    assert rebuilt.shape == w.shape
    assert rebuilt.dtype == dtype
    assert rebuilt.device == w.device
    assert torch.equal(w, before)
    assert not rebuilt.requires_grad


@every
def test_theta_shares_no_memory_with_w_and_tracks_no_gradient(compression, shape, exact):
    w = randn(*shape)
    theta = compression.compress(w)
    before = compression.decompress(theta).clone()
    w.zero_()
    assert torch.equal(compression.decompress(theta), before)
    assert not compression.decompress(compression.compress(randn(*shape).requires_grad_())).requires_grad


def objective(compression, w, theta, mu=1.0):
    """mu/2 ‖w - Δ(Θ)‖² + C(Θ)."""
    return mu / 2 * float(distance_sq(w, compression.decompress(theta))) + float(compression.penalty(theta))


@every
def test_projection_on_a_set_is_idempotent(compression, shape, exact):
    first = compression.compress(randn(*shape))
    if float(compression.penalty(first)) > 0:
        return  # the proximal operator of a penalty shrinks again
    once = compression.decompress(first)
    twice = compression.decompress(compression.compress(once, start=first))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-7)
    if exact:
        torch.testing.assert_close(compression.decompress(compression.compress(once)), once, rtol=0, atol=1e-7)


@every
@pytest.mark.parametrize("mu", [0.3, 1.0, 20.0])
def test_never_worse_than_a_feasible_start(compression, shape, exact, mu):
    for seed in range(10):
        start = compression.compress(randn(*shape, seed=seed), mu)
        w = compression.decompress(start) + 0.05 * randn(*shape, seed=100 + seed)
        theta = compression.compress(w, mu, start)
        before = objective(compression, w, start, mu)
        assert objective(compression, w, theta, mu) <= before * (1 + 1e-12) + 1e-14


@every
@pytest.mark.parametrize("mu", [0.5, 4.0])
def test_exact_projections_are_never_beaten_by_feasible_points(compression, shape, exact, mu):
    if not exact:
        return
    w = randn(*shape)
    best = objective(compression, w, compression.compress(w, mu), mu)
    for seed in range(100):
        other = compression.compress(w + randn(*shape, seed=seed), mu)
        assert objective(compression, w, other, mu) >= best - 1e-12


@every
def test_theta_is_rebuilt_from_its_parts_and_its_counts_are_sound(compression, shape, exact):
    w = randn(*shape)
    theta = compression.compress(w)
    assert hasattr(type(theta), "_fields")
    rebuilt = checkpoint.unpack(compression.compress(randn(*shape, seed=1)), checkpoint.pack(theta))
    assert torch.equal(compression.decompress(rebuilt), compression.decompress(theta))
    assert compression.bits(theta) >= compression.num_params(theta) >= 0
    assert compression.huffman_bits(theta) >= 0
    compression.check(shape)


@every
def test_weights_that_are_not_finite_are_refused(compression, shape, exact):
    w = randn(*shape)
    w.view(-1)[1], w.view(-1)[3] = torch.nan, torch.inf
    with pytest.raises(Diverged, match=f"1 NaN and 1 infinite of {w.numel()} entries"):
        compression.compress(w)


@every
def test_degenerate_weights_are_compressed(compression, shape, exact):
    for w in (torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64), 1e-30 * randn(*shape)):
        assert torch.isfinite(compression.decompress(compression.compress(w))).all()


@pytest.mark.parametrize("shape", [(4, 4, 4, 4), (3, 5, 2, 4, 3), (6, 22, 34, 2, 2), (2, 3, 50), (50, 3, 2), (40, 30)])
@pytest.mark.parametrize("rank", [1, 2, 5, 13])
def test_tt_step_equals_plain_tt_svd(shape, rank):
    w = randn(*shape, seed=rank)
    ranks = [1, *tt_ranks(shape, rank)]
    plain = torch.from_numpy(tl.tt_to_tensor(tensor_train(w.numpy(), rank=ranks)))
    ours = TensorTrain(rank).decompress(TensorTrain(rank).compress(w))
    assert torch.linalg.vector_norm(ours - plain) <= 1e-6 * torch.linalg.vector_norm(plain)
    single = TensorTrain(rank).decompress(TensorTrain(rank).compress(w.float()))
    assert torch.linalg.vector_norm(single - plain) <= 1e-3 * torch.linalg.vector_norm(plain)


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4,) * 6, (7, 2, 9)])
def test_true_rank_tensors_are_recovered(shape):
    w = low_rank_train(shape, 3)
    rebuilt = TensorTrain(3).decompress(TensorTrain(3).compress(w))
    assert torch.linalg.vector_norm(rebuilt - w) <= 1e-7 * torch.linalg.vector_norm(w)


@pytest.mark.parametrize("scale", [1e-100, 1e-12, 1e100, 0.0])
def test_tt_step_is_finite_and_equivariant_for_tiny_huge_and_zero_weights(scale):
    shape = (6, 5, 4, 3)
    unit = TensorTrain(2).decompress(TensorTrain(2).compress(randn(*shape)))
    scaled = TensorTrain(2).decompress(TensorTrain(2).compress(scale * randn(*shape)))
    torch.testing.assert_close(scaled, scale * unit, rtol=1e-6, atol=1e-9 * scale)


def test_tt_step_keeps_its_accuracy_over_a_wide_spectrum():
    q1, q2 = torch.linalg.qr(randn(30, 30))[0], torch.linalg.qr(randn(40, 30, seed=1))[0]
    w = (q1 * torch.logspace(0, -9, 30, dtype=F64)) @ q2.T
    for rank in (5, 12, 20):
        rebuilt = TensorTrain(rank).decompress(TensorTrain(rank).compress(w))
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        assert torch.linalg.vector_norm(rebuilt - (u[:, :rank] * s[:rank]) @ v[:rank]) <= 1e-6


def test_tt_error_falls_with_the_rank_and_obeys_the_quasi_optimality_bound():
    w = randn(4, 4, 4, 4)
    errors = [
        float(torch.linalg.vector_norm(w - TensorTrain(r).decompress(TensorTrain(r).compress(w)))) for r in range(1, 17)
    ]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-12
    for r in (1, 2, 3, 5):
        tails = sum(float(torch.linalg.svdvals(w.reshape(4**k, -1))[r:].square().sum()) for k in (1, 2, 3))
        assert errors[r - 1] <= math.sqrt(tails) + 1e-12  # Oseledets, theorem 2.2


def test_two_modes_equal_the_truncated_svd():
    w = randn(9, 14)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    torch.testing.assert_close(TensorTrain(4).decompress(TensorTrain(4).compress(w)), (u[:, :4] * s[:4]) @ v[:4])


HAR_MODES = [(6, 22, 34, 2, 2, 2, 2, 2, 2, 2), (4,) * 10, (4,) * 10, (4,) * 9 + (2,)]


def tt_size(shape, rank):
    ranks = (1, *tt_ranks(shape, rank))
    return sum(ranks[k] * n * ranks[k + 1] for k, n in enumerate(shape))


def test_published_tt_sizes_and_ranks():
    assert [tt_size(shape, 80) for shape in HAR_MODES] == [243896, 100896, 100896, 87380]
    assert (1, *tt_ranks(HAR_MODES[0], 80)) == (1, 6, 80, 80, 64, 32, 16, 8, 4, 2, 1)
    assert (1, *tt_ranks(HAR_MODES[1], 80)) == (1, 4, 16, 64, 80, 80, 80, 64, 16, 4, 1)
    dense = [math.prod(shape) for shape in HAR_MODES]
    output = 512 * 6
    assert (sum(tt_size(s, 80) for s in HAR_MODES) + output) / (sum(dense) + output) == 0.16759738116197184
    ratios = {20: 0.015504, 40: 0.050230, 60: 0.104272, 100: 0.243297, 180: 0.508511, 260: 0.765294, 400: 1.0118}
    for rank, ratio in ratios.items():
        found = (sum(tt_size(s, rank) for s in HAR_MODES) + output) / (sum(dense) + output)
        assert found == pytest.approx(ratio, abs=1e-4)
    cnn = [(26, 26, 4, 4, 4, 4, 4, 2, 2, 2), (4,) * 10]
    for rank, size in {40: 84408, 80: 243800, 140: 578504, 220: 1175304, 300: 1848776}.items():
        assert sum(tt_size(shape, rank) for shape in cnn) == size
    assert sum(math.prod(shape) for shape in cnn) == 6_586_368
    assert tt_size((4,) * 9, 80) == 75_296  # the fifth layer of HAR-5


@pytest.mark.parametrize(
    ("shape", "modes"),
    [((256, 64), (4, 4, 4, 4, 4, 4, 4)), ((10, 300), (2, 5, 3, 4, 5, 5)), ((7, 13), (7, 13)), ((1, 4), (1, 4))],
)
def test_automatic_modes_are_balanced_factors_that_keep_rows_and_columns_apart(shape, modes):
    assert balanced_modes(shape) == modes
