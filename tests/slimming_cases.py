"""The small problem of the solvers that slim networks."""

from functools import partial

import torch
from image_networks import norms
from problems import F64, problem, small_digits
from torch import Tensor, nn

from nncompress.models.vgg import VGG
from nncompress.problem import Problem
from nncompress.solvers.slimming.proximal import Slimming
from nncompress.surgery.channels import kept_in

MOMENTUM = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-2)
N, BATCH = 60, 20
DATA = ["dataset.train_size=200", "dataset.test_size=100"]


def vgg(layers: tuple[int, ...] = (1, 1), width: float = 0.05) -> nn.Module:
    """Channels 3 and 6 by default, with scaling factors that differ."""
    torch.manual_seed(0)
    return spread(VGG((1, 8, 8), 10, layers=layers, width=width).to(F64))


def spread(network: nn.Module) -> nn.Module:
    """With scaling factors and shifts that differ."""
    for norm in norms(network):
        nn.init.uniform_(norm.weight, 0.2, 0.9)
        nn.init.uniform_(norm.bias, -0.1, 0.3)
    return network


def small(
    network: nn.Module | None = None, target: tuple[str, float] | None = None, *, n: int = N, round_to: int = 1
) -> Problem:
    """Of digits, with a network (`vgg` by default)."""
    given = problem(small_digits(n), vgg() if network is None else network)
    return Problem(given.model, given.data, given.plan, target=target, round_to=round_to)


def tensors(packed: object) -> list[Tensor]:
    """All in a packed state."""
    parts = packed.values() if isinstance(packed, dict) else packed if isinstance(packed, list) else []
    return [packed] if isinstance(packed, Tensor) else [t for part in parts for t in tensors(part)]


def size_by_hand(name: str, kept: list[int]) -> int:
    """Of `vgg((1, 1, 1), 0.1)`, channels 6, 13 and 26, with these numbers of channels."""
    a, b, c = kept
    if name == "macs":
        return 64 * 9 * a + 16 * 9 * a * b + 4 * 9 * b * c + 10 * c
    params = 9 * a + 9 * a * b + 9 * b * c + 2 * (a + b + c) + 10 * c + 10
    return 32 * params + 45 if name == "bits" else params


def counts(network: nn.Module) -> list[int]:
    """How many channels of each batch norm stay."""
    return [int(mask.sum()) for mask in kept_in(network).values()]


def proximal(num_steps: int = 2, **settings: object) -> Slimming:
    """Proximal slimming, all of whose terms count."""
    given: dict[str, object] = {"lam": 2.0, "beta": 5.0, "lr": 0.1, "batch_size": BATCH, "optimizer": MOMENTUM}
    return Slimming(num_steps=num_steps, **(given | settings))
