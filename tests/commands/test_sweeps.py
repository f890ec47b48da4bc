"""Sweeps: which jobs there are, which run again, what failures do. Most jobs here are copies of one finished run."""

import fcntl
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cases import case
from composing import composing
from golden import Golden
from hydra import compose
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from runs import save_config, status

from nncompress.cli.main import main
from nncompress.errors import ConfigError, Diverged
from nncompress.files import GLANCE, hold, is_held
from nncompress.report import write
from nncompress.report.fresh import digest_of, mark
from nncompress.results.run_folder import stamp, status_of
from nncompress.results.sweep_folder import STOPPED, claim_sweep, read_manifest
from nncompress.sweeps import jobs
from nncompress.sweeps.combinations import combinations, composed_jobs, key_of
from nncompress.sweeps.sweeper import SweepOfJobs

QUICK = ["solver=sgd", "model=mlp", "model.widths=[8]", "solver.num_steps=1"]
SMALL = ["dataset.train_size=60", "dataset.test_size=20"]


@pytest.fixture(autouse=True)
def _bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs here write no tables, nobody plots, and of the sweep there are tables where a test asks for them."""
    monkeypatch.setattr(jobs, "write_report", lambda folder: None)
    monkeypatch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])
    for name in ("accuracy_ratio_plot", "objectives_plot"):
        monkeypatch.setattr(f"nncompress.report.write.{name}", lambda *arguments, **settings: None)
    if "tables" not in request.fixturenames:
        monkeypatch.setattr(write, "_write_sweep", lambda *arguments: ([], []))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tables() -> None:
    """The tables of a sweep."""


@pytest.fixture
def failing(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Exception]]:
    """What jobs fail with by their seed, the next time first; else they are copies of a finished run."""
    errors: dict[int, list[Exception]] = {}
    done = golden.kept("sgd")

    def run(cfg: DictConfig, folder: Path) -> None:
        save_config(cfg, folder)
        with status_of(folder, cfg.resume is not None):
            if errors.get(cfg.seed):
                raise errors[cfg.seed].pop(0)
            kept = shutil.ignore_patterns("config.yaml", "settings.json", "status.json")
            shutil.copytree(done, folder, dirs_exist_ok=True, ignore=kept)

    monkeypatch.setattr(jobs, "prepare", lambda cfg, folder: partial(run, cfg, folder))
    return errors


def sweep(*words: str) -> int:
    """The exit code of `nncompress train -m` with these words, into the folder `sweep` here."""
    into = [] if any(word.startswith(("sweep.resume=", "hydra.sweep.dir=")) for word in words) else ["sweep"]
    return main(["train", "-m", *words, *(f"hydra.sweep.dir={folder}" for folder in into)])


def again(*words: str) -> int:
    return main(["train", "sweep.resume=sweep", *words])


def standings(folder: str = "sweep") -> dict[str, object]:
    """Every job's status."""
    found = sorted(Path(folder).glob("*/status.json"))
    return {path.parent.name: status(path.parent)["status"] for path in found}


# Which jobs there are


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


def test_keys_that_cannot_be_zipped_are_refused() -> None:
    wrong: list[tuple[list[object], str]] = [
        (["a", "d"], "found 'd' and no values of it"),
        ([["a", "b"], ["a"]], "found 'a' and twice"),
        (["a", "c"], "found 2 of a, 3 of c"),
    ]
    for zipped, said in wrong:
        with case(zipped=zipped), pytest.raises(ConfigError, match=said):
            combinations({"a": ["1", "2"], "b": ["3", "4"], "c": ["5", "6", "7"]}, zipped)


def test_a_key_follows_what_changes_results_and_neither_a_place_nor_how_a_job_is_run() -> None:
    def key(*words: str) -> str:
        return key_of(compose("config", list(words)))

    with composing():
        plain = key("model=mlp", "seed=1")
        other = ["checkpoint_every=2", "eval_every=5", "device=cpu", "tracking=tensorboard", "reference_dir=elsewhere"]
        assert plain == key("seed=1", "model=mlp", "data_dir=elsewhere", "sweep.retries=3", *other)
        assert plain != key("model=mlp", "seed=2")
        assert plain != key("model=mlp", "seed=1", "model.widths=[8]")
        assert key("dataset=mnist", "data_dir=a") == key("dataset=mnist", "data_dir=b")


