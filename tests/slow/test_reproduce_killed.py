"""A paper that is killed in the middle."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import undrawn

from nncompress.cli.main import main

pytestmark = pytest.mark.slow


def test_a_paper_killed_in_the_middle_goes_on_and_ends_as_an_unbroken_one(
    apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    undrawn(monkeypatch)
    words = ["reproduce", "nnbcd", "--scale", "smoke", "--study", "digits", "--out"]
    assert main([*words, "whole"]) == 0
    process = subprocess.Popen([sys.executable, "-m", "nncompress", *words, "broken"])
    deadline = time.monotonic() + 300
    while len(list(Path("broken").rglob("records.jsonl"))) < 2 and process.poll() is None:  # the second job has begun
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list(Path("broken").rglob("summary.json"))) < 4
    assert main([*words, "broken"]) == 0
    tables = [pd.read_csv(Path(each, "nnbcd/smoke/tables/measured.csv")) for each in ("whole", "broken")]
    kept = [key for key in tables[0] if not key.startswith(("seconds", "memory"))]
    pd.testing.assert_frame_equal(tables[0][kept], tables[1][kept])
    assert json.loads(Path("broken/nnbcd/smoke/reproduce.json").read_text())["scale"] == "smoke"
