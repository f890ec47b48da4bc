"""Layers that hold Θ: by every plan they are the dense layer, in values and in gradients; and how they choose."""

import copy
import io
import logging
import warnings
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compression_cases import CASES
from problems import F64, randn
from test_products import KERNEL, MATRIX, ON_KERNELS, ON_MATRICES
from torch import Tensor, nn
from torch.nn.functional import linear

from nncompress.compact import planning
from nncompress.compact.layers import (
    CACHED,
    CHAIN,
    PLANS,
    RECONSTRUCT,
    CompactConv2d,
    CompactLayer,
    CompactLinear,
    chosen_plans,
    compact_layer,
    compacted,
)
from nncompress.compact.planning import Choice, fastest
from nncompress.compact.theta import HeldTheta, power_of_two
from nncompress.compressions.base import Compression
from nncompress.compressions.codebook import Codebook, codebook
from nncompress.compressions.cp import CP
from nncompress.compressions.low_rank import LowRank, low_rank
from nncompress.compressions.nonconvex import LHalfPenalty
from nncompress.compressions.plan import Plan
from nncompress.compressions.quantization import FixedCodebook, ScaledBinary, ScaledTernary
from nncompress.compressions.sparsity import L0, L1, L1Penalty, l0
from nncompress.compressions.structured import NM
from nncompress.compressions.tt_matrix import TTMatrix
from nncompress.compressions.uniform import LowPrecision, Uniform
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector, View
from nncompress.errors import ConfigError
from nncompress.problem import weights_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements: no fact here hangs on what they give."""
    monkeypatch.setattr(planning, "BLOCKS", 1)
    monkeypatch.setattr(planning, "BLOCK_SECONDS", 1e-5)


BLOCKS, BLOCK_SECONDS = planning.BLOCKS, planning.BLOCK_SECONDS
DENSE_ONLY = [
    (Codebook(3), AsVector()), (Codebook(2, per_channel=True), AsMatrix()), (FixedCodebook((-0.3, 0.3)), AsVector()),
    (ScaledBinary(), AsMatrix()), (ScaledTernary(per_channel=True), AsMatrix()), (Uniform(4), AsVector()),
    (Uniform(3, symmetric=False, per_channel=True), AsMatrix()), (LowPrecision("float16"), AsVector()),
    (LowPrecision("float8_e4m3fn"), AsVector()),
]  # fmt: skip
SPARSE = [(L1(2.0), AsVector()), (L1Penalty(0.3), AsVector()), (LHalfPenalty(0.2), AsVector())]
OF_LINEAR = [
    *[p.values for p in ON_MATRICES], *DENSE_ONLY, *SPARSE, (NM(2, 4), AsTensor(MATRIX)), (LowRank(12), AsMatrix()),
]  # fmt: skip
OF_CONV = [*[p.values for p in ON_KERNELS], *DENSE_ONLY, *SPARSE, (NM(2, 4), AsTensor(KERNEL))]
SMOOTH = [pair for pair in OF_LINEAR if pair not in DENSE_ONLY]


def named(pairs: list[tuple[Any, Any]]) -> list[Any]:
    return [pytest.param(*pair, id=f"{k}-{type(pair[0]).__name__}") for k, pair in enumerate(pairs)]


def pair_of(
    dense: nn.Module, compression: Compression[Any], view: View, plans: Any = PLANS
) -> tuple[nn.Module, CompactLayer]:
    """A layer whose weight is Δ(Π(w)), and the compact one of the same bias."""
    dense = dense.to(F64)
    theta = compression.compress(view.join([randn(*dense.weight.shape)]))
    with torch.no_grad():
        dense.weight.copy_(view.split(compression.decompress(theta), [dense.weight.shape])[0])
    return dense, compact_layer(copy.deepcopy(dense), view, HeldTheta(compression, theta), plans=plans)


def fc(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(20, 12, bias=bias)


def conv(bias: bool = True, **geometry: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 6, (3, 2), bias=bias, **geometry)


def plans_of(layer: CompactLayer) -> list[str]:
    """The plans it can take."""
    return list(PLANS) if layer.product() is not None else [RECONSTRUCT, CACHED]


def check_plans(dense: nn.Module, compact: CompactLayer, x: Tensor) -> None:
    """Every plan, the chosen one, and the one with gradients."""
    before, expected = x.clone(), dense(x).detach()
    assert compact.use(x).positions * expected.shape[1 if dense.weight.dim() == 4 else -1] * len(x) == expected.numel()
    for plan in plans_of(compact):
        for _ in range(2):
            found = compact.compute(x, plan)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        chosen = compact(x)
    torch.testing.assert_close(chosen, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compact(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)
    assert torch.equal(compact.weight, dense.weight)


def check_alone(dense: nn.Module, compact: CompactLayer, x: Tensor) -> None:
    """Without and with gradients."""
    for keep in (False, True):
        with torch.set_grad_enabled(keep):
            torch.testing.assert_close(compact(x), dense(x), rtol=1e-10, atol=1e-10)


# The same as the dense layer.


@pytest.mark.parametrize(("compression", "view"), named(OF_LINEAR))
@pytest.mark.parametrize("bias", [False, True])
def test_every_plan_of_a_linear_layer_gives_what_the_dense_weight_gives(compression, view, bias):
    dense, compact = pair_of(fc(bias), compression, view)
    assert isinstance(compact, CompactLinear)
    assert (compact.bias is None) is (dense.bias is None)
    for lead in ((1,), (3,), (17,), (2, 5), (3, 1, 2)):
        check_plans(dense, compact, randn(*lead, 20))
    for x in (randn(20), randn(0, 20), randn(0, 4, 20), randn(4, 0, 20)):
        check_alone(dense, compact, x)
    check_plans(dense, compact, randn(5, 20).T.contiguous().T)


GEOMETRIES: list[dict[str, Any]] = [
    {}, {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}, {"padding": "same"}, {"padding": "same", "dilation": 2},
    {"padding": "valid", "stride": 3}, {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "circular"}, {"padding": 1, "padding_mode": "replicate"},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("compression", "view"), named(OF_CONV))
def test_every_plan_of_a_convolution_gives_what_the_dense_kernel_gives(compression, view):
    of_each_form = compression in (LowRank(3), Codebook(3), L0(0.2), TTMatrix(3, (3, 2), (12, 4)), CP(4))
    for geometry in GEOMETRIES if of_each_form else GEOMETRIES[:2]:
        dense, compact = pair_of(conv(bool(geometry), **geometry), compression, view)
        assert isinstance(compact, CompactConv2d)
        for n in (1, 3) if geometry else (1, 3, 17):
            check_plans(dense, compact, randn(n, 8, 7, 6))
        check_alone(dense, compact, randn(0, 8, 7, 6))
        check_plans(dense, compact, randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last))


def test_a_compact_layer_says_what_networks_ask_of_the_one_it_stands_for():
    dense, compact = pair_of(fc(), LowRank(2), AsMatrix())
    assert (compact.in_features, compact.out_features) == (20, 12)
    assert compact.weight.shape == dense.weight.shape
    assert "12 x 20, LowRank(rank=2), plans=chain, reconstruct, cached" in repr(compact)
    dense, compact = pair_of(conv(stride=2, padding=1), LowRank(2), AsMatrix())
    for field in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(compact, field) == getattr(dense, field)


# Θ as a module.


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("compression", "shape", "exact"), CASES)
def test_held_theta_is_theta(compression, shape, exact, scaled):
    theta = compression.compress(randn(*shape))
    held = HeldTheta(compression, theta, scaled=scaled)
    assert_same(held.value, theta)
    assert torch.equal(held.delta(), compression.decompress(theta))
    free: list[Tensor] = []
    compression.map_free(theta, lambda t: free.append(t) or t)
    assert [p.shape for p in held.parameters()] == [t.shape for t in free]
    assert all(p.requires_grad for p in held.parameters())
    other = HeldTheta(compression, compression.compress(randn(*shape)), scaled=scaled)
    copied = copy.deepcopy(held)
    with torch.no_grad():
        for tensor in held.parameters():
            tensor.mul_(3)
    assert_same(copied.value, theta)
    if [t.shape for t in other.state_dict().values()] == [t.shape for t in copied.state_dict().values()]:
        other.load_state_dict(copied.state_dict())
        assert_same(other.value, theta)
    single = copied.float()
    assert single.delta().dtype == torch.float32
    torch.testing.assert_close(single.double().delta(), compression.decompress(theta), rtol=1e-5, atol=1e-6)


def assert_same(a: Any, b: Any) -> None:
    """The same classes, values and types."""
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.double(), b.double())
    elif isinstance(a, tuple):
        assert (type(a), len(a)) == (type(b), len(b))
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_held_theta_shares_nothing_with_the_theta_it_was_made_of():
    theta = LowRank(2).compress(randn(6, 5))
    held = HeldTheta(LowRank(2), theta)
    with torch.no_grad():
        held.free[0].zero_()
    assert bool(theta.U.abs().sum() > 0)
    with pytest.raises(AttributeError):
        held.nothing  # noqa: B018


def test_powers_of_two_are_the_nearest():
    sizes = torch.tensor([0.0, 1.0, 1.4, 1.5, 2.0, 0.25, 3.0, 0.7, 0.72, 1000.0, 1e-30])
    found = power_of_two(sizes)
    assert found[:10].tolist() == [1, 1, 1, 2, 2, 0.25, 4, 0.5, 1, 1024]
    ratio = found[1:] / sizes[1:]
    assert bool((ratio <= 2**0.5 * 1.000001).all() and (ratio >= 0.5**0.5 / 1.000001).all())


# Storage and changes.


@pytest.mark.parametrize("pair", [(LowRank(3), AsMatrix()), (L0(0.3), AsVector()), (Codebook(3), AsVector())], ids=str)
def test_what_is_kept_of_theta_is_made_anew_when_theta_changes(pair):
    x = randn(4, 20)

    def in_place(layer):
        layer.theta.free[0].mul_(1.5)

    def by_a_view(layer):
        layer.theta.free[0][0].add_(1)

    def in_inference_mode(layer):
        with torch.inference_mode():
            layer.theta.free[0].mul_(1.5)

    def loaded(layer):
        layer.load_state_dict({k: 1.25 * v if v.is_floating_point() else v for k, v in layer.state_dict().items()})

    def assigned(layer):
        state = {k: 1.25 * v if v.is_floating_point() else v for k, v in layer.state_dict().items()}
        layer.load_state_dict(state, assign=True)

    def replaced(layer):
        layer.theta.free[0] = nn.Parameter(1.5 * layer.theta.free[0])

    def of_another_type(layer):
        layer.float().double().theta.free[0].mul_(1.5)

    def stepped(layer):
        with torch.enable_grad():
            layer(x).square().sum().backward()
        torch.optim.SGD(layer.theta.parameters(), 0.01).step()

    for change in (in_place, by_a_view, in_inference_mode, loaded, assigned, replaced, of_another_type, stepped):
        _, layer = pair_of(fc(), *pair)
        with torch.no_grad():
            before = {plan: layer.compute(x, plan) for plan in plans_of(layer)}
            change(layer)
            expected = linear(x, layer.view.split(layer.theta.delta(), [layer.shape])[0], layer.bias)
            for plan, old in before.items():
                assert not torch.allclose(old, expected), change.__name__
                torch.testing.assert_close(layer.compute(x, plan), expected)


def test_swapped_parameters_are_taken_and_given_back():
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    x = randn(4, 20)
    other = {name: 2 * tensor for name, tensor in layer.state_dict().items() if "free" in name}
    with torch.no_grad():
        for plan in PLANS:
            layer.plans = (plan,)
            layer.choices.clear()
            expected = layer(x)
            found = torch.func.functional_call(layer, other, (x,))
            torch.testing.assert_close(found - layer.bias, 4 * (expected - layer.bias))
            assert torch.equal(layer(x), expected)


def test_what_is_kept_stays_while_theta_does(monkeypatch):
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    made = []
    monkeypatch.setattr(LowRank, "decompress", lambda self, theta: made.append(1) or theta.U @ theta.V)
    for _ in range(3):
        layer.compute(randn(4, 20), CACHED)
    assert len(made) == 1
    layer.compute(randn(4, 20), RECONSTRUCT)
    layer.compute(randn(4, 20), RECONSTRUCT)
    assert len(made) == 3


@pytest.mark.parametrize(("compression", "view"), named([OF_LINEAR[0], OF_LINEAR[4], OF_LINEAR[10], *DENSE_ONLY]))
def test_state_copies_and_types_keep_the_function(compression, view):
    dense, layer = pair_of(fc(), compression, view)
    x = randn(4, 20)
    with torch.no_grad():
        expected = dense(x)
        layer(x)
        copied = copy.deepcopy(layer)
        layer.bias.zero_()
        for tensor in layer.theta.free:
            tensor.zero_()
        torch.testing.assert_close(copied(x), expected)
        layer.load_state_dict(copied.state_dict())
        torch.testing.assert_close(layer(x), expected)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)
        single = copied.float()
        assert single(x.float()).dtype == torch.float32
        torch.testing.assert_close(single(x.float()), expected.float(), rtol=1e-4, atol=1e-5)
        assert single.double()(x).dtype == F64


def test_a_copy_keeps_choices_but_nothing_that_was_made_and_another_type_neither():
    _, layer = pair_of(fc(), LowRank(3), AsMatrix(), plans=(CACHED,))
    with torch.no_grad():
        layer(randn(4, 20))
    assert layer._kept
    copied = copy.deepcopy(layer)
    assert not copied._kept
    assert copied.choices == layer.choices
    assert copied.choices is not layer.choices
    assert not layer.float()._kept
    assert not layer.choices


def test_in_inference_mode_a_layer_works_and_nothing_made_there_spoils_gradients():
    for compression, view in SMOOTH:
        with torch.inference_mode():
            dense, layer = pair_of(fc(), compression, view)
            torch.testing.assert_close(layer(randn(3, 20)), dense(randn(3, 20)))
            torch.testing.assert_close(layer(randn(3, 20)), dense(randn(3, 20)))
        dense, layer = pair_of(fc(), compression, view)
        with torch.inference_mode():
            for plan in plans_of(layer):
                torch.testing.assert_close(layer.compute(randn(3, 20), plan), dense(randn(3, 20)))
        layer.theta.requires_grad_(False)
        x = randn(3, 20).requires_grad_()
        product = layer.product()
        for plan in PLANS if product is not None and product.plain else (RECONSTRUCT, CACHED):
            found = torch.autograd.grad(layer.compute(x, plan).square().sum(), x)
            torch.testing.assert_close(found, torch.autograd.grad(dense(x).square().sum(), x))


# Gradients.


@pytest.mark.parametrize(("compression", "view"), named(OF_LINEAR))
def test_gradients_of_a_linear_layer_are_those_of_the_dense_one(compression, view):
    dense, layer = pair_of(fc(), compression, view)
    for lead in ((3,), (2, 4)):
        check_gradients(dense, layer, randn(*lead, 20))


@pytest.mark.parametrize(("compression", "view"), named(OF_CONV))
def test_gradients_of_a_convolution_are_those_of_the_dense_one(compression, view):
    dense, layer = pair_of(conv(stride=2, padding=1), compression, view)
    check_gradients(dense, layer, randn(2, 8, 6, 5))


def check_gradients(dense: nn.Module, layer: CompactLayer, x: Tensor) -> None:
    """With respect to x, the bias and what is free of Θ; what an evaluation kept before is not in the way."""
    with torch.no_grad():
        layer(x)
        for plan in plans_of(layer):
            layer.compute(x, plan)
    given = x.clone().requires_grad_()
    free = [tensor for tensor in layer.theta.free if tensor.numel()]
    weight = layer.weight
    (expected_x, expected_bias, by_weight) = torch.autograd.grad(
        dense(given).square().sum(), (given, dense.bias, dense.weight)
    )
    expected = torch.autograd.grad(weight, free, by_weight) if free else ()
    found = torch.autograd.grad(layer(given).square().sum(), (given, layer.bias, *free))
    torch.testing.assert_close(found, (expected_x, expected_bias, *expected), rtol=1e-9, atol=1e-9)
    if free:
        found = torch.autograd.grad(layer(x).square().sum(), (layer.bias, *free))  # x itself needs none
        torch.testing.assert_close(found, (expected_bias, *expected), rtol=1e-9, atol=1e-9)


def test_with_gradients_to_the_bias_alone_nothing_is_measured():
    """Equal seeds give equal records: what descent computes does not hang on a clock."""
    for compression, view in [(LowRank(3), AsMatrix()), (LowPrecision("float16"), AsVector())]:
        dense, layer = pair_of(fc(), compression, view)
        layer.theta.requires_grad_(False)
        layer(randn(3, 20)).square().sum().backward()
        expected = torch.autograd.grad(dense(randn(3, 20)).square().sum(), dense.bias)[0]
        torch.testing.assert_close(layer.bias.grad, expected)
        assert not layer.choices


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).to(F64)


def held(plan: Plan, network: nn.Module) -> list[HeldTheta]:
    theta = plan.compress(plan.select(weights_of(network)))
    return [HeldTheta(task.compression, t) for task, t in zip(plan.tasks, theta, strict=True)]


def dense_of(network: nn.Module, plan: Plan, thetas: list[HeldTheta]) -> nn.Module:
    """The network with the weights Δ(Θ)."""
    dense = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in plan.decompress([theta.value for theta in thetas]).items():
            dense.get_parameter(name).copy_(weight)
    return dense


@pytest.mark.parametrize(("recipe", "settings"), [(low_rank, {"rank": 2}), (l0, {"keep": 0.3}), (codebook, {"K": 3})])
def test_training_a_compact_network_lowers_its_loss_and_evaluation_sees_it(recipe, settings):
    network = small_network()
    plan = recipe(weights_of(network), layers="all", **settings)
    layers = compacted(network, plan, held(plan, network))
    compact = network
    assert all(layer is not None for layer in layers)
    x, y = randn(16, 2, 6, 6), torch.arange(16) % 5
    optimizer = torch.optim.Adam(compact.parameters(), 0.01)
    losses = []
    for _ in range(25):
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(compact(x), y)))
        loss = nn.functional.cross_entropy(compact(x), y)
        assert float(loss.detach()) == pytest.approx(losses[-1], rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    assert [layer.choices.keys() for layer in layers] == [{(5, 2, 6, 6)}, {(5, 6, 6, 6)}, {(5, 32)}]


# Which plans.


def test_plans_that_do_not_exist_are_refused():
    for plans, found in ((("fast",), "fast"), ((), "none"), (("chain", "slow", "x"), "slow, x")):
        with pytest.raises(ConfigError, match=f"plans must be some of chain, reconstruct, cached, found {found}$"):
            pair_of(fc(), LowRank(2), AsMatrix(), plans=plans)


def test_the_plan_chain_alone_is_refused_at_once_where_there_is_none():
    for dense in (fc(), conv()):
        with pytest.raises(ConfigError, match=r"Codebook\(K=3.*no plan chain; take one of reconstruct, cached$"):
            pair_of(dense, Codebook(3), AsVector(), plans=(CHAIN,))
    _, layer = pair_of(fc(), Codebook(3), AsVector(), plans=(CHAIN, CACHED))
    with torch.no_grad():
        layer(randn(2, 20))
    assert [choice.plan for choice in layer.choices.values()] == [CACHED]
    with pytest.raises(ConfigError, match="has no plan chain"):
        layer.compute(randn(2, 20), CHAIN)
    with pytest.raises(ConfigError, match="stands for a Linear or Conv2d, found ReLU"):
        compact_layer(nn.ReLU(), AsMatrix(), layer.theta)


@pytest.mark.parametrize("plan", PLANS)
def test_the_only_plan_allowed_is_taken_without_a_measurement(plan, monkeypatch):
    monkeypatch.setattr(planning, "_seconds", lambda *arguments: pytest.fail("measured"))
    dense, layer = pair_of(fc(), LowRank(3), AsMatrix(), plans=(plan,))
    with torch.no_grad():
        torch.testing.assert_close(layer(randn(3, 20)), dense(randn(3, 20)))
    assert layer.choices == {(2, 20): Choice(plan, {plan: 0.0}, {plan: layer._macs(randn(3, 20))[plan]})}


def test_with_gradients_the_product_is_taken_where_it_has_fewer_operations(monkeypatch):
    taken = []
    for kind in (CompactLinear, CompactConv2d):
        for method in ("contract", "multiply"):
            monkeypatch.setattr(kind, method, spy(getattr(kind, method), method, taken))
    for rank, plans, expected in (
        (3, PLANS, "contract"), (11, PLANS, "multiply"), (11, (CHAIN,), "contract"), (3, (CACHED,), "multiply"),
    ):  # fmt: skip
        _, layer = pair_of(fc(), LowRank(rank), AsMatrix(), plans=plans)
        layer(randn(3, 20))
        assert taken.pop() == expected
    for keep in (0.1, 0.9):  # sparse products have no gradients
        _, layer = pair_of(fc(), L0(keep), AsVector())
        layer(randn(3, 20))
        assert taken.pop() == "multiply"


def spy(function: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return called


def test_a_plan_is_chosen_once_for_each_power_of_two_of_samples_and_each_size(monkeypatch, caplog):
    asked = []

    def fake(ways, macs, device):
        asked.append(dict(macs))
        return Choice(list(ways)[len(asked) % len(ways)], {}, dict(macs))

    monkeypatch.setattr("nncompress.compact.layers.fastest", fake)
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    layer.name = "fc.weight"
    with torch.no_grad(), caplog.at_level(logging.DEBUG, "nncompress"):
        for n in (1, 2, 3, 2, 4, 7, 5, 1):
            layer(randn(n, 20))
        layer(randn(2, 5, 20))
    assert list(layer.choices) == [(1, 20), (2, 20), (3, 20), (2, 5, 20)]
    assert asked == [
        {CHAIN: n * 3 * 32, RECONSTRUCT: n * 240 + 240, CACHED: n * 240} for n in (1, 2, 4, 10)
    ]  # fmt: skip
    assert "fc.weight" in caplog.text
    assert [row["samples"] for row in chosen_plans(layer)] == [1, 2, 4, 2]


def test_the_dense_weight_is_kept_only_while_a_choice_needs_it(monkeypatch):
    plans = iter([CHAIN, CACHED, RECONSTRUCT])

    def fake(ways, macs, device):
        for way in ways.values():
            way()
        return Choice(next(plans), {}, dict(macs))

    monkeypatch.setattr("nncompress.compact.layers.fastest", fake)
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    with torch.no_grad():
        for n, kept in ((1, False), (2, True), (4, True)):
            layer(randn(n, 20))
            assert (CACHED in layer._kept) is kept


class Clock:
    """A clock that only the ways move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: dict[str, int] = {}

    def way(self, name: str, *costs: float) -> Callable[[], None]:
        """A way whose calls take these seconds in turn, the last one for ever."""

        def call() -> None:
            k = self.calls.get(name, 0)
            self.calls[name] = k + 1
            self.now += costs[min(k, len(costs) - 1)]

        return call

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=found.perf_counter))
    monkeypatch.setattr(planning, "BLOCKS", BLOCKS)
    monkeypatch.setattr(planning, "BLOCK_SECONDS", BLOCK_SECONDS)
    return found


