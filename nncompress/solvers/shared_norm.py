"""Batch norm over the samples of all processes, so that several compute what one would with the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from nncompress import parallel
from nncompress.errors import Unsupported


def shared_norms(model: nn.Module) -> nn.Module:
    """The network with its batch norms normalising over all processes in training; itself in a single one.

    Raises Unsupported for a batch norm without running statistics, or with their plain average.
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
        """The normalised input, of its shape."""
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
        running = ((self.running_mean, mean), (self.running_var, variance))
        for own, found in running:
            if own is not None and self.momentum is not None:
                own.lerp_(found.to(own.dtype), self.momentum)
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
    """A number for each channel, shaped to go with x and of its type."""
    return values.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