def test_how_a_job_is_run_tells_jobs_apart_where_it_is_varied_however_the_key_is_written() -> None:
    def keys(word: str) -> set[str]:
        return {job.key for job in composed_jobs(["model=mlp", word])}

    assert len(keys("eval_every=1,2")) == 2
    assert keys("++eval_every=1,2") == keys("eval_every=1,2")
    assert len(keys("eval_every=1")) == 1


@pytest.mark.usefixtures("failing")
def test_the_same_job_is_run_once() -> None:
    assert sweep(*QUICK, "seed=0,0") == 0
    assert standings() == {"0": "done"}


def test_two_sweeps_of_the_same_second_get_folders_of_their_own() -> None:
    assert len({stamp() for _ in range(20)}) == 20
    with composing():
        folders = {str(compose("config", return_hydra_config=True).hydra.sweep.dir) for _ in range(3)}
    assert len(folders) == 3


@pytest.mark.usefixtures("failing")
def test_a_folder_for_each_job_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0,1", "hydra.sweep.subdir=same") == 2
    assert "found 'same' twice" in capsys.readouterr().err
    assert sweep(*QUICK, "seed=0,1", "hydra.sweep.subdir='s${seed}-${hydra.job.num}'") == 0
    assert standings() == {"s0-0": "done", "s1-1": "done"}


@pytest.mark.usefixtures("failing")
def test_the_folders_of_jobs_are_below_that_of_their_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subdir in ("../s${seed}", f"{tmp_path}/s${{seed}}", "${hydra.runtime.cwd}/s${seed}", "."):
        with case(subdir=subdir):
            assert sweep(*QUICK, "seed=0", f"hydra.sweep.subdir='{subdir}'") == 2
            assert "need folders below" in capsys.readouterr().err
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.usefixtures("failing")
def test_a_sweep_does_not_go_on_through_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*QUICK, "seed=0") == 0
    Path("mine").write_text("as it was")
    for link in ("multirun.yaml", "0/run.log"):
        (Path("sweep") / link).unlink(missing_ok=True)
        (Path("sweep") / link).symlink_to(tmp_path / "mine")
        with case(link=link):
            assert again() == 2
            assert "found the link" in capsys.readouterr().err
        (Path("sweep") / link).unlink()
    assert Path("mine").read_text() == "as it was"
    assert again() == 0


# Sweeps that go on


@pytest.mark.usefixtures("tables")
def test_a_sweep_of_real_runs_that_was_interrupted_is_resumed_and_can_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = jobs.prepare

    def stopped(cfg: DictConfig, folder: Path) -> object:
        if cfg.seed == 1:
            raise SystemExit(143)
        return prepare(cfg, folder)

    monkeypatch.setattr(jobs, "prepare", stopped)
    assert sweep(*QUICK, *SMALL, "seed=0,1") == 143
    assert standings() == {"0": "done", "1": "interrupted"}
    assert [job.folder for job in read_manifest(Path("sweep")).jobs] == ["0", "1"]
    monkeypatch.setattr(jobs, "prepare", prepare)
    before = Path("sweep/0/records.jsonl").stat().st_mtime_ns
    assert again("seed=5,1,0") == 0  # its other words are on record
    assert standings() == {"0": "done", "1": "done", "2": "done"}
    assert Path("sweep/0/records.jsonl").stat().st_mtime_ns == before
    manifest = read_manifest(Path("sweep"))
    assert [job.folder for job in manifest.jobs] == ["0", "1", "2"]
    assert manifest.jobs[2].overrides == [*QUICK, *SMALL, "seed=5"]
    assert [json.loads(Path(f"sweep/{job}/summary.json").read_text())["seed"] for job in range(3)] == [0, 1, 5]
    assert len(Path("sweep/tables/runs.csv").read_text().splitlines()) == 4


