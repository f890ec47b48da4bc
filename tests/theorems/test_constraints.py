"""What holds for every constraint set."""

import dataclasses
import itertools
import math

import pytest
import torch
from cases import case
from constraint_cases import (
    CONV,
    EXAMPLES,
    TAU,
    VECTOR,
    directions,
    dot,
    each_class,
    entries,
    gauges_of_directions,
    groups,
    numbers,
    quadratic_steps,
    singular_values,
)
from problems import F64, randn

from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, Linf
from nncompress.constraints.spectral import SpectralKSparse
from nncompress.errors import ConfigError, Unsupported

every_class = each_class()


@every_class
def test_oracles_leave_their_input_track_no_gradient_and_keep_shape_dtype_and_device(examples):
    for s, shape, *_ in examples:
        for dtype in (F64, torch.float32):
            with case(s=s, shape=shape, dtype=dtype):
                g = randn(*shape, dtype=dtype).requires_grad_()
                before = g.detach().clone()
                tensors = [s.lmo(g), s.feasible(g), *s.lmo_many([g, g])]
                assert all((v.shape, v.dtype, v.device) == (g.shape, g.dtype, g.device) for v in tensors)
                assert s.gauge(g).shape == s.dual_norm(g).shape == ()
                assert not any(result.requires_grad for result in (*tensors, s.gauge(g), s.dual_norm(g)))
                assert torch.equal(g.detach(), before)
                v = s.lmo(before)
                expected = v.clone()
                before.zero_()
                assert torch.equal(v, expected)
                assert type(s.diameter(shape)) is float


@every_class
def test_the_gauge_is_the_norm_of_the_definition_whatever_the_radius(examples):
    for example in examples:
        s, shape, *_ = example
        with case(s=s, shape=shape):
            points = directions(shape)[::400]
            for point, expected in zip(points, example.gauge(points).tolist(), strict=True):
                assert float(s.gauge(point)) == pytest.approx(expected, abs=1e-10)
                assert float(dataclasses.replace(s, radius=9.0).gauge(point)) == pytest.approx(expected)
            for a, b in directions(shape)[100::200].view(-1, 2, *shape):
                size = float(s.gauge(a))
                assert float(s.gauge(a + b)) <= size + float(s.gauge(b)) + 1e-10
                assert float(s.gauge(-2.5 * a)) == pytest.approx(2.5 * size, abs=1e-10)
                assert (size > 0) == bool(a.any())
            assert float(s.gauge(torch.zeros(shape, dtype=F64))) == 0


@every_class
def test_no_feasible_point_is_better_than_the_vertex_which_has_the_value_of_the_dual_norm(examples):
    for example in examples:
        s, shape, *_ = example
        for seed in range(5):
            with case(s=s, shape=shape, seed=seed):
                g = randn(*shape, seed=seed)
                v = s.lmo(g)
                assert float(example.gauge(v[None])) == pytest.approx(TAU, abs=1e-10)
                assert float(s.gauge(v)) == pytest.approx(TAU, abs=1e-10)
                assert dot(g, v) == pytest.approx(-TAU * float(s.dual_norm(g)), abs=1e-10)
        with case(s=s, shape=shape):
            g = randn(*shape)
            best = s.lmo(g)
            near = best + 0.1 * randn(500, *shape, seed=9)
            points = torch.cat([directions(shape), near])
            gauges = torch.cat([gauges_of_directions(example), example.gauge(near)])
            values = points.flatten(1) @ g.flatten()  # of a point x; the feasible point is TAU x / gauge(x)
            assert len(points) == 10_500
            assert float((TAU * values - dot(g, best) * gauges).min()) > -1e-9


@every_class
def test_the_gauge_is_attained_on_the_dual_ball_and_nowhere_exceeded(examples):
    for example in examples:
        s, shape, *_ = example
        for seed in range(3):
            with case(s=s, shape=shape, seed=seed):
                x = randn(*shape, seed=seed).requires_grad_()
                (u,) = torch.autograd.grad(example.gauge(x[None]).sum(), x)
                x = x.detach()
                size = float(s.gauge(x))
                assert float(s.dual_norm(u)) == pytest.approx(1, abs=1e-9)
                assert dot(x, u) == pytest.approx(size, abs=1e-9)
                for other in directions(shape)[seed::250]:
                    assert dot(x, other) <= size * float(s.dual_norm(other)) + 1e-10


