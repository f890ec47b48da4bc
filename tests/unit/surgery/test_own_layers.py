"""A compression's own layer (`Compression.layer`) is what compact networks compute with: loaded, trained, exported."""

import copy
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import own_example  # noqa: F401  (before the parts)
import pytest
import torch
from artefact_cases import projected, saved
from compact_cases import dense_of, fc, held, small_network
from problems import F64, problem_of, randn
from torch import Tensor, nn

from nncompress.artefact.model import load
from nncompress.compressions.base import Factorised
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.plan import Plan, Task
from nncompress.compressions.views import AsMatrix
from nncompress.problem import Problem, weights_of
from nncompress.solvers.lc.baselines import DCRetrain
from nncompress.solvers.lc.direct_learning import CompressedNetwork
from nncompress.surgery.compact_layers import chosen_ways, replace_layers
from nncompress.surgery.theta import OwnLayer

from my_parts.compressions import Circulant, CirculantLinear, circulant  # isort: skip

F32 = torch.float32


class Means(NamedTuple):
    """The mean of each row of a weight, and how long the rows are."""

    rows: Tensor
    length: int


@dataclass(frozen=True)
class Constant(Factorised[Means]):
    """Weights whose rows are constant: a layer sums its inputs."""

    exact: ClassVar[bool] = True

    def project(self, w: Tensor, mu: float, start: Means | None) -> Means:
        return Means(w.flatten(1).mean(1), math.prod(w.shape[1:]))

    def decompress(self, theta: Means) -> Tensor:
        return theta.rows[:, None].expand(-1, theta.length).clone()

    def layer(self, theta: Means, layer: nn.Module) -> nn.Module | None:
        return SumLinear(theta.rows, layer.bias) if isinstance(layer, nn.Linear) else None


@dataclass(frozen=True)
class Copied(Constant):
    """The same with a layer that copies Θ into a parameter of its own."""

    def layer(self, theta: Means, layer: nn.Module) -> nn.Module | None:
        return SumLinear(nn.Parameter(theta.rows.detach().clone()), layer.bias)


