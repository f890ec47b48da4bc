"""The contract of every constraint set, and the numbers of each.

The tests have gauges of their own (`Case.gauge`), written from the definitions and not from the package.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from problems import F64, randn
from torch import Tensor

from nncompress.constraints.base import Constraint
from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport
from nncompress.errors import ConfigError, Unsupported

TAU = 1.5
VECTOR, MATRIX, CONV, TALL = (9,), (4, 6), (5, 2, 2, 2), (7, 3)
Shape = tuple[int, ...]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def entries(x: Tensor) -> Tensor:
    """(samples, *shape) -> the absolute values of the entries, (samples, n)."""
    return x.flatten(1).abs()


def groups(x: Tensor) -> Tensor:
    """(samples, *shape) -> the l2 norms of the groups, (samples, shape[0])."""
    return x.flatten(2).norm(dim=2)


def singular_values(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.flatten(2))


def shares(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The a and the multiplier of min {sum z²/a : 0 < a <= 1, sum a <= k}: a = min(1, z/lam), by bisection on lam."""
    low, high = torch.zeros_like(z[:, :1]), (z.sum(1, keepdim=True) / k).clamp(1e-200)
    for _ in range(70):
        lam = (low + high) / 2
        over = (z / lam).clamp(max=1).sum(1, keepdim=True) > k
        low, high = torch.where(over, lam, low), torch.where(over, high, lam)
    return (z / high).clamp(1e-300, 1), high


def k_support_norm(z: Tensor, k: int) -> Tensor:
    a, _ = shares(z.detach(), k)
    return (z**2 / a).sum(1).sqrt()


def k_sparse_norm(z: Tensor, k: int) -> Tensor:
    return torch.maximum(z.amax(1), z.sum(1) / k)


class Case(NamedTuple):
    """A set, a shape, what the set sees of a tensor, and the norm of what it sees."""

    constraint: Any
    shape: Shape
    seen: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]

    def gauge(self, x: Tensor) -> Tensor:
        return self.norm(self.seen(x))


def cases() -> list[Any]:
    vector_sets = [
        (L1(radius=TAU), lambda z: z.sum(1)),
        (L2(radius=TAU), lambda z: z.norm(dim=1)),
        (Lp(p=1.5, radius=TAU), lambda z: (z**1.5).sum(1) ** (1 / 1.5)),
        (Lp(p=3, radius=TAU), lambda z: (z**3).sum(1) ** (1 / 3)),
        (Linf(radius=TAU), lambda z: z.amax(1)),
        (KSparse(k=3, radius=TAU), lambda z: k_sparse_norm(z, 3)),
        (KSparse(k=7, radius=TAU), lambda z: k_sparse_norm(z, 7)),
        (KSupport(k=3, radius=TAU), lambda z: k_support_norm(z, 3)),
        (KSupport(k=7, radius=TAU), lambda z: k_support_norm(z, 7)),
    ]
    group_sets = [(GroupKSupport(k=k, radius=TAU), lambda z, k=k: k_support_norm(z, k)) for k in (2, 3)]
    spectral_sets = [
        (Nuclear(radius=TAU), lambda z: z.sum(1)),
        (SpectralKSupport(k=2, radius=TAU), lambda z: k_support_norm(z, 2)),
        (SpectralKSparse(k=2, radius=TAU), lambda z: k_sparse_norm(z, 2)),
    ]
    found = [Case(s, shape, entries, norm) for s, norm in vector_sets for shape in (VECTOR, CONV)]
    found += [Case(s, shape, groups, norm) for s, norm in group_sets for shape in (MATRIX, CONV)]
    found += [Case(s, shape, singular_values, norm) for s, norm in spectral_sets for shape in (MATRIX, CONV, TALL)]
    return [pytest.param(case, id=f"{named(case.constraint)}-{'x'.join(map(str, case.shape))}") for case in found]


def named(s: Constraint) -> str:
    extra = [f"{getattr(s, name):g}" for name in ("p", "k") if hasattr(s, name)]
    return "-".join([type(s).__name__, *extra])


def of_kind(*seen: Callable[[Tensor], Tensor]) -> list[Any]:
    return [param for param in CASES if param.values[0].seen in seen]


CASES = cases()
every = pytest.mark.parametrize("case", CASES)


def dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


@cache
def directions(shape: Shape) -> Tensor:
    """20 000 of them: dense, sparse, signs, with few groups, of low rank, and close to -g."""
    rows, columns = shape[0], math.prod(shape[1:])
    uniform = torch.Generator().manual_seed(1)

    def share(m: int, n: int) -> Tensor:
        """Rows of 0 and 1 with every density."""
        return (torch.rand(m, n, generator=uniform) < torch.rand(m, 1, generator=uniform)).to(F64)

    dense = randn(4000, rows, columns, seed=2)
    sparse = randn(4000, rows, columns, seed=3) * share(4000, rows * columns).view(4000, rows, columns)
    signs = randn(4000, rows, columns, seed=4).sign() * share(4000, rows * columns).view(4000, rows, columns)
    few_groups = randn(2000, rows, columns, seed=5) * share(2000, rows)[:, :, None]
    rank = min(rows, columns)
    low_rank = (randn(2000, rows, rank, seed=6) * share(2000, rank)[:, None]) @ randn(2000, rank, columns, seed=7)
    close = randn(4000, rows, columns, seed=8) * share(4000, 1)[:, :, None] * 0.5 - randn(*shape).view(rows, columns)
    return torch.cat([dense, sparse, signs, few_groups, low_rank, close]).view(-1, *shape)


