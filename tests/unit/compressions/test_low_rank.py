"""Low rank: against LAPACK, brute force and enumeration; the certificate of large matrices; convolutions counted."""

import math

import pytest
import torch
from problems import F64, randn
from torch import nn

from nncompress.compressions import truncated_svd as numerics
from nncompress.compressions.low_rank import Factors, LowRank, energy_rank, low_rank
from nncompress.compressions.plan import Plan, Task
from nncompress.compressions.products import Use
from nncompress.compressions.rank_selection import RankSelection, rank_selection
from nncompress.compressions.truncated_svd import SVD, TOLERANCE, exact_svd, is_large, singular_values, truncated_svd
from nncompress.compressions.views import AsMatrix, AsVector
from nncompress.errors import ConfigError

LENET300 = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}


def with_spectrum(s, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """A matrix with singular values s and random singular vectors."""
    s = torch.as_tensor(s, dtype=F64)
    U, V = (torch.linalg.qr(randn(k, len(s), seed=seed + k)).Q for k in (m, n))
    return (U * s) @ V.T


def best(w: torch.Tensor, rank: int) -> torch.Tensor:
    """LAPACK's truncation, in double precision."""
    U, s, V = torch.linalg.svd(w.double(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]


def product(svd: SVD) -> torch.Tensor:
    return (svd.U * svd.s).double() @ svd.V.double()


def norm(w: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(w.double()))


def projected(compression, w: torch.Tensor, mu: float = 1.0) -> torch.Tensor:
    return compression.decompress(compression.compress(w, mu))


# Small matrices: exact


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 6), (6, 1), (1, 1), (40, 90), (90, 40)])
@pytest.mark.parametrize("rank", [1, 3, 100])
@pytest.mark.parametrize(("dtype", "rounding"), [(F64, 1e-13), (torch.float32, 1e-6)])
def test_low_rank_is_the_truncated_singular_value_decomposition(shape, rank, dtype, rounding):
    w = randn(*shape, dtype=dtype)
    theta = LowRank(rank).compress(w)
    r = min(rank, *shape)
    assert (theta.U.shape, theta.V.shape) == ((shape[0], r), (r, shape[1]))
    assert norm(theta.U @ theta.V - best(w, r)) <= rounding * norm(w)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_singular_values_are_split_evenly(dtype):
    theta = LowRank(3).compress(randn(8, 6, dtype=dtype))
    s = torch.diag(torch.linalg.svdvals(randn(8, 6))[:3]).to(dtype)
    torch.testing.assert_close(theta.U.T @ theta.U, s, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theta.V @ theta.V.T, s, rtol=1e-5, atol=1e-5)
    assert theta.U.is_contiguous()
    assert theta.V.is_contiguous()


def test_no_rank_one_matrix_of_a_fine_grid_is_closer():
    w = randn(2, 2)
    angles = torch.linspace(0, math.pi, 721, dtype=F64)
    rows = torch.stack([angles.cos(), angles.sin()])
    captured = (rows.T @ w @ rows).square().max()  # ‖w‖² - error² at the best scale of each pair of directions
    error = (w - projected(LowRank(1), w)).square().sum()
    assert error <= w.square().sum() - captured
    assert error == pytest.approx(float(w.square().sum() - captured), abs=1e-4)


@pytest.mark.parametrize(("dtype", "rounding"), [(F64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (600, 640)])
def test_true_rank_matrices_are_recovered(shape, dtype, rounding):
    w = with_spectrum([3.0, 2.0, 1e-2, 1e-3], *shape).to(dtype)
    for rank in (4, 6):
        assert norm(w - projected(LowRank(rank), w)) <= rounding * norm(w)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (600, 640)])
def test_zero_constant_and_one_entry_matrices_are_their_own_projection(shape, dtype):
    one = torch.zeros(shape, dtype=dtype)
    one[2, 1] = -3
    for w in (torch.zeros(shape, dtype=dtype), torch.full(shape, -2.0, dtype=dtype), one):
        assert norm(projected(LowRank(3), w) - w) <= 3e-6 * norm(w)


