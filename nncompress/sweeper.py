"""The sweep: overrides become jobs, each with a folder that it keeps; Hydra's launcher runs those still to be done."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from omegaconf import ListConfig

from nncompress import parallel
from nncompress.config import SWEEPER
from nncompress.errors import ConfigError
from nncompress.manifest import ENDED, Job, Manifest, standing, write_manifest
from nncompress.sweeps import SweepOfJobs

log = logging.getLogger(__name__)


class Jobs(SweepOfJobs):
    """Hydra's sweeper of `nncompress train -m`: the product of all values, or side by side those of `sweep.zip`.

    `max_batch_size` and `params` are those of Hydra's own sweeper.
    """

    __module__ = SWEEPER.rpartition(".")[0]

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, dict(params or {})

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run every job that has not ended; raises ConfigError as `SweepOfJobs.sweep` says."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        crossed = combinations(values_of(self.parsed(words)), self.config.sweep.zip)
        with ExitStack() as claim:
            waiting, manifest = parallel.decide(lambda: self._waiting(crossed, claim))
            size = self.max_batch_size or max(1, len(waiting))
            batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]
            return [self.launched(batch, manifest) for batch in batches]

    def _waiting(self, crossed: Sequence[list[str]], claim: ExitStack) -> tuple[list[Job], Manifest]:
        """The jobs to run, once the folder is claimed and its manifest written; and that."""
        manifest = self.begun(claim)
        asked: dict[str, Job] = {}
        for overrides in crossed:
            manifest, job = self.with_job(manifest, overrides)
            if job.key in asked:
                log.warning("%s is the same job as %s, it is run once", " ".join(overrides), job.folder)
            asked[job.key] = job
        write_manifest(self.folder, manifest)
        waiting = [job for job in asked.values() if standing(self.folder / job.folder) not in ENDED]
        if self.config.sweep.resume is not None:
            log.info("%d of %d jobs have ended, %d are to run", len(asked) - len(waiting), len(asked), len(waiting))
        return waiting, manifest


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


def values_of(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """Each key with the values it takes, as they are typed; a key that is given twice takes those given last.

    Raises:
        ConfigError: a key takes an interval.
    """
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
