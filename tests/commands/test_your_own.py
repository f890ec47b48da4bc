"""docs/your_own: a network, a data set, a compression and a solver outside the package, and what is done with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import rows, status, summary
from setuptools import find_packages

import nncompress
import nncompress.experiment
from nncompress import checkpoint, metrics
from nncompress.cli import main
from nncompress.compressions.base import Compression, distance_sq
from nncompress.compressions.codebook import codebook
from nncompress.compressions.plan import none
from nncompress.compressions.sparsity import l0, l1_penalty
from nncompress.errors import ConfigError, Unsupported
from nncompress.problem import Problem, weights_of

EXAMPLE = Path(__file__).parents[2] / "docs/your_own"
sys.path.insert(0, str(EXAMPLE))

from my_parts.compressions import Circulant, circulant, labels  # noqa: E402
from my_parts.data import rings  # noqa: E402
from my_parts.networks import ResidualNet  # noqa: E402
from my_parts.solvers import ProjectedSGD  # noqa: E402

F64 = torch.float64
SMALL = ["model.width=16", "model.inner=16", "dataset.train_size=200", "dataset.test_size=100"]
OWN = ["--config-dir", "conf", "model=mine", "dataset=rings", *SMALL]
CONSTANT = "solver.schedule._target_=nncompress.solvers.descent.Constant"  # the same rates for any number of steps
SHAPES = [(16, 16), (8, 4), (5, 7), (3, 12), (6, 4, 3, 3), (1, 9)]


def copied(folder: Path) -> Path:
    """The example without what was made in it."""
    unwanted = shutil.ignore_patterns("__pycache__", "outputs", "*.egg-info", "build")
    return Path(shutil.copytree(EXAMPLE, folder, ignore=unwanted))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four steps; two steps and then two more; four with dotted paths: in a copy of the example."""
    folder = copied(tmp_path_factory.mktemp("your_own") / "here")
    words = [*OWN, "compression=circulant", "solver=projected", "solver.batch_size=16", CONSTANT]
    dotted = [
        "model._target_=my_parts.networks.ResidualNet", "+model.width=16", "+model.inner=16",
        "dataset._target_=my_parts.data.rings", "dataset.train_size=200", "dataset.test_size=100",
        "compression._target_=my_parts.compressions.circulant", "compression._partial_=true",
        "solver._target_=my_parts.solvers.ProjectedSGD", "solver.num_steps=4", "solver.seed=0",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(nncompress.experiment, "write_run_report", lambda folder: [])
        assert main(["train", *words, "solver.num_steps=4", "hydra.run.dir=whole"]) == 0
        assert main(["train", *words, "solver.num_steps=2", "hydra.run.dir=half"]) == 0
        shutil.copytree("half", "refused")
        assert main(["train", "resume=half", "solver.num_steps=4", "allow=[my_parts]"]) == 0
        assert main(["train", *dotted, "hydra.run.dir=dotted"]) == 0
        yield folder
    torch.use_deterministic_algorithms(False)


def test_a_run_of_ones_own_parts_learns_and_is_as_small_as_its_diagonals(runs: Path) -> None:
    found = summary(runs / "whole")
    assert status(runs / "whole")["status"] == "done"
    assert found["accuracy/test"] > 0.5
    # stem 16x2: two blocks cut off to 8x2; four layers of 16x16: four blocks each; the rest: biases, norms, the head
    outside = 16 + 2 * (16 + 16) + 3 * 16 + 3
    assert found["params/compressed"] == 2 * 8 + 4 * 4 * 8 + outside
    assert found["bits/compressed"] == 32 * found["params/compressed"]
    assert found["gap"] == 0


def test_a_resumed_run_ends_as_an_unbroken_one(runs: Path) -> None:
    assert rows(runs / "half") == rows(runs / "whole")
    assert summary(runs / "half") == summary(runs / "whole")


def test_dotted_paths_are_another_way_to_name_the_parts(runs: Path) -> None:
    chosen = json.loads((runs / "dotted/summary.json").read_text())
    assert [chosen[key] for key in ("model", "dataset", "solver")] == ["ResidualNet", "rings", "ProjectedSGD"]
    assert chosen["params/compressed"] == summary(runs / "whole")["params/compressed"]


def test_resume_and_load_ask_for_a_word_before_they_import_ones_own_parts(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "resume=refused", "solver.num_steps=4"]) == 2
    assert "allow=[my_parts" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"my_parts\.networks\.ResidualNet"):
        nncompress.load(runs / "whole")


