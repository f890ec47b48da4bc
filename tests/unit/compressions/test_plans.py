"""Plans: which weights are compressed by what; sums, mixtures, targets."""

import itertools
from functools import partial

import pytest
import torch
from cases import case
from problems import randn
from torch import nn

from nncompress import metrics
from nncompress.compressions.additive import Additive, Part, additive
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.plan import Plan, Task, each_layer, mixed, none, plan_of
from nncompress.compressions.products import Use
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.quantization.fixed import FixedCodebook, binary, fixed_codebook, ternary
from nncompress.compressions.quantization.uniform import low_precision
from nncompress.compressions.sparsity.magnitude import L0, L1Penalty, l0, l0_penalty
from nncompress.compressions.target import SizeTarget, fit
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector
from nncompress.errors import ConfigError, Diverged
from nncompress.surgery.uses import layers_of, uses_of


def weights():
    return {"a.weight": randn(8, 6), "b.weight": randn(8, 8, seed=1), "out.weight": randn(3, 8, seed=2)}


def ratio_target(w, requested):
    dense = sum(t.numel() for t in w.values())

    def measure(plan):
        return (dense - plan.numel() + plan.num_params(plan.compress(plan.select(w)))) / dense

    return SizeTarget("ratio", measure, requested)


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


def test_plans_that_do_not_fit_are_refused():
    for call, said in (
        (lambda: tt(weights(), modes=[4, 4, 2]), "must multiply to its 48 entries"),
        (lambda: tt(weights(), layers=["nothing"]), "found 'nothing'"),
        (lambda: Plan.of([Task(("a*",), AsVector(), L0(1)), Task(("*",), AsVector(), L0(1))], weights()), "in two"),
        (lambda: Plan.of([Task(("*",), AsTensor((8, 6)), L0(1))], weights()), "takes one weight"),
        (lambda: Plan.of([Task(("*",), AsMatrix(), L0(1))], weights()), "takes one weight"),
        (lambda: l0({"only": randn(3, 3)}, joint=True), "must leave a weight to compress"),
        (lambda: Plan.of([Task(("a",), AsMatrix(2), L0(1))], weights()), "scheme 2 needs a convolution"),
        (lambda: additive(weights(), parts={"tt": tt, "l0": l0}, joint=True), "must see a.weight, b.weight as one"),
        (lambda: mixed(weights(), parts={"one": l0, "two": tt}), "a.weight in two; give them different layers"),
        (lambda: fit(none, weights(), ratio_target(weights(), 0.5)), "needs a compression with one of"),
        (lambda: fit(L0(3), weights(), ratio_target(weights(), 0.5)), "needs a compression with one of"),
        (
            lambda: fit(tt, weights(), ratio_target(weights(), 0.01)),
            "target.ratio must be at least 0.352941, reached at rank=1, found 0.01",
        ),
        (lambda: l0(weights(), layers=[]), "found none; compression=none leaves all"),
        (lambda: mixed(weights(), parts={"one": partial(l0, layers=["x"])}), r"parts\.one: a layer pattern must match"),
        (lambda: mixed(weights(), parts={"one": "hello"}), r"parts\.one: .* found 'hello'"),
        (lambda: additive(weights(), parts={"one": l0, "two": none}), r"parts\.two: .*layers"),
        (lambda: additive(weights(), parts={"one": partial(l0, keep=2.0), "two": l0}), r"parts\.one: keep must be"),
        (lambda: additive(weights(), parts={"one": partial(l0, layers="a"), "two": l0}), "are those of the sum"),
        (lambda: plan_of(lambda w: 3, weights()), "must make a Plan or be a Compression, found int"),
    ):
        with case(said=said), pytest.raises(ConfigError, match=said):
            call()


def test_a_target_is_met_by_the_largest_setting():
    w = {"a.weight": randn(32, 16), "b.weight": randn(32, 32, seed=1), "out.weight": randn(3, 32, seed=2)}
    for recipe, ratio in itertools.product((tt, l0), (0.5, 0.8, 1.0)):
        with case(recipe=recipe.__name__, ratio=ratio):
            target = ratio_target(w, ratio)
            found = fit(recipe, w, target)
            assert target.measure(found.plan) == found.achieved <= ratio
            if recipe is tt and ratio < 1:
                rank = found.plan.tasks[0].compression.rank
                assert found.setting == f"rank={rank}"
                assert target.measure(tt(w, rank=rank + 1)) > ratio
            if recipe is l0:
                assert found.achieved > ratio - 0.001


def test_a_users_compression_is_applied_to_each_layer():
    plan = each_layer(weights(), compression=L0(2))
    assert [task.params for task in plan.tasks] == [("a.weight",), ("b.weight",)]
    assert plan_of(L0(2), weights()) == plan


def test_a_plan_names_the_weight_that_is_not_finite():
    w = weights()
    w["b.weight"][2, 3] = torch.nan
    plan = l0(w)
    with pytest.raises(Diverged, match=r"found 1 NaN and 0 infinite of 64 entries in b\.weight"):
        plan.compress(plan.select(w))


def test_a_compression_with_a_list_from_a_file_is_as_good_as_one_with_a_tuple():
    listed, given = (each_layer(weights(), compression=FixedCodebook(kind([-1.0, 1.0]))) for kind in (list, tuple))
    a, b = (plan.decompress(plan.compress(plan.select(weights()))) for plan in (listed, given))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_tasks_of_one_shape_compressed_together_equal_tasks_on_their_own():
    w = {f"{k}.weight": randn(8, 8, seed=k) for k in range(5)} | {"out.weight": randn(3, 8)}
    for recipe in (l0, partial(tt, rank=2)):
        plan = recipe(w)
        together = plan.decompress(plan.compress(plan.select(w)))
        for task in plan.tasks:
            (name,) = task.params
            alone = task.compression.decompress(task.compression.compress(task.view.join([w[name]])))
            torch.testing.assert_close(together[name].reshape(alone.shape), alone, rtol=0, atol=1e-12)


