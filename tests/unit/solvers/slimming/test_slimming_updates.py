"""Proximal network slimming, its updates: closed forms, the steps by hand, the penalty as smoothed, the curvature."""

import copy
import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from cases import case
from image_networks import norms
from problems import F64, randn
from slimming_cases import BATCH, MOMENTUM, N, proximal, small, tensors, vgg
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nncompress.compressions.sparsity.magnitude import L0Penalty, L1Penalty, SeparablePenalty
from nncompress.compressions.sparsity.nonconvex import LHalfPenalty, TransformedL1Penalty
from nncompress.experiment import checkpoint
from nncompress.metrics import evaluate
from nncompress.models.wide_resnet import WideResNet
from nncompress.problem import Problem
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.slimming.proximal import Slimming, blend, largest_curvature, shrunk
from nncompress.solvers.slimming.scales import Scales
from nncompress.solvers.training.descent import MultiStep

PENALTIES: list[Callable[[float], SeparablePenalty]] = [L1Penalty, L0Penalty, LHalfPenalty, TransformedL1Penalty]


def last_of(method: Slimming | SGD, p: Problem, state: object = None):
    *_, last = method.run(p, method.num_steps, state=state)
    return last


# The closed forms.


def test_one_step_in_numbers():
    for beta, lam, gamma, xi in ((100.0, 0.0045, 0.498181818, 0.498306198), (0.25, 0.002, 0.480487805, 0.499328971)):
        with case(beta=beta, lam=lam):
            before = torch.tensor([0.5], dtype=F64)
            found = blend(torch.tensor([0.48], dtype=F64), before, 10, beta)
            assert float(found) == pytest.approx(gamma, abs=5e-10)
            assert float(shrunk(before, found, 10, beta, L1Penalty(lam))) == pytest.approx(xi, abs=5e-10)


def test_the_blend_minimises_the_linearised_loss_with_both_quadratics():
    gamma, xi, gradient, alpha, beta = randn(7), randn(7, seed=1), randn(7, seed=2), 10.0, 3.0
    found = blend(gamma - gradient / alpha, xi, alpha, beta).requires_grad_()
    value = gradient @ found + alpha / 2 * (found - gamma).square().sum() + beta / 2 * (found - xi).square().sum()
    assert torch.autograd.grad(value, found)[0] == pytest.approx(torch.zeros(7), abs=1e-12)


def test_no_point_of_a_grid_is_a_better_xi():
    grid = torch.linspace(-2, 2, 4001, dtype=F64)[:, None]
    settings = [(10, 100, 0.3), (10, 0.25, 2.0), (0.5, 1.0, 0.7), (3, 2, 0.1)]
    for penalty, (seed, (alpha, beta, lam)) in product(PENALTIES, enumerate(settings)):
        xi, gamma = randn(60, seed=seed), randn(60, seed=seed + 50)
        charge = penalty(lam)

        def value(x, gamma=gamma, xi=xi, alpha=alpha, beta=beta, charge=charge):
            priced = vmap(charge.price)(x.flatten()).view(x.shape)
            return priced + beta / 2 * (gamma - x).square() + alpha / 2 * (x - xi).square()

        with case(penalty=penalty, alpha=alpha, beta=beta, lam=lam):
            priced = value(grid).min(0).values
            assert bool((value(shrunk(xi, gamma, alpha, beta, charge)[None])[0] <= priced + 1e-12).all())


def test_without_a_penalty_xi_is_the_average_and_with_one_zero_up_to_the_threshold():
    xi, gamma = randn(2000), randn(2000, seed=1)
    average = 3 * xi + 2 * gamma
    for penalty in PENALTIES:
        assert shrunk(xi, gamma, 3, 2, penalty(0.0)) == pytest.approx(average / 5, abs=1e-15)
    assert torch.equal(shrunk(xi, gamma, 3, 2, L1Penalty(1.5)) == 0, average.abs() <= 1.5)


def test_minimised_over_xi_the_penalty_is_a_smoothed_l1_norm():
    lam, beta, grid = 0.5, 2.0, torch.linspace(-3, 3, 600_001, dtype=F64)
    for gamma, value in ((-1.0, 0.4375), (0.1, 0.01), (0.25, 0.0625), (0.3, 0.0875), (2.0, 0.9375)):
        with case(gamma=gamma):
            h = beta * gamma**2 / 2 if abs(gamma) <= lam / beta else lam * abs(gamma) - lam**2 / (2 * beta)
            assert float((lam * grid.abs() + beta / 2 * (gamma - grid).square()).min()) == pytest.approx(
                value, abs=1e-9
            )
            assert h == pytest.approx(value, abs=1e-12)


