"""Records: rows on disk survive kills and are read back as written; a line that is lost, changed or moved is told."""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from cases import case

from nncompress.errors import CheckpointError
from nncompress.results.rows import Mark, Recorder, read_last_row, read_rows

OLDER = "".join(f'{{"step": {step}}}\n' for step in range(5))
"""As an older version wrote them."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


def write_rows(path: Path, n: int) -> Mark:
    with Recorder(path) as recorder:
        for step in range(n):
            recorder.write({"step": step, "objective": 10.0 / (step + 1)})
    return recorder.mark


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))


def steps(path: Path) -> list[float]:
    return list(read_rows(path)["step"])


# Writing


def test_a_row_is_one_flat_json_line_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    with Recorder(path) as recorder:
        recorder.write({"step": np.int64(1), "objective": 0.1, "accuracy/test": np.float32(0.5), "gap": None})
        row = json.loads(path.read_text())
        check = row.pop("check")
        assert row == {"step": 1, "objective": 0.1, "accuracy/test": 0.5, "gap": None}
        assert recorder.mark == (1, int(check, 16))
    assert path.read_text().endswith("\n")


def test_a_check_continues_that_of_the_row_before_over_the_bytes_of_the_line(path: Path) -> None:
    mark = write_rows(path, 2)
    check = 0
    for line in lines(path):
        body, end = line.split(', "check": ')
        check = zlib.crc32(body.encode(), check)
        assert end == f'"{check:08x}"}}'
    assert mark == (2, check)


def test_a_number_that_is_not_finite_is_written_as_null_and_read_as_nan(path: Path) -> None:
    values = (float("nan"), float("inf"), -float("inf"), np.float64("nan"))
    with Recorder(path) as recorder:
        for step, value in enumerate(values):
            recorder.write({"step": step, "objective": value})
    assert path.read_text().count('"objective": null') == 4
    assert np.isnan(read_rows(path)["objective"]).all()


def test_floats_come_back_bit_for_bit(path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    with Recorder(path) as recorder:
        for step, value in enumerate(values):
            recorder.write({"step": step, "objective": value})
    assert (read_rows(path)["objective"].to_numpy() == values).all()


def test_the_checks_are_no_column_and_a_figure_of_that_name_is(path: Path) -> None:
    write_rows(path, 1)
    assert list(read_rows(path)) == ["step", "objective"]
    with Recorder(path) as recorder:
        recorder.write({"step": 0, "check": 4.5})
    assert list(read_rows(path)["check"]) == [4.5]


@pytest.mark.slow
def test_rows_survive_the_process_being_killed(path: Path) -> None:
    code = (
        "import os, sys, pathlib; from nncompress.results.rows import Recorder\n"
        "r = Recorder(pathlib.Path(sys.argv[1])); r.write({'step': 0}); r.write({'step': 1}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert steps(path) == [0, 1]


def test_sync_and_a_second_close_are_harmless(path: Path) -> None:
    recorder = Recorder(path)
    recorder.write({"step": 0})
    recorder.sync()
    recorder.close()
    recorder.close()
    assert steps(path) == [0]


# Resuming


def test_resuming_keeps_exactly_the_rows_before_the_checkpoint(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark = write_rows(path, 3)
    three = path.read_bytes()
    write_rows(path, 5)
    with path.open("a") as file:
        file.write('{"step": 5, "obj')
    caplog.set_level("INFO")
    caplog.clear()
    with Recorder(path, mark) as recorder:
        assert recorder.mark == mark
        assert path.read_bytes() == three
        recorder.write({"step": 30})
    assert steps(path) == [0, 1, 2, 30]
    assert [file.name for file in path.parent.iterdir()] == ["records.jsonl"]
    assert caplog.messages == [
        f"{path}, line 6: ignored, the run ended while writing it.",
        "2 rows after the checkpoint are computed again",
    ]


def test_rows_that_are_repeated_moved_or_foreign_are_put_right_on_resuming(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = write_rows(path, 5)
    whole, (a, b, c, d, e) = path.read_bytes(), lines(path)
    for damaged, told in (
        ([a, b, b, c, d, e], "line 3: ignored, line 2 is of step 1 too"),
        ([a, b, c, d, e, b, a], "line 6: ignored, line 2 is of step 1 too; line 7: ignored, line 1 is of step 0 too"),
        ([a, c, b, d, e], "line 3: moved, it belongs before line 2"),
        ([e, a, b, c, d], "line 2: moved, it belongs before line 1"),
        ([a, b.replace("5.0", "6.0"), b, c, d, e], "line 2: ignored, line 3 is of step 1 too"),
        ([a, "x", b, c, d, e], "line 2: ignored, it is damaged (no JSON row)"),
        ([a, "", b + "  ", c, d, e], ""),
    ):
        write_lines(path, damaged)
        caplog.clear()
        with case(damaged=damaged):
            Recorder(path, mark).close()
            assert path.read_bytes() == whole
            assert caplog.messages == ([f"{path}, {told}."] if told else [])


def test_rows_that_cannot_be_put_right_are_refused_and_left_as_they_are(path: Path) -> None:
    mark, (a, b, c, d, e) = write_rows(path, 5), lines(path)
    changed = "not to be trusted, it was changed or a row before it is missing"
    for damaged, told in (
        ([a, b, d, e], f"found 4 (line 3: {changed})"),
        ([b, c, d, e], f"found 4 (line 1: {changed})"),
        ([a, b, c, d], "found 4;"),
        ([], "found 0;"),
        ([a, b, c.replace("3.33", "3.34"), d, e], f"found others (line 3: {changed})"),
        ([a, b, c[:30], d, e], f"found 4 (line 3: ignored, it is damaged (no JSON row); line 4: {changed})"),
        ([a, b, c, d, e.replace("2.0", "2.5")], f"found others (line 5: {changed})"),
        (OLDER.splitlines(), "found others;"),
    ):
        write_lines(path, damaged)
        before = path.read_bytes()
        with case(damaged=damaged):
            sentence = f"{path} must hold the 5 rows that the checkpoint was written after, {told}"
            with pytest.raises(CheckpointError, match=re.escape(sentence)):
                Recorder(path, mark)
            assert path.read_bytes() == before


def test_the_records_of_another_run_are_refused(path: Path) -> None:
    mark = write_rows(path, 2)
    with Recorder(path) as recorder:
        recorder.write({"step": 0})
        recorder.write({"step": 1})
    with pytest.raises(CheckpointError, match="found others;"):
        Recorder(path, mark)


def test_rows_behind_the_checkpoint_do_not_stand_in_for_a_damaged_one(path: Path) -> None:
    mark = write_rows(path, 3)
    write_rows(path, 5)
    a, b, *rest = lines(path)
    write_lines(path, [a, b[:5], *rest])
    with pytest.raises(CheckpointError, match="line 2: ignored, it is damaged"):
        Recorder(path, mark)


def test_a_folder_in_the_place_of_the_records_is_refused_and_read_as_no_rows(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"the records need a file, .* cannot be read \(Is a directory\)"):
        Recorder(path)
    assert steps(path) == []
    assert caplog.messages == [f"{path}: ignored, it cannot be read (Is a directory)."]
    assert read_last_row(path) == {}


# Reading


def test_rows_that_are_not_there_are_none(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(read_rows(path)) == ["step", "seconds"]
    path.touch()
    assert len(read_rows(path)) == 0
    assert not caplog.messages


def test_a_half_written_last_line_is_ignored_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(path, 3)
    with path.open("a") as file:
        file.write('{"step": 3, "objec')
    assert steps(path) == [0, 1, 2]
    assert caplog.messages == [f"{path}, line 4: ignored, the run ended while writing it."]


def test_steps_rise_whatever_was_done_to_the_lines_and_each_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(path, 4)
    a, b, c, d = lines(path)
    changed = "not to be trusted, it was changed or a row before it is missing"
    for damaged, known, told in (
        ([a, b, b, c, d], [0, 1, 2, 3], "line 3: ignored, line 2 is of step 1 too"),
        ([a, c, b, d], [0, 1, 2, 3], "line 3: moved, it belongs before line 2"),
        ([a, c, d], [0, 2, 3], f"line 2: {changed}"),
        ([a, b.replace("5.0", "6.0"), c, d], [0, 1, 2, 3], f"line 2: {changed}"),
        ([a, b.replace("5.0", "6.0"), b, c, d], [0, 1, 2, 3], "line 2: ignored, line 3 is of step 1 too"),
        ([a, b[:9], c, d], [0, 2, 3], f"line 2: ignored, it is damaged (no JSON row); line 3: {changed}"),
        ([a, '{"step": 1, "objective": 5.0}', c, d], [0, 1, 2, 3], f"line 2: {changed}; line 3: {changed}"),
        ([d] * 8, [3], f"line 1: {changed}; " + "; ".join(
            f"line {n}: ignored, line 1 is of step 3 too" for n in range(2, 6)
        ) + "; and 3 lines more"),
    ):  # fmt: skip
        write_lines(path, damaged)
        caplog.clear()
        with case(damaged=damaged):
            assert steps(path) == known
            assert caplog.messages == [f"{path}, {told}."]


def test_what_is_no_flat_row_of_numbers_at_a_step_is_damaged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for text in (
        "[1]", "1", "null", "{}", '{"objective": 1}', '{"step": null}', '{"step": "1"}', '{"step": -1}',
        '{"step": 1e99}', '{"step": 0.5}', '{"step": NaN}', '{"step": true}', '{"step": 1, "a": "x"}',
        '{"step": 1, "a": [1]}',
        '{"step": 1, "a": {}}', '{"step": 1, "a": ' + "[" * 9999, '{"step": 1, "check": "0000"}',
    ):  # fmt: skip
        path.write_text(f"{text}\n")
        caplog.clear()
        with case(text=text):
            assert steps(path) == []
            assert caplog.messages == [f"{path}, line 1: ignored, it is damaged (no JSON row)."]


def test_rows_without_checks_need_rising_steps_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(OLDER)
    assert steps(path) == [0, 1, 2, 3, 4]
    assert not caplog.messages
    a, b, c, *_ = OLDER.splitlines()
    write_lines(path, [b, a, c, c])
    assert steps(path) == [0, 1, 2]
    assert caplog.messages == [
        f"{path}, line 2: moved, it belongs before line 1; line 4: ignored, line 3 is of step 2 too."
    ]


def test_the_last_row_is_that_of_the_last_step_whatever_is_behind_it(path: Path) -> None:
    assert read_last_row(path) == {}
    write_rows(path, 4)
    *_, a, b = lines(path)
    row = {"step": 3, "objective": 2.5}
    for behind in ([], [a], [b], ["x"], ["x" * 100_000], [a, b]):
        with case(behind=behind):
            write_lines(path, [*lines(path)[:4], *behind])
            assert read_last_row(path) == row
    for half in ("{", b[:30], "x" * 100_000):
        write_lines(path, lines(path)[:4])
        with case(half=half), path.open("a") as file:
            file.write(half)
            file.flush()
            assert read_last_row(path) == row
