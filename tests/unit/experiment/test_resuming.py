"""Runs that were stopped, damaged or had all their steps, and go on: to the records of an unbroken one, bit for bit."""

from __future__ import annotations

import json
import signal

import pytest
from cases import case
from golden import DIGITS, WORDS
from runs import configuration, finish, resume, rows, run, status, struck, summary

from nncompress.errors import CheckpointError
from nncompress.experiment.interruption import Interruption
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.sgd.sgd import SGD

SMALL = ["dataset.train_size=100", "dataset.test_size=50"]
TENSOR_TRAIN = ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]"]
NNBCD_WORDS = [*TENSOR_TRAIN, "compression.rank=8", *SMALL]
SGD_WORDS = ["solver=sgd", "model.widths=[32]", "compression=l0", "compression.keep=0.3", *SMALL]

pytestmark = pytest.mark.usefixtures("apart")
solvers = pytest.mark.parametrize(
    ("words", "solver"), [pytest.param(NNBCD_WORDS, NNBCD, id="nnbcd"), pytest.param(SGD_WORDS, SGD, id="sgd")]
)


def assert_alike(folder, whole):
    assert rows(folder) == rows(whole)
    assert summary(folder) == summary(whole)


@solvers
def test_an_interrupted_run_resumes_to_the_records_of_an_unbroken_one(words, solver, tmp_path):
    cfg = configuration(*words, "eval_every=2", "solver.num_steps=7")
    finish(cfg, tmp_path / "whole")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with case(number=number):
            broken = tmp_path / f"broken{code}"
            with struck(solver, 4, number), pytest.raises(SystemExit) as stop:
                finish(cfg, broken)
            assert stop.value.code == code
            assert status(broken)["status"] == "interrupted"
            assert status(broken)["step"] == 5
            assert not (broken / "summary.json").exists()
            resume(broken)
            assert_alike(broken, tmp_path / "whole")
            assert status(broken)["status"] == "done"


@pytest.mark.parametrize(
    ("words", "solver", "steps"),
    [
        pytest.param(["solver=sgd", "compression=l0", "model._target_=own_parts.Noisy"], SGD, 6, id="dropout"),
        pytest.param(
            [*TENSOR_TRAIN, "compression.rank=8", "solver.tolerance=0.3", "eval_every=2"], NNBCD, 9, id="tolerance"
        ),
        pytest.param(
            [*TENSOR_TRAIN, "compression=l0", "solver.project=true", "model.activation=leaky_relu"], NNBCD, 6,
            id="project-leaky",
        ),
        pytest.param(
            [*TENSOR_TRAIN, "compression.rank=8", "solver.initial_rank=20", "solver.plain=true"], NNBCD, 6,
            id="initial-rank-plain",
        ),
    ],
)  # fmt: skip
def test_resuming_at_any_step_gives_the_unbroken_records(words, solver, steps, tmp_path):
    cfg = configuration(*words, *SMALL, f"solver.num_steps={steps}")
    finish(cfg, tmp_path / "whole")
    resumed = []
    for at in (1, steps - 2):
        with case(at=at):
            folder = tmp_path / f"broken{at}"
            try:
                with struck(solver, at):
                    finish(cfg, folder)
            except SystemExit:
                resumed.append(at)
                resume(folder)
            assert_alike(folder, tmp_path / "whole")
    assert resumed[:1] == [1]  # the tolerance may end a run before the second


@pytest.mark.parametrize("family", ["nnbcd", "sgd"])
def test_resuming_a_finished_run_changes_nothing(family, golden, tmp_path):
    folder = golden.copied(family, tmp_path / "run")
    before, steps = json.loads((folder / "summary.json").read_text()), status(folder)["step"]
    resume(folder)
    after = json.loads((folder / "summary.json").read_text())
    for key, value in before.items():
        if not key.startswith("memory"):
            assert after[key] == value, key
    assert rows(folder) == rows(golden.kept(family))
    assert status(folder)["step"] == steps


def test_a_finished_run_goes_on_when_resumed_with_more_steps(golden, tmp_path):
    folder = golden.copied("nnbcd", tmp_path / "short")
    resume(folder, "solver.num_steps=8")
    finish(configuration(*WORDS["nnbcd"], *DIGITS, "seed=3", "solver.num_steps=8"), tmp_path / "long")
    assert len(rows(folder)) == 9
    assert_alike(folder, tmp_path / "long")


def test_a_signal_in_the_last_step_lets_the_run_end_and_then_ends_the_command(golden, tmp_path):
    with struck(SGD, 3), pytest.raises(SystemExit) as stop:
        run(tmp_path / "struck", *WORDS["sgd"], *DIGITS, "seed=3")
    assert stop.value.code == 130
    assert status(tmp_path / "struck")["status"] == "done"
    assert summary(tmp_path / "struck") == summary(golden.kept("sgd"))


def test_a_second_signal_stops_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.code == 130
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 130


def test_a_truncated_checkpoint_is_named(golden, tmp_path):
    folder = golden.copied("nnbcd", tmp_path / "run")
    path = folder / "checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last.pt is truncated or damaged, found 1000 bytes") as damaged:
        resume(folder, "solver.num_steps=8")
    assert damaged.value.exit_code == 1
    assert status(folder)["status"] == "done"  # as it was
    assert rows(folder) == rows(golden.kept("nnbcd"))
