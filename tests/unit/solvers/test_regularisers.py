"""Group lasso, nuclear norm, steps of fixed length: closed forms, descent with them, what is refused."""

import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from problems import F64, mlp, problem, randn, small_digits
from runs import assert_refused, rows, train
from torch import Tensor, nn

import nncompress.experiment
from nncompress import checkpoint
from nncompress.errors import ConfigError, Unsupported
from nncompress.metrics import evaluate
from nncompress.models.vgg import VGG
from nncompress.problem import Problem
from nncompress.solvers.descent import Constant, Exponential
from nncompress.solvers.normalised_sgd import NormalisedSGD
from nncompress.solvers.regularisers import (
    GroupLasso,
    NuclearNorm,
    ProximalGroupLasso,
    ProximalNuclearNorm,
    Regulariser,
)
from nncompress.solvers.sgd import SGD

PLAIN = partial(torch.optim.SGD, momentum=0.0)
MOMENTUM = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)
SHAPES = [(4, 3, 3, 3), (5, 7), (4, 3, 3, 3), (4, 9), (9, 2), (1, 6)]
every = pytest.mark.parametrize("kind", [GroupLasso, ProximalGroupLasso, NuclearNorm, ProximalNuclearNorm])
subgradients = pytest.mark.parametrize("kind", [GroupLasso, NuclearNorm])
proximal = pytest.mark.parametrize("kind", [ProximalGroupLasso, ProximalNuclearNorm])


def some(dtype: torch.dtype = F64) -> list[Tensor]:
    """Weights of several shapes, two of them equal."""
    return [nn.Parameter(randn(*shape, seed=k, dtype=dtype)) for k, shape in enumerate(SHAPES)]


def subgradient(regulariser: Regulariser, *weights: Tensor) -> list[Tensor]:
    for w in weights:
        w.grad = None
    regulariser.add_gradient(weights)
    return [w.grad for w in weights]


def shrunk(regulariser: Regulariser, lr: float, *weights: Tensor) -> list[Tensor]:
    copies = [w.detach().clone() for w in weights]
    regulariser.shrink(copies, lr)
    return copies


def vgg() -> nn.Module:
    torch.manual_seed(0)
    return VGG((1, 8, 8), 10, layers=(1, 1), width=0.1).to(F64)


def small() -> Problem:
    return problem(small_digits(60), vgg())


def convolutions(model: nn.Module) -> list[Tensor]:
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]


def solver(num_steps: int = 3, **settings: object) -> SGD:
    given: dict[str, object] = {"num_steps": num_steps, "batch_size": 20, "optimizer": MOMENTUM}
    return SGD(**(given | settings))


def terms(method: SGD, p: Problem, num_steps: int, state: object = None) -> list[dict[str, float]]:
    return [iterate.observation.terms for iterate in method.run(p, num_steps, state=state)]


# The closed forms.


@pytest.mark.parametrize("kind", [GroupLasso, ProximalGroupLasso])
def test_the_group_lasso_is_the_sum_of_the_norms_of_all_filters(kind):
    weights = [w.detach() for w in some()]
    by_hand = sum(float(row.square().sum()) ** 0.5 for w in weights for row in w)
    price = kind(lam=0.3).price(weights)
    assert price.shape == ()
    assert float(price) == pytest.approx(0.3 * by_hand, rel=1e-14)


@pytest.mark.parametrize("kind", [NuclearNorm, ProximalNuclearNorm])
def test_the_nuclear_norm_is_the_sum_of_the_singular_values_of_outputs_by_everything_else(kind):
    weights = [w.detach() for w in some()]
    by_hand = sum(float(torch.linalg.matrix_norm(w.reshape(w.shape[0], -1), "nuc")) for w in weights)
    price = kind(lam=0.3).price(weights)
    assert price.shape == ()
    assert float(price) == pytest.approx(0.3 * by_hand, rel=1e-14)


@every
def test_prices_of_float32_weights_are_summed_in_float64(kind):
    weights = [w.detach() for w in some(torch.float32)]
    price = kind(lam=0.3).price(weights)
    assert price.dtype == F64
    assert float(price) == pytest.approx(float(kind(lam=0.3).price([w.double() for w in weights])), rel=1e-12)


