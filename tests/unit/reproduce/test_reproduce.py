"""`nncompress reproduce`: a tiny paper is planned, run, gone on with, and told beside what was published."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cases import case
from fake_runs import undrawn

import nncompress.reproduce.planning as planning
import nncompress.reproduce.run as command
from nncompress.cli.main import main
from nncompress.config.overrides import named_folder
from nncompress.files import read_json, write_json
from nncompress.reproduce.planning import Cost, Forecast, _recorded_cost, forecast, planned_runs
from nncompress.reproduce.protocol import CLAIM, Alternative, Claim, PaperStudy, Protocol, Published, Selection
from nncompress.reproduce.rows import FAIL, PASS
from nncompress.results.records import read_run
from nncompress.results.run_folder import write_config
from nncompress.results.sweep_folder import ENDED, SWEEP, Job, Manifest, read_manifest, standing, write_manifest

OUT = "my out, it's #1 (é)"
WORDS = ("model.widths=[8]", "solver.num_steps=2", "device=cpu", "compression=l0", "compression.keep=0.5,0.1")
SMALL = ("dataset.train_size=100", "dataset.test_size=50")
KEPT_HALF = Selection("kept", {"compression.keep": 0.5})


def tiny(paper: str, scale: str) -> Protocol:
    """Two runs for each seed; a study whose official data are missing, and one without any data."""
    study = PaperStudy("kept", "two parts kept", "digits", (*WORDS, *SMALL, "seed=0"), ("a small network",))
    elsewhere = PaperStudy(
        "elsewhere", "other data", "npz", ("dataset=npz", "dataset.path=none.npz", *WORDS[:3], "seed=0"),
        instead=Alternative(("dataset=digits", "~dataset.path"), "digits in place of points"),
    )  # fmt: skip
    nothing = replace(elsewhere, name="nothing", instead=None)
    claims = [
        Claim("claims/1", "more weights are more accurate", "accuracy/test", KEPT_HALF,
              Selection("kept", {"compression.keep": 0.1})),
    ]  # fmt: skip
    rows = {"table/keep*": (Selection("kept"), ("compression.keep",))}
    there = {"kept": ("cpu",), "elsewhere": ("cpu",), "nothing": ("cpu",)}
    return Protocol(paper, scale, "Tiny", [study, nothing], rows, claims, {"table/*": "no such data"}, {}, there)


PUBLISHED = [
    Published("lc", "table/keep0.5", "Table 1", "half", "test accuracy (%)", "5", ""),
    Published("lc", "table/keep0.1", "Table 1", "a tenth", "test accuracy (%)", "100", ""),
    Published("lc", "table/keep0.1", "Table 1", "a tenth", "objective", "3", ""),
    Published("lc", "table/other", "Table 2", "other", "test error (%)", "2", ""),
    Published("lc", "claims/1", "abstract", "all", CLAIM, "better", ""),
    Published("lc", "claims/2", "abstract", "all", CLAIM, "faster", ""),
]


@cache
def known_jobs(words: tuple[str, ...]) -> list[planning.PlannedRun]:
    return planned_runs(words)


@contextmanager
def in_place_of_lc(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it the paper `lc` is the tiny one; the same words are composed once."""
    patch.setattr(command, "read_protocol", tiny)
    patch.setattr("nncompress.reproduce.report.read_protocol", tiny)
    patch.setattr("nncompress.reproduce.report.read_published", lambda paper: PUBLISHED)
    patch.setattr("nncompress.sweeps.jobs.write_report", lambda folder: None)
    patch.setattr(planning, "planned_runs", lambda words: known_jobs(tuple(words)))
    yield


