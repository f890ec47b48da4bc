"""The contract of every compression, and the numbers of each."""

import itertools
import math

import pytest
import tensorly as tl
import torch
from tensorly.decomposition import tensor_train

from nncompress.compressions.plan import Plan, Task, each_layer, none
from nncompress.compressions.sparsity import L0, l0, position_bits
from nncompress.compressions.target import fit_ratio
from nncompress.compressions.tensor_train import TensorTrain, balanced_modes, tt, tt_matvec_macs, tt_ranks
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector
from nncompress.errors import ConfigError

F64 = torch.float64


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def low_rank_train(shape: tuple[int, ...], rank: int, seed: int = 0) -> torch.Tensor:
    """A tensor of exact TT rank `rank`."""
    ranks = (1, *tt_ranks(shape, rank))
    cores = [randn(ranks[k], n, ranks[k + 1], seed=seed + k) for k, n in enumerate(shape)]
    return torch.from_numpy(tl.tt_to_tensor([core.numpy() for core in cores]))


# (compression, shape of w, whether Π is exact)
CASES = [
    pytest.param(TensorTrain(3), (4, 3, 5, 2), False, id="tt"),
    pytest.param(TensorTrain(100), (4, 3, 5), False, id="tt-full"),
    pytest.param(TensorTrain(2), (6, 7), True, id="tt-matrix"),
    pytest.param(TensorTrain(1), (5,), True, id="tt-vector"),
    pytest.param(L0(0.3), (5, 4), True, id="l0-fraction"),
    pytest.param(L0(7), (20,), True, id="l0-count"),
    pytest.param(L0(0), (6,), True, id="l0-nothing"),
    pytest.param(L0(1.0), (6,), True, id="l0-all"),
]
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


@every
def test_projection_is_idempotent(compression, shape, exact):
    once = compression.decompress(compression.compress(randn(*shape)))
    twice = compression.decompress(compression.compress(once))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-7)


@every
def test_never_worse_than_a_feasible_start(compression, shape, exact):
    for seed in range(20):
        start = compression.compress(randn(*shape, seed=seed))
        w = compression.decompress(start) + 0.05 * randn(*shape, seed=100 + seed)
        theta = compression.compress(w, start=start)
        error = torch.linalg.vector_norm(w - compression.decompress(theta))
        assert error <= torch.linalg.vector_norm(w - compression.decompress(start))


@every
def test_exact_projections_are_never_beaten_by_feasible_points(compression, shape, exact):
    if not exact:
        return
    w = randn(*shape)
    best = torch.linalg.vector_norm(w - compression.decompress(compression.compress(w)))
    for seed in range(200):
        other = compression.decompress(compression.compress(w + randn(*shape, seed=seed)))
        assert torch.linalg.vector_norm(w - other) >= best - 1e-12


@every
def test_theta_type_and_counts_agree(compression, shape, exact):
    theta = compression.compress(randn(*shape))
    assert isinstance(theta, compression.theta_type)
    assert compression.bits(theta) >= 32 * compression.num_params(theta)


def test_l0_beats_every_support_of_its_size():
    w = randn(7)
    kept = L0(3).decompress(L0(3).compress(w))
    best = min(
        float((w - torch.zeros(7, dtype=F64).index_copy(0, torch.tensor(s), w[list(s)])).square().sum())
        for s in itertools.combinations(range(7), 3)
    )
    assert float((w - kept).square().sum()) == pytest.approx(best, abs=1e-14)


def test_l0_keeps_the_first_of_equal_magnitudes():
    assert L0(2).decompress(L0(2).compress(torch.tensor([1.0, -1, 1, 1], dtype=F64))).tolist() == [1, -1, 0, 0]


def test_position_bits_by_hand():
    # gaps 1, 3, 4, counted from -1: two-bit fields hold up to 3, so 1 + 1 + 2 fields; three bits: 3 fields
    assert position_bits(torch.tensor([0, 3, 7])) == min(2 * 4, 3 * 3)
    assert position_bits(torch.tensor([], dtype=torch.int64)) == 0
    assert position_bits(torch.tensor([3])) == 3  # gap 4: two 2-bit fields or one 3-bit field


def test_pruning_lenet300_to_five_percent_stores_sixteen_times_less():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(266_200, generator=g)
    theta = L0(13_310).compress(w)
    ratio = 32 * (266_200 + 410) / (L0(13_310).bits(theta) + 32 * 410)
    assert ratio == pytest.approx(16.34, abs=0.05)  # random mask, 6-bit gaps


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
    for rank, ratio in {20: 0.015504, 40: 0.050230, 180: 0.508511, 400: 1.0118}.items():
        found = (sum(tt_size(s, rank) for s in HAR_MODES) + output) / (sum(dense) + output)
        assert found == pytest.approx(ratio, abs=1e-4)
    cnn = [(26, 26, 4, 4, 4, 4, 4, 2, 2, 2), (4,) * 10]
    for rank, size in {40: 84408, 80: 243800, 140: 578504, 220: 1175304, 300: 1848776}.items():
        assert sum(tt_size(shape, rank) for shape in cnn) == size


