"""A network as a chain of layers: the maps against torch's own layers, what is read, what is refused."""

import pytest
import torch
from nnbcd_cases import MAKERS, Net, case, problem_of, rows, samples
from problems import F64, gaussian, problem, randn
from torch import nn
from torch.nn import functional

from nncompress.compressions.plan import none
from nncompress.errors import Unsupported
from nncompress.problem import Problem
from nncompress.solvers import nnbcd_start
from nncompress.solvers.chain_trace import chain_of
from nncompress.solvers.linear_map import LinearMap
from nncompress.solvers.nnbcd import NNBCD


def sequential(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers).to(F64)


class Permuted(nn.Module):
    """Images flattened with the channel fastest."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


MAPS = {
    "linear": (lambda: sequential(nn.Linear(5, 3)), (5,)),
    "linear without bias": (lambda: sequential(nn.Linear(5, 3, bias=False)), (5,)),
    "linear on sequences": (lambda: sequential(nn.Linear(5, 3)), (4, 5)),
    "linear on flat images": (lambda: sequential(nn.Flatten(), nn.Linear(24, 3)), (2, 3, 4)),
    "linear on permuted images": (lambda: sequential(Permuted(), nn.Linear(24, 3)), (2, 3, 4)),
    "1x1": (lambda: sequential(nn.Conv2d(3, 2, 1)), (3, 4, 5)),
    "3x3": (lambda: sequential(nn.Conv2d(2, 3, 3)), (2, 5, 6)),
    "whole image": (lambda: sequential(nn.Conv2d(2, 3, (3, 4))), (2, 3, 4)),
    "oblong": (lambda: sequential(nn.Conv2d(1, 2, (2, 3), stride=(2, 1), padding=(1, 0))), (1, 5, 6)),
    "dilated": (lambda: sequential(nn.Conv2d(2, 2, 3, dilation=(2, 1), padding=2)), (2, 6, 5)),
    "same": (lambda: sequential(nn.Conv2d(2, 3, (3, 5), padding="same", bias=False)), (2, 5, 6)),
    "same and dilated": (lambda: sequential(nn.Conv2d(2, 3, (3, 4), padding="same", dilation=(1, 2))), (2, 5, 6)),
    "same and even": (lambda: sequential(nn.Conv2d(1, 2, (2, 4), padding="same")), (1, 4, 5)),
    "all settings": (lambda: sequential(nn.Conv2d(3, 4, 2, stride=2, padding=1, dilation=2)), (3, 7, 6)),
    "average pooling": (lambda: sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)), (2, 5, 6)),
    "pooling of rows": (lambda: sequential(nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(6, 3)), (1, 3, 4)),
    "overlapping": (lambda: sequential(nn.AvgPool2d((3, 2), stride=1), nn.Flatten(), nn.Linear(30, 3)), (2, 5, 6)),
    "global pooling": (lambda: sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), (3, 4, 5)),
    "pooling twice": (
        lambda: sequential(nn.AvgPool2d(2), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(4, 1)),
        (1, 6, 6),
    ),
    "convolution of pooled": (lambda: sequential(nn.AvgPool2d(2), nn.Conv2d(2, 3, 3, stride=2, padding=1)), (2, 6, 7)),
}
every_map = pytest.mark.parametrize("name", MAPS)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def mapped(name):
    """A network of one layer, the shape of its samples, its chain's map, its weight as a matrix and its bias."""
    make, shape = MAPS[name]
    model = make()
    outputs = model(torch.zeros(1, *shape, dtype=F64)).numel()
    layer = chain_of(nn.Sequential(model, nn.Flatten(), nn.Linear(outputs, 2)), shape).layers[0]
    parameters = {f"0.{key}": value.detach() for key, value in model.named_parameters()}
    return model, shape, layer.map, parameters[layer.weight].flatten(1), parameters.get(layer.bias)


@every_map
def test_the_product_is_the_layers_own_output_with_the_channel_fastest(name):
    model, shape, linear_map, W, b = mapped(name)
    x = randn(4, *shape)
    torch.testing.assert_close(linear_map.product(x.flatten(1), W, b), rows(model(x)))


