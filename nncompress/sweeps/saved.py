"""The configuration that a run was started with: read back from its folder, changed, and run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from nncompress.config.allow import check, targets
from nncompress.config.overrides import named_folder, quoted
from nncompress.config.schema import Config
from nncompress.errors import CheckpointError, ConfigError, nearest, one_line
from nncompress.results.records import CONFIG


def read_saved(folder: Path) -> DictConfig:
    """The configuration in the folder of a run, typed by the shell. What it allows does not count.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / CONFIG
    for needed in (folder, path):
        if not needed.exists():
            raise CheckpointError(
                f"the folder of a run with its {CONFIG} is needed, but {needed} does not exist: check the path, or "
                "start the run again"
            )
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path), {"allow": [], "resume": None})
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}; start the run again") from error
    if not isinstance(cfg, DictConfig):
        raise CheckpointError(f"{path} holds no configuration; start the run again")
    return cfg


def changed(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """The configuration with the changes of the words KEY=VALUE.

    Raises:
        ConfigError: no such key of the shell, a value of the wrong type, or a word that cannot be read.
    """
    try:
        return OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(words)))  # type: ignore[return-value]
    except (ConfigKeyError, ConfigAttributeError) as error:
        parent, _, key = str(error.full_key).rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        known = [str(name) for name in node] if isinstance(node, DictConfig) else []
        hint = nearest(key, known) or f"; there are {', '.join(known)}"
        where = f"'{parent}'" if parent else "the configuration"
        raise ConfigError(f"Key '{key}' not in {where}{hint}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        place = getattr(error, "full_key", None)
        raise ConfigError(f"{place}: {one_line(error)}" if place else one_line(error)) from error


def approved(cfg: DictConfig, words: Sequence[str], folder: Path) -> DictConfig:
    """The configuration, once every class that it names is known, allowed or named by the words themselves.

    Raises:
        ConfigError: with the names that are refused (`allow.check`).
    """
    given = targets(OmegaConf.from_dotlist(list(words)))
    check(cfg, [*cfg.allow, *given], str(folder / CONFIG))
    return cfg


ALLOWED = ("solver.num_steps", "eval_every", "checkpoint_every", "device", "compress_at", "recalibrate", "allow")


def resumed(arguments: list[str], run: Callable[[DictConfig, Path], None]) -> tuple[TaskFunction, list[str]] | None:
    """The task that takes a run up again and Hydra's words for it; None when the words hold no `resume=`.

    Raises:
        ConfigError: something beside `resume` that may not change, or a class is named that is not allowed.
        CheckpointError: the folder is not that of a run.
    """
    folder = named_folder(arguments, "resume", "a run")
    if folder is None:
        return None
    changes = [word for word in arguments if not word.startswith("resume=")]
    refused = [word for word in changes if word.partition("=")[0] not in ALLOWED]
    if refused:
        raise ConfigError(f"beside resume= only {', '.join(ALLOWED)} may be given, found {', '.join(refused)}")
    cfg = approved(changed(read_saved(folder), [*changes, f"resume={folder}"]), changes, folder)

    def resume_job(_: DictConfig) -> None:
        run(cfg, folder)

    # Hydra's own record of the first command stays: no output_subdir.
    return resume_job, [f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null"]
