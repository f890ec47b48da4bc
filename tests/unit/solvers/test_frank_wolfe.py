"""Stochastic Frank-Wolfe: the optimiser against the paper's formulas, its invariants, and the solver."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import F64, gaussian, mlp, problem, randn, small_digits
from runs import rows, struck, summary, train
from torch import Tensor, nn

from nncompress import checkpoint
from nncompress.cli import main
from nncompress.compressions.plan import none
from nncompress.constraints.assignment import Assignment
from nncompress.constraints.base import Constraint
from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.size import Diameter, FromInitialisation, initial_norms
from nncompress.constraints.spectral import Nuclear, Spectral, SpectralKSparse, SpectralKSupport
from nncompress.errors import ConfigError, Unsupported
from nncompress.metrics import evaluate
from nncompress.models.vgg import VGG
from nncompress.one_shot import Filters
from nncompress.problem import Computation, Problem, Split
from nncompress.solvers import sfw
from nncompress.solvers.descent import Constant, Cosine, Linear, MultiStep
from nncompress.solvers.frank_wolfe import FrankWolfe, LossFeedback
from nncompress.solvers.rescaling import (
    DiameterRescaling,
    FastGradientRescaling,
    GradientRescaling,
    NoRescaling,
    Rescaling,
)
from nncompress.solvers.sfw import SFW
from nncompress.solvers.sgd import SGD

CONF = Path(__file__).parents[3] / "conf"

VECTORS: list[Any] = [L1(), L2(), Lp(p=3.0), Linf(), KSparse(k=0.3), KSupport(k=0.3)]
MATRICES: list[Any] = [
    GroupKSupport(k=0.5),
    Nuclear(),
    SpectralKSupport(k=0.5),
    SpectralKSparse(k=0.5),
]
RULES = [NoRescaling(), DiameterRescaling(), GradientRescaling(), FastGradientRescaling()]


def kind(value: object) -> str:
    return type(value).__name__


each_set = pytest.mark.parametrize("constraint", [*VECTORS, *MATRICES], ids=kind)
each_rule = pytest.mark.parametrize("rule", RULES, ids=kind)


# The update, written from the formulas.


def count(s: Any, n: int) -> int:
    """How many of n magnitudes are nonzero in a vertex: a part of them, rounded down, at least one."""
    return max(1, math.floor(s.k * n))


def magnitudes_of_vertex(s: Any, z: Tensor) -> Tensor:
    """The magnitudes (of entries, groups, singular values) of the vertex of radius 1 for those of the gradient, z."""
    if isinstance(s, L1 | Nuclear):
        return (z == z.max()).to(z)
    if isinstance(s, L2):
        return z / z.norm()
    if isinstance(s, Linf):
        return torch.ones_like(z)
    if isinstance(s, Lp):
        q = s.p / (s.p - 1)
        return z ** (q - 1) / (z**q).sum() ** ((q - 1) / q)
    kept = torch.zeros_like(z)
    kept[z.argsort(descending=True)[: count(s, len(z))]] = 1
    if isinstance(s, KSparse | SpectralKSparse):
        return kept
    return kept * z / (kept * z).norm()


def vertex(s: Any, body: Sequence[Tensor]) -> list[Tensor]:
    """argmin <v, g> over a set, for the gradients of tensors that are constrained together."""
    if isinstance(s, Spectral):
        U, values, Vt = torch.linalg.svd(body[0].flatten(1), full_matrices=False)
        return [-s.radius * ((U * magnitudes_of_vertex(s, values)) @ Vt).reshape(body[0].shape)]
    size = [g.flatten(1).norm(dim=1) if isinstance(s, GroupKSupport) else g.abs().flatten() for g in body]
    found = torch.split(magnitudes_of_vertex(s, torch.cat(size)), [len(z) for z in size])
    factors = [f / z.clamp_min(1e-300) for f, z in zip(found, size, strict=True)]
    return [
        -s.radius * (g.flatten(1) * f[:, None]).view(g.shape) if isinstance(s, GroupKSupport) else
        -s.radius * g * f.view(g.shape)
        for g, f in zip(body, factors, strict=True)
    ]  # fmt: skip


def diameter(s: Any, body: Sequence[Tensor]) -> float:
    n = sum(w.numel() for w in body)
    longest = {
        Lp: lambda: n ** (0.5 - 1 / s.p),
        Linf: lambda: math.sqrt(n),
        KSparse: lambda: math.sqrt(count(s, n)),
        SpectralKSparse: lambda: math.sqrt(count(s, min(body[0].flatten(1).shape))),
    }
    return 2 * s.radius * longest.get(type(s), lambda: 1.0)()


def norm(body: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(w.square().sum()) for w in body))


def step_size(rule: Rescaling, lr: float, m: float, distance: float, diameter: float) -> float:
    """eta before it is clipped."""
    wanted = {
        NoRescaling: lr,
        DiameterRescaling: lr / diameter,
        GradientRescaling: lr * m / max(distance, 1e-30),
        FastGradientRescaling: lr * m / (diameter / 2),
    }
    return wanted[type(rule)]


class Reference:
    """The update of one set after another, tensor by tensor."""

    def __init__(self, bodies: Sequence[Sequence[Tensor]], sets: Sequence[Any], **settings: Any) -> None:
        self.w = [[w.detach().clone() for w in body] for body in bodies]
        self.sets = sets
        self.lr, self.mu, self.dampening = settings["lr"], settings["momentum"], settings["dampening"]
        self.rule = settings["rescaling"]
        self.m: list[list[Tensor]] = []
        self.etas: list[list[float]] = []

    def step(self, gradients: Sequence[Sequence[Tensor]]) -> None:
        if not self.m:
            self.m = [[g.clone() for g in body] for body in gradients]
        else:
            self.m = [
                [self.mu * m + (1 - self.dampening) * g for m, g in zip(ms, gs, strict=True)]
                for ms, gs in zip(self.m, gradients, strict=True)
            ]
        self.etas.append([self._move(s, w, m) for s, w, m in zip(self.sets, self.w, self.m, strict=True)])

    def _move(self, s: Any, w: list[Tensor], m: list[Tensor]) -> float:
        if s is None:
            w[:] = [a - self.lr * b for a, b in zip(w, m, strict=True)]
            return 0.0
        v = vertex(s, m)
        distance = norm([b - a for a, b in zip(w, v, strict=True)])
        wanted = step_size(self.rule, self.lr, norm(m), distance, diameter(s, w))
        eta = min(max(wanted, 0.0), 1.0)
        w[:] = [(1 - eta) * a + eta * b for a, b in zip(w, v, strict=True)]
        return wanted


def parameters(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = F64) -> list[Tensor]:
    return [nn.Parameter(0.3 * randn(*shape, seed=seed + i, dtype=dtype)) for i, shape in enumerate(shapes)]


def enter(bodies: Sequence[Sequence[Tensor]], sets: Sequence[Any]) -> None:
    """Scale tensors into their sets."""
    with torch.no_grad():
        for body, s in zip(bodies, sets, strict=True):
            if s is not None:
                gauge = float(s.norms(s.joined(body)[None])[0])
                for w in body:
                    w.mul_(min(1.0, s.radius / gauge))


def drive(bodies: Sequence[Sequence[Tensor]], sets: Sequence[Any], steps: int, **settings: Any) -> Tensor:
    """Compare both for some steps; the step sizes (steps, bodies) that were asked for."""
    enter(bodies, sets)
    optimizer, reference = SFW(bodies, sets, **settings), Reference(bodies, sets, **settings)
    for k in range(steps):
        for i, w in enumerate(w for body in bodies for w in body):
            w.grad = randn(*w.shape, seed=100 * k + i)
        reference.step([[w.grad for w in body] for body in bodies])
        optimizer.step()
        for body, expected in zip(bodies, reference.w, strict=True):
            for w, e in zip(body, expected, strict=True):
                torch.testing.assert_close(w.detach(), e, rtol=1e-9, atol=1e-10)
    etas = torch.tensor(reference.etas, dtype=F64)
    sums = torch.stack([etas.clamp(0, 1).sum(0), (etas > 1).to(F64).sum(0)], 1)
    torch.testing.assert_close(optimizer.totals, sums, rtol=1e-9, atol=1e-10)
    return etas


@each_set
@each_rule
def test_the_optimiser_is_the_papers_update(constraint, rule, monkeypatch):
    """Three tensors of one shape in sets of three sizes, one of another shape, one in another set, one in none."""
    monkeypatch.setattr(sfw, "SMALL", 30)  # the one of 35 entries is treated by itself
    bodies = [[w] for w in parameters((4, 3, 2), (4, 3, 2), (5, 7), (4, 3, 2), (6,), (4, 3, 2))]
    kinds = [constraint.of_radius(radius) for radius in (0.1, 3.0, 2.0, 0.4)]
    settings = {"lr": 0.15, "momentum": 0.9, "dampening": 0.3, "rescaling": rule}
    etas = drive(bodies, [*kinds, L2(radius=1.5), None], 6, **settings)
    held = etas[:, :5]
    assert ((held > 0) & (held < 1)).any()
    if isinstance(rule, GradientRescaling | FastGradientRescaling):
        assert (held > 1).any()  # some are clipped


TOGETHER: list[Any] = [s for s in [*VECTORS, *MATRICES] if not isinstance(s, Spectral)]


@each_rule
@pytest.mark.parametrize("constraint", TOGETHER, ids=kind)
def test_tensors_together_are_one_vector_or_the_filters_of_all_of_them(constraint, rule):
    bodies = [parameters((4, 3, 2), (5, 7)), parameters((4, 3, 2), (5, 7), seed=5), parameters((3, 2, 2), (3, 5))]
    sets = [constraint.of_radius(2.0), constraint.of_radius(3.0), constraint.of_radius(3.0)]
    etas = drive(bodies, sets, 5, lr=0.1, momentum=0.9, dampening=0.0, rescaling=rule)  # compares them at every step
    assert etas.shape == (5, 3)
    assert (etas > 0).all()


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.9), (0.5, 0.2)])
def test_momentum_and_dampening_are_those_of_sgd(momentum, dampening):
    """A free tensor is moved as by torch.optim.SGD; one in a set moves by lr times the norm of the same momentum."""
    free, held, same = parameters((4, 3), (4, 3), (4, 3))
    with torch.no_grad():
        same.copy_(free)
    big = L2(radius=1e3)
    optimizer = SFW([[free], [held]], [None, big], lr=0.1, momentum=momentum, dampening=dampening)
    sgd = torch.optim.SGD([same], lr=0.1, momentum=momentum, dampening=dampening)
    for k in range(5):
        before, old = held.detach().clone(), same.detach().clone()
        free.grad, held.grad, same.grad = (randn(4, 3, seed=k) for _ in range(3))
        optimizer.step()
        sgd.step()
        torch.testing.assert_close(free, same, rtol=1e-12, atol=1e-14)
        assert float((held - before).detach().norm()) == pytest.approx(float((same - old).detach().norm()), rel=1e-9)


def test_a_tensor_without_a_gradient_has_one_of_zero():
    w, other = parameters((3, 2), (3, 2))
    optimizer = SFW([[w], [other]], [L2(radius=5.0), None], lr=0.1)
    start = w.detach().clone(), other.detach().clone()
    optimizer.step()
    assert torch.equal(w, start[0])
    assert torch.equal(other, start[1])
    w.grad, other.grad = torch.ones(3, 2, dtype=F64), None
    optimizer.step()
    assert not torch.equal(w, start[0])
    assert torch.equal(other, start[1])


def test_tensors_are_the_same_alone_and_among_others_of_their_shape():
    sets = [SpectralKSupport(k=0.5, rounds=2, radius=r) for r in (1.0, 2.0, 3.0)]
    alone, among = (parameters(*[(6, 8)] * 3) for _ in range(2))
    optimizers = [SFW([[w]], [s]) for w, s in zip(alone, sets, strict=True)] + [SFW([[w] for w in among], sets)]
    for k in range(4):
        for i in range(3):
            alone[i].grad = among[i].grad = randn(6, 8, seed=10 * k + i)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(alone, among, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="no closure, found one"):
        SFW([parameters((2, 2))], [L2()]).step(lambda: 0.0)


# Invariants.

INEXACT: list[Any] = [Nuclear(rounds=1), SpectralKSupport(k=0.3, rounds=1), SpectralKSparse(k=0.3, rounds=1)]


MANY: list[Any] = [KSupport(k=0.3), GroupKSupport(k=0.5), SpectralKSupport(k=0.3, rounds=1)]


@pytest.mark.parametrize(
    ("sets", "steps", "rule"),
    [
        (MANY, 1000, GradientRescaling()),
        ([*VECTORS, *MATRICES, *INEXACT], 60, GradientRescaling()),
        ([*VECTORS, *MATRICES, *INEXACT], 60, FastGradientRescaling()),
    ],
    ids=["1000-gradient", "60-gradient", "60-fast"],
)
def test_many_steps_in_single_precision_stay_in_the_sets_with_step_sizes_from_0_to_1(sets, steps, rule):
    sets = [s.of_radius(2.0) for s in sets]
    bodies = [[w] for w in parameters(*[(6, 4, 2)] * len(sets), dtype=torch.float32)]
    enter(bodies, sets)
    optimizer = SFW(bodies, sets, lr=0.05, rescaling=rule)
    drawn = randn(50, len(sets), 6, 4, 2, dtype=torch.float32)
    for k in range(steps):
        for i, (w,) in enumerate(bodies):
            w.grad = drawn[k % 50, i] + drawn[k % 7, i]
        before = optimizer.totals[:, 0].clone()
        optimizer.step()
        eta = optimizer.totals[:, 0] - before
        assert bool(((eta >= 0) & (eta <= 1 + 1e-12)).all())
        if k % 20 == 0 or k == steps - 1:
            for (w,), s in zip(bodies, sets, strict=True):
                assert float(s.gauge(w)) <= s.radius * (1 + 1e-5), f"{s} at step {k}"


@each_set
def test_an_unclipped_step_is_as_long_as_the_rule_says(constraint):
    for rule, low, high in ((GradientRescaling(), 1, 1), (FastGradientRescaling(), 0, 2)):
        (w,) = parameters((5, 6))
        s = constraint.of_radius(5.0)
        enter([[w]], [s])
        optimizer, lr = SFW([[w]], [s], lr=0.01, rescaling=rule), 0.01
        for k in range(20):
            before = w.detach().clone()
            w.grad = randn(5, 6, seed=k)
            optimizer.step()
            length = float((w.detach() - before).norm()) / (lr * float(optimizer.state[w]["m"].norm()))
            assert low - 1e-9 <= length <= high + 1e-9
        assert optimizer.totals[0, 1] == 0


def jumped(s: Any, gradients: Sequence[Tensor], warm: SFW | None = None) -> tuple[list[float], SFW, Tensor]:
    """The part of the best value that the vertices of a sequence of gradients reach: w jumps from one to the next."""
    w = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SFW([[w]], [s], lr=1.0, momentum=0.0, rescaling=NoRescaling())
    if warm is not None:
        optimizer.load_state_dict(warm.state_dict())
    reached = []
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
        reached.append(float(-(g * w.detach()).sum() / (s.radius * s.dual_norm(g))))
    return reached, optimizer, w.detach()


@pytest.mark.parametrize("constraint", INEXACT, ids=kind)
def test_one_round_follows_a_gradient_that_changes_slowly(constraint):
    gradients = [randn(24, 40) + 0.02 * randn(24, 40, seed=1 + k) for k in range(30)]
    reached, optimizer, _ = jumped(constraint, gradients)
    assert min(reached[15:]) >= 0.97
    assert max(reached) <= 1 + 1e-12
    cold = [jumped(constraint, [g])[0][0] for g in gradients[15:]]
    assert max(cold) < 0.9
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["basis"].shape[0] == 24


@pytest.mark.parametrize("constraint", INEXACT, ids=kind)
def test_the_bases_survive_a_checkpoint(constraint):
    gradients = [randn(24, 40) + 0.02 * randn(24, 40, seed=1 + k) for k in range(8)]
    whole, _, at_end = jumped(constraint, gradients)
    _, half, _ = jumped(constraint, gradients[:4])
    rest, _, end = jumped(constraint, gradients[4:], warm=half)
    assert rest == whole[4:]
    assert torch.equal(end, at_end)
    assert rest[0] > jumped(constraint, gradients[4:])[0][0]


# Convex quadratics: f(w) = ½ Σ a (w - c)², its gradient a (w - c), of Lipschitz constant max a.

STEPS = 150


def descend(s: Constraint, rule: Rescaling, rate: Callable[[int], float], steps: int = STEPS) -> list[dict[str, float]]:
    """f, its gap, the norm of the gradient and the distance to the vertex along deterministic Frank-Wolfe."""
    a, c = 0.5 + randn(4, 6).abs(), 2 * randn(4, 6, seed=1)
    (w,) = parameters((4, 6))
    enter([[w]], [s])
    optimizer, found = SFW([[w]], [s], momentum=0.0, rescaling=rule), []
    for k in range(steps):
        at = w.detach().clone()
        g = a * (at - c)
        v = vertex(s, [g])[0]
        found.append(
            {
                "f": float((a * (at - c) ** 2).sum()) / 2,
                "gap": float((g * (at - v)).sum()),
                "g": float(g.norm()),
                "distance": float((v - at).norm()),
                "lr": rate(k),
                "L": float(a.max()),
            }
        )
        w.grad, optimizer.param_groups[0]["lr"] = g, rate(k)
        optimizer.step()
    return found


@each_set
def test_the_gap_is_never_negative_and_vanishes(constraint):
    s = constraint.of_radius(1.5)
    for rule, rate in ((NoRescaling(), lambda k: 2 / (k + 2)), (GradientRescaling(), lambda k: 0.5 / (k + 2) ** 0.75)):
        gaps = [row["gap"] for row in descend(s, rule, rate)]
        assert min(gaps) >= -1e-9
        assert min(gaps[STEPS // 2 :]) < 0.02 * gaps[0]


@each_set
def test_a_step_of_the_gradients_length_decreases_by_the_gap_up_to_second_order(constraint):
    for lr in (0.3, 0.03):
        trace = descend(constraint.of_radius(5.0), GradientRescaling(), lambda k, lr=lr: lr, steps=40)
        for now, after in itertools.pairwise(trace):
            if now["lr"] * now["g"] > now["distance"]:
                continue  # clipped
            first = now["lr"] * now["g"] * now["gap"] / now["distance"]
            bound = now["f"] - first + now["L"] / 2 * (now["lr"] * now["g"]) ** 2
            assert after["f"] <= bound + 1e-12
            assert now["g"] * now["distance"] >= now["gap"] - 1e-12


# The solver.


def mlp_problem(computation: Computation | None = None, recipe: Any = none, **settings: Any) -> Problem:
    data = gaussian()
    found = problem(data, mlp(data, bias=True), recipe, **settings)
    return Problem(found.model, found.data, found.plan, computation=computation or Computation())


def all_in(s: Any, **settings: Any) -> Assignment:
    return Assignment(set=s, **settings)


def papers(s: Any, w: float, params: Any = "convolutions") -> Assignment:
    size = FromInitialisation(w=w)
    return Assignment(set=s, params=params, size=size, rest=Assignment(set=L2(), size=size))


def terms(solver: FrankWolfe, p: Problem, steps: int | None = None) -> list[dict[str, float]]:
    return [it.observation.terms for it in solver.run(p, solver.num_steps if steps is None else steps)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_full_batches_are_the_papers_update_with_a_rate_that_follows_the_schedule():
    p = mlp_problem()
    solver = FrankWolfe(
        constraint=all_in(KSupport(k=0.2), size=Diameter(value=8.0)), num_steps=5, lr=0.3, batch_size=200,
        dampening=0.4, schedule=Linear(end=0.2),
    )  # fmt: skip
    *_, last = solver.run(p, 5)
    model = copy.deepcopy(p.model)
    own = list(model.parameters())
    sets = [KSupport(k=0.2, radius=4.0)] * len(own)
    settings = {"momentum": 0.9, "dampening": 0.4, "rescaling": GradientRescaling()}
    enter([[w] for w in own], sets)
    reference = Reference([[w] for w in own], sets, lr=0.3, **settings)
    for k in range(5):
        gradients = torch.autograd.grad(p.loss(model(p.data.train.x), p.data.train.y), own)
        reference.lr = 0.3 * (1 - 0.8 * k / 5)
        reference.step([[g] for g in gradients])
        with torch.no_grad():
            for w, (expected,) in zip(own, reference.w, strict=True):
                w.copy_(expected)
    for w, expected in zip(last.observation.model.parameters(), own, strict=True):
        torch.testing.assert_close(w.detach(), expected.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), MultiStep((0.5,), 0.1), Constant()], ids=kind)
def test_the_schedule_is_followed_within_the_epochs(schedule, monkeypatch):
    rates, step = [], SFW.step

    def spy(self, closure=None):
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(SFW, "step", spy)
    solver = FrankWolfe(constraint=all_in(L2()), num_steps=4, lr=0.2, batch_size=50, schedule=schedule)
    terms(solver, mlp_problem())  # 120 samples: 3 batches
    assert rates == pytest.approx([0.2 * schedule.factor(k / 3, 4) for k in range(12)], rel=1e-12)


@pytest.mark.parametrize("joint", [False, True])
def test_records_hold_the_objective_the_gap_the_step_sizes_and_the_gauges(joint):
    p = mlp_problem()
    rules = Assignment(set=KSupport(k=0.2), params="weights", joint=joint)
    first, *others = terms(FrankWolfe(constraint=rules, num_steps=4, batch_size=16), p)
    name = next(key for key in first if key.startswith("gauge/")).removeprefix("gauge/")
    assert joint or name == "fc1.weight"
    assert first.keys() >= {"objective", "epochs", "fw_gap", "gauge", f"gauge/{name}"}
    assert not any(key.startswith("eta") for key in first)
    for row in others:
        assert row.keys() >= first.keys() | {"eta", "eta/clipped", f"eta/{name}", "step_sq", "step_sq/sum"}
        assert len([key for key in row if key.startswith("gauge/")]) == (1 if joint else 3)
        assert row["fw_gap"] >= 0
        assert row["gauge"] == max(value for key, value in row.items() if key.startswith("gauge/")) <= 1 + 1e-9
        etas = [value for key, value in row.items() if key.startswith("eta/") and key != "eta/clipped"]
        assert row["eta"] == pytest.approx(sum(etas) / len(etas), rel=1e-6)
        assert 0 < row["eta"] < 1
        assert 0 <= row["eta/clipped"] <= 1


def test_every_set_has_its_own_figures():
    rest = Assignment(set=L2(), joint=True)
    rules = Assignment(set=KSupport(k=0.2), params="weights", joint=True, rest=rest)
    *_, row = terms(FrankWolfe(constraint=rules, num_steps=1), mlp_problem())
    assert len([key for key in row if key.startswith("gauge/")]) == 2
    assert len([key for key in row if key.startswith("eta/") and key != "eta/clipped"]) == 2


@pytest.mark.parametrize("constraint", [L2(), KSupport(k=0.2), SpectralKSupport(k=0.2), Nuclear()], ids=kind)
def test_the_gap_recorded_is_that_of_samples_drawn_once(constraint):
    p = mlp_problem()
    rules = Assignment(set=constraint, params="weights", size=Diameter(value=6.0))
    whole = p.data.train
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:50]
    for samples, batch in ((0, whole), (50, Split(whole.x[drawn], whole.y[drawn])), (500, whole)):
        *_, last = FrankWolfe(constraint=rules, num_steps=2, gap_samples=samples).run(p, 2)
        model = last.observation.model
        held = [w for w in model.parameters() if w.dim() >= 2]
        gradients = torch.autograd.grad(p.loss(model(batch.x), batch.y), held)
        vertices = [vertex(constraint.of_radius(3.0), [g])[0] for g in gradients]
        gap = sum(float((g * (w.detach() - v)).sum()) for g, w, v in zip(gradients, held, vertices, strict=True))
        assert last.observation.terms["fw_gap"] == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("s", [SpectralKSupport(k=0.3), SpectralKSparse(k=0.3), Nuclear()], ids=kind)
def test_the_gap_recorded_does_not_depend_on_how_the_vertices_were_found(s):
    """It measures the network; a vertex that is not the best one would make it too small, or negative."""
    p = mlp_problem()
    gaps = [
        terms(FrankWolfe(constraint=Assignment(set=kind, params="weights"), num_steps=1), p, steps=0)[0]["fw_gap"]
        for kind in (s, type(s)(**({} if isinstance(s, Nuclear) else {"k": 0.3}), rounds=1))
    ]
    assert gaps[1] == pytest.approx(gaps[0], rel=1e-6)


SOLVERS = [
    FrankWolfe(
        constraint=all_in(KSupport(k=0.2)), num_steps=14, batch_size=40, feedback=LossFeedback(start=0, every=1)
    ),
    FrankWolfe(
        constraint=papers(SpectralKSupport(k=0.3, rounds=1), 5.0, "weights"), num_steps=14, batch_size=40, delay=0.5,
        dampening=0.9, rescaling=FastGradientRescaling(), mixup=0.2, label_smoothing=0.1,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("solver", "at"), [(SOLVERS[0], 12), (SOLVERS[1], 5)], ids=["feedback", "delay"])
def test_a_restored_state_continues_bit_for_bit(solver, at, tmp_path):
    """Momenta, bases, losses and the factor included; the sets change behind epoch 7, the factor behind epoch 10."""
    p = mlp_problem()
    whole = list(solver.run(p, 14))
    *_, half = solver.run(p, at)
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"state": checkpoint.pack(half.state)})
    state = checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path)
    rest = list(solver.run(p, 14, state=state))
    assert [it.observation.terms for it in rest] == [it.observation.terms for it in whole[at + 1 :]]
    ends = [iterates[-1].state for iterates in (whole, rest)]
    packed = [checkpoint.pack(end) for end in ends]
    assert_same(*packed)
    assert solver.feedback is None or ends[0].factor != 1


def test_a_restored_state_observes_the_same():
    p, solver = mlp_problem(), SOLVERS[0]
    *_, last = solver.run(p, 2)
    state = checkpoint.unpack(solver.init(p), checkpoint.pack(last.state))
    assert solver.observe(p, state).terms == last.observation.terms


def assert_same(one: Any, two: Any) -> None:
    """Two packed states, bit for bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def test_the_start_is_scaled_into_small_sets_and_left_alone_in_large_ones():
    p = mlp_problem()
    before = weights(p.model)
    tiny = FrankWolfe(constraint=all_in(KSupport(k=0.2), size=FromInitialisation(w=0.1)))
    observed = tiny.observe(p, tiny.init(p))
    for name, w in weights(observed.model).items():
        assert observed.terms[f"gauge/{name}"] == pytest.approx(1, rel=1e-9)
        torch.testing.assert_close(w / w.norm(), before[name] / before[name].norm(), rtol=1e-12, atol=1e-14)
    large = FrankWolfe(constraint=all_in(KSupport(k=0.2), size=FromInitialisation(w=100.0)))
    assert all(torch.equal(w, before[name]) for name, w in weights(large.init(p).model).items())
    assert all(torch.equal(w, before[name]) for name, w in weights(p.model).items())


