"""Which parameters lie in which set, and how large the sets are."""

from __future__ import annotations

import copy
import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from cases import case
from problems import F64
from torch import nn

from nncompress.constraints.assignment import Assignment, diameters
from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf
from nncompress.constraints.size import Diameter, FromInitialisation, Radius, initial_norms
from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport
from nncompress.errors import ConfigError

CHANNELS = 16


def network(seed: int = 0) -> nn.Module:
    """A convolution, a batch norm and a layer, with names."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, CHANNELS, 3))
    net.add_module("bn", nn.BatchNorm2d(CHANNELS))
    net.add_module("fc", nn.Linear(CHANNELS, 5))
    return net


NAMES = ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "fc.weight", "fc.bias"]


def found(assignment: Assignment, model: nn.Module | None = None) -> dict[tuple[str, ...], Any]:
    """The set of each body by the names in it."""
    return {body.names: body.constraint for body in assignment.bodies(network() if model is None else model)}


@cache
def norms() -> dict[str, float]:
    """Those of the network, whatever its seed."""
    return dict(initial_norms(network()))


def sizes(assignment: Assignment) -> dict[str, float]:
    """The diameter of each body of the network by its first name."""
    model = network()
    bodies = assignment.bodies(model)
    values = diameters(bodies, dict(model.named_parameters()), norms())
    assert values.dtype == F64
    return {body.names[0]: value for body, value in zip(bodies, values.tolist(), strict=True)}


# which parameters


def test_the_convolutions_lie_in_the_papers_set_and_all_the_others_in_l2_balls():
    paper = Assignment(set=GroupKSupport(k=0.1), params="convolutions", rest=Assignment(set=L2()))
    sets = found(paper)
    assert list(sets) == [(name,) for name in NAMES]
    assert sets.pop(("conv.weight",)) == GroupKSupport(k=0.1)
    assert set(sets.values()) == {L2()}


def test_params_choose_by_kind_or_by_name_and_the_others_are_free():
    for params, taken in [
        ("all", NAMES),
        ("weights", ["conv.weight", "fc.weight"]),
        ("convolutions", ["conv.weight"]),
        ("fc", ["fc.weight"]),
        (["fc", "bn.*"], ["bn.weight", "bn.bias", "fc.weight"]),
        (["*.bias"], ["conv.bias", "bn.bias", "fc.bias"]),
    ]:
        with case(params=params):
            sets = found(Assignment(set=L1(), params=params))
            free = [name for name in NAMES if name not in taken]
            assert [names[0] for names, constraint in sets.items() if constraint == L1()] == taken
            assert [names[0] for names, constraint in sets.items() if constraint is None] == free


def test_every_parameter_is_in_exactly_one_body():
    for joint, rest_joint in itertools.product((False, True), repeat=2):
        with case(joint=joint, rest_joint=rest_joint):
            last = Assignment(set=L1(), joint=rest_joint)
            rules = Assignment(set=KSupport(k=2), params="weights", joint=joint, rest=last)
            names = [name for body in rules.bodies(network()) for name in body.names]
            assert sorted(names) == sorted(NAMES)
            assert len(rules.bodies(network())) == (1 if joint else 2) + (1 if rest_joint else 4)


def test_a_parameter_is_taken_by_the_first_rule_that_names_it():
    inner = Assignment(set=L1(), params=["*.weight"], rest=Assignment(set=L2(), params="all"))
    sets = found(Assignment(set=Linf(), params="convolutions", rest=inner))
    kinds = {names[0]: type(constraint) for names, constraint in sets.items()}
    assert kinds == {
        "conv.weight": Linf, "bn.weight": L1, "fc.weight": L1, "conv.bias": L2, "bn.bias": L2, "fc.bias": L2,
    }  # fmt: skip


def test_one_set_for_several_parameters_is_one_body():
    sets = found(Assignment(set=KSupport(k=0.1), params="weights", joint=True))
    assert sets[("conv.weight", "fc.weight")] == KSupport(k=0.1)
    assert sets[("bn.weight",)] is None


def test_frozen_parameters_are_left_out():
    model = network()
    model.conv.weight.requires_grad_(False)
    for rules in (Assignment(set=L2()), Assignment(set=L2(), params="weights", joint=True, rest=Assignment(set=L1()))):
        assert sorted(name for names in found(rules, model) for name in names) == sorted(NAMES[1:])
    with pytest.raises(ConfigError, match="convolutions must match a parameter"):
        Assignment(set=L2(), params="convolutions").bodies(model)


def test_a_pattern_that_matches_nothing_that_is_left_is_refused():
    model = network()
    model.conv.weight.requires_grad_(False)
    for params, told in (("nothing", "nothing"), (["fc", "nothing"], "nothing"), (["conv"], "conv")):
        with pytest.raises(ConfigError, match=rf"must match a weight, found '{told}'"):
            Assignment(set=L2(), params=params).bodies(model)


def test_a_network_without_convolutions_is_told_so():
    with pytest.raises(ConfigError, match=r"params=convolutions must match a parameter, found none among 0\.weight"):
        Assignment(set=GroupKSupport(), params="convolutions").bodies(nn.Sequential(nn.Linear(3, 2)))


def test_a_vector_in_a_set_of_matrices_is_refused_by_its_name():
    for kind in (GroupKSupport(), Nuclear(), SpectralKSupport(), SpectralKSparse()):
        with pytest.raises(ConfigError, match=r"found conv\.bias of shape \[16\]; give constraint.params=convolutions"):
            Assignment(set=kind).bodies(network())
        suited = found(Assignment(set=kind, params="weights", rest=Assignment(set=L2())))
        assert [names[0] for names, constraint in suited.items() if constraint == kind] == ["conv.weight", "fc.weight"]


def test_a_spectral_set_of_several_parameters_together_is_refused():
    with pytest.raises(ConfigError, match=r"found several together; give constraint\.joint=false"):
        Assignment(set=SpectralKSupport(), params="weights", joint=True).bodies(network())
    alone = found(Assignment(set=SpectralKSupport(), params="convolutions", joint=True))
    assert alone[("conv.weight",)] == SpectralKSupport()


def test_what_is_no_set_no_size_no_name_or_no_assignment_is_refused():
    for name, value in (("set", "l2"), ("size", 3.0), ("params", []), ("rest", "l2")):
        with pytest.raises(ValueError, match=f"{name} must be .*found"):
            Assignment(**{"set": L2(), name: value})


# their sizes


def test_the_scale_and_the_shift_of_a_batch_norm_are_told_apart():
    """The authors' code keeps the norms by shape: there the shift's, 1, is taken for the scale's too."""
    found = sizes(Assignment(set=L2(), size=FromInitialisation(w=10.0)))
    assert found["bn.weight"] == pytest.approx(2 * 10 * math.sqrt(CHANNELS), rel=1e-6)
    assert found["bn.bias"] == 2 * 10