@pytest.mark.parametrize("compact", [False, True])
def test_the_stored_network_computes_what_the_deployed_one_did(runs: Path, compact: bool) -> None:
    network = nncompress.load(runs / "whole", compact=compact, allow=["my_parts"])
    test = rings(train_size=200, test_size=100).test
    with torch.no_grad():
        accuracy = (network(test.x).argmax(1) == test.y).double().mean()
    assert float(accuracy) == pytest.approx(summary(runs / "whole")["accuracy/test"])
    if compact:
        held = sum(p.numel() for p in network.parameters())
        assert held == summary(runs / "whole")["params/compressed"]


def test_eval_measures_the_stored_network_on_its_own_data(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "whole", "allow=[my_parts]", "batch_sizes=[]", "output=measured"]) == 0
    found = json.loads((runs / "measured/evaluation.json").read_text())
    assert found["accuracy/test"] == pytest.approx(summary(runs / "whole")["accuracy/test"])
    assert found["data"]["name"] == "rings"
    assert "Evaluation" in capsys.readouterr().out


every = pytest.mark.parametrize("shape", SHAPES)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@every
def test_the_projection_keeps_the_shape_leaves_w_and_is_idempotent(shape: tuple[int, ...]) -> None:
    w = randn(*shape).requires_grad_()
    before = w.detach().clone()
    compression = Circulant(4)
    once = compression.decompress(compression.compress(w))
    twice = compression.decompress(compression.compress(once))
    assert once.shape == w.shape
    assert once.dtype == w.dtype
    assert not once.requires_grad
    assert torch.equal(w.detach(), before)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)
    compression.check(shape)


@every
def test_no_circulant_weight_is_nearer(shape: tuple[int, ...]) -> None:
    compression, w = Circulant(4), randn(*shape)
    theta = compression.compress(w)
    best = float(distance_sq(w, compression.decompress(theta)))
    for seed in range(100):
        moved = theta._replace(values=theta.values + 0.1 * randn(len(theta.values), seed=seed + 1))
        assert float(distance_sq(w, compression.decompress(moved))) >= best


@every
def test_the_error_is_orthogonal_to_every_direction_of_the_space(shape: tuple[int, ...]) -> None:
    compression, w = Circulant(4), randn(*shape)
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


@pytest.mark.parametrize(("shape", "held"), [((16, 16), 32), ((16, 2), 16), ((6, 4, 3, 3), 9 * 8), ((5, 7), 8 + 8)])
def test_the_numbers_held_are_those_of_the_diagonals(shape: tuple[int, ...], held: int) -> None:
    block = 8 if shape == (16, 16) else 8 if shape == (16, 2) else 4
    compression = Circulant(block)
    found = compression.compress(randn(*shape))
    expected = held if shape != (5, 7) else 4 + 4 + 4 + 3  # 4x4, 4x3 (4 diagonals), 1x4, 1x3
    assert compression.num_params(found) == expected


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
        nncompress.compressions.plan.Plan.of(
            [nncompress.compressions.plan.Task(("a",), nncompress.compressions.views.AsVector(), Circulant(2))],
            {"a": torch.zeros(3, 3)},
        )
    assert "block 8 is above the 3" in str(Circulant(8).clipped((3, 2)))
    assert Circulant(3).clipped((3, 2)) is None


def problem(recipe: Callable[..., Any], **settings: Any) -> Problem:
    """200 points on rings and a small network, in float64."""
    data = rings(train_size=200, test_size=100).to("cpu", F64)
    torch.manual_seed(0)
    model = ResidualNet(data.input_shape, data.num_classes, width=16, inner=16).to(F64)
    return Problem(model, data, recipe(weights_of(model), **settings))


SOLVED = [
    pytest.param(circulant, {}, id="circulant"),
    pytest.param(l0, {"keep": 0.3}, id="l0"),
    pytest.param(codebook, {"K": 4}, id="codebook"),
    pytest.param(l1_penalty, {"alpha": 1e-3}, id="l1-penalty"),
]


@pytest.mark.parametrize(("recipe", "settings"), SOLVED)
def test_the_solver_takes_any_compression_and_stays_in_its_set(
    recipe: Callable[..., Any], settings: dict[str, Any]
) -> None:
    p = problem(recipe, **settings)
    before = {name: tensor.clone() for name, tensor in p.model.state_dict().items()}
    solver = ProjectedSGD(num_steps=5, lr=0.02, batch_size=50, every=3)  # of four minibatches the last is projected too
    found = [iterate.observation for iterate in solver.run(p, 5) if iterate.observation]
    for model, theta, terms in found:
        assert metrics.gap(p.plan.select(weights_of(model)), p.plan.decompress(theta)) == 0
        loss = metrics.evaluate(model, p.data.train, p.loss).loss
        assert terms["objective"] == pytest.approx(loss + p.plan.penalty(theta))
    assert found[-1].terms["objective"] < found[0].terms["objective"]
    assert all(torch.equal(before[name], tensor) for name, tensor in p.model.state_dict().items())


