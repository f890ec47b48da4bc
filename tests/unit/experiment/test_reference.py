"""The trained network that solvers start from: trained once, kept, taken up again, refused where it does not fit."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from runs import rows, status, summary, train
from torch import nn

import nncompress.reference
from nncompress import config
from nncompress.cli import main
from nncompress.errors import ConfigError, NNCompressError, Unsupported
from nncompress.experiment import run
from nncompress.reference import with_reference
from nncompress.solvers.sgd import SGD


@dataclass(frozen=True, kw_only=True)
class Started(SGD):
    """Descent that starts from a trained network."""

    from_reference: ClassVar[bool] = True
    lr: float = 0.001


class StartedToo(Started):
    """Another one."""


class Noisy(nn.Sequential):
    """A network that draws random numbers in training."""

    def __init__(self, num_classes: int, p: float = 0.5) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, num_classes))


class Normalised(nn.Sequential):
    """A network with batch norm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


DATA = ["dataset.train_size=200"]
SMALL = [*DATA, "model.widths=[16]"]
NOISY = [*DATA, "model._target_=test_reference.Noisy"]
TRAINING = ["reference_training.num_steps=12"]
STARTED = ["solver._target_=test_reference.Started", "solver.num_steps=2", *TRAINING]
REFERENCES = Path("outputs/references")

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module is where `_target_` looks for it."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))


def reference() -> Path:
    """The one reference there is."""
    (folder,) = (path for path in REFERENCES.iterdir() if path.is_dir())
    return folder


def composed(*words: str) -> DictConfig:
    config.register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        return compose("config", [*SMALL, "solver._target_=test_reference.Started", *words])


def strike(monkeypatch: pytest.MonkeyPatch, at: int, solver: type[SGD] = SGD, signals: bool = True) -> None:
    """A Ctrl-C, or else an error, in the step of that solver behind step `at`; this class alone, not its subclasses."""
    step = SGD.step

    def struck(self, problem, state):
        if state.k == at and type(self) is solver:
            if not signals:
                raise RuntimeError("out of luck")
            signal.raise_signal(signal.SIGINT)
        return step(self, problem, state)

    monkeypatch.setattr(SGD, "step", struck)


@pytest.fixture
def run_of(tmp_path: Path):
    """A run whose network others start from."""

    def made(*words: str) -> Path:
        assert train(tmp_path / "there", "solver=sgd", "solver.num_steps=5", "seed=3", *words) == 0
        return tmp_path / "there"

    return made


def test_the_shipped_training_gives_97_percent_on_the_digits(tmp_path):
    assert train(tmp_path / "a", "solver._target_=test_reference.Started", "solver.num_steps=0") == 0
    assert summary(reference())["accuracy/test"] >= 0.97


def test_a_reference_is_trained_once_and_then_taken(tmp_path):
    assert train(tmp_path / "a", *SMALL, *STARTED) == 0
    before = {path: path.stat().st_mtime_ns for path in reference().rglob("*")}
    assert status(reference())["status"] == "done"
    assert train(tmp_path / "b", *SMALL, *STARTED, "solver.lr=0.01") == 0
    assert {path: path.stat().st_mtime_ns for path in reference().rglob("*")} == before
    assert f"the reference is trained in {reference().absolute()}" in (tmp_path / "a/run.log").read_text()
    assert f"the reference is taken from {reference().absolute()}" in (tmp_path / "b/run.log").read_text()


def test_two_solvers_share_a_reference_and_start_at_its_accuracy(tmp_path):
    assert train(tmp_path / "a", *SMALL, *STARTED) == 0
    assert (
        train(tmp_path / "b", *SMALL, *TRAINING, "solver._target_=test_reference.StartedToo", "solver.num_steps=1") == 0
    )
    there = summary(reference())["accuracy/test"]
    for name in "ab":
        assert rows(tmp_path / name)[0]["accuracy/test"] == there
        assert summary(tmp_path / name)["reference"] == str(reference().absolute())
        assert summary(tmp_path / name)["accuracy/reference_test"] == there


