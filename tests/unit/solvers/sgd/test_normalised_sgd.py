"""Steps of fixed length: Frank-Wolfe over an l2 ball, by hand, alone and jointly."""

import copy
from itertools import pairwise

import pytest
import torch
from cases import case
from problems import F64, randn
from regulariser_cases import small, solver
from torch import Tensor, nn

from nncompress.solvers.sgd.normalised_sgd import NormalisedSGD
from nncompress.solvers.training.descent import Constant


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


def test_a_tensor_whose_momentum_is_zero_only_decays():
    for joint in (False, True):
        with case(joint=joint):
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
    moved = [w.detach().clone() for w in given]
    stepped(given, [[None] * 3], joint=True)
    assert all(map(torch.equal, given, moved))


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


def test_settings_of_steps_of_fixed_length_out_of_range_are_refused():
    for setting, said in [
        ({"lr": -0.1}, "lr must be at least 0 and finite"),
        ({"weight_decay": float("inf")}, "weight_decay must be at least 0 and finite"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
    ]:
        with pytest.raises(ValueError, match=said):
            NormalisedSGD(tensors(), **setting)


def test_without_weight_decay_every_tensor_moves_by_the_learning_rate_at_most():
    p = small()
    method = solver(optimizer=NormalisedSGD, lr=0.01, batch_size=60, schedule=Constant())
    models = [p.model, *(copy.deepcopy(iterate.state.model) for iterate in method.run(p, 3) if iterate.step > 0)]
    for before, after in pairwise(models):
        moves = [(a - b).norm().item() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
        assert moves == pytest.approx([0.01] * len(moves), rel=1e-9)
