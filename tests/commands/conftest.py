"""A stand-in for runs, where a test is about the command around them."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from omegaconf import DictConfig
from runs import save_config

from nncompress.errors import Unsupported
from nncompress.sweeps import jobs


def stand_in_run(cfg: DictConfig, folder: Path) -> None:
    """A run that is done at once; some seeds end otherwise."""
    save_config(cfg, folder)
    status = {"status": "done", "reason": None, "traceback": None, "step": cfg.solver.num_steps}
    try:
        if cfg.seed == 1:
            raise Unsupported("this network is not a chain")
        if cfg.seed == 2:
            raise ZeroDivisionError("division by zero")
        if cfg.seed == 3:
            raise SystemExit(130)
        if cfg.seed == 6:
            signal.raise_signal(signal.SIGTERM)
        if cfg.seed == 8:
            raise KeyboardInterrupt
    except BaseException as error:
        logging.getLogger("nncompress.experiment.run").info("ended", exc_info=error)
        status |= {"status": "failed", "reason": str(error)}
        raise
    finally:
        (folder / "status.json").write_text(json.dumps(status))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, the stand-in for runs, and the process as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(jobs, "prepare", lambda cfg, folder: partial(stand_in_run, cfg, folder))
    monkeypatch.setattr(jobs, "write_report", lambda folder: None)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before


@pytest.fixture
def sweep_report(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a sweep's report was asked for; the report counts their statuses."""
    asked: list[Path] = []

    def write_sweep_report(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        found = pd.DataFrame([json.loads(path.read_text()) for path in folder.glob("*/status.json")])
        failed = found[found["status"] != "done"]
        return SimpleNamespace(paths=[folder / "tables/sweep.md"], done=len(found) - len(failed), failed=failed)

    monkeypatch.setitem(
        sys.modules, "nncompress.report", SimpleNamespace(write_sweep_report=write_sweep_report, is_reported=bool)
    )
    return asked