@pytest.mark.parametrize("sets", [KSparse, KSupport])
def test_during_the_delay_k_is_full_and_then_that_of_the_sets_at_the_same_diameter(sets, monkeypatch):
    seen, constrain = [], SFW.constrain

    def spy(self, constraints):
        seen.append(constraints[0])
        constrain(self, constraints)

    monkeypatch.setattr(SFW, "constrain", spy)
    p = mlp_problem()
    rules = Assignment(set=sets(k=0.1), params=["fc2.weight"], size=FromInitialisation(w=1.1))
    solver = FrankWolfe(constraint=rules, num_steps=4, lr=1e-9, delay=0.5)
    iterates = list(solver.run(p, 4))
    shape = p.model.fc2.weight.shape
    expected = 2 * 1.1 * initial_norms(p.model)["fc2.weight"]
    assert [s.k for s in seen] == [1.0, 1.0, 1.0, 0.1, 0.1]  # the first is that of the start
    assert [s.diameter(shape) for s in seen] == pytest.approx([expected] * 5, rel=1e-12)
    gauges = [float(seen[-1].gauge(it.observation.model.fc2.weight.detach())) / seen[-1].radius for it in iterates]
    assert gauges[0] > 1.5
    assert gauges[3:] == pytest.approx([1, 1], rel=1e-6)
    moved = [it.observation.model.fc2.weight.detach() for it in iterates]
    torch.testing.assert_close(moved[3] / moved[3].norm(), moved[0] / moved[0].norm(), rtol=1e-6, atol=1e-8)


