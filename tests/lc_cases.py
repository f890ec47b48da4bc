"""Problems for the LC algorithm: quadratics whose L steps have a closed form, and digits with a trained reference."""

import copy
from functools import cache, partial
from typing import Any

import torch
from problems import F64, mlp, problem, small_digits
from torch import Tensor, nn

from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.plan import Plan, Recipe, Task
from nncompress.compressions.views import AsMatrix
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.base import Iterate
from nncompress.solvers.lc.lc import LC
from nncompress.solvers.training.descent import Constant

DESCENT = partial(torch.optim.SGD, momentum=0.0)
ROOT = torch.diag(torch.tensor([3.0, 1.0], dtype=F64))
FULL = [[1.0, 0.5], [0.2, 1.2]]


def quadratic(root: Tensor, reference: Any, recipe: Recipe) -> Problem:
    """L(W) = 1/2 ‖root (W - reference)‖² over the weight of a linear network whose inputs are the unit vectors."""
    reference = torch.as_tensor(reference, dtype=F64)
    n = reference.shape[1]
    split = Split(torch.eye(n, dtype=F64), torch.arange(n))

    def loss(outputs, columns):
        return n / len(columns) / 2 * ((outputs - reference.T[columns]) @ root.T).square().sum()

    model = nn.Linear(n, len(reference), bias=False).to(F64)
    model.weight.data.copy_(reference)
    plan = recipe(weights_of(model))
    return Problem(model, Dataset(split, split, n, "quadratic"), plan, loss)


def rank_one(weights):
    return Plan.of([Task(("weight",), AsMatrix(), LowRank(1))], weights)


def descending(num_steps: int, **settings: Any) -> LC:
    """LC whose L steps are whole-batch descent close to the minimum of quadratics of curvature 1 to 9."""
    given = {"mu0": 1e-3, "growth": 1.1, "epochs": 25, "lr": 0.1, "batch_size": 100, "optimizer": DESCENT}
    given |= {"schedule": Constant(), "tolerance": 0.0, "keep_best": False}
    return LC(num_steps=num_steps, **(given | settings))


class Newton(torch.optim.Optimizer):
    """Goes to the minimum of 1/2 ‖root (W - reference)‖² + mu/2 ‖W - target‖², lr being 1/mu."""

    def __init__(self, params, lr: float, root: Tensor) -> None:
        super().__init__(params, {"lr": lr})
        self.hessian = root.T @ root

    @torch.no_grad()
    def step(self, closure=None) -> None:
        (group,) = self.param_groups
        (W,) = group["params"]
        W -= torch.linalg.solve(self.hessian + torch.eye(len(W), dtype=F64) / group["lr"], W.grad)


def exact(num_steps: int, root: Tensor, **settings: Any) -> LC:
    """LC whose L steps are exact on the quadratic of `root`: one Newton step with the rate clipped at 1/mu."""
    given = {"optimizer": partial(Newton, root=root), "lr": 1e9, "epochs": 1, "first_epochs": 1}
    return descending(num_steps, **(given | settings))


def last_of(solver: LC, p: Problem) -> Iterate:
    *_, last = solver.run(p, solver.num_steps, every=solver.num_steps)
    return last


@cache
def _reference() -> tuple[Dataset, nn.Module]:
    data = small_digits(150)
    model = mlp(data, widths=(32,), bias=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return data, model


def digits_problem(recipe: Recipe, **settings: object) -> Problem:
    """150 digits with a network trained for a few epochs of descent: the reference."""
    data, model = _reference()
    return problem(data, copy.deepcopy(model), recipe, **settings)
