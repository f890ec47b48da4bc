"""The two steps of the LC algorithm: `make bench`.

First an epoch of an L step of LeNet-300-100 (60,000 synthetic samples, batches of 256) against a plain in-memory loop
without the penalty. Then, for each compression, the seconds of one C step and its share of an L step of 20 epochs: for
LeNet-300-100 with the epoch measured before, for the 14.7 million weights of VGG-16 (CIFAR-10) with epochs of 50,000
samples in batches of 128, extrapolated from one batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nncompress.compressions.additive import additive
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.rank_selection import rank_selection
from nncompress.compressions.params import Params
from nncompress.compressions.plan import Plan, none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.models.mlp import MLP
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.training.descent import toward
from nncompress.solvers.training.minibatches import Minibatches, epoch
from scripts.benchmarks.timing import compare, seconds

EPOCHS = 20
MU = 1e-3
RECIPES: Mapping[str, Callable[[Mapping[str, Tensor]], Plan]] = {
    "codebook K=2 per layer": partial(codebook, K=2, layers="all"),
    "codebook K=64 per layer": partial(codebook, K=64, layers="all"),
    "l0 5 %, joint": partial(l0, keep=0.05, joint=True, layers="all"),
    "codebook K=2 + l0 1 %, joint": partial(
        additive, parts={"sparse": partial(l0, keep=0.01), "codebook": partial(codebook, K=2)}, joint=True, layers="all"
    ),
    "low rank 10": partial(low_rank, rank=10, layers="all"),
    "rank selection 1e-6": partial(rank_selection, alpha=1e-6, layers="all"),
}
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def vgg16() -> nn.Module:
    """Return the convolutions of VGG-16 with batch norm and one linear layer, for 3 x 32 x 32 images and 10 classes."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if isinstance(width, int):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def noise(samples: int, *shape: int) -> Split:
    """Normal inputs with random labels of 10 classes."""
    g = Generator().manual_seed(0)
    return Split(torch.randn(samples, *shape, generator=g), torch.randint(10, (samples,), generator=g))


def l_epoch(model: nn.Module, split: Split, batch: int) -> Callable[[], object]:
    """Return an epoch of an L step toward the weights the model has now."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    pull = toward(model, Params(weights_of(model)).clone(), MU)
    g = Generator().manual_seed(0)
    problem = Problem(model, Dataset(split, split, 10, "noise"), none(weights_of(model)))
    return partial(epoch, problem, model, Minibatches(batch, g), optimizer=optimizer, add_gradient=pull)


def plain_epoch(model: nn.Module, split: Split, batch: int) -> Callable[[], None]:
    """Return the same without the penalty, as one writes it by hand."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def run() -> None:
        for rows in torch.randperm(len(split)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(split.x[rows]), split.y[rows]).backward()
            optimizer.step()

    return run


def c_steps(name: str, weights: Mapping[str, Tensor], l_step: float, repeats: int) -> None:
    """Print the seconds of a warm C step for each compression, and its share of the L step."""
    for title, recipe in RECIPES.items():
        plan = recipe(weights)
        w = plan.select(weights)
        start = plan.compress(w, MU)
        moved = w.map(lambda t: t + 0.1 * t.std() * torch.randn(t.shape, generator=Generator().manual_seed(1)))
        step: Callable[[], Any] = partial(plan.compress, moved, MU, start=start)
        took = statistics.median(seconds(step) for _ in range(repeats))
        sys.stdout.write(f"{name:<16}{title:<32}{1e3 * took:>10.1f} ms{100 * took / l_step:>9.3f} % of the L step\n")


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, one repeat, no VGG-16")
    quick = parser.parse_args().quick
    samples, repeats = (2_000, 1) if quick else (60_000, 5)
    torch.manual_seed(0)
    split = noise(samples, 784)
    lenet = MLP((784,), 10, widths=(300, 100), activation="tanh")
    ours, plain = (
        l_epoch(lenet, split, 256),
        plain_epoch(MLP((784,), 10, widths=(300, 100), activation="tanh"), split, 256),
    )
    sys.stdout.write(f"{'':<28}{'plain ms':>10}{'ours ms':>10}\n")
    compare("LeNet-300-100, one epoch", plain, ours, repeats)
    c_steps("LeNet-300-100", weights_of(lenet), EPOCHS * seconds(ours), repeats)
    if not quick:
        vgg = vgg16()
        batch = seconds(l_epoch(vgg, noise(128, 3, 32, 32), 128))
        sys.stdout.write(
            f"VGG-16: {batch:.2f} s a batch of 128; an L step of {EPOCHS} epochs is {EPOCHS * 391 * batch:.0f} s\n"
        )
        c_steps("VGG-16", weights_of(vgg), EPOCHS * 391 * batch, 1)


if __name__ == "__main__":
    main()
