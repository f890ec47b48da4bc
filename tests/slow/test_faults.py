"""Kills, a full disk and folders that cannot be written, for real: nothing is lost, nothing half written."""

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
from cases import case
from golden import Golden
from problems import ROOT
from runs import rows, status, summary, train

from nncompress.cli.main import main
from nncompress.sweeps import jobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process .* multi-threaded, use of fork:DeprecationWarning"),
]

SMALL = ["dataset.train_size=200", "dataset.test_size=50", "checkpoint_every=1"]
NNBCD = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16]", "solver.num_steps=6", *SMALL]
LC = [
    *("solver=lc", "model=mlp", "model.widths=[8]", "compression=codebook", "solver.num_steps=4", "solver.epochs=1"),
    *("reference_training.num_steps=3", *SMALL),
]
KILLS = 8
Command = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tables and plots, most of so small a run's time, but where they are asked for."""
    if "reports" not in request.fixturenames:
        monkeypatch.setattr(jobs, "write_report", lambda folder: None)


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


def seconds_of(work: Callable[[], int]) -> float:
    """How long the work takes in a process of its own, where it must succeed."""
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(in_child(work), 0)[1]) == 0
    return time.monotonic() - began


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


@pytest.mark.parametrize("words", [NNBCD, LC], ids=["nnbcd", "lc"])
def test_a_run_that_is_killed_ends_with_its_report_as_an_unbroken_one(
    words: list[str], tmp_path: Path, reports: None
) -> None:
    """A kill in each eighth of the run's time, from its first file to its last plot; those in a row hit one run."""
    whole = tmp_path / "whole"
    assert start(words, whole)() == 0  # in this process: what is imported late is in all copies of it
    life = seconds_of(start(words, tmp_path / "timed"))
    chance = random.Random(0)
    moments = [life * (part + chance.random()) / KILLS for part in range(KILLS)]
    chance.shuffle(moments)
    hit = 0
    for number in range(0, KILLS, 2):
        folder = tmp_path / f"run{number}"
        for moment in moments[number : number + 2]:
            hit += killed(start(words, folder), moment)
        seconds_of(start(words, folder))
        with case(moments=moments[number : number + 2]):
            assert left(folder) == left(whole)
    assert hit


def test_a_report_that_is_killed_leaves_no_half_file(golden: Golden, tmp_path: Path, reports: None) -> None:
    run = golden.copied("nnbcd", tmp_path / "run")
    assert main(["report", str(run)]) == 0
    files = {path: path.read_bytes() for path in run.glob("*s/*.*") if path.suffix != ".pt"}
    assert len(files) > 3
    life = seconds_of(lambda: main(["report", str(run)]))
    for part in (0.2, 0.5, 0.8):
        killed(lambda: main(["report", str(run)]), part * life)
        with case(part=part):
            assert {path: path.read_bytes() for path in files} == files


@pytest.fixture
def mount(tmp_path: Path) -> Command:
    """Run in a small file system of its own, which is gone behind it."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")

    def command(script: str) -> "subprocess.CompletedProcess[str]":
        words = ["unshare", "-Urm", "sh", "-c", script]
        ended = subprocess.run(
            words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        if ended.returncode == 99 or "unshare" in ended.stderr[:20]:
            pytest.skip(f"a file system cannot be mounted here: {ended.stderr.strip()}")
        return ended

    return command


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, mount: Command, reports: None
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


def test_a_read_only_folder_is_told(tmp_path: Path, mount: Command) -> None:
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
    command: str, golden: Golden, tmp_path: Path, mount: Command
) -> None:
    folder = golden.copied("nnbcd", tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = mount(
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} || exit 99; "
        f"exec {sys.executable} -m nncompress {command}{folder}"
    )
    assert ended.returncode == 1
    assert "Read-only file system" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
