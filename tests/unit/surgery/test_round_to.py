"""`round_to`: ranks and rows as multiples of a number, by hand and by enumeration."""

import itertools
from functools import partial

import pytest
import torch
from cases import case
from compression_cases import CASES
from problems import F64, randn
from torch import Tensor

from nncompress.compressions.additive import additive
from nncompress.compressions.decomposition.cp import cp
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.rank_selection import RankSelection, rank_selection
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.decomposition.tt_matrix import tt_matrix
from nncompress.compressions.decomposition.tucker import tucker
from nncompress.compressions.plan import Plan, mixed, none, plan_of
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.compressions.sparsity.structured import GroupL0, group_l0
from nncompress.compressions.target import Change, SizeTarget, changes, fit, round_up
from nncompress.errors import ConfigError

# Ranks and rows.


def test_a_number_is_rounded_up_but_not_beyond_what_there_is():
    for count, round_to, most, found in [
        (13, 8, 512, 16), (16, 8, 512, 16), (1, 8, 512, 8), (13, 8, 14, 14), (14, 8, 14, 14), (20, 8, 14, 20),
        (0, 8, 5, 0), (-1, 8, 5, -1), (13, 1, 20, 13), (7, 3, 20, 9),
    ]:  # fmt: skip
        with case(count=count, round_to=round_to, most=most):
            assert round_up(count, round_to, most) == found


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


def test_ranks_and_rows_become_multiples_of_8_and_sizes_are_those_counted_by_hand():
    w = weights()
    for name, (recipe, before, few, after, more) in RANKED.items():
        with case(name=name):
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


def test_a_size_is_that_of_every_theta():
    for name, compression, shape in ((param.id, *param.values[:2]) for param in CASES):
        with case(name=name):
            sizes = [(c, s, c.size(s)) for c, s in compression.summands(shape)]
            for part, seen, size in sizes:
                assert size is None or part.num_params(part.compress(randn(*seen))) == size.params
            assert len(sizes) == len(getattr(compression, "parts", [None]))


def test_there_are_no_multiples_of_what_is_below_one():
    for recipe in (low_rank, rank_selection, tt, tt_matrix, tucker, cp, group_l0):
        for round_to in (0, -8):
            with (
                case(recipe=recipe.__name__, round_to=round_to),
                pytest.raises((ValueError, ConfigError), match=f"round_to must be at least 1, found {round_to}"),
            ):
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


def ratio_target(w: dict[str, Tensor], ratio: float) -> SizeTarget:
    total = sum(tensor.numel() for tensor in w.values())

    def measure(plan: Plan) -> float:
        stored = plan.num_params(plan.compress(plan.select(w)))
        return (total - plan.numel() + stored) / total

    return SizeTarget("ratio", measure, ratio)


def test_a_target_is_met_with_the_largest_multiple():
    w = {"a.weight": randn(60, 80), "b.weight": randn(60, 60, seed=1), "out.weight": randn(3, 60, seed=2)}
    for recipe, ratio in itertools.product((low_rank, tt, group_l0), (0.4, 0.6, 0.9)):
        with case(recipe=recipe.__name__, ratio=ratio):
            target = ratio_target(w, ratio)
            found = fit(recipe, w, target, round_to=8)
            assert target.measure(found.plan) == found.achieved <= ratio
            larger = found.value + (1e-4 if recipe is group_l0 else 1)
            assert target.measure(plan_of(recipe, w, round_to=8, **{found.name: larger})) > ratio
            whole = recipe(w, **{found.name: 1.0 if recipe is group_l0 else 100_000})
            for plan_task, whole_task in zip(found.plan.tasks, whole.tasks, strict=True):
                sizes = (task.compression.size(found.plan.seen_shape(task)) for task in (plan_task, whole_task))
                assert all(n % 8 == 0 or n == most for n, most in zip(*(s.counts for s in sizes), strict=True))


def test_a_target_below_the_first_multiple_is_refused():
    w = {"a.weight": randn(32, 32), "out.weight": randn(2, 2)}
    said = r"target.ratio must be at least 0\.501946, reached at rank=1 with round_to=8, found 0\.1"
    with pytest.raises(ConfigError, match=said):
        fit(low_rank, w, ratio_target(w, 0.1), round_to=8)
    assert fit(low_rank, w, ratio_target(w, 0.1)).setting == "rank=1"


# Ranks that are learned.


def allowed(p: int, multiple: int) -> list[int]:
    return sorted({*range(0, p + 1, multiple), p})


def test_the_chosen_rank_is_the_best_of_those_allowed_by_enumeration():
    shapes, multiples = ((5, 5), (4, 9), (12, 10), (1, 6)), (1, 2, 3, 4, 8)
    for (m, n), multiple, capped, seed in itertools.product(shapes, multiples, (False, True), range(6)):
        with case(shape=(m, n), multiple=multiple, capped=capped, seed=seed):
            g = torch.Generator().manual_seed(seed)
            s = torch.rand(min(m, n), generator=g, dtype=F64).sort(descending=True).values
            alpha, mu, positions = 10 ** float(-3 * torch.rand((), generator=g)), 10.0 ** (seed % 3), 1 + seed % 2
            compression = RankSelection(alpha, positions, capped, multiple)
            U, V = (torch.linalg.qr(randn(k, len(s), seed=seed + k)).Q for k in (m, n))
            w = (U * s) @ V.T
            costs = {r: min(r * (m + n), m * n) if capped else r * (m + n) for r in allowed(min(m, n), multiple)}
            values = {r: alpha * positions * c + mu / 2 * float((s[r:] ** 2).sum()) for r, c in costs.items()}
            theta = compression.compress(w, mu)
            gap = float((w - compression.decompress(theta)).square().sum())
            found = mu / 2 * gap + float(compression.penalty(theta))
            assert found == pytest.approx(min(values.values()), rel=1e-10)
            assert theta.is_dense or theta.U.shape[1] == min(values, key=lambda r, values=values: (values[r], r))
            assert compression.compress(w.float(), mu).U.shape == theta.U.shape


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


def test_the_rows_kept_of_several_layers_are_the_best_by_enumeration():
    sizes = ((5, 2), (4, 3))
    for keep, multiple, seed in itertools.product((1, 3, 5, 8), (2, 3), range(4)):
        with case(keep=keep, multiple=multiple, seed=seed):
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
