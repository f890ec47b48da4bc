"""Compact networks beside dense ones, and the ways of factorised layers beside the one that is chosen.

python -m scripts.benchmarks.compact_layers
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition.cp import CP
from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.decomposition.tensor_train import TensorTrain
from nncompress.compressions.decomposition.tt_matrix import TTMatrix
from nncompress.compressions.decomposition.tucker import Tucker
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.compressions.views import AsMatrix, AsTensor, View
from nncompress.models.mlp import MLP
from nncompress.models.vgg import VGG
from nncompress.problem import weights_of, with_weights
from nncompress.surgery.channels import kept_in, mask_channels
from nncompress.surgery.compact_layers import WAYS, compact_layer, replace_layers
from nncompress.surgery.removal import remove_channels
from nncompress.surgery.theta import HeldTheta
from scripts.benchmarks.timing import compare

BATCHES = 1, 16, 256, 4096
IMAGES, SIDE = (1, 16, 128), 16
ROUNDS, BLOCK = 15, 2e-3
LAYERS: list[tuple[str, tuple[int, ...], Compression[Any], View]] = [
    ("TT 784-512, rank 16", (512, 784), TensorTrain(16), AsTensor((4, 4, 4, 8, 2, 2, 4, 7, 7))),
    ("TT 512-512, rank 48", (512, 512), TensorTrain(48), AsTensor((4, 4, 4, 8, 4, 4, 4, 8))),
    ("TT 1024-1024, rank 64", (1024, 1024), TensorTrain(64), AsTensor((4,) * 10)),
    ("TT-matrix 1024-1024, rank 16", (1024, 1024), TTMatrix(16, (4, 8, 32), (32, 8, 4)), AsMatrix()),
    ("TT-matrix 1024-1024, rank 4", (1024, 1024), TTMatrix(4, (4, 4, 8, 8), (8, 8, 4, 4)), AsMatrix()),
    ("Tucker 1024-1024, rank 8", (1024, 1024), Tucker(8), AsTensor((32, 32, 32, 32))),
    ("CP 1024-1024, rank 64", (1024, 1024), CP(64, sweeps=2), AsTensor((32, 32, 32, 32))),
    ("low rank 1024-1024, rank 64", (1024, 1024), LowRank(64), AsMatrix()),
    ("low rank 3x3 128-128, rank 32", (128, 128, 3, 3), LowRank(32), AsMatrix()),
    ("low rank 3x3 128-128, scheme 2", (128, 128, 3, 3), LowRank(64), AsMatrix(2)),
    ("Tucker-2 3x3 128-128, rank 48", (128, 128, 3, 3), Tucker((48, 48, 3, 3)), AsTensor((128, 128, 3, 3))),
    ("CP 3x3 128-128, rank 96", (128, 128, 3, 3), CP(96, sweeps=2), AsTensor((128, 128, 3, 3))),
    ("TT 3x3 128-128, rank 32", (128, 128, 3, 3), TensorTrain(32), AsTensor((8, 16, 8, 16, 9))),
]


def main() -> None:
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    write(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n\n")
    write(f"{'network':<28}{'dense ms':>10}{'compact ms':>10}{'ratio':>10}\n")
    for batch in (1, 256):
        sparse_perceptron(batch)
    for batch in (1, 32):
        half_the_channels(batch)
    columns = "".join(f"{name:>16}" for name in (*[f"{way} ms" for way in WAYS], "chosen ms"))
    write(f"\n{'layer, samples':<38}{columns}   chosen / best\n")
    for name, shape, compression, view in LAYERS:
        compare_ways(name, shape, compression, view)


def sparse_perceptron(batch: int) -> None:
    """LeNet-300-100 with 5 % of its weights, which are the largest of random ones: where they lie matters little."""
    dense = MLP((1, 28, 28), 10, widths=(300, 100)).eval()
    plan = l0(weights_of(dense), keep=0.05, layers="all")
    theta = plan.compress(plan.select(weights_of(dense)))
    dense = with_weights(dense, plan.decompress(theta))
    held = [HeldTheta(task.compression, t) for task, t in zip(plan.tasks, theta, strict=True)]
    compact = with_weights(dense, {}).requires_grad_(False)
    replace_layers(compact, plan, held)
    compact.requires_grad_(False)
    x = torch.rand(batch, 1, 28, 28)
    compare(f"LeNet-300, 5 %, batch {batch}", partial(dense, x), partial(compact, x), 15)


def half_the_channels(batch: int) -> None:
    dense = VGG((3, 32, 32), 10, depth=16).eval()
    keep = {name: torch.arange(len(mask)) % 2 == 0 for name, mask in kept_in(dense).items()}
    compact = remove_channels(mask_channels(dense, keep)).eval()
    x = torch.randn(batch, 3, 32, 32)
    compare(f"VGG-16, half, batch {batch}", partial(dense, x), partial(compact, x), 5)


def compare_ways(name: str, shape: tuple[int, ...], compression: Compression[Any], view: View) -> None:
    """Every way and the chosen one, in turn: medians, and the median of the ratios round by round."""
    theta = compression.compress(view.join([torch.randn(shape) / math.prod(shape[1:]) ** 0.5]))
    dense: nn.Module = nn.Linear(shape[1], shape[0])
    if len(shape) == 4:
        dense = nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), padding=1)
    layers = {
        key: compact_layer(copy.deepcopy(dense), view, HeldTheta(compression, theta), ways=allowed).requires_grad_(
            False
        )
        for key, allowed in [*((way, (way,)) for way in WAYS), ("chosen", WAYS)]
    }
    for batch in BATCHES if len(shape) == 2 else IMAGES:
        x = torch.randn(batch, shape[1], *[SIDE] * (len(shape) - 2))
        ways: dict[str, Callable[[], Tensor]] = {key: partial(layer, x) for key, layer in layers.items()}
        for way in ways.values():
            way()
        rounds = [{key: block(ways[key]) for key in rotated([*ways], k)} for k in range(ROUNDS)]
        ms = {key: 1e3 * statistics.median(times[key] for times in rounds) for key in ways}
        best = min(WAYS, key=lambda way: ms[way])
        ratio = statistics.median(times["chosen"] / times[best] for times in rounds)
        (way,) = {choice.way for key, choice in layers["chosen"].choices.items() if key[0] == batch.bit_length()}
        shown = "".join(f"{ms[key]:>16.3f}" for key in WAYS)
        write(f"{f'{name}, {batch}':<38}{shown}{ms['chosen']:>16.3f}   {ratio:.2f} of {best} ({way} chosen)\n")


def rotated(keys: list[str], k: int) -> list[str]:
    """So that each follows each other one as often: what ran before is in the caches."""
    at = k % len(keys)
    turned = keys[at:] + keys[:at]
    return turned if k // len(keys) % 2 == 0 else turned[::-1]


def block(way: Callable[[], object]) -> float:
    """Mean seconds of a call, over some two milliseconds, behind one that brings its data into the caches."""
    way()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < BLOCK:
        way()
        calls += 1
    return (time.perf_counter() - start) / calls


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
