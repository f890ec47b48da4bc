"""The plain form of NN-BCD against its definition, and the solver against the plain form."""

import itertools
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from cases import case
from problems import F64, ROOT, gaussian, mlp, problem, randn
from torch.nn import functional

from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.data.mnist import mnist
from nncompress.models.cnn import NNBCDCNN
from nncompress.models.mlp import MLP
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.nnbcd.nnbcd import NNBCD

sys.path.insert(0, str(ROOT))  # scripts/ is not installed
from scripts.benchmarks import plain_nnbcd as plain

RATES = {"tau": 5.0, "alpha": 1.0, "gamma": 0.5, "rho": 0.7}


def one_hot(y, classes: int, dtype: torch.dtype = F64):
    return functional.one_hot(y, classes).to(dtype).T


def small(compress=None, **settings):
    """6-8-8-3 on 30 samples, the middle layer compressed."""
    W = [randn(8, 6, seed=1), randn(8, 8, seed=2), randn(3, 8, seed=3)]
    Y = one_hot(torch.arange(30) % 3, 3)
    compress = [None, compress or plain.tt((2, 4, 4, 2), 2), None]
    return plain.Plain(W, randn(6, 30, seed=4), Y, **RATES, compress=compress, **settings)


IMAGES = randn(20, 2, 7, 6, seed=5)


def small_conv(**settings):
    """3 filters of size 3 and stride 2 on images 2 x 7 x 6, then 18-5-4, the middle layer compressed."""
    W = [plain.patch_weight(randn(3, 2, 3, 3, seed=1)), randn(5, 18, seed=2), randn(4, 5, seed=3)]
    Y = one_hot(torch.arange(20) % 4, 4)
    compress = [None, plain.tt((5, 3, 6), 2), None]
    return plain.Plain(W, plain.patches(IMAGES, 3, 2), Y, **RATES, compress=compress, conv=True, **settings)


def value(P, W, U, V):
    """The objective by its definition; the convolution is torch's."""
    total = (V[-1] - P.Y).square().sum() / 2
    for i in range(len(W)):
        sigma = U[i] if i == len(W) - 1 else torch.relu(U[i])
        product = W[i] @ V[i] if i > 0 or not P.conv else convolved(W[0])
        total = total + P.gamma / 2 * (V[i + 1] - sigma).square().sum() + P.rho / 2 * (U[i] - product).square().sum()
        total = total if P.T[i] is None else total + P.tau / 2 * (W[i] - P.T[i]).square().sum()
    return total


def convolved(W):
    kernel = W.reshape(3, 3, 2, 3).permute(3, 2, 0, 1)
    return functional.conv2d(IMAGES, kernel, stride=2).permute(0, 2, 3, 1).reshape(len(IMAGES), -1).T


def gradient(P, letter: str, i: int, old=None):
    """Of the objective in one block; with `old` also of alpha/2 ‖block - old‖²."""
    blocks = {key: list(getattr(P, key)) for key in "WUV"}
    block = blocks[letter][i] = blocks[letter][i].clone().requires_grad_()
    total = value(P, **blocks)
    total = total if old is None else total + P.alpha / 2 * (block - old).square().sum()
    return torch.autograd.grad(total, block)[0]


def assert_zero(gradient):
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_patches_times_the_weight_are_the_convolution_with_the_filter_fastest():
    weight = randn(3, 2, 3, 3)
    product = plain.patches(IMAGES, 3, 2) @ plain.patch_weight(weight)
    expected = functional.conv2d(IMAGES, weight, stride=2)  # 20 x 3 x 3 x 2
    torch.testing.assert_close(product.reshape(20, 3, 2, 3).permute(0, 3, 1, 2), expected)
    assert plain.patches(torch.zeros(2, 1, 28, 28), 3, 2).shape == (2 * 13 * 13, 9)


MAKERS = (small, small_conv)


def test_every_smooth_block_has_zero_gradient():
    for make in MAKERS:
        with case(make=make):
            assert_stationary(make())