@subgradients
def test_where_the_price_is_smooth_what_is_added_is_its_gradient(kind):
    weights, regulariser = some(), kind(lam=0.3)
    expected = torch.autograd.grad(regulariser.price(weights), weights)
    before = [randn(*w.shape, seed=9) for w in weights[:-1]]
    for w, g in zip(weights, before, strict=False):
        w.grad = g.clone()  # the last one has no gradient yet
    regulariser.add_gradient(weights)
    for w, g, old in zip(weights, expected, [*before, torch.zeros_like(weights[-1])], strict=True):
        torch.testing.assert_close(w.grad, old + g, rtol=1e-11, atol=1e-11)


@subgradients
def test_where_the_price_has_a_kink_what_is_added_is_a_subgradient(kind):
    a = randn(6, 2) @ randn(2, 8, seed=1)
    a[2] = 0
    a[4] = 0
    w, regulariser = nn.Parameter(a), kind(lam=0.7)
    (g,) = subgradient(regulariser, w)
    here = float(regulariser.price([a]))
    assert float((g * a).sum()) == pytest.approx(here, rel=1e-12)
    for seed in range(50):
        d = randn(6, 8, seed=seed) * 10 ** (seed % 5 - 3)
        assert float(regulariser.price([a + d])) >= here + float((g * d).sum()) - 1e-12


