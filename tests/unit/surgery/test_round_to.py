"""`round_to`: ranks, rows and channels as multiples of a number, by hand and by enumeration; what tables say of it."""

import copy
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from compression_cases import CASES
from problems import F64, problem, randn, small_digits
from runs import assert_refused, rows, summary, train
from test_cifar_models import every, small
from torch import Tensor, nn

from nncompress import checkpoint
from nncompress.channels import kept_in
from nncompress.compact.artefact import load
from nncompress.compact.removal import removed
from nncompress.compact.smaller import smaller
from nncompress.compressions.additive import additive
from nncompress.compressions.cp import cp
from nncompress.compressions.low_rank import low_rank
from nncompress.compressions.mixed import mixed
from nncompress.compressions.plan import Plan, none, plan_of
from nncompress.compressions.rank_selection import RankSelection, rank_selection
from nncompress.compressions.rounding import Change, changes, rounded
from nncompress.compressions.sparsity import l0
from nncompress.compressions.structured import GroupL0, group_l0
from nncompress.compressions.target import Target, fit
from nncompress.compressions.tensor_train import tt
from nncompress.compressions.tt_matrix import tt_matrix
from nncompress.compressions.tucker import tucker
from nncompress.errors import ConfigError, Unsupported
from nncompress.models.preresnet import PreResNet
from nncompress.models.vgg import VGG
from nncompress.problem import Problem
from nncompress.records import read_run
from nncompress.report.run_tables import run_tables
from nncompress.solvers.network_slimming import NetworkSlimming
from nncompress.solvers.scales import Scales, size_of
from nncompress.solvers.slimming import Slimming

# Ranks and rows.


@pytest.mark.parametrize(
    ("count", "round_to", "most", "found"),
    [(13, 8, 512, 16), (16, 8, 512, 16), (1, 8, 512, 8), (13, 8, 14, 14), (14, 8, 14, 14), (20, 8, 14, 20),
     (0, 8, 5, 0), (-1, 8, 5, -1), (13, 1, 20, 13), (7, 3, 20, 9)],
)  # fmt: skip
def test_a_number_is_rounded_up_but_not_beyond_what_there_is(count, round_to, most, found):
    assert rounded(count, round_to, most) == found


def weights() -> dict[str, Tensor]:
    """A matrix, a convolution and an output layer."""
    return {"a.weight": randn(20, 50), "c.weight": randn(24, 12, 3, 3, seed=1), "out.weight": randn(3, 5)}


def spectrum(*s: float) -> Tensor:
    """A matrix (20, 50) with these singular values."""
    U, V = (torch.linalg.qr(randn(k, len(s), seed=k)).Q for k in (20, 50))
    return (U * torch.tensor(s, dtype=F64)) @ V.T


A, C = ["a"], ["c"]
RANKED = {  # recipe, layers: ranks or rows and numbers stored, by hand, with and without rounding to 8
    "low rank": (partial(low_rank, rank=13, layers=A), (13,), 13 * 70, (16,), 16 * 70),
    "low rank to the full rank": (partial(low_rank, rank=17, layers=A), (17,), 17 * 70, (20,), 20 * 70),
    "low rank of a convolution": (partial(low_rank, rank=3, layers=C, scheme=2), (3,), 3 * 108, (8,), 8 * 108),
    "tt": (
        partial(tt, rank=3, modes=[4, 5, 5, 10], layers=A),
        (3, 3, 3), 4 * 3 + 3 * 5 * 3 + 3 * 5 * 3 + 3 * 10,
        (4, 8, 8), 4 * 4 + 4 * 5 * 8 + 8 * 5 * 8 + 8 * 10,
    ),
    "tt-matrix": (
        partial(tt_matrix, rank=13, row_modes=[4, 5], column_modes=[5, 10], layers=A), (13,), 13 * 70, (16,), 16 * 70
    ),
    "tucker": (
        partial(tucker, rank=9, layers=C),
        (9, 9, 3, 3), 9 * 9 * 9 + 24 * 9 + 12 * 9,
        (16, 12, 3, 3), 16 * 12 * 9 + 24 * 16,
    ),
    "tucker with a rank for each mode": (
        partial(tucker, rank=[9, 3, 2, 2], layers=C),
        (9, 3, 2, 2), 9 * 3 * 4 + 24 * 9 + 12 * 3 + 3 * 2 + 3 * 2,
        (16, 8, 2, 2), 16 * 8 * 4 + 24 * 16 + 12 * 8 + 3 * 2 + 3 * 2,
    ),
    "tucker of a matrix": (
        partial(tucker, rank=9, modes=[20, 50], layers=A), (20, 9), 20 * 9 + 50 * 9, (20, 16), 20 * 16 + 50 * 16
    ),
    "cp": (partial(cp, rank=13, layers=C), (13,), 13 * 42, (16,), 16 * 42),
    "rows": (partial(group_l0, keep=0.3, layers=A), (6,), 6 * 50, (8,), 8 * 50),
    "a number of filters": (partial(group_l0, keep=17, layers=C), (17,), 17 * 108, (24,), 24 * 108),
}  # fmt: skip


