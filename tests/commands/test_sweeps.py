"""Sweeps: which jobs there are, which run again, what failures do, and which engines run them."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from runs import status, summary

from nncompress import config, experiment, jobs, locks, records
from nncompress.cli import main
from nncompress.errors import ConfigError
from nncompress.manifest import STOPPED, held, key_of, read_manifest
from nncompress.sweeper import combinations

QUICK = ["solver=sgd", "model=mlp", "model.widths=[8]", "solver.num_steps=1"]
RUN = [sys.executable, "-m", "nncompress"]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs here write no plots: they are most of a small run's time."""
    monkeypatch.setattr("nncompress.report.write.run_plots", lambda run, folder: [])
    monkeypatch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])
    monkeypatch.chdir(tmp_path)


def sweep(*words: str) -> int:
    """The exit code of `nncompress train -m` with these words, into the folder `sweep` here."""
    into = [] if any(word.startswith(("sweep.resume=", "hydra.sweep.dir=")) for word in words) else ["sweep"]
    return main(["train", "-m", *words, *(f"hydra.sweep.dir={folder}" for folder in into)])


def composed(*words: str) -> DictConfig:
    """The configuration that the words compose to."""
    config.register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        return compose("config", list(words))


def standings(folder: str = "sweep") -> dict[str, object]:
    """Every job's status."""
    found = sorted(Path(folder).glob("*/status.json"))
    return {path.parent.name: status(path.parent)["status"] for path in found}


def test_values_are_crossed_in_the_order_of_the_keys() -> None:
    assert combinations({"a": ["1", "2"], "b": ["x"], "c": ["3", "4"]}, []) == [
        ["a=1", "b=x", "c=3"],
        ["a=1", "b=x", "c=4"],
        ["a=2", "b=x", "c=3"],
        ["a=2", "b=x", "c=4"],
    ]


def test_zipped_keys_go_side_by_side_and_are_crossed_with_the_others() -> None:
    values = {"s": ["0", "1"], "a": ["1", "2"], "b": ["x", "y"]}
    assert combinations(values, ["a", "b"]) == [
        ["s=0", "a=1", "b=x"],
        ["s=0", "a=2", "b=y"],
        ["s=1", "a=1", "b=x"],
        ["s=1", "a=2", "b=y"],
    ]
    assert combinations(values, [["s", "a", "b"]]) == [["s=0", "a=1", "b=x"], ["s=1", "a=2", "b=y"]]
    four = values | {"t": ["5", "6"]}
    assert combinations(four, [["s", "t"], ["b", "a"]])[1] == ["s=0", "t=5", "b=y", "a=2"]


