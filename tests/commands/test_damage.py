"""What kills, full disks, damaged files, other clocks and a second process leave of a run: nothing is lost.

Real kills and real disks: tests/slow/test_faults.py.
"""

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest
from cases import case
from golden import DIGITS, WORDS, Golden
from runs import resume, rows, run, status, summary, train

from nncompress.cli.main import main
from nncompress.errors import NNCompressError
from nncompress.files import create, hold, write_bytes
from nncompress.results.records import read_run
from nncompress.results.run_folder import claim_run

NNBCD = [*WORDS["nnbcd"], *DIGITS, "seed=3"]
LC = [
    *("solver=lc", "model=mlp", "model.widths=[8]", "compression=codebook", "solver.num_steps=6", "solver.epochs=1"),
    *("reference_training.num_steps=3", "solver.tolerance=0.9", *DIGITS),
]

pytestmark = pytest.mark.usefixtures("apart")


def left(folder: Path) -> tuple[object, ...]:
    """All that a finished run is to agree in with an unbroken one."""
    network = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    return summary(folder), rows(folder), network, status(folder)["status"], list(folder.rglob("*.tmp"))


def test_a_run_without_a_checkpoint_is_resumed_from_its_start(golden: Golden, tmp_path: Path) -> None:
    """With its configuration alone where it was killed between that file and its status."""
    for kept in (("status.json", "records.jsonl"), ()):
        broken = golden.copied("nnbcd", tmp_path / f"broken{len(kept)}")
        (broken / "checkpoints" / "last.pt").unlink()
        for name in {"summary.json", "status.json", "records.jsonl"}.difference(kept):
            (broken / name).unlink()
        resume(broken)
        with case(kept=kept):
            assert left(broken) == left(golden.kept("nnbcd"))


def test_a_second_process_is_refused_and_changes_nothing(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = golden.copied("nnbcd", tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.log"}
    with claim_run(folder, resumed=True):
        assert main(["train", f"resume={folder}", "solver.num_steps=8"]) == 2
    assert "found another process running in" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    resume(folder, "solver.num_steps=8")
    assert len(rows(folder)) == 9


def recorded(golden: Golden, tmp_path: Path) -> tuple[Path, Path, bytes, list[bytes]]:
    """A copy of a finished run: its folder, its records, what is in them, and their lines."""
    folder = golden.copied("nnbcd", tmp_path / "run")
    whole = (folder / "records.jsonl").read_bytes()
    return folder, folder / "records.jsonl", whole, whole.splitlines(keepends=True)


def test_a_line_that_is_repeated_or_moved_before_the_checkpoint_is_put_right(
    golden: Golden, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, path, whole, (a, b, c, *rest) = recorded(golden, tmp_path)
    for lines, told in (
        ([a, b, b, c, *rest], "line 3: ignored, line 2 is of step 1 too"),
        ([a, c, b, *rest], "line 3: moved, it belongs before line 2"),
    ):
        path.write_bytes(b"".join(lines))
        caplog.clear()
        resume(folder)
        with case(told=told):
            assert f"{path}, {told}." in caplog.messages
            assert path.read_bytes() == whole
            assert left(folder) == left(golden.kept("nnbcd"))


def test_a_line_that_is_missing_or_changed_before_the_checkpoint_is_named_and_nothing_is_overwritten(
    golden: Golden, tmp_path: Path
) -> None:
    folder, path, whole, (a, b, c, *rest) = recorded(golden, tmp_path)
    for lines, told in (
        ([a, c, *rest], f"found {len(rest) + 2} (line 2: "),
        ([a, b, c[:30] + b"\n", *rest], "line 3: ignored, it is damaged (no JSON row); line 4: "),
        ([a, b.replace(b'"objective": ', b'"objective": 1'), c, *rest], "found others (line 2: "),
    ):
        path.write_bytes(b"".join(lines))
        before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file() and each.name != "run.log"}
        with case(told=told):
            with pytest.raises(NNCompressError) as refusal:
                resume(folder, "solver.num_steps=8")
            assert refusal.value.exit_code == 1
            assert told in str(refusal.value)
            assert "it was changed or a row before it is missing" in str(refusal.value)
            assert {each: each.read_bytes() for each in before} == before
    path.write_bytes(whole)
    resume(folder, "solver.num_steps=8")
    assert [row["step"] for row in rows(folder)] == list(range(9))


def test_a_run_that_ended_by_its_tolerance_stays_so_when_it_is_resumed(tmp_path: Path) -> None:
    for name, words in (("nnbcd", [*NNBCD, "solver.tolerance=0.99"]), ("lc", LC)):
        folder = tmp_path / name
        run(folder, *words)
        before = left(folder)
        for gone in ("summary.json", "model/model.json"):  # killed behind its last checkpoint
            (folder / gone).unlink()
        resume(folder)
        with case(name=name):
            assert len(rows(folder)) < 6
            assert left(folder) == before


def test_what_killed_processes_left_is_taken_away(golden: Golden, tmp_path: Path) -> None:
    folder = golden.copied("sgd", tmp_path / "run")

    def leave(*names: str) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("half")

    leave(".config.yaml.1.tmp", "tables/.accuracy.csv.2.tmp", "export/.onnx.3.tmp/onnx/half", "export/.a.4.tmp/half")
    with hold(folder / "export/.onnx.3.tmp"):  # an export is at work there
        resume(folder)
        assert [path.name for path in folder.rglob(".*.tmp")] == [".onnx.3.tmp"]
    leave("export/.a.4.tmp/half")
    assert main(["export", str(folder), "--output", str(folder / "export/safetensors")]) == 0
    assert not list(folder.rglob(".*.tmp"))
    with create(folder / "export/a", "") as one:
        one.write_text("")
        with create(folder / "export/b", "") as other:
            other.write_text("")
    assert {path.name for path in (folder / "export").iterdir()} == {"safetensors", "a", "b"}


def test_a_file_that_is_written_while_a_run_begins_beside_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def begins(file: int) -> None:
        sync(file)
        with claim_run(tmp_path, resumed=True):
            pass

    monkeypatch.setattr(os, "fsync", begins)
    write_bytes(tmp_path / "table.csv", b"1,2")
    assert (tmp_path / "table.csv").read_bytes() == b"1,2"
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "run.lock"}


def test_a_clock_that_goes_backwards_changes_nothing(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = golden.kept("nnbcd")
    clock = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    run(tmp_path / "back", *NNBCD)
    assert rows(tmp_path / "back") == rows(kept)
    seconds = read_run(tmp_path / "back").rows["seconds"]
    assert seconds.is_monotonic_increasing
    assert 0 <= seconds.iloc[-1] < 600


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, calls = os.fsync, 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 6 and not os.readlink(f"/proc/self/fd/{file}").endswith("records.jsonl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    folder = tmp_path / "run"
    words = [*NNBCD, "checkpoint_every=1", f"reference_dir={golden.folder / 'references'}"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NNCompressError, match=f"the disk that holds {folder} is full"):
            run(folder, *words)
    assert status(folder)["status"] == "running"  # no room for the new one
    resume(folder)
    assert left(folder) == left(golden.kept("nnbcd"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run", *NNBCD) == 1
    assert "cannot write the output folder" in capsys.readouterr().err
