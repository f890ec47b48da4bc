"""`nncompress rerun RUN`: the configuration of a run anew in a new folder, with changes, compared with that run."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress import parallel
from nncompress.config import schema
from nncompress.config.overrides import quoted, sentence
from nncompress.config.schema import AUGMENTATION, CHOICES, TRACKING, Config
from nncompress.errors import ConfigError
from nncompress.results.records import SUMMARY
from nncompress.results.run_folder import stamp
from nncompress.sweeps import jobs
from nncompress.sweeps.jobs import short
from nncompress.sweeps.launch import retarget, under_hydra
from nncompress.sweeps.saved import approved, changed, read_saved

log = logging.getLogger(__name__)

USAGE = """\
usage: nncompress rerun RUN [KEY=VALUE ...] [hydra.run.dir=FOLDER]

Runs the configuration in the folder RUN (of a run, or of a job of a sweep) anew in a new folder and tells how its final
figures differ. Any key of its configuration may be changed; GROUP=OPTION (model, dataset, compression, solver,
constraint, augmentation, tracking) takes an option of `nncompress train` as it is now.

  hydra.run.dir=FOLDER      where the run goes (default: outputs/SOLVER-MODEL-DATASET/TIME)
  allow=[MODULE,...]        modules of yours of which RUN may name classes
"""
LINKS = {
    "solver.seed": "seed",
    "reference_training.seed": "seed",
    "dataset.root": "data_dir",
    "dataset.download": "data.download",
    "solver.constraint": "constraint",
    "constraint.rest.size": "constraint.size",
}
"""Keys that follow another one unless they are given; a configuration that is kept holds the values of both."""
GROUPS = (*schema.GROUPS, "constraint", AUGMENTATION, TRACKING)
FIGURES = ("accuracy/test", "accuracy/train", "objective/final", "ratio/params", "ratio/bits", "ratio/macs")
"""The figures whose difference is told first."""
UNEQUAL = ("seconds", "memory")
"""How the keys of a summary begin that are of a run, not of its result."""


def rerun(arguments: Sequence[str]) -> int:
    """Run what the words name; the exit code.

    Raises:
        ConfigError: a word is wrong, or RUN names a class that is not allowed.
        NNCompressError: RUN has no configuration, or what a run raises.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    return under_hydra(lambda: _prepared(arguments))


def _prepared(arguments: Sequence[str]) -> tuple[TaskFunction, list[str]]:
    """The run as a task, and the words for Hydra."""
    folder, words = _read(arguments)
    given = [word for word in words if not word.startswith("hydra.")]
    cfg = _configuration(folder, given)

    def again(_: DictConfig) -> None:
        new = Path(HydraConfig.get().runtime.output_dir)
        jobs.single(cfg, new)
        if parallel.first():
            for line in differences(folder, new):
                log.info("%s", line)

    options = "-".join(str(cfg.choices.get(group, "own")) for group in ("solver", "model", "dataset"))
    place = "hydra.run.dir=" + quoted(f"outputs/{options}/{stamp()}")
    # Hydra's own record would be that of the defaults: no output_subdir.
    return again, [place, *(word for word in words if word.startswith("hydra.")), "hydra.output_subdir=null"]


def _read(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of the run, and the words that change its configuration."""
    words = [word for word in arguments if "=" in word and not os.path.exists(word)]
    paths = [word for word in arguments if word not in words]
    if len(paths) != 1 or paths[0].startswith("-"):
        found = " and ".join(paths) or "none"
        raise ConfigError(f"rerun needs one folder of a run and then KEY=VALUE, found {found}; {USAGE.splitlines()[0]}")
    for word in words:
        if word.startswith(("resume=", "sweep.", "experiment=", "scale=", "launcher=")):
            raise ConfigError(f"rerun runs the configuration of one run, found {word}; give it to nncompress train")
    return Path(paths[0]).absolute(), words


def _configuration(folder: Path, words: Sequence[str]) -> DictConfig:
    """The configuration in the folder with the changes of the words, and nothing of the sweep that it was a job of."""
    shell = OmegaConf.structured(Config)
    cfg = _linked(read_saved(folder))
    cfg.sweep = shell.sweep
    cfg.search.trial = cfg.search.store = None
    chosen = {word.partition("=")[0]: word for word in words if word.partition("=")[0] in GROUPS and _names(word)}
    if chosen:
        cfg = _with_options(cfg, chosen)
    rest = [word for word in words if word not in chosen.values()]
    cfg = changed(cfg, rest)
    retarget(cfg, rest)
    return approved(cfg, rest, folder)


def _names(word: str) -> bool:
    """Whether a word GROUP=VALUE names an option, or [several]."""
    value = word.partition("=")[2]
    return value != "null" and value.strip("[]").replace("_", "").replace(",", "").isalnum()


def _linked(cfg: DictConfig) -> DictConfig:
    """The configuration in which keys follow others again; a reference that was trained for the run is found anew."""
    for key, other in LINKS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value == OmegaConf.select(cfg, other):
            OmegaConf.update(cfg, key, f"${{{other}}}", merge=False)
    if cfg.reference is not None and Path(cfg.reference).parent == Path(cfg.reference_dir).absolute():
        cfg.reference = None
    return cfg


def _with_options(cfg: DictConfig, chosen: Mapping[str, str]) -> DictConfig:
    """The configuration with these options of groups, and those that they choose (`model=tt_mlp` its compression)."""
    try:
        with initialize_config_module("nncompress.conf", version_base="1.3"):
            new = compose("config", list(chosen.values()), return_hydra_config=True)
            usual = compose("config", return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(sentence(error, list(chosen.values()))) from error
    options, defaults = new.hydra.runtime.choices, usual.hydra.runtime.choices
    for group in GROUPS:
        # A constraint belongs to one solver.
        if group in chosen or options[group] != defaults[group] or (group == "constraint" and "solver" in chosen):
            node = new[group]
            cfg[group] = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
            cfg.choices.pop(group, None)
            if group in CHOICES and options[group]:
                cfg.choices[group] = options[group]
    return cfg


def differences(old: Path, new: Path) -> Iterator[str]:
    """What sets the summary in the folder `new` apart from that in `old`, a line for each figure."""
    try:
        before, after = (json.loads((folder / SUMMARY).read_bytes()) for folder in (old, new))
    except (OSError, ValueError):
        yield f"{short(old)} has no {SUMMARY}, so that there is nothing to compare"
        return
    keys = [key for key in {**before, **after} if not key.startswith(UNEQUAL)]
    unequal = [key for key in keys if before.get(key) != after.get(key)]
    if not unequal:
        yield f"the final figures are equal to those of {short(old)}"
        return
    yield f"the final figures differ from those of {short(old)}:"
    for key in FIGURES:
        if key in unequal:
            yield f"  {key} {_shown(after.get(key))}, there {_shown(before.get(key))}"
    others = [key for key in unequal if key not in FIGURES]
    if others:
        yield f"  and {', '.join(others)}"


def _shown(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
