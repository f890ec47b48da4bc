"""docs/your_own: a network, a data set, a compression and a solver outside the package, and what is done with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import case
from own_example import EXAMPLE, copied
from runs import rows, run, status, summary
from setuptools import find_packages

import nncompress
import nncompress.sweeps.jobs
from nncompress.cli.main import main
from nncompress.errors import ConfigError

from my_parts.data import rings  # isort: skip

SMALL = ["model.width=16", "model.inner=16", "dataset.train_size=200", "dataset.test_size=100"]
CHOSEN = ["model=mine", "dataset=rings", *SMALL]
FOUND = f"hydra.searchpath=[file://{EXAMPLE}/conf]"
"""As `--config-dir conf` in the folder of the example."""
CONSTANT = "solver.schedule._target_=nncompress.solvers.training.Constant"  # the same rates for any number of steps


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four steps; two steps and then two more; four with dotted paths: in a copy of the example."""
    folder = copied(tmp_path_factory.mktemp("your_own") / "here")
    words = [*CHOSEN, "compression=circulant", "solver=projected", "solver.batch_size=16", CONSTANT]
    dotted = [
        "model._target_=my_parts.networks.ResidualNet", "+model.width=16", "+model.inner=16",
        "dataset._target_=my_parts.data.rings", "dataset.train_size=200", "dataset.test_size=100",
        "compression._target_=my_parts.compressions.circulant", "compression._partial_=true",
        "solver._target_=my_parts.solvers.ProjectedSGD", "solver.num_steps=4", "solver.seed=0",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(nncompress.sweeps.jobs, "write_report", lambda folder: None)
        whole = ["--config-dir", "conf", *words, "solver.num_steps=4", "hydra.run.dir=whole"]
        assert main(["train", *whole]) == 0
        run(folder / "half", FOUND, *words, "solver.num_steps=2")
        shutil.copytree("half", "refused")
        assert main(["train", "resume=half", "solver.num_steps=4", "allow=[my_parts]"]) == 0
        run(folder / "dotted", *dotted)
        yield folder
    torch.set_deterministic_debug_mode("default")


def test_a_run_of_ones_own_parts_learns_and_is_as_small_as_its_diagonals(made: Path) -> None:
    found = summary(made / "whole")
    assert status(made / "whole")["status"] == "done"
    assert found["accuracy/test"] > 0.5
    # stem 16x2: two blocks cut off to 8x2; four layers of 16x16: four blocks each; the rest: biases, norms, the head
    outside = 16 + 2 * (16 + 16) + 3 * 16 + 3
    assert found["params/compressed"] == 2 * 8 + 4 * 4 * 8 + outside
    assert found["bits/compressed"] == 32 * found["params/compressed"]
    assert found["gap"] == 0


def test_a_resumed_run_ends_as_an_unbroken_one(made: Path) -> None:
    assert rows(made / "half") == rows(made / "whole")
    assert summary(made / "half") == summary(made / "whole")


def test_dotted_paths_are_another_way_to_name_the_parts(made: Path) -> None:
    chosen = json.loads((made / "dotted/summary.json").read_text())
    assert [chosen[key] for key in ("model", "dataset", "solver")] == ["ResidualNet", "rings", "ProjectedSGD"]
    assert chosen["params/compressed"] == summary(made / "whole")["params/compressed"]


def test_resume_and_load_ask_for_a_word_before_they_import_ones_own_parts(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "resume=refused", "solver.num_steps=4"]) == 2
    assert "allow=[my_parts" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"my_parts\.networks\.ResidualNet"):
        nncompress.load(made / "whole")


def test_the_stored_network_computes_what_the_deployed_one_did(made: Path) -> None:
    test = rings(train_size=200, test_size=100).test
    for compact in (False, True):
        with case(compact=compact):
            network = nncompress.load(made / "whole", compact=compact, allow=["my_parts"])
            with torch.no_grad():
                accuracy = (network(test.x).argmax(1) == test.y).double().mean()
            assert float(accuracy) == pytest.approx(summary(made / "whole")["accuracy/test"])
    held = sum(p.numel() for p in network.parameters())
    assert held == summary(made / "whole")["params/compressed"]


def test_eval_measures_the_stored_network_on_its_own_data(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "whole", "allow=[my_parts]", "batch_sizes=[]", "output=measured"]) == 0
    found = json.loads((made / "measured/evaluation.json").read_text())
    assert found["accuracy/test"] == pytest.approx(summary(made / "whole")["accuracy/test"])
    assert found["data"]["name"] == "rings"
    assert "Evaluation" in capsys.readouterr().out


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
    words = [
        "--config-dir",
        "conf",
        *CHOSEN,
        "compression=circulant",
        "solver=projected",
        "solver.num_steps=1",
        "hydra.run.dir=run",
    ]
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
def test_the_parts_go_with_those_of_the_package(name: str, tmp_path: Path, apart: None) -> None:
    found = run(tmp_path / "run", FOUND, *CHOSEN, *OTHERS[name])
    assert found["accuracy/test"] > 0.2
    if "slimming" in name:
        assert found["channels/kept"] < found["channels/total"]
        assert found["params/compressed"] < found["params/dense"]
    assert sum(p.numel() for p in nncompress.load("run", allow=["my_parts"]).parameters()) > 0
