"""Tracking: what MLflow, TensorBoard and W&B are told, and that a run is the same with and without them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from runs import rows, status, struck, summary, train

from nncompress import config
from nncompress.cli import main
from nncompress.errors import ConfigError
from nncompress.solvers.sgd import SGD
from nncompress.tracking.base import About, Tracker
from nncompress.tracking.mlflow import MLflow
from nncompress.tracking.tensorboard import TensorBoard
from nncompress.tracking.wandb import WandB

pytestmark = pytest.mark.usefixtures("apart")

WORDS = ["solver=sgd", "model.widths=[8]", "dataset.train_size=100", "compression=l0", "compression.keep=0.3"]
HERE = os.path.dirname(__file__)


class Failing(Tracker):
    """A tracker of which one method fails, after it drew random numbers and warned."""

    def __init__(self, method: str, error: str = "RuntimeError") -> None:
        self.method, self.error = method, error

    def _reached(self, method: str) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)
        if method == self.method:
            raise {"RuntimeError": RuntimeError, "ImportError": ImportError, "KeyboardInterrupt": KeyboardInterrupt}[
                self.error
            ]("no")

    def start(self, about: About) -> Mapping[str, Any]:
        self._reached("start")
        return {}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        self._reached("row")

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        self._reached("end")


class Lacking(Failing):
    """A tracker of an extra."""

    extra = "mlflow"


class Noted(Tracker):
    """A tracker that keeps what it is told in a file of the current folder."""

    def _note(self, *words: Any) -> None:
        with open("told.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(words) + "\n")

    def start(self, about: About) -> Mapping[str, Any]:
        self._note("start", dict(about.known), dict(about.tags), dict(about.config))
        return {"id": about.known.get("id", about.name)}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        self._note("row", step, dict(figures))

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        self._note("end", status["status"], None if summary is None else sorted(summary))


def own(name: str, **settings: str) -> list[str]:
    """The words that add a tracker of this file."""
    given = {"_target_": f"test_tracking.{name}"} | settings
    return [f"+tracking.own={{{','.join(f'{key}: {value}' for key, value in given.items())}}}"]


def told() -> list[list[Any]]:
    return [json.loads(line) for line in Path("told.jsonl").read_text().splitlines()]


@pytest.fixture
def stopped_at_3() -> Iterator[None]:
    """A run that comes to its third step gets SIGINT in it."""
    with struck(SGD, 2):
        yield


BARE = "import nncompress.experiment; nncompress.experiment.write_run_report = lambda folder: []"


def elsewhere(folder: Path, *commands: list[str]) -> subprocess.Popen[str]:
    """A process in `folder` that runs `nncompress train` with each of these words, without pictures."""
    runs = "; ".join(f"print('ended', main(['train', *{words!r}]))" for words in commands)
    code = f"{BARE}; from nncompress.cli import main; {runs}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _mine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


# What holds for every tracker


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without trackers."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nncompress.experiment.write_run_report", lambda folder: [])
        assert train(folder, *WORDS, "solver.num_steps=3") == 0
    return folder


@pytest.mark.parametrize("method", ["start", "row", "end", "none"])
def test_a_failing_tracker_is_one_warning_and_changes_nothing(method, tmp_path, plain, caplog):
    folder = tmp_path / "run"
    assert train(folder, *WORDS, "solver.num_steps=3", *own("Failing", method=method)) == 0
    assert status(folder)["status"] == "done"
    assert rows(folder) == rows(plain)
    assert summary(folder) == summary(plain)
    log = (folder / "run.log").read_text()
    assert log.count("tracking.own is left out from here on: RuntimeError: no") == (method != "none")
    assert "Traceback" not in log


def test_the_other_trackers_go_on(tmp_path):
    words = [*own("Failing", method="row"), "+tracking.other._target_=test_tracking.Noted"]
    assert train(tmp_path / "run", *WORDS, "solver.num_steps=2", *words) == 0
    assert [line[0] for line in told()] == ["start", "row", "row", "row", "end"]


def test_a_missing_library_is_told_with_its_extra(tmp_path):
    assert (
        train(tmp_path / "run", *WORDS, "solver.num_steps=1", *own("Lacking", method="start", error="ImportError")) == 0
    )
    log = (tmp_path / "run/run.log").read_text()
    assert "it needs what the extra mlflow installs (ImportError: no); pip install 'nncompress[mlflow]'" in log


@pytest.mark.parametrize(
    ("tracker", "library"),
    [(MLflow(uri="sqlite:///m.db"), "mlflow"), (TensorBoard(), "tensorboard"), (WandB(), "wandb")],
    ids=["mlflow", "tensorboard", "wandb"],
)
def test_libraries_are_looked_for_in_start(tracker, library, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == library or name == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=library):
        tracker.start(About(tmp_path, {}, {}, {}))
    assert tracker.extra == library


def test_a_tracker_cannot_keep_a_run_from_leaving(tmp_path):
    assert (
        train(tmp_path / "run", *WORDS, "solver.num_steps=2", *own("Failing", method="row", error="KeyboardInterrupt"))
        == 130
    )
    assert status(tmp_path / "run")["status"] == "interrupted"


def test_what_is_no_tracker_is_said_and_left_out(tmp_path):
    assert train(tmp_path / "run", *WORDS, "solver.num_steps=1", "+tracking.own._target_=builtins.dict") == 0
    assert "must be an nncompress.tracking.base.Tracker, found dict" in (tmp_path / "run/run.log").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracking=mlfow"], "did you mean 'mlflow'?"),
        (["tracking=mlflow", "+tracking.mlflow.url=a"], "did you mean 'uri'?"),
        (["tracking=wandb", "tracking.wandb.mode=on"], "tracking.wandb.mode: must be one of offline, online"),
        (["+tracking.own=a"], "tracking.own: needs a _target_"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(words, said, tmp_path, capsys):
    assert train(tmp_path / "run", *WORDS, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("tracking=mlflow", ["mlflow"]),
        ("tracking=[tensorboard]", ["tensorboard"]),
        ("tracking=[wandb,mlflow]", ["wandb", "mlflow"]),
        ("tracking=[]", []),
        ("~tracking", []),
    ],
)
def test_one_tracker_several_or_none_compose_and_bind(word, names):
    config.register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        cfg = compose("config", [word])
    config.validate(cfg)
    assert list(cfg.tracking or {}) == names


def test_a_name_in_place_of_the_nodes_is_refused():
    config.register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        cfg = compose("config")
    cfg.tracking = "mlflow"
    with pytest.raises(ConfigError, match="tracking: needs a node for each tracker; choose with tracking=NAME"):
        config.validate(cfg)


@pytest.mark.usefixtures("stopped_at_3")
def test_a_resumed_run_tells_the_rows_it_kept_and_goes_on_under_its_name(tmp_path):
    folder = tmp_path / "run"
    assert train(folder, *WORDS, "solver.num_steps=5", *own("Noted")) == 130
    first = told()
    assert [line[0] for line in first] == ["start", *["row"] * 4, "end"]
    assert first[-1][1:] == ["interrupted", None]
    assert main(["train", f"resume={folder}", "allow=[test_tracking]"]) == 0
    again = told()[len(first) :]
    assert again[0][1] == {"id": f"{tmp_path.name}/run"}
    assert [line[1] for line in again[1:-1]] == [0, 1, 2, 3, 4, 5]
    kept = first[2][2]
    assert again[2][2] == {key: pytest.approx(value) for key, value in kept.items()}
    assert again[-1][1] == "done"
    assert "accuracy/test" in again[-1][2]


def test_the_settings_are_told_flat_and_the_jobs_of_a_sweep_know_it(tmp_path):
    words = [*WORDS, "solver.num_steps=0,1", "tracking=[]", *own("Noted"), "hydra.sweep.dir=sweep"]
    assert main(["train", "-m", *words]) == 0
    starts = [line for line in told() if line[0] == "start"]
    assert len(starts) == 2
    tags, flat = starts[1][2:]
    assert tags == {
        "solver": "sgd", "model": "mlp", "dataset": "digits", "compression": "l0", "seed": "0",
        "sweep": str(tmp_path / "sweep"), "folder": str(tmp_path / "sweep/1"),
    }  # fmt: skip
    assert flat["solver.num_steps"] == 1
    assert not any(key.startswith(("tracking", "sweep")) for key in flat)
    table = "".join(path.read_text() for path in (tmp_path / "sweep").rglob("*.md"))
    assert "test_tracking" not in table


def test_no_library_is_imported_unless_asked(tmp_path):
    code = (
        f"import sys; {BARE}; from nncompress.cli import main; "
        f"code = main(['train', *{WORDS!r}, 'solver.num_steps=0', 'hydra.run.dir=run']); "
        "print(code, [name for name in ('mlflow', 'wandb', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []"


# MLflow


def client(folder: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'outputs/mlflow.db'}")


def mlflow_runs(folder: Path) -> list[Any]:
    there = client(folder)
    return list(there.search_runs([there.get_experiment_by_name("nncompress").experiment_id]))


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in whose `outputs/mlflow.db` two processes began at the same moment, each with a run; what they said."""
    folder = tmp_path_factory.mktemp("mlflow")
    words = [*WORDS, "solver.num_steps=3", "tracking=mlflow"]
    both = [elsewhere(folder, [*words, f"seed={seed}", f"hydra.run.dir=run{seed}"]) for seed in (0, 1)]
    said = "".join(process.communicate(timeout=1800)[0] for process in both)
    assert said.count("ended 0") == 2, said
    (folder / "said").write_text(said)
    return folder