def assert_stationary(P):
    P.sweep()
    V_old = P.V[-1]
    P.V[-1] = (P.Y + P.gamma * P.U[-1] + P.alpha * V_old) / (1 + P.gamma + P.alpha)
    assert_zero(gradient(P, "V", -1, V_old))
    P.V[-1] = V_old
    P.update_output()
    assert_zero(gradient(P, "U", -1))
    for i in reversed(range(3)):
        if i < 2:
            P.update_activation(i)
            assert_zero(gradient(P, "V", i + 1))
            P.update_preactivation(i)
        W, T = P.W[i], P.T[i]
        P.update_weight(i)
        new, P.T[i] = P.T[i], T  # the gradient of W is with the T before
        assert_zero(gradient(P, "W", i, W))
        P.T[i] = new


def test_no_grid_point_beats_a_preactivation():
    grid = torch.arange(-30, 30, 0.05, dtype=F64).view(-1, 1, 1)
    for make in MAKERS:
        P = make()
        P.sweep()
        for i in (0, 1):
            P.update_activation(i)
            old, a, product = P.U[i].clone(), P.V[i + 1], P.linear(i)

            def cost(u, P=P, old=old, a=a, product=product):
                fit, linear, near = torch.relu(u) - a, u - product, u - old
                return P.gamma * fit.square() + P.rho * linear.square() + P.alpha * near.square()

            P.update_preactivation(i)
            best = cost(P.U[i])
            with case(make=make, i=i):
                assert (best <= cost(grid) + 1e-10).all()
                assert (best <= cost(old) + 1e-10).all()


def test_published_values_of_the_preactivation():
    for values in (
        (1, -0.4, 1, 0.3), (1, -0.42, 1, -0.42), (1, -1.2, 1, -1.2), (-1, 0.5, 1, 0), (-1, 2, 1, 0.5),
        (0.5, 0, 2, 1 / 6),
    ):  # fmt: skip
        a, b, g, u = values
        a, b = (torch.tensor([x], dtype=F64) for x in (a, b))
        with case(values=values):
            assert float(plain.relu_prox(a, b, g)) == pytest.approx(u, abs=1e-12)


def test_the_objective_is_its_definition_and_at_the_start_only_fit_and_compression():
    for make in MAKERS:
        P = make()
        start = P.objective()
        with case(make=make):
            assert start["activation"] == 0
            assert start["linear"] == 0
            assert min(start["fit"], start["compression"]) > 0
            P.sweep()
            assert P.objective()["objective"] == pytest.approx(float(value(P, P.W, P.U, P.V)), rel=1e-12)


def test_objective_never_rises_with_pruning_by_copies():
    for keep in (0.1, 0.5):
        seen = swept(small(plain.prune(keep)), 40)
        with case(keep=keep):
            assert all(after <= before + 1e-12 for before, after in itertools.pairwise(seen))
            assert seen[-1] < seen[0] / 2


def test_pruning_keeps_the_largest_entries():
    w = randn(30, 40)
    pruned = plain.prune(0.1)(w)
    assert int(torch.count_nonzero(pruned)) == 120
    torch.testing.assert_close(pruned, torch.where(w.abs() >= w.abs().flatten().sort().values[-120], w, 0.0))


def test_projected_weights_are_sparse_from_the_first_forward_pass_on():
    P = small(plain.prune(0.25), project=True)
    for _ in range(3):
        assert int(torch.count_nonzero(P.W[1])) == 16
        assert P.objective()["compression"] == 0
        P.sweep()
    torch.testing.assert_close(
        small(plain.prune(0.25), project=True).U[1], P.compress[1](randn(8, 8, seed=2)) @ small().V[1]
    )


def test_a_given_first_compression_pulls_the_first_weights_only():
    same, given = small(), small(initial_T=[None, torch.zeros(8, 8, dtype=F64), None])
    assert given.objective()["compression"] == pytest.approx(2.5 * float(same.W[1].square().sum()))
    T = given.T[1]
    given.sweep()
    assert not torch.equal(given.T[1], T)
    torch.testing.assert_close(given.T[1], given.compress[1](given.W[1]))