CPU = torch.device("cpu")


def choose(clock: Clock, macs: dict[str, int], **costs: Any) -> Choice:
    ways = {name: clock.way(name, *(cost if isinstance(cost, tuple) else (cost,))) for name, cost in costs.items()}
    return fastest(ways, macs, CPU)


def test_the_fastest_way_is_taken_and_its_time_told(clock):
    choice = choose(clock, {"a": 5, "b": 5, "c": 5}, a=3e-4, b=2e-4, c=2.5e-4)
    assert choice.plan == "b"
    assert choice.seconds == pytest.approx({"a": 3e-4, "b": 2e-4, "c": 2.5e-4})
    assert choice.macs == {"a": 5, "b": 5, "c": 5}


def test_what_is_made_once_does_not_count(clock):
    assert choose(clock, {"a": 5, "b": 5}, a=(1.0, 1e-4), b=2e-4).plan == "a"


def test_a_slow_call_among_others_does_not_count(clock):
    assert choose(clock, {"a": 5, "b": 5}, a=(1e-4, 1e-4, 1e-4, 9e-4, 1e-4), b=2e-4).plan == "a"


def test_of_equally_fast_ways_the_first_is_taken(clock):
    assert choose(clock, {"a": 9, "b": 5}, a=2.04e-4, b=2e-4).plan == "a"
    assert choose(clock, {"c": 9, "d": 5}, c=2.1e-4, d=2e-4).plan == "d"
    assert choose(clock, {"e": 1, "f": 1}, e=0.0, f=0.0).plan == "e"


