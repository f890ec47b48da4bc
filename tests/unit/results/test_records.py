"""Records: rows on disk survive kills, and are read back as written."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import case

from nncompress.errors import CheckpointError, ConfigError
from nncompress.files import write_bytes, write_json
from nncompress.results.records import Recorder, flatten, is_older, is_run, read_run, read_runs, read_settings
from nncompress.results.run_folder import write_config


def write_rows(path: Path, n: int) -> None:
    with Recorder(path) as recorder:
        for step in range(n):
            recorder.write({"step": step, "objective": 10.0 / (step + 1)})


def make_run(folder: Path, rows: int = 3) -> Path:
    write_rows(folder / "records.jsonl", rows)
    write_config(folder, {"seed": 1, "solver": {"lr": 0.1}})
    write_json(folder / "status.json", {"status": "done", "reason": None, "traceback": None, "step": rows - 1})
    return folder


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_row_is_one_flat_json_line_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    with Recorder(path) as recorder:
        recorder.write({"step": np.int64(1), "objective": 0.1, "accuracy/test": np.float32(0.5), "gap": None})
        assert json.loads(path.read_text()) == {"step": 1, "objective": 0.1, "accuracy/test": 0.5, "gap": None}
        assert recorder.count == 1
    assert path.read_text().endswith("\n")


def test_a_number_that_is_not_finite_is_written_as_null_and_read_as_nan(tmp_path: Path) -> None:
    for number, value in enumerate((float("nan"), float("inf"), -float("inf"), np.float64("nan"))):
        with case(value=value):
            folder = make_run(tmp_path / str(number))
            with Recorder(folder / "records.jsonl") as recorder:
                recorder.write({"step": 3, "objective": value})
            assert '"objective": null' in (folder / "records.jsonl").read_text()
            assert np.isnan(read_run(folder).rows["objective"].iloc[-1])


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    values = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    with Recorder(folder / "records.jsonl", keep=0) as recorder:
        for value in values:
            recorder.write({"objective": value})
    assert (read_run(folder).rows["objective"].to_numpy() == values).all()


def test_resuming_keeps_exactly_the_rows_before_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_rows(path, 5)
    with path.open("a") as file:
        file.write('{"step": 5, "obj')
    with Recorder(path, keep=3) as recorder:
        assert recorder.count == 3
        recorder.write({"step": 30})
    assert steps(path) == [0, 1, 2, 30]
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


def test_reopening_without_keep_appends_after_the_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_rows(path, 2)
    with path.open("a") as file:
        file.write('{"st')
    with Recorder(path) as recorder:
        recorder.write({"step": 2})
    assert steps(path) == [0, 1, 2]


def test_fewer_rows_than_the_checkpoint_relies_on_is_an_error_that_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_rows(path, 2)
    with pytest.raises(CheckpointError, match=r"after 7 records, but .*records\.jsonl holds 2"):
        Recorder(path, keep=7)
    assert steps(path) == [0, 1]


@pytest.mark.slow
def test_rows_survive_the_process_being_killed(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    code = (
        "import os, sys, pathlib; from nncompress.results.records import Recorder\n"
        "r = Recorder(pathlib.Path(sys.argv[1])); r.write({'step': 0}); r.write({'step': 1}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert steps(path) == [0, 1]


def test_sync_and_a_second_close_are_harmless(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "records.jsonl")
    recorder.write({"step": 0})
    recorder.sync()
    recorder.close()
    recorder.close()
    assert recorder.count == 1
    assert (tmp_path / "records.jsonl").read_text() == '{"step": 0}\n'


def test_a_half_written_last_line_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"step": 3, "objec')
    with caplog.at_level(logging.WARNING):
        assert list(read_run(folder).rows["step"]) == [0, 1, 2]
    assert "line 4: ignored, the run ended while writing it" in caplog.text


def test_a_damaged_middle_line_is_skipped_naming_file_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "records.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\xff\x00 not json", *lines[1:]]))
    with caplog.at_level(logging.WARNING):
        assert list(read_run(folder).rows["step"]) == [0, 1, 2]
    assert f"{path}, line 2: ignored, it is damaged" in caplog.text


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
    for name in ("summary.json", "status.json", "settings.json"):
        with case(name=name), caplog.at_level(logging.WARNING):
            (folder / name).write_text("{ [")
            assert len(read_run(folder).rows) == 3
            assert f"{folder / name}: ignored, it is damaged" in caplog.text


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


def test_json_is_written_whole_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": float("nan"), "b": [np.float32(0.5), np.int64(2)], "c": True, "d": "×"})
    assert json.loads(path.read_text()) == {"a": None, "b": [0.5, 2], "c": True, "d": "×"}
    assert path.read_text().startswith('{\n  "a": null')


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_bytes_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_bytes(path, b"\x00old")
    assert path.read_bytes() == b"\x00old"
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    write_bytes(path, b"kept")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"kept"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(OSError, match="No such file"):
        write_bytes(tmp_path / "nowhere" / "file", b"new")
