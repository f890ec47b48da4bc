"""The papers' experiments at their scales: composed, checked, and one run of the smallest."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import case
from omegaconf import OmegaConf
from problems import ROOT
from runs import configuration, finish

from nncompress.cli.main import main
from nncompress.config.build import build, validate
from nncompress.problem import Augmentation

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment/slimming").glob("*.yaml"))
SCALES = sorted(path.stem for path in (ROOT / "conf/scale").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("apart")


def test_there_are_a_small_scale_and_one_for_a_gpu() -> None:
    assert SCALES == ["full", "gpu", "smoke"]
    assert len(EXPERIMENTS) > 10


@pytest.mark.parametrize("scale", SCALES)
def test_every_slimming_experiment_composes_binds_and_is_accepted_at_every_scale(scale: str) -> None:
    for experiment in EXPERIMENTS:
        with case(experiment=experiment):
            cfg = configuration(f"experiment=slimming/{experiment}", f"scale={scale}")
            validate(cfg)
            solver = build(cfg.solver)
            assert isinstance(build(cfg.augmentation), Augmentation)
            if scale == "smoke":
                assert (solver.num_steps, cfg.dataset.train_size, cfg.device) == (3, 2000, "cpu")
                assert cfg.target.ratio == 0.5
            elif scale == "gpu":
                assert (cfg.precision, cfg.deterministic, cfg.eval_every) == ("bf16", False, 10)
            if scale != "smoke":
                assert (solver.num_steps > 10, cfg.target.ratio) == (True, None)


def test_the_configuration_of_an_experiment_at_a_scale_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for experiment, scale in (("vgg19_cifar10", "smoke"), ("ns_resnet164_cifar100", "gpu")):
        with case(experiment=experiment, scale=scale):
            words = [f"experiment=slimming/{experiment}", f"scale={scale}"]
            assert main(["train", *words, "--cfg", "job"]) == 0
            cfg = OmegaConf.create(capsys.readouterr().out)
            assert cfg.dataset._target_.startswith("nncompress.data.cifar")
            assert cfg.solver.num_steps == configuration(*words).solver.num_steps
            assert not list(tmp_path.iterdir())


def test_what_the_command_line_gives_wins_over_a_scale() -> None:
    cfg = configuration("experiment=slimming/vgg19_cifar10", "scale=smoke", "solver.num_steps=1")
    assert cfg.solver.num_steps == 1


def test_a_smoke_run_of_an_experiment_ends_at_its_target_with_the_papers_protocol(tmp_path: Path) -> None:
    words = ["experiment=slimming/resnet164_cifar10", "scale=smoke", "dataset=digits", "model.depth=11"]
    less = ["dataset.train_size=64", "dataset.test_size=50", "solver.num_steps=1"]
    found = finish(configuration(*words, *less), tmp_path / "run")
    assert found["ratio/params"] == found["target/achieved"] <= found["target/requested"] == 0.5
    assert found["step/best_test"] in (0, 1)


def test_the_experiments_of_frank_wolfe_are_small_at_scale_smoke() -> None:
    for experiment in (
        "mnist_cnn_sgd", "resnet18_cifar10_sfw_pruning", "vgg16_cifar10_filters", "wrn28_10_cifar100_low_rank",
    ):  # fmt: skip
        with case(experiment=experiment):
            cfg = configuration(f"experiment=sparsefw/{experiment}", "scale=smoke")
            validate(cfg)
            assert (cfg.solver.num_steps, cfg.dataset.train_size, cfg.device) == (3, 2000, "cpu")
            assert (list(cfg.compress_at), cfg.recalibrate) == ([0.3, 0.6, 0.9], 500)
