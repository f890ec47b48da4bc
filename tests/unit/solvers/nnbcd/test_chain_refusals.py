"""What fits no chain of layers is refused by name."""

import pytest
import torch
from cases import case
from nnbcd_cases import Net, linear_net, network_of, problem_of, samples
from problems import F64, gaussian, mlp, problem
from torch import nn
from torch.nn import functional

from nncompress.compressions.plan import none
from nncompress.errors import Unsupported
from nncompress.problem import Problem
from nncompress.solvers.nnbcd import start as nnbcd_start
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.nnbcd.trace import chain_of

SQUARE = {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 2)}


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


def behind_a_layer(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))


def of_images(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(2, 2))


def branched(run) -> nn.Module:
    return linear_net(run, **SQUARE)


def used_preactivation(net, x):
    u = net.a(x)
    return net.d(torch.relu(u) + u)


def sum_of_a_used_preactivation(net, x):
    h = torch.relu(net.a(x))
    u = net.b(h)
    return net.d(torch.relu(u + h) + u)


def also_without_its_skip(net, x):
    h = torch.relu(net.a(x))
    g = torch.relu(net.b(h))
    return net.d(torch.relu(net.c(g + h)) + g)


def later_without_its_skip(net, x):
    h = torch.relu(net.a(x))
    g = torch.relu(net.b(h))
    _ = g.flatten(1) + h
    return net.d(net.c(g))


def without_one_of_its_skips(net, x):
    h = torch.relu(net.a(x))
    g = torch.relu(net.b(h) + h)
    _ = g.flatten(1) + h
    return net.d(net.c(g))


def skip_without_its_skip(net, x):
    h = torch.relu(net.a(x))
    g = torch.relu(net.b(h))
    return net.d(torch.relu(net.c(g.flatten(1) + h)) + g)


def two_branches(net, x):
    h = torch.relu(net.a(x))
    return net.d(torch.relu(net.b(h)) + torch.relu(net.c(h)))


def two_skips(net, x):
    h = torch.relu(net.a(x))
    return net.d(torch.relu(net.b(h)) + h + x)


def overwritten(net, x):
    h = torch.relu(net.a(x))
    g = h.add_(torch.relu(net.b(h)))
    return net.d(torch.relu(net.c(g)) + h)


def scaled_skip(net, x):
    return net.d(torch.add(x, torch.relu(net.a(x)), alpha=2))


def controlled(net, x):
    return net.d(x if x.sum() > 0 else -x)


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x, y=None):
        return self.a(x)


VECTORS = [
    (behind_a_layer(nn.BatchNorm1d(4)), "found BatchNorm1d at '1'"),
    (behind_a_layer(nn.Tanh()), "found Tanh at '1'"),
    (behind_a_layer(nn.Dropout(0.5)), "found Dropout at '1'"),
    (behind_a_layer(nn.Softmax(dim=1)), "found Softmax at '1'"),
    (branched(lambda net, x: net.d(torch.tanh(net.a(x)))), "found tanh at 'tanh'"),
    (branched(lambda net, x: net.d(x.view(2, -1))), "found view at 'view'"),
    (branched(lambda net, x: net.d(net.a(x) + 1)), "found add at 'add'"),
    (branched(lambda net, x: net.d(2 * net.a(x))), "found mul at 'mul'"),
    (branched(lambda net, x: functional.linear(x, net.d.weight)), "found a branch at 'd_weight'"),
    (nn.Sequential(nn.Linear(4, 2), nn.ReLU()), "an activation behind the output layer '0.weight'"),
    (
        nn.Sequential(nn.ReLU(), nn.Linear(4, 2)),
        "an activation at '0' that does not directly follow a Linear or Conv2d layer",
    ),
    (
        branched(lambda net, x: net.d(torch.relu(torch.relu(net.a(x))))),
        "at 'relu_1' that does not directly follow a Linear",
    ),
    (nn.Sequential(nn.Flatten()), "found no Linear layer in Sequential"),
    (nn.Sequential(nn.Linear(3, 2)), "found inputs that do not fit at '0'"),
    (nn.Sequential(nn.Conv2d(1, 2, 3)), "found inputs that do not fit at '0'"),
    (behind_a_layer(nn.AvgPool2d(2)), "pooling of something else than images at '1'"),
    (behind_a_layer(nn.AdaptiveAvgPool2d(1)), "pooling of something else than images at '1'"),
    (branched(lambda net, x: net.c(torch.relu(net.a(x))) + x), "a skip into the output layer 'c.weight'"),
    (branched(used_preactivation), "found a branch at 'relu'"),
    (branched(sum_of_a_used_preactivation), "found a branch at 'add'"),
    (branched(two_branches), "found a branch at 'c'"),
    (branched(also_without_its_skip), "found a branch at 'add'"),
    (branched(later_without_its_skip), "found a branch at 'c'"),
    (branched(without_one_of_its_skips), "found a branch at 'c'"),
    (branched(skip_without_its_skip), "found a branch at 'add_1'"),
    (branched(two_skips), "found a second skip into one layer at 'add_1'"),
    (branched(overwritten), "found a sum written over a tensor that is used again at 'add_'"),
    (branched(scaled_skip), "found a branch at 'add'"),
    (branched(lambda net, x: net.d(x - torch.relu(net.a(x)))), "found a branch at 'sub'"),
    (branched(lambda net, x: net.d(torch.cat([x, net.a(x)], dim=1))), "found a branch at 'cat'"),
    (branched(lambda net, x: net.d(x * torch.relu(net.a(x)))), "found a branch at 'mul'"),
    (branched(lambda net, x: (net.d(x), x)), "found a branch at 'output'"),
    (linear_net(lambda net, x: net.b(torch.relu(net.a(x)) + x), a=(4, 1), b=(4, 2)), "found a branch at 'add'"),
    (branched(lambda net, x: net.d(net.a(torch.relu(net.a(x))))), "found 'a.weight' used twice"),
    (tied(), "found '2.weight' shared or computed from others"),
    (Two(), "found a second input at 'y'"),
    (branched(controlled), "Net cannot be traced"),
]