@cache
def seen_of_directions(seen: Callable[[Tensor], Tensor], shape: Shape) -> Tensor:
    return seen(directions(shape))


@cache
def gauges_of_directions(case: Case) -> Tensor:
    return case.norm(seen_of_directions(case.seen, case.shape))


# The contract of every set.


@every
def test_the_lmo_has_the_shape_dtype_and_device_of_g(case):
    for g in (randn(*case.shape), randn(*case.shape, dtype=torch.float32)):
        for v in (case.constraint.lmo(g), case.constraint.feasible(g), *case.constraint.lmo_many([g, g])):
            assert (v.shape, v.dtype, v.device) == (g.shape, g.dtype, g.device)


@every
def test_oracles_leave_their_input_as_it_is_and_track_no_gradient(case):
    s, g = case.constraint, randn(*case.shape).requires_grad_()
    before = g.detach().clone()
    for result in (s.lmo(g), s.gauge(g), s.dual_norm(g), s.feasible(g), *s.lmo_many([g])):
        assert not result.requires_grad
    assert torch.equal(g.detach(), before)
    v = s.lmo(before)
    expected = v.clone()
    before.zero_()
    assert torch.equal(v, expected)


@every
def test_gauge_and_dual_norm_are_tensors_without_dimensions_and_the_diameter_is_a_float(case):
    s, g = case.constraint, randn(*case.shape)
    assert s.gauge(g).shape == s.dual_norm(g).shape == ()
    assert type(s.diameter(case.shape)) is float


@every
def test_the_gauge_is_that_of_the_definition_whatever_the_radius(case):
    points = directions(case.shape)[::400]
    for point, expected in zip(points, case.gauge(points), strict=True):
        assert float(case.constraint.gauge(point)) == pytest.approx(float(expected), abs=1e-10)
        assert float(dataclasses.replace(case.constraint, radius=9.0).gauge(point)) == pytest.approx(float(expected))


@every
def test_the_lmo_lies_on_the_boundary(case):
    for seed in range(5):
        v = case.constraint.lmo(randn(*case.shape, seed=seed))
        assert float(case.gauge(v[None])) == pytest.approx(TAU, abs=1e-10)
        assert float(case.constraint.gauge(v)) == pytest.approx(TAU, abs=1e-10)


@every
def test_the_lmo_has_the_value_of_the_dual_norm(case):
    for seed in range(5):
        g = randn(*case.shape, seed=seed)
        expected = -TAU * float(case.constraint.dual_norm(g))
        assert dot(g, case.constraint.lmo(g)) == pytest.approx(expected, abs=1e-10)


@every
def test_no_feasible_point_is_better_than_the_lmo(case):
    g = randn(*case.shape)
    best = case.constraint.lmo(g)
    near = best + 0.1 * randn(500, *case.shape, seed=9)
    points = torch.cat([directions(case.shape), near])
    gauges = torch.cat([gauges_of_directions(case), case.gauge(near)])
    values = points.flatten(1) @ g.flatten()  # of a point x; the feasible point is TAU x / gauge(x)
    assert len(points) == 20_500
    assert float((TAU * values - dot(g, best) * gauges).min()) > -1e-9


@every
def test_the_gauge_is_attained_on_the_dual_ball_and_nowhere_exceeded(case):
    s = case.constraint
    for seed in range(3):
        x = randn(*case.shape, seed=seed).requires_grad_()
        (u,) = torch.autograd.grad(case.gauge(x[None]).sum(), x)
        assert float(s.dual_norm(u)) == pytest.approx(1, abs=1e-9)
        assert dot(x.detach(), u) == pytest.approx(float(s.gauge(x)), abs=1e-9)
        for other in directions(case.shape)[seed::500]:
            assert dot(x.detach(), other) <= float(s.gauge(x)) * float(s.dual_norm(other)) + 1e-10


@every
def test_the_gauge_is_a_norm(case):
    gauge = case.constraint.gauge
    for a, b in directions(case.shape)[100::400].view(-1, 2, *case.shape):
        assert float(gauge(a + b)) <= float(gauge(a)) + float(gauge(b)) + 1e-10
        assert float(gauge(-2.5 * a)) == pytest.approx(2.5 * float(gauge(a)), abs=1e-10)
        assert (float(gauge(a)) > 0) == bool(a.any())
    assert float(gauge(torch.zeros(case.shape, dtype=F64))) == 0


@every
def test_the_scale_of_g_changes_nothing(case):
    g = randn(*case.shape)
    scales = (2e-10 / float(g.norm()), 1e-6, 1e6)  # the first: hardly more than nothing
    for scale, (dtype, within) in itertools.product(scales, ((F64, 1e-9), (torch.float32, 1e-4))):
        scaled = case.constraint.lmo((scale * g).to(dtype))
        assert torch.allclose(scaled.to(F64), case.constraint.lmo(g), rtol=0, atol=within)