@pytest.mark.parametrize("shape", [(8, 12), (560, 600)])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(F64, 1e-100), (F64, 1e100), (torch.float32, 1e-25), (torch.float32, 1e25)]
)
def test_the_scale_does_not_matter(shape, dtype, scale):
    w = randn(*shape, dtype=dtype)
    ours = projected(LowRank(4), w * scale) / scale
    assert norm(ours - best(w, 4)) <= 1e-5 * norm(w)


@pytest.mark.parametrize(("dtype", "rounding"), [(F64, 1e-14), (torch.float32, 1e-7)])
def test_singular_values_are_right_over_a_wide_range(dtype, rounding):
    s = torch.logspace(0, -12, 30, dtype=F64)
    w = with_spectrum(s, 40, 30).to(dtype)
    for a in (w, w.T):
        torch.testing.assert_close(singular_values(a), s, rtol=0, atol=10 * rounding)
        torch.testing.assert_close(exact_svd(a, 30).s.double(), s, rtol=0, atol=10 * rounding)


@pytest.mark.parametrize("compression", [LowRank(2), RankSelection(0.3), RankSelection(0.3, capped=True)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_layers_of_one_shape_give_together_what_each_gives_alone(compression, dtype):
    ws = [scale * randn(6, 9, seed=k, dtype=dtype) for k, scale in enumerate((0.1, 1, 10))]
    together = compression.project_many(ws, 1.0, [None] * 3)
    for w, theta in zip(ws, together, strict=True):
        torch.testing.assert_close(compression.decompress(theta), projected(compression, w), rtol=1e-5, atol=1e-5)


# Large matrices: certified

SPECTRA = {
    "harmonic": lambda i: 1 / i,
    "root": lambda i: i**-0.5,
    "fast": lambda i: 0.8**i,
    "slow": lambda i: 0.98**i,
    "gap": lambda i: torch.where(i <= 12, 1.0, 1e-3).to(F64),
    "tie": lambda i: torch.where(i <= 15, 1.0, 0.1).to(F64),
    "flat": lambda i: torch.ones_like(i),
}


def large(name: str, m: int, n: int) -> torch.Tensor:
    if name == "noise":
        return randn(m, n)
    return with_spectrum(SPECTRA[name](torch.arange(1, min(m, n) + 1, dtype=F64)), m, n)


@pytest.fixture
def no_exact_svd(monkeypatch):
    def refuse(a, rank):
        raise RuntimeError("the iteration was to be enough")

    monkeypatch.setattr(numerics, "exact_svd", refuse)


@pytest.mark.usefixtures("no_exact_svd")
@pytest.mark.parametrize("name", ["noise", *SPECTRA])
@pytest.mark.parametrize("shape", [(520, 560), (560, 520)])
def test_large_matrices_are_certified_and_within_the_tolerance(name, shape):
    w = large(name, *shape)
    assert is_large(shape, 12)
    for dtype, rounding in ((F64, 1e-14), (torch.float32, 3e-6)):
        ours = product(truncated_svd(w.to(dtype), 12))
        assert norm(w - ours) <= (1 + TOLERANCE) * norm(w - best(w, 12)) + rounding * norm(w)


@pytest.mark.usefixtures("no_exact_svd")
@pytest.mark.parametrize("shape", [(520, 560), (560, 520)])
@pytest.mark.parametrize("name", ["noise", "harmonic", "fast"])
def test_no_start_however_bad_spoils_the_result(name, shape):
    w = large(name, *shape)
    U, s, V = torch.linalg.svd(w, full_matrices=False)
    starts = {
        "leading": Factors(U[:, :12], V[:12]),
        "trailing": Factors(U[:, -12:], V[-12:]),
        "inner": Factors(U[:, 6:18], V[6:18]),
        "zero": Factors(0 * U[:, :12], 0 * V[:12]),
        "other rank": Factors(U[:, :3], V[:3]),
    }
    for start in starts.values():
        ours = product(truncated_svd(w, 12, start))
        assert norm(w - ours) <= (1 + TOLERANCE) * float(torch.linalg.vector_norm(s[12:]))


def test_the_certificate_knows_the_leading_space_among_the_invariant_ones():
    s = torch.tensor([5.0, 4, 3, 2.9, 2, 1], dtype=F64)
    w, eye, nothing = torch.diag(s), torch.eye(6, dtype=F64), torch.zeros(6, 3, dtype=F64)
    for columns in ([0, 1, 2], [0, 1, 3], [1, 2, 3], [3, 4, 5]):
        U = eye[:, columns]
        bound = torch.tensor(math.inf, dtype=F64)
        found = numerics._optimal(s[columns], w - U @ U.T @ w, nothing, bound, w.square().sum())
        assert found == (columns == [0, 1, 2])


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.03, 0.1, 0.3])
def test_the_certificate_never_accepts_what_is_not_within_the_tolerance(angle):
    w = with_spectrum(torch.linspace(2, 1, 60, dtype=F64), 60, 70)
    U = torch.linalg.svd(w).U[:, :5]
    U = torch.linalg.qr(U + angle * torch.linalg.qr(randn(60, 5)).Q).Q
    L = w.T @ U
    rest = w - U @ L.T
    _, s, Z = torch.linalg.svd(L, full_matrices=False)
    accepted = numerics._optimal(s, rest, rest @ L @ Z.T, torch.tensor(math.inf, dtype=F64), w.square().sum())
    within = norm(rest) <= (1 + TOLERANCE) * norm(w - best(w, 5))
    assert within or not accepted
    assert accepted or angle > 1e-3


