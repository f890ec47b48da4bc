"""The configuration that a run was started with: read back from its folder, changed, and run again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from nncompress.config.allow import check, targets
from nncompress.config.options import LOADER, OF_RUN
from nncompress.config.overrides import named_folder, packaged_config, quote, retarget, unknown_key
from nncompress.config.schema import CHOICES, FOLLOWED, LATER, Config, is_below
from nncompress.errors import CheckpointError, ConfigError, one_line, printable
from nncompress.files import read_file
from nncompress.results.records import CONFIG, require_current
from nncompress.results.run_folder import stamp
from nncompress.results.sweep_folder import refuse_links

OPTION = re.compile(rf"({'|'.join(OF_RUN)})=(?!null$)\[?[\w,]+\]?")
"""An override GROUP=OPTION; an option may be [several]."""
UNFOLLOWED: dict[str, Any] = {"allow": [], "resume": None}
"""What a configuration on disk says does not count."""
DEPTH = 32
"""How deep the values of a configuration on disk may be nested."""
HUGE = re.compile(r"[-+]?(0x[0-9a-fA-F_]{17,}|0b[01_]{65,}|[0-9_:]{20,})")
"""A whole number of more than 64 bits in YAML."""


def read_saved(folder: Path) -> DictConfig:
    """Return the configuration in the folder of a run, with the types of `schema.Config`.

    What it allows does not count. Keys that had the value of the key they follow (`schema.FOLLOWED`) follow it again.

    Raises:
        CheckpointError: there is none, it is damaged, or an older version wrote it.
    """
    path = folder / CONFIG
    shown = printable(str(path))
    for needed in (folder, path):
        if not needed.exists():
            raise CheckpointError(
                f"the folder of a run with its {CONFIG} is needed, but {printable(str(needed))} does not exist: check "
                "the path, or start the run again"
            )
    require_current(folder)
    try:
        text = read_file(path).decode()
        _require_plain(text)
        saved = OmegaConf.load(StringIO(text))
        cfg = OmegaConf.merge(OmegaConf.structured(Config), saved, UNFOLLOWED)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else printable(one_line(error))
        raise CheckpointError(f"{shown} cannot be read: {told}; start the run again") from error
    if not isinstance(cfg, DictConfig) or not saved:
        raise CheckpointError(f"{shown} holds no configuration; start the run again")
    for follower, key in FOLLOWED.items():
        value = OmegaConf.select(cfg, follower)
        if value is not None and value == OmegaConf.select(cfg, key):
            OmegaConf.update(cfg, follower, f"${{{key}}}", merge=False)
    return cfg


def _require_plain(text: str) -> None:
    """Refuse YAML with more in it than containers, numbers and texts, before anything is made of it.

    Raises:
        YAMLError: it is none.
        ValueError: with what else is in it.
    """
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        value = event.value if isinstance(event, yaml.ScalarEvent) else ""
        if depth > DEPTH:
            raise ValueError(f"its values are nested more than {DEPTH} deep")
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"an anchor, an alias or a tag is in it{event.start_mark or ''}")
        if "${" in value or (isinstance(event, yaml.ScalarEvent) and not event.style and HUGE.fullmatch(value)):
            raise ValueError(f"it must hold values, found {value:.80}")
        value.encode()  # no lone surrogates


def with_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration with the changes of overrides KEY=VALUE.

    Raises:
        ConfigError: no such key of the shell, a value of the wrong type, or a word that cannot be read.
    """
    try:
        return OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))  # type: ignore[return-value]
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ConfigError(unknown_key(str(error.full_key), cfg)) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        place = getattr(error, "full_key", None)
        raise ConfigError(f"{place}: {one_line(error)}" if place else one_line(error)) from error


def _check_names(cfg: DictConfig, overrides: Sequence[str], folder: Path) -> None:
    """Refuse a class that the configuration names and that is neither known, allowed nor named by an override."""
    check(cfg, [*cfg.allow, *targets(OmegaConf.from_dotlist(list(overrides)))], printable(str(folder / CONFIG)))