def test_the_scalar_problem_ends_at_its_stationary_point():
    alpha, beta, penalty = 3, 2, L1Penalty(0.1)
    for a, gamma, xi in ((0.02, 0.02 / 3, 0.0), (0.3, 0.2, 0.15)):
        with case(a=a):
            g, x = torch.tensor([0.5], dtype=F64), torch.tensor([0.5], dtype=F64)
            for _ in range(300):
                g = blend(g - (g - a) / alpha, x, alpha, beta)
                x = shrunk(x, g, alpha, beta, penalty)
            assert (float(g), float(x)) == (pytest.approx(gamma, abs=1e-12), pytest.approx(xi, abs=1e-12))


def test_f_decreases_as_promised_on_random_quadratics():
    """24 000 steps: L(z) = z'Hz/2 - b'z, z = (W, gamma), largest eigenvalue of H the same in a group of 100."""
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        lipschitz, factor, beta, lam = (float(v) for v in torch.rand(4, generator=g, dtype=F64) * 4 + 0.05)
        alpha = lipschitz * (0.55 + factor)
        root = torch.randn(100, 6, 6, generator=g, dtype=F64)
        hessian = root @ root.mT
        hessian *= lipschitz / torch.linalg.eigvalsh(hessian)[:, -1, None, None]
        b, z, xi = (torch.randn(100, size, generator=g, dtype=F64) for size in (6, 6, 3))
        penalty = L1Penalty(lam)

        def f(z, xi, hessian=hessian, b=b, lam=lam, beta=beta):
            loss = torch.einsum("ni,nij,nj->n", z, hessian, z) / 2 - (b * z).sum(1)
            return loss + lam * xi.abs().sum(1) + beta / 2 * (z[:, 3:] - xi).square().sum(1)

        for _ in range(4):
            after = z - (torch.einsum("nij,nj->ni", hessian, z) - b) / alpha
            after[:, 3:] = blend(after[:, 3:], xi, alpha, beta)
            xi_after = shrunk(xi, after[:, 3:], alpha, beta, penalty)
            w, gamma = (part.square().sum(1) for part in (after - z).split(3, dim=1))
            x = (xi_after - xi).square().sum(1)
            promised = (alpha - lipschitz / 2) * w + (alpha + beta / 2 - lipschitz / 2) * gamma + (alpha + beta / 2) * x
            before = f(z, xi)
            assert bool((before - f(after, xi_after) >= promised - 1e-9 * (1 + before.abs())).all())
            z, xi = after, xi_after


# The solver's steps against the card's, in plain Python.


def by_bisection(v: float, price: Callable[[float], float], slope: Callable[[float], float], turn: float) -> float:
    """argmin over x >= 0 of (v - x)²/2 + price(x), v >= 0, where x + slope(x) rises from `turn` on."""
    low, high = turn, v
    if high <= low or low - v + slope(low) > 0:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - v + slope(middle) < 0 else (low, middle)
    return high if (v - high) ** 2 / 2 + price(high) < v**2 / 2 else 0.0


def prox_by_hand(kind: object, v: float, level: float) -> float:
    size = abs(v)
    if kind is L1Penalty:
        found = max(size - level, 0.0)
    elif kind is L0Penalty:
        found = size if size**2 > 2 * level else 0.0
    elif kind is LHalfPenalty:
        found = by_bisection(
            size, lambda x: level * math.sqrt(x), lambda x: level / 2 / math.sqrt(x), (level / 4) ** (2 / 3)
        )
    else:  # a = 1
        turn = max(0.0, (4 * level) ** (1 / 3) - 1)
        found = by_bisection(size, lambda x: level * 2 * x / (1 + x), lambda x: 2 * level / (1 + x) ** 2, turn)
    return math.copysign(found, v)


