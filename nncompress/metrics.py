"""Loss, accuracy, sizes and operations of a network: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nncompress.compressions.base import FLOAT_BITS
from nncompress.compressions.plan import Plan
from nncompress.params import Params
from nncompress.problem import Loss, Problem, Split

EVALUATION_BATCH = 8192


class Evaluation(NamedTuple):
    """Mean loss and fraction of correct labels."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, loss: Loss) -> Evaluation:
    """Mean loss and accuracy of `model`, in evaluation mode, on a whole split."""
    was_training = model.training
    model.eval()
    total, correct = split.x.new_zeros((), dtype=torch.float64), split.y.new_zeros(())
    for x, y in zip(torch.split(split.x, EVALUATION_BATCH), torch.split(split.y, EVALUATION_BATCH), strict=True):
        logits = model(x)
        total += loss(logits, y).double() * len(y)
        correct += (logits.argmax(dim=1) == y).sum()
    model.train(was_training)
    return Evaluation(float(total) / len(split), float(correct) / len(split))


def sizes(problem: Problem, theta: Sequence[Any]) -> dict[str, float]:
    """Parameters, bits and their ratios, dense and compressed, of the whole network and of the tasks alone.

    Uncompressed parameters (biases and batch norm included) count FLOAT_BITS each on both sides.
    """
    plan = problem.plan
    dense = sum(p.numel() for p in problem.model.parameters())
    outside = dense - plan.numel()
    compressed, bits = outside + plan.num_params(theta), FLOAT_BITS * outside + plan.bits(theta)
    return {
        "params/dense": dense,
        "params/compressed": compressed,
        "bits/dense": FLOAT_BITS * dense,
        "bits/compressed": bits,
        "ratio/params": compressed / dense,
        "ratio/bits": bits / (FLOAT_BITS * dense),
        "ratio/tasks": plan.num_params(theta) / plan.numel() if plan.tasks else 1.0,
    }


def sparsity(weights: dict[str, Tensor]) -> float:
    """Fraction of exact zeros among all weights (parameters of two or more dimensions)."""
    total = sum(w.numel() for w in weights.values())
    return 1 - sum(int(torch.count_nonzero(w)) for w in weights.values()) / max(1, total)


def gap(w: Params, compressed: Params) -> float:
    """‖w - Δ(Θ)‖ / ‖w‖ over the compressed weights (0 without any)."""
    norm = float(w.sq())
    return (float((w - compressed).sq()) / norm) ** 0.5 if norm > 0 else 0.0


def macs(problem: Problem, theta: Sequence[Any]) -> dict[str, int]:
    """Multiply-accumulates of one sample in the Linear and Conv2d layers, dense and compressed.

    A compressed weight counts its factorised product or its nonzero entries, whichever is less, times the positions
    at which it is applied.
    """
    compressed = _compressed_macs(problem.plan, theta)
    names = {id(p): name for name, p in problem.model.named_parameters()}
    before = after = 0
    for weight, positions in _applications(problem.model, problem.data.train.x[:1]):
        before += positions * weight.numel()
        after += positions * compressed.get(names.get(id(weight), ""), weight.numel())
    return {"macs/dense": before, "macs/compressed": after}


def _compressed_macs(plan: Plan, theta: Sequence[Any]) -> dict[str, int]:
    """Multiply-accumulates of one application of each compressed weight."""
    counts: dict[str, int] = {}
    for task, t in zip(plan.tasks, theta, strict=True):
        for name, w in plan.decompress_task(task, t).items():
            nonzero = int(torch.count_nonzero(w))
            factorised = task.compression.macs(t, w.shape[0]) if len(task.params) == 1 else None
            counts[name] = nonzero if factorised is None else min(nonzero, factorised)
    return counts


@torch.no_grad()
def _applications(model: nn.Module, x: Tensor) -> list[tuple[Tensor, int]]:
    """Each use of a Linear or Conv2d weight on one sample x (1 x input_shape), with its number of positions."""
    found: list[tuple[Tensor, int]] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        found.append((module.weight, output.numel() // int(channels)))  # type: ignore[arg-type]

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    was_training = model.training
    try:
        model.eval()(x)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found