def test_a_hopeless_way_is_not_called_and_a_slow_one_not_often(clock):
    many = planning.CHEAP
    macs = {"a": 3200 * many, "b": 100 * many, "c": 3201 * many, "d": 200 * many}
    choice = choose(clock, macs, a=1e-4, b=2e-4, c=1e-9, d=4e-4)
    assert choice.plan == "a"
    assert choice.seconds.keys() == {"a", "b", "d"}
    assert "c" not in clock.calls
    assert clock.calls["d"] == 3
    assert clock.calls["a"] == 3 + planning.BLOCKS * 10
    assert choose(clock, {"x": 0, "y": many + 1}, x=9.0, y=1e-9).plan == "x"
    assert "y" not in clock.calls


def test_a_way_of_seconds_is_called_few_times(clock):
    choose(clock, {"a": 5, "b": 5}, a=2.0, b=2.5)
    assert clock.calls == {"a": 3 + planning.BLOCKS, "b": 3 + planning.BLOCKS}


def test_what_was_chosen_is_a_table(monkeypatch):
    network = nn.Sequential(fc(), nn.ReLU(), nn.Linear(12, 7))
    plan = Plan.of(
        [
            *low_rank(weights_of(network), rank=3, layers=["0"]).tasks,
            *codebook(weights_of(network), layers=["2"]).tasks,
        ],
        weights_of(network),
    )
    compact = network.to(F64)
    compacted(compact, plan, held(plan, network))
    monkeypatch.setattr(planning, "measured", lambda ways, device: {name: 0.001 * len(name) for name in ways})
    assert chosen_plans(compact) == []
    with torch.no_grad():
        compact(randn(6, 20))
    assert chosen_plans(compact) == [
        {"layer": "0.weight", "samples": 4, "plan": CHAIN, "ms/chain": 5.0, "ms/reconstruct": 11.0, "ms/cached": 6.0,
         "macs/chain": 6 * 96, "macs/dense": 6 * 240},
        {"layer": "2.weight", "samples": 4, "plan": CACHED, "ms/chain": None, "ms/reconstruct": 11.0, "ms/cached": 6.0,
         "macs/chain": None, "macs/dense": 6 * 84},
    ]  # fmt: skip


