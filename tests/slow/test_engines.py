"""Sweeps in processes of their own: under joblib, Ray and submitit, killed, pre-empted, two at the same moment."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from runs import status, summary

from nncompress.cli.main import main
from nncompress.results.records import SEARCH
from nncompress.sweeps import jobs

pytestmark = pytest.mark.slow

SMALL = ["dataset.train_size=100", "dataset.test_size=50"]
QUICK = ["solver=sgd", "model=mlp", "model.widths=[8]", "solver.num_steps=1", *SMALL]
RUN = [sys.executable, "-m", "nncompress"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
"""As everywhere: a sum may round otherwise on another number of threads."""
LAUNCHERS = {
    "local": [],
    "joblib": ["launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": ["launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
    "slurm_local": ["launcher=slurm_local"],
}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is run in this process writes no tables and plots of jobs, and no plots of sweeps."""
    monkeypatch.setattr(jobs, "write_report", lambda folder: None)
    monkeypatch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])
    monkeypatch.chdir(tmp_path)


def standings(folder: str) -> dict[str, object]:
    """Every job's status."""
    return {path.parent.name: status(path.parent)["status"] for path in sorted(Path(folder).glob("*/status.json"))}


@pytest.mark.parametrize("launcher", ["joblib", "ray", "slurm_local"])
def test_an_engine_runs_the_jobs_of_a_sweep_as_this_process_does(launcher: str) -> None:
    words = [*QUICK, "model.widths=[8],oops"]
    assert main(["train", "-m", *words, "hydra.sweep.dir=here"]) == 1
    command = [*RUN, "train", "-m", *words, "hydra.sweep.dir=there", *LAUNCHERS[launcher]]
    assert subprocess.run(command, check=False, env=ENVIRONMENT).returncode == 1
    assert standings("there") == standings("here") == {"0": "done", "1": "failed"}
    assert summary(Path("there/0")) == summary(Path("here/0"))


JOBS = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16]", "solver.num_steps=2", "checkpoint_every=1", *SMALL]
JOBS += ["compression.rank=2,3", "seed=0,1,2"]


@pytest.mark.parametrize("launcher", ["local", "joblib", "ray"])
def test_a_sweep_that_is_killed_ends_with_the_tables_of_an_unbroken_one(launcher: str) -> None:
    assert main(["train", "-m", *JOBS, "hydra.sweep.dir=whole"]) == 0
    command = [*RUN, "train", "-m", *JOBS, *LAUNCHERS[launcher], "hydra.sweep.dir=broken"]
    with subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True) as process:
        while list(standings("broken").values()).count("done") < 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert list(standings("broken").values()).count("done") < 6
    assert subprocess.run([*RUN, "train", "sweep.resume=broken"], env=ENVIRONMENT, check=False).returncode == 0
    assert standings("broken") == {str(job): "done" for job in range(6)}
    for table in ("summary.csv", "runs.csv"):
        assert untimed(Path("broken/tables") / table) == untimed(Path("whole/tables") / table)
    with suppress(ProcessLookupError):  # joblib's workers outlive the sweep
        os.killpg(process.pid, signal.SIGKILL)


def untimed(path: Path) -> list[dict[str, str]]:
    """A table without times and memory."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "memory", "time"))} for row in rows]


def test_a_pre_empted_job_writes_its_checkpoint_and_is_queued_again() -> None:
    Path("slow_nets.py").write_text(
        "import time\nfrom nncompress.models.mlp import MLP\n\n\nclass Slow(MLP):\n"
        "    def forward(self, x):\n        time.sleep(0.004)\n        return super().forward(x)\n"
    )
    words = [*QUICK, "model._target_=slow_nets.Slow", "solver.num_steps=40", "checkpoint_every=1000"]
    assert main(["train", *words, "hydra.run.dir=here"]) == 0
    command = [*RUN, "train", "-m", *words, "seed=0", "hydra.sweep.dir=there", *LAUNCHERS["slurm_local"]]
    with subprocess.Popen(command, start_new_session=True, env=ENVIRONMENT) as process:
        job = Path("there/0")
        while len(lines(job)) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(worker_of(process.pid, "submitit.core._submit"), signal.SIGUSR2)
        assert process.wait() == 0
    assert summary(job) == summary(Path("here"))
    assert "resumed" in json.loads((job / "environment.json").read_text())


def lines(job: Path) -> list[str]:
    """The rows recorded so far."""
    path = job / "records.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def worker_of(session: int, command: str) -> int:
    """The last process of a session that was started with this command."""
    found = subprocess.run(["pgrep", "-s", str(session), "-f", command], capture_output=True, check=True)
    return max(map(int, found.stdout.split()))


@pytest.mark.parametrize(("launcher", "worker"), [("joblib", "popen_loky_posix"), ("ray", "ray::_run_job")])
def test_a_worker_that_is_killed_costs_no_job(launcher: str, worker: str) -> None:
    words = [*QUICK, "solver.num_steps=300", "checkpoint_every=20", "seed=range(4)", *LAUNCHERS[launcher]]
    command = [*RUN, "train", "-m", *words, "hydra.sweep.dir=there"]
    with subprocess.Popen(
        command, start_new_session=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        while max(len(lines(Path("there") / str(job))) for job in range(4)) < 30:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(worker_of(process.pid, worker), signal.SIGKILL)
        said, _ = process.communicate()
    assert process.returncode == 0
    assert "a worker process died" in said
    assert standings("there") == {str(job): "done" for job in range(4)}
    with Path("there/tables/runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_two_sweeps_of_the_same_second_have_folders_of_their_own() -> None:
    command = [*RUN, "train", "-m", *QUICK, "solver.num_steps=0", "seed=0"]
    both = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT) for _ in range(2)
    ]
    assert [process.communicate()[1] and process.returncode for process in both] == [b"", b""]
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_trials_at_the_same_time_share_one_study() -> None:
    pytest.importorskip("optuna")
    words = [*QUICK, "solver.lr=tag(log,interval(1e-3,1))", "search.trials=4", "search.parallel=2"]
    assert main(["search", *words, *LAUNCHERS["joblib"], "hydra.sweep.dir=found"]) == 0
    trials = json.loads((Path("found") / SEARCH).read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["done"] * 4
    assert len(list(Path("found").glob("*/summary.json"))) == 4
