"""Which way a layer that holds Θ takes: what is measured, once for which sizes, and what decides."""

import logging
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import case
from compact_cases import conv, fc, held, pair_of
from problems import F64, randn
from torch import nn

from nncompress.compressions.decomposition.low_rank import LowRank, low_rank
from nncompress.compressions.plan import Plan
from nncompress.compressions.quantization.codebook import Codebook, codebook
from nncompress.compressions.quantization.uniform import LowPrecision
from nncompress.compressions.sparsity.magnitude import L0
from nncompress.compressions.views import AsMatrix, AsVector
from nncompress.errors import ConfigError
from nncompress.problem import weights_of
from nncompress.surgery import autotune
from nncompress.surgery.autotune import Choice, fastest
from nncompress.surgery.compact_layers import (
    CACHED,
    CHAIN,
    RECONSTRUCT,
    WAYS,
    CompactConv2d,
    CompactLinear,
    chosen_ways,
    compact_layer,
    replace_layers,
)

BLOCKS, BLOCK_SECONDS = autotune.BLOCKS, autotune.BLOCK_SECONDS
pytestmark = pytest.mark.usefixtures("quick")


def test_ways_that_do_not_exist_are_refused():
    for ways, found in ((("fast",), "fast"), ((), "none"), (("chain", "slow", "x"), "slow, x")):
        with pytest.raises(ConfigError, match=f"ways must be some of chain, reconstruct, cached, found {found}$"):
            pair_of(fc(), LowRank(2), AsMatrix(), ways=ways)


def test_the_way_chain_alone_is_refused_at_once_where_there_is_none():
    for dense in (fc(), conv()):
        with pytest.raises(ConfigError, match=r"Codebook\(K=3.*no way chain; take one of reconstruct, cached$"):
            pair_of(dense, Codebook(3), AsVector(), ways=(CHAIN,))
    _, layer = pair_of(fc(), Codebook(3), AsVector(), ways=(CHAIN, CACHED))
    with torch.no_grad():
        layer(randn(2, 20))
    assert [choice.way for choice in layer.choices.values()] == [CACHED]
    with pytest.raises(ConfigError, match="has no way chain"):
        layer.compute(randn(2, 20), CHAIN)
    assert compact_layer(nn.ReLU(), AsMatrix(), layer.theta) is None


def test_the_only_way_allowed_is_taken_without_a_measurement(monkeypatch):
    monkeypatch.setattr(autotune, "_seconds", lambda *arguments: pytest.fail("measured"))
    for way in WAYS:
        with case(way=way):
            dense, layer = pair_of(fc(), LowRank(3), AsMatrix(), ways=(way,))
            with torch.no_grad():
                torch.testing.assert_close(layer(randn(3, 20)), dense(randn(3, 20)))
            assert layer.choices == {(2, 20): Choice(way, {way: 0.0}, {way: layer._macs(randn(3, 20))[way]})}


def test_with_gradients_to_the_bias_alone_nothing_is_measured():
    """Equal seeds give equal records: what descent computes does not hang on a clock."""
    for compression, view in [(LowRank(3), AsMatrix()), (LowPrecision("float16"), AsVector())]:
        dense, layer = pair_of(fc(), compression, view)
        layer.theta.requires_grad_(False)
        layer(randn(3, 20)).square().sum().backward()
        expected = torch.autograd.grad(dense(randn(3, 20)).square().sum(), dense.bias)[0]
        torch.testing.assert_close(layer.bias.grad, expected)
        assert not layer.choices


def test_with_gradients_the_product_is_taken_where_it_has_fewer_operations(monkeypatch):
    taken = []
    for kind in (CompactLinear, CompactConv2d):
        for method in ("contract", "multiply"):
            monkeypatch.setattr(kind, method, spy(getattr(kind, method), method, taken))
    for rank, ways, expected in (
        (3, WAYS, "contract"), (11, WAYS, "multiply"), (11, (CHAIN,), "contract"), (3, (CACHED,), "multiply"),
    ):  # fmt: skip
        _, layer = pair_of(fc(), LowRank(rank), AsMatrix(), ways=ways)
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


def test_a_way_is_chosen_once_for_each_power_of_two_of_samples_and_each_size(monkeypatch, caplog):
    asked = []

    def fake(ways, macs, device):
        asked.append(dict(macs))
        return Choice(list(ways)[len(asked) % len(ways)], {}, dict(macs))

    monkeypatch.setattr("nncompress.surgery.compact_layers.fastest", fake)
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
    assert [row["samples"] for row in chosen_ways(layer)] == [1, 2, 4, 2]


