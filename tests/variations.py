"""Many runs of few compositions: without command line, tables and plots, and what is said of those that are refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from composing import files_read_once
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from runs import configuration, status, summary

from nncompress import experiment, jobs
from nncompress.errors import NNCompressError

GROUPS = {"dataset", "model", "compression", "constraint", "solver", "augmentation", "experiment", "scale"}


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    with files_read_once():
        return configuration(*words)


def configured(*words: str) -> DictConfig:
    """`runs.configuration` of these words; those that only set a value, as solver.lr=1 does, are not composed anew."""
    targeted = tuple(word.partition("_target_=")[0] for word in words if "_target_=" in word)  # whose keys are dropped
    sets = [word for word in words if word[0] not in "+~" and word.partition("=")[0] not in GROUPS]
    sets = [word for word in sets if not word.startswith(targeted)]
    composed = [word for word in words if word not in sets]
    cfg = _composed(tuple(composed)).copy()
    for override in OverridesParser.create().parse_overrides(sets):
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg


def finish(cfg: DictConfig, folder: Path) -> dict[str, object]:
    """Do the run of a configuration that needs no check and no reference: its summary."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment.run(cfg, folder)
    return summary(folder)


def run(folder: Path, *words: str) -> dict[str, object]:
    """As `runs.run`: checked, and from its reference; raises what the command would tell."""
    folder.mkdir(parents=True, exist_ok=True)
    failure = jobs.attempt(configured(*words), folder)
    if failure is not None:
        raise failure
    return summary(folder)


def refusal(folder: Path, *words: str) -> NNCompressError:
    """What the run of these words is refused with, as the command would tell it; its status says the same."""
    folder.mkdir(parents=True, exist_ok=True)
    failure = jobs.attempt(configured(*words), folder)
    assert failure is not None, "not refused"
    assert status(folder)["status"] in ("failed", "unsupported", "diverged")
    assert str(status(folder)["reason"]) in "; ".join(str(failure).splitlines())
    return failure
