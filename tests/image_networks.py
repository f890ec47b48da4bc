"""Small networks for images, one for each way in which channels are read, and what tests ask of any network."""

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from cases import case
from problems import F64, randn
from torch import Tensor, nn

from nncompress.models.densenet import DenseNet
from nncompress.models.preresnet import PreResNet
from nncompress.models.resnet import ResNet18
from nncompress.models.vgg import VGG
from nncompress.models.wide_resnet import WideResNet

Make = Callable[[], nn.Module]
SMALL: dict[str, tuple[Make, tuple[int, ...]]] = {
    "vgg16": (lambda: VGG((3, 17, 16), 5, depth=16, width=0.03), (3, 17, 16)),
    "vgg-stages": (lambda: VGG((1, 8, 8), 5, layers=[1, 2, 1], width=0.1), (1, 8, 8)),
    "preresnet-basic": (lambda: PreResNet((3, 9, 8), 5, depth=14, bottleneck=False, width=0.25), (3, 9, 8)),
    "preresnet-bottleneck": (lambda: PreResNet((1, 8, 8), 5, depth=20, width=0.25), (1, 8, 8)),
    "densenet": (lambda: DenseNet((3, 8, 9), 5, depth=10, growth=3), (3, 8, 9)),
    "resnet18": (lambda: ResNet18((3, 8, 8), 5, width=0.06), (3, 8, 8)),
    "wide-resnet": (lambda: WideResNet((3, 8, 8), 5, depth=10, widen=1), (3, 8, 8)),
    "wide-resnet-dropout": (lambda: WideResNet((3, 8, 8), 5, depth=16, widen=1, dropout=0.3), (3, 8, 8)),
}
every = pytest.mark.parametrize("name", SMALL)
CLASSES = {
    "VGG": ("vgg16", "vgg-stages"),
    "PreResNet": ("preresnet-basic", "preresnet-bottleneck"),
    "DenseNet": ("densenet",),
    "ResNet18": ("resnet18",),
    "WideResNet": ("wide-resnet", "wide-resnet-dropout"),
}
BRANCHED = ("PreResNet", "WideResNet")
"""Those with branches that may go."""


def of_each_class(classes: Iterable[str] = CLASSES) -> Callable[[Callable[[str, nn.Module, Tensor], None]], object]:
    """Make of a test(name, network, samples) one item a class, over all networks of it."""

    def marked(test: Callable[[str, nn.Module, Tensor], None]) -> object:
        def over(names: tuple[str, ...]) -> None:
            for name in names:
                with case(network=name):
                    test(name, *small(name))

        over.__name__, over.__module__, over.__doc__ = test.__name__, test.__module__, test.__doc__
        return pytest.mark.parametrize("names", [pytest.param(CLASSES[kind], id=kind) for kind in classes])(over)

    return marked


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A narrow network with batch norms as after training, and three samples."""
    torch.manual_seed(0)
    make, shape = SMALL[name]
    network = make().to(F64)
    for norm in norms(network):
        for tensor, low, high in ((norm.weight, 0.3, 1), (norm.bias, -0.2, 0.4)):
            nn.init.uniform_(tensor, low, high)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
    return network.eval(), randn(3, *shape)


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    """What it gives in evaluation; it stays as it is."""
    network = copy.deepcopy(network).eval() if network.training else network
    with torch.no_grad():
        return network(x)