def test_tt_matvec_macs_by_hand():
    # W is 4 x 6 = modes (2, 2 | 3, 2), ranks 1, 2, 3, 2, 1
    cores = [(1, 2, 2), (2, 2, 3), (3, 3, 2), (2, 2, 1)]
    columns = 3 * (2 * 2 * 1) + 3 * 3 * 2
    rows = 2 * 2 * 3 + (1 * 2 * 2) * 2
    assert tt_matvec_macs(cores, 4) == columns + rows
    assert tt_matvec_macs(cores, 3) is None  # no bond separates rows from columns


@pytest.mark.parametrize(
    ("shape", "modes"),
    [((256, 64), (4, 4, 4, 4, 4, 4, 4)), ((10, 300), (2, 5, 3, 4, 5, 5)), ((7, 13), (7, 13)), ((1, 4), (1, 4))],
)
def test_automatic_modes_are_balanced_factors_that_keep_rows_and_columns_apart(shape, modes):
    assert balanced_modes(shape) == modes


def weights():
    return {"a.weight": randn(8, 6), "b.weight": randn(8, 8, seed=1), "out.weight": randn(3, 8, seed=2)}


def test_hidden_leaves_the_output_layer_alone_and_all_does_not():
    assert list(tt(weights(), rank=2).shapes) == ["a.weight", "b.weight"]
    assert list(l0(weights(), layers="all").shapes) == ["a.weight", "b.weight", "out.weight"]
    assert list(l0(weights(), layers=["b", "o*"]).shapes) == ["b.weight", "out.weight"]
    assert none(weights()).tasks == ()


def test_joint_l0_ranks_all_layers_together():
    w = weights()
    w["a.weight"] = w["a.weight"] * 1e-3
    plan = l0(w, keep=5, joint=True)
    dense = plan.decompress(plan.compress(plan.select(w)))
    assert int(torch.count_nonzero(dense["a.weight"])) == 0
    assert int(torch.count_nonzero(dense["b.weight"])) == 5


def test_plan_leaves_other_weights_alone_and_counts_its_tasks():
    w = weights()
    plan = tt(w, rank=2, modes={"a": [8, 6], "b": [4, 2, 8]})
    theta = plan.compress(plan.select(w))
    assert plan.numel() == 48 + 64
    assert plan.num_params(theta) == 2 * (8 + 6) + (1 * 4 * 2 + 2 * 2 * 2 + 2 * 8)
    assert plan.bits(theta) == 32 * plan.num_params(theta)
    assert set(plan.decompress(theta)) == {"a.weight", "b.weight"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: tt(weights(), modes=[4, 4, 2]), "must multiply to its 48 entries"),
        (lambda: tt(weights(), layers=["nothing"]), "found 'nothing'"),
        (lambda: Plan.of([Task(("a*",), AsVector(), L0(1)), Task(("*",), AsVector(), L0(1))], weights()), "in two"),
        (lambda: Plan.of([Task(("*",), AsTensor((8, 6)), L0(1))], weights()), "takes one weight"),
        (lambda: Plan.of([Task(("*",), AsMatrix(), L0(1))], weights()), "takes one weight"),
        (lambda: l0({"only": randn(3, 3)}, joint=True), "must leave a weight to compress"),
        (lambda: fit_ratio(none, weights(), 136, 0.5), "needs a compression with one of"),
        (lambda: fit_ratio(tt, weights(), 136, 0.01), "target.ratio must be at least"),
    ],
)
def test_plans_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ConfigError, match=said):
        call()


@pytest.mark.parametrize("make", [lambda: TensorTrain(0), lambda: L0(1.5), lambda: L0(-1)])
def test_sizes_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="found"):
        make()


@pytest.mark.parametrize("recipe", [tt, l0])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
def test_target_ratio_is_met_by_the_largest_setting(recipe, ratio):
    w = {"a.weight": randn(32, 16), "b.weight": randn(32, 32, seed=1), "out.weight": randn(3, 32, seed=2)}
    dense = sum(t.numel() for t in w.values())
    plan, text = fit_ratio(recipe, w, dense, ratio)

    def achieved(p):
        return (dense - p.numel() + p.num_params(p.compress(p.select(w)))) / dense

    assert achieved(plan) <= ratio
    if recipe is tt and ratio < 1:
        assert achieved(tt(w, rank=plan.tasks[0].compression.rank + 1)) > ratio
    if recipe is l0:
        assert achieved(plan) > ratio - 0.001
    assert f"{achieved(plan):.4g}" in text


def test_a_users_compression_is_applied_to_each_layer():
    plan = each_layer(weights(), compression=L0(2))
    assert [task.params for task in plan.tasks] == [("a.weight",), ("b.weight",)]
