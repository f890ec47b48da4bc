"""Batch norms: the convolution that each one reads, and their statistics taken anew."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from nncompress.metrics import watch
from nncompress.solvers.shared_norm import SharedNorm


@torch.no_grad()
def recalibrated(model: nn.Module, x: Tensor, batch_size: int = 128) -> nn.Module:
    """A copy in evaluation mode, the statistics of its batch norms averaged over the batches of samples x, in order.

    Every batch counts the same; one sample left over goes with the batch before. Nothing else changes; a
    network without batch norms is copied as it is.
    """
    network = copy.deepcopy(model).eval()
    norms = with_statistics(network)
    if not norms:
        return network
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if isinstance(norm, SharedNorm):
            norm.together = False  # this process is alone with it
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    for batch in _batches(x, batch_size):
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def norms_behind(model: nn.Module, x: Tensor) -> dict[str, list[BatchNorm]]:
    """For the names of convolutions the batch norms with scale and shift that read nothing but what it returns.

    x (n, *input_shape): some samples, on which the network is watched.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, tuple[Tensor, int, str]] = {}  # with the tensors, so that no other gets the number of one
    read: dict[BatchNorm, set[str | None]] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, BatchNorm):
            _, version, name = made.get(id(args[0]), (None, None, None))
            read.setdefault(module, set()).add(name if args[0]._version == version else None)
        else:
            made[id(output)] = (output, output._version, names[module])  # the version rises with changes in place

    watch(model, x, hook, (nn.Conv2d, BatchNorm))
    found: dict[str, list[BatchNorm]] = {}
    for norm, makers in read.items():
        name = next(iter(makers))
        if len(makers) == 1 and name is not None and norm.affine:
            found.setdefault(name, []).append(norm)
    return found


def with_statistics(network: nn.Module) -> list[BatchNorm]:
    """The batch norms that have running statistics."""
    return [m for m in network.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


def _batches(x: Tensor, size: int) -> list[Tensor]:
    batches = list(torch.split(x, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
