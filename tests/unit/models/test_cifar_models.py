"""The networks for small images: published counts, initial weights, gradients, and what is refused."""

from itertools import pairwise

import pytest
import torch
from cases import case
from composing import composing
from hydra import compose
from image_networks import CLASSES, SMALL, count, norms, of_each_class, outputs, small
from problems import F64
from torch import Tensor, nn

from nncompress.config.build import build
from nncompress.models.densenet import DenseNet
from nncompress.models.preresnet import PreResNet
from nncompress.models.resnet import ResNet18
from nncompress.models.vgg import VGG
from nncompress.models.wide_resnet import WideResNet
from nncompress.reproduce.counts import params_with_selection, script_flops
from nncompress.surgery.channels import norm_of
from nncompress.surgery.uses import layers_of

# 10 classes: parameters, those with selection vectors, scales, operations of the published script, multiply-accumulates
# and the features before the last layer.
PUBLISHED = {
    "vgg19": (20_035_018, 20_035_018, 5504, 797_304_842, 398_136_320, 512),
    "densenet40": (1_059_298, 1_068_658, 9360, 573_052_330, 282_917_328, 456),
    "resnet164": (1_703_258, 1_711_338, 12112, 504_759_306, 247_646_720, 256),
}
IN_100 = {"vgg19": 20_081_188, "densenet40": 1_100_428, "resnet164": 1_726_388}


def full(option: str, *num_classes: int) -> list[nn.Module]:
    """The networks of an option of conf/model for 32x32 colour images, without memory for their weights."""
    with composing():
        node = compose("config", [f"model={option}"]).model
    with torch.device("meta"):
        return [build(node, input_shape=(3, 32, 32), num_classes=number) for number in num_classes]


def image() -> Tensor:
    return torch.empty(1, 3, 32, 32, device="meta")


@pytest.mark.parametrize("option", PUBLISHED)
def test_the_networks_of_network_slimming_have_the_published_sizes(option):
    network, larger = full(option, 10, 100)
    params, selected, _, flops, _, features = PUBLISHED[option]
    scales = sum(norm_of(network, scale).num_features for scale in network.scales())
    macs = sum(layer.entries * layer.positions for layer in layers_of(network, image()))
    found = (count(network), params_with_selection(network), scales, script_flops(network, image()), macs)
    assert found == PUBLISHED[option][:-1]
    # ninety more classes add their rows of the last layer alone
    assert count(larger) == IN_100[option] == params + 90 * (features + 1)
    assert params_with_selection(larger) == selected + 90 * (features + 1)
    assert script_flops(larger, image()) == flops + 90 * (2 * features + 1)


def test_resnet18_and_the_wide_resnet_have_the_sizes_of_their_papers_networks():
    for option, params in (("resnet18", 11_173_962), ("wrn28_10", 36_479_194)):
        with case(option=option):
            assert count(*full(option, 10)) == params


def test_a_resnet_of_depth_6n_plus_2_has_the_parameters_of_its_sum():
    for option, n in (("resnet20", 3), ("resnet56", 9), ("resnet110", 18)):
        stages = [2 * n * 9 * 16 * 16 + 2 * n * 2 * 16]
        for before, after in pairwise([16, 32, 64]):
            weights = 9 * before * after + (2 * n - 1) * 9 * after * after + before * after
            stages.append(weights + 2 * before + (2 * n - 1) * 2 * after)
        with case(option=option):
            assert count(*full(option, 10)) == 27 * 16 + sum(stages) + 2 * 64 + 65 * 10


def test_vgg16_has_thirteen_convolutions_and_one_linear_layer():
    widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
    convolutions = sum(9 * before * after + 2 * after for before, after in pairwise(widths))
    assert count(*full("vgg16", 10)) == convolutions + 513 * 10


def test_the_published_script_counts_modules_as_by_hand():
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),  # 3*8*8 outputs of 2*9*2 + 1
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 3*4*4 outputs of 4
        nn.AvgPool2d((2, 1)),  # 3*2*4 outputs of 2
        nn.Conv2d(3, 3, 1, groups=3, bias=False),  # 3*2*4 outputs of 2
        nn.AdaptiveAvgPool2d(1),  # 3*2*4 inputs
        nn.Flatten(),
        nn.Linear(3, 5),
    )
    by_hand = 192 * 37 + 3 * 192 + 48 * 4 + 24 * 2 + 24 * 2 + 24 + 5 * 7
    assert network.training
    assert script_flops(network, torch.zeros(1, 2, 8, 8)) == by_hand
    assert network.training
    assert network[1].num_batches_tracked == 0