@pytest.mark.parametrize(
    ("zipped", "said"),
    [
        (["a", "d"], "found 'd' and no values of it"),
        ([["a", "b"], ["a"]], "found 'a' and twice"),
        (["a", "c"], "found 2 of a, 3 of c"),
    ],
)
def test_keys_that_cannot_be_zipped_are_refused(zipped: list[object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        combinations({"a": ["1", "2"], "b": ["3", "4"], "c": ["5", "6", "7"]}, zipped)


def test_a_key_follows_the_settings_and_no_place() -> None:
    plain = key_of(composed("model=mlp", "seed=1"))
    assert plain == key_of(
        composed("seed=1", "model=mlp", "data_dir=elsewhere", "sweep.retries=3", "checkpoint_every=2")
    )
    assert plain != key_of(composed("model=mlp", "seed=2"))
    assert plain != key_of(composed("model=mlp", "seed=1", "model.widths=[8]"))
    assert key_of(composed("dataset=mnist", "data_dir=a")) == key_of(composed("dataset=mnist", "data_dir=b"))


def test_a_sweep_is_resumed_where_it_was_and_can_grow(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0,1") == 0
    before = {name: (Path("sweep") / name / "records.jsonl").stat().st_mtime_ns for name in "01"}
    assert main(["train", "sweep.resume=sweep", "seed=5,1,0"]) == 0  # its other words are on record
    assert standings() == {"0": "done", "1": "done", "2": "done"}
    assert before == {name: (Path("sweep") / name / "records.jsonl").stat().st_mtime_ns for name in "01"}
    manifest = read_manifest(Path("sweep"))
    assert [job.folder for job in manifest.jobs] == ["0", "1", "2"]
    assert manifest.jobs[2].overrides == [*QUICK, "seed=5"]
    assert json.loads(Path("sweep/2/summary.json").read_text())["seed"] == 5
    assert len(Path("sweep/tables/runs.csv").read_text().splitlines()) == 4


def test_the_same_job_is_run_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0,0") == 0
    assert standings() == {"0": "done"}


def test_a_second_sweep_does_not_mix_with_a_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0") == 0
    assert sweep(*QUICK, "seed=1") == 2
    assert "sweep.resume=" in capsys.readouterr().err
    assert standings() == {"0": "done"}


def test_a_sweep_that_is_running_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0") == 0
    with held(Path("sweep").absolute(), resumed=True):
        assert sweep("sweep.resume=sweep", "seed=0,1") == 2
    assert "another process running one" in capsys.readouterr().err


def test_two_sweeps_of_the_same_second_have_folders_of_their_own() -> None:
    command = [*RUN, "train", "-m", *QUICK, "solver.num_steps=0", "seed=0"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] and process.returncode for process in both] == [b"", b""]
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_a_folder_for_each_job_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0,1", "hydra.sweep.subdir=same") == 2
    assert "found 'same' twice" in capsys.readouterr().err
    assert sweep(*QUICK, "seed=0,1", "hydra.sweep.subdir='s${seed}-${hydra.job.num}'") == 0
    assert standings() == {"s0-0": "done", "s1-1": "done"}


class Fails:
    """A run that fails the first times it is asked for a job."""

    def __init__(self, times: dict[int, int]) -> None:
        self.times = times

    def __call__(self, cfg, folder):
        if self.times.get(cfg.seed, 0):
            self.times[cfg.seed] -= 1
            records.write_json(
                folder / "status.json", {"status": "failed", "reason": "no luck", "traceback": "OSError"}
            )
            raise OSError("no luck")
        return run(cfg, folder)


run = experiment.run


def test_a_failed_job_is_listed_with_its_last_line_and_tried_again_on_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "run", Fails({1: 1}))
    assert sweep(*QUICK, "seed=0,1,2") == 1
    assert standings() == {"0": "done", "1": "failed", "2": "done"}
    said = capsys.readouterr().out
    assert "1 of 3 jobs are not done" in said
    assert "OSError" in said
    assert "sweep.resume=sweep" in said
    assert "OSError" in Path("sweep/tables/failures.csv").read_text()
    assert main(["train", "sweep.resume=sweep"]) == 0
    assert standings() == {"0": "done", "1": "done", "2": "done"}


def test_a_failed_job_is_tried_again_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "run", Fails({0: 1, 1: 2}))
    assert sweep(*QUICK, "seed=0,1", "sweep.retries=1") == 1
    assert standings() == {"0": "done", "1": "failed"}


def test_what_another_try_cannot_mend_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    monkeypatch.setattr(jobs, "attempt", lambda cfg, folder: tries.append(cfg.seed) or ConfigError("wrong"))
    assert sweep(*QUICK, "seed=0,1", "sweep.retries=3") == 0  # nothing on disk to report
    assert tries == [0, 1]


def test_a_sweep_may_stop_at_its_first_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "run", Fails({0: 1}))
    assert sweep(*QUICK, "seed=0,1", "sweep.on_error=stop") == 1
    assert standings() == {"0": "failed"}
    assert "2 jobs are to run" in capsys.readouterr().out
    assert main(["train", "sweep.resume=sweep"]) == 0
    assert standings() == {"0": "done", "1": "done"}
    assert not (Path("sweep") / STOPPED).exists()


def test_a_diverged_job_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "solver.lr=1e30,0.1", "solver.num_steps=2"]
    assert sweep(*words) == 1
    assert standings() == {"0": "diverged", "1": "done"}
    log = Path("sweep/0/run.log").read_text()
    assert main(["train", "sweep.resume=sweep"]) == 1
    assert Path("sweep/0/run.log").read_text() == log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.resume="], "found nothing"),
        (["sweep.resume=absent"], "found none in"),
        (["-m", "sweep.on_error=later", "seed=0,1"], "sweep.on_error: must be one of continue, stop"),
        (["-m", "seed=interval(0,1)"], "found an interval"),
    ],
)
def test_wrong_words_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) != 0
    out = capsys.readouterr()
    assert said in out.err + out.out


def test_a_damaged_manifest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text('{"format": 1, "command": [')
    assert main(["train", "sweep.resume=sweep"]) == 2
    assert "sweep.json is damaged" in capsys.readouterr().err


