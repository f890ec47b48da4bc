"""Words KEY=VALUE of a command line: what they mean beyond Hydra, and its errors about them as one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from nncompress.config.options import groups
from nncompress.config.schema import AUGMENTATION, CHOICES, GROUPS
from nncompress.config.signatures import Callee, locate
from nncompress.errors import ConfigError, nearest, one_line


def named_folder(words: Sequence[str], key: str, of: str) -> Path | None:
    """The folder that the last word KEY=FOLDER gives, absolute; None without one and for null.

    Raises:
        ConfigError: it gives nothing; `of` is what it is to be the folder of.
    """
    given = [_unquoted(word.partition("=")[2]) for word in words if word.startswith(f"{key}=")]
    if not given or given[-1] == "null":
        return None
    if not given[-1]:
        raise ConfigError(f"{key}= needs the folder of {of}, found nothing; give it, or leave {key} out")
    return Path(given[-1]).absolute()


def _unquoted(value: str) -> str:
    """The text of a value that may be quoted."""
    mark = value[:1]
    if len(value) < 2 or mark not in ("'", '"') or value[-1] != mark:
        return value
    return value[1:-1].replace(f"\\{mark}", mark).replace("\\\\", "\\")


def quoted(text: str) -> str:
    """A value for Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def sentence(error: Exception, arguments: Sequence[str], name: str = "config") -> str:
    """What is wrong, in one line; `arguments` are the words of the command line, `name` that of the configuration."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    place = str(getattr(cause, "full_key", None) or "")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and place:
        return _unknown_key(place, arguments, name)
    if isinstance(cause, ValidationError) and place:
        return f"{place}: {one_line(cause)}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_option(str(error.missing_cfg_file), error.options)
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' cannot be read as KEY=VALUE: {one_line(error)}"
    refused = re.match(r"Could not override '([^'@]+)", str(error))
    if refused and name != "config":
        return _unknown_key(refused.group(1), arguments, name)
    if "Config group override must be a string" in str(error):
        return f"{one_line(error)}: a group takes the name of an option; ~GROUP takes it out (~constraint)"
    if str(error).startswith("Ambiguous value"):
        sweep = "several values need a sweep (train -m), " if name == "config" else ""
        return f"{one_line(error)}: {sweep}a list needs brackets (KEY=[1,2])"
    lines = [*str(error).splitlines(), *(str(cause).splitlines()[:1] if cause else [])]
    return " ".join(line.strip() for line in lines if line.strip())


def _unknown_option(path: str, beside: Sequence[str]) -> str:
    """`path` is group/option; our own groups have options in folders, Hydra's are themselves in folders."""
    ours = path.partition("/")
    group, _, option = path.rpartition("/") if ours[0] == "hydra" else ours
    options = sorted({*beside, *groups().get(group, [])})
    known = f"; there are {', '.join(options)}" if options else ""
    return f"{group}={option}: no such option{known}{nearest(option, options)}"


def _unknown_key(place: str, arguments: Sequence[str], name: str) -> str:
    parent, _, key = place.rpartition(".")
    where = f"'{parent}'" if parent else "the configuration"
    keys = _keys(parent, arguments, name)
    listed = "`nncompress train --cfg job` shows every key" if name == "config" else f"there are {', '.join(keys)}"
    return f"Key '{key}' not in {where}{nearest(key, keys) or f'; {listed}'}"


def _keys(parent: str, arguments: Sequence[str], name: str) -> list[str]:
    """The keys below `parent` in the configuration that the group choices among the words compose to."""
    choices = [word for word in arguments if word.partition("=")[0] in CHOICES]
    added = [f"hydra.searchpath=['file://{folder}']" for folder in _config_folders(arguments)]
    for overrides in ([*added, *choices], added):
        try:
            with initialize_config_module("nncompress.conf", version_base="1.3"):
                cfg = compose(name, overrides)
        except (HydraException, OmegaConfBaseException):
            continue
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if isinstance(node, DictConfig):
            return [str(key) for key in node]
    return []


def _config_folders(arguments: Sequence[str]) -> list[Path]:
    following = pairwise(arguments)
    return [Path(word).absolute() for flag, word in following if flag in ("--config-dir", "-cd")]


def retarget(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Drop the keys of an option whose class another takes the place of, as with `model._target_=my_nets.Net`.

    Further in, as with `solver.schedule._target_`, those that the new class does not take. Keys that are given stay.
    """
    given = [override.partition("=")[0].lstrip("+") for override in overrides]
    for place in (key.removesuffix("._target_") for key in given if key.count(".") > 1 and key.endswith("._target_")):
        OmegaConf.update(cfg, place, _accepted(OmegaConf.select(cfg, place), place, given), merge=False)
    for group in (*GROUPS, AUGMENTATION):
        if f"{group}._target_" in given:
            keys = {key.split(".")[1] for key in given if key.startswith(f"{group}.")}
            cfg[group] = {key: value for key, value in cfg[group].items() if key in keys}
            if group in cfg.choices:
                cfg.choices[group] = str(cfg[group]["_target_"]).rpartition(".")[2]


def _accepted(node: DictConfig, place: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a node that are given, or that its class takes."""
    values = {str(key): value for key, value in node.items()}
    try:
        target = Callee(str(node["_target_"]), locate(str(node["_target_"])))
    except ConfigError:  # told when the configuration is checked
        return values
    if target.open and target.parameters:
        return values
    return {
        key: value
        for key, value in values.items()
        if key.startswith("_") or f"{place}.{key}" in given or target.takes(key)
    }
