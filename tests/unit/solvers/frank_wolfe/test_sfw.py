"""Stochastic Frank-Wolfe, the optimiser: the paper's update, its invariants, what it starts from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import case
from frank_wolfe_cases import INEXACT, RULES, SETS, Reference, enter, parameters, vertex
from problems import F64, randn
from torch import Tensor, nn

from nncompress.constraints.base import Constraint
from nncompress.constraints.k_support import GroupKSupport, KSupport
from nncompress.constraints.lp import L2
from nncompress.constraints.spectral import Spectral, SpectralKSupport
from nncompress.solvers.frank_wolfe import sfw
from nncompress.solvers.frank_wolfe.sfw import (
    SFW,
    DiameterRescaling,
    FastGradientRescaling,
    GradientRescaling,
    NoRescaling,
    Rescaling,
)

STEPS = 60


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


def test_the_optimiser_is_the_papers_update(monkeypatch):
    """Three tensors of one shape in sets of three sizes, one of another shape, one in another set, one in none."""
    monkeypatch.setattr(sfw, "SMALL", 30)  # the one of 35 entries is treated by itself
    for constraint, rule in itertools.product(SETS, RULES):
        with case(constraint=constraint, rule=rule):
            bodies = [[w] for w in parameters((4, 3, 2), (4, 3, 2), (5, 7), (4, 3, 2), (6,), (4, 3, 2))]
            kinds = [constraint.of_radius(radius) for radius in (0.1, 3.0, 2.0, 0.4)]
            settings = {"lr": 0.15, "momentum": 0.9, "dampening": 0.3, "rescaling": rule}
            held = drive(bodies, [*kinds, L2(radius=1.5), None], 6, **settings)[:, :5]
            assert ((held > 0) & (held < 1)).any()
            if isinstance(rule, GradientRescaling | FastGradientRescaling):
                assert (held > 1).any()  # some are clipped


def test_tensors_together_are_one_vector_or_the_filters_of_all_of_them():
    together = [s for s in SETS if not isinstance(s, Spectral)]
    for constraint, rule in itertools.product(together, RULES):
        with case(constraint=constraint, rule=rule):
            shapes = [((4, 3, 2), (5, 7)), ((4, 3, 2), (5, 7)), ((3, 2, 2), (3, 5))]
            bodies = [parameters(*pair, seed=seed) for pair, seed in zip(shapes, (0, 5, 0), strict=True)]
            sets = [constraint.of_radius(2.0), constraint.of_radius(3.0), constraint.of_radius(3.0)]
            etas = drive(bodies, sets, 5, lr=0.1, momentum=0.9, dampening=0.0, rescaling=rule)
            assert etas.shape == (5, 3)
            assert (etas > 0).all()


def test_momentum_and_dampening_are_those_of_sgd():
    """A free tensor is moved as by torch.optim.SGD; one in a set moves by lr times the norm of the same momentum."""
    for momentum, dampening in ((0.0, 0.0), (0.9, 0.0), (0.9, 0.9), (0.5, 0.2)):
        free, held, same = parameters((4, 3), (4, 3), (4, 3))
        with torch.no_grad():
            same.copy_(free)
        big = L2(radius=1e3)
        optimizer = SFW([[free], [held]], [None, big], lr=0.1, momentum=momentum, dampening=dampening)
        sgd = torch.optim.SGD([same], lr=0.1, momentum=momentum, dampening=dampening)
        for k in range(5):
            with case(momentum=momentum, dampening=dampening, k=k):
                before, old = held.detach().clone(), same.detach().clone()
                free.grad, held.grad, same.grad = (randn(4, 3, seed=k) for _ in range(3))
                optimizer.step()
                sgd.step()
                torch.testing.assert_close(free, same, rtol=1e-12, atol=1e-14)
                moved, length = (held - before).detach().norm(), (same - old).detach().norm()
                assert float(moved) == pytest.approx(float(length), rel=1e-9)


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


def test_what_the_loss_does_not_depend_on_stays_as_it_is():
    for rescaling in (NoRescaling(), DiameterRescaling(), GradientRescaling()):
        with case(rescaling=rescaling):
            used, unused = parameters((3, 4), (3, 4))
            before = unused.detach().clone()
            optimizer = SFW([[used], [unused]], [L2(radius=50.0)] * 2, lr=0.5, rescaling=rescaling)
            for k in range(3):
                used.grad = randn(3, 4, seed=k)
                optimizer.step()
            assert torch.equal(unused, before)


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


@pytest.mark.parametrize(
    ("sets", "steps", "rule"),
    [
        ([KSupport(k=0.3), GroupKSupport(k=0.5), SpectralKSupport(k=0.3, rounds=1)], 200, GradientRescaling()),
        ([*SETS, *INEXACT], 41, GradientRescaling()),
        ([*SETS, *INEXACT], 41, FastGradientRescaling()),
    ],
    ids=["200-gradient", "41-gradient", "41-fast"],
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
                with case(s=s, k=k):
                    assert float(s.gauge(w)) <= s.radius * (1 + 1e-5)


def test_an_unclipped_step_is_as_long_as_the_rule_says():
    rules = ((GradientRescaling(), 1, 1), (FastGradientRescaling(), 0, 2))
    for constraint, (rule, low, high) in itertools.product(SETS, rules):
        (w,) = parameters((5, 6))
        s = constraint.of_radius(5.0)
        enter([[w]], [s])
        optimizer, lr = SFW([[w]], [s], lr=0.01, rescaling=rule), 0.01
        for k in range(20):
            with case(s=s, rule=rule, k=k):
                before = w.detach().clone()
                w.grad = randn(5, 6, seed=k)
                optimizer.step()
                length = float((w.detach() - before).norm()) / (lr * float(optimizer.state[w]["m"].norm()))
                assert low - 1e-9 <= length <= high + 1e-9
                assert optimizer.totals[0, 1] == 0


# The singular vectors found last.


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


def test_one_round_follows_a_gradient_that_changes_slowly():
    gradients = [randn(24, 40) + 0.02 * randn(24, 40, seed=1 + k) for k in range(30)]
    for constraint in INEXACT:
        with case(constraint=constraint):
            reached, optimizer, _ = jumped(constraint, gradients)
            assert min(reached[15:]) >= 0.97
            assert max(reached) <= 1 + 1e-12
            cold = [jumped(constraint, [g])[0][0] for g in gradients[15:]]
            assert max(cold) < 0.9
            assert optimizer.state[optimizer.param_groups[0]["params"][0]]["basis"].shape[0] == 24


def test_the_bases_survive_a_checkpoint():
    gradients = [randn(24, 40) + 0.02 * randn(24, 40, seed=1 + k) for k in range(8)]
    for constraint in INEXACT:
        with case(constraint=constraint):
            whole, _, at_end = jumped(constraint, gradients)
            _, half, _ = jumped(constraint, gradients[:4])
            rest, _, end = jumped(constraint, gradients[4:], warm=half)
            assert rest == whole[4:]
            assert torch.equal(end, at_end)
            assert rest[0] > jumped(constraint, gradients[4:])[0][0]


# Convex quadratics: f(w) = ½ Σ a (w - c)², its gradient a (w - c), of Lipschitz constant max a.


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


def test_the_gap_is_never_negative_and_vanishes():
    rates = ((NoRescaling(), lambda k: 2 / (k + 2)), (GradientRescaling(), lambda k: 0.5 / (k + 2) ** 0.75))
    for constraint, (rule, rate) in itertools.product(SETS, rates):
        with case(constraint=constraint, rule=rule):
            gaps = [row["gap"] for row in descend(constraint.of_radius(1.5), rule, rate)]
            assert min(gaps) >= -1e-9
            assert min(gaps[STEPS // 2 :]) < 0.01 * gaps[0]


def test_a_step_of_the_gradients_length_decreases_by_the_gap_up_to_second_order():
    for constraint, lr in itertools.product(SETS, (0.3, 0.03)):
        trace = descend(constraint.of_radius(5.0), GradientRescaling(), lambda k, lr=lr: lr, steps=25)
        unclipped = [pair for pair in itertools.pairwise(trace) if lr * pair[0]["g"] <= pair[0]["distance"]]
        with case(constraint=constraint, lr=lr):
            assert unclipped
            for now, after in unclipped:
                first = now["lr"] * now["g"] * now["gap"] / now["distance"]
                bound = now["f"] - first + now["L"] / 2 * (now["lr"] * now["g"]) ** 2
                assert after["f"] <= bound + 1e-12
                assert now["g"] * now["distance"] >= now["gap"] - 1e-12
