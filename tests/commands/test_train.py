"""`nncompress train` with whole runs: all that is in the folder, tables and plots that fail, stopping, divergence."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from runs import rows, status, struck, summary, train

import nncompress.report
from nncompress.cli.main import main
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.sweeps import jobs

SMALL = ["dataset.train_size=100", "dataset.test_size=50"]
NNBCD_WORDS = ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]", "compression.rank=8", *SMALL]
SGD_WORDS = ["solver=sgd", "model.widths=[16]", "compression=l0", "compression.keep=0.3", *SMALL]
KEYS = {
    "summary.json": {
        "accuracy/test", "accuracy/train", "accuracy/dense_test", "params/dense", "params/compressed", "bits/dense",
        "bits/compressed", "ratio/params", "ratio/bits", "ratio/tasks", "macs/dense", "macs/compressed",
        "seconds/total", "seconds/step_median", "memory/peak_bytes", "objective/final", "rate/slope", "rate/bound_ok",
        "device", "seed",
    },
    "environment.json": {"packages", "device", "commit", "command", "seed", "deterministic"},
    "status.json": {"status", "reason", "traceback", "step"},
}  # fmt: skip
ROW_KEYS = {
    "step", "objective", "loss/train", "accuracy/train", "loss/test", "accuracy/test", "accuracy/dense_test", "gap",
    "step_sq", "ratio/params", "ratio/bits", "sparsity",
}  # fmt: skip

Capture = pytest.CaptureFixture[str]


def test_a_run_leaves_every_file_with_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    assert train(folder, *NNBCD_WORDS, "solver.num_steps=8", "seed=3") == 0
    torch.set_deterministic_debug_mode("default")
    for name in ("config.yaml", "environment.json", "run.log", "checkpoints/last.pt", "model/model.json"):
        assert (folder / name).is_file(), name
    assert (folder / ".hydra/overrides.yaml").is_file()
    for table in ("accuracy", "compression", "convergence"):
        assert {path.suffix for path in (folder / "tables").glob(f"{table}.*")} == {".csv", ".md", ".tex"}
    assert (folder / "plots/objective.png").is_file()
    out = capsys.readouterr().out
    assert "wrote run/tables/accuracy.md" in out
    assert "wrote run/plots/objective.png" in out
    assert status(folder)["status"] == "done"
    for name, keys in KEYS.items():
        assert json.loads((folder / name).read_text()).keys() >= keys
    assert json.loads((folder / "summary.json").read_text())["seed"] == 3
    assert rows(folder)[-1].keys() >= ROW_KEYS
    assert [row["step"] for row in rows(folder)] == list(range(9))


def test_tables_and_plots_that_cannot_be_written_make_no_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def broken(folder: Path) -> None:
        raise ZeroDivisionError("no room for the legend")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nncompress.report, "write_run_report", broken, raising=False)
    assert train(tmp_path / "run", *SGD_WORDS, "solver.num_steps=1") == 0
    torch.set_deterministic_debug_mode("default")
    assert status(tmp_path / "run")["status"] == "done"
    assert summary(tmp_path / "run")["steps"] == 1
    assert not (tmp_path / "run/tables").exists()
    out, err = capsys.readouterr()
    (said,) = (line for line in out.splitlines() if "tables and plots" in line)
    assert "no room for the legend (the traceback is in run/run.log)" in said
    assert said.endswith("nncompress report run")
    assert "Traceback" not in out + err
    log = (tmp_path / "run/run.log").read_text()
    assert 'raise ZeroDivisionError("no room for the legend")' in log
    assert "Traceback" in log


def test_a_signal_while_tables_and_plots_are_written_lets_them_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def struck_report(folder: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        (folder / "tables").mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nncompress.report, "write_run_report", struck_report, raising=False)
    assert train(tmp_path / "run", *SGD_WORDS, "solver.num_steps=1") == 143
    torch.set_deterministic_debug_mode("default")
    assert status(tmp_path / "run")["status"] == "done"
    assert (tmp_path / "run/tables").is_dir()


@pytest.mark.usefixtures("apart")
def test_a_run_that_is_stopped_goes_on_with_resume_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    words = [*NNBCD_WORDS, "solver.num_steps=5", "eval_every=2"]
    broken = tmp_path / "broken"
    with struck(NNBCD, 1, signal.SIGTERM):
        assert train(broken, *words) == 143
    assert (status(broken)["status"], status(broken)["step"]) == ("interrupted", 2)
    with struck(NNBCD, 2):
        assert main(["train", f"resume={broken}"]) == 130
    assert (status(broken)["status"], status(broken)["step"]) == ("interrupted", 3)
    assert not (broken / "summary.json").exists()
    assert main(["train", f"resume={broken}"]) == 0
    assert status(broken)["status"] == "done"
    assert [row["step"] for row in rows(broken)] == [0, 2, 4, 5]


@pytest.mark.usefixtures("apart")
def test_a_diverging_run_keeps_its_records_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    assert train(tmp_path / "run", *SGD_WORDS, "solver.lr=1e9", "solver.num_steps=5") == 1
    assert status(tmp_path / "run")["status"] == "diverged"
    assert len(rows(tmp_path / "run")) >= 1
    err = capsys.readouterr().err
    assert "objective must stay finite" in err
    assert "Traceback" not in err


def test_a_cluster_that_takes_its_machine_back_before_the_first_step_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as loading:
        loading.setattr(jobs, "prepare", lambda cfg, folder: signal.raise_signal(signal.SIGUSR1))
        assert train(folder, *SGD_WORDS, "solver.num_steps=1") == 128 + signal.SIGUSR1
    assert status(folder)["status"] == "interrupted"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert main(["train", f"resume={folder}"]) == 0
    assert status(folder)["status"] == "done"