IMAGES = [
    (of_images(nn.Conv2d(4, 4, 3, groups=2)), "found a grouped convolution at '0'"),
    (of_images(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), "found padding other than zeros at '0'"),
    (of_images(nn.Conv2d(3, 4, 3)), "found inputs that do not fit at '0'"),
    (of_images(nn.ConvTranspose2d(4, 4, 3)), "found ConvTranspose2d at '0'"),
    (of_images(nn.MaxPool2d(2)), "found MaxPool2d at '0'"),
    (of_images(nn.BatchNorm2d(4)), "found BatchNorm2d at '0'"),
    (of_images(nn.AdaptiveAvgPool2d(2)), "adaptive pooling to more than one place at '0'"),
    (of_images(nn.AdaptiveAvgPool2d((None, 1))), "adaptive pooling to more than one place at '0'"),
    (of_images(nn.AvgPool2d(2, padding=1)), "average pooling with padding, ceil_mode or divisor_override at '0'"),
    (of_images(nn.AvgPool2d(2, ceil_mode=True)), "average pooling with padding, ceil_mode or divisor_override at '0'"),
    (of_images(nn.AvgPool2d(2, divisor_override=1)), "with padding, ceil_mode or divisor_override at '0'"),
    (
        nn.Sequential(nn.Conv2d(4, 2, 1), nn.AvgPool2d(2), nn.ReLU()),
        "an activation at '2' that does not directly follow a Linear",
    ),
    (nn.Sequential(nn.Conv2d(4, 2, 1), nn.AvgPool2d(6), nn.Flatten()), "behind the output layer at '2'"),
    (nn.Sequential(nn.Conv2d(4, 2, 6)), "found a reshape or pooling behind the output layer at '0'"),
    (nn.Sequential(nn.Flatten(2), nn.Linear(36, 2)), "found Flatten at '0'"),
    (Net(lambda net, x: net.a(x.permute(1, 0, 2, 3)), a=nn.Linear(6, 2)), "found permute at 'permute'"),
    (Net(lambda net, x: net.a(x.mean(dim=(2, 3))), a=nn.Linear(4, 2)), "found mean at 'mean'"),
]


def test_what_fits_no_chain_is_refused_by_name():
    cases = [(model, (4,), found) for model, found in VECTORS] + [(model, (4, 6, 6), found) for model, found in IMAGES]
    required = "NN-BCD needs a chain of Linear and Conv2d layers with ReLU"
    for model, shape, found in cases:
        with case(found=found):
            with pytest.raises(Unsupported, match=required) as error:
                chain_of(model, shape)
            assert found in str(error.value)


def test_a_weight_outside_the_chain_is_refused():
    model = nn.Sequential(nn.Linear(4, 3)).to(F64)
    model.register_parameter("extra", nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(Unsupported, match="found the weight 'extra' outside the chain"):
        NNBCD().init(Problem(model, samples((4,)), none({})))


def test_outputs_other_than_the_classes_are_refused():
    for outputs in (1, 2, 5):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, outputs)).to(F64)
        found = f"each of the 3 classes; found {outputs} of '2.weight'"
        with case(outputs=outputs), pytest.raises(Unsupported, match=found):
            NNBCD().init(Problem(model, samples((4,)), none({})))


def test_convolutions_whose_matrix_is_too_large_are_refused(monkeypatch):
    made = network_of("two convolutions")  # 12 x 90 entries
    monkeypatch.setattr(nnbcd_start, "LARGEST", 12 * 90)
    assert NNBCD().init(problem_of(made)).k == 0
    monkeypatch.setattr(nnbcd_start, "LARGEST", 12 * 90 - 1)
    with pytest.raises(Unsupported, match=r"at most 1079 entries; found 1080 for '3\.weight'; use smaller images"):
        NNBCD().init(problem_of(made))


class Aliased(nn.Module):
    """`h += f(h)` changes what `kept` refers to; torch.fx records a plain sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.d = nn.Linear(8, 3)

    def forward(self, x):
        h = kept = torch.relu(self.a(x))
        h += torch.relu(self.b(h))
        return self.d(torch.relu(self.c(h)) + kept)


def test_a_network_that_its_trace_misreads_is_refused():
    data = gaussian()
    with pytest.raises(Unsupported):
        NNBCD(initial="model").init(problem(data, Aliased().to(F64), none))


def test_a_bias_of_two_layers_is_refused():
    data = gaussian(n=20)
    network = mlp(data, bias=True)
    network.fc2.bias = network.fc1.bias
    with pytest.raises(Unsupported, match=r"'fc2\.bias' shared"):
        NNBCD().init(problem(data, network, none))
