"""Minibatches shared out between two processes (gloo): the results of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import case
from runs import configuration, rows
from torchrun import forked, resume, run

from nncompress import parallel
from nncompress.errors import NNCompressError, Unsupported
from nncompress.surgery.norms import shared_norms

NET = ["model=resnet20", "model.depth=8", "model.width=0.25"]
SMALLER = ["model=vgg19", "model.layers=[1,1]", "model.width=0.1"]
DATA = ["precision=float64", "augmentation=crop_flip", "augmentation.parts.0.padding=1"]
DATA += ["dataset=digits", "dataset.train_size=54", "dataset.test_size=20"]
SLIM = ["solver.lam=4", "solver.beta=8", "solver.curvature=2"]
KINDS = {
    "slimming": ["solver=slimming", *NET, *DATA, *SLIM, "solver.num_steps=4"],
    "network_slimming": ["solver=network_slimming", *SMALLER, *DATA, "solver.num_steps=4", "solver.fine_tune=2"],
    "frank_wolfe": ["solver=frank_wolfe", "constraint=spectral_k_support", *SMALLER, *DATA, "solver.num_steps=3"],
    "sgd": ["solver=sgd", *SMALLER, *DATA, "solver.num_steps=3", "solver.average=0.9", "solver.mixup=0.4"],
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process (folder one) and then of two (folder two), which go on with one of the former too."""
    folder = tmp_path_factory.mktemp("minibatches")
    kinds = {**KINDS, "half": [*KINDS["slimming"], "solver.num_steps=2"]}
    cfgs = {name: configuration(*words) for name, words in kinds.items()}
    for name, cfg in cfgs.items():
        cfg.solver.batch_size = 20
        assert run(folder / "one" / name, cfg) is None
        cfg.solver.batch_size = 10  # the last batch, of 14, is smaller

    def work() -> list[str | None]:
        failures = [run(folder / "two" / name, cfgs[name]) for name in KINDS]
        return [*failures, resume(folder / "one" / "half", "solver.num_steps=3")]

    failures, _ = forked(folder, work)
    assert failures == [[None] * 5] * 2
    torch.set_deterministic_debug_mode("default")
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


def test_a_batch_norm_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 2)
    wrong: list[dict[str, Any]] = [{"momentum": None}, {"track_running_stats": False}]
    for settings in wrong:
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2, **settings))
        with (
            case(settings=settings),
            pytest.raises(Unsupported, match="batch norms with running statistics and a momentum, found 1 with"),
        ):
            shared_norms(network)


def test_processes_that_differ_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(found: list[str], own: str) -> None:
        found[:] = [own, "0" * 64]

    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    with pytest.raises(NNCompressError, match="all processes must hold the same network, found hashes"):
        parallel.check_alike([torch.ones(3)], "network")
