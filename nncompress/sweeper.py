"""The sweep: overrides become jobs, each with a folder that it keeps; Hydra's launcher runs those still to be done."""

from __future__ import annotations

import itertools
import logging
import sys
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
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from nncompress import processes
from nncompress.config import SWEEPER
from nncompress.errors import ConfigError
from nncompress.manifest import (
    ENDED,
    STOPPED,
    Job,
    Manifest,
    held,
    key_of,
    read_manifest,
    standing,
    write_manifest,
)

log = logging.getLogger(__name__)

SWEPT: list[Path] = []
"""The folder of the sweep that this process ran: Hydra hands it to nobody."""
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")
"""Hydra's flags that are followed by a word of their own."""


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
            return [self._launched(batch, first) for batch in batches]

    def _waiting(self, folder: Path, crossed: Sequence[list[str]], claim: ExitStack) -> tuple[list[Job], int]:
        """The jobs to run, once the folder is claimed and its manifest written, and the number of the first."""
        resumed = self.config.sweep.resume is not None
        claim.enter_context(held(folder, resumed))
        SWEPT.append(folder)
        (folder / STOPPED).unlink(missing_ok=True)
        manifest, asked = self._jobs(folder, crossed, resumed)
        write_manifest(folder, manifest)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        waiting = [job for job in asked if standing(folder / job.folder) not in ENDED]
        folders = [job.folder for job in manifest.jobs]
        if resumed:
            log.info("%d of %d jobs have ended, %d are to run", len(asked) - len(waiting), len(asked), len(waiting))
        return waiting, min(map(folders.index, (job.folder for job in waiting)), default=0)

    def _jobs(self, folder: Path, crossed: Sequence[list[str]], resumed: bool) -> tuple[Manifest, list[Job]]:
        """The manifest with a job for each combination, and those jobs; a job that was there keeps its folder."""
        manifest = read_manifest(folder) if resumed else Manifest([], [])
        manifest = replace(manifest, command=sys.argv[1:])
        asked: dict[str, Job] = {}
        for overrides in crossed:
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            key = key_of(cfg)
            job = manifest.find(key)
            if job is None:
                job = Job(_subdir(cfg, len(manifest.jobs)), key, _of_job(overrides))
                manifest = manifest.with_job(job)
            elif key in asked:
                log.warning("%s is the same job as %s, it is run once", " ".join(_of_job(overrides)), job.folder)
            asked[key] = replace(job, overrides=overrides)
        return manifest, list(asked.values())

    def _launched(self, batch: Sequence[Job], first: int) -> Sequence[JobReturn]:
        overrides = [[*job.overrides, f"hydra.sweep.subdir={_quoted(job.folder)}"] for job in batch]
        results = self.launcher.launch(overrides, initial_job_idx=first)
        for result in results:
            _ = result.return_value  # raises what a job could not record itself
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
        "sweep.resume": f"sweep.resume={_quoted(str(folder))}",
        "hydra.sweep.dir": f"hydra.sweep.dir={_quoted(str(folder))}",
    }
    flagged = {"-m": ["-m"], **recorded_flags, **flags}
    return [*itertools.chain(*flagged.values()), *words.values()]


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


def _of_job(overrides: Sequence[str]) -> list[str]:
    """Without what belongs to the sweep as a whole."""
    return [word for word in overrides if not word.startswith(("sweep.", "launcher="))]


def _quoted(text: str) -> str:
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
