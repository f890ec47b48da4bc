"""The console command: exit codes, one sentence for each mistake, run folders, sweeps, resume, completion.

What a run does is tested elsewhere: but for one test, `experiment.run` is a stand-in that leaves a status behind.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

import nncompress.experiment
import nncompress.reference
from nncompress.cli import main
from nncompress.errors import Unsupported

Run = Callable[[DictConfig, Path], None]


def stand_in(cfg: DictConfig, folder: Path) -> None:
    """A run that is done at once; some seeds end otherwise."""
    OmegaConf.save(cfg, folder / "config.yaml")
    status = {"status": "done", "reason": None, "traceback": None, "step": cfg.solver.num_steps}
    try:
        if cfg.seed == 1:
            raise Unsupported("this network is not a chain")
        if cfg.seed == 2:
            raise ZeroDivisionError("division by zero")
        if cfg.seed == 3:
            raise SystemExit(130)
        if cfg.seed == 6:
            signal.raise_signal(signal.SIGTERM)
        if cfg.seed == 8:
            raise KeyboardInterrupt
    except BaseException as error:
        logging.getLogger("nncompress.experiment").info("ended", exc_info=error)
        status |= {"status": "failed", "reason": str(error)}
        raise
    finally:
        (folder / "status.json").write_text(json.dumps(status))


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, the stand-in for runs, and the process as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "nncompress.experiment", SimpleNamespace(run=stand_in))
    monkeypatch.setitem(sys.modules, "nncompress.reference", SimpleNamespace(with_reference=lambda cfg: cfg))
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before


@pytest.fixture
def sweep_report(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a sweep's report was asked for; the report counts their statuses."""
    asked: list[Path] = []

    def write_sweep_report(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        found = pd.DataFrame([json.loads(path.read_text()) for path in folder.glob("*/status.json")])
        failed = found[found["status"] != "done"]
        return SimpleNamespace(paths=[folder / "tables/sweep.md"], done=len(found) - len(failed), failed=failed)

    monkeypatch.setitem(sys.modules, "nncompress.report", SimpleNamespace(write_sweep_report=write_sweep_report))
    return asked


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


# The command itself


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands_and_every_group_with_its_options(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for word in ("train", "report", "dataset", "digits", "compression", "tt", "solver=nnbcd"):
        assert word in out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from nncompress import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nncompress {__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "nncompress train"), ("solver=sgd", "nncompress train solver=sgd"), ("zzz", "nncompress --help")],
)
def test_an_unknown_command_is_one_sentence_with_a_hint(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    message = said(capsys)
    assert message.startswith(f"nncompress: unknown command '{word}'")
    assert f"`{hint}`" in message
    assert len(message.splitlines()) == 1


# A single run


def test_a_run_goes_into_a_new_folder_named_by_its_choices(tmp_path: Path) -> None:
    assert main(["train"]) == 0
    assert main(["train"]) == 0
    folders = list((tmp_path / "outputs/sgd-mlp-digits").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert (folder / "run.log").is_file()
        assert (folder / ".hydra/overrides.yaml").is_file()


def test_the_choices_are_in_the_configuration(tmp_path: Path) -> None:
    assert main(["train", "model=tt_mlp", "hydra.run.dir=here"]) == 0
    choices = yaml.safe_load((tmp_path / "here/config.yaml").read_text())["choices"]
    assert choices == {"dataset": "digits", "model": "tt_mlp", "compression": "tt", "solver": "sgd"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sed=1"], "Key 'sed' not in the configuration; did you mean 'seed'?"),
        (["solver.num_step=1"], "Key 'num_step' not in 'solver'; did you mean 'num_steps'?"),
        (["datset=mnist"], "Key 'datset' not in the configuration; did you mean 'dataset'?"),
        (["seed=abc"], "seed: Value 'abc' of type 'str' could not be converted to Integer"),
        (["dataset=mnits"], "dataset=mnits: no such option; there are"),
        (["dataset=mnits"], "did you mean 'mnist'?"),
        (["experiment=nnbcd/nothing"], "experiment=nnbcd/nothing: no such option"),
        (["hydra/launcher=nothing"], "hydra/launcher=nothing: no such option; there are basic"),
        (["seed=1,2"], "several values need a sweep (train -m)"),
        (["seed=["], "'seed=[' cannot be read as KEY=VALUE"),
        (["--config-dir", "nowhere"], "nowhere"),
        (["--resolve"], "--resolve"),
        (["+solver.nothing=1"], "solver.nothing:"),
        (["seed=-1"], "seed: must be at least 0, found -1"),
    ],
)
def test_a_wrong_word_is_one_sentence_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    message = said(capsys)
    assert message.startswith("nncompress: ")
    assert expected in message
    assert len(message.splitlines()) == 1


def test_several_problems_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=-1", "eval_every=0"]) == 2
    assert said(capsys).splitlines()[0] == "nncompress: the configuration has 2 problems:"


def test_a_failed_run_tells_its_sentence_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=1"]) == 1
    assert said(capsys) == "nncompress: this network is not a chain"


def test_an_unforeseen_error_tells_where_its_traceback_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=2"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("nncompress: ZeroDivisionError: division by zero (the traceback is in outputs/")
    assert "Traceback" not in out + err
    assert "Traceback" in only(tmp_path, "outputs/*/*/run.log").read_text()


@pytest.mark.parametrize(("seed", "code"), [(3, 130), (6, 143), (8, 130)])
def test_an_interruption_has_its_exit_code(seed: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"seed={seed}"]) == code
    assert said(capsys) == ""


def test_an_output_folder_that_cannot_be_made_is_told_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["train", "hydra.run.dir=file/run"]) == 1
    message = said(capsys)
    assert "cannot write the output folder file/run: Not a directory" in message
    assert len(message.splitlines()) == 1