@dataclass(frozen=True)
class Made:
    """What `nncompress reproduce lc` left: its exit code and its messages, once for all tests."""

    folder: Path
    code: int
    told: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two real runs in a folder of a strange name, one real step to time them, and the plot of their figures alone."""
    place, told = tmp_path_factory.mktemp("made"), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()), redirect_stderr(told):
        patch.chdir(place)
        patch.setattr(sys, "path", list(sys.path))
        undrawn(patch, but=["published"])
        with in_place_of_lc(patch):
            code = main(["reproduce", "lc", "--out", OUT])
    torch.set_deterministic_debug_mode("default")
    return Made(place / OUT / "lc" / "cpu", code, told.getvalue())


@pytest.fixture
def paper(apart: None, monkeypatch: pytest.MonkeyPatch, made: Made) -> Iterator[Path]:
    """Where its experiments go by default; sweeps copy the runs that were made, and nothing is timed or drawn."""
    undrawn(monkeypatch)
    for other in ("accuracy_ratio_plot", "objectives_plot", "courses_plot"):
        monkeypatch.setattr(f"nncompress.report.write.{other}", lambda *of, **more: None)
    monkeypatch.setattr(command, "train", copied_from(made.folder / "kept"))
    monkeypatch.setattr(planning, "_measure_cost", timed)
    with in_place_of_lc(monkeypatch):
        yield Path("outputs/reproduce/lc/cpu")


@pytest.fixture
def done(paper: Path, made: Made) -> Path:
    """It, with what was made."""
    return Path(shutil.copytree(made.folder, paper))


def timed(job: planning.PlannedRun) -> Cost:
    """What stands for a step of a job: its data are looked for."""
    planning._check_data(job.data)
    return Cost(0.01, 0.5, 1000, 0.0, 0.0)


def copied_from(sweep: Path) -> Callable[[list[str]], int]:
    """What stands for `nncompress train -m`: its jobs are copies of the finished ones of a sweep."""

    def train(words: list[str]) -> int:
        assert words[0] == "-m"
        folder = named_folder(words[-1:], words[-1].partition("=")[0], "a sweep")
        assert folder is not None
        begun = (folder / SWEEP).exists()
        assert words[-1].partition("=")[0] == ("sweep.resume" if begun else "hydra.sweep.dir")
        manifest = read_manifest(folder) if begun else Manifest(words[1:-1], [])
        for job in known_jobs(tuple(words[1:-1])):
            if manifest.find(job.key) is None:
                manifest = manifest.with_job(Job(str(len(manifest.jobs)), job.key, list(job.overrides)))
            one = manifest.find(job.key)
            assert one is not None
            if standing(folder / one.folder) not in ENDED:
                _copy(sweep, folder / one.folder, job.overrides)
        write_manifest(folder, manifest)
        return 0

    return train


def _copy(sweep: Path, folder: Path, words: Sequence[str]) -> None:
    """The run that keeps as much, under another seed."""
    given = dict(word.split("=", 1) for word in words if not word.startswith("~"))
    shutil.copytree(sweep / {"0.5": "0", "0.1": "1"}[given["compression.keep"]], folder, dirs_exist_ok=True)
    seed = {"seed": int(given.get("seed", 0))}
    write_config(folder, read_run(folder).settings | seed)
    write_json(folder / "summary.json", (read_json(folder / "summary.json") or {}) | seed)


def tables(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.csv")


def test_the_plan_tells_runs_time_and_missing_data_and_runs_nothing(
    paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "lc", "--plan", "seed=0,1"]) == 0
    told = capsys.readouterr().out
    for words in ("kept", "4 runs to do", "missing", "none.npz"):
        assert words in told
    assert not paper.exists()


def test_studies_run_are_judged_and_what_was_not_measured_has_its_reason(made: Made) -> None:
    assert made.code == 1  # a study has no data
    assert "Published" not in made.told
    table = tables(made.folder, "published")
    assert list(table["row"]) == ["table/keep0.5", "table/keep0.1"]
    assert list(table["verdict"]) == [PASS, FAIL]
    accuracy = [read_run(made.folder / "kept" / job).summary["accuracy/test"] for job in ("0", "1")]  # type: ignore[index]
    assert table["ours"].to_list() == pytest.approx([100 * each for each in accuracy])
    assert list(table["deviations"]) == ["a small network"] * 2
    assert table["command"][0].startswith("nncompress train -m 'model.widths=[8]'")
    began = json.loads((made.folder / "kept" / "0" / "environment.json").read_text())["date"]
    assert list(table["date"]) == [began[:10]] * 2
    absent = tables(made.folder, "not_measured")
    assert dict(zip(absent["row"], absent["why"], strict=True)) == {
        "table/keep0.1": "not a figure that is compared", "table/other": "no such data",
    }  # fmt: skip
    claims = tables(made.folder, "claims")
    assert claims["verdict"].to_list() == [PASS if accuracy[0] > accuracy[1] else FAIL, "not measured"]
    assert claims["deviations"][0] == "a small network"
    assert claims["claim"][1] == "faster"
    assert claims["why"][1] == "no experiment here"
    assert "none.npz" in (made.folder / "tables" / "studies.md").read_text()
    assert (made.folder / "plots" / "published.png").read_bytes().startswith(b"\x89PNG")


def test_a_first_step_is_timed_and_the_time_is_kept_with_the_plan(made: Made) -> None:
    studies = json.loads((made.folder / "reproduce.json").read_text())["studies"]
    cost = Cost(**studies["kept"]["cost"])
    assert 0 < cost.step < cost.rest
    assert cost.size > 10_000
    assert studies["nothing"]["cost"] is None


def test_what_was_run_is_not_run_again_and_seeds_are_added_and_left_out(done: Path) -> None:
    before = (done / "kept" / "0" / "status.json").stat().st_mtime_ns
    assert main(["reproduce", "lc", "seed=0,1", "--study", "kept"]) == 0
    assert (done / "kept" / "0" / "status.json").stat().st_mtime_ns == before
    assert sorted(path.parent.name for path in (done / "kept").glob("*/summary.json")) == ["0", "1", "2", "3"]
    assert list(tables(done, "published")["n"]) == [2, 2]
    keys = {job["key"] for job in json.loads((done / "kept" / "sweep.json").read_text())["jobs"]}
    assert set(json.loads((done / "reproduce.json").read_text())["studies"]["kept"]["keys"]) == keys
    assert main(["reproduce", "lc", "--study", "kept"]) == 0  # the seed that was added is no part of it any more
    assert list(tables(done, "published")["n"]) == [1, 1]
    assert list(tables(done / "kept", "runs")["seed"]) == [0, 0]


def test_the_report_of_a_folder_of_experiments_has_their_tables_page_and_results(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(done)]) == 0
    written = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert written >= {"published.md", "report.html", "results.md"}


def test_a_folder_of_any_name_is_gone_on_with(apart: None, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)
    folder = Path(shutil.copytree(made.folder, Path(OUT, "lc", "cpu")))
    (folder / "kept" / "1" / "status.json").unlink()
    (folder / "kept" / "1" / "summary.json").unlink()
    with in_place_of_lc(monkeypatch):
        assert main(["reproduce", "lc", "--study", "kept", "--out", OUT]) == 0
    ours, first = ((each / "kept" / "1" / "summary.json") for each in (folder, made.folder))
    assert json.loads(ours.read_text())["accuracy/test"] == json.loads(first.read_text())["accuracy/test"]


def test_papers_that_were_not_run_get_no_tables(done: Path, caplog: pytest.LogCaptureFixture) -> None:
    (done / "tables" / "published.md").unlink()
    assert main(["reproduce", "nnbcd", "lc", "--tables"]) == 0
    assert "nnbcd/cpu, it gets no tables" in caplog.text
    assert (done / "tables" / "published.md").exists()


def test_a_damaged_record_is_told_and_without_one_the_studies_are_planned_anew(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "lc", "--study", "kept"]
    for damaged in ('{"studies": null}', '{"paper": "lc", "scale": "cpu", "studies": {"kept": 1}}', "{"):
        with case(damaged=damaged):
            (done / "reproduce.json").write_text(damaged)
            for asked in (["reproduce", "lc", "--tables"], words):
                assert main(asked) == 2
                said = "must name a paper, a scale and its studies, found others; delete it"
                assert said in capsys.readouterr().err
    (done / "reproduce.json").unlink()
    assert main(words) == 0


def test_a_run_that_has_ended_otherwise_is_told(done: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(done / "kept" / "1" / "status.json", {"status": "diverged", "reason": "x", "step": 1})
    assert main(["reproduce", "lc", "--study", "kept"]) == 1
    assert "lc kept: of 2 runs 1 diverged" in caplog.text


def test_other_data_take_the_place_of_missing_ones_and_are_a_deviation(
    paper: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(name: str, scale: str) -> Protocol:
        study = PaperStudy(
            "elsewhere", "other data", "har", ("dataset=har", "data.download=false", *WORDS),
            instead=Alternative(("dataset=digits",), "digits in place of activities"),
        )  # fmt: skip
        return replace(tiny(name, scale), studies=[study], rows={}, claims=[])

    monkeypatch.setenv("NNCOMPRESS_DATA", str(Path("nothing").absolute()))
    monkeypatch.setattr(command, "read_protocol", other)
    monkeypatch.setattr("nncompress.reproduce.report.read_protocol", other)
    assert main(["reproduce", "lc"]) == 0
    assert "digits in place of activities" in capsys.readouterr().out
    table = tables(paper, "studies")
    assert list(table["deviations"]) == ["digits in place of activities"]
    assert "dataset=digits" in table["command"][0]


def test_wrong_words_are_one_sentence_and_exit_code_2(apart: None, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        ([], "needs one or more of nnbcd"),
        (["nbcd"], "found nbcd"),
        (["lc", "--scale", "big"], "argument --scale: invalid choice: 'big'"),
        (["lc", "--scale"], "argument --scale: expected one argument; usage: nncompress reproduce PAPER"),
        (["lc", "--quick"], "unrecognized arguments: --quick"),
        (["lc", "--launcher", "cloud"], "argument --launcher: invalid choice: 'cloud'"),
        (["lc", "--study", "nothing_like_it"], "--study must be one of"),
        (["lc", "solver.num_steps=1"], "would change what is reproduced"),
        (["lc", "--scale", "smoke", "--tables", "--out", "nowhere"], "--tables needs what was run"),
    ]
    for words, said in wrong:
        with case(words=words):
            assert main(["reproduce", *words]) == 2
            assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_planned(
    paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    assert main(["reproduce", "lc", "--out", "taken"]) == 2
    said = capsys.readouterr().err
    assert said == "nncompress: --out needs a folder that can be written into, found taken/lc/cpu: Not a directory\n"


def test_a_plan_that_was_stopped_keeps_what_it_measured_and_says_how_to_go_on(
    paper: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(study: PaperStudy, *more: Any) -> Forecast:
        if study.name == "nothing":
            raise KeyboardInterrupt
        return forecast(study, *more)

    monkeypatch.setattr(command, "forecast", stopped)
    assert main(["reproduce", "lc", "seed=1"]) == 130
    assert "go on with: nncompress reproduce lc seed=1" in caplog.text
    cost = json.loads((paper / "reproduce.json").read_text())["studies"]["kept"]["cost"]
    assert cost == vars(timed(known_jobs(tiny("lc", "cpu").studies[0].words)[0]))
    assert _recorded_cost({"words": ["a"], "cost": cost}, ["a"]) == Cost(**cost)
    assert [_recorded_cost({"words": ["a"], "cost": each}, ["a"]) for each in (None, 3, {"x": 1})] == [None] * 3
    assert _recorded_cost({"words": ["a"], "cost": cost}, ["b"]) is None
    monkeypatch.setattr(planning, "_measure_cost", lambda job: pytest.fail("measured again"))
    assert main(["reproduce", "lc", "seed=1", "--study", "kept"]) == 0
