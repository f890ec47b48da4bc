"""What kills, full disks, folders that cannot be written, damaged files and a second process leave: nothing lost."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import rows, status, summary, train

from nncompress import experiment
from nncompress.cli import main
from nncompress.errors import CheckpointError
from nncompress.records import Recorder, read_run, replace_bytes
from nncompress.run_folder import claimed
from nncompress.whole import whole

pytestmark = pytest.mark.filterwarnings("ignore:This process .* multi-threaded, use of fork:DeprecationWarning")

NNBCD = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16]", "solver.num_steps=6", "checkpoint_every=1"]
LC = [
    *("solver=lc", "model=mlp", "model.widths=[8]", "compression=codebook", "solver.num_steps=4", "solver.epochs=1"),
    *("reference_training.num_steps=3", "checkpoint_every=1"),
]


@pytest.fixture(autouse=True)
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tables and plots, most of so small a run's time, but where they are asked for."""
    if "reports" not in request.fixturenames:
        monkeypatch.setattr(experiment, "write_run_report", lambda folder: [])


@pytest.fixture
def reports() -> None:
    """The tables and plots of runs."""


def in_child(work: Callable[[], int]) -> int:
    """The process that does the work: a copy of this one, which has all modules loaded."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            code = work()
        finally:
            os._exit(code)
    return child


def killed(work: Callable[[], int], seconds: float) -> bool:
    """Do the work in a process that is killed after so many seconds; whether it was still at it."""
    child = in_child(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(code) == 0
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def start(words: list[str], folder: Path) -> Callable[[], int]:
    """Begin the run in the folder, or go on with what is there."""
    own = f"reference_dir={folder.with_name(folder.name + '-references')}"
    again = (folder / "config.yaml").exists()
    return lambda: main(["train", f"resume={folder}"]) if again else train(folder, *words, own)


def left(folder: Path) -> tuple[object, ...]:
    """All that a finished run is to agree in with an unbroken one."""
    network = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    tables = sorted(path.name for path in folder.glob("*s/*.*") if "checkpoint" not in str(path))
    found = {key: value for key, value in summary(folder).items() if key != "reference"}  # a folder
    return found, rows(folder), network, tables, status(folder)["status"], list(folder.rglob("*.tmp"))


def survives(words: list[str], kills: int, tmp_path: Path, seed: int) -> int:
    """Run after run, each killed at random moments until `kills` are done; how many runs that took."""
    whole = tmp_path / "whole"
    assert start(words, whole)() == 0  # in this process: what is imported late is in all copies of it
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(in_child(start(words, tmp_path / "timed")), 0)[1]) == 0
    life = time.monotonic() - began
    chance = random.Random(seed)
    done, runs = 0, 0
    while done < kills:
        folder = tmp_path / f"run{runs}"
        for _ in range(chance.randint(1, 6)):
            done += killed(start(words, folder), chance.uniform(0, life))
        assert os.waitstatus_to_exitcode(os.waitpid(in_child(start(words, folder)), 0)[1]) == 0
        assert left(folder) == left(whole)
        runs += 1
    return runs


@pytest.mark.parametrize(("words", "kills"), [(NNBCD, 6), (LC, 4)], ids=["nnbcd", "lc"])
def test_runs_that_are_killed_end_as_an_unbroken_one(words: list[str], kills: int, tmp_path: Path) -> None:
    assert survives(words, kills, tmp_path, seed=0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [NNBCD, LC], ids=["nnbcd", "lc"])
def test_fifty_kills_of_runs_and_their_reports_lose_nothing(words: list[str], tmp_path: Path, reports: None) -> None:
    assert survives(words, 50, tmp_path, seed=1) > 0


def test_a_report_that_is_killed_leaves_no_half_file(tmp_path: Path, reports: None) -> None:
    assert train(tmp_path / "run", *NNBCD) == 0
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*s/*.*") if path.suffix != ".pt"}
    chance = random.Random(0)
    for _ in range(4):
        killed(lambda: main(["report", str(tmp_path / "run")]), chance.uniform(0, 1.5))
        assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("left", [("status.json", "records.jsonl"), ()], ids=["status and records", "config alone"])
def test_a_run_without_a_checkpoint_is_resumed_from_its_start(tmp_path: Path, left: tuple[str, ...]) -> None:
    """With its configuration alone where it was killed between that file and its status."""
    assert train(tmp_path / "whole", *NNBCD) == 0
    broken = tmp_path / "broken"
    assert train(broken, *NNBCD) == 0
    (broken / "checkpoints" / "last.pt").unlink()
    for name in {"summary.json", "status.json", "records.jsonl"}.difference(left):
        (broken / name).unlink()
    assert main(["train", f"resume={broken}"]) == 0
    assert rows(broken) == rows(tmp_path / "whole")
    assert summary(broken) == summary(tmp_path / "whole")


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(folder, *NNBCD, "solver.num_steps=2") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.log"}
    capsys.readouterr()
    with claimed(folder, resumed=True):
        assert main(["train", f"resume={folder}", "solver.num_steps=4"]) == 2
    assert "found another process running in" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert main(["train", f"resume={folder}", "solver.num_steps=4"]) == 0
    assert len(rows(folder)) == 5


def test_a_damaged_line_before_the_checkpoint_is_named_and_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train(folder, *NNBCD) == 0
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:30], *lines[3:]]) + "\n")
    assert len(read_run(folder).rows) == len(lines) - 1
    capsys.readouterr()
    assert main(["train", f"resume={folder}", "solver.num_steps=8"]) == 1
    told = capsys.readouterr()
    assert "line 3: ignored, it is damaged" in told.out + told.err
    assert "records.jsonl, line 3 is damaged (no JSON row), and the checkpoint was written after it" in told.err
    assert len(path.read_text().splitlines()) == len(lines)
    assert status(folder)["status"] == "done"
    path.write_text("\n".join(lines) + "\n")
    assert main(["train", f"resume={folder}", "solver.num_steps=8"]) == 0


def test_rows_behind_the_checkpoint_do_not_stand_in_for_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n{"step": 3}\n{"step": 4}\n')
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"records.jsonl, line 2 is damaged"):
        Recorder(path, keep=3)
    assert path.read_bytes() == before
    with Recorder(path, keep=1) as recorder:
        assert recorder.count == 1
    assert path.read_text() == '{"step": 0}\n'


@pytest.mark.parametrize(
    "words",
    [[*NNBCD, "solver.tolerance=0.99"], [*LC, "solver.tolerance=0.9", "solver.num_steps=6"]],
    ids=["nnbcd", "lc"],
)
def test_a_run_that_ended_by_its_tolerance_stays_so_when_it_is_resumed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path / "whole", *words) == 0
    assert len(rows(tmp_path / "whole")) < 6
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("summary.json", "model/model.json"):  # killed behind its last checkpoint
        (tmp_path / "killed" / name).unlink()
    assert main(["train", f"resume={tmp_path / 'killed'}"]) == 0
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


def test_what_killed_processes_left_is_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(folder, *NNBCD, "solver.num_steps=1") == 0
    for name in (".config.yaml.1.tmp", "tables/.accuracy.csv.2.tmp", "export/.onnx.3.tmp/onnx/half"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("half")
    assert main(["train", f"resume={folder}"]) == 0
    assert [path.name for path in folder.rglob(".*.tmp")] == [".onnx.3.tmp"]  # an export may be at work there
    assert main(["export", str(folder), "--output", str(folder / "export/safetensors")]) == 0
    assert not list(folder.rglob(".*.tmp"))
    with whole(folder / "export/a", "") as one:
        one.write_text("")
        with whole(folder / "export/b", "") as other:
            other.write_text("")
    assert {path.name for path in (folder / "export").iterdir()} == {"safetensors", "a", "b"}


def test_a_file_that_is_written_while_a_run_begins_beside_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def begins(file: int) -> None:
        sync(file)
        with claimed(tmp_path, resumed=True):
            pass

    monkeypatch.setattr(os, "fsync", begins)
    replace_bytes(tmp_path / "table.csv", b"1,2")
    assert (tmp_path / "table.csv").read_bytes() == b"1,2"
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "run.lock"}


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path / "whole", *NNBCD) == 0
    clock = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert train(tmp_path / "back", *NNBCD) == 0
    assert rows(tmp_path / "back") == rows(tmp_path / "whole")
    seconds = read_run(tmp_path / "back").rows["seconds"]
    assert seconds.is_monotonic_increasing
    assert 0 <= seconds.iloc[-1] < 600


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run", *NNBCD) == 1
    assert "cannot write the output folder" in capsys.readouterr().err


@pytest.fixture
def mount(tmp_path: Path) -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Run in a small file system of its own, which is gone behind it."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")

    def command(script: str) -> subprocess.CompletedProcess[str]:
        words = ["unshare", "-Urm", "sh", "-c", script]
        ended = subprocess.run(
            words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ROOT}
        )
        if ended.returncode == 99 or "unshare" in ended.stderr[:20]:
            pytest.skip(f"a file system cannot be mounted here: {ended.stderr.strip()}")
        return ended

    return command


ROOT = str(Path(__file__).parents[2])


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, mount: Callable[[str], "subprocess.CompletedProcess[str]"], reports: None
) -> None:
    place, kept = tmp_path / "small", tmp_path / "kept"
    place.mkdir()
    words = " ".join([*NNBCD, "model.widths=[64]"])
    script = f"""