def test_the_dense_weight_is_kept_only_while_a_choice_needs_it(monkeypatch):
    choices = iter([CHAIN, CACHED, RECONSTRUCT])

    def fake(ways, macs, device):
        for way in ways.values():
            way()
        return Choice(next(choices), {}, dict(macs))

    monkeypatch.setattr("nncompress.surgery.compact_layers.fastest", fake)
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
    monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=found.perf_counter))
    monkeypatch.setattr(autotune, "BLOCKS", BLOCKS)
    monkeypatch.setattr(autotune, "BLOCK_SECONDS", BLOCK_SECONDS)
    return found


CPU = torch.device("cpu")


def choose(clock: Clock, macs: dict[str, int], **costs: Any) -> Choice:
    ways = {name: clock.way(name, *(cost if isinstance(cost, tuple) else (cost,))) for name, cost in costs.items()}
    return fastest(ways, macs, CPU)


def test_the_fastest_way_is_taken_and_its_time_told(clock):
    choice = choose(clock, {"a": 5, "b": 5, "c": 5}, a=3e-4, b=2e-4, c=2.5e-4)
    assert choice.way == "b"
    assert choice.seconds == pytest.approx({"a": 3e-4, "b": 2e-4, "c": 2.5e-4})
    assert choice.macs == {"a": 5, "b": 5, "c": 5}


def test_what_is_made_once_does_not_count(clock):
    assert choose(clock, {"a": 5, "b": 5}, a=(1.0, 1e-4), b=2e-4).way == "a"


def test_a_slow_call_among_others_does_not_count(clock):
    assert choose(clock, {"a": 5, "b": 5}, a=(1e-4, 1e-4, 1e-4, 9e-4, 1e-4), b=2e-4).way == "a"


def test_of_equally_fast_ways_the_first_is_taken(clock):
    assert choose(clock, {"a": 9, "b": 5}, a=2.04e-4, b=2e-4).way == "a"
    assert choose(clock, {"c": 9, "d": 5}, c=2.1e-4, d=2e-4).way == "d"
    assert choose(clock, {"e": 1, "f": 1}, e=0.0, f=0.0).way == "e"


def test_a_hopeless_way_is_not_called_and_a_slow_one_not_often(clock):
    many = autotune.CHEAP
    macs = {"a": 3200 * many, "b": 100 * many, "c": 3201 * many, "d": 200 * many}
    choice = choose(clock, macs, a=1e-4, b=2e-4, c=1e-9, d=4e-4)
    assert choice.way == "a"
    assert choice.seconds.keys() == {"a", "b", "d"}
    assert "c" not in clock.calls
    assert clock.calls["d"] == 3
    assert clock.calls["a"] == 3 + autotune.BLOCKS * 10
    assert choose(clock, {"x": 0, "y": many + 1}, x=9.0, y=1e-9).way == "x"
    assert "y" not in clock.calls


def test_a_way_of_seconds_is_called_few_times(clock):
    choose(clock, {"a": 5, "b": 5}, a=2.0, b=2.5)
    assert clock.calls == {"a": 3 + autotune.BLOCKS, "b": 3 + autotune.BLOCKS}


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
    replace_layers(compact, plan, held(plan, network))
    monkeypatch.setattr(autotune, "measure", lambda ways, device: {name: 0.001 * len(name) for name in ways})
    assert chosen_ways(compact) == []
    with torch.no_grad():
        compact(randn(6, 20))
    assert chosen_ways(compact) == [
        {"layer": "0.weight", "samples": 4, "way": CHAIN, "ms/chain": 5.0, "ms/reconstruct": 11.0, "ms/cached": 6.0,
         "macs/chain": 6 * 96, "macs/dense": 6 * 240},
        {"layer": "2.weight", "samples": 4, "way": CACHED, "ms/chain": None, "ms/reconstruct": 11.0, "ms/cached": 6.0,
         "macs/chain": None, "macs/dense": 6 * 84},
    ]  # fmt: skip


def test_a_recurring_use_of_equal_sizes_measures_once(monkeypatch):
    measured = []
    original = autotune.measure
    monkeypatch.setattr(autotune, "measure", lambda ways, device: measured.append(1) or original(ways, device))
    _, layer = pair_of(fc(), LowRank(3), AsMatrix())
    with torch.no_grad():
        outputs = [layer(randn(3, 20)) for _ in range(3)]
    assert len(measured) == 1
    assert all(torch.equal(a, b) for a, b in pairwise(outputs))
