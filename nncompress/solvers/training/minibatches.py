"""The loop over minibatches of a data set held on the device. It does not wait for the device within an epoch."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress import parallel
from nncompress.errors import ConfigError, one_line
from nncompress.problem import Loss, Problem

log = logging.getLogger(__name__)

WARM_UP = 3
"""Times a batch is computed before its CUDA graph is captured, as torch asks for."""


class Minibatches(NamedTuple):
    """How an epoch is cut up: the samples a process takes at a time, what draws their order and changes, and the loss.

    - smoothing: label smoothing of the cross-entropy.
    - mixup: alpha of mixup (0: none), in which every sample of a batch is averaged with another one, and their losses
      with the same weight, from Beta(alpha, alpha) (Zhang et al., ICLR 2018).
    """

    size: int
    generator: Generator
    smoothing: float = 0.0
    mixup: float = 0.0


class Batch(NamedTuple):
    """Numbers of samples (b,), what their augmentation drew (b, p), and the weight of mixup (0-dimensional).

    With mixup the sample before the first one of the batch comes first: each is averaged with the one before it.
    """

    rows: Tensor
    drawn: Tensor
    weight: Tensor


def epoch(
    problem: Problem,
    model: nn.Module,
    minibatches: Minibatches,
    *,
    optimizer: Optimizer,
    add_gradient: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """Pass once over the training data of `problem` in random order, each batch augmented anew on the device.

    The last batch may be smaller; one too small for batch norm (or for the processes) joins the batch before it. Under
    torchrun every process takes its share of batches of `size` times the number of processes, and the gradients are
    added up. `add_gradient` is called between the gradient of the loss and the optimiser's step, `after_step` behind
    that. Returns the mean loss of the samples as they came by, a 0-dimensional tensor.
    """
    model.train()
    gradient = _Gradient(problem, model, minibatches)
    total = problem.data.train.x.new_zeros(())
    for batch, part in _batches(problem, minibatches):
        optimizer.zero_grad(set_to_none=True)
        value = gradient(batch, part)
        _add_up(model)
        if add_gradient is not None:
            add_gradient()
        optimizer.step()
        if after_step is not None:
            after_step()
        total += value
    parallel.sum_(total)
    return total / len(problem.data.train)


def loss_of(problem: Problem, minibatches: Minibatches) -> Loss:
    """Return the loss that is trained: the problem's, its cross-entropy with smoothed labels if asked."""
    if minibatches.smoothing == 0:
        return problem.loss
    if problem.loss is not nn.functional.cross_entropy:
        raise ConfigError("label smoothing needs the cross-entropy, found another loss; give solver.label_smoothing=0")
    return lambda logits, y: nn.functional.cross_entropy(logits, y, label_smoothing=minibatches.smoothing)


def _batches(problem: Problem, minibatches: Minibatches) -> Iterator[tuple[Batch, float]]:
    """Return the batches of this process, and its part of all samples of each; all that is random is drawn first."""
    train, augmentation, generator = problem.data.train, problem.data.augmentation, minibatches.generator
    n, device = len(train), problem.device
    order = torch.randperm(n, generator=generator)
    lengths = batch_lengths(n, minibatches.size)
    drawn = torch.empty(n, 0) if augmentation is None else augmentation.draw(n, generator)
    weights = _mixing(len(lengths), minibatches).to(device, problem.dtype)
    rows_of, drawn_of = torch.split(order.to(device), lengths), torch.split(drawn.to(device), lengths)
    for rows, changes, weight in zip(rows_of, drawn_of, weights, strict=True):
        own = parallel.share(len(rows))
        part = (own.stop - own.start) / len(rows)
        if minibatches.mixup > 0:  # behind the sample before the first one
            rows, changes = (torch.cat([t.roll(1, 0)[own.start : own.start + 1], t[own]]) for t in (rows, changes))
            yield Batch(rows, changes, weight), part
        else:
            yield Batch(rows[own], changes[own], weight), part


def batch_lengths(n: int, size: int) -> list[int]:
    """Return how many of n samples are in each batch of an epoch, `size` of them in each process."""
    whole, rest = divmod(n, size * parallel.size())
    lengths = [size * parallel.size()] * whole + [rest] * (rest > 0)
    if len(lengths) > 1 and lengths[-1] < max(2, parallel.size()):
        lengths[-2:] = [sum(lengths[-2:])]
    return lengths


