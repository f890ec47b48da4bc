"""What a report draws again, and what it does with what it cannot draw."""

import json
import logging
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from cases import case
from fake_runs import config, fake_run, undrawn

from nncompress.cli.main import main
from nncompress.errors import NNCompressError
from nncompress.files import write_json
from nncompress.report import fresh, is_reported, report, write_sweep_report
from nncompress.report.sweep.searches import trials_of
from nncompress.results.records import COLUMNS, RECORDS, SETTINGS, STATUS, SUMMARY, run_folders


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of plots are there, and empty."""
    undrawn(monkeypatch)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs with their reports, and that of the sweep."""
    folder = tmp_path_factory.mktemp("kept")
    for seed in range(3):
        fake_run(folder / str(seed), config(seed), n=3)
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        report([folder])
    return folder


@pytest.fixture
def sweep(kept: Path, tmp_path: Path) -> Path:
    """A copy of them, whose files have other times."""
    return shutil.copytree(kept, tmp_path / "s", copy_function=shutil.copyfile)


def parts(paths: list[Path], folder: Path) -> set[str]:
    """The jobs whose files were written; the sweep's own are `tables` and `plots`."""
    return {path.relative_to(folder).parts[0] for path in paths}


def test_a_report_of_its_present_files_is_left_as_it_is_in_a_copy_too(sweep: Path) -> None:
    told: list[str] = []
    assert report([sweep, sweep / "1"], tell=told.append) == ([], [])
    assert told == [
        f"{sweep}: nothing has changed since the reports of its 3 runs were written",
        f"{sweep / '1'}: nothing has changed since its report was written",
    ]


def test_only_the_run_that_changed_is_drawn_and_the_sweep_over_it(sweep: Path) -> None:
    summary = json.loads((sweep / "1" / SUMMARY).read_text())
    write_json(sweep / "1" / SUMMARY, summary | {"accuracy/test": 0.5})
    told: list[str] = []
    written, failed = report([sweep], tell=told.append)
    assert (parts(written, sweep), failed) == ({"1", "tables", "plots"}, [])
    assert told == [f"{sweep}: drawing 1 of 3 runs, the others are as they were"]
    assert "50.00" in (sweep / "1/tables/accuracy.md").read_text()


def test_a_report_is_stale_once_any_of_its_files_is_another(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep / "0"
    made_of = [folder / name for name in (RECORDS, SUMMARY, STATUS, SETTINGS, COLUMNS, "environment.json")]
    for path in (*made_of, folder / "tables/accuracy.csv", folder / "report.json"):
        with case(changed=path.name):
            before = path.read_bytes() if path.exists() else None
            path.write_bytes((before or b"")[1:] + b"\n\n")
            assert not is_reported(folder)
            path.unlink()
            assert before is None or not is_reported(folder)
            if before is not None:
                path.write_bytes(before)
            assert is_reported(folder)
    monkeypatch.setattr(fresh, "_code", lambda: b"another version")
    assert not is_reported(folder)


def test_an_edit_of_a_table_that_keeps_its_size_is_noticed(sweep: Path) -> None:
    table = sweep / "tables/summary.csv"
    whole = table.read_bytes()
    table.write_bytes(whole.swapcase())
    assert len(whole.swapcase()) == table.stat().st_size
    assert parts(report([sweep])[0], sweep) == {"tables", "plots"}
    assert table.read_bytes() == whole


@pytest.mark.parametrize(
    "name", ["a\0b", "tables/a\0b", "tables/..", "plots/../../x", "../x", "{sweep}/x", f"plots/{'x' * 999}"]
)
def test_a_name_that_no_file_of_a_report_has_makes_it_no_whole_one(sweep: Path, name: str) -> None:
    folder = sweep / "1"
    for path in (sweep / "x", folder / "tables/a"):
        path.write_bytes(b"x")
    made = json.loads((folder / "report.json").read_text())
    for content in (None, zlib.crc32(b"x")):
        files = made["files"] | {name.format(sweep=sweep): content}
        write_json(folder / "report.json", made | {"files": files})
        assert not is_reported(folder)
    assert parts(report([sweep])[0], sweep) == {"1"}


@pytest.mark.parametrize("name", ["tables", "plots", "tables/summary.csv", "report.json"])
def test_what_stands_in_the_place_of_a_part_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake_run(tmp_path / "0", config(), n=2)
    if name.endswith(("csv", "json")):
        (tmp_path / name).mkdir(parents=True)
    else:
        monkeypatch.undo()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(NNCompressError, match=f"found that {re.escape(str(tmp_path / name))} cannot be written"):
        write_sweep_report(tmp_path)


def test_what_is_lost_of_a_run_that_is_done_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fake_run(tmp_path / "0", config(), n=2)
    (folder / SUMMARY).unlink()
    report([folder])
    (folder / RECORDS).unlink()
    report([folder])
    assert caplog.messages == [
        f"{folder}: summary.json is missing, the figures are those of the last record.",
        f"{folder}: no tables or plots, no record is left in records.jsonl.",
    ]


def test_a_report_without_its_page_gets_one_when_it_is_asked_for(sweep: Path) -> None:
    written, _ = report([sweep], html=True)
    assert parts(written, sweep) == {"tables", "plots", "report.html"}
    assert report([sweep], html=True) == ([], [])


def test_a_finished_sweep_has_its_report_and_that_of_no_run(tmp_path: Path) -> None:
    for seed in range(2):
        fake_run(tmp_path / str(seed), config(seed), n=2)
    write_sweep_report(tmp_path)
    assert parts(report([tmp_path])[0], tmp_path) == {"0", "1"}


def test_a_run_without_a_record_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / STATUS, {"status": "failed", "reason": "no", "traceback": None, "step": None})
    for _ in range(2):
        assert report([tmp_path / "run"]) == ([], [])
    assert caplog.text.count("ended before its first record") == 1


