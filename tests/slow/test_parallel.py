"""Signals to torchrun: a checkpoint is left that one process resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import resume, rows, status
from torchrun import LIMIT, under_torchrun

pytestmark = pytest.mark.slow

MLP = [
    *("solver=nnbcd", "dataset.train_size=151", "dataset.test_size=40", "model.widths=[16,12]"),
    *("compression=tt", "compression.rank=4"),
]


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_leaves_a_checkpoint_that_one_process_resumes(tmp_path: Path, number: int) -> None:
    """SIGTERM as a batch system sends it: to the processes and to torchrun, which sends its own again."""
    process = under_torchrun(tmp_path, [*MLP, "solver.num_steps=1000000", "hydra.run.dir=run"])
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
    assert status(tmp_path / "run")["status"] == "interrupted"
    steps = len(rows(tmp_path / "run")) - 1
    resume(tmp_path / "run", f"solver.num_steps={steps + 2}")
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