@pytest.mark.parametrize("name", RANKED)
def test_ranks_and_rows_become_multiples_of_8_and_sizes_are_those_counted_by_hand(name):
    recipe, before, few, after, more = RANKED[name]
    w = weights()
    plain, plan = (plan_of(recipe, w, round_to=multiple) for multiple in (1, 8))
    assert plain == recipe(w)
    (task,) = plan.tasks
    for each, number in ((plain, few), (plan, more)):
        assert each.num_params(each.compress(each.select(w))) == number
    kind = "rows" if recipe.func is group_l0 else "rank"
    assert changes(plan, plain) == [Change(*task.params, kind, before, after, more - few)]
    assert plan.clipped() == []


def test_an_energy_is_held_by_a_multiple():
    w = {"a.weight": spectrum(3, 2, 1), "out.weight": randn(2, 2)}  # squares 9, 4, 1 of 14
    for energy, rank in ((0.5, 1), (0.9, 2), (0.95, 3)):
        recipe = partial(low_rank, rank=None, energy=energy)
        plan, plain = (plan_of(recipe, w, round_to=multiple) for multiple in (4, 1))
        assert changes(plan, plain) == [Change("a.weight", "rank", (rank,), (4,), (4 - rank) * 70)]


def test_a_rank_above_the_largest_is_told_as_it_was_given():
    plan = plan_of(partial(low_rank, rank=21, layers=A), weights(), round_to=8)
    assert plan.clipped() == ["a.weight: rank 21 is above the 20 of its shape [20, 50], 20 is used"]
    assert changes(plan, plan_of(partial(low_rank, rank=21, layers=A), weights())) == []


@pytest.mark.parametrize(("compression", "shape", "exact"), CASES)
def test_a_size_is_that_of_every_theta(compression, shape, exact):
    sizes = [(c, s, c.size(s)) for c, s in compression.summands(shape)]
    for part, seen, size in sizes:
        assert size is None or part.num_params(part.compress(randn(*seen))) == size.params
    assert len(sizes) == len(getattr(compression, "parts", [None]))


@pytest.mark.parametrize("round_to", [0, -8])
@pytest.mark.parametrize("recipe", [low_rank, rank_selection, tt, tt_matrix, tucker, cp, group_l0])
def test_there_are_no_multiples_of_what_is_below_one(recipe, round_to):
    with pytest.raises((ValueError, ConfigError), match=f"round_to must be at least 1, found {round_to}"):
        recipe(weights(), round_to=round_to)