def by_hand(p: Problem, method: Slimming, rates: list[float]):
    """The network, xi and the momentum after an epoch for each rate: gradient, momentum, blend, shrinkage."""
    model, generator = copy.deepcopy(p.model), torch.Generator().manual_seed(method.seed)
    factors = [norm.weight for norm in norms(model)]
    drawn = 1 + 0.06 * (2 * torch.rand(sum(map(len, factors)), generator=generator) - 1)
    xi = (torch.cat(factors).detach() * drawn.to(F64)).tolist()
    buffers: dict[str, Tensor] = {}
    model.train()
    for lr in rates:
        alpha, beta = 1 / lr, method.beta
        for batch in torch.randperm(N, generator=generator).split(method.batch_size):
            loss = nn.functional.cross_entropy(model(p.data.train.x[batch]), p.data.train.y[batch])
            names, parameters = zip(*model.named_parameters(), strict=True)
            for name, w, gradient in zip(names, parameters, torch.autograd.grad(loss, parameters), strict=True):
                undecayed = not method.decay_scales and any(w is factor for factor in factors)
                gradient = gradient if undecayed else gradient + 1e-2 * w.detach()
                buffers[name] = 0.9 * buffers[name] + gradient if name in buffers else gradient
                w.data = w.data - lr * buffers[name]
            place = 0
            for factor in factors:
                for c in range(len(factor)):
                    gamma = (alpha * float(factor.detach()[c]) + beta * xi[place]) / (alpha + beta)
                    v = (alpha * xi[place] + beta * gamma) / (alpha + beta)
                    factor.data[c] = gamma
                    xi[place] = prox_by_hand(method.penalty, v, method.lam / (alpha + beta))
                    place += 1
    return model, xi, buffers


SETTINGS: list[dict[str, object]] = [
    {},
    {"decay_scales": False, "seed": 3},
    *({"penalty": kind, "lam": lam} for kind, lam in zip(PENALTIES[1:], (0.6, 1.5, 1.5), strict=True)),
]


def test_steps_are_those_of_the_paper_with_momentum_that_the_blend_leaves_alone():
    for settings in SETTINGS:
        with case(**settings):
            p, method = small(), proximal(2, **settings)
            model, xi, buffers = by_hand(p, method, [0.1, 0.01])
            state = last_of(method, p).state
            assert 0 < int((state.xi == 0).sum()) < len(xi)
            assert state.xi == pytest.approx(torch.tensor(xi, dtype=F64), abs=1e-10)
            torch.testing.assert_close(state.model.state_dict(), model.state_dict(), rtol=0, atol=1e-10)
            found = {name: state.optimizer.state[w]["momentum_buffer"] for name, w in state.model.named_parameters()}
            torch.testing.assert_close(found, buffers, rtol=0, atol=1e-10)


def test_without_penalty_and_coupling_it_is_sgd():
    # powers of two: no rounding in 1/lr
    settings = {"lr": 0.125, "batch_size": BATCH, "optimizer": MOMENTUM, "schedule": MultiStep(decay=0.25)}
    p, plain = small(), SGD(num_steps=3, **settings)
    state = plain.init(p)
    torch.rand(9, generator=state.generator)  # what the start of xi takes
    found = last_of(Slimming(num_steps=3, lam=0, beta=0, **settings), p).state
    expected = last_of(plain, p, state).state
    assert all(map(torch.equal, found.model.state_dict().values(), expected.model.state_dict().values()))
    assert not torch.equal(found.model.fc.weight, p.model.fc.weight)


def test_a_large_beta_freezes_the_scaling_factors():
    p, method = small(), proximal(2, beta=1e9, lam=0.0)
    start = Scales.of(p.model).gamma()
    state = method.init(p)._replace(xi=start.clone())
    before = [w.detach().clone() for w in p.model.parameters() if w.dim() > 1]
    found = last_of(method, p, state).state
    assert Scales.of(found.model).gamma() == pytest.approx(start, abs=1e-7)
    assert found.xi == pytest.approx(start, abs=1e-7)
    after = [w for w in found.model.parameters() if w.dim() > 1]
    assert all(float((a - b).detach().norm()) > 1e-3 for a, b in zip(after, before, strict=True))


def test_alpha_follows_the_schedule():
    found = [iterate.observation.terms["alpha"] for iterate in proximal(8).run(small(), 8)]
    assert found == pytest.approx([10] * 5 + [100] * 2 + [1000] * 2)


def test_xi_starts_near_the_scaling_factors():
    p = small(vgg((1, 1, 1), 0.2))
    gamma, xi = Scales.of(p.model).gamma(), proximal().init(p).xi
    ratio = xi / gamma
    assert 0.94 <= float(ratio.min()) < 0.95
    assert 1.05 < float(ratio.max()) <= 1.06
    assert not torch.equal(xi, proximal(seed=1).init(p).xi)
    assert torch.equal(xi, proximal().init(p).xi)


