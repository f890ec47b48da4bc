"""`resume=<run folder>`: the run goes on in its folder with its own configuration, whatever the defaults are by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hydra.types import TaskFunction
from omegaconf import DictConfig

from nncompress.errors import ConfigError
from nncompress.saved import approved, changed, read_saved

ALLOWED = ("solver.num_steps", "eval_every", "checkpoint_every", "device", "compress_at", "recalibrate", "allow")


def resumed(arguments: list[str], run: Callable[[DictConfig, Path], None]) -> tuple[TaskFunction, list[str]] | None:
    """The task that takes a run up again and Hydra's words for it; None when the words hold no `resume=`.

    Raises:
        ConfigError: something beside `resume` that may not change, or a class is named that is not allowed.
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
    cfg = approved(changed(read_saved(folder), [*changes, f"resume={folder}"]), changes, folder)

    def resume_job(_: DictConfig) -> None:
        run(cfg, folder)

    # Hydra's own record of the first command stays: no output_subdir.
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return resume_job, [f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]
