"""Methods of one-shot compression by their class, networks for them, and what tests ask of the compressed ones."""

from typing import Any

import pytest
import torch
from image_networks import small
from problems import F64, problem, randn, small_digits
from torch import Tensor, nn

from nncompress.experiment.one_shot import Filters, LowRank, OneShot, Weights
from nncompress.experiment.study import OneShotStudy
from nncompress.models.vgg import VGG
from nncompress.problem import Problem

NETWORKS = ("vgg-stages", "preresnet-basic", "densenet", "resnet18", "wide-resnet")
METHODS: dict[str, list[OneShot]] = {
    "Filters": [Filters(), Filters(shifts=False), Filters(norm=2, joint=True)],
    "Weights": [Weights(), Weights(everything=True)],
    "LowRank": [LowRank(), LowRank(linear=True)],
}
every_class = pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)


def one_shot(p: Problem, network: nn.Module, methods: Any, at: Any, *, recalibrate: int, seed: int) -> list[Any]:
    """The rows of a study."""
    return [*OneShotStudy(methods=methods, at=at, recalibrate=recalibrate, seed=seed).rows(p, network)]


class Undeclared(nn.Module):
    """A residual network without scales(): a chain of two convolutions added to a stream, one without a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.bn0 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = x + self.conv2(self.bn1(self.conv1(x)).relu())
        return self.fc(x.mean((2, 3)))


def undeclared() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    network = Undeclared().to(F64)
    for norm in (network.bn0, network.bn1):
        nn.init.uniform_(norm.weight, 0.3, 1)
        nn.init.uniform_(norm.bias, -0.2, 0.4)
    return network.eval(), randn(3, 1, 8, 8)


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A network and three samples for it."""
    return undeclared() if name == "undeclared" else small(name)


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def dead_filters(network: nn.Module) -> dict[str, Tensor]:
    """Which filters of each convolution are zero."""
    return {name: (conv.weight == 0).flatten(1).all(1) for name, conv in convolutions(network).items()}


def nonzeros(network: nn.Module) -> int:
    return sum(int(torch.count_nonzero(p)) for p in network.parameters())


def digits_problem(network: nn.Module | None = None) -> Problem:
    """60 digits and a network of two convolutions, or another."""
    torch.manual_seed(0)
    data = small_digits(60)
    return problem(data, network or VGG((1, 8, 8), 10, layers=[1, 1], width=0.1).to(F64))