@pytest.mark.usefixtures("tables")
def test_a_sweep_goes_on_with_another_device_and_other_intervals_and_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, prepare = list[int](), jobs.prepare

    def stopped(cfg: DictConfig, folder: Path) -> object:
        begun.append(cfg.seed)
        if len(begun) == 3:
            raise SystemExit(143)
        return prepare(cfg, folder)

    monkeypatch.setattr(jobs, "prepare", stopped)
    assert sweep(*QUICK, *SMALL, "seed=0,1,2,3") == 143
    assert again("device=cpu", "eval_every=5", "checkpoint_every=1", "data_dir=elsewhere", "cuda_graphs=false") == 0
    assert begun == [0, 1, 2, 2, 3]
    assert standings() == dict.fromkeys("0123", "done")


@pytest.mark.usefixtures("failing")
def test_how_jobs_are_run_tells_them_apart_where_a_sweep_varies_it() -> None:
    assert sweep(*QUICK, "eval_every=1,2") == 0
    assert standings() == {"0": "done", "1": "done"}
    assert again("eval_every=2") == 0
    assert standings() == {"0": "done", "1": "done"}


@pytest.mark.usefixtures("failing")
def test_a_finished_sweep_is_not_mixed_with_another_nor_resumed_by_two_nor_by_a_changed_manifest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sweep(*QUICK, "seed=0") == 0
    assert sweep(*QUICK, "seed=1") == 2
    assert "sweep.resume=" in capsys.readouterr().err
    with claim_sweep(Path("sweep").absolute(), resumed=True):
        assert sweep("sweep.resume=sweep", "seed=0,1") == 2
    assert "another process running one" in capsys.readouterr().err
    assert standings() == {"0": "done"}

    path = Path("sweep/sweep.json")
    content = json.loads(path.read_text())
    for word, given, code, said in (
        ("model._target_=os.system", [], 2, "names os.system, but only"),
        ("model._target_=os.system", ["hydra/sweeper=basic"], 2, "names os.system, but only"),
        ("search.sampler._target_=os.system", [], 2, "names os.system, but only"),
        ("+hydra.callbacks.mine._target_=os.system", [], 0, "+hydra.callbacks.mine._target_=os.system of"),
        ("hydra.sweep.subdir='../s${seed}'", ["seed=7"], 2, "need folders below"),
        ("model=../../mine", [], 2, "holds model=../../mine, which no file may give"),
    ):
        path.write_text(json.dumps(content | {"command": [*content["command"], word, "allow=[os,posix]"]}))
        with case(word=word, given=given):
            assert again(*given) == code
            out = capsys.readouterr()
            assert said in out.err + out.out
    for text, said in (
        (
            json.dumps(content).replace('"folder": "0"', '"folder": "../0"'),
            "need folders below",
        ),
        ('{"format": 1, "command": [', "sweep.json is damaged"),
    ):
        path.write_text(text)
        with case(text=text):
            assert again() == 2
            assert said in capsys.readouterr().err


