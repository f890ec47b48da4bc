"""The largest curvature of the training loss, by the power method."""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor, nn

from nncompress.problem import Problem
from nncompress.solvers.shared_norm import SharedNorm

SEED = 0


def largest_curvature(problem: Problem, model: nn.Module, *, steps: int, samples: int) -> float:
    """The largest |eigenvalue| of the Hessian of the loss in all trainable parameters, where `model` is now.

    It is a lower estimate of the Lipschitz constant of the gradient of the loss on these samples, of which there are
    `samples`, always the same. Batch norms normalise with their statistics, as in training. `steps` of the power method
    from a fixed random vector: the norm of the Hessian's product with the last one.
    """
    network = copy.deepcopy(model).train()
    for module in network.modules():
        if isinstance(module, SharedNorm):
            module.together = False  # every process takes the same samples
    parameters = [p for p in network.parameters() if p.requires_grad]
    batch = problem.data.train.some(samples, SEED)
    with torch.random.fork_rng([problem.device] if problem.device.type == "cuda" else []):  # of dropout
        torch.manual_seed(SEED)
        loss = problem.loss(network(batch.x), batch.y)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None]
    generator = Generator().manual_seed(SEED)
    v = [torch.randn(p.shape, generator=generator).to(p) for p, _ in pairs]
    size = _norm(v)
    for _ in range(steps):
        v = [part / size for part in v]
        product = torch.autograd.grad([g for _, g in pairs], [p for p, _ in pairs], v, retain_graph=True)
        v, size = list(product), _norm(list(product))
        if not bool(size > 0):
            break
    return float(size)


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]).norm()
    return norm