def test_sizes_are_2_w_times_the_mean_norm_of_many_initialisations():
    draws = [[p.detach().norm() for p in network(seed).parameters()] for seed in range(150)]
    means = dict(zip(NAMES, torch.tensor(draws).mean(0).tolist(), strict=True)) | {"bn.bias": 1.0}
    found = sizes(Assignment(set=L2(), size=FromInitialisation(w=3.0)))
    for name in NAMES:
        assert found[name] == pytest.approx(2 * 3 * means[name], rel=0.07 if "bias" in name else 0.02), name


def test_the_norms_leave_the_network_and_the_random_numbers_alone_and_are_the_same_for_every_seed():
    model = network().to(F64)
    with torch.no_grad():
        model.conv.weight.mul_(7)
        model.bn.running_mean.fill_(3)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measured = initial_norms(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert measured == initial_norms(network(seed=5)) == norms()
    assert list(measured) == NAMES


def test_what_is_initialised_to_zero_counts_as_1():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(4))

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.gate)

    assert initial_norms(Gate()) == {"gate": 1.0}


def test_a_module_that_cannot_initialise_itself_has_the_norm_it_has():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([3.0, 4.0], dtype=F64))
            self.zero = nn.Parameter(torch.zeros(2))
            self.fc = nn.Linear(2, 2, bias=False)

    assert {name: norm for name, norm in initial_norms(Shifted()).items() if name != "fc.weight"} == {
        "shift": 5.0,
        "zero": 1.0,
    }


def test_parameters_together_have_the_diameter_of_their_vector():
    together = Assignment(set=KSupport(), params="weights", joint=True, size=FromInitialisation(w=3.0))
    expected = 2 * 3 * math.hypot(norms()["conv.weight"], norms()["fc.weight"])
    assert sizes(together)["conv.weight"] == pytest.approx(expected, rel=1e-12)


def test_a_diameter_is_that_and_a_radius_that_of_the_set():
    kinds = [
        (L1(), lambda n: 1),
        (L2(), lambda n: 1),
        (Linf(), lambda n: n),
        (KSupport(k=0.3), lambda n: 1),
        (KSparse(k=0.3), lambda n: int(0.3 * n)),
        (KSparse(k=4.0, least=6), lambda n: 6),
    ]
    for (kind, longest), joint in itertools.product(kinds, (False, True)):
        with case(kind=kind, joint=joint):
            by_diameter = Assignment(set=kind, params="weights", joint=joint, size=Diameter(value=4.0))
            assert sizes(by_diameter)["conv.weight"] == 4.0
            by_radius = Assignment(set=kind, params="weights", joint=joint, size=Radius(value=0.7))
            names = ["conv.weight", "fc.weight"] if joint else ["conv.weight"]
            n = sum(network().get_parameter(name).numel() for name in names)
            assert sizes(by_radius)["conv.weight"] == pytest.approx(2 * 0.7 * math.sqrt(longest(n)), rel=1e-12)


def test_what_is_free_has_no_size():
    assert sizes(Assignment(set=L2(), params="fc"))["conv.weight"] == 0


def test_a_size_that_is_not_positive_and_finite_is_refused():
    for size, name in ((FromInitialisation, "w"), (Diameter, "value"), (Radius, "value")):
        for value in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be positive and finite, found {value}"):
                size(**{name: value})
