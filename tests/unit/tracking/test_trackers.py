"""What is left in MLflow's store and in TensorBoard's files of runs that end, are interrupted, resumed, or fail."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import resume, rows, run, struck, summary

from nncompress.errors import Unsupported
from nncompress.solvers.sgd.sgd import SGD
from nncompress.tracking.base import About
from nncompress.tracking.mlflow import MLflow

WORDS = ["solver=sgd", "model.widths=[8]", "dataset.train_size=60", "dataset.test_size=20", "compression=l0"]
WORDS += ["compression.keep=0.3"]


@pytest.fixture(autouse=True)
def _apart(apart: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the libraries warn of themselves when a test asks them is no matter of ours."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store `outputs/mlflow.db`, in which one run has ended."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(folder / "done", *WORDS, "solver.num_steps=3", "seed=1", "tracking=mlflow")
    torch.set_deterministic_debug_mode("default")
    return folder


def client(store: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store / 'outputs/mlflow.db'}")


def run_of(store: Path, folder: Path) -> Any:
    """The one run of MLflow of a run folder."""
    there = client(store)
    runs = there.search_runs([there.get_experiment_by_name("nncompress").experiment_id])
    (found,) = [run for run in runs if run.data.tags["folder"] == str(folder)]
    return found


def test_mlflow_has_the_settings_every_row_and_the_summary_of_a_run(store: Path) -> None:
    folder = store / "done"
    found = run_of(store, folder)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == f"{store.name}/done"
    assert found.data.tags["solver"] == "sgd"
    assert found.data.tags["seed"] == found.data.params["seed"] == "1"
    assert found.data.params["solver.num_steps"] == "3"
    assert found.data.params["compression"] == "l0"
    for key in ("objective", "accuracy/test", "ratio/bits"):
        history = client(store).get_metric_history(found.info.run_id, key)
        assert [(m.step, m.value) for m in history] == [(row["step"], row[key]) for row in rows(folder)]
    assert found.data.metrics["final/accuracy/test"] == summary(folder)["accuracy/test"]
    assert not (store / "mlruns").exists()


def test_mlflow_learns_of_interruption_and_the_resumed_run_goes_on_in_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.chdir(store)
    with struck(SGD, 2), pytest.raises(SystemExit, match="130"):
        run(folder, *WORDS, "solver.num_steps=5", "tracking=mlflow")
    found = run_of(store, folder)
    assert found.info.status == "KILLED"
    monkeypatch.chdir(tmp_path)
    resume(folder, "solver.num_steps=6")
    same = run_of(store, folder)
    assert same.info.run_id == found.info.run_id
    assert same.info.status == "FINISHED"
    assert same.data.tags["changed/solver.num_steps"] == "6"
    history = client(store).get_metric_history(found.info.run_id, "objective")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["objective"]) for row in rows(folder)]
    assert not (tmp_path / "outputs").exists()


def test_mlflow_learns_of_failure_and_a_store_that_lost_the_run_gets_a_new_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    with pytest.raises(Unsupported, match="needs batch norms"):
        run(tmp_path / "run", *WORDS, "solver=slimming", "tracking=mlflow")
    found = run_of(store, tmp_path / "run")
    assert found.info.status == "FAILED"
    assert "needs batch norms" in found.data.tags["reason"]
    tracker = MLflow(uri="sqlite:///outputs/mlflow.db")
    known = {"uri": f"sqlite:///{store}/outputs/mlflow.db", "run": "0" * 32}
    assert tracker.start(About(tmp_path / "run", {}, {}, known))["run"] != known["run"]


def test_a_store_that_cannot_be_had_is_a_warning_and_the_run_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outputs").write_text("a file")
    run(tmp_path / "run", *WORDS, "solver.num_steps=0", "tracking=mlflow")
    assert "tracking.mlflow is left out from here on: FileExistsError" in caplog.text


def test_tensorboard_reads_every_row_once_also_of_a_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    with struck(SGD, 2), pytest.raises(SystemExit, match="130"):
        run(folder, *WORDS, "solver.num_steps=5", "tracking=tensorboard")
    resume(folder)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("accuracy/test")]
    assert found == [(row["step"], pytest.approx(row["accuracy/test"])) for row in rows(folder)]
    assert "final/ratio/bits" in events.Tags()["scalars"]
    text = events.Tensors("config/text_summary")[-1]
    assert b"solver.num_steps: 5" in text.tensor_proto.string_val[0]
    assert json.loads((folder / "tracking.json").read_text()) == {
        "tensorboard": {"folder": str(folder / "tensorboard")}
    }


def test_tensorboard_gives_each_run_a_folder_in_a_common_one(tmp_path: Path) -> None:
    words = ["tracking=tensorboard", "tracking.tensorboard.folder=all"]
    run(tmp_path / "runs/a", *WORDS, "solver.num_steps=0", *words)
    assert list((tmp_path / "all/runs/a").glob("events*"))