mount -t tmpfs -o size=400k none {place} || exit 99
{sys.executable} -m nncompress train {words} hydra.run.dir={place}/run
code=$?
cp -r {place}/run {kept}
exit $code
"""
    ended = mount(script)
    assert ended.returncode == 1
    assert f"the disk that holds {place}/run is full; free space" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert status(kept)["status"] in ("failed", "running")  # no room for the new one
    assert main(["train", f"resume={kept}"]) == 0
    assert train(tmp_path / "whole", *words.split()) == 0
    assert left(kept) == left(tmp_path / "whole")


def test_a_read_only_folder_is_told(tmp_path: Path, mount: Callable[[str], "subprocess.CompletedProcess[str]"]) -> None:
    place = tmp_path / "there"
    place.mkdir()
    words = " ".join(NNBCD)
    ended = mount(
        f"mount -t tmpfs -o ro none {place} || exit 99; "
        f"exec {sys.executable} -m nncompress train {words} hydra.run.dir={place}/run"
    )
    assert ended.returncode == 1
    assert "cannot write the output folder" in ended.stderr
    assert "Read-only file system" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["train resume=", "report "])
def test_a_run_in_a_read_only_folder_stays_as_it_is(
    command: str, tmp_path: Path, mount: Callable[[str], "subprocess.CompletedProcess[str]"]
) -> None:
    folder = tmp_path / "run"
    assert train(folder, *NNBCD, "solver.num_steps=1") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = mount(
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} || exit 99; "
        f"exec {sys.executable} -m nncompress {command}{folder}"
    )
    assert ended.returncode == 1
    assert "Read-only file system" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
