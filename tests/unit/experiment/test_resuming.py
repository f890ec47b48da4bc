"""Runs that were stopped, damaged or had all their steps, and go on: to the records of an unbroken one, bit for bit."""

from __future__ import annotations

import json
import signal
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from cases import case
from golden import DIGITS, WORDS
from runs import configuration, finish, resume, rows, run, status, struck, summary

from nncompress.errors import CheckpointError
from nncompress.experiment import checkpoint
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
        if not key.startswith(("memory", "check")):
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


def test_a_signal_before_a_failure_ends_the_command_too():
    def fail() -> None:
        with Interruption():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("the data are not there")

    with pytest.raises(SystemExit) as stopped:
        fail()
    assert stopped.value.code == 143


def test_a_truncated_checkpoint_is_named(golden, tmp_path):
    folder = golden.copied("nnbcd", tmp_path / "run")
    path = folder / "checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last.pt is truncated or damaged, found 1000 bytes") as damaged:
        resume(folder, "solver.num_steps=8")
    assert damaged.value.exit_code == 1
    assert status(folder)["status"] == "done"  # as it was
    assert rows(folder) == rows(golden.kept("nnbcd"))


def test_a_checkpoint_whose_parts_are_missing_or_of_another_kind_is_named(tmp_path):
    path, one = tmp_path / "last.pt", torch.ones(())
    whole = {
        "rows": 1,
        "check": 2,
        "seconds": 0.5,
        "step_seconds": [0.5],
        "finished": False,
        "random": [one],
        "state": [],
    }
    checkpoint.save(path, whole)
    assert checkpoint.load_run(path) == whole | {"format": checkpoint.FORMAT}
    for part, values in {
        "rows": ["x", None, 1.5, True], "check": [None, "0"], "seconds": [float("nan"), -1.0, "1", one],
        "step_seconds": ["text", ["x"], None, 3], "finished": [0, None], "random": [None, [1], one],
    }.items():  # fmt: skip
        for value in values:
            with case(part=part, value=value):
                checkpoint.save(path, whole | {part: value})
                with pytest.raises(
                    CheckpointError, match=rf"last.pt must hold what .* found {part} missing or damaged"
                ):
                    checkpoint.load_run(path)
    for content, said in (
        ([], "truncated or damaged"), ({}, "truncated or damaged"), ({"format": 1}, "has format 1"),
        ({"format": 2}, "found rows, check, finished, seconds, step_seconds, random, state missing or damaged"),
    ):  # fmt: skip
        with case(content=content):
            torch.save(content, path)
            with pytest.raises(CheckpointError, match=said):
                checkpoint.load_run(path)


def test_a_checkpoint_with_another_byte_or_packed_or_with_other_things_than_tensors_is_named(tmp_path):
    path, content = tmp_path / "last.pt", {"state": [torch.arange(1000.0)]}
    checkpoint.save(path, content)
    whole = path.read_bytes()
    assert torch.equal(checkpoint.load(path)["state"][0], content["state"][0])
    at = whole.index(torch.tensor(500.0).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])  # which torch reads
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "state": bytearray(10)}, path)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(path)
    path.write_bytes(whole)
    with ZipFile(path) as stored, ZipFile(tmp_path / "packed.pt", "w", ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(tmp_path / "packed.pt")


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    layer = torch.nn.Linear(2, 2)
    template = 0, layer, torch.optim.SGD(layer.parameters()), torch.Generator(), [1.5, torch.ones(2)], "text"
    packed = checkpoint.pack(template)
    assert checkpoint.pack(checkpoint.restore(template, packed, tmp_path))[0] == 0
    wrong = {
        0: [None, "1", 1.0, True],
        1: [None, {}, []],
        2: [None, {}, 3],
        3: [None, "x", torch.ones(2)],
        4: [[], None, 3],
    }
    states = [[*packed[:at], value, *packed[at + 1 :]] for at, values in wrong.items() for value in values]
    for state in (None, 3, [], {}, packed[:-1], [*packed, 1], *states):
        with case(state=state), pytest.raises(CheckpointError, match="does not fit this network and solver"):
            checkpoint.restore(template, state, tmp_path)


def test_random_numbers_that_are_no_state_of_torch_are_refused(tmp_path):
    for states in ([], [torch.zeros(3)], [torch.zeros(3, dtype=torch.uint8)]):
        with case(states=states), pytest.raises(CheckpointError, match="does not fit this network and solver"):
            checkpoint.restore_random(states, torch.device("cpu"), tmp_path)


def test_a_damaged_environment_does_not_keep_a_run_from_going_on(golden, tmp_path):
    folder = golden.copied("sgd", tmp_path / "run")
    for text in ("[" * 99, '{"resumed": 3}', "{"):
        with case(text=text):
            (folder / "environment.json").write_text(text)
            resume(folder)
            assert "date" in json.dumps(json.loads((folder / "environment.json").read_text()))
