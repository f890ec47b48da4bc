"""The console command: exit codes, one sentence for each mistake, run folders, completion.

What a run does is tested elsewhere: `stand_in.py` runs here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cases import case

from nncompress.cli.main import COMMANDS, main
from nncompress.results.run_folder import write_settings

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
    (["-m", "--quick", "seed=1"], "unrecognized arguments: --quick; usage: nncompress train [-m] [GROUP=OPTION ...]"),
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
    written = SimpleNamespace(report=lambda folders, html, tell: ([folder / "table.md" for folder in folders], []))
    monkeypatch.setitem(sys.modules, "nncompress.report", written)
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "a/table.md\nb/table.md\n"


def test_report_without_a_folder_of_runs_exits_with_2(capsys: Capture) -> None:
    for words in ([], ["--fast"], ["nowhere"]):
        with case(words=words):
            assert main(["report", *words]) == 2
            assert len(said(capsys).splitlines()) == 1


# Help


def test_help_of_every_command_has_one_form(capsys: Capture) -> None:
    for command in COMMANDS:
        for words in ([command, "--help"], [command, "nonsense", "-h"]):
            with case(words=words):
                assert main(words) == 0
                out, err = capsys.readouterr()
                assert err == ""
                usage, _, about, *rest = out.splitlines()
                assert usage.startswith(f"usage: nncompress {command} ")
                assert about
                titles = [line for line in rest if line.endswith(":") and not line.startswith(" ")]
                in_order = ["arguments:", "options:", "keys (KEY=VALUE):", "groups (GROUP=OPTION):", "examples:"]
                assert titles[:2] == in_order[:2]
                assert [title for title in in_order if title in titles] == [
                    title for title in titles if title in in_order
                ]


def test_help_of_train_tells_its_groups_keys_and_where_hydras_own_help_is(capsys: Capture) -> None:
    for command in ("train", "search"):
        assert main([command, "--help"]) == 0
        out = capsys.readouterr().out
        for word in (
            "--config-dir",
            "--cfg",
            "--hydra-help",
            "tt_mlp",
            "frank_wolfe",
            "experiment=lc/...",
            f"{command} solver=",
        ):
            with case(command=command, word=word):
                assert word in out
    assert main(["train", "--hydra-help"]) == 0
    assert "Hydra" in capsys.readouterr().out


# Completion


def offered(line: str, capsys: Capture, breaks: str = "") -> set[str]:
    """What the function of a shell is told may stand at the end of a line."""
    assert main(["--complete", line, breaks]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return set(out.splitlines())


def test_tab_completes_commands_options_groups_and_keys(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").touch()
    for line, expected in (
        ("nncompress ", {*COMMANDS, "--help", "--version"}),
        ("nncompress repo", {"report"}),
        ("nncompress train sol", {"solver.", "solver=", "solver.num_steps="}),
        ("nncompress train solver.num", {"solver.num_steps="}),
        ("nncompress train solver=nnbcd solver.tau_", {"solver.tau_growth=", "solver.tau_max="}),
        ("nncompress train experiment=nnbcd/har5 solver.tau_", {"solver.tau_growth=", "solver.tau_max="}),
        ("nncompress train model=tt_mlp compression.mo", {"compression.modes="}),
        ("nncompress train +solver.optimizer.mom", {"+solver.optimizer.momentum="}),
        ("nncompress train solver=nnbcd solver.plain=", {"solver.plain=true", "solver.plain=false"}),
        ("nncompress train -m checkpoint", {"checkpoint_every="}),
        ("nncompress train model=tt", {"model=tt_mlp"}),
        ("nncompress train --config-dir mine model=o", {"model=own"}),
        ("nncompress train -m compression=l0,l1", {"compression=l0,l1", "compression=l0,l1_penalty"}),
        ("nncompress search 'model=tt", {"model=tt_mlp"}),
        ("nncompress search device=c", {"device=cpu", "device=cuda"}),
        ("nncompress train ~constr", {"~constraint"}),
        ("nncompress train --cf", {"--cfg"}),
        ("nncompress train --cfg j", {"job"}),
        ("nncompress export --format o", {"onnx"}),
        ("nncompress export --format=o", {"--format=onnx"}),
        ("nncompress ls --sort acc", {"accuracy/test"}),
        ("nncompress ls --show seed,ratio/p", {"seed,ratio/params"}),
        ("nncompress ls status=k", {"status=killed"}),
        ("nncompress reproduce spa", {"sparsefw"}),
        ("nncompress reproduce lc --scale ", {"smoke", "cpu", "gpu"}),
        ("nncompress eval RUN dataset=dig", {"dataset=digits"}),
        ("nncompress complete ", {"bash", "zsh"}),
        ("nncompress train --zzz", set()),
        ("nncompress nothing ", set()),
    ):  # fmt: skip
        with case(line=line):
            assert offered(line, capsys) == expected


def test_tab_completes_the_folders_of_runs(tmp_path: Path, capsys: Capture) -> None:
    runs = (tmp_path / "outputs/sgd-mlp-digits/one run", tmp_path / "outputs/sweeps/a/0")
    for run in runs:
        (run / "model").mkdir(parents=True)
        (run / "status.json").write_text('{"status": "done"}')
        write_settings(run, {"solver": {"_target_": "x", "tau": 1.0, "plain": False}, "choices": {"solver": "nnbcd"}})
    (tmp_path / "outputs/sweeps/a/sweep.json").touch()
    for words in ("eval ", "export ", "rerun ", "compare outputs/x ", "train resume=", "train reference="):
        start = words.rpartition(" ")[2]
        for typed, expected in (
            ("out", "outputs/"), ("outputs/sg", "outputs/sgd-mlp-digits/"),
            ("outputs/sgd-mlp-digits/", "outputs/sgd-mlp-digits/one run"),
            ("outputs/sweeps/a/", "outputs/sweeps/a/0"),
        ):  # fmt: skip
            with case(words=words, typed=typed):
                assert f"{start}{expected}" in offered(f"nncompress {words}{typed}", capsys)
    assert offered("nncompress train sweep.resume=outputs/sweeps/", capsys) == {"sweep.resume=outputs/sweeps/a"}
    assert offered("nncompress report outputs/sweeps/a", capsys) == {"outputs/sweeps/a/"}
    assert offered("nncompress rerun outputs/sweeps/a/0 solver.ta", capsys) == {"solver.tau="}
    assert offered("nncompress rerun outputs/sweeps/a/0 solver.plain=t", capsys) == {"solver.plain=true"}


BASH = """
PATH="$1:$PATH"
eval "$(nncompress complete bash)"
complete -p nncompress
ask() {
    COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($2) COMP_CWORD=$(($3))
    _nncompress nncompress "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '<%s>' "${COMPREPLY[@]}"
    echo
}
ask "nncompress exp" "nncompress exp" 1
ask "nncompress train model=tt" "nncompress train model = tt" 4
ask "nncompress train model=tt_mlp sol" "nncompress train model = tt_mlp sol" 5
ask "nncompress eval outputs/o" "nncompress eval outputs/o" 2
ask "nncompress train resume=outputs/o" "nncompress train resume = outputs/o" 4
"""


def test_bash_gets_what_stands_behind_its_own_breaks_and_quotes_what_needs_it(tmp_path: Path) -> None:
    (tmp_path / "outputs/one run").mkdir(parents=True)
    (tmp_path / "outputs/one run/status.json").write_text("{}")
    words = ["bash", "--norc", "-c", BASH, "bash", str(Path(sys.executable).parent)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    function, *answers = done.stdout.splitlines()
    assert function == "complete -F _nncompress nncompress"
    assert answers == [
        "<export>", "<tt_mlp>", "<solver=><solver.num_steps=><solver.>", r"<outputs/one\ run>", r"<outputs/one\ run>",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_its_function(capsys: Capture) -> None:
    assert main(["complete", "zsh"]) == 0
    subprocess.run(["zsh", "-n"], input=capsys.readouterr().out, text=True, check=True)


def test_each_shell_has_its_function_and_hydras_own_is_refused(capsys: Capture) -> None:
    for shell, line in (("bash", "complete -F _nncompress nncompress"), ("zsh", "compdef _nncompress nncompress")):
        assert main(["complete", shell]) == 0
        out = capsys.readouterr().out
        assert out.rstrip().endswith(line)
        assert "--complete" in out
    assert main(["complete", "fish"]) == 2
    assert "invalid choice: 'fish'" in said(capsys)
    assert main(["train", "-sc", "install=bash"]) == 2
    assert 'eval "$(nncompress complete bash)"' in said(capsys)


# A process of its own

LOADED = """
import sys
from nncompress.cli.main import COMMANDS, main

def told(*words):
    code = main(words)
    heavy = sorted({"torch", "sklearn", "matplotlib", "pandas", "hydra", "omegaconf"} & set(sys.modules))
    sys.stderr.write(f"{code} {heavy}\\n")

for command in COMMANDS:
    told(command, "--help")
told("--complete", "nncompress train solver.num", "")
told("--help")
told("train", "--cfg", "job")
told("report", "nowhere")
"""


def test_asking_loads_nothing_heavy_and_a_report_no_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, cwd=tmp_path)
    *asked, configuration, refused, report = done.stderr.splitlines()
    assert asked == ["0 []"] * (len(COMMANDS) + 2)
    assert configuration == "0 ['hydra', 'omegaconf']"
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