@every
def test_the_opposite_of_g_has_the_opposite_vertex(case):
    g = randn(*case.shape)
    assert torch.allclose(case.constraint.lmo(-g), -case.constraint.lmo(g), rtol=0, atol=1e-10)


@every
def test_the_lmo_of_almost_nothing_is_zero(case):
    for factor, dtype in itertools.product((0.0, 1e-12), (torch.float32, F64)):
        g = factor * randn(*case.shape, dtype=dtype)
        assert float(g.norm()) < 1e-10
        assert torch.equal(case.constraint.lmo(g), torch.zeros_like(g))
        few, many = case.constraint.lmo_many([g, randn(*case.shape, dtype=dtype)])
        assert torch.equal(few, torch.zeros_like(g))
        assert many.any()


@pytest.mark.parametrize("case", of_kind(entries, groups))
def test_zero_entries_of_g_get_zero_entries_of_the_lmo(case):
    for kept in (1, 2, 4):
        g = randn(*case.shape)
        g.flatten()[torch.randperm(g.numel(), generator=torch.Generator().manual_seed(kept))[kept:]] = 0
        v = case.constraint.lmo(g)
        assert not v[g == 0].any()
        assert float(case.gauge(v[None])) == pytest.approx(TAU, abs=1e-10)
        assert dot(g, v) == pytest.approx(-TAU * float(case.constraint.dual_norm(g)), abs=1e-10)


@every
def test_the_diameter_is_the_largest_distance_between_two_vertices(case):
    s = case.constraint
    unit = torch.zeros(case.shape, dtype=F64)
    unit.view(-1)[0] = 1
    tried = [unit, torch.ones(case.shape, dtype=F64), *(randn(*case.shape, seed=seed) for seed in range(20))]
    distances = [float((s.lmo(g) - s.lmo(-g)).norm()) for g in tried]
    assert max(distances) == pytest.approx(s.diameter(case.shape), abs=1e-10)


@every
def test_no_point_of_the_set_is_further_from_zero_than_half_the_diameter(case):
    points = directions(case.shape)
    radii = TAU * points.flatten(1).norm(dim=1)
    half = case.constraint.diameter(case.shape) / 2
    assert bool((radii <= half * gauges_of_directions(case) + 1e-9).all())


@every
def test_at_diameter_gives_the_same_set_with_that_diameter(case):
    for wanted in (0.3, 20.0):
        other = case.constraint.at_diameter(wanted, case.shape)
        assert other.diameter(case.shape) == pytest.approx(wanted, rel=1e-12)
        assert dataclasses.replace(other, radius=TAU) == case.constraint
    with pytest.raises(ValueError, match="radius"):
        case.constraint.at_diameter(0.0, case.shape)


@every
def test_a_feasible_point_stays_and_others_are_scaled_to_the_boundary(case):
    s = case.constraint
    for seed, dtype in enumerate([F64, torch.float32]):
        w = randn(*case.shape, seed=seed, dtype=dtype)
        outside = 3 * TAU * w / s.gauge(w)
        assert torch.allclose(s.feasible(outside), outside / 3)
        assert float(case.gauge(s.feasible(outside)[None].to(F64))) == pytest.approx(TAU, rel=1e-5)
        assert torch.equal(s.feasible(outside / 4), outside / 4)
    zero = torch.zeros(case.shape, dtype=F64)
    assert torch.equal(s.feasible(zero), zero)


@every
def test_single_precision_agrees_with_double_precision(case):
    s, g = case.constraint, randn(*case.shape)
    assert torch.allclose(s.lmo(g.float()).to(F64), s.lmo(g), rtol=0, atol=1e-4)
    assert float(s.gauge(g.float())) == pytest.approx(float(s.gauge(g)), rel=1e-4)
    assert float(s.dual_norm(g.float())) == pytest.approx(float(s.dual_norm(g)), rel=1e-4)


@every
def test_lmo_many_equals_one_by_one(case):
    gradients = [randn(*case.shape, seed=seed) for seed in range(4)] + [torch.ones(case.shape, dtype=F64)]
    before = [g.clone() for g in gradients]
    found = case.constraint.lmo_many(gradients)
    assert len(found) == 5
    for g, v in zip(gradients, found, strict=True):
        assert torch.allclose(v, case.constraint.lmo(g), rtol=0, atol=1e-10)
    assert all(map(torch.equal, gradients, before))


@every
def test_the_layout_in_memory_does_not_matter(case):
    g = randn(*case.shape)
    other = g.to(memory_format=torch.channels_last) if g.ndim == 4 else g.repeat_interleave(2, dim=-1)[..., ::2]
    assert torch.equal(other, g)
    assert torch.allclose(case.constraint.lmo(other), case.constraint.lmo(g), rtol=0, atol=1e-12)
    assert float(case.constraint.gauge(other)) == pytest.approx(float(case.constraint.gauge(g)), abs=1e-12)


@every
def test_a_set_is_frozen_and_takes_keywords_only(case):
    s = case.constraint
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.radius = 2.0
    with pytest.raises(TypeError, match="positional"):
        type(s)(1.0)
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius"):
            dataclasses.replace(s, radius=radius)
    fields = {field.name: getattr(s, field.name) for field in dataclasses.fields(s) if field.name != "radius"}
    assert type(s)(**fields).radius == 1.0


