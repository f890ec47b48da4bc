"""Two thousand mutated compact networks: no code runs, nothing but our errors is raised, memory stays in proportion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostile_artefacts
import pytest
from artefact_cases import F32, saved
from golden import Golden
from problems import problem_of

pytestmark = pytest.mark.slow

OPTIONS = (
    "additive",
    "codebook",
    "cp",
    "group_l0",
    "l0",
    "low_rank",
    "n_m",
    "scaled_ternary",
    "tt",
    "tt_matrix",
    "tucker",
    "uniform",
)
EVIL = "open('struck', 'w').close()\n"


def test_mutated_artefacts_are_refused_or_harmless(golden: Golden, tmp_path: Path) -> None:
    for option in OPTIONS:
        saved(tmp_path / "sources" / option, problem_of(option, F32))
    shutil.copytree(golden.kept("slimming") / "model", tmp_path / "sources" / "slimmed")
    work = tmp_path / "work"
    work.mkdir()
    (work / "evil.py").write_text(EVIL)
    sources = sorted(map(str, (tmp_path / "sources").iterdir()))
    script = [sys.executable, hostile_artefacts.__file__, "2000", "0"]
    done = subprocess.run(
        [*script, *sources], cwd=work, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(work), *sys.path])},
    )  # fmt: skip
    *wrong, outcomes = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert not wrong
    assert sum(json.loads(outcomes).values()) == 2000
    assert not (work / "struck").exists()