def test_a_reference_is_the_whole_network_trained_without_target_or_compression(tmp_path):
    words = ["compression=l0", "target.ratio=0.4"]
    assert train(tmp_path / "a", *SMALL, *STARTED, *words) == 0
    about = summary(reference())
    assert (about["solver"], about["model"], about["compression"]) == ("reference_training", "mlp", "none")
    assert about["ratio/params"] == 1
    assert [row["step"] for row in rows(reference())] == [0, 10, 12]
    assert summary(tmp_path / "a")["target/requested"] == 0.4


def test_the_records_are_those_of_a_run_that_trained_its_reference_itself(tmp_path):
    for name in ("trained", "taken"):
        assert train(tmp_path / name, *NOISY, *STARTED) == 0
    assert rows(tmp_path / "trained") == rows(tmp_path / "taken")
    assert summary(tmp_path / "trained") == summary(tmp_path / "taken")


def test_a_sweep_trains_its_reference_once_and_a_job_may_have_another_one(run_of):
    there = run_of(*SMALL)
    words = [*SMALL, *STARTED, f"reference=null,{there}", "solver.lr=0.001,0.01", "hydra.sweep.dir=sweep"]
    assert main(["train", "-m", *words]) == 0
    assert status(reference())["status"] == "done"
    assert "the reference is taken from" in Path("sweep/1/run.log").read_text()
    taken = [summary(Path(f"sweep/{job}"))["reference"] for job in range(4)]
    assert taken == [str(reference().absolute())] * 2 + [str(there)] * 2


@pytest.fixture
def nothing_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """References are named, but not trained."""
    monkeypatch.setattr(nncompress.reference, "run", lambda cfg, folder: {})
    monkeypatch.setattr(nncompress.reference, "_check", lambda cfg: None)


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "model.widths=[17]",
        "model.activation=tanh",
        "dataset.train_size=199",
        "dataset.normalise=standard",
        "precision=float64",
        "reference_training.num_steps=101",
        "reference_training.schedule.decay=0.9",
        "reference_training.optimizer.weight_decay=1e-4",
    ],
)
def test_another_seed_model_data_set_precision_or_training_has_another_reference(word):
    assert with_reference(composed(word)).reference != with_reference(composed()).reference


@pytest.mark.usefixtures("nothing_trained")
def test_the_solver_its_compression_and_places_do_not_change_the_reference():
    words = ["solver.lr=0.5", "compression=l0", "target.ratio=0.5", "eval_every=3", "checkpoint_every=2", "device=cpu"]
    assert with_reference(composed(*words)).reference == with_reference(composed()).reference
    here, there = (with_reference(composed("dataset=mnist", f"data_dir={name}")).reference for name in "ab")
    assert here == there


@pytest.mark.usefixtures("nothing_trained")
def test_a_reference_is_named_after_model_and_data_set():
    folder = Path(with_reference(composed()).reference)
    assert folder.parent == REFERENCES.absolute()
    assert folder.name.startswith("MLP-digits-")


def test_a_solver_that_starts_from_no_reference_gets_none():
    cfg = composed("solver._target_=nncompress.solvers.sgd.SGD")
    assert with_reference(cfg) == cfg
    assert cfg.reference is None
    assert not REFERENCES.exists()


def test_an_interrupted_training_is_continued_by_the_same_command(tmp_path, monkeypatch):
    words = [*NOISY, *STARTED, "checkpoint_every=5"]
    whole = f"reference_dir={tmp_path}/whole"
    assert train(tmp_path / "a", *words, whole) == 0
    with monkeypatch.context() as broken:
        strike(broken, at=7)
        assert train(tmp_path / "b", *words) == 130
    assert status(reference()) == status(reference()) | {"status": "interrupted", "step": 8}
    assert not (tmp_path / "b/records.jsonl").exists()
    assert status(tmp_path / "b")["status"] == "interrupted"
    assert train(tmp_path / "b", *words) == 0
    assert "resuming at step 8" in (tmp_path / "b/run.log").read_text()
    assert rows(reference()) == rows(tmp_path / "whole" / reference().name)
    assert rows(tmp_path / "b") == rows(tmp_path / "a")


