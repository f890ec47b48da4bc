"""Several processes as one: shares and sums, and whole runs under torchrun against runs of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import rows, summary

import nncompress.experiment
from nncompress import parallel
from nncompress.cli import main
from nncompress.errors import ConfigError
from nncompress.solvers.nnbcd_state import NNBCDState

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
]
LIMIT = 1800
"""Seconds after which something hangs."""

# One start of two processes serves many runs; without pictures, which take longer than the runs.
SCRIPT = """
import json, sys
import nncompress.experiment, nncompress.report.write
from nncompress.cli import main
from nncompress import parallel
nncompress.experiment.write_run_report = lambda folder: []
nncompress.report.write.save_sweep_plots = lambda figures, folder: []
codes = [main(["train", *words]) for words in json.loads(sys.argv[1])]
open(f"codes{parallel.rank()}.json", "w").write(json.dumps(codes))
"""

# A user's network that fails in one process alone.
LAME = """
import os
def net(num_classes: int):
    if os.environ["RANK"] == "1":
        raise RuntimeError("no memory left here")
    from nncompress.models.mlp import MLP
    return MLP((1, 8, 8), num_classes)
"""

DATA = ["solver=nnbcd", "dataset.train_size=151", "dataset.test_size=40"]  # 75 and 76 samples
MLP = [*DATA, "model.widths=[16,12]", "compression=tt", "compression.rank=4"]
STEPS = ["solver.num_steps=6"]
KINDS = {
    "mlp": MLP,
    # One process has W_1's system in the samples, two have it in the inputs.
    "few": [*MLP, "dataset.train_size=21", "solver.multipliers=true", "solver.tau_growth=1.1", "eval_every=2"],
    "inertial_cnn": [
        *(*DATA, "model=nnbcd_cnn", "model.filters=3", "model.widths=[16,12]", "model.bias=true"),
        *("compression=tt", "compression.rank=4", "solver.extrapolation=true"),
    ],
    "pruned": [*DATA, "model.widths=[16,12]", "compression=l0", "compression.keep=0.3", "solver.project=true"],
}
HALVES = ("few", "inertial_cnn")
FRANK_WOLFE = [
    *("solver=frank_wolfe", "constraint=group_k_support", "model=vgg16", "model.layers=[1]", "model.width=0.1"),
    *("dataset.flatten=false", "dataset.train_size=61", "dataset.test_size=20", "solver.batch_size=20"),
]
PLAIN, DIVERGES = [*DATA, "model.widths=[16,12]"], "solver.initial_scale=1e200"  # process 0 alone sees it


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs of one process (folder one) and then of two (folder two): their folders, exit codes and words."""
    folder = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(nncompress.experiment, "write_run_report", lambda folder: [])
        alone = {f"one/{name}": [*words, *STEPS] for name, words in KINDS.items()}
        alone |= {f"one/half_{name}": [*KINDS[name], "solver.num_steps=4"] for name in HALVES}
        assert [main(["train", *words, f"hydra.run.dir={name}"]) for name, words in alone.items()] == [0] * len(alone)
        done = _two_processes(folder)
        for name in HALVES:
            assert main(["train", f"resume=two/half_{name}", *STEPS]) == 0
    torch.use_deterministic_algorithms(False)
    return done


