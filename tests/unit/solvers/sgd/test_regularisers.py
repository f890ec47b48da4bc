"""Group lasso and nuclear norm: closed forms, which weights they act on, what is refused."""

import pytest
import torch
from cases import case
from problems import F64, mlp, problem, randn, small_digits
from regulariser_cases import KINDS, PROXIMAL, SUBGRADIENTS, shrunk, small, solver, subgradient, vgg
from torch import Tensor, nn

from nncompress.errors import ConfigError, Unsupported
from nncompress.solvers.sgd.regularisers import GroupLasso, NuclearNorm, ProximalGroupLasso, ProximalNuclearNorm

SHAPES = [(4, 3, 3, 3), (5, 7), (4, 3, 3, 3), (4, 9), (9, 2), (1, 6)]


def some(dtype: torch.dtype = F64) -> list[Tensor]:
    """Weights of several shapes, two of them equal."""
    return [nn.Parameter(randn(*shape, seed=k, dtype=dtype)) for k, shape in enumerate(SHAPES)]


def test_the_group_lasso_is_the_sum_of_the_norms_of_all_filters():
    weights = [w.detach() for w in some()]
    by_hand = sum(float(row.square().sum()) ** 0.5 for w in weights for row in w)
    for kind in (GroupLasso, ProximalGroupLasso):
        price = kind(lam=0.3).price(weights)
        assert price.shape == ()
        assert float(price) == pytest.approx(0.3 * by_hand, rel=1e-14)


def test_the_nuclear_norm_is_the_sum_of_the_singular_values_of_outputs_by_everything_else():
    weights = [w.detach() for w in some()]
    by_hand = sum(float(torch.linalg.matrix_norm(w.reshape(w.shape[0], -1), "nuc")) for w in weights)
    for kind in (NuclearNorm, ProximalNuclearNorm):
        price = kind(lam=0.3).price(weights)
        assert price.shape == ()
        assert float(price) == pytest.approx(0.3 * by_hand, rel=1e-14)


def test_prices_of_float32_weights_are_summed_in_float64():
    weights = [w.detach() for w in some(torch.float32)]
    for kind in KINDS:
        with case(kind=kind):
            price = kind(lam=0.3).price(weights)
            assert price.dtype == F64
            assert float(price) == pytest.approx(float(kind(lam=0.3).price([w.double() for w in weights])), rel=1e-12)


def test_a_regulariser_is_either_a_subgradient_or_a_proximal_step():
    for kind in KINDS:
        with case(kind=kind):
            weights, regulariser = some(), kind(lam=0.3)
            after = shrunk(regulariser, 0.5, *weights)
            moved = any(not torch.equal(w, x) for w, x in zip(weights, after, strict=True))
            assert moved == (kind in PROXIMAL)
            assert all((g is None) == (kind in PROXIMAL) for g in subgradient(regulariser, *weights))


def test_weights_of_one_shape_are_treated_as_if_alone():
    for kind in KINDS:
        with case(kind=kind):
            weights, regulariser = [w.detach() for w in some()], kind(lam=0.3)
            weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
            for w, x in zip(weights, shrunk(regulariser, 0.5, *weights), strict=True):
                torch.testing.assert_close(x, shrunk(regulariser, 0.5, w.contiguous())[0], rtol=1e-12, atol=1e-12)
            for w, g in zip(weights, subgradient(regulariser, *weights), strict=True):
                (alone,) = subgradient(regulariser, w.contiguous())
                assert (g is None) == (alone is None)
                if g is not None:
                    torch.testing.assert_close(g, alone, rtol=1e-12, atol=1e-12)


# Subgradients.


def test_where_the_price_is_smooth_what_is_added_is_its_gradient():
    for kind in SUBGRADIENTS:
        with case(kind=kind):
            weights, regulariser = some(), kind(lam=0.3)
            expected = torch.autograd.grad(regulariser.price(weights), weights)
            before = [randn(*w.shape, seed=9) for w in weights[:-1]]
            for w, g in zip(weights, before, strict=False):
                w.grad = g.clone()  # the last one has no gradient yet
            regulariser.add_gradient(weights)
            for w, g, old in zip(weights, expected, [*before, torch.zeros_like(weights[-1])], strict=True):
                torch.testing.assert_close(w.grad, old + g, rtol=1e-11, atol=1e-11)


def test_where_the_price_has_a_kink_what_is_added_is_a_subgradient():
    a = randn(6, 2) @ randn(2, 8, seed=1)
    a[2] = 0
    a[4] = 0
    for kind in SUBGRADIENTS:
        w, regulariser = nn.Parameter(a), kind(lam=0.7)
        (g,) = subgradient(regulariser, w)
        here = float(regulariser.price([a]))
        assert float((g * a).sum()) == pytest.approx(here, rel=1e-12)
        for seed in range(50):
            with case(kind=kind, seed=seed):
                d = randn(6, 8, seed=seed) * 10 ** (seed % 5 - 3)
                assert float(regulariser.price([a + d])) >= here + float((g * d).sum()) - 1e-12


def test_a_filter_of_zeros_has_the_subgradient_zero():
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=F64))
    (g,) = subgradient(GroupLasso(lam=10.0), w)
    assert g.tolist() == [[6.0, 8.0], [0.0, 0.0]]


