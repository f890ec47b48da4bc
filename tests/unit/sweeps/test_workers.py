"""Worker processes that die under a pretended launcher: who goes on, who fails, and that it ends."""

from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from nncompress.files import hold, write_json
from nncompress.results.records import LOCK, STATUS
from nncompress.results.sweep_folder import STOPPED, Job, standing
from nncompress.sweeps.workers import is_death, launch_all


def settings(on_error: str = "continue", retries: int = 0) -> DictConfig:
    return OmegaConf.create({"on_error": on_error, "retries": retries})


def jobs(count: int) -> list[Job]:
    return [Job(str(number), f"{number}f", []) for number in range(count)]


def set_status(folder: Path, status: str) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / STATUS, {"status": status, "reason": None, "traceback": None, "step": 3})


class Pretended:
    """Runs two jobs at a time; one that is deadly ends its worker, and with it what runs beside it."""

    def __init__(self, sweep: Path, deadly: dict[str, int], recorded: bool = True) -> None:
        self.sweep, self.deadly, self.recorded = sweep, deadly, recorded
        self.batches: list[str] = []

    def __call__(self, batch: Sequence[Job]) -> Sequence[str]:
        self.batches.append("".join(job.folder for job in batch))
        for pair in (batch[start : start + 2] for start in range(0, len(batch), 2)):
            dead = [job for job in pair if self.deadly.get(job.folder)]
            for job in pair:
                if self.recorded or not dead:
                    set_status(self.sweep / job.folder, "running" if dead else "done")
            for job in dead:
                self.deadly[job.folder] -= 1
                raise BrokenProcessPool("gone")
        return [job.folder for job in batch]


def standings(sweep: Path, count: int) -> list[str]:
    return [standing(sweep / str(number)) for number in range(count)]


def test_a_worker_that_dies_once_costs_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    launch = Pretended(tmp_path, {"2": 1})
    launch_all(jobs(6), launch, tmp_path, settings())
    assert launch.batches == ["012345", "2345"]
    assert standings(tmp_path, 6) == ["done"] * 6
    assert "a worker process died (BrokenProcessPool): of 6 jobs 4 go on" in caplog.text


def test_a_job_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    launch = Pretended(tmp_path, {"2": 100})
    launch_all(jobs(6), launch, tmp_path, settings())
    assert launch.batches == ["012345", "2345", "45", "2", "3"]
    assert standings(tmp_path, 6) == ["done", "done", "failed", "done", "done", "done"]
    assert "its worker process died" in (tmp_path / "2" / STATUS).read_text()
    assert '"step": 3' in (tmp_path / "2" / STATUS).read_text()


def test_it_is_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    launch = Pretended(tmp_path, {"0": 4})
    launch_all(jobs(2), launch, tmp_path, settings(retries=2))
    assert launch.batches == ["01", "01", "0", "0", "0", "1"]
    assert standings(tmp_path, 2) == ["done", "done"]


def test_no_job_begins_after_it_where_the_first_failure_stops_the_sweep(tmp_path: Path) -> None:
    launch = Pretended(tmp_path, {"0": 100})
    launch_all(jobs(2), launch, tmp_path, settings("stop"))
    assert launch.batches == ["01", "01", "0"]
    assert standings(tmp_path, 2) == ["failed", "running"]
    assert (tmp_path / STOPPED).exists()


def test_it_ends_where_workers_die_before_they_leave_anything(tmp_path: Path) -> None:
    launch = Pretended(tmp_path, {"0": 100, "1": 100}, recorded=False)
    launch_all(jobs(3), launch, tmp_path, settings())
    assert standings(tmp_path, 3) == ["failed", "failed", "done"]


def test_jobs_that_failed_or_are_still_run_elsewhere_are_not_taken_for_dead(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    def launch(batch: Sequence[Job]) -> Sequence[str]:
        batches.append([job.folder for job in batch])
        if len(batches) == 1:
            set_status(tmp_path / "0", "failed")
            set_status(tmp_path / "1", "running")
        if len(batches) < 3:
            raise BrokenProcessPool
        return []

    set_status(tmp_path / "3", "failed")  # before
    set_status(tmp_path / "1", "running")
    with hold(tmp_path / "1" / LOCK):
        launch_all(jobs(4), launch, tmp_path, settings())
    assert batches == [["0", "1", "2", "3"], ["1", "2", "3"], ["1"], ["2"], ["3"]]


def test_other_errors_of_a_launcher_are_raised(tmp_path: Path) -> None:
    def launch(batch: Sequence[Job]) -> Sequence[str]:
        raise error

    for error in (RuntimeError("no"), KeyboardInterrupt(), SystemExit(143)):
        with pytest.raises(type(error)):
            launch_all(jobs(2), launch, tmp_path, settings())


def test_the_deaths_that_launchers_tell_are_known() -> None:
    process_executor = pytest.importorskip("joblib.externals.loky.process_executor")
    submitit = pytest.importorskip("submitit.core.utils")
    exceptions = pytest.importorskip("ray.exceptions")
    deaths = [process_executor.TerminatedWorkerError(), submitit.UncompletedJobError(), exceptions.WorkerCrashedError()]
    assert [is_death(error) for error in deaths] == [True] * 3
    others = [submitit.FailedJobError(), exceptions.RaySystemError("x"), OSError()]
    assert [is_death(error) for error in others] == [False] * 3