LAUNCHERS = {
    "joblib": ["launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": ["launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
    "slurm_local": ["launcher=slurm_local"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_engine_runs_the_jobs_of_a_sweep_as_this_process_does(launcher: str) -> None:
    words = [*QUICK, "model.widths=[8],oops", "seed=0,1"]
    assert sweep(*words, "hydra.sweep.dir=here") == 1
    code = subprocess.run([*RUN, "train", "-m", *words, "hydra.sweep.dir=there", *LAUNCHERS[launcher]], check=False)
    assert code.returncode == 1
    assert standings("there") == standings("here") == {"0": "done", "1": "done", "2": "failed", "3": "failed"}
    for job in "01":
        assert summary(Path("there") / job) == summary(Path("here") / job)


@pytest.fixture
def slowly(tmp_path: Path) -> None:
    """A model that takes its time, in the present folder."""
    (tmp_path / "slow_nets.py").write_text(
        "import time\nfrom nncompress.models.mlp import MLP\n\n\nclass Slow(MLP):\n"
        "    def forward(self, x):\n        time.sleep(0.002)\n        return super().forward(x)\n"
    )
    return


@pytest.mark.slow
def test_a_pre_empted_job_writes_its_checkpoint_and_is_queued_again(slowly: None) -> None:
    words = [*QUICK, "seed=0", "model._target_=slow_nets.Slow", "solver.num_steps=40", "checkpoint_every=1000"]
    assert sweep(*words, "hydra.sweep.dir=here") == 0
    launcher = ["launcher=slurm_local"]
    command = [*RUN, "train", "-m", *words, "hydra.sweep.dir=there", *launcher]
    with subprocess.Popen(command, start_new_session=True) as process:
        job = Path("there/0")
        while len(lines(job)) < 5:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(worker_of(process.pid), signal.SIGUSR2)
        assert process.wait() == 0
    assert summary(job) == summary(Path("here/0"))
    assert "resumed" in json.loads((job / "environment.json").read_text())


def lines(job: Path) -> list[str]:
    """The rows recorded so far."""
    path = job / "records.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def worker_of(session: int) -> int:
    """The process of a session that runs submitit's job."""
    found = subprocess.run(
        ["pgrep", "-s", str(session), "-f", "submitit.core._submit"], capture_output=True, check=True
    )
    return max(map(int, found.stdout.split()))


JOBS = ["solver=nnbcd", "model=tt_mlp", "solver.num_steps=4", "checkpoint_every=1", "compression.rank=2,3,4,6"]
JOBS += ["seed=0,1,2,3,4,5"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], LAUNCHERS["ray"], LAUNCHERS["joblib"]], ids=["local", "ray", "joblib"])
def test_a_sweep_killed_three_times_ends_with_the_tables_of_an_unbroken_one(launcher: list[str]) -> None:
    """24 jobs. `OMP_NUM_THREADS` as everywhere: a sum may round otherwise on another number of threads."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [*RUN, "train", "-m", *JOBS, *launcher, "hydra.sweep.dir=whole"]
    assert subprocess.run(whole, env=environment, check=False).returncode == 0
    first = [*RUN, "train", "-m", *JOBS, *launcher, "hydra.sweep.dir=broken"]
    again = [*RUN, "train", "sweep.resume=broken"]
    for command, done in [(first, 3), (again, 9), (again, 17)]:
        with subprocess.Popen(command, env=environment) as process:
            while list(standings("broken").values()).count("done") < done:
                assert process.poll() is None
                time.sleep(0.2)
            process.kill()
    assert len(standings("broken")) < 24
    assert subprocess.run(again, env=environment, check=False).returncode == 0
    assert standings("broken") == {str(job): "done" for job in range(24)}
    for table in ("summary.csv", "runs.csv"):
        assert untimed(Path("broken/tables") / table) == untimed(Path("whole/tables") / table)


def untimed(path: Path) -> list[dict[str, str]]:
    """A table without times and memory."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "memory", "time"))} for row in rows]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model._target_=os.system", "names os.system, but only"),
        ("+hydra.callbacks.mine._target_=os.system", "+hydra.callbacks.mine._target_=os.system of"),
    ],
)
def test_a_manifest_imports_nothing_that_is_not_allowed(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*QUICK, "seed=0") == 0
    path = Path("sweep/sweep.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"command": [*content["command"], word, "allow=[os,posix]"]}))
    code = main(["train", "sweep.resume=sweep"])
    out = capsys.readouterr()
    assert said in out.err + out.out
    assert code == (2 if "model" in word else 0)


def test_a_manifest_names_no_folder_outside_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0") == 0
    path = Path("sweep/sweep.json")
    path.write_text(path.read_text().replace('"folder": "0"', '"folder": "../0"'))
    assert main(["train", "sweep.resume=sweep"]) == 2
    assert "must name folders of the sweep, found '../0'" in capsys.readouterr().err


def test_a_glance_does_not_refuse_who_comes_next(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.touch()
    asker = threading.Timer(locks.GLANCE / 2, lambda: place.close())
    with path.open("rb") as place:
        fcntl.flock(place, fcntl.LOCK_SH)
        asker.start()
        with locks.held(path):
            assert locks.taken(path)
    assert not locks.taken(path)
    asker.join()