def test_what_the_iteration_cannot_prove_is_decomposed_exactly(monkeypatch):
    monkeypatch.setattr(numerics, "_optimal", lambda *arguments: False)
    w = randn(520, 600)
    assert norm(product(truncated_svd(w, 8)) - best(w, 8)) <= 1e-12 * norm(w)


def test_a_large_projection_repeats_itself_and_is_idempotent():
    w = randn(600, 520, dtype=torch.float32)
    once, again = LowRank(10).compress(w), LowRank(10).compress(w)
    assert torch.equal(once.U, again.U)
    assert torch.equal(once.V, again.V)
    dense = once.U @ once.V
    assert norm(projected(LowRank(10), dense) - dense) <= 3e-6 * norm(dense)
    assert norm(LowRank(10).decompress(LowRank(10).compress(dense, start=once)) - dense) <= 3e-6 * norm(dense)


# Sizes and operations


def lenet300_ratio(ranks: tuple[int, ...]) -> float:
    pairs = zip(ranks, LENET300.values(), strict=True)
    bits = sum(LowRank(r).bits(LowRank(r).compress(randn(*shape))) for r, shape in pairs)
    return 32 * (266_200 + 410) / (bits + 32 * 410)


def test_storage_of_lenet300():
    assert lenet300_ratio((80, 7, 9)) == pytest.approx(2.93, abs=5e-3)
    assert lenet300_ratio((10, 10, 10)) == pytest.approx(16.31, abs=5e-3)


def test_bits_and_numbers_by_hand():
    theta = LowRank(2).compress(randn(5, 7))
    assert LowRank(2).num_params(theta) == 2 * (5 + 7)
    assert LowRank(2).bits(theta) == LowRank(2).huffman_bits(theta) == 32 * 24