def test_f_is_the_sum_of_its_terms():
    for kind in PENALTIES:
        with case(penalty=kind):
            p, method = small(), proximal(2, penalty=kind)
            state, (model, _, terms, *_) = last_of(method, p)[2:4]
            gamma, xi = Scales.of(model).gamma(), state.xi
            assert terms["term/loss"] == evaluate(model, p.data.train, p.loss).loss
            each = {L1Penalty: xi.abs(), L0Penalty: (xi != 0).double(), LHalfPenalty: xi.abs().sqrt()}
            prices = each.get(kind, 2 * xi.abs() / (1 + xi.abs()))
            assert terms["term/penalty"] == pytest.approx(2 * float(prices.sum()))
            assert terms["term/coupling"] == pytest.approx(2.5 * float((gamma - xi).square().sum()))
            assert terms["objective"] == pytest.approx(sum(v for k, v in terms.items() if k.startswith("term/")))
            assert terms["channels/zero"] == int((xi == 0).sum())
            assert len(xi) == 9


def test_the_recorded_steps_are_the_differences_of_the_iterates():
    p, method = small(), proximal(3)
    state, total = method.init(p), 0.0
    for _ in range(3):
        xi, gamma = state.xi.clone(), Scales.of(state.model).gamma()
        parameters = [w.detach().clone() for w in state.model.parameters()]
        state = method.step(p, state)
        terms = method.observe(p, state).terms
        pairs = zip(state.model.parameters(), parameters, strict=True)
        everything = sum(float((a.detach() - b).square().sum()) for a, b in pairs)
        own = float((Scales.of(state.model).gamma() - gamma).square().sum())
        of_xi = float((state.xi - xi).square().sum())
        total += everything + of_xi
        found = [terms[f"step_sq{part}"] for part in ("/W", "/gamma", "/xi", "", "/sum")]
        assert found == pytest.approx([everything - own, own, of_xi, everything + of_xi, total], rel=1e-9)


def test_the_problem_is_left_alone_and_an_observation_changes_nothing():
    p = small()
    before = copy.deepcopy(p.model.state_dict())
    method = proximal(2, curvature=3)
    state = method.step(p, method.init(p))
    packed = copy.deepcopy(checkpoint.pack(state))
    method.result(p, state, method.observe(p, state))
    assert all(map(torch.equal, tensors(checkpoint.pack(state)), tensors(packed)))
    assert all(map(torch.equal, p.model.state_dict().values(), before.values()))


def test_the_curvature_is_the_largest_eigenvalue_of_the_hessian():
    p = small(vgg((1,)))
    names, values = zip(*p.model.named_parameters(), strict=True)
    drawn = torch.randperm(len(p.data.train), generator=torch.Generator().manual_seed(0))[:25]
    x, y = p.data.train.x[drawn], p.data.train.y[drawn]
    network = copy.deepcopy(p.model).train()

    def loss(flat: Tensor) -> Tensor:
        split = flat.split([value.numel() for value in values])
        parts = [part.view(value.shape) for part, value in zip(split, values, strict=True)]
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        logits = functional_call(network, (dict(zip(names, parts, strict=True)), buffers), (x,))
        return nn.functional.cross_entropy(logits, y)

    hessian = torch.autograd.functional.hessian(loss, torch.cat([v.detach().flatten() for v in values]))
    expected = float(torch.linalg.eigvalsh(hessian).abs().max())
    assert largest_curvature(p, p.model, steps=300, samples=25) == pytest.approx(expected, rel=1e-6)
    recorded = proximal(curvature=300, curvature_samples=25)
    assert recorded.observe(p, recorded.init(p)).terms["curvature"] == pytest.approx(expected, rel=1e-6)
    assert largest_curvature(p, p.model, steps=2, samples=25) <= expected


def test_measuring_the_curvature_leaves_the_run_as_it_is_with_dropout_too():
    torch.manual_seed(0)
    p = small(WideResNet((1, 8, 8), 10, depth=10, widen=1, dropout=0.3).to(F64))
    found = []
    for curvature in (0, 1):
        torch.manual_seed(1)
        found.append(last_of(proximal(2, curvature=curvature), p).state.xi)
    assert torch.equal(*found)