def _mixing(count: int, minibatches: Minibatches) -> Tensor:
    """Return the weights of mixup for `count` batches, 1 without it."""
    if minibatches.mixup == 0:
        return torch.ones(count)
    seed = int(torch.randint(2**31, (), generator=minibatches.generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(minibatches.mixup, minibatches.mixup, count))


class _Gradient:
    """The loss of a batch and its gradient in the parameters, on a GPU by replaying a CUDA graph."""

    def __init__(self, problem: Problem, model: nn.Module, minibatches: Minibatches) -> None:
        self.problem, self.model, self.size = problem, model, minibatches.size
        self.loss, self.mixed = loss_of(problem, minibatches), minibatches.mixup > 0

    def __call__(self, batch: Batch, part: float) -> Tensor:
        """Return the sum of the losses of the batch; the gradient is that of their mean times `part`."""
        size = len(batch.rows) - self.mixed
        return (self._replay(batch) if self._is_replayable(size, part) else self.compute(batch, part)) * size

    def compute(self, batch: Batch, part: float = 1.0) -> Tensor:
        """Return the mean loss, the gradient of it times `part` added to that of the parameters."""
        data, how = self.problem.data, self.problem.computation
        x, y = data.train.x.index_select(0, batch.rows), data.train.y.index_select(0, batch.rows)
        if data.augmentation is not None:
            x = data.augmentation.apply(x, batch.drawn, data.blank)
        if self.mixed:
            x = torch.lerp(x[:-1], x[1:], batch.weight)
        with how.autocast(x.device):
            logits = self.model(how.lay_out(x))
        logits = logits.to(x.dtype)
        value = self.loss(logits, y[1:] if self.mixed else y)
        if self.mixed:
            value = torch.lerp(self.loss(logits, y[:-1]), value, batch.weight)
        (value * part).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _is_replayable(self, size: int, part: float) -> bool:
        """Return whether the batch is one of many of its size, on a GPU that is to replay them."""
        replayed = self.problem.computation.graphs and self.problem.device.type == "cuda"
        return replayed and part == 1 and size == self.size

    def _replay(self, batch: Batch) -> Tensor:
        key = (len(batch.rows), self.mixed, self.problem.data.train.x.data_ptr())
        known = _replays.get(self.model)
        if known is None or known[0] != key:
            _replays[self.model] = known = (key, _capture(self, batch))
        return self.compute(batch) if known[1] is None else known[1](self.model, batch)


class _Replay:
    """A batch's computation as a CUDA graph, with the tensors it reads and writes."""

    def __init__(self, gradient: _Gradient, batch: Batch) -> None:
        model, self.batch = gradient.model, Batch(*(tensor.clone() for tensor in batch))
        before = [buffer.clone() for buffer in model.buffers()]
        try:
            with torch.random.fork_rng([batch.rows.device] if batch.rows.is_cuda else []):  # of dropout
                self._capture(gradient)
        finally:
            for buffer, old in zip(model.buffers(), before, strict=True):
                buffer.copy_(old)  # running statistics

    def _capture(self, gradient: _Gradient) -> None:
        model = gradient.model
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                model.zero_grad(set_to_none=True)
                gradient.compute(self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.value = gradient.compute(self.batch)
        self.gradients = [p.grad for p in model.parameters()]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        for own, given in zip(self.batch, batch, strict=True):
            own.copy_(given)
        self.graph.replay()
        for p, gradient in zip(model.parameters(), self.gradients, strict=True):
            p.grad = gradient
        return self.value


_replays: weakref.WeakKeyDictionary[nn.Module, tuple[object, _Replay | None]] = weakref.WeakKeyDictionary()
"""The graph of each network, none where it could not be captured. A replay does not refer to its network."""


def _capture(gradient: _Gradient, batch: Batch) -> _Replay | None:
    try:
        return _Replay(gradient, batch)
    except RuntimeError as error:
        gradient.model.zero_grad(set_to_none=True)  # what a capture leaves has never been computed
        log.warning("CUDA graphs cannot be used (%s): every operation of a batch is started by itself", one_line(error))
        return None


def _add_up(model: nn.Module) -> None:
    """Return the gradients of all processes added up, in one go."""
    if parallel.size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    parallel.sum_(flat)
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
