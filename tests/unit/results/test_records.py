"""A run folder is read back as written; what is damaged in it is told, and nothing else is lost."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cases import case
from golden import WORDS, Golden

from nncompress.errors import CheckpointError, ConfigError
from nncompress.files import read_json, write_json
from nncompress.results.records import (
    flatten,
    is_older,
    is_run,
    read_columns,
    read_run,
    read_runs,
    read_settings,
    read_status,
    read_summary,
)
from nncompress.results.rows import Recorder
from nncompress.results.run_folder import write_config
from nncompress.solvers.base import Column, Panel, Plot


def make_run(folder: Path, rows: int = 3) -> Path:
    with Recorder(folder / "records.jsonl") as recorder:
        for step in range(rows):
            recorder.write({"step": step, "objective": 10.0 / (step + 1)})
    write_config(folder, {"seed": 1, "solver": {"lr": 0.1}})
    write_json(folder / "status.json", {"status": "done", "reason": None, "traceback": None, "step": rows - 1})
    return folder


def test_a_run_killed_before_its_summary_is_read_without_one_and_counts_as_running_without_its_status(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path / "run")
    run = read_run(folder)
    assert run.summary is None
    assert run.settings == {"seed": 1, "solver.lr": 0.1}
    assert run.status["status"] == "done"
    (folder / "status.json").unlink()
    assert is_run(folder)
    assert read_run(folder).status["status"] == "running"


def test_a_job_that_failed_before_its_first_record_is_still_a_run(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"status": "failed", "reason": "no data", "traceback": None, "step": None})
    run = read_run(tmp_path)
    assert (len(run.rows), run.settings, run.status["reason"]) == (0, {}, "no data")
    assert "step" in run.rows


def test_a_damaged_small_file_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run")
    for name in ("summary.json", "status.json", "settings.json", "columns.json"):
        with case(name=name), caplog.at_level(logging.WARNING):
            (folder / name).write_text("{ [")
            assert len(read_run(folder).rows) == 3
            assert read_columns(folder) == {"columns": [], "plots": []}
            assert f"{folder / name}: ignored, it is damaged" in caplog.text


def test_a_folder_in_the_place_of_a_small_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "status.json").unlink()
    (folder / "status.json").mkdir()
    assert read_status(folder) == {
        "status": "running", "reason": "status.json is damaged", "traceback": None, "step": None
    }  # fmt: skip
    assert f"{folder / 'status.json'}: ignored, it cannot be read (Is a directory)" in caplog.text


def test_a_status_of_other_types_is_left_out_key_by_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path)
    write_json(folder / "status.json", {"status": ["done"], "reason": {}, "traceback": "x", "step": True})
    assert read_status(folder) == {
        "status": "running", "reason": "status.json is damaged", "traceback": "x", "step": None
    }  # fmt: skip
    assert caplog.messages == [f"{folder / 'status.json'}: ignored, it is damaged in part: 'status', 'reason', 'step'."]
    write_json(folder / "status.json", {"status": "done", "other": [1]})
    assert read_status(folder) == {"status": "done", "reason": None, "traceback": None, "step": None}


def test_a_summary_keeps_what_fits_its_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = dict.fromkeys(("params/dense", "params/compressed", "bits/dense", "bits/compressed", "bits/huffman"), 1)
    task |= {"params": "w", "compression": "c", "theta": "t", "gap": None}
    right = {
        "accuracy/test": 0.5, "loss/test": None, "rate/bound_ok": True, "solver": "lc", "steps": 3, "tasks": [task],
        "own": "text", "own/figure": 2, "factors": {"decades": [-3, 3], "counts": [1, 2], "zero": 0},
        "round_to/changed": [{"params": "w", "what": None, "before": None, "after": [4], "added": 1}],
    }  # fmt: skip
    write_json(tmp_path / "summary.json", right)
    assert read_summary(tmp_path) == right
    wrong: dict[str, Any] = {
        "accuracy/test": "high", "rate/bound_ok": 0.5, "solver": 3, "steps": "3", "tasks": [task, {"params": "w"}],
        "weights": {"tensors": 1, "largest": [{"name": "w"}]}, "channels": 4, "one_shot": [[]],
        "factors": {"decades": [1, 2, 3], "counts": [], "zero": 0},
    }  # fmt: skip
    for key, value in wrong.items():
        with case(key=key):
            caplog.clear()
            write_json(tmp_path / "summary.json", {"own": 1, key: value})
            assert read_summary(tmp_path) == {"own": 1}
            assert caplog.messages == [f"{tmp_path / 'summary.json'}: ignored, it is damaged in part: '{key}'."]


def test_what_runs_of_every_family_leave_is_read_back_whole(golden: Golden, caplog: pytest.LogCaptureFixture) -> None:
    for family in WORDS:
        folder = golden.kept(family)
        caplog.clear()
        with case(family=family):
            run = read_run(folder)
            assert run.summary == read_json(folder / "summary.json")
            assert run.status == json.loads((folder / "status.json").read_text())
            assert read_columns(folder) == json.loads((folder / "columns.json").read_text())
            assert run.settings == json.loads((folder / "settings.json").read_text())["settings"]
            assert len(run.rows) == len((folder / "records.jsonl").read_text().splitlines())
            assert not caplog.messages


def test_lists_of_a_summary_that_no_report_knows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(tmp_path / "summary.json", {"my/list": [1], "mine": {"a": 1}, "b": 2})
    assert read_summary(tmp_path) == {"b": 2}
    assert not caplog.messages


def test_settings_that_are_no_plain_values_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "settings.json"
    write_json(path, {"format": 1, "settings": {"seed": 1, "solver": ["lc"], "model": {"a": 1}}})
    assert read_settings(tmp_path) == {"seed": 1}
    assert caplog.messages == [f"{path}: ignored, it is damaged in part: 'solver', 'model'."]
    for content in ({"format": "new", "settings": ["seed"]}, {}):
        caplog.clear()
        write_json(path, content)
        with case(content=content):
            assert read_settings(tmp_path) == {}
            assert caplog.messages == [f"{path}: ignored, it is damaged in part: 'format', 'settings'."]


def test_declared_columns_and_plots_come_back_and_damaged_ones_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = [asdict(Column("a", "α", above=(0.5, "c"), dense="d")), asdict(Column("b", form="yes_no"))]
    plots = [asdict(Plot("sets", "Sets", [Panel("y", {"a": "α"}, parts=("eta/", "sets")), Panel("z", {})], first=1))]
    write_json(tmp_path / "columns.json", {"columns": columns, "plots": plots})
    known = read_columns(tmp_path)
    assert known == json.loads(json.dumps({"columns": columns, "plots": plots}))
    assert not caplog.messages
    column, plot = known["columns"][0], known["plots"][0]
    wrong = {
        "columns": [column | change for change in ({"key": 1}, {"form": "bold"}, {"above": [1]}, {"dense": []})],
        "plots": [
            *({**plot, "name": name} for name in ("../../x", "a/b", "", ".hidden", "a\nb", 3)),
            *({**plot, "panels": panels} for panels in ([], [3], [{}], {"label": "y"})),
            *({**plot, "panels": [plot["panels"][0] | change]} for change in ({"lines": []}, {"parts": ["a"]})),
        ],
    }
    for kind, each in [(kind, each) for kind, several in wrong.items() for each in several]:
        caplog.clear()
        write_json(tmp_path / "columns.json", known | {kind: [*known[kind], each]})
        with case(kind=kind, each=each):
            assert read_columns(tmp_path) == known
            assert caplog.messages == [f"{tmp_path / 'columns.json'}: ignored, it is damaged in part: {kind}."]


def test_settings_come_back_by_their_dotted_keys(tmp_path: Path) -> None:
    config = {
        "seed": 1, "names": ["a", "b: c"], "note": "two\nlines: of\n\ntext", "empty": {}, "none": None,
        "solver": {"tau": 0.5, "p": float("inf"), "modes": [1, [2, 3]], "inner": {"deep": {"x": True}}},
        "choices": {"solver": "nnbcd"},
    }  # fmt: skip
    write_config(tmp_path, config)
    assert read_settings(tmp_path) == flatten(config) == {
        "seed": 1, "names": "['a', 'b: c']", "note": "two\nlines: of\n\ntext", "none": None, "solver": "nnbcd",
        "solver.tau": 0.5, "solver.p": "inf", "solver.modes": "[1, [2, 3]]", "solver.inner.deep.x": True,
    }  # fmt: skip


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_json(folder / "settings.json", {"format": 2, "settings": {}})
    with pytest.raises(CheckpointError, match=r"settings.json has format 2, this version reads format 1"):
        read_run(folder)
    assert not is_older(folder)
    (folder / "settings.json").unlink()
    assert is_older(folder)
    with pytest.raises(CheckpointError, match=r"run was written by an older version .* train it again"):
        read_runs([tmp_path])


def test_a_run_of_another_version_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        make_run(tmp_path / name)
    write_json(tmp_path / "a/settings.json", {"format": 2, "settings": {}})
    (tmp_path / "b/settings.json").unlink()
    assert [run.folder.name for run in read_runs([tmp_path])] == ["c"]
    first, second = caplog.messages
    assert first.startswith(f"ignored: {tmp_path / 'a/settings.json'} has format 2")
    assert second.startswith(f"ignored: {tmp_path / 'b'} was written by an older version")


def test_runs_come_in_the_natural_order_of_their_job_numbers_each_once(tmp_path: Path) -> None:
    for job in (10, 2, 0, 1):
        make_run(tmp_path / str(job))
    (tmp_path / "notes").mkdir()
    runs = read_runs([tmp_path, tmp_path / "2"])
    assert [run.folder.name for run in runs] == ["0", "1", "2", "10"]


def test_a_folder_without_runs_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"at least one run .*{tmp_path.name} is empty"):
        read_runs([tmp_path])
    with pytest.raises(ConfigError, match="absent does not exist"):
        read_runs([tmp_path / "absent"])
    with pytest.raises(ConfigError, match="is empty"):
        read_run(tmp_path)