def test_the_dtype_of_the_weights_is_kept():
    W = [randn(8, 6, dtype=torch.float32), randn(3, 8, dtype=torch.float32)]
    X, Y = randn(6, 9, dtype=torch.float32), one_hot(torch.arange(9) % 3, 3, torch.float32)
    P = plain.Plain(W, X, Y, **RATES, compress=[plain.tt((6, 8), 2), None])
    P.sweep()
    assert {x.dtype for x in (*P.W, *P.U, *P.V, P.T[0])} == {torch.float32}


# --- the solver


def start(model) -> list[torch.Tensor]:
    """The initial weights as the plain form takes them."""
    weights = [w.detach() for w in weights_of(model).values()]
    return [plain.patch_weight(w) if w.ndim == 4 else w for w in weights]


def targets(data) -> torch.Tensor:
    return one_hot(data.train.y, data.num_classes, data.train.x.dtype)


def columns(data) -> tuple[torch.Tensor, torch.Tensor]:
    """X and Y of a perceptron."""
    return data.train.x.flatten(1).T.contiguous(), targets(data)


def solved(p: Problem, solver: NNBCD, sweeps: int) -> list[float]:
    return [iterate.observation.terms["objective"] for iterate in solver.run(p, sweeps)]


def swept(P: plain.Plain, sweeps: int) -> list[float]:
    seen = [P.objective()["objective"]]
    for _ in range(sweeps):
        P.sweep()
        seen.append(P.objective()["objective"])
    return seen


def pruned(model, keep: float):
    """The network with every weight but the last one pruned, as both forms then leave it at their start."""
    with torch.no_grad():
        for weight in list(weights_of(model).values())[:-1]:
            weight.copy_(plain.prune(keep)(weight))
    return model


TOY = {"tau": 5.0, "alpha": 1.0, "gamma": 0.5, "rho": 0.5}


def test_the_solver_equals_the_plain_form_with_tensor_trains():
    data = gaussian(n=120)
    p = problem(data, mlp(data), tt, layers=["fc2"], rank=4, modes=[4, 4, 4, 4])
    P = plain.Plain(start(p.model), *columns(data), **TOY, compress=[None, plain.tt((4, 4, 4, 4), 4), None])
    assert solved(p, NNBCD(**TOY, initial="model", plain=True), 10) == pytest.approx(swept(P, 10), rel=1e-6)


def test_the_solver_equals_the_plain_form_with_pruning_by_copies():
    data, prune = gaussian(n=120), plain.prune(0.25)
    p = problem(data, mlp(data), l0, keep=0.25)
    P = plain.Plain(start(p.model), *columns(data), **TOY, compress=[prune, prune, None])
    assert solved(p, NNBCD(**TOY, initial="model"), 10) == pytest.approx(swept(P, 10), rel=1e-6)


def test_the_solver_equals_the_plain_form_with_projection():
    data, prune = gaussian(n=120), plain.prune(0.25)
    p = problem(data, pruned(mlp(data), 0.25), l0, keep=0.25)
    P = plain.Plain(start(p.model), *columns(data), **TOY, compress=[prune, prune, None], project=True)
    assert solved(p, NNBCD(**TOY, initial="model", project=True), 10) == pytest.approx(swept(P, 10), rel=1e-6)