def _two_processes(folder: Path) -> dict[str, Any]:
    jobs = {name: [*words, *STEPS, f"hydra.run.dir=two/{name}"] for name, words in KINDS.items()}
    jobs |= {f"half_{n}": [*KINDS[n], "solver.num_steps=4", f"hydra.run.dir=two/half_{n}"] for n in HALVES}
    jobs |= {f"resumed_{name}": [f"resume=one/half_{name}", *STEPS] for name in HALVES}
    jobs |= {
        "direct": ["solver=direct_learning", "dataset.train_size=151", "hydra.run.dir=two/direct"],
        "key": ["solver=nnbcd", "sede=3", "hydra.run.dir=two/key"],
        "diverged": [*PLAIN, DIVERGES, "hydra.run.dir=two/diverged"],
        "lame": ["solver=nnbcd", "model._target_=lame.net", "hydra.run.dir=two/lame"],
        "taken": [*MLP, "hydra.run.dir=one/mlp"],
        "sweep": ["-m", *PLAIN, f"{DIVERGES},1,0.5", "solver.num_steps=1", "hydra.sweep.dir=two/sweep"],
        "default": [*MLP, *STEPS],
        "ratios": [*FRANK_WOLFE, "compress_at=[0.5]", "solver.num_steps=1", "hydra.run.dir=two/ratios"],
    }
    script = folder / "script.py"
    script.write_text(SCRIPT)
    (folder / "lame.py").write_text(LAME)
    words = [*TORCHRUN, str(script), json.dumps(list(jobs.values()))]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    codes = [json.loads((folder / f"codes{rank}.json").read_text()) for rank in range(2)]
    return {"folder": folder, "said": ran.stdout + ran.stderr} | {
        "codes": dict(zip(jobs, zip(*codes, strict=True), strict=True))
    }


def default_folder(folder: Path) -> Path:
    (found,) = folder.glob("outputs/nnbcd-mlp-digits/*")
    return found


def status(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["status"])


def assert_same_records(one: Path, two: Path) -> None:
    """Every figure of every row within 1e-8 of its size; what is left of a decrease, of the objective's."""
    expected, found = rows(one), rows(two)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for before, row in zip(expected, found, strict=True):
        rounding = 1e-8 * abs(before["objective"])
        for key, value in row.items():
            absolute = rounding if key.startswith("decrease/") else 1e-14
            assert value == pytest.approx(before[key], rel=1e-8, abs=absolute), f"{key} at step {row['step']}"


def assert_same_state(one: Path, two: Path) -> None:
    """All blocks of all samples within 1e-8."""
    states = [torch.load(f / "checkpoints" / "last.pt", weights_only=True)["state"] for f in (one, two)]
    for name in ("W", "b", "U", "V", "products", "T", "lam", "ended"):
        one_, two_ = (state[NNBCDState._fields.index(name)] for state in states)
        torch.testing.assert_close(_tensors(two_), _tensors(one_), rtol=1e-8, atol=1e-10)


def _tensors(packed: Any) -> list[torch.Tensor]:
    if isinstance(packed, list):
        return [tensor for part in packed for tensor in _tensors(part)]
    return [] if packed is None else [packed]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 100, 151])
def test_shares_cover_every_sample_once_and_differ_by_at_most_one(monkeypatch, n, size):
    monkeypatch.setattr(parallel, "size", lambda: size)
    seen, lengths = [], []
    for rank in range(size):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        share = list(range(n))[parallel.share(n)]
        seen += share
        lengths.append(len(share))
    assert seen == list(range(n))
    assert max(lengths) - min(lengths) <= 1


def test_a_group_of_one_keeps_what_it_has():
    part = torch.arange(6.0).view(3, 2)
    value = {"objective": 1.0}
    assert (parallel.size(), parallel.rank()) == (1, 0)
    assert parallel.gathered(part, 3) is part
    assert parallel.agreed(value) is value
    assert parallel.largest(143) == 143
    parallel.sum_(part)
    assert part.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_in_a_group_of_one_an_error_stays_what_it_is():
    for error in (ValueError("of somebody's network"), ConfigError("ours")):
        with pytest.raises(type(error)) as caught, parallel.together():
            raise error
        assert caught.value is error


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_make_the_iterates_of_one(together, name):
    one, two = together["folder"] / "one" / name, together["folder"] / "two" / name
    assert together["codes"][name] == (0, 0)
    assert_same_records(one, two)
    assert_same_state(one, two)


@pytest.mark.parametrize("name", HALVES)
def test_a_checkpoint_of_one_process_is_taken_up_by_two_and_the_other_way_round(together, name):
    folder = together["folder"]
    assert together["codes"][f"resumed_{name}"] == (0, 0)
    for resumed in (folder / "one" / f"half_{name}", folder / "two" / f"half_{name}"):
        assert_same_records(folder / "one" / name, resumed)
        assert_same_state(folder / "one" / name, resumed)
        assert status(resumed) == "done"