@every_map
def test_the_matrix_is_the_jacobian(name):
    model, shape, linear_map, W, _ = mapped(name)
    jacobian = torch.autograd.functional.jacobian(lambda x: rows(model(x.view(1, *shape)))[0], randn(*shape).flatten())
    torch.testing.assert_close(linear_map.matrix(W), jacobian)


@every_map
def test_rows_are_what_the_weight_sees_at_each_position(name):
    _, shape, linear_map, W, _ = mapped(name)
    V = randn(4, *shape).flatten(1)
    seen = linear_map.rows(V)
    assert seen.shape == (4 * linear_map.positions, W.shape[1])
    torch.testing.assert_close((seen @ W.T).view(4, -1), V @ linear_map.matrix(W).T)


def test_rows_of_a_linear_layer_are_the_activations_themselves():
    V = randn(4, 6)
    linear_map = LinearMap.of(6, torch.arange(6).view(6, 1))
    assert linear_map.rows(V) is V
    W = randn(2, 6)
    assert linear_map.matrix(W) is W


def test_rows_of_a_convolution_are_its_patches():
    _, shape, linear_map, _, _ = mapped("3x3")
    x = randn(4, *shape)
    patches = functional.unfold(x, 3).transpose(1, 2).reshape(-1, 18)  # inputs channel, height, width as in the weight
    assert torch.equal(linear_map.rows(x.flatten(1)), patches)


# --- networks


@pytest.mark.parametrize("name", MAKERS)
def test_the_forward_pass_of_the_chain_is_the_networks(name):
    made = case(name)
    p = problem_of(made)
    state = NNBCD(initial="model").init(p)
    torch.testing.assert_close(state.U[-1], made.model(p.data.train.x))
    assert torch.equal(state.V[-1], state.U[-1])


@pytest.mark.parametrize("name", MAKERS)
def test_the_layers_are_read_off_in_order_with_their_slopes_and_skips(name):
    made = case(name)
    layers = chain_of(made.model, made.shape).layers
    read = [(layer.weight, layer.slope, layer.inner, layer.outer) for layer in layers]
    slopes = [*(part.slope for part in made.parts[:-1]), 1.0]
    expected = [
        (f"{part.name}.weight", slope, part.inner, part.outer) for part, slope in zip(made.parts, slopes, strict=True)
    ]
    assert read == expected


@pytest.mark.parametrize("name", MAKERS)
def test_the_observed_network_computes_what_the_blocks_say(name):
    made = case(name)
    p, solver = Problem(made.model, samples(made.shape), none({})), NNBCD(initial="model")
    state = solver.step(p, solver.init(p))
    observed = solver.observe(p, state).model
    V = p.data.train.x.flatten(1)
    outputs = [V]
    for i, part in enumerate(made.parts, 1):
        u = made.linear(i, state.W[i - 1], state.b[i - 1], outputs[-1])
        u = u if part.inner is None else u + outputs[part.inner]
        v = functional.leaky_relu(u, part.slope)
        outputs.append(v if part.outer is None else v + outputs[part.outer])
    torch.testing.assert_close(observed(p.data.train.x), u)


def net(run, **widths) -> nn.Module:
    """A network of Linear layers of (inputs, outputs)."""
    return Net(run, **{name: nn.Linear(*sizes) for name, sizes in widths.items()})


SQUARE = {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 2)}


@pytest.mark.parametrize(
    "flat",
    [
        lambda x: x.flatten(1),
        lambda x: x.flatten(start_dim=1),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape((x.shape[0], -1)),
        lambda x: x.reshape(-1, 12),
        lambda x: x.permute(0, 1, 2).flatten(1),
    ],
)
def test_every_common_way_to_flatten_is_read(flat):
    layers = chain_of(net(lambda net, x: net.b(torch.relu(net.a(flat(x)))), a=(12, 4), b=(4, 2)), (3, 4)).layers
    assert [(layer.weight, layer.slope) for layer in layers] == [("a.weight", 0.0), ("b.weight", 1.0)]
    assert layers[0].map.index is None