@pytest.fixture
def _mlflow(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    """What MLflow warns of itself when a test asks it is no matter of ours."""
    import warnings

    warnings.simplefilter("ignore")


@pytest.mark.usefixtures("_mlflow")
def test_two_processes_at_once_leave_two_whole_runs_in_a_new_sqlite_store(mlflow_store, plain):
    runs = mlflow_runs(mlflow_store)
    assert {run.data.tags["folder"] for run in runs} == {str(mlflow_store / f"run{seed}") for seed in (0, 1)}
    for run in runs:
        folder = Path(run.data.tags["folder"])
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"{mlflow_store.name}/{folder.name}"
        assert run.data.tags["solver"] == "sgd"
        assert run.data.tags["seed"] == run.data.params["seed"] == folder.name[-1]
        assert run.data.params["solver.num_steps"] == "3"
        assert run.data.params["compression"] == "l0"
        written = rows(folder)
        for key in ("objective", "accuracy/test", "ratio/bits"):
            history = client(mlflow_store).get_metric_history(run.info.run_id, key)
            assert [(m.step, m.value) for m in history] == [(row["step"], row[key]) for row in written]
        assert run.data.metrics["final/accuracy/test"] == summary(folder)["accuracy/test"]
    assert rows(mlflow_store / "run0") == rows(plain)
    assert not (mlflow_store / "mlruns").exists()


def test_mlflow_says_nothing_on_the_console(mlflow_store):
    said = (mlflow_store / "said").read_text()
    assert "tracking.mlflow" not in said
    for noise in ("alembic", "Creating initial MLflow", "Warning", "sqlalchemy", "INFO"):
        assert noise not in said


@pytest.mark.usefixtures("_mlflow", "stopped_at_3")
def test_mlflow_learns_of_interruption_and_the_resumed_run_goes_on_in_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert train(folder, *WORDS, "solver.num_steps=5", "tracking=mlflow") == 130
    (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "KILLED"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", f"resume={folder}", "solver.num_steps=6"]) == 0
    (same,) = mlflow_runs(tmp_path)
    assert same.info.run_id == run.info.run_id
    assert same.info.status == "FINISHED"
    assert same.data.tags["changed/solver.num_steps"] == "6"
    history = client(tmp_path).get_metric_history(run.info.run_id, "objective")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["objective"]) for row in rows(folder)]
    assert not (tmp_path / "elsewhere/outputs").exists()


