"""Images per second of the minibatch loop against a plain training loop, for the CIFAR networks.

Plain is how the published code trains: a DataLoader with one worker that crops and flips one image after the other,
float32, channels first, every operation started by itself, SGD, batches of 64. Ours takes batches of that size with
precision=bf16 (autocast, channels_last) from a data set held on the device; on a GPU replayed as CUDA graphs. Random
images; the two forms take turns, and medians are printed. `share` is that of the rate of a large matrix product in
bfloat16, measured here, with 6 FLOPs for every multiply-accumulate of the network (forward and backward pass).

    python -m scripts.benchmarks.minibatches [--quick] [--networks vgg19 resnet18 ...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from nncompress.compressions.plan import none
from nncompress.data.augmentation import Augmentations, Crop, Flip
from nncompress.environment import choose_dtype, peak_memory, reset_peak_memory
from nncompress.models.densenet import DenseNet
from nncompress.models.preresnet import PreResNet
from nncompress.models.resnet import ResNet18
from nncompress.models.vgg import VGG
from nncompress.models.wide_resnet import WideResNet
from nncompress.problem import Computation, Problem, Split, weights_of
from nncompress.problem import Dataset as Data
from nncompress.solvers.training.descent import optimizer_of
from nncompress.solvers.training.minibatches import Minibatches, epoch
from nncompress.surgery.uses import layers_of

BATCH = 64
SHAPE = (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg19": partial(VGG, SHAPE, 10),
    "resnet18": partial(ResNet18, SHAPE, 10),
    "resnet164": partial(PreResNet, SHAPE, 10),
    "densenet40": partial(DenseNet, SHAPE, 10),
    "wrn28_10": partial(WideResNet, SHAPE, 10),
}
SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)


class Images(Dataset[tuple[Tensor, int]]):
    """Random images as bytes, cropped, flipped and normalised one at a time."""

    def __init__(self, count: int) -> None:
        self.images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=Generator().manual_seed(0))
        self.change = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), index % 10


def plain(network: nn.Module, count: int, device: torch.device) -> Callable[[], None]:
    """Return an epoch of the plain loop."""
    model = network.to(device)
    optimizer = SGD(model.parameters(), lr=1e-3)
    loader = DataLoader(Images(count), BATCH, shuffle=True, num_workers=1, pin_memory=device.type == "cuda")

    def run() -> None:
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()

    return run


def ours(network: nn.Module, count: int, device: torch.device) -> Callable[[], None]:
    """Return an epoch of the minibatch loop on images held on the device."""
    choose_dtype("bf16", "float32")
    model = network.to(device, memory_format=torch.channels_last)
    g = Generator().manual_seed(0)
    split = Split(torch.randn(count, *SHAPE, generator=g), torch.randint(10, (count,), generator=g))
    change = Augmentations(parts=[Crop(padding=4), Flip(probability=0.5)])
    data = Data(split, split, 10, "noise", augmentation=change).to(device, torch.float32)
    problem = Problem(model, data, none(weights_of(model)), computation=Computation(half=True, graphs=True))
    optimizer = optimizer_of(SGD, model.parameters(), 1e-3)

    def run() -> None:
        epoch(problem, model, Minibatches(BATCH, g), optimizer=optimizer)

    return run


def taken(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the device's work included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(taken(lambda: a @ b, device) for _ in range(5))


def rows(names: list[str], device: torch.device, batches: int, repeats: int) -> Iterator[str]:
    """Yield a line for each network."""
    rate, count = matrix_rate(device, torch.bfloat16), batches * BATCH
    for name in names:
        torch.manual_seed(0)
        macs = sum(layer.entries * layer.positions for layer in layers_of(NETWORKS[name](), torch.zeros(1, *SHAPE)))
        forms = [plain(NETWORKS[name](), count, device), ours(NETWORKS[name](), count, device)]
        for form in forms:
            form()  # kernels chosen, graphs captured
        seconds: list[list[float]] = [[], []]
        for _ in range(repeats):
            for spent, form in zip(seconds, forms, strict=True):
                spent.append(taken(form, device))
        memory = []
        for form in forms:
            reset_peak_memory(device)
            form()
            memory.append(peak_memory(device) / 2**20)
        speeds = [count / statistics.median(spent) for spent in seconds]
        ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
        yield (
            f"{name:<12}{speeds[0]:>10.0f}{speeds[1]:>10.0f}{speeds[1] / speeds[0]:>7.2f}x "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f}){memory[0]:>10.0f}{memory[1]:>8.0f}"
            f"{100 * 6 * macs * speeds[1] / rate:>8.1f} %\n"
        )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two batches, one repeat")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: all on a GPU, else two")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = options.networks or (list(NETWORKS) if device.type == "cuda" else ["vgg19", "resnet18"])
    batches, repeats = (2, 1) if options.quick else (100, 5) if device.type == "cuda" else (6, 5)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    sys.stdout.write(f"{device.type}, {where}: {batches} batches of {BATCH} an epoch, {repeats} repeats\n")
    sys.stdout.write(
        f"{'images/s':<12}{'plain':>10}{'ours':>10}{'':>8}{'pairs':>11}{'MiB plain':>12}{'ours':>8}{'share':>10}\n"
    )
    for line in rows(names, device, batches, repeats):
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