def test_a_search_that_was_stopped_is_continued_as_a_search(
    failing: dict[int, list[Exception]], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    failing[0] = [KeyboardInterrupt()]  # type: ignore[list-item]
    words = [*QUICK, "seed=0", "solver.lr=interval(0.1,1)", "search.trials=1", "search.maximize=[accuracy/test]"]
    assert main(["search", *words, "hydra.sweep.dir=sweep"]) == 130
    assert "continue with: nncompress search sweep.resume=sweep" in capsys.readouterr().out
    assert main(["search", "sweep.resume=sweep"]) == 0
    assert standings() == {"0": "done"}
    with sqlite3.connect("sweep/study.db") as file:
        file.execute("UPDATE trial_values SET value = 0.99")
    assert main(["search", "sweep.resume=sweep"]) == 1
    assert "is damaged (trial 0 has [0.99], its job 0 has [" in capsys.readouterr().err
    Path("sweep/0/summary.json").unlink()
    assert main(["search", "sweep.resume=sweep"]) == 0


# Failures


@pytest.mark.usefixtures("tables")
def test_a_failed_job_is_listed_with_its_last_line_and_tried_again_on_resume(
    failing: dict[int, list[Exception]], capsys: pytest.CaptureFixture[str]
) -> None:
    failing[1] = [OSError("no luck")]
    assert sweep(*QUICK, "seed=1,2") == 1
    assert standings() == {"0": "failed", "1": "done"}
    said = capsys.readouterr().out
    assert "1 of 2 jobs are not done" in said
    assert "OSError" in said
    assert "sweep.resume=sweep" in said
    assert "OSError" in Path("sweep/tables/failures.csv").read_text()
    assert again() == 0
    assert standings() == {"0": "done", "1": "done"}


def test_a_failed_job_is_tried_again_as_often_as_asked(failing: dict[int, list[Exception]]) -> None:
    failing |= {0: [OSError("no luck")], 1: [OSError("no luck"), OSError("nor here")]}
    assert sweep(*QUICK, "seed=0,1", "sweep.retries=1") == 1
    assert standings() == {"0": "done", "1": "failed"}
    assert not failing[1]


def test_what_another_try_cannot_mend_is_not_tried_again(
    failing: dict[int, list[Exception]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a wrong configuration nor, also when the sweep is resumed, a job that has diverged."""
    tries: list[int] = []
    attempt = jobs.attempt

    def counted(cfg: DictConfig, folder: Path) -> Exception | None:
        tries.append(cfg.seed)
        return ConfigError("wrong") if cfg.seed == 0 else attempt(cfg, folder)

    monkeypatch.setattr(jobs, "attempt", counted)
    failing[1] = [Diverged("far away"), Diverged("again")]
    assert sweep(*QUICK, "seed=0,1,2", "sweep.retries=3") == 1
    assert tries == [0, 1, 2]
    assert standings() == {"1": "diverged", "2": "done"}
    log = Path("sweep/1/run.log").read_text()
    assert again() == 1
    assert tries == [0, 1, 2, 0]
    assert standings() == {"1": "diverged", "2": "done"}
    assert Path("sweep/1/run.log").read_text() == log


def test_the_first_process_decides_for_all_whether_a_job_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a wrong configuration in one process is the failure of another one elsewhere."""
    answers: list[object] = []

    def decide(find: Callable[[], object]) -> object:
        answers.append(find())
        return answers[-1]

    monkeypatch.setattr(jobs, "attempt", lambda cfg, folder: ConfigError("wrong here"))
    monkeypatch.setattr(jobs.parallel, "decide", decide)
    sweep(*QUICK, "seed=0", "sweep.retries=1")
    assert answers[-3:] == [True, None, True]  # it may begin, nothing is there of it, it is not tried again


def test_a_sweep_may_stop_at_its_first_failure(
    failing: dict[int, list[Exception]], capsys: pytest.CaptureFixture[str]
) -> None:
    failing[0] = [OSError("no luck")]
    assert sweep(*QUICK, "seed=0,1", "sweep.on_error=stop") == 1
    assert standings() == {"0": "failed"}
    assert "2 jobs are to run" in capsys.readouterr().out
    assert again() == 0
    assert standings() == {"0": "done", "1": "done"}
    assert not (Path("sweep") / STOPPED).exists()


def test_jobs_of_earlier_words_are_told_and_no_failure_of_those_given(
    failing: dict[int, list[Exception]], capsys: pytest.CaptureFixture[str]
) -> None:
    failing |= {0: [OSError("no luck")], 1: [OSError("no luck")]}
    assert sweep(*QUICK, "seed=0,1", "sweep.on_error=stop") == 1
    failing.clear()
    assert again("solver.num_steps=2") == 0
    assert standings() == {"0": "failed", "2": "done", "3": "done"}
    said = capsys.readouterr().out
    assert "2 jobs of earlier words remain: give those words again, or continue each that was begun" in said
    assert "nncompress train resume=sweep/0" in said
    assert again("solver.num_steps=1") == 0
    assert "of earlier words" not in capsys.readouterr().out
    assert standings() == dict.fromkeys("0123", "done")


def test_a_worker_that_dies_costs_no_job(
    failing: dict[int, list[Exception]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher is a pretended one, whose workers are killed after the first job."""
    launched, setup = list[int](), SweepOfJobs.setup

    def dying(launcher: Launcher, overrides: list[list[str]], initial_job_idx: int) -> object:
        launched.append(len(overrides))
        results = type(launcher).launch(launcher, overrides[:1], initial_job_idx)
        if len(overrides) == 1:
            return results
        if len(overrides) == 3:
            Path("sweep/1").mkdir()
            Path("sweep/1/status.json").write_text('{"status": "running"}')
        raise BrokenProcessPool("killed")

    def pretended(self: SweepOfJobs, **given: Any) -> None:
        setup(self, **given)
        monkeypatch.setattr(self.launcher, "launch", partial(dying, self.launcher))

    monkeypatch.setattr(SweepOfJobs, "setup", pretended)
    failing[0] = [OSError("no luck")]
    assert sweep(*QUICK, "seed=0,1,2") == 1
    assert launched == [3, 2, 1]
    assert standings() == {"0": "failed", "1": "done", "2": "done"}
    assert "a worker process died" in capsys.readouterr().out


def test_a_job_that_another_worker_has_begun_in_between_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [ConfigError("another process is running there"), None]
    monkeypatch.setattr(jobs, "attempt", lambda cfg, folder: answers.pop(0))
    monkeypatch.setattr(jobs, "is_held", lambda path: len(answers) == 1)
    assert sweep(*QUICK, "seed=0", "sweep.on_error=stop") == 0
    assert answers == []
    assert not (Path("sweep") / STOPPED).exists()


def test_every_done_job_has_a_report_and_a_resumed_sweep_writes_those_that_are_missing_or_not_whole(
    failing: dict[int, list[Exception]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write_report(folder: Path) -> None:
        asked.append(folder.name)
        paths = [folder / name for name in ("plots/accuracy.png", "tables/accuracy.tex")]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        mark(folder, digest_of(folder), paths)

    monkeypatch.setattr(jobs, "write_report", write_report)
    failing[2] = [Diverged("too large")]
    assert sweep(*QUICK, *SMALL, "seed=0,1,2,3") == 1
    assert asked == ["0", "1", "3"]
    asked.clear()
    assert again() == 1
    assert asked == []
    Path("sweep/0/tables/accuracy.tex").unlink()
    shutil.rmtree("sweep/1/plots")
    shutil.rmtree("sweep/1/tables")
    with Path("sweep/3/summary.json").open("a") as file:
        file.write("\n")  # another one than that of its tables
    assert again() == 1
    assert asked == ["0", "1", "3"]


def test_wrong_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["sweep.resume="], "found nothing"),
        (["--experimental-rerun", "config.pickle"], "nncompress rerun RUN"),
        (["sweep.resume=absent"], "found none in"),
        (["-m", "sweep.resume=absent", "seed=0"], "found none in"),
        (["-m", "sweep.on_error=later", "seed=0,1"], "sweep.on_error: must be one of continue, stop"),
        (["-m", "seed=interval(0,1)"], "found an interval"),
    ):
        with case(words=words):
            assert main(["train", *words]) != 0
            out = capsys.readouterr()
            assert said in out.err + out.out
            assert not Path("absent").exists()


def test_a_glance_does_not_refuse_who_comes_next(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.touch()
    place = path.open("rb")
    let_go: Callable[[], None] = place.close
    asker = threading.Timer(GLANCE / 2, let_go)
    fcntl.flock(place, fcntl.LOCK_SH)
    asker.start()
    with hold(path):
        assert is_held(path)
    assert not is_held(path)
    asker.join()
