"""Runs from the command line, and what they leave."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nncompress.cli import main
from nncompress.compact.artefact import _checksum


def train(folder: Path, *words: str) -> int:
    """The exit code of `nncompress train` with these words, in this folder."""
    try:
        return main(["train", *words, f"hydra.run.dir={folder}"])
    except SystemExit as stop:
        return int(stop.code or 0)


@contextmanager
def struck(solver: type[Any], at: int, number: int = signal.SIGINT) -> Iterator[None]:
    """Inside, the process gets a signal as the solver begins its step after step `at`."""
    step = solver.step

    def strike(self: Any, problem: Any, state: Any) -> Any:
        if state.k == at:
            signal.raise_signal(number)
        return step(self, problem, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "step", strike)
        yield


def rows(folder: Path) -> list[dict[str, float]]:
    """The records without their times."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


def summary(folder: Path) -> dict[str, object]:
    """The summary without times and memory."""
    content = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in content.items() if not k.startswith(("seconds", "memory"))}


def status(folder: Path) -> dict[str, object]:
    """How the run ended."""
    return dict(json.loads((folder / "status.json").read_text()))


def resign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description of the compact network in a folder, and its checksum with it."""
    path = folder / "model.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about | {"checksum": _checksum(folder, about)}))


def assert_refused(folder: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The words end with this code and one sentence, which the status file keeps."""
    assert train(folder, *words) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert status(folder)["status"] in ("failed", "unsupported", "diverged")
