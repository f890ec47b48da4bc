"""Compression without retraining: what all methods have in common, single weights, networks not as expected."""

import copy
import math

import pytest
import torch
from cases import case
from image_networks import outputs, small
from one_shot_cases import METHODS, NETWORKS, digits_problem, every_class, made, one_shot
from problems import F64, gaussian, mlp, randn
from torch import Tensor, nn

from nncompress.errors import ConfigError, Diverged, Unsupported
from nncompress.experiment.one_shot import Filters, LowRank, Weights
from nncompress.experiment.study import OneShotStudy
from nncompress.problem import Problem

EVERY = [method for methods in METHODS.values() for method in methods]


@every_class
def test_the_network_itself_and_the_random_numbers_are_left_as_they_were(methods):
    for name in [*NETWORKS, "undeclared"]:
        network, x = made(name)
        network.train()
        before = copy.deepcopy(network.state_dict())
        usual = outputs(network, x)
        for method in methods:
            with case(network=name, method=method):
                torch.manual_seed(5)
                state = torch.get_rng_state()
                found = method.compressed_network(network, x, 0.5)
                assert torch.equal(torch.get_rng_state(), state)
                assert network.training
                assert not any(module.training for module in found.modules())
                assert all(map(torch.equal, network.state_dict().values(), before.values()))
                assert not torch.allclose(outputs(found, x), usual)


@every_class
def test_no_part_is_the_network_itself(methods):
    for name in NETWORKS:
        network, x = small(name)
        usual = outputs(network, x)
        for method in methods:
            with case(network=name, method=method):
                found = outputs(method.compressed_network(network, x, 0.0), x)
                torch.testing.assert_close(found, usual, rtol=0, atol=1e-10)
                assert method.distances(network, [0.0]) == [0]


def test_distances_are_those_of_the_compressed_weights():
    network, x = small("resnet18")
    parts = [0.9, 0.3, 0.5]
    zeroing = [Filters(shifts=False), Filters(norm=2, joint=True, shifts=False), Weights(), Weights(everything=True)]
    for method in zeroing:
        weights = method.weights(network)
        whole = sum(float(w.square().sum()) for w in weights.values())
        for part, distance in zip(parts, method.distances(network, parts), strict=True):
            with case(method=method, part=part):
                after = dict(method.compressed_network(network, x, part).named_parameters())
                gone = sum(float((w - after[name].detach()).square().sum()) for name, w in weights.items())
                assert distance == pytest.approx(math.sqrt(gone / whole))


def test_distances_grow_with_the_part():
    network, _ = small("vgg-stages")
    for method in EVERY:
        with case(method=method):
            found = method.distances(network, [0.1, 0.3, 0.5, 0.7, 0.9])
            assert found == sorted(found)
            assert 0 < found[0] < found[-1] < 1


def test_a_weight_that_is_no_number_is_refused():
    network, x = small("vgg-stages")
    network.features.conv2_1.weight.data[1, 0] = math.nan
    for method in EVERY:
        with pytest.raises(Diverged, match=r"must be finite, found 9 NaN .* in features.conv2_1.weight"):
            method.compressed_network(network, x, 0.5)
        with pytest.raises(Diverged, match="must be finite"):
            method.distances(network, [0.5])


def test_a_part_outside_the_range_is_refused():
    network, x = small("vgg-stages")
    for part in (1.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match=rf"compress_at must be the part to take away, in \[0, 1\), found {part}"):
            OneShotStudy(methods={"filters": Filters()}, at=[0.5, part])
        with pytest.raises(ConfigError, match="at must be the part to take away"):
            Weights(at=[0.2, part])
        with pytest.raises(ConfigError, match="part must be the part to take away"):
            LowRank().compressed_network(network, x, part)


# Single weights.


def test_exactly_the_smallest_weights_of_the_whole_network_become_zero():
    for name in NETWORKS:
        network, x = small(name)
        for everything in (False, True):
            chosen = {n: p.detach() for n, p in network.named_parameters() if everything or p.dim() > 1}
            values = torch.cat([p.flatten() for p in chosen.values()])
            for part in (0.123, 0.5, 0.98):
                with case(network=name, everything=everything, part=part):
                    found = dict(Weights(everything=everything).compressed_network(network, x, part).named_parameters())
                    after = torch.cat([found[n].detach().flatten() for n in chosen])
                    gone, zeros = round(part * len(values)), int((values == 0).sum())
                    assert int((after == 0).sum()) == max(gone, zeros)
                    assert torch.equal(after[after != 0], values[after != 0])
                    assert values[after == 0].abs().max() <= values[after != 0].abs().min()
                    assert all(torch.equal(found[n], p) for n, p in network.named_parameters() if n not in chosen)


def test_of_equal_weights_exactly_as_many_as_asked_become_zero():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(F64)
    for p in network.parameters():
        nn.init.constant_(p, -0.5)
    found = Weights().compressed_network(network, randn(1, 4), 0.4)
    assert [int((p == 0).sum()) for p in found.parameters()] == [1, 0, 6, 0]  # 7.2 of 18, the last ones


# Networks that are not as expected.


def test_methods_without_anything_to_take_away_are_left_out_and_none_at_all_is_refused():
    network = mlp(gaussian())
    for method in (Filters(), LowRank()):
        with pytest.raises(Unsupported, match=r"needs a method that the network has something for, found this in comp"):
            OneShotStudy(methods={"this": method}, at=[0.5]).for_network(network)
        kept = OneShotStudy(methods={"weights": Weights(), "this": method}, at=[0.5]).for_network(network)
        assert [*kept.methods] == ["weights"]
    linear = OneShotStudy(methods={"this": LowRank(linear=True)}, at=[0.5])
    assert linear.for_network(network) == linear


class Peeking(nn.Module):
    """A network that takes the weight of its layer in its own hands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.conv2d(x, self.conv.weight).mean((2, 3)))


def test_a_method_that_a_network_cannot_be_computed_after_is_left_out_and_the_others_are_not(caplog):
    p = digits_problem()
    p = Problem(Peeking().to(F64), p.data, p.plan)
    rows = one_shot(p, p.model, {"low_rank": LowRank(), "weights": Weights()}, [0.5], recalibrate=0, seed=0)
    assert [(row["method"], row["part"]) for row in rows] == [("low_rank", 0), ("weights", 0), ("weights", 0.5)]
    assert "compress_by.low_rank is left out from 0.5 on: AttributeError" in caplog.text


def test_weights_that_are_computed_or_shared_are_left_alone():
    first, second, third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
    third.weight = second.weight
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(first), second, third, nn.Conv2d(4, 6, 3)).to(F64)
    for method in (Filters(), LowRank()):
        assert [*method.weights(network)] == ["3.weight"]
    found = Filters(shifts=False).compressed_network(network, randn(2, 4, 8, 8), 0.5)
    dead = [(layer.weight.flatten(1) == 0).all(1).sum().item() for layer in found]
    assert dead == [0, 0, 0, 3]


def test_a_network_that_is_one_layer_is_compressed_too():
    conv = nn.Conv2d(3, 6, 3).to(F64)
    x = randn(2, 3, 8, 8)
    torch.testing.assert_close(LowRank().compressed_network(conv, x, 0.0)(x), conv(x), rtol=1e-10, atol=1e-12)
    assert (Filters().compressed_network(conv, x, 0.5).weight.flatten(1) == 0).all(1).sum() == 3