@every
def test_full_keeps_the_radius_and_everything(case):
    s, g = case.constraint, randn(*case.shape)
    full = s.full()
    assert type(full) is type(s)
    assert full.radius == TAU
    if not hasattr(s, "k"):
        assert full == s
        return
    norm = case.seen(g[None]).amax() if isinstance(s, (KSparse, SpectralKSparse)) else g.norm()
    assert float(full.gauge(g)) == pytest.approx(float(norm), abs=1e-10)


@pytest.mark.parametrize("case", of_kind(groups, singular_values))
def test_group_and_spectral_sets_refuse_a_vector_and_name_it(case):
    for shape in (VECTOR, ()):
        with pytest.raises((Unsupported, ConfigError), match="third_bias"):
            case.constraint.check("third_bias", shape)
    case.constraint.check("third_weight", case.shape)


@pytest.mark.parametrize("case", of_kind(entries))
def test_sets_of_vectors_take_every_shape_as_one_vector(case):
    case.constraint.check("third_weight", case.shape)
    assert case.constraint.seen_shape([case.shape]) == (math.prod(case.shape),)


# Frank-Wolfe on convex quadratics.


def frank_wolfe(s: Any, q: Tensor, c: Tensor, x: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """min 1/2 <x - c, q (x - c)> over s with exact line search: the last iterate and all gaps."""
    gaps = []
    for _ in range(steps):
        grad = (q @ (x - c).flatten()).view_as(x)
        d = s.lmo(grad) - x
        gaps.append(-dot(grad, d))
        x = x + min(1.0, gaps[-1] / max(dot(d.flatten(), q @ d.flatten()), 1e-300)) * d
    return x, gaps


@every
def test_frank_wolfe_stays_in_the_set_and_its_gap_vanishes_at_the_known_rate(case):
    """Jaggi 2013, theorem 2: the smallest gap of T steps is at most 27/4 C_f/(T + 2), with C_f <= L diameter²."""
    s, steps = case.constraint, 100
    factor = randn(math.prod(case.shape), math.prod(case.shape), seed=3)
    q = factor @ factor.T / len(factor) + 0.1 * torch.eye(len(factor), dtype=F64)
    x, gaps = frank_wolfe(s, q, 2 * randn(*case.shape, seed=4), s.feasible(randn(*case.shape, seed=5)), steps)
    curvature = float(torch.linalg.eigvalsh(q)[-1]) * s.diameter(case.shape) ** 2
    assert min(gaps) > -1e-10
    assert min(gaps) <= 27 / 4 * curvature / (steps + 2)
    assert min(gaps[-10:]) < 0.1 * gaps[0]
    assert float(case.gauge(x[None])) <= TAU * (1 + 1e-10)


def test_frank_wolfe_on_the_l2_ball_reaches_the_projection():
    c = 3 * randn(6, seed=1)
    x, gaps = frank_wolfe(L2(radius=TAU), torch.eye(6, dtype=F64), c, L2(radius=TAU).feasible(randn(6)), 100)
    assert torch.allclose(x, TAU * c / c.norm(), rtol=0, atol=1e-6)
    assert gaps[-1] < 1e-6


def test_frank_wolfe_on_the_l1_ball_reaches_the_soft_thresholded_point():
    c = numbers(3, -2, 0.5, 0.1, 0)  # projected on the ball of radius 3: thresholded at 1
    x, _ = frank_wolfe(L1(radius=3.0), torch.eye(5, dtype=F64), c, torch.zeros(5, dtype=F64), 200)
    assert torch.allclose(x, numbers(2, -1, 0, 0, 0), rtol=0, atol=1e-6)
    assert not x[2:].any()


def test_frank_wolfe_on_the_nuclear_ball_reaches_the_soft_thresholded_singular_values():
    left, right = torch.linalg.qr(randn(4, 4)).Q, torch.linalg.qr(randn(6, 6, seed=1)).Q[:4]
    c = left @ torch.diag(numbers(3, 2, 0.5, 0.1)) @ right
    x, _ = frank_wolfe(Nuclear(radius=3.0), torch.eye(24, dtype=F64), c, torch.zeros(4, 6, dtype=F64), 200)
    assert torch.allclose(x, left @ torch.diag(numbers(2, 1, 0, 0)) @ right, rtol=0, atol=1e-6)


# Published and small numbers.

G = numbers(0.5, -2, 1, 0, 1.5)
VERTICES = [
    (KSupport(k=2, radius=3.0), (0, 2.4, 0, 0, -1.8), -7.5),
    (KSupport(k=0.2, radius=3.0), (0, 3, 0, 0, 0), -6),
    (KSupport(k=5, radius=3.0), None, -8.2158),
    (KSparse(k=2, radius=3.0), (0, 3, 0, 0, -3), -10.5),
    (KSparse(k=5, radius=3.0), (-3, 3, -3, 0, -3), -15),
    (Lp(p=1.5, radius=3.0), (-0.1392, 2.228, -0.557, 0, -1.2532), -6.96238),
    (Lp(p=3, radius=3.0), (-1.1662, 2.3323, -1.6492, 0, -2.0199), -9.92679),
    (L1(radius=3.0), (0, 3, 0, 0, 0), -6),
    (L2(radius=3.0), (-0.547723, 2.19089, -1.095445, 0, -1.643168), -8.2158),
    (Linf(radius=3.0), (-3, 3, -3, 0, -3), -15),
]


@pytest.mark.parametrize(("constraint", "vertex", "value"), VERTICES, ids=[named(row[0]) for row in VERTICES])
def test_vertices_of_a_small_vector(constraint, vertex, value):
    v = constraint.lmo(G)
    assert dot(G, v) == pytest.approx(value, abs=5e-5)
    if vertex is not None:
        assert torch.allclose(v, numbers(*vertex), rtol=0, atol=5e-5)


DIAGONALS = [
    (SpectralKSupport(k=1 / 3, radius=3.0), (-3, 0, 0), -9),
    (SpectralKSupport(k=2, radius=3.0), (-2.4962, -1.6641, 0), -10.8167),
    (SpectralKSupport(k=3, radius=3.0), (-2.405351, -1.603567, -0.801784), -11.2250),
    (SpectralKSparse(k=2, radius=3.0), (-3, -3, 0), -15),
    (SpectralKSparse(k=3, radius=3.0), (-3, -3, -3), -18),
    (Nuclear(radius=3.0), (-3, 0, 0), -9),
]


@pytest.mark.parametrize(("constraint", "diagonal", "value"), DIAGONALS, ids=[named(row[0]) for row in DIAGONALS])
def test_vertices_of_a_diagonal_matrix(constraint, diagonal, value):
    g = torch.diag(numbers(3, 2, 1))
    assert dot(g, constraint.lmo(g)) == pytest.approx(value, abs=5e-5)
    assert torch.allclose(constraint.lmo(g), torch.diag(numbers(*diagonal)), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("x", "k", "norm"),
    [
        ((3, 2, 1), 1 / 3, 6),
        ((3, 2, 1), 2, 4.242641),
        ((3, 2, 1), 3, 3.741657),
        ((1, 1, 1, 1), 2, 2.828427),
        ((5, 1, 1, 1), 2, 5.830952),
        ((5, 4, 0.5, 0.2, 0.1), 3, 6.452906),
    ],
)
def test_k_support_norms(x, k, norm):
    w = numbers(*x)
    assert float(KSupport(k=k).gauge(w)) == pytest.approx(norm, abs=1e-6)
    assert float(KSupport(k=k).gauge(-w.flip(0))) == pytest.approx(norm, abs=1e-6)
    assert float(GroupKSupport(k=k).gauge(w[:, None] * numbers(0.6, -0.8))) == pytest.approx(norm, abs=1e-6)
    assert float(SpectralKSupport(k=k).gauge(torch.diag(w))) == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize(
    ("constraint", "shape", "radius"),
    [
        (L1(), (16,), 2),
        (L2(), (16,), 2),
        (Lp(p=1.5), (10,), 2),  # the largest l2 norm of the unit ball is 1 for p <= 2
        (Lp(p=2), (10,), 2),
        (Lp(p=4), (16,), 1),  # and n^(1/2 - 1/p) for p >= 2
        (Lp(p=4), (4, 2, 2), 1),
        (Linf(), (16,), 0.5),
        (KSparse(k=4), (16,), 1),
        (KSparse(k=0.25), (4, 4), 1),
        (KSupport(k=4), (16,), 2),
        (GroupKSupport(k=2), (4, 4), 2),
        (Nuclear(), (4, 4), 2),
        (SpectralKSupport(k=2), (4, 4), 2),
        (SpectralKSparse(k=4), (9, 4, 2), 1),
        (SpectralKSparse(k=0.5), (8, 3, 3), 1),
        (SpectralKSparse(k=1), (9, 2, 2), 1),
    ],
    ids=lambda value: named(value) if isinstance(value, Constraint) else None,
)
def test_radii_of_the_sets_of_diameter_4(constraint, shape, radius):
    assert constraint.at_diameter(4.0, shape).radius == pytest.approx(radius, rel=1e-12)
    assert constraint.diameter(shape) == pytest.approx(4 / radius, rel=1e-12)


# Every vertex of tiny sets.

TINY = [
    G,
    numbers(1, 1, 1, 1, 1),
    numbers(2, -2, 1, -1, 2),
    numbers(0, 0, 1, 0, 0),
    *(randn(5, seed=s) for s in range(6)),
]


def k_sparse_vertices(n: int, k: int) -> Tensor:
    """All v of -1, 0, 1 with k entries that are not 0."""
    return torch.stack([numbers(*v) for v in itertools.product((-1, 0, 1), repeat=n) if sum(map(abs, v)) == k])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_no_vertex_of_a_tiny_k_sparse_polytope_is_better_than_the_lmo(k):
    vertices = k_sparse_vertices(5, k)
    sets: list[Any] = [KSparse(k=k / 5, radius=TAU)]
    sets += [L1(radius=TAU)] * (k == 1) + [Linf(radius=TAU)] * (k == 5)
    for s, g in itertools.product(sets, TINY):
        assert dot(g, s.lmo(g)) == pytest.approx(TAU * float((vertices @ g).min()), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_no_support_of_a_tiny_k_support_ball_is_better_than_the_lmo(k):
    supports = list(itertools.combinations(range(5), k))
    for g in TINY:
        best = max(float(g[list(support)].norm()) for support in supports)
        assert dot(g, KSupport(k=k / 5, radius=TAU).lmo(g)) == pytest.approx(-TAU * best, abs=1e-12)
        filters = torch.outer(g, numbers(1, 0, -2)).view(5, 3, 1) + 0.1 * randn(5, 3, 1, seed=k)
        best = max(float(filters[list(support)].norm()) for support in supports)
        assert dot(filters, GroupKSupport(k=k / 5, radius=TAU).lmo(filters)) == pytest.approx(-TAU * best, abs=1e-12)


# k.


def nonzeros(v: Tensor) -> int:
    return int(v.count_nonzero())


def nonzero_rows(v: Tensor) -> Tensor:
    return v.flatten(1).any(1)


def nonzero_groups(v: Tensor) -> int:
    return int(nonzero_rows(v).sum())


def rank(v: Tensor) -> int:
    return int(torch.linalg.matrix_rank(v.flatten(1), rtol=1e-7))


K_SETS: list[tuple[Any, Shape, Callable[[Tensor], int]]] = [
    (KSparse, (20,), nonzeros),
    (KSupport, (4, 5), nonzeros),
    (GroupKSupport, (20, 2, 2), nonzero_groups),
    (SpectralKSupport, (20, 5, 5), rank),
    (SpectralKSparse, (30, 20), rank),
]
every_k = pytest.mark.parametrize(("kind", "shape", "count"), K_SETS, ids=[row[0].__name__ for row in K_SETS])
COUNTS = [
    ({"k": 1}, 20),
    ({"k": 1.0}, 20),
    ({"k": 0.15}, 3),
    ({"k": 0.29}, 5),
    ({"k": 0.01}, 1),
    ({"k": 2}, 2),
    ({"k": 2.0}, 2),
    ({"k": 15}, 15),
    ({"k": 20}, 20),
    ({"k": 500}, 20),
    ({"k": 0.05, "least": 10}, 10),
    ({"k": 0.5, "least": 4}, 10),
    ({"k": 0.05, "least": 30}, 20),
]


@every_k
def test_k_is_a_fraction_up_to_1_and_a_count_above(kind, shape, count):
    for fields, expected in COUNTS:
        v = kind(**fields).lmo(randn(*shape))
        assert count(v) == expected, fields
        assert float(kind(**fields).gauge(v)) == pytest.approx(1, abs=1e-10)


def test_a_fraction_that_is_a_whole_count_up_to_rounding_is_that_count():
    assert 0.29 * 100 < 29
    assert nonzeros(KSparse(k=0.29).lmo(randn(100))) == 29


@every_k
def test_ties_leave_exactly_k(kind, shape, count):
    equal = torch.eye(shape[0], math.prod(shape[1:]), dtype=F64) if count is rank else torch.ones(shape, dtype=F64)
    for k, (dtype, within) in itertools.product((3, 17), ((F64, 1e-10), (torch.float32, 1e-5))):
        g = equal.view(shape).to(dtype)
        v = kind(k=k).lmo(g)
        assert count(v) == k
        assert dot(g, v) == pytest.approx(-float(kind(k=k).dual_norm(g)), abs=within)


SPREADS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "many equal": lambda x: x.round(decimals=1),
    "many equal, all close": lambda x: 1 + x.round(decimals=1) * 2**-12,
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("spread", SPREADS)
def test_exactly_the_k_largest_of_many_entries_are_kept(dtype, spread):
    g = SPREADS[spread](randn(5000)).to(dtype)
    descending = g.abs().sort(descending=True).values
    for k in (2, 50, 2500, 4000, 4999, 5000):
        kept = g.abs()[KSupport(k=k).lmo(g) != 0]
        wanted = descending[:k]
        assert torch.equal(kept.sort(descending=True).values, wanted[wanted > 0])
        assert nonzeros(KSparse(k=k).lmo(g)) == len(wanted[wanted > 0])
        groups_kept = g.abs()[nonzero_rows(GroupKSupport(k=k).lmo(g[:, None]))]
        assert torch.equal(groups_kept.sort(descending=True).values, wanted[wanted > 0])


@every_k
def test_a_k_that_is_neither_a_fraction_nor_a_count_is_refused(kind, shape, count):
    for k in (0, 0.0, -1, -0.5, 2.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"\bk\b"):
            kind(k=k)


@pytest.mark.parametrize("p", [1, 0.5, 0, -2, math.inf, math.nan])
def test_a_p_outside_of_1_to_infinity_is_refused(p):
    with pytest.raises(ValueError, match=r"\bp\b"):
        Lp(p=p)


def test_l1_and_nuclear_break_ties():
    assert nonzeros(L1().lmo(torch.ones(7, dtype=F64))) == 1
    assert rank(Nuclear().lmo(torch.eye(5, dtype=F64))) == 1


# What a set is a special case of.

SPECIAL = [
    (KSupport(k=1 / 24), L1()),
    (KSupport(k=1), L2()),
    (KSupport(k=24), L2()),
    (Lp(p=2), L2()),
    (KSparse(k=1 / 24), L1()),
    (KSparse(k=1), Linf()),
    (GroupKSupport(k=1), L2()),
    (SpectralKSupport(k=0.25), Nuclear()),
    (SpectralKSupport(k=1), L2()),
    (SpectralKSparse(k=0.25), Nuclear()),
    (KSupport(k=5).full(), L2()),
    (KSparse(k=5).full(), Linf()),
    (GroupKSupport(k=2).full(), L2()),
    (SpectralKSupport(k=2).full(), L2()),
]


@pytest.mark.parametrize(("one", "other"), SPECIAL, ids=[f"{named(a)}-is-{named(b)}" for a, b in SPECIAL])
def test_special_cases_are_the_same_set(one, other):
    for seed in range(3):
        g = randn(4, 3, 2, seed=seed)
        assert torch.allclose(one.lmo(g), other.lmo(g), rtol=0, atol=1e-10)
        assert float(one.gauge(g)) == pytest.approx(float(other.gauge(g)), abs=1e-10)
        assert float(one.dual_norm(g)) == pytest.approx(float(other.dual_norm(g)), abs=1e-10)
        assert one.diameter(g.shape) == pytest.approx(other.diameter(g.shape), rel=1e-12)


@pytest.mark.parametrize("k", [0.1, 2, 7, 10])
def test_groups_of_one_entry_are_entries(k):
    g = randn(10)
    assert torch.equal(GroupKSupport(k=k).lmo(g[:, None])[:, 0], KSupport(k=k).lmo(g))
    assert torch.equal(GroupKSupport(k=k).gauge(g[:, None]), KSupport(k=k).gauge(g))


# The k-support norm.


@pytest.mark.parametrize("k", range(1, 9))
def test_the_k_support_norm_is_between_the_two_sides_of_its_variational_problem(k):
    """sum x²/a for a feasible a is no less; its Lagrangian, minimised over a, is no more; both meet."""
    points = torch.cat([randn(8, 8), directions((8,))[::400], torch.ones(1, 8, dtype=F64), torch.eye(8, dtype=F64)])
    a, lam = shares(points.abs(), k)
    assert float(a.sum(1).max()) <= k + 1e-12
    upper = (points**2 / a).sum(1)
    lower = upper + lam[:, 0] ** 2 * (a.sum(1) - k)
    for i, x in enumerate(points):
        square = float(KSupport(k=k / 8).gauge(x)) ** 2
        assert float(lower[i]) - 1e-9 <= square <= float(upper[i]) + 1e-9


@pytest.mark.parametrize("k", range(1, 9))
def test_the_k_support_norm_lies_between_its_bounds(k):
    for x in directions((8,))[::400]:
        norm, l1 = float(KSupport(k=k / 8).gauge(x)), float(x.abs().sum())
        assert max(float(x.norm()), l1 / math.sqrt(k)) - 1e-10 <= norm <= l1 + 1e-10
        if nonzeros(x) <= k:
            assert norm == pytest.approx(float(x.norm()), abs=1e-10)


def test_the_k_support_norm_of_many_entries_is_right_in_single_precision():
    x = randn(20_000)
    for k in (0.01, 0.5, 0.99):
        assert float(KSupport(k=k).gauge(x.float())) == pytest.approx(float(KSupport(k=k).gauge(x)), rel=1e-4)


def test_a_small_gradient_in_single_precision_survives_large_powers():
    g = randn(50)
    for p in (1.05, 1.2, 20.0):
        v = Lp(p=p).lmo((1e-6 * g).float())
        assert torch.allclose(v.to(F64), Lp(p=p).lmo(g), rtol=0, atol=1e-4)
        assert float(Lp(p=p).gauge(v)) == pytest.approx(1, abs=1e-4)


# Spectral sets.

SPECTRAL: list[Any] = [Nuclear(radius=TAU), SpectralKSupport(k=2, radius=TAU), SpectralKSparse(k=2, radius=TAU)]
every_spectral = pytest.mark.parametrize("s", SPECTRAL, ids=named)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed)).Q