def test_a_run_that_cannot_be_reported_is_one_sentence_and_the_others_have_their_reports(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from nncompress.report import write

    drawn = write.run_plots

    def broken(run, folder):  # type: ignore[no-untyped-def]
        if run.folder.name == "1":
            raise ZeroDivisionError("division\nby zero")
        return drawn(run, folder)

    monkeypatch.setattr(write, "run_plots", broken)
    for folder in run_folders([sweep]):
        (folder / "report.json").unlink()
    with caplog.at_level(logging.WARNING):
        written, failed = report([sweep])
    assert (parts(written, sweep), failed) == ({"0", "2"}, [sweep / "1"])
    assert caplog.messages == [f"{sweep / '1'} has no report: ZeroDivisionError: division"]
    assert not is_reported(sweep / "1")


def test_a_run_of_another_version_is_left_out_of_the_sweep_and_the_exit_code_is_1(
    sweep: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_json(sweep / "1" / SETTINGS, {"format": 99, "settings": {}})
    assert main(["report", str(sweep)]) == 1
    out, err = capsys.readouterr()
    assert parts(list(map(Path, out.splitlines())), sweep) == {"tables", "plots"}
    assert err == f"{sweep}: drawing 1 of 3 runs, the others are as they were\n"
    assert [message for message in caplog.messages if "has format 99" in message] == caplog.messages
    assert (sweep / "tables/runs.csv").read_text().count("\n") == 3


def test_a_damaged_search_is_named_and_the_sweep_is_reported(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    trial = {"trial": 0, "job": "0", "state": "complete", "settings": {"a": 1}, "values": [0.5], "best": True}
    whole = {"objectives": {"loss/test": "minimize"}, "trials": [trial]}
    write_json(sweep / "search.json", whole)
    assert trials_of(sweep) is not None
    damaged = [
        whole | {"objectives": {"loss/test": "sideways"}}, whole | {"trials": [trial | {"values": [1, 2]}]},
        whole | {"trials": [trial | {"settings": {"trial": 1}}]}, whole | {"trials": {}}, {"trials": [trial]},
    ]  # fmt: skip
    for content in damaged:
        with case(content=content):
            caplog.clear()
            write_json(sweep / "search.json", content)
            assert trials_of(sweep) is None
            assert caplog.messages == [f"{sweep / 'search.json'}: ignored, it is damaged in part."]
    written, failed = report([sweep])
    assert (parts(written, sweep), failed) == ({"tables", "plots"}, [])


def test_a_link_in_the_place_of_tables_is_not_followed(
    sweep: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(sweep / "1/tables", ignore_errors=True)
    (sweep / "1/tables").symlink_to(outside)
    (sweep / "1/report.json").unlink(missing_ok=True)
    assert report([sweep])[1] == [sweep / "1"]
    assert "it is a link" in caplog.text
    assert not [*outside.iterdir()]


def test_whether_anything_changed_is_told_without_pandas(sweep: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nncompress.report import report\n"
        "assert report([Path(sys.argv[1])]) == ([], [])\nsys.exit(bool({'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(sweep)], check=False).returncode == 0