@pytest.mark.parametrize(
    ("sigma", "slope"),
    [
        (torch.relu, 0.0),
        (lambda u: u.relu(), 0.0),
        (lambda u: functional.relu(u, inplace=True), 0.0),
        (lambda u: functional.leaky_relu(u, 0.2), 0.2),
        (lambda u: functional.leaky_relu(u, negative_slope=0.3), 0.3),
        (lambda u: functional.leaky_relu(u), 0.01),
        (lambda u: u, 1.0),
    ],
)
def test_functional_activations_are_read_with_their_slopes(sigma, slope):
    first, _ = chain_of(net(lambda net, x: net.b(sigma(net.a(x))), a=(4, 4), b=(4, 2)), (4,)).layers
    assert first.slope == slope


@pytest.mark.parametrize(
    ("layer", "slope"),
    [(nn.ReLU(inplace=True), 0.0), (nn.LeakyReLU(0.2), 0.2), (nn.Identity(), 1.0), (nn.Dropout(0.0), 1.0)],
)
def test_activation_layers_are_read_with_their_slopes(layer, slope):
    assert chain_of(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)), (4,)).layers[0].slope == slope


@pytest.mark.parametrize("swap", [lambda x: x.permute(0, 2, 1), lambda x: torch.permute(x, dims=(0, -1, 1))])
def test_permuted_samples_are_read(swap):
    (layer,) = chain_of(net(lambda net, x: net.a(swap(x).flatten(1)), a=(6, 2)), (2, 3)).layers
    assert layer.map.index.flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: functional.avg_pool2d(x, 2),
        lambda x: functional.avg_pool2d(x, (2, 2), stride=2),
        nn.AvgPool2d(2),
        nn.Sequential(nn.Identity(), nn.AvgPool2d(2, 2)),
    ],
)
def test_pooling_is_read_as_a_function_and_as_a_layer(pool):
    run = lambda net, x: net.a(pool(x).flatten(1))  # noqa: E731
    model = Net(run, a=nn.Linear(2, 2), **({"pool": pool} if isinstance(pool, nn.Module) else {}))
    (layer,) = chain_of(model, (1, 2, 4)).layers
    assert layer.map.index.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d((1, 1)), lambda x: functional.adaptive_avg_pool2d(x, 1)])
def test_global_pooling_is_read_as_a_function_and_as_a_layer(pool):
    model = Net(lambda net, x: net.a(pool(x).flatten(1)), a=nn.Linear(2, 2))
    if isinstance(pool, nn.Module):
        model.add_module("pool", pool)
    (layer,) = chain_of(model, (2, 1, 3)).layers
    assert layer.map.index.tolist() == [[[0, 1, 2], [3, 4, 5]]]


# --- refusals


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


def behind_a_layer(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))


def of_images(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(2, 2))


def branched(run) -> nn.Module:
    return net(run, **SQUARE)


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
    (net(lambda net, x: net.b(torch.relu(net.a(x)) + x), a=(4, 1), b=(4, 2)), "found a branch at 'add'"),
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


@pytest.mark.parametrize(
    ("model", "shape", "found"),
    [*((model, (4,), found) for model, found in VECTORS), *((model, (4, 6, 6), found) for model, found in IMAGES)],
    ids=[found for _, found in VECTORS + IMAGES],
)
def test_what_fits_no_chain_is_refused_by_name(model, shape, found):
    with pytest.raises(Unsupported, match="NN-BCD needs a chain of Linear and Conv2d layers with ReLU") as error:
        chain_of(model, shape)
    assert found in str(error.value)


def test_a_weight_outside_the_chain_is_refused():
    model = nn.Sequential(nn.Linear(4, 3)).to(F64)
    model.register_parameter("extra", nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(Unsupported, match="found the weight 'extra' outside the chain"):
        NNBCD().init(Problem(model, samples((4,)), none({})))


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_outputs_other_than_the_classes_are_refused(outputs):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, outputs)).to(F64)
    with pytest.raises(Unsupported, match=f"each of the 3 classes; found {outputs} of '2.weight'"):
        NNBCD().init(Problem(model, samples((4,)), none({})))


def test_convolutions_whose_matrix_is_too_large_are_refused(monkeypatch):
    made = case("two convolutions")  # 12 x 90 entries
    monkeypatch.setattr(nnbcd_start, "LARGEST", 12 * 90)
    NNBCD().init(problem_of(made))
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
