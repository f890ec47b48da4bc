"""`nncompress train` under torchrun: one folder, written once; one exit code, one sentence for each failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import case
from runs import configuration, rows, status
from torchrun import LIMIT, assert_same_records, assert_same_state, forked, run, under_torchrun

import nncompress.sweeps.jobs
from nncompress.cli.main import main

DATA = ["solver=nnbcd", "dataset.train_size=51", "dataset.test_size=20", "model.widths=[8,6]"]
MLP = [*DATA, "compression=tt", "compression.rank=2", "solver.num_steps=2"]
DIVERGES = "solver.initial_scale=1e200"  # process 0 alone sees it
FAILURES = {
    "direct": (1, "unsupported", "several processes (torchrun) need a solver that shares the samples out"),
    "key": (2, None, "Key 'sede' not in the configuration"),
    "diverged": (1, "diverged", "the objective must stay finite"),
    "lame": (1, "failed", "process 1: RuntimeError: no memory left here"),
    "taken": (2, None, "a run needs a folder of its own, found the records of another run"),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Commands that both processes were given one after the other: exit codes, what was said, and their folders."""
    folder = tmp_path_factory.mktemp("torchrun")
    commands = {
        "direct": ["solver=direct_learning", *DATA[1:], "hydra.run.dir=two/direct"],
        "key": ["solver=nnbcd", "sede=3", "hydra.run.dir=two/key"],
        "diverged": [*DATA, DIVERGES, "hydra.run.dir=two/diverged"],
        "lame": [*DATA[:3], "model._target_=own_parts.lame", "hydra.run.dir=two/lame"],
        "taken": [*MLP, "hydra.run.dir=one/mlp"],
        "sweep": ["-m", *DATA, f"{DIVERGES},1", "solver.num_steps=1", "hydra.sweep.dir=two/sweep"],
        "default": MLP,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(nncompress.sweeps.jobs, "write_report", lambda folder: None)
        patch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])

        cfg = configuration(*MLP)

        def work() -> dict[str, int]:
            assert run(folder / "one" / "mlp", cfg) is None
            return {name: main(["train", *words]) for name, words in commands.items()}

        codes, said = forked(folder, work)
    return {"folder": folder, "said": said, "codes": {name: (codes[0][name], codes[1][name]) for name in commands}}


def default_folder(folder: Path) -> Path:
    (found,) = folder.glob("outputs/nnbcd-mlp-digits/*")
    return found


def test_torchrun_makes_the_iterates_of_one_process(tmp_path: Path) -> None:
    process = under_torchrun(tmp_path, [*MLP, "hydra.run.dir=two"])
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert said.count("step 0/2") == said.count("step 2/2") == 1
    assert run(tmp_path / "one", configuration(*MLP)) is None
    assert_same_records(tmp_path / "one", tmp_path / "two")
    assert_same_state(tmp_path / "one", tmp_path / "two")
    torch.set_deterministic_debug_mode("default")


def test_one_folder_is_written_and_written_once(together: dict[str, Any]) -> None:
    folder = default_folder(together["folder"])
    assert [row["step"] for row in rows(folder)] == list(range(3))
    assert status(folder)["status"] == "done"
    log = (folder / "run.log").read_text()
    assert log.count("step 0/2") == log.count("step 2/2") == 1
    assert (folder / ".hydra" / "config.yaml").exists()
    assert {path.name for path in together["folder"].iterdir() if path.is_dir()} == {"one", "two", "outputs"}


def test_a_failure_is_told_once_and_by_the_exit_code_of_process_0(together: dict[str, Any]) -> None:
    for name, (code, ends, sentence) in FAILURES.items():
        folder = together["folder"] / "two" / name
        with case(name=name):
            assert together["codes"][name] == (code, 0)
            assert together["said"].count(f"nncompress: {sentence}") == 1
            assert ends == (status(folder)["status"] if folder.exists() else None)


def test_a_refused_folder_keeps_the_records_of_its_run(together: dict[str, Any]) -> None:
    assert [row["step"] for row in rows(together["folder"] / "one" / "mlp")] == list(range(3))


def test_a_sweep_goes_on_behind_a_failed_job_in_one_folder(together: dict[str, Any]) -> None:
    sweep = together["folder"] / "two" / "sweep"
    assert together["codes"]["sweep"] == (1, 0)
    assert [status(sweep / job)["status"] for job in "01"] == ["diverged", "done"]
    assert {path.name for path in sweep.iterdir()} == {
        *("0", "1", "multirun.yaml", "report.json", "sweep.json", "sweep.lock", "tables"),
    }
    assert len(rows(sweep / "1")) == 2


def test_after_failures_the_processes_still_work_in_step(together: dict[str, Any]) -> None:
    assert together["codes"]["default"] == (0, 0)
    assert rows(default_folder(together["folder"])) == rows(together["folder"] / "one" / "mlp")
