"""What sweeps and searches have in common: their folder, the folders and keys of their jobs, and Hydra's launcher."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from nncompress.errors import ConfigError
from nncompress.manifest import STOPPED, Job, Manifest, held, key_of, read_manifest

log = logging.getLogger(__name__)

SWEPT: list[Path] = []
"""The folder of the sweep that this process ran: Hydra hands it to nobody."""
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")
"""Hydra's flags that are followed by a word of their own."""


def begun(config: DictConfig, folder: Path, claim: ExitStack) -> Manifest:
    """The manifest of the sweep in the folder, as it was left or empty, once `claim` holds the folder.

    Raises:
        ConfigError: the folder is not free.
    """
    resumed = config.sweep.resume is not None
    claim.enter_context(held(folder, resumed))
    SWEPT.append(folder)
    (folder / STOPPED).unlink(missing_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    manifest = read_manifest(folder) if resumed else Manifest([], [])
    return replace(manifest, command=sys.argv[1:])


def with_job(
    manifest: Manifest, overrides: Sequence[str], config: DictConfig, hydra_context: HydraContext
) -> tuple[Manifest, Job]:
    """The manifest with the job of these overrides, which keeps its folder if it was there; and that job.

    Raises:
        ConfigError: another job has the same folder.
    """
    cfg = hydra_context.config_loader.load_sweep_config(config, list(overrides))
    job = manifest.find(key_of(cfg))
    if job is None:
        own = [word for word in overrides if not word.startswith(("sweep.", "search.", "launcher="))]
        job = Job(_subdir(cfg, len(manifest.jobs)), key_of(cfg), own)
        manifest = manifest.with_job(job)
    return manifest, replace(job, overrides=list(overrides))


def launched(launcher: Launcher, jobs: Sequence[Job], first: int) -> Sequence[JobReturn]:
    """Run the jobs in their folders; what a job could not record itself is raised."""
    overrides = [[*job.overrides, f"hydra.sweep.subdir={quoted(job.folder)}"] for job in jobs]
    results = launcher.launch(overrides, initial_job_idx=first)
    for result in results:
        _ = result.return_value
    return results


def resumed_sweep(arguments: list[str]) -> list[str]:
    """The words that go on with the sweep that `sweep.resume=` names, if it names one: its own, and those beside it.

    Raises:
        ConfigError: the folder holds no sweep, or its words name a class that is not allowed.
    """
    folders = [word.partition("=")[2].strip("'\"") for word in arguments if word.startswith("sweep.resume=")]
    if not folders or folders[-1] == "null":
        return arguments
    if not folders[-1]:
        raise ConfigError("sweep.resume= needs the folder of a sweep, found nothing; give it, or leave it out")
    folder = Path(folders[-1]).absolute()
    recorded_flags, recorded = _split(read_manifest(folder).command)
    flags, given = _split(arguments)
    recorded = {key: word for key, word in recorded.items() if key != "allow"}  # that is for this command to say
    words = {
        **recorded,
        **given,
        "sweep.resume": f"sweep.resume={quoted(str(folder))}",
        "hydra.sweep.dir": f"hydra.sweep.dir={quoted(str(folder))}",
    }
    flagged = {"-m": ["-m"], **recorded_flags, **flags}
    return [*itertools.chain(*flagged.values()), *words.values()]


def _subdir(cfg: DictConfig, number: int) -> str:
    """The folder that a new job of this number gets."""
    before = HydraConfig.instance().cfg
    with open_dict(cfg):
        cfg.hydra.job.num = cfg.hydra.job.id = number
    HydraConfig.instance().set_config(cfg)
    try:
        return str(cfg.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before


def quoted(text: str) -> str:
    """A value for Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _split(words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Flags with what follows them, and overrides by their keys; of several the last counts."""
    flags: dict[str, list[str]] = {}
    overrides: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word in ("-m", "--multirun"):
            flags["-m"] = ["-m"]
        elif word.startswith("-"):
            flags[word.partition("=")[0]] = [word, *([next(rest, "")] if word in WITH_VALUE else [])]
        else:
            overrides[word.partition("=")[0].lstrip("+~")] = word
    return flags, overrides
