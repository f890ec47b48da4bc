"""`resume=<run folder>`: the run goes on in its folder with its own configuration, whatever the defaults are by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hydra.types import TaskFunction
from omegaconf import DictConfig

from nncompress.errors import ConfigError
from nncompress.saved import approved, changed, read_saved
from nncompress.words import named_folder, quoted

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
