"""Regularisers, a small convolutional problem and the descent that their tests share."""

from functools import partial

import torch
from problems import F64, problem, small_digits
from torch import Tensor, nn

from nncompress.models.vgg import VGG
from nncompress.problem import Problem
from nncompress.solvers.sgd.regularisers import (
    GroupLasso,
    NuclearNorm,
    ProximalGroupLasso,
    ProximalNuclearNorm,
    Regulariser,
)
from nncompress.solvers.sgd.sgd import SGD

SUBGRADIENTS = [GroupLasso, NuclearNorm]
PROXIMAL = [ProximalGroupLasso, ProximalNuclearNorm]
KINDS = [*SUBGRADIENTS, *PROXIMAL]
MOMENTUM = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)


def subgradient(regulariser: Regulariser, *weights: Tensor) -> list[Tensor]:
    """What is added to the gradients of the weights, None where nothing is."""
    for w in weights:
        w.grad = None
    regulariser.add_gradient(weights)
    return [w.grad for w in weights]


def shrunk(regulariser: Regulariser, lr: float, *weights: Tensor) -> list[Tensor]:
    """Copies of the weights behind the proximal step."""
    copies = [w.detach().clone() for w in weights]
    regulariser.shrink(copies, lr)
    return copies


def vgg() -> nn.Module:
    """Two convolutions with batch norms and a linear layer."""
    torch.manual_seed(0)
    return VGG((1, 8, 8), 10, layers=(1, 1), width=0.1).to(F64)


def small() -> Problem:
    """This network on 60 digits."""
    return problem(small_digits(60), vgg())


def convolutions(model: nn.Module) -> list[Tensor]:
    """The weights of the convolutions."""
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]


def solver(num_steps: int = 3, **settings: object) -> SGD:
    """Descent with momentum over batches of 20 samples, or as the settings say."""
    given: dict[str, object] = {"num_steps": num_steps, "batch_size": 20, "optimizer": MOMENTUM}
    return SGD(**(given | settings))