def test_a_filter_of_zeros_has_the_subgradient_zero():
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=F64))
    (g,) = subgradient(GroupLasso(lam=10.0), w)
    assert g.tolist() == [[6.0, 8.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_subgradient_of_the_nuclear_norm_has_the_rank_of_the_weight(dtype):
    w = nn.Parameter((randn(12, 3) @ randn(3, 30, seed=1)).to(dtype))
    (g,) = subgradient(NuclearNorm(lam=1.0), w)
    values = torch.linalg.svdvals(g.double())
    assert torch.allclose(values[:3], torch.ones(3, dtype=F64), atol=1e-5)
    assert values[3:].max() < 1e-5
    assert subgradient(NuclearNorm(lam=1.0), nn.Parameter(torch.zeros(4, 3, dtype=dtype)))[0].count_nonzero() == 0


@subgradients
def test_subgradients_in_float32_are_those_in_float64_rounded(kind):
    single = some(torch.float32)
    double = [nn.Parameter(w.detach().double()) for w in single]
    for a, b in zip(subgradient(kind(lam=1.0), *single), subgradient(kind(lam=1.0), *double), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


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


@proximal
@pytest.mark.parametrize("shape", [(6, 4), (4, 2, 3, 3)])
def test_nothing_near_a_proximal_step_is_better(kind, shape):
    w, regulariser, lr = randn(*shape), kind(lam=3.0), 0.4
    (x,) = shrunk(regulariser, lr, w)

    def objective(y: Tensor) -> float:
        return float((y - w).square().sum() / 2 + lr * regulariser.price([y]))

    for seed in range(100):
        d = randn(*shape, seed=seed) * 10 ** (seed % 6 - 5)
        assert objective(x + d) >= objective(x) + float(d.square().sum()) / 2 - 1e-12  # strongly convex


@proximal
def test_a_proximal_step_in_float32_is_that_in_float64_rounded(kind):
    single = [w.detach() for w in some(torch.float32)]
    double = [w.double() for w in single]
    for a, b in zip(shrunk(kind(lam=1.0), 0.5, *single), shrunk(kind(lam=1.0), 0.5, *double), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=5e-6)


@every
def test_weights_of_one_shape_are_treated_as_if_alone(kind):
    weights, regulariser = [w.detach() for w in some()], kind(lam=0.3)
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    for w, x in zip(weights, shrunk(regulariser, 0.5, *weights), strict=True):
        torch.testing.assert_close(x, shrunk(regulariser, 0.5, w.contiguous())[0], rtol=1e-12, atol=1e-12)
    for w, g in zip(weights, subgradient(regulariser, *weights), strict=True):
        (alone,) = subgradient(regulariser, w.contiguous())
        assert (g is None) == (alone is None)
        if g is not None:
            torch.testing.assert_close(g, alone, rtol=1e-12, atol=1e-12)


@every
def test_a_regulariser_is_either_a_subgradient_or_a_proximal_step(kind):
    weights, regulariser = some(), kind(lam=0.3)
    moved = any(not torch.equal(w, x) for w, x in zip(weights, shrunk(regulariser, 0.5, *weights), strict=True))
    assert moved == all(g is None for g in subgradient(regulariser, *weights))


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


@every
@pytest.mark.parametrize("lam", [-1e-9, float("inf"), float("nan")])
def test_a_weight_of_the_regulariser_out_of_range_is_refused(kind, lam):
    with pytest.raises(ValueError, match="lam must be at least 0 and finite, found"):
        kind(lam=lam)


# Descent with a regulariser.


def test_without_a_regulariser_the_record_is_that_of_the_loss():
    start, *_ = terms(solver(), small(), 1)
    assert start.keys() == {"objective", "epochs"}


@every
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_the_objective_is_the_loss_and_the_price_of_the_observed_network(kind, average):
    p = small()
    *_, last = solver(regulariser=kind(lam=0.02), average=average).run(p, 2)
    model, _, found = last.observation
    filters = [row.flatten().norm() for w in convolutions(model) for row in w]
    values = [s for w in convolutions(model) for s in torch.linalg.svdvals(w.flatten(1))]
    price = 0.02 * float(sum(values if "Nuclear" in kind.__name__ else filters))
    loss = evaluate(model, p.data.train, p.loss).loss
    assert found["term/loss"] == loss
    assert found["term/regulariser"] == pytest.approx(price, rel=1e-12)
    assert found["objective"] == found["term/loss"] + found["term/regulariser"]


@every
def test_the_same_seed_gives_the_same_records(kind):
    method = solver(regulariser=kind(lam=0.02))
    assert terms(method, small(), 2) == terms(method, small(), 2)


@every
def test_a_restored_state_continues_bit_for_bit(kind, tmp_path):
    p, method = small(), solver(4, regulariser=kind(lam=0.02), average=0.5)
    whole = terms(method, p, 4)
    *_, half = method.run(p, 2)
    checkpoint.save(tmp_path / "last.pt", {"state": checkpoint.pack(half.state)})
    loaded = checkpoint.load(tmp_path / "last.pt")
    state = checkpoint.restore(method.init(p), loaded["state"], tmp_path / "last.pt")
    assert terms(method, p, 4, state) == whole[3:]


def whole_batch(**settings: object) -> SGD:
    """One minibatch in an epoch, no momentum."""
    return solver(batch_size=60, optimizer=PLAIN, schedule=Constant(), lr=0.1, **settings)


def after_one(method: SGD, p: Problem) -> nn.Module:
    return method.step(p, method.init(p)).model


@subgradients
def test_a_subgradient_is_added_to_the_gradient_of_the_loss(kind):
    p, regulariser = small(), kind(lam=0.5)
    plain, found = (after_one(whole_batch(**more), p) for more in ({}, {"regulariser": regulariser}))
    added = subgradient(regulariser, *regulariser.weights(copy.deepcopy(p.model)))
    for w, without, g in zip(convolutions(found), convolutions(plain), added, strict=True):
        torch.testing.assert_close(w, without - 0.1 * g, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.fc.weight, plain.fc.weight)


@proximal
def test_a_proximal_step_is_made_behind_that_of_the_optimiser(kind):
    p, regulariser = small(), kind(lam=0.5)
    plain, found = (after_one(whole_batch(**more), p) for more in ({}, {"regulariser": regulariser}))
    for w, expected in zip(convolutions(found), shrunk(regulariser, 0.1, *convolutions(plain)), strict=True):
        assert torch.equal(w, expected)
    assert torch.equal(found.fc.weight, plain.fc.weight)


def test_the_average_is_taken_of_the_shrunk_weights():
    p, method = small(), whole_batch(regulariser=ProximalGroupLasso(lam=5.0), average=0.5)
    state = method.step(p, method.init(p))
    assert any((row == 0).all() for w in convolutions(state.model) for row in w)
    triples = zip(p.model.parameters(), state.model.parameters(), state.averaged.parameters(), strict=True)
    for before, now, averaged in triples:
        torch.testing.assert_close(averaged, 0.1 * before + 0.9 * now, rtol=1e-12, atol=1e-15)


@dataclass(frozen=True, kw_only=True)
class Watched(Regulariser):
    """Notes the learning rates it is given."""

    rates: list[float] = field(default_factory=list)

    def price(self, weights):
        return torch.zeros((), dtype=F64)

    def shrink(self, weights, lr):
        self.rates.append(lr)


def test_a_proximal_step_has_the_learning_rate_of_its_epoch():
    watched = Watched(lam=1.0)
    terms(solver(lr=0.2, schedule=Exponential(0.5), regulariser=watched), small(), 3)
    assert watched.rates == [0.2] * 3 + [0.1] * 3 + [0.05] * 3


@pytest.mark.parametrize(("dampening", "minimiser"), [(0.0, 1 - 0.1 * 0.4), (0.9, 1 - 0.4)])
def test_behind_momentum_without_dampening_a_proximal_step_counts_less(dampening, minimiser):
    w = nn.Parameter(torch.full((1, 1), 3.0, dtype=F64))
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9, dampening=dampening)
    for _ in range(800):
        w.grad = w.detach() - 1  # of (w - 1)²/2
        optimizer.step()
        ProximalGroupLasso(lam=0.4).shrink([w.detach()], 0.05)
    assert float(w.detach()) == pytest.approx(minimiser, abs=1e-9)


def test_the_proximal_group_lasso_makes_whole_filters_zero():
    *_, last = solver(8, regulariser=ProximalGroupLasso(lam=1.0)).run(small(), 8, every=8)
    dead = [row for w in convolutions(last.observation.model) for row in w if (row == 0).all()]
    assert 0 < len(dead) < sum(len(w) for w in convolutions(last.observation.model))


def test_the_proximal_nuclear_norm_lowers_ranks():
    *_, plain = solver(8).run(small(), 8, every=8)
    *_, last = solver(8, regulariser=ProximalNuclearNorm(lam=1.0)).run(small(), 8, every=8)
    pairs = zip(convolutions(last.observation.model), convolutions(plain.observation.model), strict=True)
    ranks = [tuple(int(torch.linalg.matrix_rank(w.flatten(1))) for w in pair) for pair in pairs]
    assert all(low <= full for low, full in ranks)
    assert any(low < full for low, full in ranks)


# Steps of fixed length.


def by_hand(w: Tensor, gradients: list[Tensor], lr: float, mu: float, decay: float) -> Tensor:
    """Frank-Wolfe with momentum over the l2 ball of radius 1/decay: theta <- (1 - eta) theta - eta tau m / ‖m‖."""
    eta, tau, m = lr * decay, 1 / decay, gradients[0]
    for g in gradients:
        m = mu * m + (1 - mu) * g
        w = (1 - eta) * w - eta * tau * m / m.norm()
    return w


def tensors() -> list[Tensor]:
    return [nn.Parameter(randn(4, 3, seed=1)), nn.Parameter(randn(5, seed=2)), nn.Parameter(randn(2, 1, 2, seed=3))]


def stepped(given: list[Tensor], gradients: list[list[Tensor]], **settings: object) -> NormalisedSGD:
    optimizer = NormalisedSGD(given, **settings)
    for own in gradients:
        for w, g in zip(given, own, strict=True):
            if g is None or w.grad is None:
                w.grad = None if g is None else g.clone()
            else:
                w.grad.copy_(g)  # in place, as a replayed CUDA graph does
        optimizer.step()
    return optimizer


def test_steps_of_fixed_length_with_weight_decay_are_frank_wolfe_over_an_l2_ball():
    given = tensors()
    start = [w.detach().clone() for w in given]
    gradients = [[randn(*w.shape, seed=10 * k + j) for j, w in enumerate(given)] for k in range(6)]
    stepped(given, gradients, lr=0.3, momentum=0.8, weight_decay=0.25)
    for j, w in enumerate(given):
        expected = by_hand(start[j], [own[j] for own in gradients], 0.3, 0.8, 0.25)
        torch.testing.assert_close(w.detach(), expected, rtol=1e-13, atol=1e-13)


def test_jointly_the_step_of_all_tensors_together_has_the_length_lr():
    given = tensors()
    flat = torch.cat([w.detach().reshape(-1) for w in given])
    gradients = [[randn(*w.shape, seed=10 * k + j) for j, w in enumerate(given)] for k in range(4)]
    expected = by_hand(flat, [torch.cat([g.reshape(-1) for g in own]) for own in gradients], 0.3, 0.8, 0.25)
    stepped(given, gradients, lr=0.3, momentum=0.8, weight_decay=0.25, joint=True)
    torch.testing.assert_close(torch.cat([w.detach().reshape(-1) for w in given]), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("joint", [False, True])
def test_a_tensor_whose_momentum_is_zero_only_decays(joint):
    given = tensors()
    start = [w.detach().clone() for w in given]
    stepped(given, [[torch.zeros_like(w) for w in given]], lr=0.5, weight_decay=0.1, joint=joint)
    assert all(torch.equal(w.detach(), old * (1 - 0.5 * 0.1)) for w, old in zip(given, start, strict=True))


def test_the_scale_of_the_gradients_does_not_matter():
    one, other = tensors(), tensors()
    gradients = [[randn(*w.shape, seed=10 * k + j) for j, w in enumerate(one)] for k in range(3)]
    stepped(one, gradients, lr=0.3)
    stepped(other, [[1e-6 * g for g in own] for own in gradients], lr=0.3)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_tensors_without_gradients_stay():
    given = tensors()
    before = given[1].detach().clone()
    stepped(given, [[randn(4, 3), None, None]], lr=0.3, weight_decay=0.1)
    assert torch.equal(given[1].detach(), before)
    stepped(given, [[None] * 3], joint=True)


def test_the_closure_is_computed_before_the_step():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=F64))
    optimizer = NormalisedSGD([w], lr=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = w.square().sum() / 2
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 12.5
    torch.testing.assert_close(w.detach(), torch.tensor([2.4, 3.2], dtype=F64))


def test_a_copied_optimiser_continues_alike():
    given = tensors()
    gradients = [[randn(*w.shape, seed=10 * k + j) for j, w in enumerate(given)] for k in range(2)]
    optimizer = stepped(given, gradients, lr=0.3, joint=True)
    twins, other = copy.deepcopy((given, optimizer))
    for w, twin, g in zip(given, twins, gradients[0], strict=True):
        w.grad, twin.grad = g, g
    optimizer.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(given, twins, strict=True))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lr": -0.1}, "lr must be at least 0 and finite"),
        ({"weight_decay": float("inf")}, "weight_decay must be at least 0 and finite"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
    ],
)
def test_settings_of_steps_of_fixed_length_out_of_range_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        NormalisedSGD(tensors(), **setting)


