"""The solver over stochastic Frank-Wolfe: its steps, records, restored states, delay, feedback, what it refuses."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import case
from frank_wolfe_cases import Reference, all_in, enter, mlp_problem, papers, terms, vertex
from problems import mlp, problem, small_digits
from torch import Tensor, nn

from nncompress.constraints.assignment import Assignment
from nncompress.constraints.k_support import KSparse, KSupport
from nncompress.constraints.lp import L2
from nncompress.constraints.size import Diameter, FromInitialisation, initial_norms
from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport
from nncompress.errors import ConfigError, Unsupported
from nncompress.experiment import checkpoint
from nncompress.problem import Split
from nncompress.solvers.frank_wolfe.frank_wolfe import FrankWolfe, LossFeedback
from nncompress.solvers.frank_wolfe.sfw import SFW, FastGradientRescaling, GradientRescaling, NoRescaling
from nncompress.solvers.training.descent import Constant, Cosine, Linear, MultiStep


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of the steps of the optimiser, as they come."""
    seen, step = [], SFW.step

    def spy(self, closure=None):
        seen.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(SFW, "step", spy)
    return seen


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


def test_the_schedule_is_followed_within_the_epochs(rates):
    for schedule in (Linear(), Cosine(), MultiStep((0.5,), 0.1), Constant()):
        with case(schedule=schedule):
            rates.clear()
            solver = FrankWolfe(constraint=all_in(L2()), num_steps=4, lr=0.2, batch_size=50, schedule=schedule)
            assert len([*solver.run(mlp_problem(), 4, every=4)]) == 5  # 120 samples: 3 batches an epoch
            assert rates == pytest.approx([0.2 * schedule.factor(k / 3, 4) for k in range(12)], rel=1e-12)


# Records.


def test_records_hold_the_objective_the_gap_the_step_sizes_and_the_gauges():
    p = mlp_problem()
    for joint in (False, True):
        rules = Assignment(set=KSupport(k=0.2), params="weights", joint=joint)
        first, *others = terms(FrankWolfe(constraint=rules, num_steps=4, batch_size=16), p)
        name = next(key for key in first if key.startswith("gauge/")).removeprefix("gauge/")
        assert joint or name == "fc1.weight"
        assert first.keys() >= {"objective", "epochs", "fw_gap", "gauge", f"gauge/{name}"}
        assert not any(key.startswith("eta") for key in first)
        assert len(others) == 4
        for row in others:
            with case(joint=joint, row=row):
                assert row.keys() >= first.keys() | {"eta", "eta/clipped", f"eta/{name}", "step_sq", "step_sq/sum"}
                assert len([key for key in row if key.startswith("gauge/")]) == (1 if joint else 3)
                assert row["fw_gap"] >= 0
                assert row["gauge"] == max(row[key] for key in row if key.startswith("gauge/")) <= 1 + 1e-9
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


def test_the_gap_recorded_is_that_of_samples_drawn_once():
    p = mlp_problem()
    whole = p.data.train
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:50]
    for constraint in (L2(), KSupport(k=0.2), SpectralKSupport(k=0.2), Nuclear()):
        solver = FrankWolfe(constraint=Assignment(set=constraint, params="weights", size=Diameter(value=6.0)))
        state = solver.step(p, solver.init(p))
        for samples, batch in ((0, whole), (50, Split(whole.x[drawn], whole.y[drawn])), (500, whole)):
            with case(constraint=constraint, samples=samples):
                model, _, found, *_ = replace(solver, gap_samples=samples).observe(p, state)
                held = [w for w in model.parameters() if w.dim() >= 2]
                gradients = torch.autograd.grad(p.loss(model(batch.x), batch.y), held)
                vertices = [vertex(constraint.of_radius(3.0), [g])[0] for g in gradients]
                gap = sum(
                    float((g * (w.detach() - v)).sum()) for g, w, v in zip(gradients, held, vertices, strict=True)
                )
                assert found["fw_gap"] == pytest.approx(gap, rel=1e-6)