def svd_vertex(s: Any, g: Tensor) -> Tensor:
    u, values, vh = torch.linalg.svd(g, full_matrices=False)
    k = getattr(s, "k", 1)
    kept = values[:k] / values[:k].norm() if isinstance(s, SpectralKSupport) else torch.ones(k, dtype=F64)
    return -s.radius * (u[:, :k] * kept) @ vh[:k]


def with_singular_values(values: Tensor, columns: int) -> Tensor:
    return orthogonal(len(values), 1) @ torch.diag(values) @ orthogonal(columns, 2)[: len(values)]


@every_spectral
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_spectral_sets_are_invariant_under_orthogonal_maps_and_transposition(s, shape):
    g, left, right = randn(*shape), orthogonal(shape[0], 1), orthogonal(shape[1], 2)
    assert torch.allclose(s.lmo(left @ g @ right), left @ s.lmo(g) @ right, rtol=0, atol=1e-9)
    assert float(s.gauge(left @ g @ right)) == pytest.approx(float(s.gauge(g)), abs=1e-9)
    assert torch.allclose(s.lmo(g.T), s.lmo(g).T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", of_kind(groups, singular_values))
def test_a_convolution_is_the_matrix_of_its_filters(case):
    g = randn(*CONV)
    assert torch.allclose(case.constraint.lmo(g).flatten(1), case.constraint.lmo(g.flatten(1)), rtol=0, atol=1e-12)
    assert float(case.constraint.gauge(g)) == pytest.approx(float(case.constraint.gauge(g.flatten(1))), abs=1e-12)


@every_spectral
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_spectral_vertices_are_the_leading_singular_pairs(s, shape):
    g = randn(*shape)
    assert torch.allclose(s.lmo(g), svd_vertex(s, g), rtol=0, atol=1e-8)
    assert rank(s.lmo(g)) == getattr(s, "k", 1)


@every_spectral
@pytest.mark.parametrize("rounds", [0, 10])
@pytest.mark.parametrize(
    "values", [(1, 0, 0, 0), (3, 1, 0, 0), (1, 1, 1, 1), (1, 1e-9, 0, 0), (1, 1e-5, 1e-9, 1e-12)], ids=str
)
def test_a_matrix_without_full_rank_has_a_feasible_and_optimal_vertex(s, rounds, values):
    s = dataclasses.replace(s, rounds=rounds)
    g = with_singular_values(numbers(*values), 6)
    for w in (g, g.T, g.float(), g.T.float()):
        v = s.lmo(w).to(F64)
        assert bool(v.isfinite().all())
        assert float(dataclasses.replace(s, rounds=0).gauge(v)) <= TAU * (1 + 1e-5)
        expected = dot(w.to(F64), svd_vertex(s, w.to(F64)))
        assert dot(w.to(F64), v) == pytest.approx(expected, abs=1e-5 if w.dtype is torch.float32 else 1e-7)


@every_spectral
@pytest.mark.parametrize("k", [0.1, 0.5])
def test_small_singular_values_cost_little_in_single_precision(s, k):
    s = dataclasses.replace(s, **({"k": k} if hasattr(s, "k") else {}))
    values = torch.cat([torch.ones(1, dtype=F64), 1e-4 * torch.logspace(0, -2, 31, dtype=F64)])
    g = with_singular_values(values, 64).float()
    v = s.lmo(g).to(F64)
    assert float(s.gauge(v)) <= TAU * (1 + 1e-5)
    assert dot(g.to(F64), v) == pytest.approx(-TAU * float(s.dual_norm(g.to(F64))), rel=1e-4)


@every_spectral
@pytest.mark.parametrize("rounds", [0, 10])
def test_a_matrix_of_one_row_or_column_is_normalised(s, rounds):
    g = randn(7)
    for w in (g[None], g[:, None]):
        v = dataclasses.replace(s, rounds=rounds).lmo(w)
        assert torch.allclose(v, -TAU * w / w.norm(), rtol=0, atol=1e-10)


# Block power iteration.

APPROXIMATE: list[Any] = [SpectralKSupport(k=0.1, rounds=10, radius=TAU), SpectralKSparse(k=0.1, rounds=10, radius=TAU)]


@pytest.mark.parametrize("s", [*APPROXIMATE, Nuclear(rounds=20, radius=TAU)], ids=named)
@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (64, 64, 3, 3)], ids=str)
def test_rounds_give_a_feasible_point_of_almost_the_optimal_value(s, shape):
    exact = dataclasses.replace(s, rounds=0)
    for seed in range(3):
        g = randn(*shape, seed=seed)
        v = s.lmo(g)
        assert float(exact.gauge(v)) <= TAU * (1 + 1e-8)
        assert rank(v) <= 6
        assert dot(g, v) <= 0.97 * dot(g, exact.lmo(g))
        assert dot(g, v) >= dot(g, exact.lmo(g)) - 1e-9