def test_parts_are_rounded_and_a_recipes_own_number_comes_first():
    w = weights()
    parts = {"rank": partial(low_rank, rank=3), "few": partial(l0, keep=7)}
    total = [plan_of(partial(additive, parts=parts, layers=A), w, round_to=multiple) for multiple in (8, 1)]
    assert changes(*total) == [Change("a.weight", "rank", (3,), (8,), 5 * 70)]
    theta = total[0].compress(total[0].select(w))
    assert (theta[0].parts[0].U.shape, len(theta[0].parts[1].values)) == ((20, 8), 7)
    one, two = partial(cp, rank=3, layers=C), partial(tt_matrix, rank=3, layers=A, round_to=2)
    mixture = [plan_of(partial(mixed, parts={"one": one, "two": two}), w, round_to=multiple) for multiple in (8, 1)]
    assert [task.compression.rank for task in mixture[0].tasks] == [8, 4]
    assert [change.params for change in changes(*mixture)] == ["c.weight"]


def test_a_users_recipe_gets_the_number_if_it_takes_it():
    seen = []

    def recipe(weights, *, round_to=5):
        seen.append(round_to)
        return none(weights)

    for multiple in (1, 8):
        plan_of(recipe, weights(), round_to=multiple)
    plan_of(none, weights(), round_to=8)
    plan_of(GroupL0(0.5, ((20, 50),)), {"a": randn(20, 50), "b": randn(2, 2)}, round_to=8)
    assert seen == [5, 8]


def ratio_target(w: dict[str, Tensor], ratio: float) -> Target:
    total = sum(tensor.numel() for tensor in w.values())

    def measure(plan: Plan) -> float:
        stored = plan.num_params(plan.compress(plan.select(w)))
        return (total - plan.numel() + stored) / total

    return Target("ratio", measure, ratio)


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.9])
@pytest.mark.parametrize("recipe", [low_rank, tt, group_l0])
def test_a_target_is_met_with_the_largest_multiple(recipe, ratio):
    w = {"a.weight": randn(60, 80), "b.weight": randn(60, 60, seed=1), "out.weight": randn(3, 60, seed=2)}
    target = ratio_target(w, ratio)
    found = fit(recipe, w, target, round_to=8)
    assert target.measure(found.plan) == found.achieved <= ratio
    larger = found.value + (1e-4 if recipe is group_l0 else 1)
    assert target.measure(plan_of(recipe, w, round_to=8, **{found.name: larger})) > ratio
    whole = recipe(w, **{found.name: 1.0 if recipe is group_l0 else 100_000})
    for plan_task, whole_task in zip(found.plan.tasks, whole.tasks, strict=True):
        sizes = (task.compression.size(found.plan.seen(task)) for task in (plan_task, whole_task))
        assert all(n % 8 == 0 or n == most for n, most in zip(*(size.counts for size in sizes), strict=True))


def test_a_target_below_the_first_multiple_is_refused():
    w = {"a.weight": randn(32, 32), "out.weight": randn(2, 2)}
    said = r"target.ratio must be at least 0\.501946, reached at rank=1 with round_to=8, found 0\.1"
    with pytest.raises(ConfigError, match=said):
        fit(low_rank, w, ratio_target(w, 0.1), round_to=8)
    assert fit(low_rank, w, ratio_target(w, 0.1)).setting == "rank=1"


# Ranks that are learned.


def allowed(p: int, multiple: int) -> list[int]:
    return sorted({*range(0, p + 1, multiple), p})


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (12, 10), (1, 6)])
def test_the_chosen_rank_is_the_best_of_those_allowed_by_enumeration(shape, multiple, capped):
    m, n = shape
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        s = torch.rand(min(m, n), generator=g, dtype=F64).sort(descending=True).values
        alpha, mu, positions = 10 ** float(-3 * torch.rand((), generator=g)), 10.0 ** (seed % 3), 1 + seed % 2
        compression = RankSelection(alpha, positions, capped, multiple)
        U, V = (torch.linalg.qr(randn(k, len(s), seed=seed + k)).Q for k in (m, n))
        w = (U * s) @ V.T
        costs = {r: min(r * (m + n), m * n) if capped else r * (m + n) for r in allowed(min(m, n), multiple)}
        values = {r: alpha * positions * c + mu / 2 * float((s[r:] ** 2).sum()) for r, c in costs.items()}
        theta = compression.compress(w, mu)
        found = mu / 2 * float((w - compression.decompress(theta)).square().sum()) + float(compression.penalty(theta))
        assert found == pytest.approx(min(values.values()), rel=1e-10)
        assert theta.is_dense or theta.U.shape[1] == min(values, key=lambda r: (values[r], r))
        single = compression.compress(w.float(), mu)
        assert single.U.shape == theta.U.shape