@pytest.mark.parametrize("at", [1, 7], ids=["before", "behind"])
def test_a_training_that_broke_off_goes_on_from_its_checkpoint_or_begins_again(at, tmp_path, monkeypatch, capsys):
    cfg = composed(*TRAINING, "checkpoint_every=5", f"reference_dir={tmp_path}/whole")
    whole = Path(with_reference(cfg).reference)
    with monkeypatch.context() as broken:
        strike(broken, at, signals=False)
        assert train(tmp_path / "a", *SMALL, *STARTED, "checkpoint_every=5") == 1
    assert status(tmp_path / "a")["status"] == status(reference())["status"] == "failed"
    assert "out of luck" in capsys.readouterr().err
    assert (reference() / "checkpoints/last.pt").exists() == (at > 5)
    (tmp_path / "a/status.json").unlink()
    (reference() / "status.json").unlink()  # as a kill would leave it
    assert train(tmp_path / "b", *SMALL, *STARTED, "checkpoint_every=5") == 0
    assert ("resuming at step 5" in (tmp_path / "b/run.log").read_text()) == (at > 5)
    assert rows(reference()) == rows(whole)


def test_of_two_that_want_a_reference_at_once_one_trains_and_the_other_waits_for_it(monkeypatch, caplog):
    waits, trained = threading.Event(), []

    def slow(cfg: DictConfig, folder: Path) -> dict[str, object]:
        assert waits.wait(60)
        trained.append(folder)
        return run(cfg, folder)

    def said(record):
        if "waiting for the process that trains" in record.getMessage():
            waits.set()
        return True

    monkeypatch.setattr(nncompress.reference, "run", slow)
    monkeypatch.setattr(nncompress.reference.log, "disabled", False)
    monkeypatch.setattr(nncompress.reference.log, "filters", [said])
    folders: list[str] = []
    cfg = composed(*TRAINING)
    with caplog.at_level("INFO", logger="nncompress"):
        threads = [threading.Thread(target=lambda: folders.append(with_reference(cfg).reference)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert folders == [str(trained[0])] * 2
    assert len(trained) == 1
    assert status(trained[0])["status"] == "done"


def test_an_interrupted_run_resumes_from_the_reference_it_began_with(tmp_path, monkeypatch):
    words = [*NOISY, *STARTED, "solver.num_steps=6", "checkpoint_every=2"]
    assert train(tmp_path / "whole", *words) == 0
    with monkeypatch.context() as broken:
        strike(broken, at=3, solver=Started)
        assert train(tmp_path / "broken", *words) == 130
    monkeypatch.chdir("/")
    monkeypatch.setattr(nncompress.reference, "run", lambda cfg, folder: pytest.fail("trained again"))
    assert main(["train", f"resume={tmp_path / 'broken'}", "allow=[test_reference]"]) == 0
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert summary(tmp_path / "broken") == summary(tmp_path / "whole")


def test_sgd_starts_where_the_given_run_ended(run_of, tmp_path):
    there = run_of(*SMALL)
    assert train(tmp_path / "here", *SMALL, "solver=sgd", "solver.num_steps=1", "reference=there") == 0
    for key in ("accuracy/test", "accuracy/train", "loss/test"):
        assert rows(tmp_path / "here")[0][key] == rows(there)[-1][key]
    assert summary(tmp_path / "here")["reference"] == str(there)
    assert not REFERENCES.exists()


def test_a_run_without_reference_says_nothing_of_one(run_of):
    assert not summary(run_of(*SMALL)).keys() & {"reference", "accuracy/reference_test"}


def test_the_start_is_the_deployed_network_of_a_compressed_run(run_of, tmp_path):
    there = run_of(*SMALL, "compression=l0", "compression.keep=0.3")
    assert train(tmp_path / "here", *SMALL, "solver.num_steps=0", f"reference={there}", "precision=float64") == 0
    assert rows(tmp_path / "here")[0]["sparsity"] == rows(there)[-1]["sparsity"] > 0.5


def test_a_network_of_other_shapes_is_refused_with_what_differs(run_of, tmp_path, capsys):
    there = run_of(*SMALL, "model.bias=false")
    assert train(tmp_path / "a", *DATA, "model.widths=[12]", "model.bias=false", f"reference={there}") == 2
    said = capsys.readouterr().err
    assert "fc1.weight is 16x64 there and 12x64 here" in said
    assert "fc2.weight is 10x16 there and 10x12 here" in said
    assert train(tmp_path / "b", *SMALL, f"reference={there}") == 2
    assert "fc1.bias is missing there and 16 here" in capsys.readouterr().err


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_a_network_with_another_activation_is_refused(activation, run_of, tmp_path, capsys):
    there = run_of(*SMALL, f"model.activation={activation}")
    assert train(tmp_path / "a", *SMALL, f"reference={there}") == 2
    assert "gives other outputs with the same weights" in capsys.readouterr().err
    assert status(tmp_path / "a")["status"] == "failed"


def test_a_network_with_another_dropout_rate_is_taken(run_of, tmp_path):
    there = run_of(*NOISY)
    assert train(tmp_path / "a", *NOISY, "+model.p=0.1", "solver.num_steps=0", f"reference={there}") == 0
    assert rows(tmp_path / "a")[0]["accuracy/test"] == rows(there)[-1]["accuracy/test"]


def test_a_reference_of_other_data_is_taken_with_a_warning(run_of, tmp_path):
    there = run_of(*SMALL)
    words = ["dataset.normalise=standard", "solver.num_steps=0", f"reference={there}"]
    assert train(tmp_path / "a", *SMALL, *words) == 0
    assert "the reference was trained on digits (preprocessing: " in (tmp_path / "a/run.log").read_text()
    assert train(tmp_path / "b", *SMALL, *words[1:]) == 0
    assert "the reference was trained on" not in (tmp_path / "b/run.log").read_text()


def test_a_folder_without_a_finished_run_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    for folder in ("nowhere", "unfinished", ""):
        assert train(tmp_path / "a", *STARTED, f"reference='{folder}'", "seed=-1") == 2
        said = capsys.readouterr().err
        assert f"must be the folder of a finished run, found no model/model.json in '{folder}'" in said
        assert "seed: must be" in said


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_a_damaged_network_is_named(file, run_of, tmp_path, capsys):
    path = run_of(*SMALL) / "model" / file
    path.write_bytes(path.read_bytes()[:100])
    assert train(tmp_path / "a", *SMALL, f"reference={path.parents[1]}") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nncompress: reference: {path} must be a whole")
    assert "give another run" in said


def test_a_reference_whose_training_diverges_is_told_with_its_folder(tmp_path, capsys):
    assert train(tmp_path / "a", *SMALL, *STARTED, "reference_training.lr=1e30") == 1
    assert f"the reference cannot be trained in {reference().absolute()}: " in capsys.readouterr().err
    assert status(reference())["status"] == "diverged"


def test_a_folder_that_cannot_hold_references_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NNCompressError, match="reference_dir must be a folder that can be written"):
        with_reference(composed(f"reference_dir={tmp_path}/file"))


def test_without_a_training_the_reference_must_be_given():
    with pytest.raises(ConfigError, match="give one, or reference=FOLDER"):
        with_reference(composed("reference_training=null"))


def test_what_the_solver_refuses_is_refused_before_the_reference_is_trained(tmp_path, capsys):
    words = ["solver=lc", "compression=codebook", *SMALL, *TRAINING]
    assert train(tmp_path / "a", *words, "solver.mu0=-1") == 2
    assert train(tmp_path / "b", *words, "compression.K=0") == 2
    assert train(tmp_path / "c", "solver=lc", *SMALL, *TRAINING) == 1
    told = capsys.readouterr().err
    for said in ("mu0 must be positive", "K must be at least 1", "found none in the plan"):
        assert said in told
    assert not list(REFERENCES.glob("*/records.jsonl"))


def test_another_content_of_the_file_that_holds_the_data_has_another_reference(tmp_path):
    def named(n):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 2, n)
        np.savez("points.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        cfg = composed("dataset=npz", "dataset.path=points.npz", *STARTED)
        return nncompress.reference._name(nncompress.reference._training(cfg))

    assert named(20) != named(30)


def test_a_last_batch_of_one_sample_joins_the_one_before_so_that_batch_norm_can_be_trained(tmp_path):
    words = ["solver=sgd", "solver.num_steps=1", "solver.batch_size=64", "model._target_=test_reference.Normalised"]
    assert train(tmp_path / "run", "dataset.train_size=193", *words) == 0


def test_several_processes_train_no_reference(monkeypatch):
    monkeypatch.setattr(nncompress.reference.parallel, "size", lambda: 2)
    with pytest.raises(Unsupported, match="trained by one process, found 2"):
        with_reference(composed())
