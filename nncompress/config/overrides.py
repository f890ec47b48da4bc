"""Overrides KEY=VALUE of a command line: what they mean beyond Hydra, and its errors about them as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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


def named_folder(overrides: Sequence[str], key: str, of: str) -> Path | None:
    """Return the folder that the last override KEY=FOLDER gives, absolute; None without one and for null.

    Raises:
        ConfigError: it gives nothing; `of` is what it is to be the folder of.
    """
    values = [_unquote(override.partition("=")[2]) for override in overrides if override.startswith(f"{key}=")]
    if not values or values[-1] == "null":
        return None
    if not values[-1]:
        raise ConfigError(f"{key}= needs the folder of {of}, found nothing; give it, or leave {key} out")
    return Path(values[-1]).absolute()


def quote(text: str) -> str:
    """Return a text as a value in Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _unquote(value: str) -> str:
    mark = value[:1]
    if len(value) < 2 or mark not in ("'", '"') or value[-1] != mark:
        return value
    return value[1:-1].replace(f"\\{mark}", mark).replace("\\\\", "\\")


def sentence(error: Exception, arguments: Sequence[str], name: str = "config") -> str:
    """Return what is wrong with the words of a command line (`arguments`) that make the configuration `name`."""
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


@contextmanager
def packaged_config(arguments: Sequence[str], name: str = "config") -> Iterator[None]:
    """Let Hydra compose the packaged configuration `name` within it.

    Raises:
        ConfigError: in place of what Hydra says of the words of a command line (`arguments`).
    """
    try:
        with initialize_config_module("nncompress.conf", version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(sentence(error, arguments, name)) from error


def unknown_key(place: str, cfg: DictConfig | None, otherwise: str = "") -> str:
    """Return the sentence about a dotted key that is not in a configuration.

    It names the key most like it, else what `otherwise` says: as a rule the keys beside it.
    """
    parent, _, key = place.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent and cfg is not None else cfg
    keys = [str(name) for name in node] if isinstance(node, DictConfig) else []
    where = f"'{parent}'" if parent else "the configuration"
    hint = nearest(key, keys) or "; " + (otherwise or f"there are {', '.join(keys)}")
    return f"Key '{key}' not in {where}{hint}"


def _unknown_key(place: str, arguments: Sequence[str], name: str) -> str:
    """Return the sentence about a key that is not where the group choices among the words lead, or the usual ones."""
    parent = place.rpartition(".")[0]
    folders = [Path(word).absolute() for flag, word in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    added = [f"hydra.searchpath=['file://{folder}']" for folder in folders]
    shown = "`nncompress train --cfg job` shows every key" if name == "config" else ""
    for choices in ([word for word in arguments if word.partition("=")[0] in CHOICES], []):
        with suppress(HydraException, OmegaConfBaseException):
            with initialize_config_module("nncompress.conf", version_base="1.3"):
                cfg = compose(name, [*added, *choices])
            if not parent or isinstance(OmegaConf.select(cfg, parent), DictConfig):
                return unknown_key(place, cfg, shown)
    return unknown_key(place, None, shown)


def _unknown_option(path: str, beside: Sequence[str]) -> str:
    """Return the sentence about `group/option`; our own groups have options in folders, Hydra's are in folders."""
    ours = path.partition("/")
    group, _, option = path.rpartition("/") if ours[0] == "hydra" else ours
    options = sorted({*beside, *groups().get(group, [])})
    known = f"; there are {', '.join(options)}" if options else ""
    return f"{group}={option}: no such option{known}{nearest(option, options)}"


def retarget(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Drop the keys of an option whose class another takes the place of, as with `model._target_=my_nets.Net`.

    Further in, as with `solver.schedule._target_`, those that the new class does not take. Keys that are given stay.
    """
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    for place in (key.removesuffix("._target_") for key in keys if key.count(".") > 1 and key.endswith("._target_")):
        OmegaConf.update(cfg, place, _accepted_keys(OmegaConf.select(cfg, place), place, keys), merge=False)
    for group in (*GROUPS, AUGMENTATION):
        if f"{group}._target_" in keys:
            own = {key.split(".")[1] for key in keys if key.startswith(f"{group}.")}
            cfg[group] = {key: value for key, value in cfg[group].items() if key in own}
            if group in cfg.choices:
                cfg.choices[group] = str(cfg[group]["_target_"]).rpartition(".")[2]


def _accepted_keys(node: DictConfig, place: str, overridden: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a node that overrides name, or that its class takes, with their values."""
    values, name = {str(key): value for key, value in node.items()}, str(node["_target_"])
    try:
        target = Callee(name, locate(name))
    except ConfigError:  # told when the configuration is checked
        return values
    if target.open and target.parameters:
        return values
    kept = [key for key in values if key.startswith("_") or f"{place}.{key}" in overridden or target.takes(key)]
    return {key: values[key] for key in kept}
