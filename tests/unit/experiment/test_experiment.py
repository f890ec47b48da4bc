"""Whole runs from the command line: files, resume, interruption, divergence, bad input, the compact network."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import assert_refused, resign, rows, status, struck, summary, train
from torch import nn

from nncompress.cli import main
from nncompress.compact.artefact import load
from nncompress.data.digits import digits
from nncompress.errors import CheckpointError, ConfigError
from nncompress.interruption import Interruption
from nncompress.metrics import evaluate
from nncompress.solvers.nnbcd import NNBCD
from nncompress.solvers.sgd import SGD

NNBCD_WORDS = ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]", "compression.rank=8", "dataset.train_size=200"]
SGD_WORDS = ["solver=sgd", "model.widths=[32]", "compression=l0", "compression.keep=0.3", "dataset.train_size=200"]
CODEBOOK_WORDS = ["solver=nnbcd", "model.widths=[16,16]", "model.bias=false", "compression=codebook"]
FRANK_WOLFE = ["solver=frank_wolfe", "model.widths=[16]", "dataset.train_size=100"]
SUMMARY_KEYS = {
    "accuracy/test", "accuracy/train", "accuracy/dense_test", "params/dense", "params/compressed", "bits/dense",
    "bits/compressed", "ratio/params", "ratio/bits", "ratio/tasks", "macs/dense", "macs/compressed", "seconds/total",
    "seconds/step_median", "memory/peak_bytes", "objective/final", "rate/slope", "rate/bound_ok", "device", "seed",
}  # fmt: skip
ROW_KEYS = {
    "step", "seconds", "objective", "loss/train", "accuracy/train", "loss/test", "accuracy/test",
    "accuracy/dense_test", "gap", "step_sq", "ratio/params", "ratio/bits", "sparsity",
}  # fmt: skip


class NaN(nn.Sequential):
    """A network with a weight that is no number."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        with torch.no_grad():
            self[1].weight[0, 0] = torch.nan


class Conv(nn.Sequential):
    """A network that NN-BCD does not treat."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, num_classes))


pytestmark = pytest.mark.usefixtures("apart")


@pytest.mark.parametrize("words", [NNBCD_WORDS, SGD_WORDS], ids=["nnbcd", "sgd"])
def test_a_run_leaves_every_file_with_its_keys(words, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    assert train(folder, *words, "solver.num_steps=8", "seed=3") == 0
    for name in ("config.yaml", "environment.json", "run.log", "checkpoints/last.pt", "model/model.json"):
        assert (folder / name).is_file(), name
    for table in ("accuracy", "compression", "convergence"):
        assert {path.suffix for path in (folder / "tables").glob(f"{table}.*")} == {".csv", ".md", ".tex"}
    assert (folder / "plots/objective.png").is_file()
    assert status(folder)["status"] == "done"
    full = json.loads((folder / "summary.json").read_text())
    assert full.keys() >= SUMMARY_KEYS
    assert full["seed"] == 3
    assert rows(folder)[-1].keys() >= ROW_KEYS - {"seconds"}
    assert [row["step"] for row in rows(folder)] == list(range(9))
    environment = json.loads((folder / "environment.json").read_text())
    assert {"packages", "device", "commit", "command", "seed", "deterministic"} <= environment.keys()


@pytest.mark.parametrize("words", [NNBCD_WORDS, SGD_WORDS], ids=["nnbcd", "sgd"])
def test_same_seed_same_records_and_another_seed_others(words, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(tmp_path / name, *words, "solver.num_steps=3", f"seed={seed}") == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


@pytest.mark.parametrize(("words", "solver"), [(NNBCD_WORDS, NNBCD), (SGD_WORDS, SGD)], ids=["nnbcd", "sgd"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_an_interrupted_run_resumes_to_the_records_of_an_unbroken_one(words, solver, number, code, tmp_path):
    words = [*words, "eval_every=2"]
    steps = "solver.num_steps=9"
    assert train(tmp_path / "whole", *words, steps) == 0
    broken = tmp_path / "broken"
    with struck(solver, 4, number):
        assert train(broken, *words, steps) == code
    assert status(broken)["status"] == "interrupted"
    assert status(broken)["step"] == 5
    assert not (broken / "summary.json").exists()
    assert main(["train", f"resume={broken}"]) == 0
    assert rows(broken) == rows(tmp_path / "whole")
    assert summary(broken) == summary(tmp_path / "whole")
    assert status(broken)["status"] == "done"


def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_summary(tmp_path):
    words = [*NNBCD_WORDS, "solver.num_steps=400", "checkpoint_every=5"]
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "nncompress", "train", *words, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = len(rows(folder))
    assert 5 < reached < 400
    steps = f"solver.num_steps={max(60, reached + 10)}"
    assert status(folder)["status"] == "running"
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"step": 400, "objec')  # what a kill in mid-write leaves
    assert main(["train", f"resume={folder}", steps]) == 0
    assert train(tmp_path / "whole", *NNBCD_WORDS, steps) == 0
    assert rows(folder) == rows(tmp_path / "whole")
    assert summary(folder) == summary(tmp_path / "whole")


class Noisy(nn.Sequential):
    """A network that draws random numbers in training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes))