def resume_task(arguments: list[str], run: Callable[[DictConfig, Path], None]) -> tuple[TaskFunction, list[str]] | None:
    """Return the task that takes a run up again and Hydra's words for it; None when there is no `resume=`.

    Raises:
        ConfigError: something beside `resume` that may not change, or a class is named that is not allowed.
        CheckpointError: the folder is not that of a run.
    """
    folder = named_folder(arguments, "resume", "a run")
    if folder is None:
        return None
    changes = [word for word in arguments if not word.startswith("resume=")]
    refused = [word for word in changes if not is_below(word.partition("=")[0], LATER)]
    if refused:
        raise ConfigError(f"beside resume= only {', '.join(LATER)} may be given, found {', '.join(refused)}")
    refuse_links(folder)
    cfg = with_overrides(read_saved(folder), changes)
    cfg.resume = str(folder)
    _check_names(cfg, changes, folder)
    # Hydra's own record of the first command stays: no output_subdir.
    return (lambda _: run(cfg, folder)), [f"hydra.run.dir={quote(str(folder))}", "hydra.output_subdir=null"]


def rerun_task(
    folder: Path, overrides: Sequence[str], run: Callable[[DictConfig, Path], None]
) -> tuple[TaskFunction, list[str]]:
    """Return the task that runs the configuration of a run anew in a new folder, and Hydra's words for it.

    Raises:
        CheckpointError, ConfigError: as `rerun_config`.
    """
    of_hydra = [word for word in overrides if word.startswith("hydra.")]
    cfg = rerun_config(folder, [word for word in overrides if word not in of_hydra])
    chosen = [str(cfg.choices.get(group, "own")) for group in ("solver", "model", "dataset")]
    options = re.sub(r"[^\w-]", "_", "-".join(chosen))
    place = f"hydra.run.dir={quote(f'outputs/{options}/{stamp()}')}"
    # Hydra's own record would be that of the defaults: no output_subdir.
    words = [place, *of_hydra, "hydra.output_subdir=null"]
    return (lambda _: run(cfg, Path(HydraConfig.get().runtime.output_dir))), words


def rerun_config(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a run with changes, and nothing of the sweep that it was a job of.

    An override GROUP=OPTION takes an option of `nncompress train` as it is now.

    Raises:
        CheckpointError: the folder is not that of a run.
        ConfigError: a word is wrong, or a class is named that is not allowed.
    """
    cfg = read_saved(folder)
    if cfg.reference is not None and Path(cfg.reference).parent == Path(cfg.reference_dir).absolute():
        cfg.reference = None  # it was trained for the run, and is looked up anew
    cfg.sweep = OmegaConf.structured(Config).sweep
    cfg.search.trial = cfg.search.store = None
    chosen = {match[1]: match[0] for match in map(OPTION.fullmatch, overrides) if match}
    if chosen:
        _choose(cfg, chosen)
    changes = [word for word in overrides if word not in chosen.values()]
    cfg = with_overrides(cfg, changes)
    retarget(cfg, changes)
    _check_names(cfg, changes, folder)
    return cfg


def _choose(cfg: DictConfig, chosen: Mapping[str, str]) -> None:
    """Put options of groups in a configuration, and those that they choose (`model=tt_mlp` its compression)."""
    overrides = list(chosen.values())
    with packaged_config(overrides):
        new = compose("config", overrides, return_hydra_config=True)
        usual = compose("config", return_hydra_config=True)
    options, defaults = new.hydra.runtime.choices, usual.hydra.runtime.choices
    for group in OF_RUN:
        # A constraint belongs to one solver.
        if group in chosen or options[group] != defaults[group] or (group == "constraint" and "solver" in chosen):
            node = new[group]
            cfg[group] = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
            cfg.choices.pop(group, None)
            if group in CHOICES and options[group]:
                cfg.choices[group] = options[group]
