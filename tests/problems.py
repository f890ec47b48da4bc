"""Small problems and plans that several test files share."""

from functools import cache
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from nncompress.compressions.plan import Plan, Recipe, none, plan_of
from nncompress.config.build import build
from nncompress.data.digits import digits
from nncompress.models.mlp import MLP
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.surgery.uses import layers_of, uses_of

F64 = torch.float64
ROOT = Path(__file__).parents[1]
"""The folder of the project, with conf/ and docs/."""
OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "compression").glob("*.yaml"))
ARCHITECTURE = {"_target_": "nncompress.models.MLP", "widths": [16, 16], "activation": "relu", "bias": False}
"""The node of the network of `problem_of`."""


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    """Normal entries, drawn in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def gaussian(n: int = 120, d: int = 12, classes: int = 3, seed: int = 0, dtype: torch.dtype = F64) -> Dataset:
    """Gaussian inputs with random labels; the test split is the training split."""
    g = torch.Generator().manual_seed(seed)
    split = Split(torch.randn(n, d, generator=g, dtype=F64).to(dtype), torch.randint(classes, (n,), generator=g))
    return Dataset(split, split, classes, "gaussian")


def small_digits(n: int = 300, dtype: torch.dtype = F64) -> Dataset:
    """Part of the embedded digits."""
    return digits(train_size=n, test_size=100).to("cpu", dtype)


def mlp(data: Dataset, widths: tuple[int, ...] = (16, 16), bias: bool = False, activation: str = "relu") -> nn.Module:
    """A multilayer perceptron for a data set, of its type."""
    torch.manual_seed(0)
    network = MLP(data.input_shape, data.num_classes, widths=widths, activation=activation, bias=bias)
    return network.to(data.train.x.dtype)


def problem(data: Dataset, model: nn.Module, recipe=none, **settings: object) -> Problem:
    """The problem of a recipe on a network."""
    plan: Plan = recipe(weights_of(model), **settings)
    return Problem(model, data, plan)


@cache
def recipe_of(option: str) -> Recipe:
    """A compression as its file in conf/compression gives it."""
    recipe: Recipe = build(OmegaConf.load(ROOT / "conf" / "compression" / f"{option}.yaml"))
    return recipe


@cache
def problem_of(option: str, dtype: torch.dtype = F64) -> Problem:
    """Digits, a small perceptron, and an option of conf/compression."""
    data = small_digits(120, dtype)
    model = mlp(data)
    uses = uses_of(layers_of(model, data.train.x[:1]))
    return Problem(model, data, plan_of(recipe_of(option), weights_of(model), uses))
