"""Batch norms: the convolution each one reads, statistics taken anew, statistics over several processes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from nncompress import parallel
from nncompress.errors import Unsupported
from nncompress.surgery.uses import watch


@torch.no_grad()
def recalibrate_norms(model: nn.Module, x: Tensor, batch_size: int = 128) -> nn.Module:
    """Return a copy in evaluation mode, the statistics of its batch norms averaged over the batches of samples x.

    Every batch counts the same, in order; one sample left over goes with the batch before. Nothing else changes; a
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
    batches = list(torch.split(x, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def norms_behind(model: nn.Module, x: Tensor) -> dict[str, list[BatchNorm]]:
    """Return by the names of convolutions the batch norms with scale and shift that read nothing but their output.

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
    behind: dict[str, list[BatchNorm]] = {}
    for norm, makers in read.items():
        name = next(iter(makers))
        if len(makers) == 1 and name is not None and norm.affine:
            behind.setdefault(name, []).append(norm)
    return behind


def with_statistics(network: nn.Module) -> list[BatchNorm]:
    """Return the batch norms that have running statistics."""
    return [m for m in network.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


def shared_norms(model: nn.Module) -> nn.Module:
    """Make the batch norms of a network normalise over all processes in training; a single one changes nothing.

    Raises:
        Unsupported: a batch norm has no running statistics, or their plain average.
    """
    if parallel.size() == 1:
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, BatchNorm):
            if not module.track_running_stats or module.momentum is None:
                raise Unsupported(
                    f"several processes need batch norms with running statistics and a momentum, found {name} with "
                    f"track_running_stats={module.track_running_stats}, momentum={module.momentum}; start one process"
                )
            model.set_submodule(name, SharedNorm(module))
    return model


class SharedNorm(nn.BatchNorm2d):
    """A batch norm of (n, channels, ...) with the parameters and buffers of `norm`; statistics over all processes.

    Unless `together` is False: then over its own samples.
    """

    together = True

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self._buffers.update(norm._buffers)
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs (n, channels, ...), found {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of its shape."""
        if not (self.training and self.together):
            return super().forward(input)
        y: Tensor
        y, mean, variance, count = _Normalised.apply(input, self.eps)
        self._track(mean, variance * (count / (count - 1)))
        if not self.affine:
            return y
        return y * _spread(self.weight, y) + _spread(self.bias, y)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Take the statistics of a batch (the unbiased variance) into the running ones."""
        for running, statistic in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None and self.momentum is not None:
                running.lerp_(statistic.to(running.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps), mean and variance per channel over the samples of all processes.

    With y the result and sums over all samples and positions of all processes: dL/dx = (dL/dy - mean(dL/dy)
    - y mean(y dL/dy)) / sqrt(variance + eps).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        count = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        total = x.sum(dims, dtype=torch.float64)
        parallel.sum_(count, total)
        mean = total / count
        centred = x - _spread(mean, x)
        squares = centred.square().sum(dims, dtype=torch.float64)
        parallel.sum_(squares)
        variance = squares / count
        scale = _spread((variance + eps).rsqrt(), x)
        y = centred.mul_(scale)
        ctx.save_for_backward(y, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale, count = ctx.saved_tensors
        g = gradients[0]
        dims = [d for d in range(g.dim()) if d != 1]
        sums = torch.stack([g.sum(dims, dtype=torch.float64), (g * y).sum(dims, dtype=torch.float64)])
        parallel.sum_(sums)
        mean, slope = (_spread(row, g) for row in sums / count)
        return (g - mean - y * slope) * scale, None


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """Return a number for each channel, shaped to go with x and of its type."""
    return values.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
