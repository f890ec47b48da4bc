"""Runs in this process, from words as on the command line, and what they leave."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from nncompress.artefact.files import checksum
from nncompress.cli.main import main
from nncompress.config.overrides import retarget
from nncompress.config.schema import CHOICES, register
from nncompress.errors import NNCompressError
from nncompress.experiment.run import run as run_setup
from nncompress.experiment.setup import setup
from nncompress.results.run_folder import write_config
from nncompress.sweeps import jobs
from nncompress.sweeps.saved import read_saved, with_overrides


def configuration(*words: str) -> DictConfig:
    """The configuration of `nncompress train` with these words, without Hydra's own part.

    Words that only set a value, as solver.lr=1 does, are set in what the others compose, which is kept.
    """
    targeted = tuple(word.partition("_target_=")[0] for word in words if "_target_=" in word)  # whose keys are dropped
    composed = tuple(word.partition("=")[0] for word in words if word.partition("=")[0] in GROUPS)
    values = [word for word in words if word.partition("=")[0] not in composed]
    values = [word for word in values if not word.startswith(("+", "~", "hydra.", *targeted))]
    cfg = _composed(tuple(word for word in words if word not in values)).copy()
    for override in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Leave in the folder what a run leaves of its configuration."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(tree, dict)
    write_config(folder, {str(key): value for key, value in tree.items()})


GROUPS = {"dataset", "model", "compression", "constraint", "solver", "augmentation", "experiment", "scale", "tracking"}


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        cfg = compose("config", list(words), return_hydra_config=True)
    with open_dict(cfg):
        chosen = cfg.pop("hydra").runtime.choices
    cfg.choices = {group: choice for group in CHOICES if (choice := chosen.get(group))}
    retarget(cfg, words)
    return cfg


def run(folder: Path, *words: str) -> dict[str, object]:
    """Do the run of `nncompress train` with these words, but without its command line, tables and plots: its summary.

    Raises what the command would tell in a sentence, and SystemExit where it is interrupted.
    """
    return _attempted(configuration(*words), folder)


def resume(folder: Path, *words: str) -> dict[str, object]:
    """Go on with a run as `nncompress train resume=FOLDER` with these words does; as `run`."""
    return _attempted(with_overrides(read_saved(folder), [*words, f"resume={folder}"]), folder)


def refusal(folder: Path, *words: str) -> NNCompressError:
    """What the run of these words is refused with, as the command would tell it; its status says the same."""
    with pytest.raises(NNCompressError) as refused:
        run(folder, *words)
    assert status(folder)["status"] in ("failed", "unsupported", "diverged")
    assert str(status(folder)["reason"]) in "; ".join(str(refused.value).splitlines())
    return refused.value


def finish(cfg: DictConfig, folder: Path) -> dict[str, object]:
    """Do the run of a configuration that needs no check and no reference: its summary."""
    folder.mkdir(parents=True, exist_ok=True)
    run_setup(setup(cfg), folder)
    return summary(folder)


def _attempted(cfg: DictConfig, folder: Path) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    failure = jobs.attempt(cfg, folder)
    if failure is not None:
        raise failure
    return summary(folder)


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
    """The records without their times and checks."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "check")} for row in lines]


def summary(folder: Path) -> dict[str, object]:
    """The summary without times and memory."""
    content = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in content.items() if not k.startswith(("seconds", "memory", "check"))}


def status(folder: Path) -> dict[str, object]:
    """How the run ended."""
    return dict(json.loads((folder / "status.json").read_text()))


def resign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description of the compact network in a folder, and its checksum with it."""
    path = folder / "model.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about | {"checksum": checksum(folder, about)}))


def assert_refused(folder: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The words end with this code and one sentence, which the status file keeps."""
    assert train(folder, *words) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert status(folder)["status"] in ("failed", "unsupported", "diverged")