@of_each_class()
def test_every_parameter_gets_a_finite_gradient_which_relus_in_place_do_not_change(name, network, x):
    gradients, kept = [], x.clone()
    for inplace in (True, False):
        network, _ = small(name)
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                assert module.inplace
                module.inplace = inplace
        torch.manual_seed(1)  # dropout
        logits = network.train()(x)
        assert logits.shape == (3, 5)
        assert logits.dtype == F64
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        assert torch.equal(x, kept)
        gradients.append([p.grad for p in network.parameters()])
    assert all(map(torch.equal, *gradients))


def test_channels_last_computes_the_same():
    for name in SMALL:
        with case(name=name):
            network, x = small(name)
            plain = outputs(network, x)
            last = outputs(network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
            torch.testing.assert_close(last, plain, rtol=1e-10, atol=1e-10)


def test_batch_norms_begin_with_one_scale_and_no_shift():
    for kind, names in CLASSES.items():
        begin = 1.0 if kind in ("ResNet18", "WideResNet") else 0.5
        for name in names:
            with case(name=name):
                found = norms(SMALL[name][0]())
                assert all(bool((norm.weight == begin).all()) and not norm.bias.any() for norm in found)


def test_convolutions_begin_with_the_deviation_of_their_outgoing_weights():
    torch.manual_seed(0)
    network = VGG((3, 4, 4), 500, layers=[1, 2, 1], initial_scale=0.7)
    for module in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        expected = (2 / (9 * module.out_channels)) ** 0.5
        error = 5 / (2 * module.weight.numel()) ** 0.5  # five standard errors
        assert float(module.weight.detach().std()) == pytest.approx(expected, rel=error)
    assert float(network.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not network.fc.bias.any()
    assert all(bool((norm.weight == 0.7).all()) for norm in norms(network))


def test_a_width_multiplies_all_channels_and_leaves_at_least_one():
    half, least = VGG((3, 16, 16), 10, width=0.5), ResNet18((3, 8, 8), 10, width=1e-4)
    assert [norm.num_features for norm in norms(half)] == [32] * 2 + [64] * 2 + [128] * 4 + [256] * 8
    assert {norm.num_features for norm in norms(least)} == {1}


REFUSED = [
    (lambda: VGG((3, 32, 32), 10, depth=18), "depth must be 16 or 19, found 18"),
    (lambda: VGG((3, 32, 32), 10, layers=[]), r"layers must be .* 1 to 5 stages, each at least 1, found \[\]"),
    (lambda: VGG((3, 32, 32), 10, layers=[1, 0]), r"each at least 1, found \[1, 0\]"),
    (lambda: VGG((3, 64, 64), 10, layers=[1] * 6), "1 to 5 stages"),
    (lambda: VGG((3, 32, 32), 10, width=0), "width must be above 0, found 0"),
    (lambda: VGG((1, 8, 8), 10), r"vgg needs images .* of at least 16x16, found \(1, 8, 8\); choose such"),
    (
        lambda: PreResNet((3, 32, 32), 10, depth=100),
        "depth must be 9n \\+ 2 with bottlenecks, found 100; choose 92",
    ),
    (
        lambda: PreResNet((3, 32, 32), 10, depth=2, bottleneck=False),
        "6n \\+ 2 without bottlenecks, found 2; choose 8",
    ),
    (lambda: PreResNet((64,), 10), r"preresnet needs images .* found \(64,\); choose such"),
    (lambda: DenseNet((3, 32, 32), 10, depth=41), "depth must be 3n \\+ 4 with n at least 1, found 41"),
    (lambda: DenseNet((3, 32, 32), 10, growth=0), "growth must be at least 1, found 0"),
    (lambda: DenseNet((3, 3, 32), 10), "densenet needs images"),
    (lambda: ResNet18((3, 7, 32), 10), "resnet18 needs images"),
    (lambda: WideResNet((3, 32, 32), 10, depth=4), "depth must be 6n \\+ 4 with n at least 1, found 4"),
    (lambda: WideResNet((3, 32, 32), 10, widen=0), "widen must be at least 1 and dropout in .*, found 0 and 0.0"),
    (lambda: WideResNet((3, 32, 32), 10, dropout=1.0), "found 10 and 1.0"),
    (lambda: WideResNet((64,), 10), "wide_resnet needs images"),
]


def test_what_does_not_fit_is_refused_with_a_sentence():
    for make, said in REFUSED:
        with case(said=said), pytest.raises(ValueError, match=said):
            make()
