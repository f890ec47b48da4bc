"""Loss, accuracy, sizes and operations of a network: pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nncompress.compressions.base import FLOAT_BITS
from nncompress.compressions.params import Params
from nncompress.compressions.plan import Plan, Task
from nncompress.problem import Loss, Problem, Split
from nncompress.surgery.channels import kept_in
from nncompress.surgery.uses import Layer

EVALUATED_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 23}
"""Numbers in the samples that are evaluated at once: what fits the caches of a CPU, the memory of a GPU."""


class Evaluation(NamedTuple):
    """Mean loss and fraction of correct labels."""

    loss: float
    accuracy: float


def evaluation_batch(x: Tensor) -> int:
    """Return how many of samples x (n, ...) are evaluated at once, at most 8192."""
    return min(8192, max(1, EVALUATED_AT_ONCE.get(x.device.type, 1 << 17) // max(1, x[0].numel())))


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, loss: Loss) -> Evaluation:
    """Measure mean loss and accuracy of `model`, in evaluation mode, on a whole split."""
    was_training = model.training
    model.eval()
    total, correct = split.x.new_zeros((), dtype=torch.float64), split.y.new_zeros(())
    size = evaluation_batch(split.x)
    for x, y in zip(torch.split(split.x, size), torch.split(split.y, size), strict=True):
        logits = model(x)
        total += loss(logits, y).double() * len(y)
        correct += (logits.argmax(dim=1) == y).sum()
    model.train(was_training)
    return Evaluation(float(total) / len(split), float(correct) / len(split))


def sizes(problem: Problem, theta: Sequence[Any], network: nn.Module | None = None) -> dict[str, float]:
    """Count parameters, bits and their ratios, dense and compressed, of the whole network and of the tasks alone.

    Uncompressed parameters (biases and batch norm included) count FLOAT_BITS each on both sides. network: what is left
    of the problem's when channels are removed; a bit for each channel then says which.
    """
    plan = problem.plan
    dense, (outside, masks) = sum(p.numel() for p in problem.model.parameters()), _outside(problem, network)
    compressed, bits = outside + plan.num_params(theta), FLOAT_BITS * outside + masks + plan.bits(theta)
    return {
        "params/dense": dense,
        "params/compressed": compressed,
        "bits/dense": FLOAT_BITS * dense,
        "bits/compressed": bits,
        "ratio/params": compressed / dense,
        "ratio/bits": bits / (FLOAT_BITS * dense),
        "ratio/tasks": plan.num_params(theta) / plan.numel() if plan.tasks else 1.0,
    }


def file_bits(problem: Problem, theta: Sequence[Any], network: nn.Module | None = None) -> dict[str, int]:
    """Count all that files of the dense and of the compressed network hold: `sizes`, and buffers (batch norm's).

    network: as in `sizes`.
    """
    size = sizes(problem, theta, network)
    left = problem.model if network is None else network
    return {"dense": dense_bits(problem.model), "compressed": int(size["bits/compressed"]) + _buffer_bits(left)}


def dense_bits(network: nn.Module) -> int:
    """Count the bits of all numbers of a network, buffers included."""
    return FLOAT_BITS * sum(p.numel() for p in network.parameters()) + _buffer_bits(network)


def _buffer_bits(network: nn.Module) -> int:
    """Count the buffers' bits: FLOAT_BITS for a real number, for others what they have."""
    state = network.state_dict()
    stored = [b for name, b in network.named_buffers() if name in state]
    return sum(b.numel() * (FLOAT_BITS if b.is_floating_point() else 8 * b.element_size()) for b in stored)


def huffman_bits(problem: Problem, theta: Sequence[Any], network: nn.Module | None = None) -> int:
    """Count the bits as in `sizes`, but with codes and positions Huffman-coded where that is less: an estimate."""
    outside, masks = _outside(problem, network)
    return FLOAT_BITS * outside + masks + problem.plan.huffman_bits(theta)


def _outside(problem: Problem, network: nn.Module | None) -> tuple[int, int]:
    """Count the parameters that no task compresses, and the bits that say which channels are left."""
    dense = sum(p.numel() for p in problem.model.parameters())
    left = dense if network is None else sum(p.numel() for p in network.parameters())
    masks = sum(len(mask) for mask in kept_in(problem.model).values()) if left < dense else 0
    return left - problem.plan.numel(), masks


def sparsity(weights: dict[str, Tensor]) -> float:
    """Return the fraction of exact zeros among all weights (parameters of two or more dimensions)."""
    total = sum(w.numel() for w in weights.values())
    return 1 - sum(int(torch.count_nonzero(w)) for w in weights.values()) / max(1, total)


def effective_sparsity(weights: Sequence[Tensor], last: bool = True) -> float:
    """Return the fraction of weights without effect on the outputs of a chain without biases, activations keeping 0.

    weights: W_1, ..., W_N (outputs x inputs). A hidden unit that nothing reaches loses the weights that leave it, one
    from which nothing is taken those that reach it, again and again. Without `last` the units before W_N keep what
    reaches them, as in the published code of NN-BCD (arXiv 2303.06815; its notebooks).
    """
    masks = [w != 0 for w in weights]
    before = -1
    while before != (left := sum(int(mask.sum()) for mask in masks)):
        before = left
        for i, (reaching, leaving) in enumerate(itertools.pairwise(masks), 1):
            leaving &= reaching.any(dim=1)
            if last or i < len(masks) - 1:
                reaching &= leaving.any(dim=0)[:, None]
    return 1 - before / max(1, sum(w.numel() for w in weights))


def gap(w: Params, compressed: Params) -> float:
    """Return ‖w - Δ(Θ)‖ / ‖w‖ over the compressed weights (0 without any)."""
    norm = float(w.sq())
    return (float((w - compressed).sq()) / norm) ** 0.5 if norm > 0 else 0.0


def macs(
    plan: Plan, theta: Sequence[Any], layers: Iterable[Layer], left: Iterable[Layer] | None = None
) -> dict[str, float]:
    """Count the multiply-accumulates of one sample in the Linear and Conv2d layers, dense and compressed.

    A compressed weight counts its factorised product or its nonzero entries, whichever is less. left: the layers once
    channels are removed; None: those of the dense network.
    """
    tasks = {name: (task, t) for task, t in zip(plan.tasks, theta, strict=True) for name in task.params}
    nonzero = {name: int(torch.count_nonzero(w)) for name, w in plan.decompress(theta).items()}
    layers = list(layers)
    before = sum(layer.entries * layer.positions for layer in layers)
    after = 0
    for layer in layers if left is None else left:
        dense = layer.entries * layer.positions
        after += _compressed_macs(layer, nonzero[layer.name], *tasks[layer.name]) if layer.name in tasks else dense
    return {"macs/dense": before, "macs/compressed": after, "ratio/macs": after / before if before else 1.0}


def _compressed_macs(layer: Layer, nonzero: int, task: Task, theta: Any) -> int:
    sparse = nonzero * layer.positions
    alone = layer.use is not None and len(task.params) == 1  # a joint Θ has no form of its own for one layer
    factorised = task.compression.macs(theta, layer.use) if alone and layer.use is not None else None
    return sparse if factorised is None else min(sparse, factorised)


def task_sizes(plan: Plan, w: Params, theta: Sequence[Any]) -> list[dict[str, Any]]:
    """Describe each task: its weights, compression, what Θ holds, sizes, the relative error ‖w - Δ(Θ)‖ / ‖w‖."""
    return [
        {
            "params": ", ".join(task.params),
            "compression": str(task.compression),
            "theta": describe_theta(t),
            "params/dense": sum(w[name].numel() for name in task.params),
            "params/compressed": task.compression.num_params(t),
            "bits/dense": FLOAT_BITS * sum(w[name].numel() for name in task.params),
            "bits/compressed": task.compression.bits(t),
            "bits/huffman": task.compression.least_bits(t),
            "gap": gap(Params({name: w[name] for name in task.params}), plan.decompress_task(task, t)),
        }
        for task, t in zip(plan.tasks, theta, strict=True)
    ]


def describe_theta(theta: Any) -> str:
    """Describe the tensors of Θ by their shapes: `U 512x16, V 16x64`; parts in brackets."""
    fields = [(name, getattr(theta, name)) for name in theta._fields]
    return ", ".join(f"{name} {_shapes(value)}" for name, value in fields if isinstance(value, Tensor | tuple))


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape))
    if hasattr(value, "_fields"):
        return f"[{describe_theta(value)}]"
    return " ".join(_shapes(item) if isinstance(item, Tensor | tuple) else str(item) for item in value)


