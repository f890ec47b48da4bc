"""The console command: exit codes, one sentence for each mistake, run folders, completion.

What a run does is tested elsewhere: `stand_in.py` runs here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cases import case

from nncompress.cli.main import main

pytestmark = pytest.mark.usefixtures("stand_in")

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture) -> str:
    return capsys.readouterr().err.strip()


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


# The command itself


def test_help_lists_the_commands_and_every_group_with_its_options(capsys: Capture) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        with case(words=words):
            assert main(words) == 0
            out = capsys.readouterr().out
            for word in ("train", "report", "dataset", "digits", "compression", "tt", "solver=nnbcd"):
                assert word in out


def test_version_is_the_packages(capsys: Capture) -> None:
    from nncompress import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nncompress {__version__}\n"


def test_an_unknown_command_is_one_sentence_with_a_hint(capsys: Capture) -> None:
    for word, hint in (
        ("trian", "nncompress train"), ("solver=sgd", "nncompress train solver=sgd"), ("zzz", "nncompress --help"),
    ):  # fmt: skip
        with case(word=word):
            assert main([word]) == 2
            message = said(capsys)
            assert message.startswith(f"nncompress: unknown command '{word}'")
            assert f"`{hint}`" in message
            assert len(message.splitlines()) == 1


# A single run


def test_a_run_goes_into_a_new_folder_named_by_its_choices_which_its_configuration_keeps(tmp_path: Path) -> None:
    assert main(["train"]) == 0
    assert main(["train", "model=mlp"]) == 0
    folders = list((tmp_path / "outputs/sgd-mlp-digits").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert (folder / "run.log").is_file()
        assert (folder / ".hydra/overrides.yaml").is_file()
    assert main(["train", "model=tt_mlp", "hydra.run.dir=here"]) == 0
    choices = yaml.safe_load((tmp_path / "here/config.yaml").read_text())["choices"]
    assert choices == {"dataset": "digits", "model": "tt_mlp", "compression": "tt", "solver": "sgd"}


WRONG = [
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
]


def test_a_wrong_word_is_one_sentence_and_exit_code_2_and_leaves_the_process_as_it_was(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = list(sys.argv)
    for words, expected in WRONG:
        with case(words=words):
            assert main(["train", *words]) == 2
            message = said(capsys)
            assert message.startswith("nncompress: ")
            assert expected in message
            assert len(message.splitlines()) == 1
            assert sys.argv == before
            assert "HYDRA_FULL_ERROR" not in os.environ


def test_several_problems_are_told_together(capsys: Capture) -> None:
    assert main(["train", "seed=-1", "eval_every=0"]) == 2
    assert said(capsys).splitlines()[0] == "nncompress: the configuration has 2 problems:"


def test_a_failed_run_tells_its_sentence_and_its_exit_code(capsys: Capture) -> None:
    assert main(["train", "seed=1"]) == 1
    assert said(capsys) == "nncompress: this network is not a chain"


def test_an_unforeseen_error_tells_where_its_traceback_is(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "seed=2"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("nncompress: ZeroDivisionError: division by zero (the traceback is in outputs/")
    assert "Traceback" not in out + err
    assert "Traceback" in only(tmp_path, "outputs/*/*/run.log").read_text()


def test_an_interruption_has_its_exit_code(capsys: Capture) -> None:
    for seed, code in ((3, 130), (6, 143), (8, 130)):
        with case(seed=seed):
            assert main(["train", f"seed={seed}"]) == code
            assert said(capsys) == ""


def test_an_output_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path: Path, capsys: Capture) -> None:
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


# Report


def test_report_prints_what_it_wrote(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    written = SimpleNamespace(report=lambda folders, html: [folder / "table.md" for folder in folders])
    monkeypatch.setitem(sys.modules, "nncompress.report", written)
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "a/table.md\nb/table.md\n"


def test_report_without_a_folder_of_runs_exits_with_2(capsys: Capture) -> None:
    for words in ([], ["--fast"], ["nowhere"]):
        with case(words=words):
            assert main(["report", *words]) == 2
            assert len(said(capsys).splitlines()) == 1


# Completion


def test_tab_completes(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for line, expected in (
        ("nncompress ", {"train", "report"}),
        ("nncompress rep", {"report"}),
        ("nncompress train sol", {"solver.", "solver="}),
        ("nncompress train solver.num", {"solver.num_steps="}),
        ("nncompress train -m checkpoint", {"checkpoint_every="}),
        ("nncompress train model=tt", {"model=tt_mlp"}),
        ("nncompress train --zzz", set()),
        ("nncompress report ", set()),
    ):
        with case(line=line):  # the shell's function calls the program without its command
            monkeypatch.setenv("COMP_LINE", line)
            monkeypatch.setenv("COMP_POINT", str(len(line)))
            assert main(["-sc", "query=bash"]) == 0
            out, err = capsys.readouterr()
            assert err == ""
            assert set(out.split()) >= expected


def test_the_completion_function_is_for_the_program(capsys: Capture) -> None:
    assert main(["train", "-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion nncompress")


# A process of its own

LOADED = """
import sys
from nncompress.cli.main import main

def told(*words):
    code = main(words)
    heavy = sorted({"torch", "sklearn", "matplotlib", "pandas"} & set(sys.modules))
    sys.stderr.write(f"{code} {heavy}\\n")

for words in (["--help"], ["train", "--cfg", "job"], ["train", "--help"], ["-sc", "query=bash"], ["report", "nowhere"]):
    told(*words)
"""


def test_asking_loads_nothing_heavy_and_a_report_no_torch(tmp_path: Path) -> None:
    env = {**os.environ, "COMP_LINE": "nncompress train solver.num"}
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, cwd=tmp_path, env=env)
    *asked, refused, report = done.stderr.splitlines()
    assert asked == ["0 []"] * 4
    assert refused.startswith("nncompress: ")
    assert report.startswith("2 [")
    assert "torch" not in report


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "nncompress", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    assert done.returncode == 1
    assert done.stderr == ""