# What is clipped always is told once.

JUMPING = FrankWolfe(constraint=all_in(L2(), size=FromInitialisation(w=0.01)), num_steps=3, lr=1e9)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_step_sizes_that_are_always_clipped_are_told_once_with_the_remedy(caplog):
    p = mlp_problem()
    *_, last = JUMPING.run(p, 3)
    (told,) = warnings(caplog)
    assert "every minibatch of epoch 1 for fc1.weight, fc1.bias, fc2.weight and 3 more" in told
    assert "smaller solver.lr or a larger constraint.size.w" in told
    assert last.observation.terms["eta/clipped"] == 1
    assert list(JUMPING.run(p, 4, state=last.state))
    assert len(warnings(caplog)) == 1


def test_other_step_sizes_are_not_spoken_of(caplog):
    assert terms(FrankWolfe(constraint=all_in(KSupport(k=0.2)), num_steps=3), mlp_problem())[-1]["eta/clipped"] == 0
    assert warnings(caplog) == []


# The factor that follows the loss.


@pytest.mark.parametrize(
    ("epochs", "losses", "factor"),
    [
        (20, [2.0] * 5 + [1.0] * 5, 1.06),
        (20, [1.0] * 5 + [2.0] * 5, 0.7),
        (20, [1.0] * 10, 1.0),
        (25, [1.0] * 9 + [1.1], 0.7),
        (21, [1.0] * 5 + [2.0] * 5, 1.0),
        (15, [1.0] * 5 + [2.0] * 5, 1.0),
    ],
)
def test_the_feedback_compares_the_last_5_losses_with_the_last_10(epochs, losses, factor):
    assert LossFeedback().change(epochs, torch.tensor(losses)) == factor