@every_class
def test_the_vertex_depends_on_the_direction_of_g_alone_and_is_zero_for_almost_nothing(examples):
    for s, shape, *_ in examples:
        g = randn(*shape)
        v = s.lmo(g)
        scales = (2e-10 / float(g.norm()), 1e-6, 1e6)  # the first: hardly more than nothing
        for scale, (dtype, within) in itertools.product(scales, ((F64, 1e-9), (torch.float32, 1e-4))):
            with case(s=s, shape=shape, scale=scale, dtype=dtype):
                assert torch.allclose(s.lmo((scale * g).to(dtype)).to(F64), v, rtol=0, atol=within)
        for factor, dtype in itertools.product((0.0, 1e-12), (torch.float32, F64)):
            with case(s=s, shape=shape, factor=factor, dtype=dtype):
                nothing = factor * randn(*shape, dtype=dtype)
                assert float(nothing.norm()) < 1e-10
                few, many = s.lmo_many([nothing, randn(*shape, dtype=dtype)])
                assert torch.equal(s.lmo(nothing), torch.zeros_like(nothing))
                assert torch.equal(few, torch.zeros_like(nothing))
                assert many.any()
        with case(s=s, shape=shape):
            assert torch.allclose(s.lmo(-g), -v, rtol=0, atol=1e-10)


@every_class
def test_precision_layout_and_company_do_not_change_what_an_oracle_gives(examples):
    for s, shape, *_ in examples:
        with case(s=s, shape=shape):
            g = randn(*shape)
            v = s.lmo(g)
            assert torch.allclose(s.lmo(g.float()).to(F64), v, rtol=0, atol=1e-4)
            assert float(s.gauge(g.float())) == pytest.approx(float(s.gauge(g)), rel=1e-4)
            assert float(s.dual_norm(g.float())) == pytest.approx(float(s.dual_norm(g)), rel=1e-4)

            other = g.to(memory_format=torch.channels_last) if g.ndim == 4 else g.repeat_interleave(2, dim=-1)[..., ::2]
            assert torch.equal(other, g)
            assert torch.allclose(s.lmo(other), v, rtol=0, atol=1e-12)
            assert float(s.gauge(other)) == pytest.approx(float(s.gauge(g)), abs=1e-12)

            gradients = [randn(*shape, seed=seed) for seed in range(4)] + [torch.ones(shape, dtype=F64)]
            before = [g.clone() for g in gradients]
            for g, v in zip(gradients, s.lmo_many(gradients), strict=True):
                assert torch.allclose(v, s.lmo(g), rtol=0, atol=1e-10)
            assert all(map(torch.equal, gradients, before))


@each_class(entries, groups)
def test_zero_entries_of_g_get_zero_entries_of_the_vertex(examples):
    for example in examples:
        s, shape, *_ = example
        for kept in (1, 2, 4):
            with case(s=s, shape=shape, kept=kept):
                g = randn(*shape)
                g.flatten()[torch.randperm(g.numel(), generator=torch.Generator().manual_seed(kept))[kept:]] = 0
                v = s.lmo(g)
                assert not v[g == 0].any()
                assert float(example.gauge(v[None])) == pytest.approx(TAU, abs=1e-10)
                assert dot(g, v) == pytest.approx(-TAU * float(s.dual_norm(g)), abs=1e-10)


@every_class
def test_the_diameter_is_the_largest_distance_of_two_points_and_can_be_chosen(examples):
    for example in examples:
        s, shape, *_ = example
        with case(s=s, shape=shape):
            unit = torch.zeros(shape, dtype=F64)
            unit.view(-1)[0] = 1
            tried = [unit, torch.ones(shape, dtype=F64), *(randn(*shape, seed=seed) for seed in range(20))]
            distances = [float((s.lmo(g) - s.lmo(-g)).norm()) for g in tried]
            assert max(distances) == pytest.approx(s.diameter(shape), abs=1e-10)

            radii = TAU * directions(shape).flatten(1).norm(dim=1)
            assert bool((radii <= s.diameter(shape) / 2 * gauges_of_directions(example) + 1e-9).all())

            for wanted in (0.3, 20.0):
                other = s.at_diameter(wanted, shape)
                assert other.diameter(shape) == pytest.approx(wanted, rel=1e-12)
                assert dataclasses.replace(other, radius=TAU) == s
            with pytest.raises(ValueError, match="radius"):
                s.at_diameter(0.0, shape)


@every_class
def test_a_feasible_point_stays_and_others_are_scaled_to_the_boundary(examples):
    for example in examples:
        s, shape, *_ = example
        for seed, dtype in enumerate([F64, torch.float32]):
            with case(s=s, shape=shape, dtype=dtype):
                w = randn(*shape, seed=seed, dtype=dtype)
                outside = 3 * TAU * w / s.gauge(w)
                assert torch.allclose(s.feasible(outside), outside / 3)
                assert float(example.gauge(s.feasible(outside)[None].to(F64))) == pytest.approx(TAU, rel=1e-5)
                assert torch.equal(s.feasible(outside / 4), outside / 4)
                zero = torch.zeros(shape, dtype=dtype)
                assert torch.equal(s.feasible(zero), zero)


