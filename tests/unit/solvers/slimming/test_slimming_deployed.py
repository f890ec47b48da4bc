"""What slimming deploys: xi or gamma where xi is not zero, targets, and what is refused."""

import math

import pytest
import torch
from cases import case
from image_networks import norms
from problems import F64, problem, randn, small_digits
from slimming_cases import N, counts, proximal, size_by_hand, small, vgg
from torch import Tensor, nn

from nncompress.compressions.sparsity.magnitude import L0, l0
from nncompress.errors import ConfigError, Unsupported
from nncompress.metrics import evaluate, sizes
from nncompress.models.preresnet import PreResNet
from nncompress.problem import Problem
from nncompress.solvers.slimming.figures import channel_details
from nncompress.solvers.slimming.proximal import Slimming, SlimmingState
from nncompress.solvers.slimming.scales import Scales
from nncompress.solvers.training.descent import MultiStep
from nncompress.surgery.channels import kept_in
from nncompress.surgery.removal import remove_channels

NAMES = ("ratio", "macs", "bits")


def with_xi(method: Slimming, p: Problem, xi: Tensor) -> SlimmingState:
    return method.init(p)._replace(xi=xi)


def test_what_is_deployed_has_xi_or_gamma_where_xi_is_not_zero():
    xi = torch.tensor([0.3, 0, 0.2, 0, 0, -0.1, 0, 0.4, 0.5], dtype=F64)
    for project in (True, False):
        with case(project=project):
            p, method = small(), proximal(project=project)
            state = with_xi(method, p, xi)
            found = method.masked_network(p, state)
            before, after = Scales.of(p.model), Scales.of(found)
            assert torch.equal(after.gamma(), torch.where(xi != 0, xi if project else before.gamma(), 0))
            assert torch.equal(torch.cat(after.shifts), torch.where(xi != 0, torch.cat(before.shifts), 0))
            details = method.result(p, state, method.observe(p, state)).details
            assert details == channel_details(found, before.named(xi))


def test_a_layer_whose_xi_are_all_zero_keeps_its_largest_channel_with_gamma():
    p, method = small(), proximal()
    xi = torch.tensor([0.0, 0, 0, 0.1, 0.1, 0, 0, 0, 0], dtype=F64)
    state = with_xi(method, p, xi)
    gamma = norms(p.model)[0].weight.detach()
    found = norms(method.masked_network(p, state))[0].weight.detach()
    assert torch.equal(found, torch.where(gamma == gamma.max(), gamma, 0))
    (note,) = method.result(p, state, method.observe(p, state)).notes
    assert note.startswith("no channel is left in features.bn1_1: the one with the largest scale stays")


def test_the_result_has_the_accuracies_of_both_deployed_networks():
    p, method = small(), proximal(3, lam=0.5, beta=0.25)
    *_, iterate = method.run(p, 3)
    terms = method.result(p, iterate.state, iterate.observation).terms
    for name, project in (("projected", True), ("masked", False)):
        network = proximal(3, lam=0.5, beta=0.25, project=project).masked_network(p, iterate.state)
        assert terms[f"accuracy/{name}_test"] == evaluate(network, p.data.test, p.loss).accuracy


def test_more_xi_are_zero_and_fewer_channels_stay_the_larger_lam():
    zeros, kept = [], []
    for lam in (0.2, 0.3, 0.4):
        p, method = small(vgg((1, 1, 1), 0.1)), proximal(6, lam=lam, lr=0.1, batch_size=10)
        *_, last = method.run(p, 6)
        zeros.append(last.observation.terms["channels/zero"])
        kept.append(sum(counts(method.masked_network(p, last.state))))
    assert zeros[0] < zeros[1] < zeros[2]
    assert 45 >= kept[0] > kept[1] > kept[2] > 0


# Targets.


def test_a_target_is_met_by_taking_as_few_channels_as_possible_the_smallest_first():
    xi, method, network = randn(45) * (torch.arange(45) % 5 > 0), proximal(), vgg((1, 1, 1), 0.1)
    parts, state = xi.split([6, 13, 26]), with_xi(method, small(network), xi)
    for name in NAMES:
        for value in (0.2, 0.5, 0.9):
            with case(name=name, value=value):
                found = method.masked_network(small(network, (name, value)), state)
                dense = size_by_hand(name, [6, 13, 26]) - (45 if name == "bits" else 0)
                best = [0, 0, 0]
                for count in range(int((xi != 0).sum()) + 1):  # at least a channel in each layer
                    threshold = xi.abs().sort(descending=True).values[:count].min() if count else float("inf")
                    kept = [max(1, int(((part.abs() >= threshold) & (part != 0)).sum())) for part in parts]
                    if size_by_hand(name, kept) <= value * dense:
                        best = kept
                assert counts(found) == best
                gone = torch.cat([~mask for mask in kept_in(found).values()])
                assert float(xi[gone].abs().max()) < float(xi[~gone].abs().min()) or min(best) == 1
                assert sum(w.numel() for w in remove_channels(found).parameters()) == size_by_hand("ratio", best)


