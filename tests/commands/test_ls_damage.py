"""Damaged run folders, and names that a terminal would obey: `ls` and `compare` name them and go on with the rest."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from cases import case
from fake_runs import config, fake_run

from nncompress.cli import ls
from nncompress.cli.completion import answer
from nncompress.cli.main import COMMANDS, main
from nncompress.cli.main import _parser as parser_of
from nncompress.results.query import Outline
from nncompress.results.records import run_folders

FILES = ("settings.json", "summary.json", "status.json", "records.jsonl")
ESC = "\x1b[31m"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three done runs and one that is not."""
    folder = tmp_path_factory.mktemp("runs") / "outputs"
    for name, rank in (("a", 4), ("b", 8), ("c", 12)):
        fake_run(folder / name, config(0, rank), n=4)
    fake_run(folder / "d", config(0, 16), n=4, status="failed", reason="no memory")
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those runs in the folder outputs here."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(written, tmp_path / "outputs"))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def as_endless_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def holding(content: bytes) -> Callable[[Path], object]:
    """Make a file hold this."""
    return lambda path: path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing": holding(b""),
    "half": holding(b'{"status": "do'),
    "list": holding(b"[1]"),
    "bytes": holding(b"\xff\xfe\x00"),
    "deep": holding(b'{"a": ' + b"[" * 100_000),
    "digits": holding(b'{"seed": ' + b"9" * 10_000 + b"}"),
    "a folder": as_folder,
    "a broken link": as_broken_link,
    "an endless link": as_endless_link,
}
WRONG = {
    "status.json": [
        '{"status": 5, "reason": [1], "step": {"a": 1}}',
        '{"status": null, "reason": 1e999, "step": "x"}',
        '{"status": "\\ud800", "reason": "\\udfff", "traceback": "\\ud800"}',
    ],
    "summary.json": [
        '{"accuracy/test": [1], "seed": {"a": 1}, "steps": "many", "solver": 3}',
        '{"accuracy/test": "\\ud800", "\\ud800": 1, "seconds/total": NaN, "ratio/bits": Infinity}',
        '{"tasks": 5, "weights": "x", "channels": {"\\ud800": "\\ud800"}}',
        f'{{"one_shot": {"[" * 60}1{"]" * 60}}}',
    ],
    "settings.json": [
        '{"format": 1, "settings": [1, 2]}',
        '{"format": 1, "settings": {"seed": [1], "solver": {"a": 1}, "model": null}}',
        '{"format": 1, "settings": {"solver": "\\ud800", "\\ud800": 1}}',
        '{"format": 99, "settings": {"seed": 0}}',
        '{"format": {}}',
    ],
    "records.jsonl": ['{"step": "x", "accuracy/test": [1]}\n'],
}
"""JSON that is whole, with values that do not belong there."""
HUGE = "1" + "0" * 400
UNKNOWN = {
    "status.json": f'{{"status": "done", "reason": null, "traceback": null, "step": {HUGE}}}',
    "summary.json": f'{{"accuracy/test": {HUGE}, "seconds/total": -{HUGE}, "ratio/params": 1e999, "gap": NaN}}',
    "settings.json": f'{{"format": 1, "settings": {{"seed": {HUGE}, "solver.tau": NaN}}}}',
    "records.jsonl": f'{{"step": {HUGE}, "loss/train": NaN}}\n',
}
"""Numbers that no float holds are not known."""


CASES = [
    *((name, what, damage) for name in FILES for what, damage in DAMAGE.items()),
    *((name, text, holding(text.encode())) for name, texts in WRONG.items() for text in texts),
    *((name, "unknown", holding(text.encode())) for name, text in UNKNOWN.items()),
]


