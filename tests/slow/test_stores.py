"""Trackers in processes of their own: two at once on a new store, kills while one is made, what reaches the console."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from runs import rows, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apart")]

WORDS = ["solver=sgd", "model.widths=[8]", "dataset.train_size=60", "dataset.test_size=20", "compression=l0"]
WORDS += ["compression.keep=0.3"]
BARE = "from nncompress.sweeps import jobs; jobs.write_report = lambda folder: None"
LIMIT = 600


def elsewhere(folder: Path, *commands: list[str]) -> subprocess.Popen[str]:
    """A process in `folder` that runs `nncompress train` with each of these words, without pictures."""
    runs = "; ".join(f"print('ended', main(['train', *{words!r}]))" for words in commands)
    code = f"{BARE}; from nncompress.cli.main import main; {runs}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # MLflow's of itself
def test_two_processes_at_once_leave_two_whole_runs_in_a_new_sqlite_store_and_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [*WORDS, "solver.num_steps=3", "tracking=mlflow"]
    both = [elsewhere(tmp_path, [*words, f"seed={seed}", f"hydra.run.dir=run{seed}"]) for seed in (0, 1)]
    said = "".join(process.communicate(timeout=LIMIT)[0] for process in both)
    assert said.count("ended 0") == 2, said
    assert "tracking.mlflow" not in said
    for noise in ("alembic", "Creating initial MLflow", "Warning", "sqlalchemy", "INFO"):
        assert noise not in said

    from mlflow.tracking import MlflowClient

    store: Any = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs/mlflow.db'}")
    runs = list(store.search_runs([store.get_experiment_by_name("nncompress").experiment_id]))
    assert {found.data.tags["folder"] for found in runs} == {str(tmp_path / f"run{seed}") for seed in (0, 1)}
    for found in runs:
        folder = Path(found.data.tags["folder"])
        assert found.info.status == "FINISHED"
        assert found.data.params["seed"] == folder.name[-1]
        history = store.get_metric_history(found.info.run_id, "objective")
        assert [(m.step, m.value) for m in history] == [(row["step"], row["objective"]) for row in rows(folder)]
    run(tmp_path / "plain", *WORDS, "solver.num_steps=3")
    assert rows(tmp_path / "run0") == rows(tmp_path / "plain")
    assert not (tmp_path / "mlruns").exists()


MLFLOW = """
from pathlib import Path
from nncompress.tracking.base import About
from nncompress.tracking.mlflow import MLflow
run = Path("run").absolute()
tracker = MLflow(uri="sqlite:///store.db?timeout=30")
tracker.start(About(run, {}, {"folder": str(run)}, {}))
tracker.row(0, {"seconds": 1.0})
tracker.end({"status": "done"}, {})
"""
OPTUNA = """
from functools import partial
from pathlib import Path
import optuna
from nncompress.sweeps.trial import NAME, new_study, storage
from nncompress.tracking.sqlite import make_absent
path = Path("store.db").absolute()
make_absent(path, partial(new_study, objectives={"accuracy/test": "maximize"}))
study = optuna.load_study(study_name=NAME, storage=storage(path))
study.tell(study.ask(), 1.0)
"""


@pytest.mark.parametrize(("code", "sizes"), [(MLFLOW, (1, 200_000, 600_000)), (OPTUNA, (1, 40_000, 80_000))])
def test_a_kill_while_a_store_is_made_leaves_it_to_be_made_anew(
    tmp_path: Path, code: str, sizes: tuple[int, ...]
) -> None:
    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path)

    def drawn() -> int:
        with suppress(FileNotFoundError):
            return max((path.stat().st_size for path in tmp_path.glob(".store.db.*.tmp/store.db")), default=0)
        return 0

    for size in sizes:
        process = started()
        while process.poll() is None and drawn() < size:
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert started().wait(LIMIT) == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"store.db", "store.db.lock"}


def test_wandb_offline_leaves_files_to_sync_and_keeps_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*WORDS, "solver.num_steps=3", "tracking=wandb", f"hydra.run.dir={folder}"]
    said = elsewhere(tmp_path, words, [f"resume={folder}", "solver.num_steps=4"]).communicate(timeout=LIMIT)[0]
    assert said.count("ended 0") == 2, said
    assert "wandb" not in said
    identity = json.loads((folder / "tracking.json").read_text())["wandb"]["id"]
    files = sorted(path.name for path in (folder / "wandb").glob("offline-run-*/*.wandb"))
    assert files == [f"run-{identity}.wandb"] * 2
    assert b"solver.num_steps" in next((folder / "wandb").glob("offline-run-*/*.wandb")).read_bytes()
    run(tmp_path / "plain", *WORDS, "solver.num_steps=3")
    assert rows(folder)[:4] == rows(tmp_path / "plain")


def test_no_library_is_imported_unless_asked(tmp_path: Path) -> None:
    code = (
        f"import sys; {BARE}; from nncompress.cli.main import main; "
        f"code = main(['train', *{WORDS!r}, 'solver.num_steps=0', 'hydra.run.dir=run']); "
        "print(code, [name for name in ('mlflow', 'wandb', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []"
