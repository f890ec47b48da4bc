"""The trained network that solvers start from: which one it is, trained once, kept, and taken up again when stopped."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from cases import case
from own_parts import Started
from runs import configuration, refusal, resume, rows, run, status, summary

import nncompress.experiment.reference
import nncompress.files
from nncompress.errors import ConfigError, NNCompressError, Unsupported
from nncompress.experiment.reference import reference_of, with_reference
from nncompress.experiment.run import run as run_setup
from nncompress.experiment.setup import Setup
from nncompress.solvers.sgd.sgd import SGD
from nncompress.sweeps.saved import rerun_config

DATA = ["dataset.train_size=100", "dataset.test_size=50"]
SMALL = [*DATA, "model.widths=[16]"]
NOISY = [*DATA, "model._target_=own_parts.Noisy"]
TRAINING = ["reference_training.num_steps=12"]
SOLVER = "solver._target_=own_parts.Started"
STARTED = [SOLVER, "solver.num_steps=2", *TRAINING]
REFERENCES = Path("outputs/references")

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="nncompress")


def reference() -> Path:
    """The one reference there is."""
    (folder,) = (path for path in REFERENCES.iterdir() if path.is_dir())
    return folder


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


def test_the_shipped_training_gives_97_percent_on_the_digits_after_a_fifth_of_its_epochs(tmp_path):
    run(tmp_path / "a", SOLVER, "solver.num_steps=0", "reference_training.num_steps=20")
    assert summary(reference())["accuracy/test"] >= 0.97


@pytest.mark.slow
def test_the_shipped_training_gives_97_percent_on_the_digits(tmp_path):
    run(tmp_path / "a", SOLVER, "solver.num_steps=0")
    assert summary(reference())["accuracy/test"] >= 0.97


def test_a_reference_is_trained_once_whole_and_taken_by_whichever_solver_starts_from_it(tmp_path, caplog):
    words = [*NOISY, *STARTED, "compression=l0", "target.ratio=0.4"]
    run(tmp_path / "trained", *words)
    folder = reference()
    assert str(folder.absolute()) == reference_of(configuration(*words))[0]
    assert status(folder)["status"] == "done"
    assert f"the reference is trained in {folder.absolute()}" in caplog.text
    # the whole network, without target and compression
    about = summary(folder)
    assert (about["solver"], about["model"], about["compression"]) == ("reference_training", "Noisy", "none")
    assert about["ratio/params"] == 1
    assert [row["step"] for row in rows(folder)] == [0, 10, 12]
    assert summary(tmp_path / "trained")["target/requested"] == 0.4
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    caplog.clear()
    # by the same run anew, whose records are those of the one that trained it
    run(tmp_path / "taken", *words)
    assert f"the reference is taken from {folder.absolute()}" in caplog.text
    assert rows(tmp_path / "trained") == rows(tmp_path / "taken")
    assert summary(tmp_path / "trained") == summary(tmp_path / "taken")
    # by others, which start at its accuracy
    run(tmp_path / "faster", *NOISY, *STARTED, "solver.lr=0.01")
    run(tmp_path / "too", *NOISY, *TRAINING, "solver._target_=own_parts.StartedToo", "solver.num_steps=1")
    for name in ("trained", "faster", "too"):
        assert rows(tmp_path / name)[0]["accuracy/dense_test"] == about["accuracy/test"]
        assert summary(tmp_path / name)["reference"] == str(folder.absolute())
        assert summary(tmp_path / name)["accuracy/reference_test"] == about["accuracy/test"]
    for name in ("faster", "too"):
        assert rows(tmp_path / name)[0]["accuracy/test"] == about["accuracy/test"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# Which one


def named(*words: str) -> Path:
    """The folder of the reference of a run."""
    return Path(reference_of(configuration(*SMALL, SOLVER, *words))[0])


def test_another_seed_model_data_set_precision_or_training_has_another_reference():
    words = [
        "seed=1", "model.widths=[17]", "model.activation=tanh", "dataset.train_size=199", "dataset.normalise=standard",
        "precision=float64", "reference_training.num_steps=101", "reference_training.schedule.decay=0.9",
        "reference_training.optimizer.weight_decay=1e-4", "augmentation=crop_flip", "augmentation=rotation",
        "validation=0.1", "validation=0.2",
    ]  # fmt: skip
    folders = [named(word) for word in words]
    folders += [named("augmentation=crop_flip", "augmentation.parts.0.padding=1"), named()]
    assert len(set(folders)) == len(words) + 2


def test_the_solver_its_compression_the_protocol_and_places_do_not_change_the_reference():
    for word in (
        "solver.lr=0.5", "compression=l0", "target.ratio=0.5", "eval_every=3", "checkpoint_every=2", "device=cpu",
        "protocol=paper", "cuda_graphs=false", "solver.num_steps=1",
    ):  # fmt: skip
        with case(word=word):
            assert named(word) == named()
    assert named("dataset=mnist", "data_dir=a") == named("dataset=mnist", "data_dir=b")


def test_a_reference_is_named_after_model_and_data_set():
    assert named().parent == REFERENCES.absolute()
    assert named().name.startswith("mlp-digits-")
    cfg = configuration(*SMALL, SOLVER)
    cfg.choices = {}  # of a configuration that names no options
    assert Path(reference_of(cfg)[0]).name.startswith("MLP-digits-")


def test_another_content_of_the_file_that_holds_the_data_has_another_reference():
    def held(n):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 2, n)
        np.savez("points.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        cfg = configuration(SOLVER, "model.widths=[16]", "dataset=npz", "dataset.path=points.npz")
        return reference_of(cfg)[0]

    assert held(20) != held(30)


def test_a_solver_that_starts_from_no_reference_gets_none():
    cfg = configuration(*SMALL)
    assert with_reference(cfg) == cfg
    assert cfg.reference is None
    assert not REFERENCES.exists()


# Stopped and taken up again


def test_an_interrupted_training_is_continued_by_the_same_command(tmp_path, monkeypatch, caplog):
    words = [*NOISY, *STARTED, "checkpoint_every=5"]
    run(tmp_path / "a", *words, f"reference_dir={tmp_path}/whole")
    with monkeypatch.context() as broken:
        strike(broken, at=7)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "b", *words)
    assert stop.value.code == 130
    assert status(reference()) == status(reference()) | {"status": "interrupted", "step": 8}
    assert not (tmp_path / "b/records.jsonl").exists()
    assert status(tmp_path / "b")["status"] == "interrupted"
    caplog.clear()
    run(tmp_path / "b", *words)
    assert "resuming at step 8" in caplog.text
    assert rows(reference()) == rows(tmp_path / "whole" / reference().name)
    assert rows(tmp_path / "b") == rows(tmp_path / "a")


def test_a_training_that_broke_off_goes_on_from_its_checkpoint_or_begins_again(tmp_path, monkeypatch, caplog):
    words = [*SMALL, *STARTED, "checkpoint_every=5"]
    whole = Path(with_reference(configuration(*words, f"reference_dir={tmp_path}/whole")).reference)
    for at in (1, 7):  # before and behind its checkpoint
        with case(at=at):
            given = [*words, f"reference_dir={tmp_path}/broken{at}"]
            folder = named(*given)
            with monkeypatch.context() as broken:
                strike(broken, at, signals=False)
                assert "out of luck" in str(refusal(tmp_path / f"a{at}", *given))
            assert status(tmp_path / f"a{at}")["status"] == status(folder)["status"] == "failed"
            assert (folder / "checkpoints/last.pt").exists() == (at > 5)
            (tmp_path / f"a{at}/status.json").unlink()
            (folder / "status.json").unlink()  # as a kill would leave it
            caplog.clear()
            run(tmp_path / f"b{at}", *given)
            assert ("resuming at step 5" in caplog.text) == (at > 5)
            assert rows(folder) == rows(whole)


def test_an_interrupted_run_resumes_from_the_reference_it_began_with(tmp_path, monkeypatch):
    words = [*NOISY, *STARTED, "solver.num_steps=6", "checkpoint_every=2"]
    run(tmp_path / "whole", *words)
    with monkeypatch.context() as broken:
        strike(broken, at=3, solver=Started)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "broken", *words)
    assert stop.value.code == 130
    monkeypatch.chdir("/")
    monkeypatch.setattr(nncompress.experiment.reference, "run", lambda cfg, folder: pytest.fail("trained again"))
    resume(tmp_path / "broken")
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert summary(tmp_path / "broken") == summary(tmp_path / "whole")


def test_of_two_that_want_a_reference_at_once_one_trains_and_the_other_waits_for_it(monkeypatch):
    waits, trained = threading.Event(), []

    def slow(setup: Setup, folder: Path) -> dict[str, object]:
        assert waits.wait(60)
        trained.append(folder)
        return run_setup(setup, folder)

    def said(record):
        if "waiting for the process that trains" in record.getMessage():
            waits.set()
        return True

    monkeypatch.setattr(nncompress.experiment.reference, "run", slow)
    monkeypatch.setattr(nncompress.files.log, "disabled", False)
    monkeypatch.setattr(nncompress.files.log, "filters", [said])
    folders: list[str] = []
    cfg = configuration(*SMALL, SOLVER, *TRAINING)
    threads = [threading.Thread(target=lambda: folders.append(with_reference(cfg).reference)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [str(trained[0])] * 2
    assert len(trained) == 1
    assert status(trained[0])["status"] == "done"


def test_a_rerun_from_any_folder_looks_its_reference_up_anew(tmp_path, monkeypatch):
    """Else another seed would start from the network of the seed before."""
    run(tmp_path / "a", *SMALL, *STARTED)
    trained = REFERENCES.absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cfg = rerun_config(tmp_path / "a", ["seed=4", "allow=[own_parts]"])
    assert cfg.reference is None
    assert Path(cfg.reference_dir) == trained


# What cannot be trained


def test_a_reference_whose_training_diverges_is_told_with_its_folder(tmp_path):
    failure = refusal(tmp_path / "a", *SMALL, *STARTED, "reference_training.lr=1e30")
    assert f"the reference cannot be trained in {reference().absolute()}: " in str(failure)
    assert failure.exit_code == 1
    assert status(reference())["status"] == "diverged"


def test_a_folder_that_cannot_hold_references_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NNCompressError, match="reference_dir must be a folder that can be written"):
        with_reference(configuration(*SMALL, SOLVER, f"reference_dir={tmp_path}/file"))


def test_without_a_training_the_reference_must_be_given():
    with pytest.raises(ConfigError, match="give one, or reference=FOLDER"):
        with_reference(configuration(*SMALL, SOLVER, "reference_training=null"))


def test_what_the_solver_refuses_is_refused_before_the_reference_is_trained(tmp_path):
    for words, code, said in (
        (["compression=codebook", "solver.mu0=-1"], 2, "mu0 must be positive"),
        (["compression=codebook", "compression.K=0"], 2, "K must be at least 1"),
        ([], 1, "found none in the plan"),
    ):
        with case(words=words):
            failure = refusal(tmp_path / str(len(words) + code), "solver=lc", *SMALL, *TRAINING, *words)
            assert said in str(failure)
            assert failure.exit_code == code
    assert not list(REFERENCES.glob("*/records.jsonl"))


def test_several_processes_train_no_reference(monkeypatch):
    monkeypatch.setattr(nncompress.experiment.reference.parallel, "size", lambda: 2)
    with pytest.raises(Unsupported, match="trained by one process, found 2"):
        with_reference(configuration(*SMALL, SOLVER))


def test_a_last_batch_of_one_sample_joins_the_one_before_so_that_batch_norm_can_be_trained(tmp_path):
    words = ["solver=sgd", "solver.num_steps=1", "solver.batch_size=64", "model._target_=own_parts.Normalised"]
    run(tmp_path / "run", "dataset.train_size=65", "dataset.test_size=50", *words)
    assert status(tmp_path / "run")["status"] == "done"
    assert rows(tmp_path / "run")[1]["loss/train"] < rows(tmp_path / "run")[0]["loss/train"]
