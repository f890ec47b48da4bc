"""500 changed copies of a sweep's folder: no command runs what they name, or ends otherwise than with a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from nncompress.cli.main import main

SCRIPT = Path(__file__).with_name("hostile_sweeps.py")

pytestmark = pytest.mark.slow

JOBS = ["solver=sgd", "model.widths=[8]", "solver.num_steps=2", "dataset.train_size=60", "dataset.test_size=20"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two small jobs."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    assert main(["train", "-m", *JOBS, "seed=0,1", f"hydra.sweep.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_a_changed_sweep_runs_nothing_and_is_told_in_a_sentence(first: int, sweep: Path, tmp_path: Path) -> None:
    place = tmp_path / "below"
    place.mkdir()
    command = [sys.executable, str(SCRIPT), str(sweep), str(first), str(first + 100)]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr[-2000:]
