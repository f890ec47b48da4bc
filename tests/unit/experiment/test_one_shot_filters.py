"""Filters of the smallest norm go: which, and what becomes of batch norms, streams and the layers behind."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from cases import case
from image_networks import count, outputs, small
from one_shot_cases import NETWORKS, convolutions, dead_filters, made, nonzeros, undeclared
from problems import F64, randn
from torch import Tensor, nn

from nncompress.experiment.one_shot import Filters
from nncompress.models.cnn import NNBCDCNN
from nncompress.surgery.norms import norms_behind


def module_name(network: nn.Module, module: nn.Module) -> str:
    return next(name for name, other in network.named_modules() if other is module)


def test_of_every_layer_the_filters_of_smallest_norm_go_as_many_as_the_part_says():
    for name in NETWORKS:
        network, x = small(name)
        for norm, part in itertools.product((1, 2), (0.1, 0.5, 0.72, 0.99)):
            dead = dead_filters(Filters(norm=norm, shifts=False).compressed_network(network, x, part))
            for layer, conv in convolutions(network).items():
                with case(network=name, norm=norm, part=part, layer=layer):
                    norms = conv.weight.detach().abs().pow(norm).sum((1, 2, 3)).tolist()
                    gone = min(round(part * len(norms)), len(norms) - 1)
                    smallest = sorted(range(len(norms)), key=norms.__getitem__)[:gone]
                    assert dead[layer].nonzero().flatten().tolist() == sorted(smallest)


def test_without_shifts_nothing_but_filters_changes():
    network, x = undeclared()
    found = Filters(shifts=False).compressed_network(network, x, 0.5).state_dict()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, found[name])}
    assert changed == {"stem.weight", "conv1.weight", "conv2.weight"}


def test_among_equal_filters_the_first_stay_and_exactly_as_many_as_asked_go():
    network = nn.Sequential(nn.Conv2d(1, 7, 1, bias=False), nn.Conv2d(7, 5, 1, bias=False)).to(F64)
    for conv in network:
        nn.init.ones_(conv.weight)
    found = dead_filters(Filters().compressed_network(network, randn(2, 1, 3, 3), 0.4))
    assert [mask.tolist() for mask in found.values()] == [[False] * 4 + [True] * 3, [False] * 3 + [True] * 2]


def test_jointly_the_smallest_filters_of_all_layers_go_but_one_of_each():
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)).to(F64)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([0.2, 0.1, 0.3]).view(3, 1, 1, 1))
        network[1].weight.copy_(torch.tensor([5.0, 0.25, 7.0, 6.0]).view(4, 1, 1, 1) / math.sqrt(3))
    method, x = Filters(norm=2, joint=True), randn(2, 1, 3, 3)
    for part, first, second in (
        (0.3, [0, 1], []),
        (0.45, [0, 1], [1]),
        (0.6, [0, 1], [0, 1]),
        (0.99, [0, 1], [0, 1, 3]),
    ):
        dead = [
            mask.nonzero().flatten().tolist()
            for mask in dead_filters(method.compressed_network(network, x, part)).values()
        ]
        assert dead == [first, second]


def test_the_smaller_network_gives_the_outputs_of_the_one_with_zeros():
    each, joint = Filters(), Filters(norm=2, joint=True)
    for name in [*NETWORKS, "undeclared"]:
        network, x = made(name)
        behind = norms_behind(network, x)
        norms = {layer: [module_name(network, norm) for norm in found] for layer, found in behind.items()}
        for method, part in ((each, 0.3), (joint, 0.6), (each, 0.95), (joint, 0.95)):
            with case(network=name, part=part, method=method):
                found = method.compressed_network(network, x, part)
                zeroed = replace(method, shifts=False).compressed_network(network, x, part)
                for layer, dead in dead_filters(zeroed).items():
                    bias = zeroed.get_submodule(layer).bias
                    read = [zeroed.get_submodule(norm) for norm in norms.get(layer, ())]
                    for tensor in [bias, *(t for norm in read for t in (norm.weight, norm.bias))]:
                        if tensor is not None:
                            tensor.data[dead] = 0
                torch.testing.assert_close(outputs(found, x), outputs(zeroed, x), rtol=1e-10, atol=1e-10)
                assert count(found) < count(network)
                assert nonzeros(found) <= nonzeros(zeroed)


def test_a_chain_is_left_with_the_filters_that_stay():
    network, x = small("vgg-stages")  # channels 6, 13, 13, 26
    found = Filters().compressed_network(network, x, 0.5)
    assert [tuple(conv.weight.shape[:2]) for conv in convolutions(found).values()] == [(3, 1), (7, 3), (7, 7), (13, 7)]
    assert tuple(found.fc.weight.shape) == (5, 13)


def test_a_filter_that_is_added_to_a_stream_becomes_zero_with_its_scale_and_shift_and_keeps_its_place():
    network, x = small("resnet18")
    found = Filters().compressed_network(network, x, 0.5)
    assert len(found.blocks[2].conv1.weight) == 4  # 8 channels, removed
    for conv, norm in (
        (found.conv1, found.bn1),
        (found.blocks[2].conv2, found.blocks[2].bn2),
        (found.blocks[2].shortcut.conv, found.blocks[2].shortcut.bn),
    ):
        dead = (conv.weight == 0).flatten(1).all(1)
        assert int(dead.sum()) == round(0.5 * len(dead))
        assert torch.equal(norm.weight == 0, dead)
        assert torch.equal(norm.bias == 0, dead)


def test_a_batch_norm_that_reads_a_stream_stays_as_it_is():
    network, x = small("preresnet-basic")
    found = Filters().compressed_network(network, x, 0.5)
    stream = found.blocks[1].branch.bn1
    assert torch.equal(stream.weight, network.blocks[1].branch.bn1.weight)
    assert torch.equal(stream.bias, network.blocks[1].branch.bn1.bias)
    assert len(found.blocks[1].branch.bn2.weight) == 2  # of 4, behind its own convolution
    assert int(dead_filters(found)["blocks.1.branch.conv2"].sum()) == 2


def test_the_convolution_that_a_network_names_is_the_one_found_in_front_of_the_norm():
    for name in [*NETWORKS, "wide-resnet-dropout"]:
        network, x = small(name)
        behind = norms_behind(network, x)
        found = {id(norm): layer for layer, norms in behind.items() for norm in norms}
        named = {scale.norm: scale.producer for scale in network.scales() if scale.producer is not None}
        with case(network=name):
            assert {norm: found[id(network.get_submodule(norm))] for norm in named} == named
            assert bool(named) == (name != "densenet")  # whose norms read several convolutions


class Changed(nn.Module):
    """One norm reads what a convolution returns after an addition in place, one reads both convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        shared = self.bn2(first)
        first += x
        second = self.conv2(self.bn1(first))
        return self.bn2(second) + self.bn3(second) + shared


def test_a_norm_of_a_changed_tensor_or_of_two_convolutions_belongs_to_none():
    assert norms_behind(Changed(), torch.ones(2, 1, 3, 3)) == {}


def test_a_convolution_without_batch_norm_loses_weights_and_biases_alone():
    torch.manual_seed(0)
    network, x = NNBCDCNN((1, 8, 8), 5, filters=6, widths=(7,), bias=True).to(F64), randn(3, 1, 8, 8)
    found = Filters().compressed_network(network, x, 0.5)
    dead = dead_filters(found)["conv1"]
    assert int(dead.sum()) == 3
    assert torch.equal(found.conv1.bias == 0, dead)
    assert count(found) == count(network)


def test_filters_of_grouped_convolutions_become_zero():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).to(F64)
    found = Filters(shifts=False).compressed_network(network, randn(2, 4, 5, 5), 0.5)
    assert [int(mask.sum()) for mask in dead_filters(found).values()] == [4, 1]


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be 1 or 2, found 3"):
        Filters(norm=3)