# Exported and compiled.


def compact_network(recipe: Any, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """A network with the weights Δ(Θ) and the compact one, in evaluation mode."""
    network = small_network()
    plan = recipe(weights_of(network), layers="all", **settings)
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    compacted(network, plan, thetas)
    return dense.eval(), network.requires_grad_(False).eval()


RECIPES = [(low_rank, {"rank": 2}), (l0, {"keep": 0.3}), (codebook, {"K": 3})]


@pytest.mark.parametrize(("recipe", "settings"), RECIPES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("measured", [False, True])
def test_exported_it_is_the_dense_network_and_nothing_is_measured(recipe, settings, measured):
    dense, compact = compact_network(recipe, **settings)
    x = randn(4, 2, 6, 6)
    if measured:
        with torch.no_grad():
            compact(x)
    choices = len(chosen_plans(compact))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(compact, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert len(chosen_plans(compact)) == choices
    for n in (4, 2, 9):
        torch.testing.assert_close(
            program.module()(randn(n, 2, 6, 6)), dense(randn(n, 2, 6, 6)), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(("recipe", "settings"), RECIPES[:2], ids=lambda value: getattr(value, "__name__", ""))
def test_compiled_it_is_the_dense_network_and_nothing_is_measured(recipe, settings):
    dense, compact = compact_network(recipe, **settings)
    torch.compiler.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compiled = torch.compile(compact, backend="eager", fullgraph=True)
        for n in (4, 7):
            x = randn(n, 2, 6, 6)
            torch.testing.assert_close(compiled(x), dense(x), rtol=1e-10, atol=1e-10)
    assert chosen_plans(compact) == []


@pytest.mark.parametrize(("compression", "view"), named(OF_LINEAR))
def test_in_half_precision_and_under_autocast_a_linear_layer_works(compression, view):
    check_half(*pair_of(fc(), compression, view), randn(5, 20))


@pytest.mark.parametrize(("compression", "view"), named(OF_CONV))
def test_in_half_precision_and_under_autocast_a_convolution_works(compression, view):
    check_half(*pair_of(conv(padding=1), compression, view), randn(2, 8, 6, 5))


def check_half(dense: nn.Module, layer: CompactLayer, x: Tensor) -> None:
    """By every plan there then is, and as it chooses itself."""
    expected = dense(x).detach()
    dense, layer, x = dense.float(), layer.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            found = [layer.compute(given, plan) for plan in plans_of(layer)] + [layer(given)]
            with torch.no_grad():
                found.append(layer(given))
            for y in found:
                torch.testing.assert_close(y.to(F64), expected, rtol=0.05, atol=0.2)
    layer, x = layer.bfloat16(), x.bfloat16()
    with torch.no_grad():
        for y in (layer(x), *(layer.compute(x, plan) for plan in plans_of(layer))):
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.to(F64), expected, rtol=0.05, atol=0.2)


# Networks.


class Branches(nn.Module):
    """One layer under two names, a subclass, a grouped convolution, tied weights, a hook, one with more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.twice = nn.Linear(16, 16)
        self.body = nn.ModuleDict({"inner": nn.Sequential(self.twice, nn.ReLU())})
        self.special = nn.modules.linear.NonDynamicallyQuantizableLinear(16, 16)
        self.encode, self.decode = nn.Linear(16, 16), nn.Linear(16, 16)
        self.decode.weight = self.encode.weight
        self.hooked, self.more = nn.Linear(16, 16), nn.Linear(16, 16)
        self.hooked.register_forward_hook(lambda module, given, made: 2 * made)
        self.more.register_buffer("extra", torch.ones(16))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x).relu()).mean(1).flatten(1)
        x = self.body["inner"](self.twice(x)) + self.special(x)
        x = self.hooked(self.decode(self.encode(x).relu()))
        return self.out(self.more(x.view(-1, self.out.in_features)) * self.more.extra)


@pytest.mark.parametrize(("recipe", "settings"), RECIPES, ids=lambda value: getattr(value, "__name__", ""))
def test_only_plain_layers_of_their_own_weight_are_replaced_and_the_network_stays_right(recipe, settings):
    torch.manual_seed(0)
    network = Branches().to(F64).train()
    plan = recipe(weights_of(network), layers="all", **settings)
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    copied = copy.deepcopy(dense)
    layers = compacted(copied, plan, thetas)
    compact = copied
    assert compact is copied
    found = {task.params[0] for task, layer in zip(plan.tasks, layers, strict=True) if layer is not None}
    assert found == {"first.weight", "twice.weight", "out.weight"}
    assert {layer.name for layer in layers if layer is not None} == found
    assert compact.body["inner"][0] is compact.twice
    assert all(module.training for module in compact.modules())
    assert compact.first.bias is not dense.first.bias
    x = randn(5, 2, 4, 4)
    torch.testing.assert_close(compact(x), dense(x), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(compact.eval()(x), dense(x), rtol=1e-10, atol=1e-10)


def test_weights_that_share_a_theta_stay_dense():
    network = small_network()
    plan = codebook(weights_of(network), K=3, per="shared", layers="all")
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    compact = copy.deepcopy(dense)
    layers = compacted(compact, plan, thetas)
    assert layers == [None]
    assert not [module for module in compact.modules() if isinstance(module, CompactLayer)]
    assert torch.equal(compact(randn(2, 2, 6, 6)), dense(randn(2, 2, 6, 6)))
    compact = small_network()
    layers = compacted(compact, Plan((), {}), [])
    assert layers == []


def test_a_network_that_is_one_layer_becomes_the_compact_layer():
    network = fc().to(F64).eval()
    plan = low_rank(weights_of(network), rank=2, layers="all")
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    layers = compacted(network, plan, thetas)
    compact = network
    assert layers == [compact]
    assert isinstance(compact, CompactLinear)
    assert (compact.name, compact.training) == ("weight", False)
    torch.testing.assert_close(compact(randn(3, 20)), dense(randn(3, 20)))


def test_pairs_of_compact_layers_fit_in_where_a_network_reads_the_weight_itself():
    """torch's encoder layer has a path of its own in evaluation, which passes the weights on."""
    torch.manual_seed(0)
    network = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0).to(F64).eval()
    plan = low_rank(weights_of(network), rank=3, layers=["linear1", "linear2"])
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    compact = copy.deepcopy(dense)
    layers = compacted(compact, plan, thetas)
    assert [type(layer) for layer in layers] == [CompactLinear] * 2
    x = randn(2, 5, 16)
    torch.testing.assert_close(compact(x), dense(x), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(compact(x), dense(x), rtol=1e-9, atol=1e-9)


def test_a_recurring_use_of_equal_sizes_measures_once(monkeypatch):
    measured = []
    original = planning.measured
    monkeypatch.setattr(planning, "measured", lambda ways, device: measured.append(1) or original(ways, device))
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    with torch.no_grad():
        outputs = [layer(randn(3, 20)) for _ in range(3)]
    assert len(measured) == 1
    assert all(torch.equal(a, b) for a, b in pairwise(outputs))
