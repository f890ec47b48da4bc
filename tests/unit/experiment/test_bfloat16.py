"""Runs with precision=bf16, and with CUDA graphs where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import case
from runs import configuration, finish, resume, rows, struck, summary

from nncompress.experiment.setup import setup
from nncompress.solvers.sgd.sgd import SGD
from nncompress.solvers.slimming.proximal import Slimming

NET = [
    *("model=resnet20", "model.depth=8", "model.width=0.25", "solver.batch_size=16"),
    *("dataset.train_size=48", "dataset.test_size=20"),
]
CROPPED = ["augmentation=crop_flip", "augmentation.parts.0.padding=1"]
SOLVERS = [
    pytest.param(["solver=sgd", "solver.average=0.9", "solver.mixup=0.2"], SGD, id="sgd"),
    pytest.param(["solver=slimming", "validation=0.2", "solver.lam=0.5"], Slimming, id="slimming"),
]

pytestmark = pytest.mark.usefixtures("apart")


@pytest.mark.parametrize(("words", "solver"), SOLVERS)
def test_a_run_in_bfloat16_resumes_bit_for_bit(words: list[str], solver: type, tmp_path: Path) -> None:
    cfg = configuration(*words, *NET, *CROPPED, "precision=bf16", "solver.num_steps=3")
    finish(cfg, tmp_path / "whole")
    with struck(solver, 1), pytest.raises(SystemExit):
        finish(cfg, tmp_path / "short")
    assert len(rows(tmp_path / "short")) == 3
    resume(tmp_path / "short")
    assert rows(tmp_path / "short") == rows(tmp_path / "whole")
    assert summary(tmp_path / "short") == summary(tmp_path / "whole")


def test_bfloat16_is_close_to_float32_and_not_the_same(tmp_path: Path) -> None:
    for name in ("bf16", "float32"):
        finish(configuration("solver=sgd", *NET, "solver.num_steps=3", f"precision={name}"), tmp_path / name)
    half, full = (rows(tmp_path / name) for name in ("bf16", "float32"))
    assert half[0]["loss/train"] == pytest.approx(full[0]["loss/train"], rel=1e-5)
    assert half[3]["loss/train"] != full[3]["loss/train"]
    assert half[3]["loss/train"] == pytest.approx(full[3]["loss/train"], rel=0.3)


def test_in_bfloat16_images_and_filters_are_channels_last() -> None:
    p = setup(configuration(*NET, "precision=bf16", "validation=0.2")).problem
    images = [p.data.train.x, p.data.test.x, p.data.validation.x]
    filters = [w for w in p.model.parameters() if w.dim() == 4]
    for tensor in (*images, *filters):
        with case(shape=tensor.shape):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert tensor.dtype == torch.float32
    assert filters
    assert p.computation.half


def test_cuda_graphs_asked_for_on_a_cpu_do_nothing(tmp_path: Path) -> None:
    words = ["solver=sgd", "model.widths=[16]", "dataset.train_size=100", "dataset.test_size=50", "device=cpu"]
    for name in ("true", "false"):
        finish(configuration(*words, "solver.num_steps=2", f"cuda_graphs={name}"), tmp_path / name)
    assert rows(tmp_path / "true") == rows(tmp_path / "false")
