"""`nncompress train -m`: folders, failures, interruptions and exit codes of a sweep, and one of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cases import case
from runs import run, status, summary

from nncompress.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_goes_on_after_a_failed_job_and_exits_with_1(
    tmp_path: Path, sweep_report: list[Path], capsys: Capture
) -> None:
    assert main(["train", "-m", "seed=1,-1,2,4"]) == 1
    (folder,) = tmp_path.glob("outputs/sweeps/*")
    assert sweep_report == [folder]
    states = [json.loads((folder / str(job) / "status.json").read_text())["status"] for job in range(4)]
    assert states == ["failed", "failed", "failed", "done"]
    out, err = capsys.readouterr()
    assert "3 of 4 jobs are not done" in out
    assert "Traceback" not in out + err
    # the job that was refused before it ran has left its reason
    assert json.loads((folder / "1/status.json").read_text()) == {
        "status": "failed",
        "reason": "seed: must be at least 0, found -1",
        "traceback": "nncompress.errors.ConfigError: seed: must be at least 0, found -1",
        "step": None,
    }
    assert yaml.safe_load((folder / "1/config.yaml").read_text())["seed"] == -1


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_without_failures_exits_with_0_in_the_folder_asked_for(
    tmp_path: Path, sweep_report: list[Path]
) -> None:
    assert main(["train", "-m", "seed=4,5", "hydra.sweep.dir=there"]) == 0
    assert sweep_report == [tmp_path / "there"]


@pytest.mark.usefixtures("stand_in")
def test_an_interruption_stops_a_sweep_and_still_reports(tmp_path: Path, sweep_report: list[Path]) -> None:
    for seeds, code in (("3,5", 130), ("6,5", 143), ("8,5", 130)):
        with case(seeds=seeds):
            folder = tmp_path / f"there{seeds[0]}"
            assert main(["train", "-m", f"seed={seeds}", f"hydra.sweep.dir={folder}"]) == code
            assert sweep_report.pop() == folder
            assert (folder / "0").exists()
            assert not (folder / "1").exists()


@pytest.mark.usefixtures("stand_in")
def test_a_wrong_word_in_a_sweep_runs_nothing_and_exits_with_2(sweep_report: list[Path], capsys: Capture) -> None:
    for words in (["sed=1,2"], ["dataset=digits,nothing"]):
        with case(words=words):
            assert main(["train", "-m", *words]) == 2
            assert len(capsys.readouterr().err.strip().splitlines()) == 1
            assert sweep_report == []


@pytest.mark.usefixtures("apart")
def test_a_sweep_of_real_runs_trains_its_reference_once_and_ends_with_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])
    small = ["dataset.train_size=100", "dataset.test_size=50", "model=tt_mlp", "model.widths=[16]"]
    there = tmp_path / "elsewhere"
    run(there, *small, "solver=sgd", "compression=none", "solver.num_steps=1", "seed=3")
    words = [
        "solver._target_=own_parts.Started", "solver.num_steps=1", "reference_training.num_steps=2",
        "compression.rank=0,2,2,2", "solver.lr=0.001,0.001,0.01,0.001", f"reference=null,null,null,{there}",
        "sweep.zip=[compression.rank,solver.lr,reference]",
    ]  # fmt: skip
    capsys.readouterr()
    assert main(["train", "-m", *small, *words, "hydra.sweep.dir=there"]) == 1
    out, err = capsys.readouterr()
    assert "job there/0: compression: rank must be at least 1, found 0" in out
    assert "wrote there/tables/summary.md" in out
    assert err == ""
    assert [status(Path(f"there/{job}"))["status"] for job in range(4)] == ["failed", "done", "done", "done"]
    # one reference for the jobs that gave none, another for the one that gave it
    (reference,) = (path for path in Path("outputs/references").iterdir() if path.is_dir())
    assert status(reference)["status"] == "done"
    assert "the reference is trained in" in Path("there/1/run.log").read_text()
    assert "the reference is taken from" in Path("there/2/run.log").read_text()
    taken = [summary(Path(f"there/{job}"))["reference"] for job in (1, 2, 3)]
    assert taken == [str(reference.absolute())] * 2 + [str(there)]