CHAIN_WORDS = [word for word in NNBCD_WORDS if not word.startswith("compression")]


@pytest.mark.parametrize(
    "words",
    [
        ["solver=sgd", "dataset.train_size=200", "compression=l0", "model._target_=test_experiment.Noisy"],
        [*NNBCD_WORDS, "solver.tolerance=0.3", "eval_every=2"],
        [*CHAIN_WORDS, "compression=l0", "solver.project=true", "model.activation=leaky_relu"],
        [*NNBCD_WORDS, "solver.initial_rank=20", "solver.plain=true"],
    ],
    ids=["dropout", "tolerance", "project-leaky", "initial-rank-plain"],
)
def test_resuming_at_any_step_gives_the_unbroken_records(words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    solver = SGD if words[0] == "solver=sgd" else NNBCD
    assert train(tmp_path / "whole", *words, "solver.num_steps=9") == 0
    for at in (1, 7):
        folder = tmp_path / f"broken{at}"
        with struck(solver, at):
            code = train(folder, *words, "solver.num_steps=9")
        if code:
            assert main(["train", f"resume={folder}", "allow=[test_experiment]"]) == 0
        assert rows(folder) == rows(tmp_path / "whole")
        assert summary(folder) == summary(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    assert train(tmp_path / "run", *NNBCD_WORDS, "solver.num_steps=3") == 0
    before = (tmp_path / "run/summary.json").read_text(), rows(tmp_path / "run")
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    after = json.loads((tmp_path / "run/summary.json").read_text())
    for key, value in json.loads(before[0]).items():
        if not key.startswith("memory"):
            assert after[key] == value, key
    assert rows(tmp_path / "run") == before[1]
    assert status(tmp_path / "run")["step"] == 3


def test_a_finished_run_goes_on_when_resumed_with_more_steps(tmp_path):
    words = [*NNBCD_WORDS, "checkpoint_every=4"]
    assert train(tmp_path / "short", *words, "solver.num_steps=4") == 0
    assert main(["train", f"resume={tmp_path / 'short'}", "solver.num_steps=8"]) == 0
    assert train(tmp_path / "long", *words, "solver.num_steps=8") == 0
    assert rows(tmp_path / "short") == rows(tmp_path / "long")


def test_a_signal_in_the_last_step_lets_the_run_end_and_then_ends_the_command(tmp_path):
    words = [*SGD_WORDS, "solver.num_steps=3"]
    assert train(tmp_path / "whole", *words) == 0
    with struck(SGD, 2):
        assert train(tmp_path / "struck", *words) == 130
    assert status(tmp_path / "struck")["status"] == "done"
    assert summary(tmp_path / "struck") == summary(tmp_path / "whole")


def test_a_second_signal_stops_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.code == 130
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 130


def test_a_diverging_run_keeps_its_records_and_says_so(tmp_path, capsys):
    assert train(tmp_path / "run", *SGD_WORDS, "solver.lr=1e9", "solver.num_steps=5") == 1
    assert status(tmp_path / "run")["status"] == "diverged"
    assert len(rows(tmp_path / "run")) >= 1
    assert "objective must stay finite" in capsys.readouterr().err


def test_a_numerical_breakdown_is_divergence(tmp_path, monkeypatch):
    step = NNBCD.step

    def poisoned(self, problem, state):
        if state.k == 2:
            state.V[0].fill_(float("nan"))
            state.W[1].fill_(float("nan"))
        return step(self, problem, state)

    monkeypatch.setattr(NNBCD, "step", poisoned)
    assert train(tmp_path / "run", *NNBCD_WORDS, "solver.num_steps=5") == 1
    assert status(tmp_path / "run")["status"] == "diverged"
    assert len(rows(tmp_path / "run")) >= 3


BAD = [
    (["solver=nnbcd", "model._target_=test_experiment.Conv"], 1,
     "NN-BCD needs a chain of Linear and Conv2d layers with ReLU, LeakyReLU or Identity between them (average pooling, "
     "flatten, permute and identity skips allowed); found MaxPool2d at '1'"),
    (["solver=nnbcd", "model=nnbcd_cnn", "dataset.flatten=true"], 2, "nnbcd_cnn needs images (channels, height"),
    ([*NNBCD_WORDS, "solver.tau_growth=0.9"], 2, "tau_growth must be at least 1 and finite, found 0.9"),
    ([*NNBCD_WORDS, "solver.tau_max=1"], 2, "tau_max must be at least tau = 5.0, found 1"),
    ([*NNBCD_WORDS, "solver.project=true", "solver.multipliers=true"], 2, "found multipliers; drop one"),
    ([*NNBCD_WORDS, "precision=half"], 2, "precision: must be one of auto, float32, float64, tf32, bf16, found 'half'"),
    ([*NNBCD_WORDS, "compression.als=-1"], 2, "als, a number of sweeps, must be at least 0, found -1"),
    ([*NNBCD_WORDS, "compression.rank=0"], 2, "rank must be at least 1, found 0"),
    ([*NNBCD_WORDS, "compression.modes=[4,4]"], 2, "must multiply to its 2048 entries"),
    ([*NNBCD_WORDS, "compression.layers=[nothing]"], 2, "found 'nothing'"),
    ([*NNBCD_WORDS, "compression.modes={fc9:[4,4]}"], 2, "found 'fc9'"),
    (["dataset._target_=builtins.dict"], 2, "must give an nncompress.problem.Dataset, found dict"),
    ([*NNBCD_WORDS, "dataset.train_size=0"], 2, "train_size"),
    ([*NNBCD_WORDS, "solver.tau=-1"], 2, "tau must be positive and finite, found -1"),
    ([*NNBCD_WORDS, "solver.tau=big"], 2, "solver.tau"),
    ([*NNBCD_WORDS, "target.ratio=0.0001"], 2, "target.ratio must be at least"),
    ([*NNBCD_WORDS, "target.bits=0.0001"], 2, "target.bits must be at least"),
    ([*NNBCD_WORDS, "target.macs=0.5", "target.ratio=0.5"], 2, "target: must be one of ratio, bits, macs"),
    ([*CODEBOOK_WORDS, "compression.K=0"], 2, "K must be at least 1, found 0"),
    ([*CODEBOOK_WORDS, "compression=l0", "compression.keep=1.5"], 2,
     "keep must be a fraction in (0, 1] or a count (whole number) of at least 0, found 1.5"),
    ([*CODEBOOK_WORDS, "compression=l0", "compression.keep=0.0"], 2, "found 0.0"),
    ([*CODEBOOK_WORDS, "compression=mixed", "compression.parts.second.layers=[fc1]"], 2,
     "a weight belongs to one task at most, found fc1.weight in two"),
    ([*CODEBOOK_WORDS, "compression=additive", "compression.parts.codebook.K=0"], 2, "K must be at least 1, found 0"),
    (["solver=sgd", "model._target_=test_experiment.NaN", "compression=l0", "compression.layers=all"], 1,
     "the weights to compress must be finite, found 1 NaN and 0 infinite of 640 entries in 1.weight"),
    (["solver=sgd", "model._target_=test_experiment.NaN", "compression=low_rank", "compression.rank=null",
      "compression.energy=0.9", "compression.layers=all"], 1, "found 1 NaN and 0 infinite of 640 entries in 1.weight"),
    ([*CODEBOOK_WORDS, "target.ratio=0.5"], 2, "this compression lowers another figure: try target.bits"),
    (["solver=sgd", "model._target_=test_experiment.Conv", "dataset.flatten=true"], 2,
     "the network must take samples of shape (64,)"),
    ([*FRANK_WOLFE, "constraint=group_k_support"], 2,
     "constraint.params=convolutions must match a parameter, found none among fc1.weight, fc1.bias"),
    ([*FRANK_WOLFE, "constraint=spectral_k_support", "constraint.params=all"], 2,
     "a spectral constraint needs parameters of two or more dimensions, found fc1.bias of shape"),
    ([*FRANK_WOLFE, "constraint=nuclear", "constraint.params=weights", "constraint.joint=true"], 2,
     "found several together; give constraint.joint=false"),
    ([*FRANK_WOLFE, "constraint.params=[fc9]"], 2, "found 'fc9'"),
    ([*FRANK_WOLFE, "constraint.set.k=1.5"], 2, "k must be a part above 0 and at most 1, or a whole number above 1"),
    ([*FRANK_WOLFE, "constraint.size.w=0"], 2, "w must be positive and finite, found 0"),
    ([*FRANK_WOLFE, "constraint.rest=l2"], 2, "constraint.rest: must be a node"),
    ([*FRANK_WOLFE, "~constraint"], 2, "constraint must say which parameters lie in which set, found None"),
    ([*FRANK_WOLFE, "solver.lr=2", "solver.rescaling._target_=nncompress.solvers.rescaling.NoRescaling"], 2,
     "lr must be at most 1 with NoRescaling, found 2"),
    ([*FRANK_WOLFE, "solver.delay=1"], 2, "delay must be at least 0 and below 1, found 1"),
    ([*FRANK_WOLFE, "solver.momentum=1"], 2, "momentum must be at least 0 and below 1, found 1"),
    (["solver=sgd", "constraint=k_support"], 2, "constraint: is for solver=frank_wolfe"),
    (["model=lenet5"], 2, "lenet5 needs images"),
    (["dataset=mnist", "data.download=false", "data_dir=nowhere"], 1, "nowhere"),
    (["device=cuda:7"], 2, "device=cuda:7 needs that GPU"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "said"), BAD, ids=[said for *_, said in BAD])
def test_bad_input_is_one_sentence_and_the_right_exit_code(words, code, said, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    assert_refused(tmp_path / "run", words, code, said, capsys)


def test_a_folder_in_use_by_another_process_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train(folder, *NNBCD_WORDS, "solver.num_steps=1") == 2
    assert "found another process running in" in capsys.readouterr().err
    assert not (folder / "records.jsonl").exists()


def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nncompress.checkpoint.torch.save", full)
    assert train(tmp_path / "run", *NNBCD_WORDS, "solver.num_steps=2") == 1
    assert "is full; free space" in capsys.readouterr().err
    assert status(tmp_path / "run")["status"] == "failed"
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp"))


def test_the_folder_of_another_run_is_left_alone(tmp_path, capsys):
    words = [*NNBCD_WORDS, "solver.num_steps=2"]
    assert train(tmp_path / "run", *words) == 0
    before = rows(tmp_path / "run")
    assert train(tmp_path / "run", *words) == 2
    assert "found the records of another run" in capsys.readouterr().err
    assert rows(tmp_path / "run") == before
    assert status(tmp_path / "run")["status"] == "done"


def test_an_unsupported_network_has_its_own_status(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    words, _, said = BAD[0]
    train(tmp_path / "run", *words)
    assert status(tmp_path / "run")["status"] == "unsupported"
    assert said in str(status(tmp_path / "run")["reason"])


def test_a_truncated_checkpoint_is_named(tmp_path, capsys):
    assert train(tmp_path / "run", *NNBCD_WORDS, "solver.num_steps=4", "checkpoint_every=2") == 0
    path = tmp_path / "run/checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["train", f"resume={tmp_path / 'run'}", "solver.num_steps=6"]) == 1
    told = capsys.readouterr().err
    assert "last.pt is truncated or damaged, found 1000 bytes" in told
    assert status(tmp_path / "run")["status"] == "done"  # as it was
    assert len(rows(tmp_path / "run")) == 5


@pytest.mark.parametrize("words", [NNBCD_WORDS, SGD_WORDS], ids=["nnbcd", "sgd"])
def test_the_compact_network_loads_and_classifies_as_recorded(words, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, *words, "solver.num_steps=6", "precision=float32") == 0
    network = load(folder / "model")
    test = digits(train_size=200).test
    found = evaluate(network, test, nn.functional.cross_entropy)
    assert found.accuracy == pytest.approx(rows(folder)[-1]["accuracy/test"], abs=1e-12)
    assert found.loss == pytest.approx(rows(folder)[-1]["loss/test"], rel=1e-5)


def test_a_damaged_compact_network_is_named(tmp_path):
    assert train(tmp_path / "run", *NNBCD_WORDS, "solver.num_steps=1") == 0
    tensors = tmp_path / "run/model/model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        load(tmp_path / "run/model")
    tensors.write_bytes(whole)
    description = tmp_path / "run/model/model.json"
    for wrong in ("nowhere.L0", "L0", "os.system"):
        text = description.read_text()
        resign(
            tmp_path / "run/model", lambda about, wrong=wrong: about["kinds"][0]["compression"].update({"class": wrong})
        )
        with pytest.raises(ConfigError, match=rf"model.json names {wrong}, but only classes of nncompress"):
            load(tmp_path / "run/model")
        description.write_text(text.replace('"rank":', '"rank": 1'))
        with pytest.raises(CheckpointError, match=r"model\.json and model\.safetensors must be as they were written"):
            load(tmp_path / "run")
        description.write_text(text)
    description.write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99"):
        load(tmp_path / "run/model")


@pytest.mark.parametrize(
    ("target", "key", "requested"),
    [("ratio", "ratio/params", 0.5), ("bits", "bits/compressed", 60_000.0), ("macs", "ratio/macs", 0.9)],
)  # fmt: skip
def test_a_target_is_met_and_what_was_requested_and_achieved_recorded(target, key, requested, tmp_path):
    assert train(tmp_path / "run", *NNBCD_WORDS, f"target.{target}={requested}", "solver.num_steps=1") == 0
    found = summary(tmp_path / "run")
    assert 0.8 * requested < found[key] <= requested
    assert (found["target/key"], found["target/requested"], found["target/achieved"]) == (key, requested, found[key])
    assert found["target/setting"].startswith("rank=")


def test_a_target_chooses_the_codebook(tmp_path):
    assert train(tmp_path / "run", *CODEBOOK_WORDS, "target.bits=0.25", "solver.num_steps=1") == 0
    found = summary(tmp_path / "run")
    assert found["ratio/bits"] <= 0.25
    assert found["target/setting"] == f"K={int(found['target/setting'][2:])}"


def test_a_rank_above_the_shape_is_said_once(tmp_path):
    assert train(tmp_path / "run", *NNBCD_WORDS, "compression.rank=1000", "solver.num_steps=2") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("fc1.weight: rank 1000 is above the largest") == 1


def test_the_summary_lists_every_task(tmp_path):
    assert train(tmp_path / "run", *CODEBOOK_WORDS, "compression=mixed", "solver.num_steps=1") == 0
    tasks = json.loads((tmp_path / "run/summary.json").read_text())["tasks"]
    assert [task["params"] for task in tasks] == ["fc1.weight", "fc2.weight"]
    assert [task["bits/compressed"] for task in tasks] == [32 * 16 * (64 + 16), 2 * 256 + 32 * 4]
    assert [task["theta"] for task in tasks] == ["U 16x16, V 16x64", "codes 256, table 1x4"]


def test_a_users_model_compression_and_data_are_taken_by_their_dotted_paths(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nfrom nncompress.compressions.sparsity import L0\n"
        "from nncompress.problem import Dataset, Split\n\n\n"
        "class Net(nn.Sequential):\n    def __init__(self, num_classes, hidden=8):\n"
        "        super().__init__(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))\n\n\n"
        "class Half(L0):\n    def __init__(self):\n        super().__init__(0.5)\n\n\n"
        "def points(n=30):\n    x = torch.randn(n, 5)\n    split = Split(x, (x[:, 0] > 0).long())\n"
        "    return Dataset(split, split, 2, 'points')\n"
    )
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("_target_: mine.Net\nhidden: 6\n")
    (tmp_path / "conf/dataset").mkdir()
    (tmp_path / "conf/dataset/mine.yaml").write_text("_target_: mine.points\nn: 40\n")
    (tmp_path / "conf/compression").mkdir()
    (tmp_path / "conf/compression/mine.yaml").write_text("_target_: mine.Half\n")
    words = ["solver=nnbcd", "solver.num_steps=3", "model=mine", "dataset=mine", "compression=mine"]
    assert train(tmp_path / "run", "--config-dir", str(tmp_path / "conf"), *words) == 0
    assert summary(tmp_path / "run")["params/dense"] == 5 * 6 + 6 + 6 * 2 + 2
    assert rows(tmp_path / "run")[-1]["sparsity"] > 0.2
    with pytest.raises(ConfigError, match=r"names mine.Half, mine.Net, but .* allow=\[mine\]"):
        load(tmp_path / "run")
    network = load(tmp_path / "run/model", allow=["mine"])
    assert int(torch.count_nonzero(network[0].weight)) == 15