@every_spectral
def test_many_rounds_reach_the_vertex(s):
    g = with_singular_values(numbers(4, 2, 1, 0.5), 6)
    assert torch.allclose(dataclasses.replace(s, rounds=60).lmo(g), s.lmo(g), rtol=0, atol=1e-8)


@pytest.mark.parametrize("s", [*APPROXIMATE, Nuclear(rounds=10)], ids=named)
def test_rounds_start_from_the_same_numbers_and_leave_the_generator_alone(s):
    g = randn(20, 30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = s.lmo(g)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(s.lmo(g), first)


@pytest.mark.parametrize("s", [*APPROXIMATE, Nuclear(rounds=10)], ids=named)
def test_rounds_give_a_tensor_the_same_vertex_whatever_comes_with_it(s):
    gradients = [randn(20, 30, seed=seed) for seed in range(3)]
    for g, v in zip(gradients, s.lmo_many(gradients), strict=True):
        assert torch.allclose(v, s.lmo(g), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1e-38, 1e-11, 1e-6, 1e18])
@pytest.mark.parametrize("p", [1.01, 3.0, 50.0])
def test_the_lp_ball_takes_numbers_of_any_size(p, size):
    g = size * torch.ones(1000)
    ball, q = Lp(p=p), p / (p - 1)
    assert float(ball.dual_norm(g)) == pytest.approx(size * 1000 ** (1 / q), rel=1e-4)
    assert float(ball.gauge(g)) == pytest.approx(size * 1000 ** (1 / p), rel=1e-4)
    if size > 1e-11:
        assert float(ball.gauge(ball.lmo(g))) == pytest.approx(1, rel=1e-4)