@pytest.mark.parametrize(("recipe", "settings"), SOLVED)
def test_the_solver_repeats_itself_and_a_restored_state_continues_bit_for_bit(
    recipe: Callable[..., Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    p, solver = problem(recipe, **settings), ProjectedSGD(num_steps=4, batch_size=100)
    whole, again = ([iterate.observation.terms for iterate in solver.run(p, 4) if iterate.observation] for _ in "12")
    assert again == whole  # the same seed
    *_, half = solver.run(p, 2)
    checkpoint.save(tmp_path / "last.pt", {"state": checkpoint.pack(half.state)})
    content = checkpoint.load(tmp_path / "last.pt")
    state = checkpoint.restore(solver.init(p), content["state"], tmp_path / "last.pt")
    assert [iterate.observation.terms for iterate in solver.run(p, 4, state=state) if iterate.observation] == whole[3:]


def test_the_solver_says_what_it_needs() -> None:
    with pytest.raises(Unsupported, match="choose a compression"):
        ProjectedSGD().init(problem(none))
    for setting in ({"every": 0}, {"lr": 0.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="found 0"):
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


def test_the_package_that_pip_installs_is_my_parts_alone() -> None:
    content = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    where = content["tool"]["setuptools"]["packages"]["find"]
    assert find_packages(str(EXAMPLE), include=where["include"]) == ["my_parts"]
    assert content["project"]["dependencies"] == ["nncompress"]


@pytest.mark.slow
def test_pip_installs_the_package_with_its_metadata_without_a_network(tmp_path: Path) -> None:
    source = copied(tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    words = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "there"), str(source)]
    subprocess.run([*pip, *words], check=True)
    installed = sorted(path.name for path in (tmp_path / "there/my_parts").glob("*.py"))
    assert installed == ["__init__.py", "compressions.py", "data.py", "networks.py", "solvers.py"]
    (about,) = (tmp_path / "there").glob("my_parts-*.dist-info/METADATA")
    assert "Requires-Dist: nncompress" in about.read_text()


@pytest.mark.slow
def test_the_console_command_finds_ones_own_parts_in_the_current_folder(tmp_path: Path) -> None:
    here = copied(tmp_path / "here")
    words = [*OWN, "compression=circulant", "solver=projected", "solver.num_steps=1", "hydra.run.dir=run"]
    command = [sys.executable, "-m", "nncompress", "train", *words]
    assert subprocess.run(command, cwd=here, check=False).returncode == 0
    assert (here / "run/plots/objective.png").exists()


OTHERS = {
    "sgd": ["solver=sgd", "compression=circulant", "solver.num_steps=2"],
    "lc": [
        *("solver=lc", "compression=circulant", "solver.num_steps=2", "solver.epochs=1"),
        "reference_training.num_steps=2",
    ],
    "dc_retrain": [
        *("solver=dc_retrain", "compression=circulant", "solver.num_steps=2"),
        "reference_training.num_steps=2",
    ],
    "direct_learning": ["solver=direct_learning", "compression=circulant", "solver.num_steps=2"],
    "frank_wolfe": ["solver=frank_wolfe", "compression=circulant", "solver.num_steps=2"],
    "slimming": ["solver=slimming", "solver.num_steps=12", "solver.lam=1", "solver.beta=1", "solver.batch_size=16"],
    "network_slimming": ["solver=network_slimming", "target.ratio=0.8", "solver.num_steps=2"],
    "projected_codebook": ["solver=projected", "compression=codebook", "solver.num_steps=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_parts_go_with_those_of_the_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied(tmp_path / "here"))
    monkeypatch.setattr(nncompress.experiment, "write_run_report", lambda folder: [])
    assert main(["train", *OWN, *OTHERS[name], "hydra.run.dir=run"]) == 0
    torch.use_deterministic_algorithms(False)
    found = summary(Path("run"))
    assert found["accuracy/test"] > 0.2
    if "slimming" in name:
        assert found["channels/kept"] < found["channels/total"]
        assert found["params/compressed"] < found["params/dense"]
    assert sum(p.numel() for p in nncompress.load("run", allow=["my_parts"]).parameters()) > 0