def test_the_gap_recorded_does_not_depend_on_how_the_vertices_were_found():
    """It measures the network; a vertex that is not the best one would make it too small, or negative."""
    p = mlp_problem()
    for kind, settings in ((SpectralKSupport, {"k": 0.3}), (SpectralKSparse, {"k": 0.3}), (Nuclear, {})):
        with case(kind=kind):
            sets = [Assignment(set=kind(**settings, rounds=rounds), params="weights") for rounds in (0, 1)]
            exact, rough = (terms(FrankWolfe(constraint=s, num_steps=1), p, steps=0)[0]["fw_gap"] for s in sets)
            assert rough == pytest.approx(exact, rel=1e-6)


# Restored states.


WITH_FEEDBACK = FrankWolfe(
    constraint=all_in(KSupport(k=0.2)), num_steps=14, batch_size=40, feedback=LossFeedback(start=0, every=1)
)
WITH_DELAY = FrankWolfe(
    constraint=papers(SpectralKSupport(k=0.3, rounds=1), 5.0, "weights"), num_steps=14, batch_size=40, delay=0.5,
    dampening=0.9, rescaling=FastGradientRescaling(), mixup=0.2, label_smoothing=0.1,
)  # fmt: skip


@pytest.mark.parametrize(("solver", "at"), [(WITH_FEEDBACK, 12), (WITH_DELAY, 5)], ids=["feedback", "delay"])
def test_a_restored_state_continues_bit_for_bit(solver, at, tmp_path):
    """Momenta, bases, losses and the factor included; the sets change behind epoch 7, the factor behind epoch 10."""
    p, path, whole = mlp_problem(), tmp_path / "last.pt", []
    for iterate in solver.run(p, 14):
        whole.append(iterate)
        if iterate.step == at:
            checkpoint.save(path, {"state": checkpoint.pack(iterate.state)})
    state = checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path)
    rest = list(solver.run(p, 14, state=state))
    assert [it.observation.terms for it in rest] == [it.observation.terms for it in whole[at + 1 :]]
    ends = [iterates[-1].state for iterates in (whole, rest)]
    assert_same(*(checkpoint.pack(end) for end in ends))
    assert solver.feedback is None or ends[0].factor != 1


def test_a_restored_state_observes_the_same():
    p = mlp_problem()
    *_, last = WITH_FEEDBACK.run(p, 2)
    state = checkpoint.unpack(WITH_FEEDBACK.init(p), checkpoint.pack(last.state))
    assert WITH_FEEDBACK.observe(p, state).terms == last.observation.terms


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


# The sets at the start and behind a delay.


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


def test_during_the_delay_k_is_full_and_then_that_of_the_sets_at_the_same_diameter(monkeypatch):
    seen, constrain = [], SFW.constrain

    def spy(self, constraints):
        seen.append(constraints[0])
        constrain(self, constraints)

    monkeypatch.setattr(SFW, "constrain", spy)
    p = mlp_problem()
    shape = p.model.fc2.weight.shape
    diameter = 2 * 1.1 * initial_norms(p.model)["fc2.weight"]
    for kind in (KSparse, KSupport):
        with case(kind=kind):
            seen.clear()
            rules = Assignment(set=kind(k=0.1), params=["fc2.weight"], size=FromInitialisation(w=1.1))
            iterates = list(FrankWolfe(constraint=rules, num_steps=4, lr=1e-9, delay=0.5).run(p, 4))
            assert [s.k for s in seen] == [1.0, 1.0, 1.0, 0.1, 0.1]  # the first is that of the start
            assert [s.diameter(shape) for s in seen] == pytest.approx([diameter] * 5, rel=1e-12)
            moved = [it.observation.model.fc2.weight.detach() for it in iterates]
            gauges = [float(seen[-1].gauge(w)) / seen[-1].radius for w in moved]
            assert gauges[0] > 1.5
            assert max(it.observation.terms["gauge"] for it in iterates) <= 1 + 1e-6  # each in the set of its epoch
            assert gauges[3:] == pytest.approx([1, 1], rel=1e-6)
            torch.testing.assert_close(moved[3] / moved[3].norm(), moved[0] / moved[0].norm(), rtol=1e-6, atol=1e-8)


