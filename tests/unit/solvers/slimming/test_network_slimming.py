"""Network slimming as first published: the subgradient, the threshold, fine-tuning, resuming, what is refused."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from cases import case
from image_networks import norms, outputs
from problems import F64, gaussian, problem, randn
from slimming_cases import BATCH, MOMENTUM, N, small, spread, tensors, vgg
from torch import Tensor, nn

from nncompress.errors import Unsupported
from nncompress.experiment import checkpoint
from nncompress.metrics import evaluate
from nncompress.models.densenet import DenseNet
from nncompress.models.preresnet import PreResNet
from nncompress.problem import Problem
from nncompress.solvers.slimming.figures import channel_details
from nncompress.solvers.slimming.network_slimming import NetworkSlimming, NetworkSlimmingState
from nncompress.solvers.slimming.scales import Scales
from nncompress.solvers.training import descent
from nncompress.surgery.channels import is_reshaped, kept_in
from nncompress.surgery.removal import remove_channels


def solver(num_steps: int = 4, fine_tune: int = 2, **settings: object) -> NetworkSlimming:
    given: dict[str, object] = {"lam": 0.05, "percent": 0.5, "lr": 0.1, "batch_size": BATCH, "optimizer": MOMENTUM}
    return NetworkSlimming(num_steps=num_steps, fine_tune=fine_tune, **(given | settings))


def residual() -> nn.Module:
    """Bottlenecks, with scaling factors that differ."""
    torch.manual_seed(0)
    network = PreResNet((1, 8, 8), 10, depth=11, width=0.25).to(F64)
    return spread(network)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return spread(DenseNet((1, 8, 8), 10, depth=7, growth=3).to(F64))


def states(method: NetworkSlimming, p: Problem) -> list[NetworkSlimmingState]:
    """Copies of all states of a run."""
    return [copy.deepcopy(iterate.state) for iterate in method.run(p, method.num_steps)]


def descend(
    p: Problem,
    model: nn.Module,
    generator: torch.Generator,
    rates: list[float],
    *,
    lam: float = 0.0,
    decay: bool = True,
) -> dict[str, Tensor]:
    """An epoch for each rate, by hand: gradient, subgradient of the scaling factors, decay, momentum, step."""
    factors = [norm.weight for norm in norms(model)]
    buffers: dict[str, Tensor] = {}
    model.train()
    for lr in rates:
        for batch in torch.randperm(N, generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(p.data.train.x[batch]), p.data.train.y[batch])
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for name, w, gradient in zip(names, parameters, gradients, strict=True):
                is_factor = any(w is factor for factor in factors)
                push = torch.zeros_like(w) if gradient is None else gradient
                push = push + lam * w.detach().sign() if is_factor else push
                push = push + 1e-2 * w.detach() if decay or not is_factor else push
                buffers[name] = 0.9 * buffers[name] + push if name in buffers else push
                w.data = w.data - lr * buffers[name]
    return buffers


def test_the_subgradient_passes_through_the_momentum():
    for decay in (True, False):
        with case(decay=decay):
            p, method = small(), solver(3, 0, decay_scales=decay, seed=2)
            model = copy.deepcopy(p.model)
            buffers = descend(p, model, torch.Generator().manual_seed(2), [0.1, 0.1, 0.01], lam=0.05, decay=decay)
            state = states(method, p)[-1]
            torch.testing.assert_close(state.model.state_dict(), model.state_dict(), rtol=0, atol=1e-10)
            found = {name: state.optimizer.state[w]["momentum_buffer"] for name, w in state.model.named_parameters()}
            torch.testing.assert_close(found, buffers, rtol=0, atol=1e-10)


def test_a_scaling_factor_of_zero_has_no_subgradient():
    network = vgg()
    with torch.no_grad():
        norms(network)[1].weight[2], norms(network)[1].bias[2] = 0, -1  # dead, so without a gradient of the loss
    found = states(solver(2, 0, lam=0.3), small(network))[-1].model
    after, before = (norms(model)[1].weight.detach() for model in (found, network))
    assert torch.equal(after == before, torch.arange(6) == 2)


def test_without_a_penalty_it_is_sgd():
    p = small()
    model = copy.deepcopy(p.model)
    descend(p, model, torch.Generator().manual_seed(0), [0.1, 0.01])
    found = states(solver(2, 0, lam=0.0), p)[-1].model
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=1e-12)


def test_what_is_at_most_the_threshold_over_all_layers_goes():
    network, values = vgg((1, 1, 1), 0.1), randn(45)
    values[7] = -values[3]  # a tie
    Scales.of(network).put(values)
    p = small(network)
    for percent in (0.0, 0.1, 0.29, 0.5, 0.7, 0.99):
        with case(percent=percent):
            method = solver(percent=percent)
            state = method.init(p)
            found = method.masked_network(p, state)
            threshold = sorted(map(abs, values.tolist()))[int(percent * 45)]
            expected = list((values.abs() > threshold).split([6, 13, 26]))
            for k, part in enumerate(values.split([6, 13, 26])):
                if not expected[k].any():  # the largest stays
                    expected[k] = part.abs() == part.abs().max()
            assert all(map(torch.equal, kept_in(found).values(), expected))
            assert torch.equal(Scales.of(found).gamma(), torch.where(torch.cat(expected), values, 0))
            details = method.result(p, state, method.observe(p, state)).details
            assert details == channel_details(found, Scales.of(network).named(values))


def test_a_share_of_none_takes_the_smallest_channel():
    p, method = small(), solver(percent=0.0)
    kept = torch.cat(list(kept_in(method.masked_network(p, method.init(p))).values()))
    assert kept.nonzero().flatten().tolist() == [c for c in range(9) if c != int(Scales.of(p.model).gamma().argmin())]


def test_a_target_takes_the_place_of_the_share():
    p, method = small(vgg((1, 1, 1), 0.1), ("ratio", 0.4)), solver(percent=0.99)
    network = remove_channels(method.masked_network(p, method.init(p)))
    size = sum(w.numel() for w in p.model.parameters())
    assert 0.35 * size < sum(w.numel() for w in network.parameters()) <= 0.4 * size


def test_before_fine_tuning_the_network_is_the_one_pruned_without_it():
    p = small(residual())
    with_tuning, without = solver(4, 2), solver(2, 0)
    first, second = states(with_tuning, p)[2], states(without, p)[-1]
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))
    a, b = (method.masked_network(p, state) for method, state in ((with_tuning, first), (without, second)))
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    terms = with_tuning.observe(p, first).terms
    assert terms == without.observe(p, second).terms
    kept = kept_in(a).values()
    assert 0 < sum(int(mask.sum()) for mask in kept) < sum(map(len, kept))


def test_the_objective_has_the_penalty_until_the_channels_are_gone():
    p, method = small(), solver(2, 1)
    before, trained, tuned = (iterate.observation for iterate in method.run(p, 2))
    for observation in (before, trained):
        gamma = Scales.of(observation.model).gamma()
        assert observation.terms["term/penalty"] == pytest.approx(0.05 * float(gamma.abs().sum()))
    assert tuned.terms["term/penalty"] == 0
    for observation in (before, trained, tuned):
        terms, loss = observation.terms, evaluate(observation.model, p.data.train, p.loss).loss
        assert terms["term/loss"] == loss
        assert terms["objective"] == pytest.approx(loss + terms["term/penalty"])


def test_the_recorded_steps_are_the_differences_of_the_iterates():
    p, method = small(), solver(2, 0)
    found = states(method, p)
    for before, after in pairwise(found):
        pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
        moved = sum(float((a.detach() - b.detach()).square().sum()) for a, b in pairs)
        assert method.observe(p, after).terms["step_sq"] == pytest.approx(moved)


def test_fine_tuning_has_a_new_optimiser_and_the_schedule_from_its_beginning(monkeypatch):
    seen = []

    def spy(optimizer, lr):
        seen.append((round(lr, 9), optimizer, len(optimizer.state)))
        for group in optimizer.param_groups:
            group["lr"] = lr

    monkeypatch.setattr(descent, "set_rate", spy)
    list(solver(10, 6).run(small(), 10))
    rates, optimizers, held = zip(*seen, strict=True)
    assert rates == (0.1, 0.1, 0.01, 0.001, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001)
    assert len(set(map(id, optimizers[:4]))) == len(set(map(id, optimizers[4:]))) == 1
    assert optimizers[0] is not optimizers[4]
    assert [count == 0 for count in held] == [True, False, False, False, True, *[False] * 5]


@pytest.mark.parametrize("make", [vgg, residual, dense])
def test_fine_tuning_with_masks_is_training_the_smaller_network(make):
    p, method = small(make()), solver(6, 4, percent=0.6)
    found = states(method, p)
    keep = found[-1].keep != 0
    assert 0 < int(keep.sum()) < len(keep)
    for state in found[3:]:  # dead channels stay zero and the others move
        assert torch.equal(state.keep != 0, keep)
        scales = Scales.of(state.model)
        shifts = torch.cat([shift.detach() for shift in scales.shifts])
        assert not scales.gamma()[~keep].any()
        assert not shifts[~keep].any()
        assert bool((scales.gamma()[keep] != 0).all())
    assert not torch.equal(Scales.of(found[3].model).gamma(), Scales.of(found[4].model).gamma())
    network = remove_channels(method.masked_network(p, found[2]))
    assert is_reshaped(network)
    generator = torch.Generator()
    generator.set_state(found[2].generator.get_state())
    descend(p, network, generator, [0.1, 0.1, 0.01, 0.001])
    masked = method.masked_network(p, found[-1])
    torch.testing.assert_close(remove_channels(masked).state_dict(), network.state_dict(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs(masked, p.data.test.x), outputs(network, p.data.test.x), rtol=1e-9, atol=1e-9)


def test_dead_channels_stay_zero_where_no_relu_keeps_gradients_from_them():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 10)).to(F64)
    last = states(solver(3, 2), small(spread(network)))[-1]
    keep = last.keep != 0
    assert 0 < int(keep.sum()) < 6
    assert torch.equal(last.model[1].weight != 0, keep)
    assert torch.equal(last.model[1].bias != 0, keep)


def test_all_epochs_may_be_fine_tuning():
    p, method = small(), solver(2, 2)
    found = states(method, p)
    kept = method.masked_network(p, found[0])
    model = copy.deepcopy(remove_channels(kept))
    descend(p, model, torch.Generator().manual_seed(0), [0.1, 0.01])
    after = remove_channels(method.masked_network(p, found[-1]))
    torch.testing.assert_close(after.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [vgg, residual])
def test_a_run_that_is_taken_up_again_ends_bit_for_bit_like_an_unbroken_one(make, tmp_path):
    p, method = small(make()), solver(4, 2)
    for whole in method.run(p, 4):
        checkpoint.save(tmp_path / f"{whole.state.k}.pt", {"state": checkpoint.pack(whole.state)})
    for k in (1, 2, 3):
        with case(k=k):
            packed = checkpoint.load(tmp_path / f"{k}.pt")["state"]
            state = checkpoint.restore(method.init(p), packed, tmp_path / f"{k}.pt")
            assert state.k == k
            *_, resumed = method.run(p, 4, state=state)
            assert resumed.observation.terms == whole.observation.terms
            assert all(map(torch.equal, tensors(checkpoint.pack(resumed.state)), tensors(checkpoint.pack(whole.state))))


def test_more_steps_than_planned_go_on_with_fine_tuning():
    p = small()
    *_, part = solver(4, 2).run(p, 4)
    keep, pruned = part.state.keep.clone(), part.state.pruned
    method = solver(8, 4)
    *_, more = method.run(p, 8, state=part.state)
    assert (pruned, more.state.pruned) == (2, 2)
    assert torch.equal(more.state.keep, keep)
    assert more.observation.terms["term/penalty"] == 0
    before, after = ({n: m.tolist() for n, m in kept_in(x.masked_network(p, s)).items()} for x, s in (
        (solver(4, 2), part.state), (method, more.state)
    ))  # fmt: skip
    assert before == after


def test_the_problem_is_left_alone():
    p = small()
    before = copy.deepcopy(p.model.state_dict())
    states(solver(), p)
    assert all(map(torch.equal, p.model.state_dict().values(), before.values()))


def test_a_layer_left_without_channels_is_told(caplog):
    network = vgg()
    with torch.no_grad():
        norms(network)[0].weight *= 1e-3
    p, method = small(network), solver(1, 1)
    state = method.init(p)
    (note,) = method.result(p, state, method.observe(p, state)).notes
    assert note.startswith("no channel is left in features.bn1_1: the one with the largest scale stays")
    method.step(p, state)
    assert "no channel is left in features.bn1_1" in caplog.text


def test_a_residual_block_left_without_channels_is_its_shortcut():
    network = residual()
    with torch.no_grad():
        network.blocks[1].branch.bn2.weight *= 1e-3
    p, method = small(network), solver(2, 1)
    found = states(method, p)
    last = method.masked_network(p, found[-1])
    assert not any(mask.any() for name, mask in kept_in(last).items() if name.startswith("blocks.1.branch"))
    assert not list(remove_channels(last).blocks[1].branch.parameters())


WRONG = [
    ({"percent": 1.0}, "percent must be a part of the channels, at least 0 and below 1, found 1.0"),
    ({"percent": -0.1}, "percent must be"),
    ({"percent": math.nan}, "percent must be"),
    ({"lam": -1e-4}, "lam must be at least 0 and finite, found -0.0001"),
    ({"lam": math.inf}, "lam must be"),
    ({"num_steps": 3, "fine_tune": 4}, r"fine_tune must be at least 0 and at most num_steps \(3\), found 4"),
    ({"fine_tune": -1}, "fine_tune must be"),
    ({"lr": 0}, "lr must be positive"),
    ({"batch_size": 0}, "batch_size must be"),
]


def test_settings_out_of_range_are_refused():
    for settings, said in WRONG:
        with case(**settings), pytest.raises(ValueError, match=said):
            NetworkSlimming(**settings)


def test_a_network_without_batch_norm_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(F64)
    with pytest.raises(Unsupported, match="needs batch norms with scaling factors, found none"):
        solver().init(small(network))


def test_a_batch_norm_that_the_loss_does_not_reach_is_left_alone():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aux, self.body = nn.BatchNorm1d(8), nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    p = problem(gaussian(n=40), Net().to(F64))
    *_, last = NetworkSlimming(num_steps=2, fine_tune=0, percent=0, batch_size=20, lam=0.01).run(p, 2)
    assert torch.equal(last.state.model.aux.weight, torch.ones(8, dtype=F64))
