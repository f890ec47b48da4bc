"""Finding and comparing runs: what `ls` lists, chooses and sorts, what `compare` tells, and how little both import."""

import csv
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import case
from fake_runs import config, fake_run

from nncompress.cli.main import main
from nncompress.results.query import Outline
from nncompress.results.records import flatten
from nncompress.results.rows import read_last_row
from nncompress.results.run_folder import write_config


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three done runs, a failed and an interrupted one, each written a minute after the one before."""
    folder = tmp_path_factory.mktemp("runs") / "outputs"
    fake_run(folder / "a" / "1", config(0, 4), n=20)
    fake_run(folder / "a" / "2", config(1, 8), n=20)
    fake_run(folder / "b", config(0, 12, model="mlp"), n=20)
    fake_run(folder / "c", config(3, 16), n=2, status="failed", reason="no \x1b[31mmemory\nat all")
    fake_run(folder / "d", config(4, 16, solver="lc"), n=3, status="interrupted", reason="SIGTERM")
    for minute, name in enumerate(("a/1", "a/2", "b", "c", "d")):
        os.utime(folder / name / "status.json", (1_700_000_000 + 60 * minute,) * 2)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those runs in the folder outputs here."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(written, tmp_path / "outputs"))


def listed(*words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The folders that `ls` tells, below outputs."""
    assert main(["ls", "--quiet", *words]) == 0
    return [line.removeprefix("outputs/") for line in capsys.readouterr().out.splitlines()]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which wrong usage is refused."""
    assert main(words) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


# ls


def test_ls_shows_every_run_the_newest_first_with_status_choices_and_figures(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls"]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("folder", "status", "solver", "model", "dataset", "compression", "seed", "accuracy/test", "ratio/params"),
        *("ratio/bits", "seconds/total", "date"),
    ]
    assert [line.split()[:3] for line in lines[:2]] == [
        ["outputs/d", "interrupted", "lc"],
        ["outputs/c", "failed", "nnbcd"],
    ]
    accuracy = json.loads((runs / "b/summary.json").read_text())["accuracy/test"]
    assert f"{accuracy:.4g}" in lines[2].split()
    assert last == "5 runs below outputs: 3 done, 1 interrupted, 1 failed"


def test_ls_filters_and_sorts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[tuple[list[str], list[str]]] = [
        (["status=done"], ["b", "a/2", "a/1"]),
        (["status!=done"], ["d", "c"]),
        (["status=failed,interrupted"], ["d", "c"]),
        (["status!=failed,interrupted"], ["b", "a/2", "a/1"]),
        (["model=tt*", "seed=1"], ["a/2"]),
        (["compression.rank>8"], ["d", "c", "b"]),
        (["compression.rank >= 8", "compression.rank<16"], ["b", "a/2"]),
        (["compression.rank<=4"], ["a/1"]),
        (["ratio/params<0.1"], ["a/1"]),
        (["seed==1.0"], ["a/2"]),
        (["solver=lc"], ["d"]),
        (["reason=SIG*"], ["d"]),
        (["reason=null"], ["b", "a/2", "a/1"]),
        (["reason!=null"], ["d", "c"]),
        (["seconds/step_median>0"], ["b", "a/2", "a/1"]),
        (["model.widths=[256, 256]", "status=failed"], ["c"]),
        (["date<2001"], []),
        (["outputs/a"], ["a/2", "a/1"]),
        (["outputs/a", "outputs/b", "outputs/a/1"], ["b", "a/2", "a/1"]),
        (["--reverse"], ["a/1", "a/2", "b", "c", "d"]),
        (["-n", "2"], ["d", "c"]),
        (["--sort", "compression.rank"], ["a/1", "a/2", "b", "c", "d"]),
        (["--sort", "compression.rank", "--reverse", "-n", "3"], ["c", "d", "b"]),
        (["--sort", "params/compressed", "-r"], ["b", "a/2", "a/1", "c", "d"]),
    ]
    for words, expected in found:
        with case(words=words):
            assert listed(*words, capsys=capsys) == expected


def test_a_run_without_the_key_sorts_last_in_both_directions(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reverse in ([], ["--reverse"]):
        assert listed("--sort", "ratio/tasks", *reverse, capsys=capsys)[3:] == ["c", "d"]


def test_keys_that_are_used_are_shown_and_unknown_columns_are_not(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "status=failed", "--sort", "solver.tau", "--show", "step,reason,rate/slope"]) == 0
    head, line, _ = capsys.readouterr().out.splitlines()
    assert {"solver.tau", "step", "reason"} <= set(head.split())
    assert "rate/slope" not in head
    assert "no \\x1b[31mmemory\\nat all" in line


def test_machines_read_json_and_csv(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(runs / "a/1", {"seed": 0, "high": None, "choices": {"solver": "nnbcd"}})
    assert main(["ls", "--json", "--show", "high", "--reverse"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["folder"] for row in rows] == [f"outputs/{name}" for name in ("a/1", "a/2", "b", "c", "d")]
    assert rows[0]["high"] is None
    assert rows[1]["accuracy/test"] == json.loads((runs / "a/2/summary.json").read_text())["accuracy/test"]
    assert main(["ls", "--csv", "status=done", "-n", "1"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["folder"], row["model"], row["seed"]) == ("outputs/b", "mlp", "0")


def test_a_run_that_nobody_holds_any_more_was_killed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake_run(runs / "e", n=3, status="running")
    assert listed("status=killed", capsys=capsys) == ["e"]
    assert not (folder / "run.lock").exists()
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed("status=killed", capsys=capsys) == []
        assert listed("status=running", capsys=capsys) == ["e"]
    assert listed("status=killed", capsys=capsys) == ["e"]


def test_a_run_that_has_not_ended_shows_its_last_whole_record(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (runs / "d/records.jsonl").open("a") as file:
        file.write('{"step": 9, "accuracy/test": 0.875, "gap": null}\n{"step": 10, "accur')
    assert main(["ls", "--json", "status=interrupted", "--show", "steps"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["accuracy/test"], row["steps"]) == (0.875, 9)


def test_a_wrong_word_is_one_sentence(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["stauts=done"], "none of the 5 runs has the key 'stauts'; did you mean 'status'?"),
        (["--sort", "acuracy/test"], "did you mean 'accuracy/test'?"),
        (["compression.rnk>3"], "did you mean 'compression.rank'?"),
        (["--show", "qqq"], "keys are those of status.json"),
        (["accuracy/test>high"], "accuracy/test is a number"),
        (["nowhere"], "'nowhere' is no folder, and no filter"),
        (["accuracy/test"], "'KEY>VALUE' in quotes"),
        (["--srot", "x"], "unrecognized arguments: --srot"),
        (["-n", "0"], "-n must be a number of runs, at least 1, found 0"),
        (["-n", "many"], "invalid int value: 'many'"),
        (["--json", "--csv"], "not allowed with"),
    ):
        with case(words=words):
            assert expected in told(["ls", *words], capsys)


def test_no_folder_is_a_mistake_and_no_run_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "outputs does not exist" in told(["ls"], capsys)
    (tmp_path / "outputs").mkdir()
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "0 runs below outputs\n"
    assert main(["ls", "--json", "status=done"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_damaged_run_is_listed_with_what_is_left(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("settings.json", "summary.json", "status.json", "records.jsonl"):
        (runs / "b" / name).write_bytes(b"{\x00 half")
    assert main(["ls", "outputs/b"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["outputs/b", "killed"]


def test_runs_of_an_older_version_are_left_out_and_counted(
    runs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b", "c"):
        (runs / name / "settings.json").unlink()
    assert main(["ls"]) == 0
    *_, told, last = capsys.readouterr().out.splitlines()
    assert told == "3 runs below outputs: 2 done, 1 interrupted"
    assert last == "left out: 2 runs that an older version of nncompress wrote, without settings.json; " + (
        "train again what is still needed"
    )
    assert main(["ls", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["outputs/d", "outputs/a/2", "outputs/a/1"]
    assert err.startswith("left out: 2 runs")
    assert main(["compare", "outputs/a/1", "outputs/b"]) == 1
    assert capsys.readouterr().out == ""
    assert "outputs/b was written by an older version of nncompress" in caplog.text


def test_the_last_row_is_found_behind_what_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    assert read_last_row(path) == {}
    for text in ("", "{", '{"step": 1', "[1]\n"):
        path.write_text(text)
        assert read_last_row(path) == {}
    path.write_text('{"step": 1}\n' + "x" * 100_000)
    assert read_last_row(path) == {"step": 1}
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(20_000)))
    assert read_last_row(path) == {"step": 19_999}


# compare


def test_compare_tells_what_differs_and_counts_what_does_not(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "outputs/a/1", "outputs/b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("A  outputs/a/1: done, ")
    cells = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert cells["settings"] == ["A", "B"]
    assert cells["model"] == ["tt_mlp", "mlp"]
    assert cells["compression.rank"] == ["4", "12"]
    assert "solver.tau" not in cells
    assert "seed" not in cells
    assert any(re.fullmatch("figures +A +B +B − A +B / A", line) for line in lines)
    assert cells["params/compressed"] == ["6800", "20400", "+13,600", "3"]
    assert cells["macs/compressed"][2:] == ["+96,000", "3"]
    summaries = [json.loads((runs / name / "summary.json").read_text()) for name in ("a/1", "b")]
    equal = sum(summaries[0][key] == summaries[1][key] for key in summaries[0])
    assert equal > 0
    counts = [line for line in lines if "differ, " in line]
    settings = flatten(config())
    assert counts[0] == f"3 of {len(settings)} settings differ, {len(settings) - 3} are equal"


def test_compare_marks_a_run_that_has_not_ended(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "outputs/a/1", "outputs/d", "outputs/c"]) == 0
    out = capsys.readouterr().out
    assert "B  outputs/d: interrupted, " in out
    assert "not ended: compared by its last record, step 3" in out
    assert "C − A" in out
    assert "are known of one run alone" in out
    assert "params/compressed" not in out


def test_compare_distinguishes_null_absent_and_checks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, own in (("a/1", {"x": None, "y": True}), ("a/2", {"x": 0.1, "z": "\x1b[0m"})):
        write_config(runs / name, config(0, 4) | own)
    assert main(["compare", "outputs/a/1", "outputs/a/2"]) == 0
    cells = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert (cells["x"], cells["y"], cells["z"]) == (["null", "0.1"], ["true", "–"], ["–", "\\x1b[0m"])


def test_compare_refuses_what_are_not_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[tuple[list[str], str]] = [
        ([], "compare needs the folders of 2 to 26 runs, found 0"),
        (["outputs/b"], "found 1"),
        (["outputs/b", "--json"], "unrecognized arguments: --json; usage: nncompress compare RUN RUN"),
        (["outputs/b", "outputs/a"], "outputs/a holds none of them"),
        (["outputs/b", "outputs/x"], "outputs/x does not exist"),
    ]
    for words, expected in wrong:
        with case(words=words):
            assert expected in told(["compare", *words], capsys)


# The commands


def test_what_is_asked_often_imports_nothing_heavy(runs: Path) -> None:
    code = (
        "import sys; from nncompress.cli.main import main; codes = [main(words) for words in "
        "(['--help'], ['ls'], ['ls', 'solver.tau>3'], ['compare', 'outputs/b', 'outputs/c'])]; "
        "heavy = {'torch', 'pandas', 'matplotlib', 'numpy', 'omegaconf'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else any(codes))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_outline_reads_what_it_is_asked_for(runs: Path) -> None:
    run = Outline(runs / "d")
    assert run.get("solver") == "lc"
    assert run.get("solver.tau") == 5.0
    assert run.get("folder") == str(runs / "d")
    assert run.get("absent.key") is None
    assert not run.knows("absent.key")
    assert run.knows("resume")
