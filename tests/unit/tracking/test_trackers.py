"""What is left in MLflow's store and in TensorBoard's files of runs that end, are interrupted, resumed, or fail."""

from __future__ import annotations

import json
import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import case
from runs import resume, rows, run, struck, summary

from nncompress.errors import NNCompressError, Unsupported
from nncompress.solvers.sgd.sgd import SGD
from nncompress.tracking.base import About
from nncompress.tracking.mlflow import MLflow
from nncompress.tracking.tensorboard import TensorBoard
from nncompress.tracking.tracking import Tracking
from nncompress.tracking.wandb import _id_on_record

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
    known = {"uri": f"sqlite:///{store}/outputs/mlflow.db", "run": "0" * 32}
    assert begun(tmp_path / "run", known)["run"] != known["run"]


def begun(folder: Path, known: dict[str, Any], uri: str = "sqlite:///outputs/mlflow.db") -> dict[str, Any]:
    """What MLflow has of a run after its start, with this in `tracking.json`."""
    return MLflow(uri=uri).start(About(folder, {}, {"folder": str(folder)}, known))


def test_a_finished_run_that_is_resumed_has_each_figure_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    before = run_of(store, store / "done")
    resume(store / "done")
    after = run_of(store, store / "done")
    assert after.info.run_id == before.info.run_id
    for key in before.data.metrics:
        steps = [metric.step for metric in client(store).get_metric_history(before.info.run_id, key)]
        with case(key=key):
            assert len(steps) == len(set(steps))
    assert after.data.metrics == before.data.metrics


def test_a_run_that_was_copied_is_a_new_one_there(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(store)
    known = json.loads((store / "done/tracking.json").read_text())["mlflow"]
    assert begun(store / "copy", known)["run"] != known["run"]
    assert "the run is a new one there" in caplog.text


def test_what_tracking_json_says_leads_to_no_other_place(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    ours = f"sqlite:///{store}/outputs/mlflow.db"
    run = json.loads((store / "done/tracking.json").read_text())["mlflow"]["run"]
    shutil.copy(store / "outputs/mlflow.db", tmp_path / "theirs.db")
    hostile: list[dict[str, Any]] = [
        {"uri": "http://localhost:1", "run": run},
        {"uri": f"sqlite:///{tmp_path}/new.db", "run": run},
        {"uri": f"sqlite:///{tmp_path}/theirs.db", "run": run},
        {"uri": ["a"], "run": {"b": 1}},
        {"uri": ours, "run": "../" * 100},
        {"uri": "sqlite:///\ud800\0", "run": "\ud800"},
    ]
    for number, known in enumerate(hostile):
        there = begun(store / f"hostile{number}", known)
        with case(known=known):
            assert there["uri"] == ours
            assert there["run"] != run
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.db"]


def test_a_query_in_the_address_is_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    there = begun(store / "query", {}, "sqlite:///outputs/mlflow.db?timeout=30")
    assert there["uri"] == f"sqlite:///{store}/outputs/mlflow.db?timeout=30"


def test_a_store_that_is_not_whole_is_named_and_left_as_it_is(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, path = (store / "outputs/mlflow.db").read_bytes(), tmp_path / "outputs/mlflow.db"
    path.parent.mkdir()
    for name, content, said in (
        ("empty", b"", "no such table: "),
        ("truncated", whole[:40_000], "database disk image is malformed"),
        ("text", b"a text that is longer than the header of a database " * 3, "file is not a database"),
    ):
        path.write_bytes(content)
        caplog.clear()
        with Tracking({"mlflow": lambda: MLflow(uri="sqlite:///outputs/mlflow.db")}, {}, tmp_path) as tracking:
            tracking.start()
        with case(name=name):
            assert f"left out from here on: {path} must be a whole store" in caplog.text
            assert f"({said}" in caplog.text
            assert "move it away" in caplog.text
            assert path.read_bytes() == content
            assert sorted(each.name for each in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_store_in_which_a_table_is_missing_is_not_mended_in_place(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.db"
    shutil.copy(store / "outputs/mlflow.db", path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE latest_metrics")
    before = path.read_bytes()
    with pytest.raises(NNCompressError, match="no such table: latest_metrics"):
        begun(tmp_path / "run", {}, f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_store_that_cannot_be_had_is_a_warning_and_the_run_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outputs").write_text("a file")
    run(tmp_path / "run", *WORDS, "solver.num_steps=0", "tracking=mlflow")
    assert "tracking.mlflow is left out from here on: FileExistsError" in caplog.text


def test_wandb_goes_on_with_an_id_of_this_folder_alone(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for known, expected in (
        ({"id": "a1b2c3d4", "folder": folder}, "a1b2c3d4"),
        ({"id": "a1b2c3d4", "folder": "/another"}, None),
        ({"id": "a1b2c3d4"}, None),
        ({"id": "../../a", "folder": folder}, None),
        ({"id": ["a"], "folder": folder}, None),
        ({}, None),
    ):
        with case(known=known):
            assert _id_on_record(About(tmp_path, {}, {}, known)) == expected


def test_tensorboard_reads_every_row_once_also_of_a_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    with struck(SGD, 2), pytest.raises(SystemExit, match="130"):
        run(folder, *WORDS, "solver.num_steps=5", "tracking=tensorboard")
    for _ in range(2):
        resume(folder)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("accuracy/test")]
    assert found == [(row["step"], pytest.approx(row["accuracy/test"])) for row in rows(folder)]
    assert len(events.Scalars("final/ratio/bits")) == 1
    text = events.Tensors("config/text_summary")[-1]
    assert b"solver.num_steps: 5" in text.tensor_proto.string_val[0]
    assert json.loads((folder / "tracking.json").read_text()) == {
        "tensorboard": {"folder": str(folder / "tensorboard")}
    }


def test_tensorboard_writes_where_the_settings_say_whatever_tracking_json_does(tmp_path: Path) -> None:
    for folder in (str(tmp_path / "elsewhere"), 1, None):
        tracker = TensorBoard()
        there = tracker.start(About(tmp_path / "run", {}, {}, {"folder": folder}))
        tracker.row(0, {"objective": 1.0})
        tracker.end({"status": "done"}, {})
        assert there == {"folder": str(tmp_path / "run/tensorboard")}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_tensorboard_gives_each_run_a_folder_in_a_common_one(tmp_path: Path) -> None:
    words = ["tracking=tensorboard", "tracking.tensorboard.folder=all"]
    run(tmp_path / "runs/a", *WORDS, "solver.num_steps=0", *words)
    assert list((tmp_path / "all/runs/a").glob("events*"))