def test_of_equally_good_multiples_the_smallest_is_taken():
    """Squares 16, 9, 4, 1: pairs have the means 12.5 and 2.5, in units of the threshold 2 * alpha * 8."""
    w = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64))
    for square, rank in ((12.5, 0), (12.4, 2), (2.5, 2), (2.4, 4), (0.0, 4)):
        theta = RankSelection(square / 16, round_to=2).compress(w)
        assert theta.U.shape[1] == rank
    assert RankSelection(9 / 16, round_to=3).compress(w).U.shape[1] == 3  # 29 / 3 is above 9, then 1 alone is not
    dense = RankSelection(1 / 16, capped=True, round_to=2).compress(w)  # 1 is less than 1 and half of 5
    assert (dense.U.shape, dense.is_dense) == ((4, 4), True)


def test_zeros_have_rank_0_and_without_a_price_all_ranks_are_kept():
    assert RankSelection(0.0, round_to=4).compress(torch.zeros(6, 5)).U.shape == (6, 0)
    w = spectrum(*range(6, 0, -1))
    assert RankSelection(0.0, round_to=4).compress(w).U.shape[1] == 8


def test_a_learned_rank_changes_by_what_the_weights_are():
    plan, plain = (plan_of(partial(rank_selection, layers=A), weights(), round_to=multiple) for multiple in (8, 1))
    assert changes(plan, plain) == [Change("a.weight", None, None, None, None)]


# Rows of several layers together.