def test_the_feedback_multiplies_the_learning_rate_of_the_epochs_behind_it(monkeypatch):
    rates, step = [], SFW.step

    def spy(self, closure=None):
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(SFW, "step", spy)
    feedback = LossFeedback(start=10, every=2, fall=0.5, rise=1.25)
    solver = FrankWolfe(
        constraint=all_in(L2()), num_steps=16, lr=0.1, batch_size=200, schedule=Constant(), feedback=feedback
    )
    iterates = list(solver.run(mlp_problem(), 16))
    states, factor = [it.state for it in iterates], 1.0
    objectives = [it.observation.terms["objective"] for it in iterates]  # before each epoch, which is one step
    assert states[-1].losses.tolist() == pytest.approx(objectives[-11:-1], rel=1e-5)
    for k, (rate, state) in enumerate(zip(rates, states[1:], strict=True), 1):
        assert rate == pytest.approx(0.1 * factor, rel=1e-6)
        if k >= 10 and k % 2 == 0:
            factor *= 0.5 if state.losses[-5:].mean() > state.losses.mean() else 1.25
    assert factor != 1


@pytest.mark.parametrize("wrong", [{"start": -1}, {"every": 0}, {"fall": 0.0}, {"rise": -1.0}])
def test_a_feedback_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="every at least 1, fall and rise positive, found"):
        LossFeedback(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"constraint": None}, "constraint must say which parameters lie in which set, found None; choose one with"),
        ({"constraint": L2()}, "constraint must say which parameters lie in which set, found L2"),
        ({"lr": 1.01, "rescaling": NoRescaling()}, "lr must be at most 1 with NoRescaling, found 1.01"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, found 1.0"),
        ({"momentum": math.nan}, "momentum must be"),
        ({"dampening": -0.1}, "dampening must be at least 0 and below 1, found -0.1"),
        ({"delay": 1.0}, "delay must be at least 0 and below 1, found 1.0"),
        ({"gap_samples": -1}, "gap_samples must be at least 0, found -1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"mixup": -1.0}, "mixup must be"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        FrankWolfe(**{"constraint": all_in(L2()), **wrong})
    FrankWolfe(constraint=all_in(L2()), lr=1.0, rescaling=NoRescaling())


def test_bfloat16_computes_nearly_the_same():
    data = small_digits(100, torch.float32)
    losses = []
    for half in (False, True):
        p = Problem(mlp(data, widths=(32,), bias=True), data, none({}), computation=Computation(half=half))
        rows = terms(FrankWolfe(constraint=all_in(KSupport(k=0.3)), num_steps=6, lr=0.5, batch_size=25), p)
        assert rows[-1]["gauge"] <= 1 + 1e-5
        losses.append(rows[-1]["objective"])
        assert rows[-1]["objective"] < rows[0]["objective"] / 2
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] != losses[0]


def small_vgg(data: Any) -> nn.Module:
    torch.manual_seed(0)
    return VGG(data.input_shape, data.num_classes, layers=[1, 1], width=0.3, initial_scale=1.0).to(data.train.x.dtype)


def test_filters_can_be_pruned_away_with_less_loss_than_after_sgd_with_weight_decay():
    data = small_digits(600, torch.float32)
    p = problem(data, small_vgg(data))
    decay = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
    solvers = [
        SGD(num_steps=15, lr=0.1, batch_size=50, optimizer=decay),
        FrankWolfe(constraint=papers(GroupKSupport(k=0.1), 10.0), num_steps=15, lr=0.3, batch_size=50),
    ]
    models = [[*solver.run(p, 15, every=15)][-1].observation.model for solver in solvers]
    accuracies = [evaluate(model, data.test, p.loss).accuracy for model in models]
    assert abs(accuracies[1] - accuracies[0]) <= 0.03
    assert min(accuracies) > 0.9
    (half, most), (half_fw, most_fw) = (Filters(shifts=False).distances(model, [0.5, 0.9]) for model in models)
    assert most_fw < most - 0.1
    assert half_fw < half - 0.2


def test_a_joint_set_of_filters_of_several_sizes_trains():
    data = small_digits(300, torch.float32)
    together = Assignment(set=GroupKSupport(k=0.2), params="convolutions", joint=True, rest=Assignment(set=L2()))
    found = terms(FrankWolfe(constraint=together, num_steps=8, lr=0.3, batch_size=30), problem(data, small_vgg(data)))
    assert found[-1]["objective"] < found[0]["objective"] / 2


# From the command line.

WORDS = ["solver=frank_wolfe", "model.widths=[32]", "dataset.train_size=300", "solver.batch_size=32"]
NET = [
    "model=vgg16",
    "model.layers=[1,1]",
    "model.width=0.1",
    "dataset=digits",
    "dataset.train_size=60",
    "dataset.test_size=40",
]


@pytest.mark.usefixtures("apart")
def test_a_run_from_the_command_line_learns_digits_and_goes_on_after_a_break_to_the_same_records(tmp_path):
    words = [*WORDS, "compression=l0", "compression.keep=0.5", "solver.lr=0.3", "solver.num_steps=10"]
    assert train(tmp_path / "whole", *words) == 0
    assert summary(tmp_path / "whole")["accuracy/dense_test"] > 0.85
    found = rows(tmp_path / "whole")
    assert found[-1].keys() >= {"fw_gap", "eta", "eta/clipped", "gauge", "gauge/fc1.weight", "eta/fc1.weight"}
    with struck(FrankWolfe, 4):
        assert train(tmp_path / "broken", *words) == 130
    assert main(["train", f"resume={tmp_path / 'broken'}"]) == 0
    assert rows(tmp_path / "broken") == found
    assert summary(tmp_path / "broken") == summary(tmp_path / "whole")


@pytest.mark.usefixtures("apart")
def test_an_unknown_constraint_is_told_with_those_there_are(tmp_path, capsys):
    assert train(tmp_path / "run", "solver=frank_wolfe", "constraint=nothing") == 2
    assert "constraint=nothing: no such option; there are group_k_support, k_sparse" in capsys.readouterr().err


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "constraint").glob("*.yaml")))
def test_every_option_of_the_constraints_trains(option, tmp_path):
    words = ["solver=frank_wolfe", f"constraint={option}", "compression=none", *NET, "solver.num_steps=1"]
    assert train(tmp_path / "run", *words) == 0
    found = rows(tmp_path / "run")
    assert found[-1]["gauge"] <= 1 + 1e-5
    assert all(row["fw_gap"] >= 0 for row in found)
    assert len([key for key in found[-1] if key.startswith("gauge/")]) == 8


