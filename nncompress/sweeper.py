"""The sweep: overrides become jobs, each with a folder that it keeps; Hydra's launcher runs those still to be done."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig

from nncompress import processes
from nncompress.config import SWEEPER
from nncompress.errors import ConfigError
from nncompress.manifest import ENDED, Job, standing, write_manifest
from nncompress.sweeps import begun, launched, with_job

log = logging.getLogger(__name__)


class Jobs(Sweeper):
    """Hydra's sweeper of `nncompress train -m`: the product of all values, or side by side those of `sweep.zip`.

    `max_batch_size` and `params` are those of Hydra's own sweeper.
    """

    __module__ = SWEEPER.rpartition(".")[0]

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, dict(params or {})
        self.config: DictConfig
        self.hydra_context: HydraContext
        self.launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run every job that has not ended; what each left is in its folder.

        Raises:
            ConfigError: the folder is not free, or the values cannot be combined.
        """
        folder = Path(self.config.hydra.sweep.dir).absolute()
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(words)
        crossed = combinations(_values(parsed), self.config.sweep.zip)
        with ExitStack() as claim:
            waiting, first = processes.agreed(lambda: self._waiting(folder, crossed, claim))
            size = self.max_batch_size or max(1, len(waiting))
            batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]
            return [launched(self.launcher, batch, first) for batch in batches]

    def _waiting(self, folder: Path, crossed: Sequence[list[str]], claim: ExitStack) -> tuple[list[Job], int]:
        """The jobs to run, once the folder is claimed and its manifest written, and the number of the first."""
        manifest = begun(self.config, folder, claim)
        asked: dict[str, Job] = {}
        for overrides in crossed:
            manifest, job = with_job(manifest, overrides, self.config, self.hydra_context)
            if job.key in asked:
                log.warning("%s is the same job as %s, it is run once", " ".join(overrides), job.folder)
            asked[job.key] = job
        write_manifest(folder, manifest)
        waiting = [job for job in asked.values() if standing(folder / job.folder) not in ENDED]
        folders = [job.folder for job in manifest.jobs]
        if self.config.sweep.resume is not None:
            log.info("%d of %d jobs have ended, %d are to run", len(asked) - len(waiting), len(asked), len(waiting))
        return waiting, min(map(folders.index, (job.folder for job in waiting)), default=0)


def combinations(values: Mapping[str, list[str]], zipped: Sequence[Any]) -> list[list[str]]:
    """Every combination of the keys' values as overrides, in the order of the keys and of their values.

    zipped: keys, or lists of keys, of which the first values belong together, the second ones, and so on.

    Raises:
        ConfigError: a zipped key is not swept, stands in two groups, or has another number of values than its group.
    """
    groups = _groups(zipped, values)
    grouped = {key for group in groups for key in group}
    axes = [*groups, *([key] for key in values if key not in grouped)]
    axes.sort(key=lambda keys: min(map(list(values).index, keys)))
    columns = [[[f"{key}={values[key][i]}" for key in keys] for i in range(len(values[keys[0]]))] for keys in axes]
    return [list(itertools.chain(*words)) for words in itertools.product(*columns)]


def _groups(zipped: Sequence[Any], values: Mapping[str, list[str]]) -> list[list[str]]:
    """The lists of keys whose values belong together."""
    several = any(isinstance(part, ListConfig | list) for part in zipped)
    groups = [list(part) for part in zipped] if several else [list(zipped)] if zipped else []
    named = [key for group in groups for key in group]
    for group in groups:
        for key in group:
            if key not in values or named.count(key) > 1:
                wrong = "twice" if key in values else "no values of it"
                raise ConfigError(f"sweep.zip: must name keys of this sweep, each once, found '{key}' and {wrong}")
        counts = {key: len(values[key]) for key in group}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} of {key}" for key, count in counts.items())
            raise ConfigError(f"sweep.zip: must have as many values of each of its keys, found {found}")
    return groups


def _values(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """Each key with the values it takes, as they are typed; a key that is given twice takes those given last."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        if not override.is_sweep_override():
            found = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            found = list(override.sweep_string_iterator())
        else:
            raise ConfigError(
                f"{override.key_or_group}: a sweep needs single values (a,b,c or range(1,10)), found an interval; "
                "`nncompress search` takes those"
            )
        values[override.get_key_element()] = found
    return values
