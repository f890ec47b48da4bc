"""The compression, the solver and the data of docs/your_own, held to what every part of the package is held to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_example  # noqa: F401  (before the parts)
import pytest
import torch
from cases import case

from nncompress import metrics
from nncompress.compressions.base import Compression, distance_sq
from nncompress.compressions.plan import Plan, Task, none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.sparsity.magnitude import l0, l1_penalty
from nncompress.compressions.views import AsVector
from nncompress.errors import ConfigError, Unsupported
from nncompress.experiment import checkpoint
from nncompress.problem import Problem, weights_of

from my_parts.compressions import Circulant, circulant, labels  # isort: skip
from my_parts.data import rings  # isort: skip
from my_parts.networks import ResidualNet  # isort: skip
from my_parts.solvers import ProjectedSGD  # isort: skip

F64 = torch.float64
SHAPES = [(16, 16), (8, 4), (5, 7), (3, 12), (6, 4, 3, 3), (1, 9)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_the_projection_keeps_the_shape_leaves_w_and_is_idempotent() -> None:
    compression = Circulant(4)
    for shape in SHAPES:
        with case(shape=shape):
            w = randn(*shape).requires_grad_()
            before = w.detach().clone()
            once = compression.decompress(compression.compress(w))
            twice = compression.decompress(compression.compress(once))
            assert once.shape == w.shape
            assert once.dtype == w.dtype
            assert not once.requires_grad
            assert torch.equal(w.detach(), before)
            torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)
            assert compression.check(shape) is None


def test_no_circulant_weight_is_nearer() -> None:
    compression = Circulant(4)
    for shape in SHAPES:
        w = randn(*shape)
        theta = compression.compress(w)
        best = float(distance_sq(w, compression.decompress(theta)))
        for seed in range(100):
            with case(shape=shape, seed=seed):
                moved = theta._replace(values=theta.values + 0.1 * randn(len(theta.values), seed=seed + 1))
                assert float(distance_sq(w, compression.decompress(moved))) >= best


def test_the_error_is_orthogonal_to_every_direction_of_the_space() -> None:
    compression = Circulant(4)
    for shape in SHAPES:
        with case(shape=shape):
            w = randn(*shape)
            error = (w - compression.decompress(compression.compress(w))).flatten()
            label, counts = labels(shape, 4, torch.device("cpu"))
            basis = torch.nn.functional.one_hot(label.flatten(), len(counts)).double()
            torch.testing.assert_close(basis.T @ error, torch.zeros(len(counts), dtype=F64), rtol=0, atol=1e-12)


def test_a_small_matrix_by_hand() -> None:
    w = torch.tensor([[1.0, 2, 9], [4, 3, 7]], dtype=F64)
    compression = Circulant(2)
    theta = compression.compress(w)  # a block [[1, 2], [4, 3]] and one cut off to [[9], [7]]
    assert theta.values.tolist() == [2, 3, 9, 7]
    assert compression.decompress(theta).tolist() == [[2, 3, 9], [3, 2, 7]]
    assert compression.num_params(theta) == 4
    assert compression.bits(theta) == 4 * 32
    assert compression.sensitivity(theta).values.tolist() == pytest.approx([2**0.5, 2**0.5, 1, 1])


def test_the_numbers_held_are_those_of_the_diagonals() -> None:
    for shape, block, held in (
        ((16, 16), 8, 32), ((16, 2), 8, 16), ((6, 4, 3, 3), 4, 9 * 8),
        ((5, 7), 4, 4 + 4 + 4 + 3),  # 4x4, 4x3 (4 diagonals), 1x4, 1x3
    ):  # fmt: skip
        with case(shape=shape):
            compression = Circulant(block)
            assert compression.num_params(compression.compress(randn(*shape))) == held


def test_true_circulant_weights_are_recovered_and_theta_is_rebuilt_from_its_parts() -> None:
    compression = Circulant(8)
    values = randn(8)
    w = torch.stack([values.roll(k) for k in range(8)])
    theta = compression.compress(w)
    torch.testing.assert_close(compression.decompress(theta), w, rtol=0, atol=1e-14)
    rebuilt = checkpoint.unpack(compression.compress(randn(8, 8, seed=1)), checkpoint.pack(theta))
    assert torch.equal(compression.decompress(rebuilt), compression.decompress(theta))
    w.zero_()
    assert not torch.equal(compression.decompress(theta), w)


def test_what_circulant_cannot_do_is_told() -> None:
    with pytest.raises(ValueError, match="block must be at least 1, found 0"):
        Circulant(0)
    with pytest.raises(ConfigError, match="circulant needs outputs and inputs"):
        Plan.of([Task(("a",), AsVector(), Circulant(2))], {"a": torch.zeros(3, 3)})
    assert "block 8 is above the 3" in str(Circulant(8).clipped((3, 2)))
    assert Circulant(3).clipped((3, 2)) is None


def problem(recipe: Callable[..., Any], **settings: Any) -> Problem:
    """200 points on rings and a small network, in float64."""
    data = rings(train_size=200, test_size=100).to("cpu", F64)
    torch.manual_seed(0)
    model = ResidualNet(data.input_shape, data.num_classes, width=16, inner=16).to(F64)
    return Problem(model, data, recipe(weights_of(model), **settings))


SOLVED = [(circulant, {}), (l0, {"keep": 0.3}), (codebook, {"K": 4}), (l1_penalty, {"alpha": 1e-3})]


def test_the_solver_takes_any_compression_and_stays_in_its_set() -> None:
    for recipe, settings in SOLVED:
        with case(recipe=recipe):
            p = problem(recipe, **settings)
            before = {name: tensor.clone() for name, tensor in p.model.state_dict().items()}
            solver = ProjectedSGD(num_steps=5, lr=0.02, batch_size=50, every=3)  # of four the last is projected too
            found = [iterate.observation for iterate in solver.run(p, 5) if iterate.observation]
            for model, theta, terms, *_ in found:
                assert metrics.gap(p.plan.select(weights_of(model)), p.plan.decompress(theta)) == 0
                loss = metrics.evaluate(model, p.data.train, p.loss).loss
                assert terms["objective"] == pytest.approx(loss + p.plan.penalty(theta))
            assert found[-1].terms["objective"] < found[0].terms["objective"]
            assert all(torch.equal(before[name], tensor) for name, tensor in p.model.state_dict().items())


def test_the_solver_repeats_itself_and_a_restored_state_continues_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for recipe, settings in SOLVED:
        with case(recipe=recipe):
            p, solver = problem(recipe, **settings), ProjectedSGD(num_steps=4, batch_size=100)
            whole, again = ([each.observation.terms for each in solver.run(p, 4) if each.observation] for _ in "12")
            assert again == whole  # the same seed
            *_, half = solver.run(p, 2)
            checkpoint.save(path, {"state": checkpoint.pack(half.state)})
            state = checkpoint.restore(solver.init(p), checkpoint.load(path)["state"], path)
            rest = [each.observation.terms for each in solver.run(p, 4, state=state) if each.observation]
            assert rest == whole[3:]


def test_the_solver_says_what_it_needs() -> None:
    with pytest.raises(Unsupported, match="choose a compression"):
        ProjectedSGD().init(problem(none))
    for setting in ({"every": 0}, {"lr": 0.0}, {"batch_size": 0}):
        with case(setting=setting), pytest.raises(ValueError, match="found 0"):
            ProjectedSGD(**setting)


def test_the_data_are_rings_and_the_network_names_the_units_that_can_go() -> None:
    data = rings(train_size=500, test_size=400, noise=0.0, seed=3)
    assert (len(data.train), len(data.test), data.input_shape, data.num_classes) == (500, 400, (2,), 3)
    radius = torch.linalg.vector_norm(data.train.x, dim=1)
    torch.testing.assert_close(radius, (data.train.y + 1) / 3)
    assert torch.equal(rings(seed=3).train.x, rings(seed=3).train.x)
    assert not torch.equal(rings(seed=3).train.x, rings(seed=4).train.x)
    with pytest.raises(ValueError, match="found 0"):
        rings(train_size=0)
    model = ResidualNet((2,), 3, blocks=2)
    assert [scale.norm for scale in model.scales()] == ["blocks.0.norm", "blocks.1.norm"]
    assert isinstance(Circulant(4), Compression)