def test_fractions_of_epochs_are_those_of_exact_numbers():
    sets = Assignment(set=KSupport(k=0.5))
    assert FrankWolfe(constraint=sets, num_steps=90, delay=0.7)._delay_epoch() == 63  # in floats 62.99...
    assert FrankWolfe(constraint=sets, num_steps=100, delay=0.29)._delay_epoch() == 29
    drops = MultiStep((0.14, 0.28), 0.1)
    assert [drops.factor(step, 50) for step in (6, 7, 13, 14)] == pytest.approx([1, 0.1, 0.1, 0.01])


# What is clipped always is told once.


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_step_sizes_that_are_always_clipped_are_told_once_with_the_remedy(caplog):
    jumping = FrankWolfe(constraint=all_in(L2(), size=FromInitialisation(w=0.01)), num_steps=3, lr=1e9)
    p = mlp_problem()
    *_, last = jumping.run(p, 3)
    (told,) = warnings(caplog)
    assert "every minibatch of epoch 1 for fc1.weight, fc1.bias, fc2.weight and 3 more" in told
    assert "smaller solver.lr or a larger constraint.size.w" in told
    assert last.observation.terms["eta/clipped"] == 1
    assert list(jumping.run(p, 4, state=last.state))
    assert len(warnings(caplog)) == 1


def test_other_step_sizes_are_not_spoken_of(caplog):
    assert terms(FrankWolfe(constraint=all_in(KSupport(k=0.2)), num_steps=3), mlp_problem())[-1]["eta/clipped"] == 0
    assert warnings(caplog) == []


# The factor that follows the loss.


def test_the_feedback_compares_the_last_5_losses_with_the_last_10():
    for epochs, losses, factor in [
        (20, [2.0] * 5 + [1.0] * 5, 1.06),
        (20, [1.0] * 5 + [2.0] * 5, 0.7),
        (20, [1.0] * 10, 1.0),
        (25, [1.0] * 9 + [1.1], 0.7),
        (20, [1.0] * 5 + [3.0] + [1.0] * 4, 0.7),
        (20, [1.0] * 4 + [3.0] + [1.0] * 5, 1.06),
        (21, [1.0] * 5 + [2.0] * 5, 1.0),
        (15, [1.0] * 5 + [2.0] * 5, 1.0),
    ]:
        with case(epochs=epochs, losses=losses):
            assert LossFeedback().change(epochs, torch.tensor(losses)) == factor


def test_the_feedback_multiplies_the_learning_rate_of_the_epochs_behind_it(rates):
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


# What is refused.


def test_a_feedback_out_of_range_is_refused():
    for name, value in (("start", -1), ("every", 0), ("fall", 0.0), ("rise", -1.0)):
        with pytest.raises(ValueError, match=f"every at least 1, fall and rise positive, found .*{value}"):
            LossFeedback(**{name: value})


def test_settings_out_of_range_are_refused():
    for wrong, said in [
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
    ]:
        with pytest.raises(ValueError, match=said):
            FrankWolfe(**{"constraint": all_in(L2()), **wrong})
    assert FrankWolfe(constraint=all_in(L2()), lr=1.0, rescaling=NoRescaling()).lr == 1


def test_a_network_without_a_trainable_parameter_is_refused():
    network = mlp(small_digits()).requires_grad_(False)
    with pytest.raises(Unsupported, match="a trainable parameter is needed, found none"):
        FrankWolfe(constraint=Assignment(set=L2())).init(problem(small_digits(), network))


def test_a_delay_without_a_k_is_refused():
    solver = FrankWolfe(constraint=Assignment(set=L2()), delay=0.5)
    with pytest.raises(ConfigError, match=r"solver\.delay needs a set with a k below 1"):
        solver.init(problem(small_digits(), mlp(small_digits())))
