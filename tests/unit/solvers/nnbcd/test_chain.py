"""A network as a chain of layers: the maps against torch's own layers, what is read."""

import pytest
import torch
from cases import case
from nnbcd_cases import MAKERS, Net, linear_net, network_of, problem_of, rows, samples
from problems import F64, randn
from torch import nn
from torch.nn import functional

from nncompress.compressions.plan import none
from nncompress.problem import Problem
from nncompress.solvers.nnbcd.chain import LinearMap
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.nnbcd.trace import chain_of


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
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def mapped(name):
    """A network of one layer, the shape of its samples, its chain's map, its weight as a matrix and its bias."""
    make, shape = MAPS[name]
    model = make()
    outputs = model(torch.zeros(1, *shape, dtype=F64)).numel()
    layer = chain_of(nn.Sequential(model, nn.Flatten(), nn.Linear(outputs, 2)), shape).layers[0]
    parameters = {f"0.{key}": value.detach() for key, value in model.named_parameters()}
    return model, shape, layer.map, parameters[layer.weight].flatten(1), parameters.get(layer.bias)


def test_the_product_is_the_layers_own_output_and_the_matrix_its_jacobian_with_the_channel_fastest():
    for name in MAPS:
        model, shape, linear_map, W, b = mapped(name)
        x = randn(4, *shape)
        jacobian = torch.autograd.functional.jacobian(
            lambda x, model=model, shape=shape: rows(model(x.view(1, *shape)))[0], randn(*shape).flatten()
        )
        with case(name=name):
            torch.testing.assert_close(linear_map.product(x.flatten(1), W, b), rows(model(x)))
            torch.testing.assert_close(linear_map.matrix(W), jacobian)


def test_rows_are_what_the_weight_sees_at_each_position():
    for name in MAPS:
        _, shape, linear_map, W, _ = mapped(name)
        V = randn(4, *shape).flatten(1)
        seen = linear_map.rows(V)
        with case(name=name):
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


def test_the_forward_pass_of_the_chain_is_the_networks():
    for name in MAKERS:
        made = network_of(name)
        p = problem_of(made)
        state = NNBCD(initial="model").init(p)
        with case(name=name):
            torch.testing.assert_close(state.U[-1], made.model(p.data.train.x))
            assert torch.equal(state.V[-1], state.U[-1])


def test_the_layers_are_read_off_in_order_with_their_slopes_and_skips():
    for name in MAKERS:
        made = network_of(name)
        layers = chain_of(made.model, made.shape).layers
        read = [(layer.weight, layer.slope, layer.inner, layer.outer) for layer in layers]
        slopes = [*(part.slope for part in made.parts[:-1]), 1.0]
        parts = zip(made.parts, slopes, strict=True)
        with case(name=name):
            assert read == [(f"{part.name}.weight", slope, part.inner, part.outer) for part, slope in parts]


def test_the_observed_network_computes_what_the_blocks_say():
    for name in MAKERS:
        made = network_of(name)
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
        with case(name=name):
            torch.testing.assert_close(observed(p.data.train.x), u)


def test_every_common_way_to_flatten_is_read():
    ways = (
        lambda x: x.flatten(1),
        lambda x: x.flatten(start_dim=1),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape((x.shape[0], -1)),
        lambda x: x.reshape(-1, 12),
        lambda x: x.permute(0, 1, 2).flatten(1),
    )
    for k, flat in enumerate(ways):
        run = lambda net, x, flat=flat: net.b(torch.relu(net.a(flat(x))))  # noqa: E731
        layers = chain_of(linear_net(run, a=(12, 4), b=(4, 2)), (3, 4)).layers
        with case(way=k):
            assert [(layer.weight, layer.slope) for layer in layers] == [("a.weight", 0.0), ("b.weight", 1.0)]
            assert layers[0].map.index is None


def test_functional_activations_are_read_with_their_slopes():
    activations = (
        (torch.relu, 0.0),
        (lambda u: u.relu(), 0.0),
        (lambda u: functional.relu(u, inplace=True), 0.0),
        (lambda u: functional.leaky_relu(u, 0.2), 0.2),
        (lambda u: functional.leaky_relu(u, negative_slope=0.3), 0.3),
        (lambda u: functional.leaky_relu(u), 0.01),
        (lambda u: u, 1.0),
    )
    for k, (sigma, slope) in enumerate(activations):
        run = lambda net, x, sigma=sigma: net.b(sigma(net.a(x)))  # noqa: E731
        first, _ = chain_of(linear_net(run, a=(4, 4), b=(4, 2)), (4,)).layers
        with case(activation=k):
            assert first.slope == slope


def test_activation_layers_are_read_with_their_slopes():
    for layer, slope in (
        (nn.ReLU(inplace=True), 0.0), (nn.LeakyReLU(0.2), 0.2), (nn.Identity(), 1.0), (nn.Dropout(0.0), 1.0),
    ):  # fmt: skip
        with case(layer=layer):
            chain = chain_of(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)), (4,))
            assert chain.layers[0].slope == slope


def test_permuted_samples_are_read():
    for k, swap in enumerate((lambda x: x.permute(0, 2, 1), lambda x: torch.permute(x, dims=(0, -1, 1)))):
        run = lambda net, x, swap=swap: net.a(swap(x).flatten(1))  # noqa: E731
        (layer,) = chain_of(linear_net(run, a=(6, 2)), (2, 3)).layers
        with case(swap=k):
            assert layer.map.index.flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_pooling_is_read_as_a_function_and_as_a_layer():
    whole, two = [[[0, 1, 2], [3, 4, 5]]], [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    for pool, shape, index in (
        (lambda x: functional.avg_pool2d(x, 2), (1, 2, 4), two),
        (lambda x: functional.avg_pool2d(x, (2, 2), stride=2), (1, 2, 4), two),
        (nn.AvgPool2d(2), (1, 2, 4), two),
        (nn.Sequential(nn.Identity(), nn.AvgPool2d(2, 2)), (1, 2, 4), two),
        (nn.AdaptiveAvgPool2d((1, 1)), (2, 1, 3), whole),
        (lambda x: functional.adaptive_avg_pool2d(x, 1), (2, 1, 3), whole),
    ):
        run = lambda net, x, pool=pool: net.a(pool(x).flatten(1))  # noqa: E731
        model = Net(run, a=nn.Linear(2, 2), **({"pool": pool} if isinstance(pool, nn.Module) else {}))
        (layer,) = chain_of(model, shape).layers
        with case(pool=pool, shape=shape):
            assert layer.map.index.tolist() == index