@pytest.mark.parametrize("multiple", [2, 3])
@pytest.mark.parametrize("keep", [1, 3, 5, 8])
def test_the_rows_kept_of_several_layers_are_the_best_by_enumeration(keep, multiple):
    sizes = ((5, 2), (4, 3))
    for seed in range(8):
        w = randn(22, seed=seed)
        squares = [part.reshape(size).square().sum(1) for part, size in zip(w.split([10, 12]), sizes, strict=True)]
        runs = max(2, -(-keep // multiple))
        best = -1.0
        for counts in itertools.product(*(allowed(size[0], multiple)[1:] for size in sizes)):
            if sum(-(-count // multiple) for count in counts) <= runs:
                kept = sum(float(s.topk(count).values.sum()) for s, count in zip(squares, counts, strict=True))
                best = max(best, kept)
        compression = GroupL0(keep, sizes, multiple)
        theta = compression.compress(w)
        assert float(theta.values.square().sum()) == pytest.approx(best)
        assert theta.positions.tolist() == sorted(theta.positions.tolist())
        kept = [int((theta.positions < 5).sum()), int((theta.positions >= 5).sum())]
        assert all(count in allowed(size[0], multiple)[1:] for count, size in zip(kept, sizes, strict=True))
        dense = compression.decompress(theta)
        assert torch.equal(dense[dense != 0], w[dense != 0])
        assert torch.equal(compression.decompress(compression.compress(dense)), dense)
        assert compression.size((22,)) is None


def test_equal_rows_are_kept_from_the_first_on():
    theta = GroupL0(4, ((5, 2), (5, 2)), 2).compress(torch.ones(20))
    assert theta.positions.tolist() == [0, 1, 5, 6]
    assert GroupL0(6, ((5, 2), (5, 2)), 2).compress(torch.ones(20)).positions.tolist() == [0, 1, 2, 3, 5, 6]


# Channels.

MULTIPLE = 4


def slimming(**settings: object) -> Slimming:
    return Slimming(num_steps=1, batch_size=20, lam=1.0, beta=5.0, **settings)


def vgg() -> nn.Module:
    """Channels 6, 13, 26, with scaling factors that differ."""
    torch.manual_seed(0)
    network = VGG((1, 8, 8), 10, layers=[1, 1, 1], width=0.1).to(F64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.9)
            nn.init.uniform_(module.bias, -0.1, 0.3)
    return network


def problem_with(network: nn.Module, multiple: int, target: tuple[str, float] | None = None) -> Problem:
    given = problem(small_digits(60), network)
    return Problem(given.model, given.data, given.plan, target=target, round_to=multiple)


def kept(network: nn.Module) -> list[int]:
    return [int(mask.sum()) for mask in kept_in(network).values()]


def left(p: Problem, xi: Tensor, **settings: object) -> nn.Module:
    """What proximal slimming leaves of the network for these xi."""
    method = slimming(**settings)
    return method.slimmed(p, method.init(p)._replace(xi=xi)).network


def test_of_the_dead_channels_those_with_the_largest_scaling_factors_stay():
    network = vgg()
    xi = torch.zeros(45, dtype=F64)
    xi[[0, 6, 8, 10, 12, 17, *range(19, 32)]] = -0.5  # 1 of 6, 5 of 13, 13 of 26
    found = kept_in(left(problem_with(network, MULTIPLE), xi))
    assert [int(mask.sum()) for mask in found.values()] == [4, 8, 16]
    gamma = Scales.of(network).gamma()
    for mask, own, factors in zip(found.values(), xi.split([6, 13, 26]), gamma.split([6, 13, 26]), strict=True):
        assert bool(mask[own != 0].all())
        back, gone = factors[mask & (own == 0)], factors[~mask]
        assert float(back.min()) > float(gone.max())
    assert kept(left(problem_with(network, 8), xi)) == [6, 8, 16]
    assert kept(left(problem_with(network, 1), xi)) == [1, 5, 13]
    assert kept(left(problem_with(network, 64), xi)) == [6, 13, 26]


def test_a_channel_that_comes_back_has_its_scaling_factor_and_shift():
    network = vgg()
    xi = torch.zeros(45, dtype=F64)
    xi[[0, 6, 19]] = 0.7
    found = left(problem_with(network, MULTIPLE), xi)
    scales, before = Scales.of(found), Scales.of(network)
    mask = torch.cat(list(kept_in(found).values()))
    assert int(mask.sum()) == 12
    expected = torch.where(xi != 0, xi, before.gamma())
    assert torch.equal(scales.gamma(), torch.where(mask, expected, 0))
    assert torch.equal(torch.cat(scales.shifts), torch.where(mask, torch.cat(before.shifts), 0))


@every
def test_every_selection_is_a_multiple_and_the_smaller_network_computes_the_same(name):
    network, x = small(name)
    data = small_digits(20)
    p = Problem(network, data, none({}), round_to=MULTIPLE)
    total = len(Scales.of(network).gamma())
    xi = randn(total) * (torch.rand(total, generator=torch.Generator().manual_seed(1)) < 0.3)
    found = left(p, xi)
    sizes = [len(mask) for mask in kept_in(network).values()]
    counts = kept(found)
    assert all(k in (0, size) or k % MULTIPLE == 0 for k, size in zip(counts, sizes, strict=True))
    smaller_one, words = smaller(found, x)
    assert words is None
    assert [len(mask) for mask in kept_in(smaller_one).values()] == [k for k in counts if k]
    with torch.no_grad():
        torch.testing.assert_close(smaller_one.eval()(x), found.eval()(x), rtol=1e-10, atol=1e-10)
    own = [int(mask.sum()) for mask in kept_in(left(Problem(network, data, none({})), xi)).values()]
    assert all((a == 0) == (b == 0) and a <= b < a + MULTIPLE for a, b in zip(own, counts, strict=True))


def test_a_residual_branch_without_any_channel_still_goes():
    network, _ = small("preresnet-bottleneck")
    branch = next(scale.branch for scale in network.scales() if scale.branch)
    scales = Scales.of(network)
    own = [scale.norm for scale in network.scales() if scale.branch == branch]
    sizes = zip(scales.names, scales.sizes, strict=True)
    xi = torch.cat([torch.full((n,), float(name != own[0]), dtype=F64) for name, n in sizes])
    found = kept_in(left(Problem(network, small_digits(20), none({}), round_to=MULTIPLE), xi))
    assert all(not found[name].any() for name in own)
    assert all(found[name].all() for name in found if name not in own)


def size_by_hand(name: str, counts: list[int]) -> int:
    """Of `vgg` with these numbers of channels."""
    a, b, c = counts
    if name == "macs":
        return 64 * 9 * a + 16 * 9 * a * b + 4 * 9 * b * c + 10 * c
    params = 9 * a + 9 * a * b + 9 * b * c + 2 * (a + b + c) + 10 * c + 10
    return 32 * params + 45 if name == "bits" else params


@pytest.mark.parametrize("value", [0.3, 0.7])
@pytest.mark.parametrize("name", ["ratio", "macs", "bits"])
def test_a_target_is_met_with_multiples_and_as_few_channels_gone_as_possible(name, value):
    network = vgg()
    xi = randn(45) * (torch.arange(45) % 5 > 0)
    dense = size_by_hand(name, [6, 13, 26]) - (45 if name == "bits" else 0)
    best = None
    for count in range(int((xi != 0).sum()) + 1):
        threshold = xi.abs().sort(descending=True).values[:count].min() if count else float("inf")
        own = [int(((part.abs() >= threshold) & (part != 0)).sum()) for part in xi.split([6, 13, 26])]
        counts = [min(n, -(-max(1, k) // MULTIPLE) * MULTIPLE) for k, n in zip(own, (6, 13, 26), strict=True)]
        if size_by_hand(name, counts) <= value * dense:
            best = counts
    p = problem_with(network, MULTIPLE, (name, value))
    found = left(p, xi)
    assert kept(found) == best
    assert size_of(p, removed(found), name) <= value * dense
    assert sum(w.numel() for w in removed(found).parameters()) == size_by_hand("ratio", best)


def test_a_target_that_a_multiple_in_every_layer_exceeds_is_refused():
    p = problem_with(vgg(), 8, ("ratio", 0.1))
    with pytest.raises(
        Unsupported, match=r"target.ratio=0.1 must leave 8 channels \(round_to\) in every layer, which is"
    ):
        slimming().init(p)
    assert slimming().init(problem_with(vgg(), 1, ("ratio", 0.1))).k == 0


def network_slimming(num_steps: int = 4, fine_tune: int = 2, **settings: object) -> NetworkSlimming:
    given = {"lam": 0.01, "percent": 0.5, "batch_size": 20}
    return NetworkSlimming(num_steps=num_steps, fine_tune=fine_tune, **(given | settings))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return PreResNet((1, 8, 8), 10, depth=11, width=0.5).to(F64)


@pytest.mark.parametrize(("make", "target"), [(vgg, None), (residual, None), (vgg, ("ratio", 0.6))])
def test_the_channels_that_rounding_keeps_are_fine_tuned(make, target):
    p, method = problem_with(make(), MULTIPLE, target), network_slimming()
    states = [copy.deepcopy(iterate.state) for iterate in method.run(p, 4)]
    before, tuned, last = (method.slimmed(p, state).network for state in states[2:])
    keep = torch.cat(list(kept_in(before).values()))
    assert all(k in (0, n) or k % MULTIPLE == 0 for k, n in zip(kept(before), Scales.of(p.model).sizes, strict=True))
    for state in states[3:]:
        assert torch.equal(state.keep != 0, keep)
    without = Problem(p.model, p.data, p.plan, target=target)
    plain = method.slimmed(without, states[2]).network  # what would have stayed
    back = keep & ~torch.cat(list(kept_in(plain).values()))
    assert bool(back.any())
    assert torch.equal(states[-1].plain != 0, torch.cat(list(kept_in(plain).values())))
    moved = Scales.of(last).gamma() - Scales.of(tuned).gamma()
    assert bool((moved[back] != 0).all())
    assert kept(last) == kept(before)
    for state in states[2:]:
        assert kept(method.unrounded(p, state)) == kept(plain)
    if target is not None:
        assert size_of(p, removed(last), "ratio") <= 0.6 * sum(w.numel() for w in p.model.parameters())


def test_fine_tuning_of_multiples_is_taken_up_again_bit_for_bit(tmp_path):
    p, method = problem_with(vgg(), MULTIPLE), network_slimming()
    *_, whole = method.run(p, 4)
    *_, part = method.run(p, 3)
    packed = checkpoint.pack(part.state)
    state = checkpoint.restore(method.init(p), packed, tmp_path)
    *_, resumed = method.run(p, 4, state=state)
    assert torch.equal(resumed.state.keep, whole.state.keep)
    assert torch.equal(resumed.state.plain, whole.state.plain)
    pairs = zip(resumed.state.model.state_dict().values(), whole.state.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_of_a_network_that_declares_nothing_the_channels_of_a_chain_are_multiples_too():
    torch.manual_seed(0)
    chain = [nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 9, 3), nn.BatchNorm2d(9), nn.ReLU()]
    network = nn.Sequential(*chain, nn.Flatten(), nn.Linear(144, 10)).to(F64).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.9)
            nn.init.uniform_(module.bias, 0.1, 0.3)
    xi = torch.zeros(19, dtype=F64)
    xi[[0, 1, 2, 3, 4, 10]] = 1.0
    found = left(problem_with(network, MULTIPLE), xi)
    x = small_digits(20).train.x[:4]
    smaller_one, words = smaller(found, x)
    assert words is None
    assert (smaller_one[0].weight.shape[0], smaller_one[3].weight.shape[0]) == (8, 4)
    with torch.no_grad():
        torch.testing.assert_close(smaller_one.eval()(x), found.eval()(x), rtol=1e-10, atol=1e-10)


# Runs.

DATA = ["dataset.train_size=200", "dataset.test_size=100"]


def note(folder: Path) -> list[str]:
    """What the compression table says of rounding."""
    notes = next(table.notes for table in run_tables(read_run(folder)) if table.name == "compression")
    return [words for words in notes if words.startswith("round_to")]


@pytest.mark.usefixtures("apart")
def test_a_run_of_low_rank_has_multiples_in_its_file_and_says_what_that_added(tmp_path):
    words = [*DATA, "solver=sgd", "solver.num_steps=1", "model.widths=[40,30]", "compression=low_rank"]
    words += ["compression.rank=5"]
    assert train(tmp_path / "plain", *words) == 0
    assert train(tmp_path / "run", *words, "round_to=8") == 0
    plain, ends = summary(tmp_path / "plain"), summary(tmp_path / "run")
    added = 3 * (64 + 40) + 3 * (40 + 30)
    assert (plain["round_to"], ends["round_to"]) == (1, 8)
    assert ends["round_to/params"] == plain["params/compressed"] == ends["params/compressed"] - added
    assert not any(key.startswith("round_to/") for key in plain)
    assert note(tmp_path / "plain") == []
    shares = [f"{ends[key] / ends['params/dense']:.4g}" for key in ("round_to/params", "params/compressed")]
    said = f"round_to = 8: rank 5 → 8 (fc1.weight, fc2.weight); parameters {shares[0]} → {shares[1]} of dense."
    assert note(tmp_path / "run") == [said]
    assert [task["theta"] for task in ends["tasks"]] == ["U 40x8, V 8x64", "U 30x8, V 8x40"]


@pytest.mark.usefixtures("apart")
def test_a_target_of_a_run_is_met_with_multiples(tmp_path):
    words = [*DATA, "solver=sgd", "solver.num_steps=0", "model.widths=[80,60]", "round_to=8", "target.ratio=0.6"]
    assert train(tmp_path / "ranks", *words, "compression=low_rank") == 0
    ends = summary(tmp_path / "ranks")
    assert ends["ratio/params"] == ends["target/achieved"] <= 0.6
    assert ends["target/setting"] == "rank=16"
    assert note(tmp_path / "ranks") == ["round_to = 8: there was nothing to round."]
    assert train(tmp_path / "rows", *words, "compression=group_l0") == 0
    ends = summary(tmp_path / "rows")
    assert ends["ratio/params"] <= 0.6
    assert [change["what"] for change in ends["round_to/changed"]] == ["rows"] * len(ends["round_to/changed"])
    assert all(change["after"][0] % 8 == 0 or change["after"][0] == 60 for change in ends["round_to/changed"])


@pytest.mark.usefixtures("apart")
def test_learned_ranks_are_multiples_and_what_that_changes_is_left_open(tmp_path):
    words = [*DATA, "solver=sgd", "solver.num_steps=1", "model.widths=[40,30]", "round_to=8"]
    assert train(tmp_path / "run", *words, "compression=rank_selection", "compression.alpha=3e-3") == 0
    ends = summary(tmp_path / "run")
    assert ends["round_to/params"] is None
    assert note(tmp_path / "run") == ["round_to = 8: chosen among the multiples (fc1.weight, fc2.weight)."]
    for task in ends["tasks"]:
        assert int(task["theta"].split()[1].split("x")[1].rstrip(",")) % 8 == 0


SMALL_DATA = ["dataset.train_size=100", "dataset.test_size=50"]
RESNET = ["model=resnet20", "model.depth=8", "model.width=0.5", *SMALL_DATA, "solver.batch_size=20", "eval_every=2"]


SLIMMED = {
    "slimming": ["solver=slimming", "solver.num_steps=1", "target.ratio=0.5"],
    "network_slimming": ["solver=network_slimming", "solver.num_steps=2", "solver.fine_tune=1", "solver.percent=0.6"],
}


@pytest.mark.parametrize("solver", SLIMMED)
@pytest.mark.usefixtures("apart")
def test_a_slimmed_network_is_stored_with_multiples(solver, tmp_path):
    assert train(tmp_path / "run", *RESNET, *SLIMMED[solver], "round_to=8") == 0
    ends = summary(tmp_path / "run")
    assert solver == "network_slimming" or ends["ratio/params"] <= 0.5
    counts = [layer["kept"] for layer in ends["channels"]]
    assert all(count % 8 == 0 for count in counts)
    assert sum(counts) == ends["channels/kept"] == rows(tmp_path / "run")[-1]["channels/kept"] < ends["channels/total"]
    network = load(tmp_path / "run/model")
    assert [int(mask.sum()) for mask in kept_in(network).values()] == [count for count in counts if count]
    assert sum(w.numel() for w in network.parameters()) == ends["params/compressed"]
    before = [ends["round_to/params"], ends["round_to/channels"]]
    assert solver == "slimming" or before < [ends["params/compressed"], ends["channels/kept"]]
    assert solver == "network_slimming" or before[0] <= 0.5 * ends["params/dense"]
    shares = [f"{ends[key] / ends['params/dense']:.4g}" for key in ("round_to/params", "params/compressed")]
    channels = f"channels {before[1]} → {ends['channels/kept']}"
    said = f"round_to = 8: {channels}; parameters {shares[0]} → {shares[1]} of dense."
    assert note(tmp_path / "run") == [said]


@pytest.mark.usefixtures("apart")
def test_bad_values_are_one_sentence(tmp_path, capsys):
    assert_refused(tmp_path / "a", ["round_to=0"], 2, "round_to: must be at least 1, found 0", capsys)
    assert train(tmp_path / "b", "round_to=many") == 2
    words = ["compression=low_rank", "+compression.round_to=0"]
    assert_refused(tmp_path / "c", words, 2, "compression: round_to must be at least 1, found 0", capsys)
