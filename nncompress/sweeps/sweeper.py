"""The sweep: overrides become jobs, each with a folder that it keeps; Hydra's launcher runs those still to be done."""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from nncompress import parallel
from nncompress.config.allow import check
from nncompress.config.overrides import quote
from nncompress.config.schema import SWEEPER
from nncompress.errors import printable
from nncompress.results import sweep_folder
from nncompress.results.sweep_folder import ENDED, Job, Manifest, read_manifest, standing
from nncompress.sweeps.combinations import combinations, key_of, settings_of, values_of, varied_in
from nncompress.sweeps.workers import launch_all

log = logging.getLogger(__name__)

SWEPT: dict[Path, list[str]] = {}
"""The folder of the sweep that this process ran, with those of the jobs of its words: Hydra hands them to nobody."""


class SweepOfJobs(Sweeper):
    """A sweeper of Hydra whose jobs are in a manifest; a subclass says in `sweep` which jobs.

    - config: the configuration that the jobs share, with Hydra's part.
    - hydra_context, launcher: Hydra's loader of configurations, and what runs the jobs.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives before it calls `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @abstractmethod
    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the jobs that the overrides describe and that have not ended; what each left is in its folder.

        Raises:
            ConfigError: the folder is not free, or the overrides describe no jobs.
        """

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return Path(self.config.hydra.sweep.dir).absolute()

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Return the overrides as Hydra understands them."""
        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(list(overrides))

    def begin(self, claim: ExitStack, varied: Sequence[str]) -> Manifest:
        """Return the manifest of the sweep in the folder, as it was left or empty, once `claim` holds the folder.

        varied: the keys that take several values.

        Raises:
            ConfigError: the folder is not free, or a sweep that is to go on is not there.
        """
        resumed = self.config.sweep.resume is not None
        if resumed:  # refused before anything is made in the folder
            sweep_folder.refuse_links(self.folder)
            read_manifest(self.folder)
            self._check(self.config)
        claim.enter_context(sweep_folder.claim_sweep(self.folder, resumed))
        SWEPT[self.folder] = []
        (self.folder / sweep_folder.STOPPED).unlink(missing_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        manifest = read_manifest(self.folder) if resumed else Manifest([], [], list(varied))
        return replace(manifest, command=sys.argv[1:])

    def with_job(self, manifest: Manifest, overrides: Sequence[str], varied: Sequence[str]) -> tuple[Manifest, Job]:
        """Return the manifest with the job of these overrides, which keeps its folder if it was there; and that job.

        Args:
            varied: the keys that take several values.

        Raises:
            ConfigError: another job has the same folder, or a resumed sweep names a class that is not allowed.
        """
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        if self.config.sweep.resume is not None:
            self._check(cfg)
        key = key_of(cfg, {*manifest.varied, *varied})
        job = manifest.find(key)
        if job is None:
            own = [word for word in overrides if not word.startswith(("sweep.", "search.", "launcher="))]
            job = Job(_new_folder(cfg, len(manifest.jobs)), key, own)
            sweep_folder.require_within(self.folder, job.folder)
            manifest = manifest.with_job(job)
        return manifest, replace(job, overrides=list(overrides))

    def launch(self, jobs: Sequence[Job], manifest: Manifest) -> Sequence[JobReturn]:
        """Run the jobs in their folders; what a job could not record itself is raised."""
        folders = [job.folder for job in manifest.jobs]

        def launch(batch: Sequence[Job]) -> Sequence[JobReturn]:
            overrides = [[*job.overrides, f"hydra.sweep.subdir={quote(job.folder)}"] for job in batch]
            results = self.launcher.launch(overrides, initial_job_idx=folders.index(batch[0].folder))
            for result in results:
                _ = result.return_value
            return results

        return launch_all(jobs, launch, self.folder, self.config.sweep)

    def _check(self, cfg: DictConfig) -> None:
        """Refuse what the words of a sweep that goes on name and what is not allowed. Raises ConfigError."""
        check(settings_of(cfg), list(cfg.allow), printable(str(self.folder / sweep_folder.SWEEP)))


class Jobs(SweepOfJobs):
    """Hydra's sweeper of `nncompress train -m`: the product of all values, or side by side those of `sweep.zip`.

    - max_batch_size: how many jobs the launcher is given at a time; None: all, as with Hydra's own sweeper.
    - params: overrides of every job by their keys, as with Hydra's own sweeper.
    """

    __module__ = SWEEPER.rpartition(".")[0]

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, dict(params or {})

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run every job that has not ended.

        Raises:
            ConfigError: as with `SweepOfJobs.sweep`.
        """
        values = values_of(self.parse([*(f"{key}={value}" for key, value in self.params.items()), *arguments]))
        rows = combinations(values, self.config.sweep.zip)
        with ExitStack() as claim:
            waiting, manifest = parallel.decide(lambda: self._waiting_jobs(rows, varied_in(values), claim))
            size = self.max_batch_size or max(1, len(waiting))
            batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]
            return [self.launch(batch, manifest) for batch in batches]

    def _waiting_jobs(
        self, rows: Sequence[list[str]], varied: Sequence[str], claim: ExitStack
    ) -> tuple[list[Job], Manifest]:
        """Return the jobs to run, once the folder is claimed and the manifest of all written; and that."""
        manifest = self.begin(claim, varied)
        jobs: dict[str, Job] = {}
        for overrides in rows:
            manifest, job = self.with_job(manifest, overrides, varied)
            if job.key in jobs:
                log.warning("%s is the same job as %s, it is run once", " ".join(overrides), job.folder)
            jobs[job.key] = job
        sweep_folder.write_manifest(self.folder, manifest)
        SWEPT[self.folder] = [job.folder for job in jobs.values()]
        waiting = [job for job in jobs.values() if standing(self.folder / job.folder) not in ENDED]
        if self.config.sweep.resume is not None:
            log.info("%d of %d jobs have ended, %d are to run", len(jobs) - len(waiting), len(jobs), len(waiting))
        return waiting, manifest


def _new_folder(cfg: DictConfig, number: int) -> str:
    """Return the folder that a new job of this number gets."""
    before = HydraConfig.instance().cfg
    with open_dict(cfg):
        cfg.hydra.job.num = cfg.hydra.job.id = number
    HydraConfig.instance().set_config(cfg)
    try:
        return str(cfg.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before
