"""Proximal network slimming: the updates by hand, the penalty as smoothed, what is recorded, targets, whole runs."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from problems import F64, problem, randn, small_digits
from runs import assert_refused, rows, status, summary, train
from torch import Tensor, nn
from torch.func import functional_call

import nncompress.experiment
from nncompress import checkpoint
from nncompress.building import build
from nncompress.channels import kept_in
from nncompress.cli import main
from nncompress.compact.artefact import load
from nncompress.compact.removal import removed
from nncompress.compressions.nonconvex import LHalfPenalty, TransformedL1Penalty
from nncompress.compressions.sparsity import L0, L0Penalty, L1Penalty, SeparablePenalty, l0
from nncompress.data.digits import digits
from nncompress.errors import ConfigError, Unsupported
from nncompress.metrics import evaluate, sizes
from nncompress.models.preresnet import PreResNet
from nncompress.models.vgg import VGG
from nncompress.models.wide_resnet import WideResNet
from nncompress.problem import Problem
from nncompress.solvers.curvature import largest_curvature
from nncompress.solvers.descent import MultiStep
from nncompress.solvers.scales import Scales
from nncompress.solvers.sgd import SGD
from nncompress.solvers.slimming import Slimming, SlimmingState, blended, shrunk

PENALTIES: list[Callable[[float], SeparablePenalty]] = [L1Penalty, L0Penalty, LHalfPenalty, TransformedL1Penalty]
MOMENTUM = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-2)
N, BATCH = 60, 20


def vgg(layers: tuple[int, ...] = (1, 1), width: float = 0.05) -> nn.Module:
    """Channels 3 and 6 by default, with scaling factors that differ."""
    torch.manual_seed(0)
    network = VGG((1, 8, 8), 10, layers=layers, width=width).to(F64)
    for norm in norms(network):
        nn.init.uniform_(norm.weight, 0.2, 0.9)
        nn.init.uniform_(norm.bias, -0.1, 0.3)
    return network


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def small(network: nn.Module | None = None, target: tuple[str, float] | None = None) -> Problem:
    given = problem(small_digits(N), vgg() if network is None else network)
    return Problem(given.model, given.data, given.plan, target=target)


def solver(num_steps: int = 2, **settings: object) -> Slimming:
    given: dict[str, object] = {"lam": 2.0, "beta": 5.0, "lr": 0.1, "batch_size": BATCH, "optimizer": MOMENTUM}
    return Slimming(num_steps=num_steps, **(given | settings))


def last_of(method: Slimming | SGD, p: Problem, state: object = None):
    *_, last = method.run(p, method.num_steps, state=state)
    return last


def with_xi(method: Slimming, p: Problem, xi: Tensor) -> SlimmingState:
    return method.init(p)._replace(xi=xi)


# The closed forms.


@pytest.mark.parametrize(
    ("beta", "lam", "gamma", "xi"), [(100.0, 0.0045, 0.498181818, 0.498306198), (0.25, 0.002, 0.480487805, 0.499328971)]
)
def test_one_step_in_numbers(beta, lam, gamma, xi):
    before = torch.tensor([0.5], dtype=F64)
    found = blended(torch.tensor([0.48], dtype=F64), before, 10, beta)
    assert float(found) == pytest.approx(gamma, abs=5e-10)
    assert float(shrunk(before, found, 10, beta, L1Penalty(lam))) == pytest.approx(xi, abs=5e-10)


def test_the_blend_minimises_the_linearised_loss_with_both_quadratics():
    gamma, xi, gradient, alpha, beta = randn(7), randn(7, seed=1), randn(7, seed=2), 10.0, 3.0
    found = blended(gamma - gradient / alpha, xi, alpha, beta).requires_grad_()
    value = gradient @ found + alpha / 2 * (found - gamma).square().sum() + beta / 2 * (found - xi).square().sum()
    assert torch.autograd.grad(value, found)[0] == pytest.approx(torch.zeros(7), abs=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_no_point_of_a_grid_is_a_better_xi(penalty):
    grid = torch.linspace(-2, 2, 4001, dtype=F64)[:, None]
    for seed, (alpha, beta, lam) in enumerate([(10, 100, 0.3), (10, 0.25, 2.0), (0.5, 1.0, 0.7), (3, 2, 0.1)]):
        xi, gamma = randn(60, seed=seed), randn(60, seed=seed + 50)
        charge = penalty(lam)

        def value(x, gamma=gamma, xi=xi, alpha=alpha, beta=beta, charge=charge):
            priced = torch.stack([charge.price(entry) for entry in x.flatten()]).view(x.shape)
            return priced + beta / 2 * (gamma - x).square() + alpha / 2 * (x - xi).square()

        priced = value(grid).min(0).values
        assert bool((value(shrunk(xi, gamma, alpha, beta, charge)[None])[0] <= priced + 1e-12).all())


def test_without_a_penalty_xi_is_the_average_and_with_one_zero_up_to_the_threshold():
    xi, gamma = randn(2000), randn(2000, seed=1)
    average = 3 * xi + 2 * gamma
    for penalty in PENALTIES:
        assert shrunk(xi, gamma, 3, 2, penalty(0.0)) == pytest.approx(average / 5, abs=1e-15)
    assert torch.equal(shrunk(xi, gamma, 3, 2, L1Penalty(1.5)) == 0, average.abs() <= 1.5)


@pytest.mark.parametrize(
    ("gamma", "value"), [(-1.0, 0.4375), (0.1, 0.01), (0.25, 0.0625), (0.3, 0.0875), (2.0, 0.9375)]
)
def test_minimised_over_xi_the_penalty_is_a_smoothed_l1_norm(gamma, value):
    lam, beta = 0.5, 2.0
    h = beta * gamma**2 / 2 if abs(gamma) <= lam / beta else lam * abs(gamma) - lam**2 / (2 * beta)
    grid = torch.linspace(-3, 3, 600_001, dtype=F64)
    assert float((lam * grid.abs() + beta / 2 * (gamma - grid).square()).min()) == pytest.approx(value, abs=1e-9)
    assert h == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("a", "gamma", "xi"), [(0.02, 0.02 / 3, 0.0), (0.3, 0.2, 0.15)])
def test_the_scalar_problem_ends_at_its_stationary_point(a, gamma, xi):
    g, x, alpha, beta, penalty = torch.tensor([0.5], dtype=F64), torch.tensor([0.5], dtype=F64), 3, 2, L1Penalty(0.1)
    for _ in range(300):
        g = blended(g - (g - a) / alpha, x, alpha, beta)
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
            after[:, 3:] = blended(after[:, 3:], xi, alpha, beta)
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decay_scales": False, "seed": 3},
        *({"penalty": kind, "lam": lam} for kind, lam in zip(PENALTIES[1:], (0.6, 1.5, 1.5), strict=True)),
    ],
)
def test_steps_are_those_of_the_paper_with_momentum_that_the_blend_leaves_alone(settings):
    p, method = small(), solver(2, **settings)
    model, xi, buffers = by_hand(p, method, [0.1, 0.01])
    state = last_of(method, p).state
    assert 0 < int((state.xi == 0).sum()) < len(xi)
    assert state.xi == pytest.approx(torch.tensor(xi, dtype=F64), abs=1e-10)
    torch.testing.assert_close(state.model.state_dict(), model.state_dict(), rtol=0, atol=1e-10)
    for name, w in state.model.named_parameters():
        torch.testing.assert_close(state.optimizer.state[w]["momentum_buffer"], buffers[name], rtol=0, atol=1e-10)


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
    p, method = small(), solver(2, beta=1e9, lam=0.0)
    start = Scales.of(p.model).gamma()
    state = with_xi(method, p, start.clone())
    before = [w.detach().clone() for w in p.model.parameters() if w.dim() > 1]
    found = last_of(method, p, state).state
    assert Scales.of(found.model).gamma() == pytest.approx(start, abs=1e-7)
    assert found.xi == pytest.approx(start, abs=1e-7)
    after = [w for w in found.model.parameters() if w.dim() > 1]
    assert all(float((a - b).detach().norm()) > 1e-3 for a, b in zip(after, before, strict=True))


def test_alpha_follows_the_schedule():
    found = [iterate.observation.terms["alpha"] for iterate in solver(8).run(small(), 8)]
    assert found == pytest.approx([10] * 5 + [100] * 2 + [1000] * 2)


def test_xi_starts_near_the_scaling_factors():
    p = small(vgg((1, 1, 1), 0.2))
    gamma, xi = Scales.of(p.model).gamma(), solver().init(p).xi
    ratio = xi / gamma
    assert 0.94 <= float(ratio.min()) < 0.95
    assert 1.05 < float(ratio.max()) <= 1.06
    assert not torch.equal(xi, solver(seed=1).init(p).xi)
    assert torch.equal(xi, solver().init(p).xi)


@pytest.mark.parametrize("kind", PENALTIES)
def test_f_is_the_sum_of_its_terms(kind):
    p, method = small(), solver(2, penalty=kind)
    state, (model, _, terms) = last_of(method, p)[2:4]
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
    p, method = small(), solver(3)
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
    method = solver(2, curvature=3)
    state = method.step(p, method.init(p))
    packed = copy.deepcopy(checkpoint.pack(state))
    method.observe(p, state), method.slimmed(p, state)
    assert all(map(torch.equal, tensors(checkpoint.pack(state)), tensors(packed)))
    assert all(map(torch.equal, p.model.state_dict().values(), before.values()))


def tensors(packed: object) -> list[Tensor]:
    parts = packed.values() if isinstance(packed, dict) else packed if isinstance(packed, list) else []
    return [packed] if isinstance(packed, Tensor) else [t for part in parts for t in tensors(part)]


# What is deployed.


@pytest.mark.parametrize("project", [True, False])
def test_what_is_deployed_has_xi_or_gamma_where_xi_is_not_zero(project):
    p, method = small(), solver(project=project)
    xi = torch.tensor([0.3, 0, 0.2, 0, 0, -0.1, 0, 0.4, 0.5], dtype=F64)
    found = method.slimmed(p, with_xi(method, p, xi))
    gamma, shifts = (torch.cat([getattr(norm, k).detach() for norm in norms(p.model)]) for k in ("weight", "bias"))
    expected = torch.where(xi != 0, xi if project else gamma, 0)
    assert torch.equal(Scales.of(found.network).gamma(), expected)
    assert torch.equal(
        torch.cat([norm.bias.detach() for norm in norms(found.network)]), torch.where(xi != 0, shifts, 0)
    )
    assert torch.equal(torch.cat(list(found.factors.values())), xi)


def test_a_layer_whose_xi_are_all_zero_keeps_its_largest_channel_with_gamma(caplog):
    p, method = small(), solver()
    xi = torch.tensor([0.0, 0, 0, 0.1, 0.1, 0, 0, 0, 0], dtype=F64)
    state = with_xi(method, p, xi)
    gamma = norms(p.model)[0].weight.detach()
    found = norms(method.slimmed(p, state).network)[0].weight.detach()
    assert torch.equal(found, torch.where(gamma == gamma.max(), gamma, 0))
    method.result(p, state, method.observe(p, state))
    assert "no channel is left in features.bn1_1: the one with the largest scale stays" in caplog.text


def test_the_result_has_the_accuracies_of_both_deployed_networks():
    p, method = small(), solver(3, lam=0.5, beta=0.25)
    iterate = last_of(method, p)
    terms = method.result(p, iterate.state, iterate.observation).terms
    for name, project in (("projected", True), ("masked", False)):
        network = solver(3, lam=0.5, beta=0.25, project=project).slimmed(p, iterate.state).network
        assert terms[f"accuracy/{name}_test"] == evaluate(network, p.data.test, p.loss).accuracy


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
    recorded = solver(curvature=300, curvature_samples=25)
    assert recorded.observe(p, recorded.init(p)).terms["curvature"] == pytest.approx(expected, rel=1e-6)
    assert largest_curvature(p, p.model, steps=2, samples=25) <= expected


def test_measuring_the_curvature_leaves_the_run_as_it_is_with_dropout_too():
    torch.manual_seed(0)
    p = small(WideResNet((1, 8, 8), 10, depth=10, widen=1, dropout=0.3).to(F64))
    found = []
    for curvature in (0, 1):
        torch.manual_seed(1)
        found.append(last_of(solver(2, curvature=curvature), p).state.xi)
    assert torch.equal(*found)


# Targets.


def size_by_hand(name: str, kept: list[int]) -> int:
    """Of VGG((1, 8, 8), 10, layers=[1, 1, 1], width=0.1) with these numbers of channels."""
    a, b, c = kept
    if name == "macs":
        return 64 * 9 * a + 16 * 9 * a * b + 4 * 9 * b * c + 10 * c
    params = 9 * a + 9 * a * b + 9 * b * c + 2 * (a + b + c) + 10 * c + 10
    return 32 * params + 45 if name == "bits" else params


def counts(network: nn.Module) -> list[int]:
    return [int(mask.sum()) for mask in kept_in(network).values()]


@pytest.mark.parametrize("value", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["ratio", "macs", "bits"])
def test_a_target_is_met_by_taking_as_few_channels_as_possible_the_smallest_first(name, value):
    network, method = vgg((1, 1, 1), 0.1), solver()
    p = small(network, (name, value))
    xi = randn(45) * (torch.arange(45) % 5 > 0)
    found = method.slimmed(p, with_xi(method, p, xi)).network
    dense = size_by_hand(name, [6, 13, 26]) - (45 if name == "bits" else 0)
    best = [0, 0, 0]
    for count in range(int((xi != 0).sum()) + 1):  # at least a channel in each layer
        threshold = xi.abs().sort(descending=True).values[:count].min() if count else float("inf")
        masks = [part.abs() >= threshold for part in xi.split([6, 13, 26])]
        kept = [
            max(1, int((mask & (part != 0)).sum())) for mask, part in zip(masks, xi.split([6, 13, 26]), strict=True)
        ]
        if size_by_hand(name, kept) <= value * dense:
            best = kept
    assert counts(found) == best
    gone = torch.cat([~mask for mask in kept_in(found).values()])
    assert float(xi[gone].abs().max()) < float(xi[~gone].abs().min()) or min(best) == 1
    small_size = sum(w.numel() for w in removed(found).parameters())
    assert small_size == size_by_hand("ratio", best)


@pytest.mark.parametrize(("name", "value"), [("macs", 5000.0), ("bits", 40_000.0)])
def test_a_target_above_one_is_a_number(name, value):
    method, p = solver(), small(vgg((1, 1, 1), 0.1), (name, value))
    kept = counts(method.slimmed(p, with_xi(method, p, randn(45))).network)
    assert size_by_hand(name, kept) <= value
    assert max(size_by_hand(name, [*kept[:k], kept[k] + 1, *kept[k + 1 :]]) for k in range(3)) > value


@pytest.mark.parametrize("name", ["ratio", "macs", "bits"])
def test_a_target_of_the_whole_network_takes_nothing(name):
    method, p = solver(), small(vgg((1, 1, 1), 0.1), (name, 1.0))
    assert counts(method.slimmed(p, with_xi(method, p, randn(45))).network) == [6, 13, 26]


@pytest.mark.parametrize("value", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_a_target_counts_the_biases_that_folding_adds(value):
    torch.manual_seed(0)
    network = PreResNet((1, 8, 8), 10, depth=8, bottleneck=False, width=0.25).to(F64)
    p, method = small(network, ("ratio", value)), solver(fold=True)
    xi = randn(60)
    found = method.slimmed(p, with_xi(method, p, xi)).network
    assert sizes(p, (), removed(found))["ratio/params"] <= value


def test_a_target_that_one_channel_a_layer_exceeds_is_refused():
    method, p = solver(), small(vgg(), ("ratio", 0.01))
    with pytest.raises(Unsupported, match=r"target.ratio=0.01 must leave one channel in every layer, which is 0\.\d+"):
        method.init(p)


class Undeclared(nn.Sequential):
    """A network that does not say what can be removed."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_a_target_needs_a_network_that_says_how_its_channels_are_removed():
    method, p = solver(), small(Undeclared().to(F64), ("ratio", 0.5))
    with pytest.raises(Unsupported, match=r"a target needs .*\(a method scales\(\)\), found Undeclared without one"):
        method.init(p)