def counted(layer: nn.Conv2d, x: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Multiply-accumulates of a convolution on x, and its output."""
    y = layer(x)
    return layer.weight.numel() * y.shape[2] * y.shape[3], y


def conv(weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> nn.Conv2d:
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs, outputs, tuple(kernel), stride, padding, bias=False, dtype=F64)
    layer.weight = nn.Parameter(weight)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("kernel", [(3, 3), (3, 5), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize(
    ("stride", "padding"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((2, 1), (0, 2)), ((1, 3), (1, 0))]
)
@pytest.mark.parametrize("scheme", [1, 2])
def test_macs_are_those_of_the_two_convolutions_that_the_factors_make(kernel, stride, padding, scheme):
    w, x = randn(4, 3, *kernel), randn(1, 3, 11, 10)
    (height, width), r = kernel, 2
    padding = (min(padding[0], height // 2), min(padding[1], width // 2))
    plan = Plan.of([Task(("w",), AsMatrix(scheme), LowRank(r))], {"w": w})
    (theta,) = plan.compress(plan.select({"w": w}))
    if scheme == 1:
        first = conv(theta.V.reshape(r, 3, height, width), stride, padding)
        second = conv(theta.U.reshape(4, r, 1, 1), (1, 1), (0, 0))
    else:
        first = conv(theta.V.reshape(r, 3, 1, width), (1, stride[1]), (0, padding[1]))
        kernels = theta.U.reshape(4, height, r).transpose(1, 2)
        second = conv(kernels.reshape(4, r, height, 1), (stride[0], 1), (padding[0], 0))
    y = conv(plan.decompress((theta,))["w"], stride, padding)(x)
    before, middle = counted(first, x)
    after, found = counted(second, middle)
    torch.testing.assert_close(found, y)
    macs = LowRank(r).macs(theta, Use(tuple(w.shape), (11, 10), tuple(y.shape[2:])))
    if scheme == 2 and height == 1:  # the same matrix as under scheme 1, which skips the rows that a stride skips
        assert macs == r * (4 + 3 * width) * y.shape[2] * y.shape[3] <= before + after
    else:
        assert macs == before + after


def test_macs_of_linear_layers_and_of_what_is_no_layer_of_two_factors():
    theta = LowRank(2).compress(randn(6, 8))
    assert LowRank(2).macs(theta, Use((6, 8))) == 2 * 14
    assert LowRank(2).macs(theta, Use((6, 8), (5,), (5,))) == 2 * 14 * 5
    assert LowRank(2).macs(theta, Use((3, 16))) is None
    assert LowRank(2).macs(Factors(randn(6, 8), randn(0, 8)), Use((6, 8))) is None


def test_bad_settings_and_shapes_are_refused_and_large_ranks_are_told():
    with pytest.raises(ValueError, match="rank must be at least 1, found 0"):
        LowRank(0)
    with pytest.raises(ValueError, match=r"needs a matrix, found a tensor of shape \[4, 3, 3\]"):
        LowRank(1).check((4, 3, 3))
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        RankSelection(-1.0)
    with pytest.raises(ValueError, match="positions must be at least 1"):
        RankSelection(1.0, positions=0)
    words = "rank 500 is above the 64 of its shape [64, 512], 64 is used"
    assert LowRank(500).clipped((64, 512)) == words
    assert LowRank(64).clipped((64, 512)) is None


# The recipe of low rank


def test_energy_is_the_smallest_rank_that_holds_it():
    w = with_spectrum([3, 2, 1], 5, 4)  # squares 9, 4, 1 of 14
    expected = {0.1: 1, 9 / 14 - 1e-9: 1, 0.65: 2, 13 / 14 - 1e-9: 2, 0.93: 3, 1.0: 3}
    assert {energy: energy_rank(w, energy) for energy in expected} == expected
    assert [energy_rank(w.float(), energy) for energy in (0.1, 0.64, 0.65, 0.92, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert energy_rank(torch.zeros(3, 4), 1.0) == 1
    assert energy_rank(1e-200 * w, 0.65) == 2


def test_an_energy_fixes_each_rank_at_the_given_weights():
    weights = {
        "a.weight": with_spectrum([3, 2, 1], 5, 4),
        "b.weight": with_spectrum([3, 2, 1], 8, 18).reshape(8, 2, 3, 3),
    }
    plan = low_rank(weights, rank=None, energy=0.9, layers="all")
    assert [task.compression for task in plan.tasks] == [LowRank(2), LowRank(2)]
    thetas = plan.compress(plan.select({name: randn(*w.shape) for name, w in weights.items()}))
    assert [len(theta.V) for theta in thetas] == [2, 2]


def test_scheme_2_is_for_convolutions_alone():
    weights = {"conv.weight": randn(4, 3, 3, 5), "fc.weight": randn(6, 8), "out.weight": randn(2, 6)}
    for recipe in (low_rank, rank_selection):
        plan = recipe(weights, scheme=2)
        assert [task.view for task in plan.tasks] == [AsMatrix(2), AsMatrix(1)]
    theta = low_rank(weights, rank=2, scheme=2).compress(low_rank(weights).select(weights))
    assert (theta[0].U.shape, theta[0].V.shape) == ((12, 2), (2, 15))


def test_the_recipe_refuses_what_it_cannot_do():
    weights = {"a.weight": randn(4, 5), "b.weight": randn(4, 5)}
    for settings in ({"energy": 0.5}, {"rank": None}):
        with pytest.raises(ConfigError, match="one of rank and energy must be given"):
            low_rank(weights, **settings)
    for energy in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"energy must be in \(0, 1\]"):
            low_rank(weights, rank=None, energy=energy)
    with pytest.raises(ValueError, match="scheme must be 1 or 2"):
        low_rank(weights, scheme=3)
    with pytest.raises(ConfigError, match=r"a\.weight: low rank needs a matrix"):
        Plan.of([Task(("a",), AsVector(), LowRank(1))], weights)


# Rank selection

S = (5.0, 3.0, 1.5, 0.7, 0.2)


def rank_of(theta: Factors) -> int:
    return theta.U.shape[1]


@pytest.mark.parametrize(("alpha", "mu", "rank"), [(0.01, 0.1, 3), (0.05, 0.1, 1), (0.1, 0.1, 1), (0.001, 0.5, 4)])
def test_ranks_of_the_example(alpha, mu, rank):
    w = with_spectrum(S, 5, 5)
    theta = RankSelection(alpha).compress(w, mu)
    assert rank_of(theta) == rank
    assert norm(theta.U @ theta.V - best(w, rank)) <= 1e-13
    assert rank_of(RankSelection(alpha).compress(w.float(), mu)) == rank


@pytest.mark.parametrize(("alpha", "mu", "rank"), [(0.01, 0.1, 5), (0.05, 0.1, 1), (0.1, 0.1, 1), (0.001, 0.5, 5)])
def test_ranks_of_the_example_when_no_cost_is_above_dense(alpha, mu, rank):
    w, capped = with_spectrum(S, 5, 5), RankSelection(alpha, capped=True)
    theta = capped.compress(w, mu)
    assert rank_of(theta) == rank
    assert theta.is_dense == (rank == 5)
    assert capped.num_params(theta) == min(10 * rank, 25)
    assert capped.bits(theta) == 32 * min(10 * rank, 25)
    assert float(capped.penalty(theta)) == pytest.approx(alpha * min(10 * rank, 25))
    assert norm(capped.decompress(theta) - best(w, rank)) <= 1e-13


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (1, 6), (12, 10)])
def test_the_chosen_rank_is_the_best_of_all_by_enumeration(shape, capped):
    m, n = shape
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        s = torch.rand(min(m, n), generator=g, dtype=F64).sort(descending=True).values
        alpha, mu, positions = 10 ** float(-3 * torch.rand((), generator=g)), 10.0 ** (seed % 3), 1 + seed % 2
        w, compression = with_spectrum(s, m, n, seed), RankSelection(alpha, positions, capped)
        costs = [min(r * (m + n), m * n) if capped else r * (m + n) for r in range(min(m, n) + 1)]
        values = [alpha * positions * c + mu / 2 * float((s[r:] ** 2).sum()) for r, c in enumerate(costs)]
        theta = compression.compress(w, mu)
        found = mu / 2 * float((w - compression.decompress(theta)).square().sum()) + float(compression.penalty(theta))
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


@pytest.mark.parametrize("capped", [False, True])
def test_rank_selection_of_zeros_is_rank_0_and_without_a_price_everything(capped):
    free = RankSelection(0.0, capped=capped)
    assert torch.equal(projected(free, torch.zeros(3, 4, dtype=F64)), torch.zeros(3, 4, dtype=F64))
    assert rank_of(RankSelection(0.1, capped=capped).compress(torch.zeros(3, 4))) == 0
    w = randn(3, 4)
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
