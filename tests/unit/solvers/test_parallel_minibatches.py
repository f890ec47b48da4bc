"""Minibatches shared out between processes (torchrun, gloo): the results of one process with the whole batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import rows
from test_parallel import LIMIT, SCRIPT, TORCHRUN

import nncompress.experiment
from nncompress import parallel
from nncompress.cli import main
from nncompress.errors import NNCompressError, Unsupported
from nncompress.solvers.shared_norm import shared_norms

NET = ["model=resnet20", "model.depth=8", "model.width=0.25", "precision=float64", "augmentation=crop_flip"]
DATA = ["dataset=digits", "dataset.train_size=150", "dataset.test_size=40", "augmentation.parts.0.padding=1"]
SLIM = ["solver.lam=1.1", "solver.beta=5", "solver.curvature=2"]
KINDS = {
    "slimming": ["solver=slimming", *NET, *DATA, *SLIM, "solver.num_steps=8"],
    "network_slimming": ["solver=network_slimming", *NET, *DATA, "solver.num_steps=4", "solver.fine_tune=2"],
    "frank_wolfe": ["solver=frank_wolfe", "constraint=spectral_k_support", *NET, *DATA, "solver.num_steps=3"],
    "sgd": ["solver=sgd", *NET, *DATA, "solver.num_steps=3", "solver.average=0.9", "solver.mixup=0.4"],
}
BATCH = {1: "solver.batch_size=32", 2: "solver.batch_size=16"}  # the last batch, of 22, is smaller


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process (folder one) and then of two (folder two), which go on with one of the former too."""
    folder = tmp_path_factory.mktemp("minibatches")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(nncompress.experiment, "write_run_report", lambda folder: [])
        alone = {**KINDS, "half": [*KINDS["slimming"], "solver.num_steps=2"]}
        for name, words in alone.items():
            assert main(["train", *words, BATCH[1], f"hydra.run.dir=one/{name}"]) == 0
        jobs: list[list[str]] = [[*words, BATCH[2], f"hydra.run.dir=two/{name}"] for name, words in KINDS.items()]
        jobs.append(["resume=one/half", "solver.num_steps=3"])
        (folder / "script.py").write_text(SCRIPT)
        ran = subprocess.run(
            [*TORCHRUN, "script.py", json.dumps(jobs)], capture_output=True, text=True, timeout=LIMIT, cwd=folder
        )
        assert ran.returncode == 0, ran.stderr
        assert [json.loads(Path(f"codes{rank}.json").read_text()) for rank in range(2)] == [[0] * len(jobs)] * 2
    torch.use_deterministic_algorithms(False)
    return folder


def assert_same(one: Path, two: Path) -> None:
    expected, found = rows(one), rows(two)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for before, row in zip(expected, found, strict=True):
        for key, value in row.items():
            assert value == pytest.approx(before[key], rel=1e-7, abs=1e-10), f"{key} at step {row['step']}"


def tensors(packed: Any) -> list[torch.Tensor]:
    parts = packed.values() if isinstance(packed, dict) else packed if isinstance(packed, list) else []
    return [packed] if isinstance(packed, torch.Tensor) else [t for part in parts for t in tensors(part)]


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_train_as_one_with_twice_the_batch(together: Path, name: str) -> None:
    assert_same(together / "one" / name, together / "two" / name)
    states = [
        torch.load(together / n / name / "checkpoints/last.pt", weights_only=True)["state"] for n in ("one", "two")
    ]
    for a, b in zip(*map(tensors, states), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)


def test_both_processes_of_slimming_are_left_with_the_channels_of_one(together: Path) -> None:
    last = [rows(together / n / "slimming")[-1] for n in ("one", "two")]
    assert last[0]["channels/kept"] == last[1]["channels/kept"] < last[0]["channels/total"]


def test_a_run_of_one_process_is_taken_up_by_two(together: Path) -> None:
    found = rows(together / "one" / "half")
    assert [row["step"] for row in found] == [0, 1, 2, 3]
    assert found[-1]["objective"] < found[-2]["objective"]


@pytest.mark.parametrize("settings", [{"momentum": None}, {"track_running_stats": False}])
def test_a_batch_norm_that_processes_cannot_share_is_refused(monkeypatch, settings):
    monkeypatch.setattr(parallel, "size", lambda: 2)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2, **settings))
    with pytest.raises(Unsupported, match="batch norms with running statistics and a momentum, found 1 with"):
        shared_norms(network)


def test_processes_that_differ_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(found: list[str], own: str) -> None:
        found[:] = [own, "0" * 64]

    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_gather_object", gathered)
    with pytest.raises(NNCompressError, match="all processes must hold the same network, found hashes"):
        parallel.check_alike([torch.ones(3)], "network")
