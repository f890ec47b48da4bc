"""Runs of two processes: as torchrun starts them, or in two forks of this process, which has all loaded that they need.

Forks cost a tenth; they get the environment that torchrun would give them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from runs import rows

from nncompress import parallel
from nncompress.errors import NNCompressError
from nncompress.solvers.nnbcd.state import NNBCDState
from nncompress.sweeps import jobs
from nncompress.sweeps.saved import read_saved, with_overrides

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
]
LIMIT = 600
"""Seconds after which something hangs."""
COMMAND = """
import sys
from nncompress.sweeps import jobs
from nncompress.cli.main import main
jobs.write_report = lambda folder: None
raise SystemExit(main(["train", *sys.argv[1:]]))
"""
"""`nncompress train` without tables and plots, which take longer than the run."""


def under_torchrun(folder: Path, words: Sequence[str]) -> "subprocess.Popen[str]":
    """`nncompress train` with these words in two processes of torchrun, in this folder."""
    (folder / "command.py").write_text(COMMAND)
    command = [*TORCHRUN, "command.py", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)


def forked(folder: Path, work: Callable[[], Any]) -> tuple[list[Any], str]:
    """What the work returns (JSON) in process 0 and in process 1, and all that they say, 0 first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(folder, work, rank, port) for rank in range(2)]
    end = time.monotonic() + LIMIT
    waiting, codes = set(children), []
    while waiting and time.monotonic() < end and not any(codes):
        for child in list(waiting):
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                waiting.remove(child)
                codes.append(code)
        time.sleep(0.01)
    for child in waiting:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = "".join((folder / f"said{rank}").read_text() for rank in range(2))
    assert codes == [0, 0], said
    return [json.loads((folder / f"returned{rank}.json").read_text()) for rank in range(2)], said


def _fork(folder: Path, work: Callable[[], Any], rank: int, port: int) -> int:
    """The process of this rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads
        child = os.fork()
    if child:
        return child
    try:
        with (folder / f"said{rank}").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = said
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            parallel.start()
            (folder / f"returned{rank}.json").write_text(json.dumps(work()))
            said.flush()
            os._exit(0)
    except BaseException:
        import traceback

        with (folder / f"said{rank}").open("a") as said:
            traceback.print_exc(file=said)
    finally:
        os._exit(1)


def run(folder: Path, cfg: DictConfig) -> str | None:
    """Do the run of this configuration in the folder; what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    return _told(jobs.attempt(cfg.copy(), folder))


def resume(folder: Path, *words: str) -> str | None:
    """Go on with the run in the folder; what went wrong."""
    return _told(jobs.attempt(with_overrides(read_saved(folder), [*words, f"resume={folder}"]), folder))


def _told(failure: NNCompressError | None) -> str | None:
    return None if failure is None else str(failure)


def assert_same_records(one: Path, two: Path) -> None:
    """Every figure of every row within 1e-8 of its size; what is left of a decrease, of the objective's."""
    expected, found = rows(one), rows(two)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for before, row in zip(expected, found, strict=True):
        rounding = 1e-8 * abs(before["objective"])
        for key, value in row.items():
            absolute = rounding if key.startswith("decrease/") else 1e-14
            assert value == pytest.approx(before[key], rel=1e-8, abs=absolute), f"{key} at step {row['step']}"


def assert_same_state(one: Path, two: Path) -> None:
    """All blocks of NN-BCD of all samples within 1e-8."""
    states = [torch.load(f / "checkpoints" / "last.pt", weights_only=True)["state"] for f in (one, two)]
    for name in ("W", "b", "U", "V", "products", "T", "lam", "ended"):
        one_, two_ = (state[NNBCDState._fields.index(name)] for state in states)
        torch.testing.assert_close(_tensors(two_), _tensors(one_), rtol=1e-8, atol=1e-10)


def _tensors(packed: Any) -> list[torch.Tensor]:
    if isinstance(packed, list):
        return [tensor for part in packed for tensor in _tensors(part)]
    return [] if packed is None else [packed]