def listed(*words: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """The rows that `ls --json` tells."""
    assert main(["ls", "--json", *words]) == 0
    return list(json.loads(capsys.readouterr().out))


@pytest.fixture
def harm(written: Path, runs: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Damage a file of a run, whose other files are whole: of d its records, else of c."""

    def apply(name: str, damage: Callable[[Path], object]) -> Path:
        for run in ("c", "d"):
            shutil.rmtree(runs / run)
            shutil.copytree(written / run, runs / run)
        run = "d" if name == "records.jsonl" else "c"
        damage(runs / run / name)
        return Path("outputs") / run / name

    return apply


Harm = Callable[[str, Callable[[Path], object]], Path]


def test_a_damaged_file_changes_no_other_run_of_the_list(harm: Harm, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--show", "solver.tau,steps,reason", "--sort", "accuracy/test")
    whole = {row["folder"]: row for row in listed(*words, capsys=capsys)}
    for name, what, damage in CASES:
        path = harm(name, damage)
        with case(name=name, what=what[:40]):
            rows = {row["folder"]: row for row in listed(*words, capsys=capsys)}
            assert rows.keys() == whole.keys()
            assert [key for key in rows if rows[key] != whole[key]] in ([], [str(path.parent)])


def test_a_damaged_file_is_named_once(
    harm: Harm, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, what, damage in CASES:
        if name == "records.jsonl" or what in ("a broken link", "unknown"):  # no damage, or that of a killed run
            continue
        path = harm(name, damage)
        caplog.clear()
        assert main(["ls", "--show", "solver.tau", "--sort", "solver.num_steps"]) == 0
        with case(name=name, what=what[:40]):
            assert [str(path) in message for message in caplog.messages] == [True]


def test_no_damage_ends_a_table_a_filter_or_a_comparison(harm: Harm, capsys: pytest.CaptureFixture[str]) -> None:
    for name, what, damage in CASES:
        run = str(harm(name, damage).parent)
        for words in (
            ["ls", "accuracy/test>0.1", "solver.tau=5", "seconds/total>a", "--sort", "seed"],
            ["ls", "--csv", "--show", "weights,traceback"],
            ["compare", "outputs/a", run, "outputs/b"],
            ["compare", run, "outputs/a"],
        ):
            with case(name=name, what=what[:40], words=words):
                code = main(words)
                out, err = capsys.readouterr()
                out.encode()
                assert out if code == 0 else err.count("\n") == 1
                assert code == 0 or words[1:3] == ["accuracy/test>0.1", "solver.tau=5"]


def test_values_of_several_kinds_are_sorted_and_filtered(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a", "text"), ("b", True), ("c", 0.5)):
        path = runs / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": value}))
    for words, expected in (
        (["--sort", "kind"], ["c", "b", "a", "d"]),
        (["--sort", "kind", "--reverse"], ["a", "b", "c", "d"]),
        (["kind>0.7", "--sort", "kind"], ["b", "a"]),
        (["kind>m"], ["a"]),
    ):
        with case(words=words):
            assert [row["folder"] for row in listed(*words, capsys=capsys)] == [f"outputs/{name}" for name in expected]


def test_a_time_that_is_no_date_is_not_known(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (1e20, -1e20, 1e12, float("inf")):
        monkeypatch.setattr(Path, "stat", lambda path, at=seconds: SimpleNamespace(st_mtime=at))
        with case(seconds=seconds):
            assert Outline(runs / "a").date is None


def test_a_run_that_disappears_while_it_is_listed_ends_no_list(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ls, "run_folders", lambda folders: [*run_folders(folders), Path("outputs/gone")])
    assert {row["folder"] for row in listed("--show", "solver.tau", capsys=capsys)} >= {"outputs/a", "outputs/d"}


def test_the_forms_for_programs_stay_whole_beside_damage(harm: Harm, capsys: pytest.CaptureFixture[str]) -> None:
    harm("summary.json", DAMAGE["half"])
    names = {f"outputs/{name}" for name in "abcd"}
    assert {row["folder"] for row in listed(capsys=capsys)} == names
    assert main(["ls", "--csv"]) == 0
    assert {row["folder"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == names
    assert main(["ls", "--quiet"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == names


# compare


def test_compare_compares_what_is_left_of_a_damaged_run(harm: Harm, capsys: pytest.CaptureFixture[str]) -> None:
    harm("settings.json", DAMAGE["half"])
    assert main(["compare", "outputs/a", "outputs/c", "outputs/b"]) == 0
    out = capsys.readouterr().out
    cells = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert re.search("1 of [0-9]+ settings differ, [0-9]+ are equal; those of B are not known", out)
    assert "of one run alone" not in out
    assert cells["compression.rank"] == ["4", "–", "8"]
    assert "solver.tau" not in cells
    assert cells["params/compressed"][:2] == ["6800", "20400"]


def test_compare_takes_the_last_record_for_a_damaged_summary(harm: Harm, capsys: pytest.CaptureFixture[str]) -> None:
    harm("summary.json", DAMAGE["half"])
    assert main(["compare", "outputs/a", "outputs/c"]) == 0
    assert re.search("B  outputs/c: done, .*; no summary: compared by its last record, step 4", capsys.readouterr().out)


def test_compare_fails_where_nothing_can_be_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        (runs / "c" / name).write_text("{")
    assert main(["compare", "outputs/a", "outputs/c"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "nncompress: compare needs 2 or more runs whose settings or figures can be read, found 1 of 2; give others\n"
    )
    assert main(["compare", "outputs/a", "outputs/c", "outputs/b"]) == 0


# What a terminal, a spreadsheet or a shell would obey


@pytest.fixture
def hostile(runs: Path) -> Path:
    """A run whose folder, keys and values hold what a terminal obeys."""
    folder = fake_run(runs / f"x{ESC}\n\u202ey", config(0, 4), n=2, status="failed", reason=f"{ESC}a\nb")
    (folder / "settings.json").write_text(json.dumps({"format": 1, "settings": {f"k{ESC}": f"v{ESC}\x9b", "seed": 1}}))
    return folder


def test_tables_spell_out_what_a_terminal_obeys(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["ls", "--show", "reason"],
        ["ls", "--json", "--show", "reason"],
        ["ls", "--csv", "--show", "reason"],
        ["ls", "status=failed", str(hostile.relative_to(Path.cwd()))],
        ["compare", "outputs/a", f"outputs/{hostile.name}"],
    ):
        with case(words=words):
            assert main(words) == 0
            out = capsys.readouterr().out
            assert all(line.isprintable() for line in out.splitlines())
            assert re.search(r"x\\(x1b|u001b)\[31m", out)


def test_warnings_spell_out_what_a_terminal_obeys(hostile: Path) -> None:
    (hostile / "status.json").write_text("{")
    code = "import sys; from nncompress.cli.main import main; sys.exit(main(['ls']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.fullmatch(r"outputs/x\\x1b\[31m.*/status.json: ignored, it is damaged \(.*\)\.\n", done.stderr)


def test_quiet_gives_a_pipe_the_very_name_and_a_terminal_one_that_is_spelt_out(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    other = fake_run(hostile.with_name(os.fsdecode(b"\xff\xfe")), n=2)
    words = ["ls", "--quiet", str(hostile), str(other)]
    assert main(words) == 0
    assert set(re.split(b"\n(?=/)", capfdbinary.readouterr().out[:-1])) == {os.fsencode(hostile), os.fsencode(other)}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(words) == 0
    lines = capfdbinary.readouterr().out.decode("ascii").splitlines()
    assert {line.rpartition("/")[2] for line in lines} == {r"x\x1b[31m\n\u202ey", r"\udcff\udcfe"}


def test_no_cell_of_csv_is_a_formula(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, reason in (("a", "=1+1"), ("b", "+1"), ("c", "-1+1"), ("d", "@SUM(A1)")):
        (runs / name / "status.json").write_text(json.dumps({"status": "failed", "reason": reason}))
    assert main(["ls", "--csv", "--show", "reason", "--sort", "folder"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["reason"] for row in rows] == ["'=1+1", "'+1", "'-1+1", "'@SUM(A1)"]


def test_a_value_of_a_mebibyte_widens_no_column_beyond_bounds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "d/status.json").write_text(json.dumps({"status": "failed", "reason": "x" * 2**20}))
    assert main(["ls", "--show", "reason"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 1000


def test_a_terminal_without_the_signs_of_a_table_gets_it_spelt_out(runs: Path) -> None:
    code = "import sys; from nncompress.cli.main import main; sys.exit(main(['compare', 'outputs/a', 'outputs/d']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"B \\u2212 A" in done.stdout


def test_tab_offers_no_name_that_a_shell_would_take_apart(hostile: Path) -> None:
    parsers = {name: partial(parser_of, command) for name, command in COMMANDS.items()}
    assert answer("nncompress ls outputs/", " =:", parsers) == [f"outputs/{name}/" for name in "abcd"]