BINS, LARGEST = 40, 6
REST, ALL = "all other parameters and buffers", "all parameters and buffers"


def weight_histograms(plan: Plan, theta: Sequence[Any], network: nn.Module) -> dict[str, Any]:
    """Return how the numbers of a compressed network are distributed, in plain values.

    `tensors` counts the real tensors of Θ that are not constant, and all of the network's state outside the plan as one
    more. `largest` describes the 6 of them with the most entries, in their order: name (weights and field of Θ), shape,
    zeros (the part of exact zeros), and of all other values the counts in 40 bins of equal width from low to high.
    """
    tensors = {
        " ".join(filter(None, (", ".join(task.params), field))): tensor.float()
        for task, t in zip(plan.tasks, theta, strict=True)
        for field, tensor in _real_tensors(t)
    }
    state = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(network.state_dict().items())}
    rest = [t.flatten().float() for name, t in state.values() if name not in plan.shapes and t.is_floating_point()]
    tensors |= {REST if tensors else ALL: torch.cat(rest)} if rest else {}
    varied = {name: t for name, t in tensors.items() if t.numel() > 1 and bool(t.min() < t.max())}
    largest = sorted(varied, key=lambda name: -varied[name].numel())[:LARGEST]
    histograms = [{"name": name} | _histogram(t) for name, t in varied.items() if name in largest]
    return {"tensors": len(varied), "largest": histograms}


def _real_tensors(theta: Any, field: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of real numbers in Θ with the fields they stand in, `cores.0`."""
    if isinstance(theta, Tensor):
        if theta.is_floating_point():
            yield field, theta
    elif isinstance(theta, tuple | list):
        for name, item in zip(getattr(theta, "_fields", range(len(theta))), theta, strict=True):
            yield from _real_tensors(item, f"{field}.{name}" if field else str(name))


def _histogram(tensor: Tensor) -> dict[str, Any]:
    values = tensor[(tensor != 0) & tensor.isfinite()].detach().cpu().numpy().astype(float)
    counts, edges = np.histogram(values, BINS)
    return {
        "shape": list(tensor.shape),
        "zeros": 1 - int(torch.count_nonzero(tensor)) / tensor.numel(),
        "low": float(edges[0]),
        "high": float(edges[-1]),
        "counts": counts.tolist(),
    }
