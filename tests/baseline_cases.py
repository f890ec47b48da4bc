"""Compressions of every kind on a small network, and least squares whose solutions are known."""

from functools import partial

import torch
from problems import F64, gaussian, mlp, problem, randn
from torch import nn

from nncompress.compressions.additive import additive
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.rank_selection import rank_selection
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.quantization.fixed import fixed_codebook, powers_of_two, scaled_binary, scaled_ternary
from nncompress.compressions.quantization.uniform import low_precision, uniform
from nncompress.compressions.sparsity.magnitude import l0, l0_penalty, l1, l1_penalty
from nncompress.compressions.sparsity.structured import group_l0, n_m
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.lc.baselines import DCRetrain, squared_error
from nncompress.solvers.training.descent import Constant

N, INPUTS, OUTPUTS = 40, 6, 4
MOMENTUM = partial(torch.optim.SGD, momentum=0.9, nesterov=True)


def sparse_and_codebook(weights):
    return additive(weights, parts={"sparse": partial(l0, keep=4), "values": codebook})


FAMILIES = {
    "l0": (l0, {"keep": 0.3}),
    "l0-joint": (l0, {"keep": 0.3, "joint": True}),
    "l1": (l1, {"radius": 2.0}),
    "l0-penalty": (l0_penalty, {"alpha": 0.02}),
    "l1-penalty": (l1_penalty, {"alpha": 0.1}),
    "group-l0": (group_l0, {"keep": 0.5}),
    "n-m": (n_m, {}),
    "codebook": (codebook, {"K": 3}),
    "codebook-channel": (codebook, {"K": 2, "per": "channel"}),
    "scaled-codebook": (fixed_codebook, {"scaled": True}),
    "scaled-binary": (scaled_binary, {"per": "shared"}),
    "scaled-ternary": (scaled_ternary, {"per": "channel"}),
    "uniform": (uniform, {"bits": 3}),
    "uniform-affine": (uniform, {"bits": 3, "symmetric": False, "per": "channel"}),
    "powers-of-two": (powers_of_two, {}),
    "low-precision": (low_precision, {}),
    "low-rank": (low_rank, {"rank": 3}),
    "rank-selection": (rank_selection, {"alpha": 0.03}),
    "rank-0": (rank_selection, {"alpha": 100.0}),
    "tt": (tt, {"rank": 3}),
    "additive": (sparse_and_codebook, {}),
}


def small(recipe, settings, activation="relu"):
    """A problem of 16-8-8-3 with biases, whose network stands for the reference."""
    data = gaussian(n=40, d=16)
    return problem(data, mlp(data, widths=(8, 8), bias=True, activation=activation), recipe, **settings)


def last(solver, p, steps):
    *_, final = solver.run(p, steps, every=steps)
    return final


def fixed_parts(theta):
    """The positions, codes and shapes of Θ, as plain numbers."""
    if isinstance(theta, torch.Tensor):
        return None if theta.is_floating_point() else theta.tolist()
    return [fixed_parts(item) for item in theta] if isinstance(theta, tuple) else theta


def least_squares(recipe, **settings):
    """min ‖X Wᵀ - T‖²/n over a matrix W, of which the reference is a random one; every label is its sample's number."""
    x, targets = randn(N, INPUTS, seed=1), randn(N, OUTPUTS, seed=2)
    split = Split(x, torch.arange(N))
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False)).to(F64)
    with torch.no_grad():
        model[0].weight.copy_(randn(OUTPUTS, INPUTS, seed=3))

    def loss(logits, y):
        return squared_error(logits, targets[y])

    plan = recipe(weights_of(model), layers="all", **settings)
    return Problem(model, Dataset(split, split, OUTPUTS, "least squares"), plan, loss), x, targets


def descended(p, kind=DCRetrain, lr=0.1, steps=300):
    """Θ after full gradient steps with momentum."""
    solver = kind(num_steps=steps, lr=lr, batch_size=N, optimizer=MOMENTUM, schedule=Constant())
    *_, final = solver.run(p, steps, every=steps)
    return final.observation.theta


def on_support(x, targets, W):
    """The least-squares weights among those with the nonzero entries of W."""
    found = torch.zeros_like(W)
    for row, (own, target) in enumerate(zip(W, targets.T, strict=True)):
        kept = own.nonzero().squeeze(1)
        found[row, kept] = torch.linalg.lstsq(x[:, kept], target[:, None]).solution.squeeze(1)
    return found
