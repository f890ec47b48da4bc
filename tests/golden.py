"""Finished runs, one a family of solvers: made once for a whole test run, then copied by the tests that read runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from runs import run, status

DIGITS = ["dataset.train_size=200", "dataset.test_size=100"]
WORDS = {
    "nnbcd": ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]", "compression.rank=8", "solver.num_steps=6"],
    "lc": ["solver=lc", "model.widths=[16]", "compression=codebook", "compression.K=4", "solver.num_steps=3",
           "solver.epochs=1", "reference_training.num_steps=3"],
    "slimming": ["solver=slimming", "model=vgg19", "model.layers=[1,1,1]", "model.width=0.1", "solver.lam=0.05",
                 "solver.num_steps=3", "solver.batch_size=64"],
    "frank_wolfe": ["solver=frank_wolfe", "model.widths=[16]", "solver.num_steps=3", "solver.batch_size=64",
                    "compress_at=[0.5]"],
    "sgd": ["solver=sgd", "model.widths=[32]", "compression=l0", "compression.keep=0.3", "solver.num_steps=4"],
}  # fmt: skip
"""The words of each, all on 200 digits with seed 3."""


class Golden:
    """Finished runs by the family of their solver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def kept(self, family: str) -> Path:
        """The folder itself, to be read only; made now unless another test or worker was first."""
        run_folder = self.folder / family
        with FileLock(self.folder / f"{family}.lock"):
            if not (run_folder / "status.json").exists() or status(run_folder)["status"] != "done":
                shutil.rmtree(run_folder, ignore_errors=True)
                words = [*WORDS[family], *DIGITS, "seed=3", f"reference_dir={self.folder / 'references'}"]
                run(run_folder, *words)
        return run_folder

    def copied(self, family: str, to: Path) -> Path:
        """A copy of the folder, for a test to change."""
        return Path(shutil.copytree(self.kept(family), to))


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Golden:
    """The finished runs of this test run, shared between its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "golden"
    folder.mkdir(exist_ok=True)
    return Golden(folder)