@pytest.mark.usefixtures("apart")
def test_one_network_is_compressed_at_many_parts_behind_the_training(tmp_path):
    words = ["solver=frank_wolfe", "constraint=group_k_support", *NET, "solver.num_steps=2", "compress_at=[0.5,0.8]"]
    assert train(tmp_path / "run", *words) == 0
    found = summary(tmp_path / "run")["one_shot"]
    assert {row["part"] for row in found} >= {0.5, 0.8}
    assert {row["method"] for row in found} == {"filters_masked", "filters", "weights", "low_rank"}


@pytest.mark.usefixtures("apart")
def test_a_run_that_goes_on_for_longer_enters_the_sets_of_its_new_course(tmp_path):
    words = ["solver=frank_wolfe", "constraint=k_sparse", "constraint.set.k=0.01", "constraint.size.w=3", "solver.lr=1"]
    assert train(tmp_path / "run", *words, "solver.delay=0.5", "solver.num_steps=4", "model.widths=[16,12]") == 0
    assert main(["train", f"resume={tmp_path / 'run'}", "solver.num_steps=12"]) == 0
    assert max(row["gauge"] for row in rows(tmp_path / "run")) <= 1 + 1e-4


@pytest.mark.usefixtures("apart")
def test_the_parts_of_a_finished_run_can_be_asked_for_later(tmp_path):
    words = ["solver=frank_wolfe", "solver.num_steps=1", "model.widths=[16,12]"]
    assert train(tmp_path / "run", *words) == 0
    assert "one_shot" not in summary(tmp_path / "run")
    assert main(["train", f"resume={tmp_path / 'run'}", "compress_at=[0.5]"]) == 0
    assert [row["part"] for row in summary(tmp_path / "run")["one_shot"]] == [0, 0.5]