class SumLinear(nn.Module):
    """Each output is the sum of the inputs times a number; `calls` of all of them."""

    calls: ClassVar[list[torch.Size]] = []

    def __init__(self, rows: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.rows, self.bias = rows, bias

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.shape)
        y = x.sum(-1, keepdim=True) * self.rows
        return y if self.bias is None else y + self.bias


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that layers of this file were given in a test."""
    monkeypatch.setattr(SumLinear, "calls", [])
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "test_own_layers, my_parts")
    return SumLinear.calls


def constant(weights: Any, compression: Constant = Constant(), **_: Any) -> Plan:
    return Plan.of([Task((name,), AsMatrix(), compression) for name in weights], weights)


def with_plan(recipe: Any, **settings: Any) -> Problem:
    p = problem_of("none", F32)
    return Problem(p.model, p.data, recipe(weights_of(p.model), **settings))


def test_the_loaded_network_computes_with_it_what_the_rebuilt_one_computes(tmp_path, calls):
    p = with_plan(constant)
    deployed = saved(tmp_path, p)
    network, x = load(tmp_path, compact=True), p.data.test.x
    torch.testing.assert_close(network(x), deployed(x), rtol=1e-5, atol=1e-6)
    assert len(calls) == len(p.plan.tasks) == sum(isinstance(m, OwnLayer) for m in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    calls.clear()
    load(tmp_path)(x)
    assert not calls


def test_circulant_blocks_are_multiplied_by_fourier_transforms(tmp_path, monkeypatch):
    used: list[int] = []
    forward = CirculantLinear.forward
    monkeypatch.setattr(CirculantLinear, "forward", lambda layer, x: used.append(1) or forward(layer, x))
    for widths, count in (((16, 8), 2), ((16, 9), 1)):  # nine rows are no whole blocks
        network = nn.Sequential(nn.Linear(24, widths[0]), nn.ReLU(), nn.Linear(*widths)).to(F64)
        plan = circulant(weights_of(network), block=8, layers="all")
        thetas = held(plan, network)
        dense = dense_of(network, plan, thetas)
        assert None not in replace_layers(network, plan, thetas)
        for x in (randn(5, 24), randn(2, 3, 24), randn(24)):
            used.clear()
            torch.testing.assert_close(network(x), dense(x), rtol=1e-10, atol=1e-10)
            assert len(used) == count


def test_it_is_made_once_until_theta_changes(monkeypatch):
    network = fc().to(F64)
    plan = constant(weights_of(network))
    thetas = held(plan, network)
    made: list[int] = []
    original = Constant.layer
    monkeypatch.setattr(Constant, "layer", lambda *arguments: made.append(1) or original(*arguments))
    replace_layers(network, plan, thetas)
    made.clear()
    with torch.no_grad():
        x = randn(3, 20)
        for _ in range(3):
            network(x)
        assert len(made) == 1
        thetas[0].free[0].mul_(2)
        network.bias.zero_()
        torch.testing.assert_close(network(x), x @ network.weight.T)
        assert len(made) == 2
        assert len(copy.deepcopy(network)(x)) == 3
        assert len(made) == 3
    assert chosen_ways(network) == []


def test_gradients_reach_theta_through_it_and_through_the_rebuilt_weight_where_it_has_parameters_of_its_own(calls):
    for compression, used in ((Constant(), 1), (Copied(), 0)):
        network = fc().to(F64)
        plan = constant(weights_of(network), compression)
        thetas = held(plan, network)
        replace_layers(network, plan, thetas)
        x = randn(3, 20)
        expected = x.sum(-1, keepdim=True) * thetas[0].free[0] + network.bias
        gradients = torch.autograd.grad(expected.square().sum(), [thetas[0].free[0], network.bias])
        calls.clear()
        network(x).square().sum().backward()
        assert len(calls) == used
        torch.testing.assert_close([thetas[0].free[0].grad, network.bias.grad], list(gradients))


def test_direct_learning_trains_through_it(calls):
    p = with_plan(constant)
    theta = projected(p).theta
    network = CompressedNetwork(p.model, p.plan, theta)
    assert network.joint == []
    calls.clear()
    assert network(p.data.train.x).requires_grad
    assert len(calls) == len(p.plan.tasks)
    first, *_, last = (it.observation for it in DCRetrain(num_steps=2, lr=0.01).run(p, 2) if it.observation)
    assert last.terms["objective"] < first.terms["objective"]


def test_what_has_no_layer_of_its_own_computes_as_before():
    network = small_network()
    plan = Plan.of(
        [*constant({"0.weight": network[0].weight}).tasks, *low_rank(weights_of(network), rank=2, layers=["5"]).tasks],
        weights_of(network),
    )
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    layers = replace_layers(network, plan, thetas)
    assert [type(layer).__name__ for layer in layers] == ["CompactConv2d", "CompactLinear"]
    with torch.no_grad():
        torch.testing.assert_close(network(randn(2, 2, 6, 6)), dense(randn(2, 2, 6, 6)))


def test_layers_of_torch_of_any_kind_may_have_one():
    class Every(Constant):
        def layer(self, theta: Means, layer: nn.Module) -> nn.Module | None:
            return nn.Embedding.from_pretrained(self.decompress(theta)) if isinstance(layer, nn.Embedding) else None

    network = nn.Sequential(nn.Embedding(7, 4), nn.Conv1d(3, 2, 2)).to(F64)
    plan = constant(weights_of(network), Every())
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    compact = copy.deepcopy(dense)
    assert [layer is not None for layer in replace_layers(compact, plan, thetas)] == [True, False]
    assert isinstance(compact[0], nn.Embedding)
    tokens = torch.tensor([[1, 2, 6]])
    torch.testing.assert_close(compact.requires_grad_(False)(tokens), dense(tokens))


def test_exported_it_is_the_rebuilt_network(tmp_path: Path):
    network = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8)).to(F64)
    plan = circulant(weights_of(network), block=8, layers="all")
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    replace_layers(network, plan, thetas)
    network.requires_grad_(False).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (randn(2, 24),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for n in (2, 5):
            torch.testing.assert_close(program.module()(randn(n, 24)), dense(randn(n, 24)))


def test_the_example_of_the_documents_takes_whole_blocks_alone():
    theta = Circulant(4).compress(randn(8, 10))
    assert Circulant(4).layer(theta, nn.Linear(10, 8)) is None
    assert Circulant(2).layer(Circulant(2).compress(randn(8, 10)), nn.Linear(10, 8)) is not None
