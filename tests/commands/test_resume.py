"""`nncompress train resume=RUN`: a killed run goes on; what may be changed with it, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cases import case
from golden import Golden
from runs import configuration, finish, rows, save_config, status, summary

from nncompress.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("apart")
def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_summary(tmp_path: Path) -> None:
    words = ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]", "compression.rank=8", "dataset.train_size=100",
             "dataset.test_size=50"]  # fmt: skip
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "nncompress", "train", *words, "solver.num_steps=5000", "checkpoint_every=5"]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = len(rows(folder))
    assert 5 < reached < 5000
    steps = f"solver.num_steps={reached + 5}"
    assert status(folder)["status"] == "running"
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"step": 5000, "objec')  # what a kill in mid-write leaves
    assert main(["train", f"resume={folder}", steps]) == 0
    finish(configuration(*words, steps), tmp_path / "whole")
    assert rows(folder) == rows(tmp_path / "whole")
    assert summary(folder) == summary(tmp_path / "whole")


def test_a_device_that_is_not_there_is_no_setting_of_the_run_that_was_to_go_on_with_it(
    golden: Golden, tmp_path: Path, capsys: Capture
) -> None:
    folder = golden.copied("sgd", tmp_path / "run")
    before = [(folder / name).read_bytes() for name in ("config.yaml", "settings.json", "status.json")]
    assert main(["train", f"resume={folder}", "device=cuda:99", "solver.num_steps=5"]) != 0
    assert "cuda:99" in capsys.readouterr().err
    assert [(folder / name).read_bytes() for name in ("config.yaml", "settings.json", "status.json")] == before
    assert main(["train", f"resume={folder}", "solver.num_steps=5"]) == 0
    assert len(rows(folder)) == 6


# With a stand-in for the run


@pytest.mark.usefixtures("stand_in")
def test_resume_goes_on_in_the_folder_with_its_own_configuration(tmp_path: Path) -> None:
    stopped = tmp_path / "a run, stopped"
    assert main(["train", "seed=7", "solver.num_steps=3", "model=tt_mlp", "hydra.run.dir='a run, stopped'"]) == 0
    (stopped / "checkpoints").mkdir()
    (stopped / "checkpoints/last.pt").touch()
    overrides = (stopped / ".hydra/overrides.yaml").read_text()
    (stopped / "run.log").write_text("first half\n")
    assert main(["train", f"resume={stopped}"]) == 0
    cfg = yaml.safe_load((stopped / "config.yaml").read_text())
    assert (cfg["seed"], cfg["solver"]["num_steps"], cfg["choices"]["model"]) == (7, 3, "tt_mlp")
    assert cfg["resume"] == str(stopped)
    assert (stopped / ".hydra/overrides.yaml").read_text() == overrides
    assert (stopped / "run.log").read_text().startswith("first half\n")
    assert not (tmp_path / "outputs").exists()
    # a longer run
    assert main(["train", "solver.num_steps=9", "eval_every=2", f"resume='{stopped}'"]) == 0
    cfg = yaml.safe_load((stopped / "config.yaml").read_text())
    assert (cfg["solver"]["num_steps"], cfg["eval_every"]) == (9, 2)


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_resumed_is_told_in_a_sentence(tmp_path: Path, capsys: Capture) -> None:
    stopped = tmp_path / "a run, stopped"
    stopped.mkdir()
    save_config(configuration("seed=7", "model=tt_mlp"), stopped)

    def told(code: int, *words: str) -> str:
        assert main(["train", f"resume={stopped}", *words]) == code
        message = capsys.readouterr().err.strip()
        assert len(message.splitlines()) == 1
        return message

    # a change of what the run is
    for word in ("seed=1", "-m", "model=mlp", "solver.lr=1"):
        with case(word=word):
            assert told(2, word).endswith(f"found {word}")
    # a wrong change of what may be changed
    assert "'often'" in told(2, "eval_every=often")
    assert "solver.num_steps: must be at least 0, found -2" in told(2, "solver.num_steps=-2")
    # a configuration that is damaged, of an older version or missing, or no folder
    (stopped / "config.yaml").write_text("seed: [")
    assert "config.yaml cannot be read" in told(1)
    (stopped / "settings.json").unlink()
    assert "was written by an older version of nncompress (it has no settings.json); train it again" in told(1)
    (stopped / "config.yaml").unlink()
    assert f"{stopped / 'config.yaml'} does not exist" in told(1)
    shutil.rmtree(stopped)
    assert f"{stopped} does not exist" in told(1)