@pytest.mark.usefixtures("_mlflow")
def test_mlflow_learns_of_failure_and_a_store_that_lost_the_run_gets_a_new_one(tmp_path):
    words = ["solver=nnbcd", "model=lenet5", "tracking=mlflow"]
    assert train(tmp_path / "run", *words) == 2
    (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "FAILED"
    assert "lenet5 needs images" in run.data.tags["reason"]
    tracker = MLflow(uri="sqlite:///outputs/mlflow.db")
    known = {"uri": f"sqlite:///{tmp_path}/outputs/mlflow.db", "run": "0" * 32}
    assert tracker.start(About(tmp_path / "run", {}, {}, known))["run"] != known["run"]


def test_a_store_that_cannot_be_had_is_a_warning_and_the_run_is_done(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    assert train(tmp_path / "run", *WORDS, "solver.num_steps=1", "tracking=mlflow") == 0
    assert "tracking.mlflow is left out from here on: FileExistsError" in (tmp_path / "run/run.log").read_text()


# TensorBoard


@pytest.mark.usefixtures("_mlflow", "stopped_at_3")
def test_tensorboard_reads_every_row_once_also_of_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert train(folder, *WORDS, "solver.num_steps=5", "tracking=tensorboard") == 130
    assert main(["train", f"resume={folder}"]) == 0
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


def test_tensorboard_gives_each_run_a_folder_in_a_common_one(tmp_path):
    words = ["tracking=tensorboard", "tracking.tensorboard.folder=all"]
    assert train(tmp_path / "runs/a", *WORDS, "solver.num_steps=0", *words) == 0
    assert list((tmp_path / "all/runs/a").glob("events*"))


# Weights & Biases: in a process of its own, since it talks to one through a socket


@pytest.mark.slow
def test_wandb_offline_leaves_files_to_sync_and_keeps_its_id(tmp_path, plain):
    folder = tmp_path / "run"
    words = [*WORDS, "solver.num_steps=3", "tracking=wandb", f"hydra.run.dir={folder}"]
    said = elsewhere(tmp_path, words, [f"resume={folder}", "solver.num_steps=4"]).communicate(timeout=1800)[0]
    assert said.count("ended 0") == 2, said
    assert "wandb" not in said
    identity = json.loads((folder / "tracking.json").read_text())["wandb"]["id"]
    files = sorted(path.name for path in (folder / "wandb").glob("offline-run-*/*.wandb"))
    assert files == [f"run-{identity}.wandb"] * 2
    assert b"solver.num_steps" in next((folder / "wandb").glob("offline-run-*/*.wandb")).read_bytes()
    assert rows(folder)[:4] == rows(plain)