# Bad input.


def test_a_frozen_batch_norm_a_plan_and_a_batch_larger_than_the_data_are_refused():
    frozen = vgg()
    norms(frozen)[1].weight.requires_grad_(False)
    with pytest.raises(Unsupported, match=r"found that features.bn2_1 is frozen \(requires_grad=False\)"):
        solver().init(small(frozen))
    with pytest.raises(Unsupported, match=r"compresses no weights, found a plan for features.conv1_1.weight"):
        solver().init(problem(small_digits(N), vgg(), l0, keep=0.5))
    with pytest.raises(
        ConfigError, match=r"found batches of 61 samples and 60 samples of data; give a solver.batch_size of"
    ):
        solver(batch_size=61).init(small())


@pytest.mark.parametrize(
    "settings",
    [{"lam": -1}, {"lam": math.inf}, {"beta": -0.1}, {"beta": math.nan}, {"lr": 0}, {"batch_size": 0},
     {"curvature": -1}, {"curvature_samples": 0}, {"label_smoothing": 1.0}, {"mixup": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(
        ValueError, match=rf"{next(iter(settings))} (must be )?at least .*found|{next(iter(settings))} must be .*found"
    ):
        Slimming(**settings)


DATA = ["dataset.train_size=200", "dataset.test_size=100"]
WORDS = ["solver=slimming", "model=vgg19", "model.layers=[1,1,1]", "model.width=0.1", *DATA, "solver.batch_size=10"]


@pytest.mark.parametrize(
    ("words", "code", "kind", "said"),
    [
        (["solver.lam=-1"], 2, "failed", "lam must be at least 0 and finite, found -1"),
        (["solver.beta=-1"], 2, "failed", "beta must be at least 0 and finite, found -1"),
        (["solver.batch_size=500"], 2, "failed", "found batches of 500 samples and 200 samples of data"),
        (["model=mlp", "~model.layers", "~model.width"], 1, "unsupported", "needs batch norms with scaling factors"),
        (["compression=l0", "compression.layers=all"], 1, "unsupported", "use compression=none, then another solver"),
        (["target.ratio=0.001"], 1, "unsupported", "target.ratio=0.001 must leave one channel in every layer"),
        (["solver.lr=1e8"], 1, "diverged", "the objective must stay finite"),
        (["solver.lr=1e8", "target.ratio=0.5"], 1, "diverged", "the objective must stay finite"),
    ],
)
@pytest.mark.usefixtures("apart")
def test_bad_input_is_one_sentence_and_the_right_exit_code(words, code, kind, said, tmp_path, capsys):
    given = [word for word in WORDS if not word.startswith("model") or "model=mlp" not in words]
    words = [word for word in words if not word.startswith("~")]
    assert_refused(tmp_path / "run", [*given, *words, "solver.num_steps=3"], code, said, capsys)
    assert status(tmp_path / "run")["status"] == kind


# Whole runs.

LAMS = (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs with growing lam, the second with its report."""
    folder = tmp_path_factory.mktemp("slimming")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report = nncompress.experiment.write_run_report
        for lam in LAMS:
            patch.setattr(nncompress.experiment, "write_run_report", report if lam == LAMS[1] else lambda folder: [])
            words = [*WORDS, f"solver.lam={lam}", "solver.beta=5", "solver.num_steps=6", "solver.curvature=2"]
            assert train(folder / str(lam), *words) == 0
        yield folder
    torch.use_deterministic_algorithms(False)


def test_more_xi_are_zero_the_larger_lam(ran):
    found = [rows(ran / str(lam))[-1]["channels/zero"] for lam in LAMS]
    assert found[0] < found[1] < found[2]
    kept = [summary(ran / str(lam))["channels/kept"] for lam in LAMS]
    assert 45 >= kept[0] > kept[1] > kept[2] > 0


def test_the_summary_of_a_run_counts_channels_and_holds_both_accuracies(ran):
    ends = summary(ran / str(LAMS[1]))
    assert 0 < ends["channels/kept"] < ends["channels/total"] == 45
    assert [layer["channels"] for layer in ends["channels"]] == [6, 13, 26]
    kept = [layer["kept"] for layer in ends["channels"]]
    assert sum(kept) == ends["channels/kept"]
    assert ends["params/compressed"] == size_by_hand("ratio", kept)
    assert ends["macs/compressed"] == size_by_hand("macs", kept)
    assert ends["bits/compressed"] == size_by_hand("bits", kept)
    assert ends["accuracy/test"] == ends["accuracy/projected_test"]
    assert 0 <= ends["accuracy/masked_test"] <= 1
    assert rows(ran / str(LAMS[1]))[-1]["curvature"] > 0


def test_the_stored_network_is_smaller_and_gives_the_outputs_of_the_masked_one(ran):
    folder = ran / str(LAMS[1])
    p, method, _ = build(OmegaConf.load(folder / "config.yaml"))
    content = checkpoint.load(folder / "checkpoints/last.pt")
    state = checkpoint.restore(method.init(p), content["state"], folder)
    masked = method.slimmed(p, state).network
    found, x = load(folder / "model"), p.data.test.x
    with torch.no_grad():
        torch.testing.assert_close(found(x), masked.eval()(x), rtol=1e-5, atol=1e-5)
    size = (folder / "model/model.safetensors").stat().st_size
    assert size < 4 * size_by_hand("ratio", [6, 13, 26])
    assert evaluate(found, p.data.test, p.loss).accuracy == summary(folder)["accuracy/test"]


def test_the_report_has_the_channels(ran):
    folder = ran / str(LAMS[1])
    assert (folder / "plots/channels.png").stat().st_size > 1000
    text = (folder / "tables/compression.md").read_text()
    assert f"channels with a scaling factor | 45 | {summary(folder)['channels/kept']} " in " ".join(text.split())
    header = (folder / "tables/convergence.md").read_text()
    assert all(title in header for title in ("ξ = 0", "channels kept", "‖Δξ‖²", "α > curvature/2"))
    assert {"channels/zero", "step_sq/xi", "alpha", "curvature"} <= set(
        (folder / "tables/convergence.csv").read_text().splitlines()[0].split(",")
    )


@pytest.mark.usefixtures("apart")
def test_a_run_that_is_taken_up_again_ends_bit_for_bit_like_an_unbroken_one(tmp_path):
    words = [*WORDS, "solver.lam=0.4", "solver.beta=5", "solver.schedule.decay=1.0", "solver.batch_size=40"]
    assert train(tmp_path / "whole", *words, "solver.num_steps=4") == 0
    assert train(tmp_path / "part", *words, "solver.num_steps=2") == 0
    assert main(["train", f"resume={tmp_path / 'part'}", "solver.num_steps=4"]) == 0
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    assert summary(tmp_path / "part") == summary(tmp_path / "whole")
    states = [tensors(checkpoint.load(tmp_path / n / "checkpoints/last.pt")["state"]) for n in ("part", "whole")]
    assert all(map(torch.equal, *states))
    assert any(t.shape == (45,) for t in states[0])  # xi


@pytest.mark.usefixtures("apart")
def test_project_false_deploys_gamma_on_the_mask(tmp_path):
    words = [*WORDS, "solver.lam=0.3", "solver.beta=5", "solver.num_steps=3", "solver.project=false"]
    assert train(tmp_path / "run", *words) == 0
    ends = summary(tmp_path / "run")
    assert ends["accuracy/test"] == ends["accuracy/masked_test"]


@pytest.mark.usefixtures("apart")
def test_a_run_with_folding_and_no_dead_channel_stores_a_network_that_loads(tmp_path):
    words = ["solver=slimming", "model=resnet20", "model.depth=8", "model.width=0.25", *DATA, "solver.batch_size=50"]
    assert train(tmp_path / "run", *words, "solver.fold=true", "solver.lam=1e-6", "solver.num_steps=1") == 0
    assert summary(tmp_path / "run")["ratio/params"] == 1
    found = load(tmp_path / "run/model")
    test = digits(train_size=200, test_size=100).test.to("cpu", torch.float32)
    accuracy = evaluate(found, test, nn.functional.cross_entropy).accuracy
    assert accuracy == summary(tmp_path / "run")["accuracy/test"]


def test_a_penalty_that_is_a_constraint_is_refused():
    with pytest.raises(ValueError, match=r"penalty must give a SeparablePenalty \(L1Penalty, .*found L0\(keep=0.1\)"):
        solver(penalty=L0, lam=0.1)


def test_a_rate_of_zero_which_would_make_alpha_infinite_is_refused():
    with pytest.raises(ValueError, match=r"the learning rate 1/alpha must stay positive, found 0\.0 in epoch 2"):
        solver(2, schedule=MultiStep((0.5,), 0.0))