def test_process_0_alone_takes_the_statistics_of_shared_batch_norms_anew(together):
    assert together["codes"]["ratios"] == (0, 0)
    found = summary(together["folder"] / "two" / "ratios")["one_shot"]
    assert {row["recalibrated"] for row in found} == {False, True}


def test_one_folder_is_written_and_written_once(together):
    folder = default_folder(together["folder"])
    assert [row["step"] for row in rows(folder)] == list(range(7))
    assert status(folder) == "done"
    log = (folder / "run.log").read_text()
    assert log.count("step 0/6") == log.count("step 6/6") == 1
    assert (folder / ".hydra" / "config.yaml").exists()
    assert {path.name for path in together["folder"].iterdir() if path.is_dir()} - {"__pycache__"} == {
        *("one", "two", "outputs")
    }


@pytest.mark.parametrize(
    ("name", "code", "ends", "sentence"),
    [
        ("direct", 1, "unsupported", "several processes (torchrun) need a solver that shares the samples out"),
        ("key", 2, None, "Key 'sede' not in the configuration"),
        ("diverged", 1, "diverged", "the objective must stay finite"),
        ("lame", 1, "failed", "process 1: RuntimeError: no memory left here"),
        ("taken", 2, None, "a run needs a folder of its own, found the records of another run"),
    ],
)
def test_a_failure_is_told_once_and_by_the_exit_code_of_process_0(together, name, code, ends, sentence):
    assert together["codes"][name] == (code, 0)
    assert together["said"].count(f"nncompress: {sentence}") == 1
    folder = together["folder"] / "two" / name
    assert ends == (status(folder) if folder.exists() else None)


def test_a_refused_folder_keeps_the_records_of_its_run(together):
    assert [row["step"] for row in rows(together["folder"] / "one" / "mlp")] == list(range(7))


def test_a_sweep_goes_on_behind_a_failed_job_in_one_folder(together):
    sweep = together["folder"] / "two" / "sweep"
    assert together["codes"]["sweep"] == (1, 0)
    assert [status(sweep / job) for job in "012"] == ["diverged", "done", "done"]
    assert {path.name for path in sweep.iterdir()} == {
        "0",
        "1",
        "2",
        "multirun.yaml",
        "sweep.json",
        "sweep.lock",
        "tables",
    }
    assert [len(rows(sweep / job)) for job in "12"] == [2, 2]


def test_after_failures_the_processes_still_work_in_step(together):
    assert together["codes"]["default"] == (0, 0)
    assert rows(default_folder(together["folder"])) == rows(together["folder"] / "two" / "mlp")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_torchrun_leaves_a_checkpoint_that_one_process_resumes(tmp_path, apart, number):
    """SIGTERM as a batch system sends it: to the processes and to torchrun, which sends its own again."""
    words = [*TORCHRUN, "-m", "nncompress", "train", *MLP, "solver.num_steps=1000000", "hydra.run.dir=run"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    try:
        _wait_for_rows(tmp_path / "run", process)
        pids = _children(process.pid) if number == signal.SIGTERM else []
        assert len(pids) == (2 if number == signal.SIGTERM else 0)
        for pid in [*pids, process.pid]:
            os.kill(pid, number)
        said, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode != 0
    assert said.count("interrupted at step") == 1
    assert status(tmp_path / "run") == "interrupted"
    steps = len(rows(tmp_path / "run")) - 1
    assert main(["train", "resume=run", f"solver.num_steps={steps + 2}"]) == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(steps + 3))
    assert all(row["decrease/slack"] > -1e-9 for row in rows(tmp_path / "run")[1:])


def _wait_for_rows(folder: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + LIMIT
    while not (folder / "records.jsonl").exists() or len((folder / "records.jsonl").read_bytes().splitlines()) < 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
