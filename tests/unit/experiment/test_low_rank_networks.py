"""Layers of low rank in place of convolutions: the ranks, the weights, the numbers."""

import copy
import itertools

import pytest
import torch
from cases import case
from image_networks import count, outputs, small
from one_shot_cases import convolutions
from problems import F64, randn
from torch import nn

from nncompress.experiment.one_shot import LowRank, factorise, rank_at


def test_the_rank_is_the_part_that_stays_rounded_down_and_at_least_one():
    ranks = {0.0: 10, 0.1: 9, 0.3: 7, 0.55: 4, 0.7: 3, 0.9: 1, 0.95: 1, 0.999: 1}
    assert {part: rank_at(part, (10, 3, 2, 2)) for part in ranks} == ranks
    assert {part: rank_at(part, (12, 5, 2, 1)) for part in ranks} == ranks


def test_a_tenth_of_twenty_is_two_though_floating_point_numbers_say_less():
    assert (1 - 0.9) * 20 < 2
    assert rank_at(0.9, (20, 30)) == 2


FORMS = {
    "3x3": nn.Conv2d(5, 7, 3, bias=False),
    "all": nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect"),
    "same": nn.Conv2d(3, 4, 3, padding="same"),
    "many filters": nn.Conv2d(2, 11, 1),
}


def test_at_full_rank_a_convolution_is_the_same():
    for form in FORMS:
        with case(form=form):
            conv = copy.deepcopy(FORMS[form]).to(F64)
            x, m = randn(2, conv.in_channels, 9, 8), min(len(conv.weight), conv.weight[0].numel())
            found = factorise(conv, m)
            torch.testing.assert_close(found(x), conv(x), rtol=0, atol=1e-10)
            bias = 0 if conv.bias is None else len(conv.bias)
            assert count(found) == m * (conv.weight[0].numel() + len(conv.weight)) + bias
            assert all(p.is_contiguous() and p.requires_grad for p in found.parameters())


def test_below_it_the_weight_is_the_best_one_of_its_rank():
    for dtype, part in itertools.product((F64, torch.float32), (0.2, 0.5, 0.95)):
        with case(dtype=dtype, part=part):
            conv = nn.Conv2d(5, 12, 3).to(dtype)
            matrix = conv.weight.detach().flatten(1).double()
            r = rank_at(part, conv.weight.shape)
            first, second = LowRank().compressed_network(nn.Sequential(conv), randn(1, 5, 4, 4, dtype=dtype), part)[0]
            assert first.weight.dtype == dtype
            product = second.weight.detach().flatten(1).double() @ first.weight.detach().flatten(1).double()
            tail = torch.linalg.svdvals(matrix)[r:].square().sum().sqrt()
            within = 1e-10 if dtype == F64 else 1e-4
            torch.testing.assert_close(torch.linalg.norm(matrix - product), tail, rtol=within, atol=0)
            distance = LowRank().distances(nn.Sequential(conv), [part])
            assert distance == pytest.approx([float(tail / torch.linalg.norm(matrix))], rel=1e-5)


def test_a_low_rank_network_has_the_numbers_counted_by_hand_and_computes_the_truncated_weights():
    network, x = small("vgg-stages")
    found = LowRank(linear=True).compressed_network(network, x, 0.5)
    shapes = [(6, 9), (13, 54), (13, 117), (26, 117), (5, 26)]
    ranks = [3, 6, 6, 13, 2]
    outside = count(network) - sum(rows * columns for rows, columns in shapes)
    assert count(found) == outside + sum(r * (rows + columns) for r, (rows, columns) in zip(ranks, shapes, strict=True))
    truncated = copy.deepcopy(network)
    for layer, r in zip([*convolutions(truncated).values(), truncated.fc], ranks, strict=True):
        U, s, V = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
        layer.weight.data.copy_((U[:, :r] * s[:r] @ V[:r]).view(layer.weight.shape))
    torch.testing.assert_close(outputs(found, x), outputs(truncated, x), rtol=1e-10, atol=1e-10)


def test_grouped_convolutions_and_subclasses_stay_and_a_layer_with_two_names_is_one():
    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, padding=1), Own(4, 4, 1), nn.Conv2d(4, 4, 1)).to(F64)
    network.append(network[2])
    found = LowRank().compressed_network(network, randn(1, 4, 3, 3), 0.5)
    assert [type(module).__name__ for module in found] == ["Conv2d", "Own", "Sequential", "Sequential"]
    assert found[2] is found[3]