def test_a_set_is_frozen_takes_keywords_only_and_a_positive_radius():
    for s, *_ in EXAMPLES:
        with case(s=s):
            with pytest.raises(dataclasses.FrozenInstanceError):
                s.radius = 2.0
            with pytest.raises(TypeError, match="positional"):
                type(s)(1.0)
            for radius in (0.0, -1.0, math.inf, math.nan):
                with pytest.raises(ValueError, match=f"radius must be positive and finite, found {radius}"):
                    dataclasses.replace(s, radius=radius)
            fields = {field.name: getattr(s, field.name) for field in dataclasses.fields(s) if field.name != "radius"}
            assert type(s)(**fields).radius == 1.0


@every_class
def test_the_full_set_keeps_the_radius_and_lets_everything_be_nonzero(examples):
    for s, shape, seen, _ in examples:
        with case(s=s, shape=shape):
            g, full = randn(*shape), s.full()
            assert type(full) is type(s)
            assert full.radius == TAU
            if hasattr(s, "k"):
                norm = seen(g[None]).amax() if isinstance(s, KSparse | SpectralKSparse) else g.norm()
                assert float(full.gauge(g)) == pytest.approx(float(norm), abs=1e-10)
            else:
                assert full == s


@each_class(groups, singular_values)
def test_group_and_spectral_sets_see_filters_as_rows_and_refuse_a_vector_by_its_name(examples):
    g = randn(*CONV)
    for s, shape, *_ in examples:
        with case(s=s, shape=shape):
            for wrong in (VECTOR, ()):
                with pytest.raises((Unsupported, ConfigError), match="third_bias"):
                    s.check("third_bias", wrong)
            s.check("third_weight", shape)
            assert torch.allclose(s.lmo(g).flatten(1), s.lmo(g.flatten(1)), rtol=0, atol=1e-12)
            assert float(s.gauge(g)) == pytest.approx(float(s.gauge(g.flatten(1))), abs=1e-12)


@each_class(entries)
def test_sets_of_vectors_take_every_shape_as_one_vector(examples):
    for s, shape, *_ in examples:
        with case(s=s, shape=shape):
            s.check("third_weight", shape)
            assert s.seen_shape([shape]) == (math.prod(shape),)


@every_class
def test_frank_wolfe_on_a_quadratic_stays_in_the_set_and_its_gap_vanishes_at_the_known_rate(examples):
    """Jaggi 2013, theorem 2: the smallest gap of T steps is at most 27/4 C_f/(T + 2), with C_f <= L diameter²."""
    for example in examples:
        s, shape, *_ = example
        with case(s=s, shape=shape):
            factor = randn(math.prod(shape), math.prod(shape), seed=3)
            q = factor @ factor.T / len(factor) + 0.1 * torch.eye(len(factor), dtype=F64)
            start = s.feasible(randn(*shape, seed=5))
            x, gaps = quadratic_steps(s, q, 2 * randn(*shape, seed=4), start, 100)
            curvature = float(torch.linalg.eigvalsh(q)[-1]) * s.diameter(shape) ** 2
            assert min(gaps) > -1e-10
            assert min(gaps) <= 27 / 4 * curvature / (100 + 2)
            assert min(gaps[-10:]) < 0.1 * gaps[0]
            assert float(example.gauge(x[None])) <= TAU * (1 + 1e-10)


# All vertices of tiny sets.

TINY = [
    numbers(0.5, -2, 1, 0, 1.5),
    numbers(1, 1, 1, 1, 1),
    numbers(2, -2, 1, -1, 2),
    numbers(0, 0, 1, 0, 0),
    *(randn(5, seed=s) for s in range(6)),
]


@pytest.mark.parametrize("kind", [L1, Linf, KSparse])
def test_no_vertex_of_a_tiny_polytope_is_better_than_that_of_the_oracle(kind):
    signs = torch.tensor(list(itertools.product((-1, 0, 1), repeat=5)), dtype=F64)
    for k in {L1: [1], Linf: [5]}.get(kind, [1, 2, 3, 4, 5]):
        vertices = signs[signs.abs().sum(1) == k]
        s = kind(k=k / 5, radius=TAU) if kind is KSparse else kind(radius=TAU)
        assert len(vertices) == math.comb(5, k) * 2**k
        for g in TINY:
            with case(k=k, g=g):
                assert dot(g, s.lmo(g)) == pytest.approx(TAU * float((vertices @ g).min()), abs=1e-12)


@pytest.mark.parametrize("kind", [KSupport, GroupKSupport])
def test_no_support_of_a_tiny_k_support_ball_is_better_than_that_of_the_oracle(kind):
    for k in (1, 2, 3, 4, 5):
        supports = list(itertools.combinations(range(5), k))
        for g in TINY:
            if kind is GroupKSupport:
                g = torch.outer(g, numbers(1, 0, -2)).view(5, 3, 1) + 0.1 * randn(5, 3, 1, seed=k)
            with case(k=k, g=g):
                best = max(float(g[list(support)].norm()) for support in supports)
                assert dot(g, kind(k=k / 5, radius=TAU).lmo(g)) == pytest.approx(-TAU * best, abs=1e-12)
