"""`resume=<run folder>`: the run goes on in its folder with its own configuration, whatever the defaults are by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress.config import Config
from nncompress.errors import CheckpointError, ConfigError
from nncompress.signatures import one_line

ALLOWED = ("solver.num_steps", "eval_every", "checkpoint_every", "device", "compress_at", "recalibrate")


def resumed(arguments: list[str], run: Callable[[DictConfig, Path], None]) -> tuple[TaskFunction, list[str]] | None:
    """The task that takes a run up again and Hydra's words for it; None when the words hold no `resume=`.

    Raises:
        ConfigError: something beside `resume` that may not change.
        CheckpointError: the folder is not that of a run.
    """
    folders = [word.partition("=")[2].strip("'\"") for word in arguments if word.startswith("resume=")]
    if not folders or folders[-1] == "null":
        return None
    if not folders[-1]:
        raise ConfigError("resume= needs the folder of a run, found nothing; give it, or leave resume out")
    changes = [word for word in arguments if not word.startswith("resume=")]
    refused = [word for word in changes if word.partition("=")[0] not in ALLOWED]
    if refused:
        raise ConfigError(f"beside resume= only {', '.join(ALLOWED)} may be given, found {', '.join(refused)}")
    folder = Path(folders[-1]).absolute()
    cfg = _saved(folder, changes)

    def resume_job(_: DictConfig) -> None:
        run(cfg, folder)

    # Hydra's own record of the first command stays: no output_subdir.
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return resume_job, [f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


def _saved(folder: Path, changes: list[str]) -> DictConfig:
    """The configuration the run was started with, typed by the shell, with the allowed changes."""
    for needed in ("", "config.yaml"):
        if not (folder / needed).exists():
            raise CheckpointError(
                f"resume needs the folder of a run with its config.yaml, but {folder / needed} does not exist: check "
                "the path, or start the run again"
            )
    try:
        saved = OmegaConf.load(folder / "config.yaml")
        cfg = OmegaConf.merge(OmegaConf.structured(Config), saved)
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise CheckpointError(
            f"{folder / 'config.yaml'} cannot be read: {one_line(error)}; start the run again"
        ) from error
    try:
        cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([*changes, f"resume={folder}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    if not isinstance(cfg, DictConfig):
        raise CheckpointError(f"{folder / 'config.yaml'} holds no configuration; start the run again")
    return cfg