def test_a_target_above_one_is_a_number():
    for name, value in (("macs", 5000.0), ("bits", 40_000.0)):
        with case(name=name):
            method, p = proximal(), small(vgg((1, 1, 1), 0.1), (name, value))
            kept = counts(method.masked_network(p, with_xi(method, p, randn(45))))
            assert size_by_hand(name, kept) <= value
            assert max(size_by_hand(name, [*kept[:k], kept[k] + 1, *kept[k + 1 :]]) for k in range(3)) > value


def test_a_target_of_the_whole_network_takes_nothing():
    for name in NAMES:
        with case(name=name):
            method, p = proximal(), small(vgg((1, 1, 1), 0.1), (name, 1.0))
            assert counts(method.masked_network(p, with_xi(method, p, randn(45)))) == [6, 13, 26]


def test_a_target_counts_the_biases_that_folding_adds():
    torch.manual_seed(0)
    network = PreResNet((1, 8, 8), 10, depth=8, bottleneck=False, width=0.25).to(F64)
    method = proximal(fold=True)
    state = with_xi(method, small(network), randn(60))
    for value in (0.3, 0.5, 0.7):
        with case(value=value):
            p = small(network, ("ratio", value))
            found = method.masked_network(p, state)
            assert sizes(p, (), remove_channels(found))["ratio/params"] <= value


def test_a_target_that_one_channel_a_layer_exceeds_is_refused():
    method, p = proximal(), small(vgg(), ("ratio", 0.01))
    with pytest.raises(Unsupported, match=r"target.ratio=0.01 must leave one channel in every layer, which is 0\.\d+"):
        method.init(p)


class Undeclared(nn.Sequential):
    """A network that does not say what can be removed."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_a_target_needs_a_network_that_says_how_its_channels_are_removed():
    method, p = proximal(), small(Undeclared().to(F64), ("ratio", 0.5))
    with pytest.raises(Unsupported, match=r"a target needs .*\(a method scales\(\)\), found Undeclared without one"):
        method.init(p)


# Bad input.


def test_a_frozen_batch_norm_a_plan_and_a_batch_larger_than_the_data_are_refused():
    frozen = vgg()
    norms(frozen)[1].weight.requires_grad_(False)
    with pytest.raises(Unsupported, match=r"found that features.bn2_1 is frozen \(requires_grad=False\)"):
        proximal().init(small(frozen))
    planned, said = problem(small_digits(N), vgg(), l0, keep=0.5), "use compression=none, then another solver"
    with pytest.raises(Unsupported, match=rf"compresses no weights, found a plan for features.conv1_1.weight; {said}"):
        proximal().init(planned)
    with pytest.raises(
        ConfigError, match=r"found batches of 61 samples and 60 samples of data; give a solver.batch_size of"
    ):
        proximal(batch_size=61).init(small())


WRONG = [
    ({"lam": -1}, "lam must be at least 0 and finite, found -1"),
    ({"lam": math.inf}, "lam must be at least 0 and finite, found inf"),
    ({"beta": -0.1}, r"beta must be at least 0 and finite, found -0\.1"),
    ({"beta": math.nan}, "beta must be at least 0 and finite, found nan"),
    ({"lr": 0}, "lr must be .*found"),
    ({"batch_size": 0}, "batch_size must be .*found"),
    ({"curvature": -1}, "curvature must be at least 0 .*found"),
    ({"curvature_samples": 0}, "curvature_samples at least 1, found 0 and 0"),
    ({"label_smoothing": 1.0}, "label_smoothing must be .*found"),
    ({"mixup": -1}, "mixup must be .*found"),
    ({"penalty": L0, "lam": 0.1}, r"penalty must give a SeparablePenalty \(L1Penalty, .*found L0\(keep=0.1\)"),
    (
        {"num_steps": 2, "schedule": MultiStep((0.5,), 0.0)},
        r"the learning rate 1/alpha must stay positive, found 0\.0 in epoch 2",
    ),
]


def test_settings_out_of_range_are_refused():
    for settings, said in WRONG:
        with case(**settings), pytest.raises(ValueError, match=said):
            Slimming(**settings)