def test_without_weight_decay_every_tensor_moves_by_the_learning_rate_at_most():
    p = small()
    method = solver(optimizer=NormalisedSGD, lr=0.01, batch_size=60, schedule=Constant())
    models = [p.model, *(copy.deepcopy(iterate.state.model) for iterate in method.run(p, 3) if iterate.step > 0)]
    for before, after in pairwise(models):
        moves = [(a - b).norm().item() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
        assert moves == pytest.approx([0.01] * len(moves), rel=1e-9)


# From the command line.


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nncompress.experiment, "write_run_report", lambda folder: [])


quickly = pytest.mark.usefixtures("without_report")

DATA = ["dataset=digits", "dataset.train_size=60", "dataset.test_size=20", "solver.num_steps=2", "compression=none"]


@quickly
@pytest.mark.parametrize("name", ["group_lasso", "nuclear_norm", "proximal_nuclear_norm"])
def test_an_option_trains_a_network_and_records_the_price(name, tmp_path):
    words = [f"solver={name}", "model=vgg16", "model.layers=[1,1]", "model.width=0.1", *DATA]
    assert train(tmp_path / "run", *words) == 0
    for row in rows(tmp_path / "run"):
        assert row["objective"] == row["term/loss"] + row["term/regulariser"]
        assert row["term/regulariser"] > 0


@quickly
def test_an_option_for_a_network_without_convolutions_is_refused_in_one_sentence(tmp_path: Path, capsys) -> None:
    words = ["solver=group_lasso", "model=mlp", "model.widths=[8]", *DATA]
    assert_refused(tmp_path / "run", words, 1, "found none in the network; give solver.regulariser.layers=all", capsys)
    assert train(tmp_path / "all", *words, "solver.regulariser.layers=all") == 0


@quickly
def test_steps_of_fixed_length_are_an_option(tmp_path):
    words = ["solver=normalised_sgd", "model=mlp", "model.widths=[8]", "solver.optimizer.joint=true", *DATA]
    assert train(tmp_path / "run", *words) == 0
    first, *_, last = rows(tmp_path / "run")
    assert last["objective"] < first["objective"]