def test_parts_of_the_current_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "parts_of_mine.py").write_text("class Net:\n    def __init__(self, width=3):\n        pass\n")
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").write_text("_target_: parts_of_mine.Net\nwidth: 4\n")
    assert main(["train", "--config-dir", "mine", "model=own"]) == 0
    assert (tmp_path / "outputs/sgd-own-digits").is_dir()


def test_the_process_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = list(sys.argv)
    main(["train", "sed=1"])
    assert sys.argv == before
    assert "HYDRA_FULL_ERROR" not in os.environ


# Sweeps


def test_a_sweep_goes_on_after_a_failed_job_and_exits_with_1(
    tmp_path: Path, sweep_report: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "seed=0,1,-1,2,4"]) == 1
    folder = only(tmp_path, "outputs/sweeps/*")
    assert sweep_report == [folder]
    states = [json.loads((folder / str(job) / "status.json").read_text())["status"] for job in range(5)]
    assert states == ["done", "failed", "failed", "failed", "done"]
    out, err = capsys.readouterr()
    assert "3 of 5 jobs are not done" in out
    assert "Traceback" not in out + err


def test_a_job_refused_before_it_ran_leaves_its_reason(tmp_path: Path, sweep_report: list[Path]) -> None:
    assert main(["train", "-m", "seed=-1", "hydra.sweep.dir=there"]) == 1
    status = json.loads((tmp_path / "there/0/status.json").read_text())
    assert status == {
        "status": "failed",
        "reason": "seed: must be at least 0, found -1",
        "traceback": None,
        "step": None,
    }
    assert yaml.safe_load((tmp_path / "there/0/config.yaml").read_text())["seed"] == -1


def test_a_sweep_without_failures_exits_with_0_in_the_folder_asked_for(
    tmp_path: Path, sweep_report: list[Path]
) -> None:
    assert main(["train", "-m", "seed=4,5", "hydra.sweep.dir=there"]) == 0
    assert sweep_report == [tmp_path / "there"]


@pytest.mark.parametrize(("seed", "code"), [(3, 130), (6, 143), (8, 130)])
def test_an_interruption_stops_a_sweep_and_still_reports(
    seed: int, code: int, tmp_path: Path, sweep_report: list[Path]
) -> None:
    assert main(["train", "-m", f"seed=4,{seed},5", "hydra.sweep.dir=there"]) == code
    assert sweep_report == [tmp_path / "there"]
    assert not (tmp_path / "there/2").exists()


