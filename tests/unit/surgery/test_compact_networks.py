"""Networks of layers that hold Θ: trained, exported, compiled, and which of their layers are replaced."""

import copy
import warnings

import pytest
import torch
from cases import case
from compact_cases import RECIPES, dense_of, fc, held, small_network
from problems import F64, randn
from torch import Tensor, nn

from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.plan import Plan
from nncompress.compressions.quantization.codebook import codebook
from nncompress.problem import weights_of
from nncompress.surgery.compact_layers import CompactLayer, CompactLinear, chosen_ways, replace_layers

every_recipe = pytest.mark.parametrize(("recipe", "settings"), RECIPES, ids=[recipe.__name__ for recipe, _ in RECIPES])
pytestmark = pytest.mark.usefixtures("quick")


@every_recipe
def test_training_a_compact_network_lowers_its_loss_and_evaluation_sees_it(recipe, settings):
    network = small_network()
    plan = recipe(weights_of(network), layers="all", **settings)
    layers = replace_layers(network, plan, held(plan, network))
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


# Exported and compiled.


def deployed() -> tuple[nn.Module, nn.Module, Tensor]:
    """A network of a convolution and a linear layer of each recipe, with the weights Δ(Θ) and the compact one."""
    torch.manual_seed(0)
    convolutions = [layer for n in (2, 6, 6) for layer in (nn.Conv2d(n, 6, 3, padding=1), nn.ReLU())]
    linears = [layer for n in (216, 12, 12) for layer in (nn.Linear(n, 12), nn.ReLU())]
    network = nn.Sequential(*convolutions, nn.Flatten(), *linears).to(F64)
    w = weights_of(network)
    names = [sorted(w, key=lambda name: int(name.split(".")[0]))[k::3] for k in range(3)]
    tasks = [
        recipe(w, layers=[name.removesuffix(".weight") for name in own], **settings).tasks
        for own, (recipe, settings) in zip(names, RECIPES, strict=True)
    ]
    plan = Plan.of([task for group in tasks for task in group], w)
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    assert None not in replace_layers(network, plan, thetas)
    return dense.eval(), network.requires_grad_(False).eval(), randn(4, 2, 6, 6)


def test_exported_it_is_the_dense_network_and_nothing_is_measured():
    dense, compact, x = deployed()
    for measured in (False, True):
        with case(measured=measured):
            if measured:
                with torch.no_grad():
                    compact(x)
            choices = len(chosen_ways(compact))
            assert choices == (6 if measured else 0)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(compact, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            assert len(chosen_ways(compact)) == choices
            exported = program.module()
            for n in (4, 2, 9):
                y = randn(n, 2, 6, 6)
                torch.testing.assert_close(exported(y), dense(y), rtol=1e-10, atol=1e-10)


def test_compiled_it_is_the_dense_network_and_nothing_is_measured():
    dense, compact, _ = deployed()
    torch.compiler.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compiled = torch.compile(compact, backend="eager", fullgraph=True)
        for n in (4, 7):
            x = randn(n, 2, 6, 6)
            torch.testing.assert_close(compiled(x), dense(x), rtol=1e-10, atol=1e-10)
    assert chosen_ways(compact) == []


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


@every_recipe
def test_only_plain_layers_of_their_own_weight_are_replaced_and_the_network_stays_right(recipe, settings):
    torch.manual_seed(0)
    network = Branches().to(F64).train()
    plan = recipe(weights_of(network), layers="all", **settings)
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    copied = copy.deepcopy(dense)
    layers = replace_layers(copied, plan, thetas)
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
    layers = replace_layers(compact, plan, thetas)
    assert layers == [None]
    assert not [module for module in compact.modules() if isinstance(module, CompactLayer)]
    assert torch.equal(compact(randn(2, 2, 6, 6)), dense(randn(2, 2, 6, 6)))
    compact = small_network()
    layers = replace_layers(compact, Plan((), {}), [])
    assert layers == []


def test_a_network_that_is_one_layer_becomes_the_compact_layer():
    network = fc().to(F64).eval()
    plan = low_rank(weights_of(network), rank=2, layers="all")
    thetas = held(plan, network)
    dense = dense_of(network, plan, thetas)
    layers = replace_layers(network, plan, thetas)
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
    layers = replace_layers(compact, plan, thetas)
    assert [type(layer) for layer in layers] == [CompactLinear] * 2
    x = randn(2, 5, 16)
    torch.testing.assert_close(compact(x), dense(x), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(compact(x), dense(x), rtol=1e-9, atol=1e-9)