def test_the_subgradient_of_the_nuclear_norm_has_the_rank_of_the_weight():
    for dtype in (torch.float32, F64):
        with case(dtype=dtype):
            w = nn.Parameter((randn(12, 3) @ randn(3, 30, seed=1)).to(dtype))
            (g,) = subgradient(NuclearNorm(lam=1.0), w)
            values = torch.linalg.svdvals(g.double())
            assert torch.allclose(values[:3], torch.ones(3, dtype=F64), atol=1e-5)
            assert values[3:].max() < 1e-5
            (zero,) = subgradient(NuclearNorm(lam=1.0), nn.Parameter(torch.zeros(4, 3, dtype=dtype)))
            assert zero.count_nonzero() == 0


def test_subgradients_in_float32_are_those_in_float64_rounded():
    single = some(torch.float32)
    double = [nn.Parameter(w.detach().double()) for w in single]
    for kind in SUBGRADIENTS:
        for a, b in zip(subgradient(kind(lam=1.0), *single), subgradient(kind(lam=1.0), *double), strict=True):
            with case(kind=kind, shape=a.shape):
                assert a.dtype == torch.float32
                torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


# Proximal steps.


def test_the_proximal_step_of_the_group_lasso_by_hand():
    w = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=F64)
    (found,) = shrunk(ProximalGroupLasso(lam=10.0), 0.1, w)
    torch.testing.assert_close(found, torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]], dtype=F64))
    assert found[1:].count_nonzero() == 0
    assert torch.equal(shrunk(ProximalGroupLasso(lam=0.0), 0.1, w)[0], w)


def test_the_proximal_step_of_the_nuclear_norm_by_hand():
    w = torch.diag(torch.tensor([3.0, -1.0, 0.2], dtype=F64))
    (found,) = shrunk(ProximalNuclearNorm(lam=5.0), 0.1, w)
    torch.testing.assert_close(found, torch.diag(torch.tensor([2.5, -0.5, 0.0], dtype=F64)))


def test_nothing_near_a_proximal_step_is_better():
    for kind in PROXIMAL:
        for shape in ((6, 4), (4, 2, 3, 3)):
            w, regulariser, lr = randn(*shape), kind(lam=3.0), 0.4
            (x,) = shrunk(regulariser, lr, w)

            def objective(y: Tensor, w=w, regulariser=regulariser, lr=lr) -> float:
                return float((y - w).square().sum() / 2 + lr * regulariser.price([y]))

            least = objective(x)
            for seed in range(100):
                with case(kind=kind, shape=shape, seed=seed):
                    d = randn(*shape, seed=seed) * 10 ** (seed % 6 - 5)
                    assert objective(x + d) >= least + float(d.square().sum()) / 2 - 1e-12  # strongly convex


def test_a_proximal_step_in_float32_is_that_in_float64_rounded():
    single = [w.detach() for w in some(torch.float32)]
    double = [w.double() for w in single]
    for kind in PROXIMAL:
        for a, b in zip(shrunk(kind(lam=1.0), 0.5, *single), shrunk(kind(lam=1.0), 0.5, *double), strict=True):
            with case(kind=kind, shape=a.shape):
                assert a.dtype == torch.float32
                torch.testing.assert_close(a.double(), b, rtol=0, atol=5e-6)


# Which weights, and what is refused.


def names(layers: object, model: nn.Module) -> list[str]:
    found = {id(w) for w in GroupLasso(lam=1.0, layers=layers).weights(model)}
    return [name for name, p in model.named_parameters() if id(p) in found]


def test_a_regulariser_acts_on_the_convolutions_on_all_weights_or_on_patterns():
    convs = ["features.conv1_1.weight", "features.conv2_1.weight"]
    assert names("convolutions", vgg()) == convs
    assert names("all", vgg()) == [*convs, "fc.weight"]
    assert names("hidden", vgg()) == convs
    assert names(["fc", "*conv2*"], vgg()) == [convs[1], "fc.weight"]


def test_a_convolution_that_is_used_twice_counts_once():
    conv = nn.Conv2d(2, 2, 3, bias=False)
    assert len(GroupLasso(lam=1.0).weights(nn.Sequential(conv, nn.ReLU(), conv))) == 1


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="found 'conv9'"):
        solver(regulariser=GroupLasso(lam=1.0, layers=["conv9"])).init(small())


def test_a_network_without_convolutions_is_refused():
    p = problem(small_digits(60), mlp(small_digits(60)))
    with pytest.raises(Unsupported, match=r"found none in the network; give solver\.regulariser\.layers=all"):
        solver(regulariser=NuclearNorm(lam=1.0)).init(p)


def test_a_frozen_weight_is_refused():
    p = small()
    p.model.features.conv2_1.weight.requires_grad_(False)
    with pytest.raises(Unsupported, match=r"found that features\.conv2_1\.weight is frozen"):
        solver(regulariser=NuclearNorm(lam=1.0)).init(p)


def test_a_weight_of_the_regulariser_out_of_range_is_refused():
    for kind in KINDS:
        for lam in (-1e-9, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=f"lam must be at least 0 and finite, found {lam}"):
                kind(lam=lam)
