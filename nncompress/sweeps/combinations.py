"""The jobs that the overrides of a sweep make: their configurations, and the keys that tell them apart."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nncompress.config.overrides import packaged_config
from nncompress.config.schema import CHOICES, register, results_in, role_of
from nncompress.errors import ConfigError

MOST_JOBS = 100_000
"""How many jobs a sweep may have."""


class ComposedJob(NamedTuple):
    """A job as a sweep would make it: its overrides, its configuration, and its key."""

    overrides: tuple[str, ...]
    cfg: DictConfig
    key: str


def composed_jobs(overrides: Sequence[str]) -> list[ComposedJob]:
    """Return the jobs of `nncompress train -m` with these overrides.

    Raises:
        ConfigError: an override is wrong.
    """
    register()
    with packaged_config(overrides):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(list(overrides))
        swept = [each.input_line for each in parsed if each.is_sweep_override()]
        shared = compose("config", [each for each in overrides if each not in swept])  # as Hydra does before the jobs
        values = values_of(parsed)
        return [_composed_job(row, varied_in(values)) for row in combinations(values, shared.sweep.zip)]


def _composed_job(overrides: list[str], varied: Collection[str]) -> ComposedJob:
    """Return a job with the configuration as `nncompress train` has it, after which the job's reference is named."""
    cfg = compose("config", overrides, return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    cfg.choices = {group: choices[group] for group in CHOICES if choices.get(group)}
    with open_dict(cfg):
        del cfg.hydra
    return ComposedJob(tuple(overrides), cfg, key_of(cfg, varied))


def combinations(values: Mapping[str, list[str]], zipped: Sequence[Any]) -> list[list[str]]:
    """Return every combination of the keys' values as overrides, in the order of the keys and of their values.

    Args:
        zipped: keys, or lists of keys, of which the first values belong together, the second ones, and so on.

    Raises:
        ConfigError: a zipped key is not swept, stands in two groups, or has another number of values than its group;
            there are too many combinations.
    """
    group_of = {key: tuple(group) for group in _groups(zipped, values) for key in group}
    axes = dict.fromkeys(group_of.get(key, (key,)) for key in values)
    _check_count(math.prod(len(values[keys[0]]) for keys in axes))
    columns = [[[f"{key}={values[key][i]}" for key in keys] for i in range(len(values[keys[0]]))] for keys in axes]
    return [list(itertools.chain(*parts)) for parts in itertools.product(*columns)]


def _groups(zipped: Sequence[Any], values: Mapping[str, list[str]]) -> list[list[str]]:
    """Return the lists of keys whose values belong together."""
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
            numbers = ", ".join(f"{count} of {key}" for key, count in counts.items())
            raise ConfigError(f"sweep.zip: must have as many values of each of its keys, found {numbers}")
    return groups


def values_of(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """Return each key with the values it takes, as they are typed; a key given twice takes those given last.

    Raises:
        ConfigError: a key takes an interval, or too many values.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        if not override.is_sweep_override():
            values[override.get_key_element()] = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            if override.is_range_sweep():
                ends: Any = override.value()
                _check_count((ends.stop - ends.start) / ends.step if ends.step else math.inf)
            values[override.get_key_element()] = list(override.sweep_string_iterator())
        else:
            raise ConfigError(
                f"{override.key_or_group}: a sweep needs single values (a,b,c or range(1,10)), found an interval; "
                "`nncompress search` takes those"
            )
    return values


def _check_count(count: float) -> None:
    """Refuse a sweep of so many jobs. Raises ConfigError."""
    if not count <= MOST_JOBS:
        raise ConfigError(f"a sweep has at most {MOST_JOBS} jobs, found {count:g}; give fewer values")


def varied_in(values: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the keys that take several values."""
    return [key for key, each in values.items() if len(each) > 1]


def key_of(cfg: DictConfig, varied: Collection[str] = ()) -> str:
    """Return 12 hexadecimal digits that follow from all settings which change a job's figures, and from no place.

    Args:
        varied: keys that take several values in the sweep. One that says how a run is run (`device`, `eval_every`)
            tells jobs apart when it is among them, and only then.
    """
    tree = results_in(settings_of(cfg))
    keys = {key.lstrip("+") for key in varied}  # ++KEY=VALUE gives the key another value, too
    for key in sorted(key for key in keys if role_of(key) == "run"):
        tree[key] = OmegaConf.select(cfg, key)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:12]


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration without Hydra's part as plain containers.

    A part in which something is missing is text, with nothing resolved in it: the job itself will say what.
    """

    def plain(key: str) -> Any:
        try:
            value = cfg[key]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException:
            return OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, key))

    return {str(key): plain(str(key)) for key in cfg if key != "hydra"}
