"""Channels taken out of networks that do not say which can be: what goes, what stays, and what is refused."""

import copy
import sys
from collections.abc import Callable, Mapping

import pytest
import torch
from cases import case
from image_networks import count, outputs
from problems import F64, randn
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from nncompress.errors import Unsupported
from nncompress.surgery.channels import is_reshaped, kept_in, mask_channels
from nncompress.surgery.pruning import prune
from nncompress.surgery.removal import reshape, structure

Act = Callable[[], nn.Module]


def chain(act: Act = nn.ReLU) -> nn.Module:
    """Two convolutions, of whose last 3x3 positions a channel are read by a linear layer."""
    first = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), act(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *first, nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), act(), nn.Flatten(), nn.Linear(45, 4)
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1)
    )


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.PReLU(6), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(18, 4)
    )


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 6, 2), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), mlp48()
    )


def mlp48() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.Linear(6, 3))


def separable() -> nn.Module:
    """A pointwise convolution makes the channels that a depthwise one filters, as in MobileNet."""
    made = [nn.Conv2d(2, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    filtered = [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    return nn.Sequential(*made, *filtered, nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Concat(nn.Module):
    """Two branches side by side, one of them normalised again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.norm_a, self.norm_b, self.norm = nn.BatchNorm2d(5), nn.BatchNorm2d(6), nn.BatchNorm2d(11)
        self.both, self.linear = nn.Conv2d(11, 4, 3), nn.Linear(4 + 11, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([functional.relu(self.norm_a(self.a(x))), functional.relu(self.norm_b(self.b(x)))], 1)
        last = [self.both(h), functional.relu(self.norm(h))]
        return self.linear(torch.cat([functional.adaptive_max_pool2d(part, 1).flatten(1) for part in last], 1))


class Squeeze(nn.Module):
    """A channel-wise gate, as in squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)
        self.down, self.up, self.last = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.hardswish(self.norm(self.conv(x)))
        gate = torch.sigmoid(self.up(functional.relu(self.down(h.mean((2, 3), keepdim=True)))))
        return self.last(h * gate).mean((-1, -2))


class Residual(nn.Module):
    """A block whose sum has another summand, with a batch norm (`norm`) or as a convolution leaves it."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.norm_a(self.a(x)) + self.norm_b(self.b(x)))).amax((2, 3))


class Before(nn.Module):
    """A residual stream made by convolutions, each branch of which normalises first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.linear = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        self.first, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.conv(functional.relu(self.first(h)))
        return self.linear(functional.relu(self.last(h)).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (1, 8, 8)),
    "mlp": (mlp, (7,)),
    "series": (series, (2, 9)),
    "volume": (volume, (1, 4, 5, 4)),
    "separable": (separable, (2, 7, 7)),
    "concat": (Concat, (2, 6, 6)),
    "squeeze": (Squeeze, (2, 6, 6)),
    "residual": (Residual, (2, 6, 6)),
    "before": (Before, (2, 6, 6)),
}


def trained(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with batch norms as after training."""
    torch.manual_seed(seed)
    network = make().to(F64)
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((norm.weight, 0.3, 1), (norm.bias, 0.1, 0.5), (norm.running_var, 0.5, 2)):
                nn.init.uniform_(tensor, low, high)
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    return network


def without(network: nn.Module, dead: Mapping[str, list[int]]) -> nn.Module:
    """The masked network in which these channels of these batch norms are dead."""
    keep = {name: mask.clone() for name, mask in kept_in(network).items()}
    for name, channels in dead.items():
        keep[name][channels] = False
    return mask_channels(network, keep)


def random_masks(network: nn.Module, seed: int, share: float = 0.5) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    return mask_channels(
        network, {name: torch.rand(len(mask), generator=g) > share for name, mask in kept_in(network).items()}
    )


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def test_of_a_chain_all_dead_channels_go_with_all_their_positions_in_a_linear_layer() -> None:
    network = without(trained(chain), {"1": [0, 2, 5], "5": [1, 4]})
    before = copy.deepcopy(network.state_dict())
    found = prune(network, randn(3, 1, 8, 8))
    expected = {"0.weight": (3, 1, 3, 3), "0.bias": (3,), "4.weight": (3, 3, 3, 3), "4.bias": (3,), "8.weight": (4, 27)}
    assert expected.items() <= shapes(found).items()
    assert (found[0].out_channels, found[1].num_features, found[4].in_channels, found[8].in_features) == (3, 3, 3, 27)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    x = randn(4, 1, 8, 8, seed=1)
    torch.testing.assert_close(outputs(found, x), outputs(network, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_random_masks_becomes_smaller_computes_the_same_and_can_be_loaded(name: str) -> None:
    make, shape = NETWORKS[name]
    for seed in range(2):
        with case(seed=seed):
            network, x = random_masks(trained(make, seed), seed, share=0.7), randn(5, *shape, seed=seed + 1)
            check_smaller(network, prune(network, randn(2, *shape)), make, x)


def check_smaller(network: nn.Module, found: nn.Module, make: Callable[[], nn.Module], x: Tensor) -> None:
    assert is_reshaped(found)
    assert count(found) < count(network)
    torch.testing.assert_close(outputs(found, x), outputs(network, x), rtol=1e-9, atol=1e-9)
    loaded = make().to(F64)
    reshape(loaded, found.state_dict(), structure(found))
    loaded.load_state_dict(found.state_dict())
    assert torch.equal(outputs(loaded, x), outputs(found, x))


def small_resnet() -> nn.Module:
    """Fewer blocks than a ResNet-18."""
    return ResNet(BasicBlock, [2, 1, 2, 1], num_classes=10)


def test_channels_inside_the_blocks_of_a_resnet_go_and_its_stream_stays() -> None:
    network = without(trained(small_resnet), {"layer1.0.bn1": list(range(40)), "layer4.0.bn1": list(range(0, 512, 2))})
    x = randn(2, 3, 32, 32)
    found = prune(network, x)
    check_smaller(network, found, small_resnet, x)
    assert shapes(found)["layer1.0.conv1.weight"] == (24, 64, 3, 3)
    assert shapes(found)["layer1.0.conv2.weight"] == (64, 24, 3, 3)
    assert count(network) - count(found) == 40 * (2 * 64 * 9 + 2) + 256 * (256 * 9 + 512 * 9 + 2)


def test_the_stream_of_a_resnet_loses_the_channels_that_are_dead_in_all_batch_norms_that_make_it() -> None:
    first = ["bn1", "layer1.0.bn2", "layer1.1.bn2"]
    third = ["layer3.0.bn2", "layer3.0.downsample.1", "layer3.1.bn2"]
    dead = {name: list(range(20)) for name in first} | {name: list(range(100, 200)) for name in third}
    dead["layer1.1.bn2"] = list(range(12, 40))
    network, x = without(trained(small_resnet), dead), randn(2, 3, 32, 32)
    found = prune(network, x)
    check_smaller(network, found, small_resnet, x)
    expected = {"conv1.weight": (56, 3, 7, 7), "layer1.1.bn2.weight": (56,), "layer2.0.conv1.weight": (128, 56, 3, 3)}
    expected |= {"layer3.0.downsample.0.weight": (156, 128, 1, 1), "layer4.0.conv1.weight": (512, 156, 3, 3)}
    assert expected.items() <= shapes(found).items()


def test_a_resnet_with_random_masks_becomes_smaller_and_computes_the_same() -> None:
    network, x = random_masks(trained(small_resnet), 0, share=0.7), randn(2, 3, 32, 32)
    check_smaller(network, prune(network, x), small_resnet, x)


def test_a_channel_that_a_convolution_without_batch_norm_adds_to_stays() -> None:
    network = without(trained(lambda: Residual(norm=False)), {"norm_a": [0, 1]})
    with pytest.raises(Unsupported, match="no other channel is added to it, found none"):
        prune(network, randn(3, 2, 6, 6))


def test_a_dead_channel_before_a_depthwise_convolution_stays_where_the_batch_norm_behind_gives_something() -> None:
    network = without(trained(separable), {"1": [0, 1, 2], "4": [2, 3]})
    found = prune(network, randn(3, 2, 7, 7))
    assert shapes(found)["3.weight"] == (6, 1, 3, 3)
    assert found[3].groups == found[3].in_channels == found[3].out_channels == 6
    torch.testing.assert_close(outputs(found, randn(3, 2, 7, 7)), outputs(network, randn(3, 2, 7, 7)))


def test_channels_that_are_flattened_behind_a_prelu_with_one_slope_stay_and_those_before_go() -> None:
    network = without(trained(lambda: chain(nn.PReLU)), {"1": [0, 2, 5], "5": [1, 4]})
    found = prune(network, randn(3, 1, 8, 8))
    expected = {"0.weight": (3, 1, 3, 3), "2.weight": (1,), "4.weight": (5, 3, 3, 3), "8.weight": (4, 45)}
    assert expected.items() <= shapes(found).items()


def test_channels_that_a_grouped_or_transposed_convolution_reads_stay() -> None:
    behind = [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    for reader in (nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3)):
        with case(reader=reader):
            made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), reader, *behind)
            network = trained(lambda made=made: made)
            with pytest.raises(Unsupported, match="found none such"):
                prune(without(network, {"1": [0, 2], "4": [1, 4]}), randn(3, 1, 8, 8))


def test_a_layer_with_all_channels_dead_keeps_one_and_a_depthwise_convolution_two() -> None:
    for name, left in (("chain", {"1": 1, "5": 1}), ("separable", {"1": 2, "4": 2})):
        with case(name=name):
            make, shape = NETWORKS[name]
            network = random_masks(trained(make), 0, share=1)
            found = prune(network, randn(3, *shape))
            assert {norm: len(found.get_submodule(norm).weight) for norm in left} == left
            check_smaller(network, found, make, randn(3, *shape))


def test_a_network_without_dead_channels_is_copied() -> None:
    network, x = trained(chain), randn(3, 1, 8, 8)
    found = prune(network, x)
    assert found is not network
    assert not is_reshaped(found)
    torch.testing.assert_close(found.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_precision_training_mode_and_frozen_parameters_stay_as_they_are() -> None:
    network = without(trained(chain), {"1": [0, 2]}).float().train()
    network[0].requires_grad_(False)
    network[1].eval()
    found = prune(network, randn(3, 1, 8, 8, dtype=torch.float32))
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in network.parameters()]
    assert [m.training for m in found.modules()] == [m.training for m in network.modules()]
    assert [t.dtype for t in found.state_dict().values()] == [t.dtype for t in network.state_dict().values()]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    prune(random_masks(trained(Concat), 0), randn(3, 2, 6, 6))
    assert capfd.readouterr() == ("", "")


def test_channels_behind_which_a_sigmoid_gives_a_half_stay() -> None:
    with pytest.raises(Unsupported, match="read zeros from it"):
        prune(without(trained(lambda: chain(nn.Sigmoid)), {"1": [0]}), randn(3, 1, 8, 8))


class Part(nn.Module):
    """A function of a convolution with a batch norm, and a layer beside."""

    def __init__(self, function: Callable[["Part", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.linear, self.other = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Linear(4, 3),
            nn.Linear(4, 3),
        )
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.norm(self.conv(x)))


def both(part: Part, h: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
    mean = functional.relu(h).mean((2, 3))
    mean = mean.view(shape) if shape else mean
    return part.linear(mean) + part.other(mean)


REFUSED: dict[str, tuple[Callable[[Part, Tensor], Tensor], str]] = {
    "a limit above zero": (
        lambda part, h: both(part, functional.hardtanh(h, 0.5, 2.0)),
        "found a largest difference of",
    ),
    "a factor that counts": (lambda part, h: both(part, h * h.shape[1]), "found a largest difference of"),
    "no gradient function": (lambda part, h: h.argmax((2, 3)).double(), "must be able to trace the network, found"),
    "a width written down": (
        lambda part, h: both(part, h, (-1, 4)),
        "must work with fewer channels, found RuntimeError",
    ),
    "values that choose a layer": (
        lambda part, h: (part.linear if h.sum() == 0 else part.other)(h.mean((2, 3))),
        "every layer must take part in the outputs, found linear",
    ),
    "values without gradient": (
        lambda part, h: both(part, h).detach(),
        "every layer must take part in the outputs, found conv",
    ),
    "several outputs": (lambda part, h: (both(part, h), h), "must be able to trace the network, found TypeError"),
    "channels in another order": (lambda part, h: both(part, h.transpose(1, 2).reshape(h.shape)), "found none such"),
    "channels side by side with the samples": (lambda part, h: both(part, torch.cat([h, h])), "found none such"),
    "a mean over channels": (lambda part, h: both(part, h - h.mean(1, keepdim=True)), "found none such"),
    "a constant added": (lambda part, h: both(part, h + 1), "found none such"),
}


def test_what_would_change_the_outputs_is_refused_with_a_sentence() -> None:
    for name, (function, sentence) in REFUSED.items():
        with case(name=name):
            network = without(trained(lambda function=function: Part(function)), {"norm": [1, 2]})
            with pytest.raises(Unsupported, match=sentence):
                prune(network, randn(3, 1, 8, 8))


def test_the_outputs_themselves_stay() -> None:
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3)).to(F64)
    found = prune(without(network, {"1": [0], "4": [1]}), randn(4, 5))
    assert shapes(found)["3.weight"] == (3, 5)


def test_without_torch_pruning_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    network = without(trained(chain), {"1": [0]})
    with pytest.raises(Unsupported, match=r"pip install 'nncompress\[prune\]'"):
        prune(network, randn(3, 1, 8, 8))