def test_a_sum_never_gets_worse_over_its_passes_and_beats_each_part():
    w = {"a.weight": randn(12, 10), "out.weight": randn(2, 12)}
    parts = {"sparse": partial(l0, keep=10), "train": partial(tt, rank=2)}

    def error(plan):
        dense = plan.decompress(plan.compress(plan.select(w)))
        return float((w["a.weight"] - dense["a.weight"]).square().sum())

    errors = [error(additive(w, parts=parts, passes=passes)) for passes in (1, 2, 3, 5, 10, 20)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))
    assert errors[-1] < min(error(part(w)) for part in parts.values())


def test_each_part_of_a_sum_is_the_projection_of_what_the_others_leave():
    """With parts that have a penalty too, whose thresholds depend on mu."""
    w, parts = randn(20), (Part(AsVector(), L1Penalty(0.3)), Part(AsVector(), L0(4)))
    compression = Additive(parts, ((20,),), passes=200, tolerance=0.0)
    for mu in (0.3, 1.0, 4.0):
        with case(mu=mu):
            theta = compression.compress(w, mu)
            shrunk, kept = (part.compression.decompress(t) for part, t in zip(parts, theta.parts, strict=True))
            soft = (w - kept).sign() * ((w - kept).abs() - 0.3 / mu).clamp_min(0)
            torch.testing.assert_close(shrunk, soft)
            torch.testing.assert_close(kept, L0(4).decompress(L0(4).compress(w - shrunk)))


def test_a_joint_sum_joins_its_parts():
    plan = additive(weights(), parts={"few": partial(l0, keep=3), "more": partial(l0, keep=5)}, joint=True)
    assert [task.params for task in plan.tasks] == [("a.weight", "b.weight")]
    theta = plan.compress(plan.select(weights()))
    assert [len(t.values) for t in theta[0].parts] == [3, 5]
    assert plan.bits(theta) == sum(L0(n).bits(t) for n, t in zip((3, 5), theta[0].parts, strict=True))
    assert sum(int(torch.count_nonzero(t)) for t in plan.decompress(theta).values()) == 8


def test_what_treats_every_entry_alike_or_can_join_layers_fits_into_a_joint_sum():
    for part in (ternary, binary, low_precision, fixed_codebook, l0_penalty, codebook, L0(2)):
        with case(part=part):
            plan = additive(weights(), parts={"few": partial(l0, keep=3), "part": part}, joint=True)
            (task,) = plan.tasks
            (theta,) = plan.compress(plan.select(weights()))
            alone = task.compression.parts[1].compression
            assert alone.decompress(theta.parts[1]).shape == (48 + 64,)


def test_a_sum_takes_compressions_and_adds_their_products():
    plan = additive(weights(), parts={"one": L0(3), "two": partial(tt, rank=1, modes=[8, 6])}, layers="a")
    theta = plan.compress(plan.select(weights()))
    (task,) = plan.tasks
    assert isinstance(task.compression, Additive)
    assert task.compression.macs(theta[0], Use((8, 6))) == 3 + 8 + 6
    assert str(task.compression) == "L0(keep=3) + TensorTrain(rank=1)"


def test_a_mixture_leaves_layers_alone_that_no_part_names():
    plan = mixed(weights(), parts={"a": partial(l0, layers="a", keep=2), "b": partial(tt, layers="b", rank=1)})
    assert [task.params for task in plan.tasks] == [("a.weight",), ("b.weight",)]
    assert "out.weight" not in plan.shapes


def test_recipes_that_take_the_uses_get_them():
    def recipe(w, *, uses=None, layers="hidden"):
        assert uses == {"a.weight": Use((8, 6))}
        return l0(w, layers=layers)

    uses = {"a.weight": Use((8, 6))}
    assert plan_of(recipe, weights(), uses).tasks
    assert mixed(weights(), parts={"x": recipe}, uses=uses).tasks
    assert plan_of(l0, weights(), uses).tasks


def test_uses_and_macs_of_a_network():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 5))
    layers = layers_of(net, torch.zeros(1, 3, 11, 11))
    assert uses_of(layers) == {
        "0.weight": Use((4, 3, 3, 3), (11, 11), (5, 5)),
        "3.weight": Use((5, 36)),
    }
    w = {name: p.detach() for name, p in net.named_parameters() if p.dim() >= 2}
    dense = 25 * 108 + 9 * 72 + 180
    assert metrics.macs(none(w), (), layers) == {"macs/dense": dense, "macs/compressed": dense, "ratio/macs": 1.0}
    plan = l0(w, keep=10, layers=["0", "1"])
    found = metrics.macs(plan, plan.compress(plan.select(w)), layers)
    assert found["macs/compressed"] == 25 * 10 + 9 * 10 + 180


def test_a_convolution_as_a_matrix_and_back():
    w = randn(4, 3, 2, 5)
    for scheme, shape in ((1, (4, 30)), (2, (8, 15))):
        with case(scheme=scheme):
            view = AsMatrix(scheme)
            matrix = view.join([w])
            assert matrix.shape == shape
            assert torch.equal(view.split(matrix, [w.shape])[0], w)
    assert matrix[3, 7] == w[1, 1, 1, 2]  # row (output 1, height 1), column (input 1, width 2)