@pytest.mark.parametrize("words", [["sed=1,2"], ["dataset=digits,nothing"]])
def test_a_wrong_word_in_a_sweep_runs_nothing_and_exits_with_2(
    words: list[str], sweep_report: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", *words]) == 2
    assert len(said(capsys).splitlines()) == 1
    assert sweep_report == []


def test_a_sweep_of_real_runs_ends_with_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (nncompress.experiment, nncompress.reference):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    words = ["solver.num_steps=1", "dataset.train_size=100", "compression=tt", "compression.rank=0,2"]
    assert main(["train", "-m", *words, "hydra.sweep.dir=there"]) == 1
    out, err = capsys.readouterr()
    assert "job there/0: compression: rank must be at least 1, found 0" in out
    assert "wrote there/tables/summary.md" in out
    assert err == ""


# Resume


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run's folder with a configuration of its own and a checkpoint."""
    folder = tmp_path / "a run, stopped"
    assert main(["train", "seed=7", "solver.num_steps=3", "model=tt_mlp", "hydra.run.dir='a run, stopped'"]) == 0
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.pt").touch()
    return folder


def test_resume_goes_on_in_the_folder_with_its_own_configuration(stopped: Path, tmp_path: Path) -> None:
    overrides = (stopped / ".hydra/overrides.yaml").read_text()
    (stopped / "run.log").write_text("first half\n")
    assert main(["train", f"resume={stopped}"]) == 0
    cfg = yaml.safe_load((stopped / "config.yaml").read_text())
    assert (cfg["seed"], cfg["solver"]["num_steps"], cfg["choices"]["model"]) == (7, 3, "tt_mlp")
    assert cfg["resume"] == str(stopped)
    assert (stopped / ".hydra/overrides.yaml").read_text() == overrides
    assert (stopped / "run.log").read_text().startswith("first half\n")
    assert not (tmp_path / "outputs").exists()


def test_resume_takes_a_longer_run(stopped: Path) -> None:
    assert main(["train", "solver.num_steps=9", "eval_every=2", f"resume='{stopped}'"]) == 0
    cfg = yaml.safe_load((stopped / "config.yaml").read_text())
    assert (cfg["solver"]["num_steps"], cfg["eval_every"]) == (9, 2)


@pytest.mark.parametrize("word", ["seed=1", "-m", "model=mlp", "solver.lr=1"])
def test_resume_refuses_to_change_what_the_run_is(word: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={stopped}", word]) == 2
    assert said(capsys).endswith(f"found {word}")


def test_resume_checks_what_it_changes(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={stopped}", "eval_every=often"]) == 2
    assert main(["train", f"resume={stopped}", "solver.num_steps=-2"]) == 2
    first, second = said(capsys).splitlines()
    assert "'often'" in first
    assert "solver.num_steps: must be at least 0, found -2" in second


@pytest.mark.parametrize("missing", [".", "config.yaml"])
def test_resume_without_what_it_needs_names_it(
    missing: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / missing).rename(tmp_path / "elsewhere")
    assert main(["train", f"resume={stopped}"]) == 1
    message = said(capsys)
    assert f"{stopped / missing} does not exist" in message
    assert len(message.splitlines()) == 1


def test_resume_of_a_damaged_configuration_says_so(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "config.yaml").write_text("seed: [")
    assert main(["train", f"resume={stopped}"]) == 1
    assert "config.yaml cannot be read" in said(capsys)


# Report


def test_report_prints_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = SimpleNamespace(report=lambda folders, html: [folder / "table.md" for folder in folders])
    monkeypatch.setitem(sys.modules, "nncompress.report", written)
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "a/table.md\nb/table.md\n"


@pytest.mark.parametrize("words", [[], ["--fast"], ["nowhere"]])
def test_report_without_a_folder_of_runs_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    assert len(said(capsys).splitlines()) == 1


# Completion


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the shell's completion function gets for a line: it calls the program without its command."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["-sc", "query=bash"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nncompress ", ["train", "report"]),
        ("nncompress rep", ["report"]),
        ("nncompress train sol", ["solver.", "solver="]),
        ("nncompress train solver.num", ["solver.num_steps="]),
        ("nncompress train -m checkpoint", ["checkpoint_every="]),
        ("nncompress train model=tt", ["model=tt_mlp"]),
        ("nncompress train --zzz", []),
        ("nncompress report ", []),
    ],
)
def test_tab_completes(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(complete(line, monkeypatch, capsys)) >= set(expected)


def test_the_completion_function_is_for_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion nncompress")


# A process of its own

LOADED = """
import sys
from nncompress.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "sklearn", "matplotlib", "pandas"} & set(sys.modules))
sys.stderr.write(f"{code} {heavy}")
"""


@pytest.mark.parametrize("words", [["--help"], ["train", "--cfg", "job"], ["train", "--help"], ["-sc", "query=bash"]])
def test_asking_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    env = {**os.environ, "COMP_LINE": "nncompress train solver.num"}
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stderr == "0 []"


def test_report_loads_no_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "report", "nowhere"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.splitlines()[-1].startswith("2 [")
    assert "torch" not in done.stderr.splitlines()[-1]


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "nncompress", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    assert done.returncode == 1
    assert done.stderr == ""