@pytest.mark.usefixtures("apart")
def test_another_class_inside_a_node_drops_the_keys_it_does_not_take(tmp_path):
    size = "nncompress.constraints.size.Radius"
    words = [f"constraint.size._target_={size}", "+constraint.size.value=50", "model.widths=[16,12]"]
    assert train(tmp_path / "run", "solver=frank_wolfe", "solver.num_steps=1", *words) == 0
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "value: 50" in saved
    assert "w: 30" not in saved


@pytest.mark.parametrize("rescaling", [NoRescaling(), DiameterRescaling(), GradientRescaling()])
def test_what_the_loss_does_not_depend_on_stays_as_it_is(rescaling):
    used, unused = parameters((3, 4), (3, 4))
    before = unused.detach().clone()
    optimizer = SFW([[used], [unused]], [L2(radius=50.0)] * 2, lr=0.5, rescaling=rescaling)
    for k in range(3):
        used.grad = randn(3, 4, seed=k)
        optimizer.step()
    assert torch.equal(unused, before)


def test_a_network_without_a_trainable_parameter_is_refused():
    network = mlp(small_digits()).requires_grad_(False)
    with pytest.raises(Unsupported, match="a trainable parameter is needed, found none"):
        FrankWolfe(constraint=Assignment(set=L2())).init(problem(small_digits(), network))


def test_a_delay_without_a_k_is_refused():
    solver = FrankWolfe(constraint=Assignment(set=L2()), delay=0.5)
    with pytest.raises(ConfigError, match=r"solver\.delay needs a set with a k below 1"):
        solver.init(problem(small_digits(), mlp(small_digits())))


def test_fractions_of_epochs_are_those_of_exact_numbers():
    sets = Assignment(set=KSupport(k=0.5))
    assert FrankWolfe(constraint=sets, num_steps=90, delay=0.7)._delayed() == 63  # in floats 62.99...
    assert FrankWolfe(constraint=sets, num_steps=100, delay=0.29)._delayed() == 29
    drops = MultiStep((0.14, 0.28), 0.1)
    assert [drops.factor(step, 50) for step in (6, 7, 13, 14)] == pytest.approx([1, 0.1, 0.1, 0.01])