def test_the_solver_equals_the_plain_form_on_a_convolutional_network():
    for shape in ((1, 7, 7), (2, 9, 6)):
        split = Split(randn(100, *shape), torch.arange(100) % 3)
        torch.manual_seed(0)
        model = NNBCDCNN(shape, 3, filters=4, widths=(16, 16)).double()
        inputs = model.fc2.in_features
        modes = {"fc2": [4, 4, inputs // 4, 4], "fc3": [4, 4, 4, 4]}
        p = problem(Dataset(split, split, 3, "images"), model, tt, rank=3, modes=modes, layers=["fc2", "fc3"])
        compress = [None, plain.tt(modes["fc2"], 3), plain.tt(modes["fc3"], 3), None]
        x = plain.patches(split.x, 3, 2)
        P = plain.Plain(start(model), x, targets(p.data), **TOY, compress=compress, conv=True)
        with case(shape=shape):
            assert solved(p, NNBCD(**TOY, initial="model", plain=True), 10) == pytest.approx(swept(P, 10), rel=1e-6)


# --- the solver on real data

DATA = Path(os.environ.get("NNCOMPRESS_DATA", "data"))
MODES = {"fc2": [26, 26, *[4] * 5, *[2] * 3], "fc3": [4] * 10}


@pytest.fixture
def papers_mnist() -> Dataset:
    """The paper's subset, float32."""
    if not (DATA / "MNIST/raw").is_dir():
        pytest.skip("the real data are absent: $NNCOMPRESS_DATA/MNIST/raw does not exist")
    return mnist(root=str(DATA), download=False, train_size=6000, test_size=999)


def drawn(model, scale):
    """The network with weights scale(outputs, inputs) N(0, 1)."""
    g = torch.Generator().manual_seed(10)
    with torch.no_grad():
        for weight in weights_of(model).values():
            weight.copy_(scale(len(weight), weight[0].numel()) * torch.randn(weight.shape, generator=g))
    return model


PUBLISHED = [(11021.754, 11157.074), (9261.334, 9412.727), (8135.196, 8242.653)]
"""Fit and total of the first three sweeps, both with the fit weighted by gamma/2: NNBCD_CNN_part1.ipynb, rank 40."""


@pytest.mark.slow
def test_three_float32_sweeps_of_the_papers_cnn_on_mnist_give_the_published_losses_and_the_first_agrees(papers_mnist):
    model = drawn(NNBCDCNN((1, 28, 28), 10), lambda outputs, inputs: 0.01)
    p = problem(papers_mnist, model, tt, rank=40, modes=MODES, layers=["fc2", "fc3"])
    rates, W = {"tau": 0.1, "alpha": 1.0, "gamma": 5.0, "rho": 5.0}, start(model)
    compress, first = ([None, plain.tt(MODES["fc2"], r), plain.tt(MODES["fc3"], r), None] for r in (40, 700))
    T = [None if c is None else c(w) for c, w in zip(first, W, strict=True)]
    X = plain.patches(papers_mnist.train.x, 3, 2)
    P = plain.Plain(W, X, targets(papers_mnist), **rates, compress=compress, initial_T=T, conv=True)
    solver = NNBCD(**rates, initial="model", initial_rank=700, plain=True)
    initial, *ours = (iterate.observation.terms for iterate in solver.run(p, 3))
    assert initial["objective"] == pytest.approx(P.objective()["objective"], rel=1e-3)
    P.sweep()
    assert ours[0]["objective"] == pytest.approx(P.objective()["objective"], rel=1e-3)
    for terms, (fit, total) in zip(ours, PUBLISHED, strict=True):
        assert 5 * terms["term/fit"] == pytest.approx(fit, rel=5e-3)
        assert 4 * terms["term/fit"] + terms["objective"] == pytest.approx(total, rel=5e-3)


@pytest.mark.slow
def test_ten_float32_sweeps_of_the_papers_pruning_on_mnist_agree(papers_mnist):
    model = drawn(MLP((1, 28, 28), 10, widths=(300, 100), bias=False), lambda m, n: 0.2 * math.sqrt(2 / (m + n)))
    p = problem(papers_mnist, pruned(model, 0.1), l0, keep=0.1)
    rates, prune = {"tau": 200.0, "alpha": 1.0, "gamma": 100.0, "rho": 1.0}, plain.prune(0.1)
    P = plain.Plain(start(model), *columns(papers_mnist), **rates, compress=[prune, prune, None], project=True)
    assert solved(p, NNBCD(**rates, initial="model", project=True), 10) == pytest.approx(swept(P, 10), rel=1e-3)
