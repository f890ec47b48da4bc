"""The words of the command that a sweep has on record: which of them it follows when it goes on.

`sweep.json` may come from anybody. A word of it is read by Hydra's grammar and followed when it is one of those listed
here; of Hydra's own configuration there are the launchers of this package with a few numbers and names, and no more.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from nncompress.config.options import groups
from nncompress.config.overrides import named_folder, quote
from nncompress.config.schema import KEYS, is_below
from nncompress.errors import ConfigError, printable
from nncompress.results.sweep_folder import SWEEP, read_manifest, refuse_links

log = logging.getLogger(__name__)

WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")
"""Hydra's flags that are followed by a word of their own."""
CHOSEN = {
    "launcher": ("local", "joblib", "ray", "slurm", "slurm_local"),
    "hydra/launcher": ("basic", "joblib", "ray"),
    "hydra/sweeper": ("nncompress", "nncompress_search"),
    "hydra.launcher.ray.init.address": ("auto", "null"),
}
"""Keys of Hydra of which some values are followed."""
OF_LAUNCHER = {
    *("n_jobs", "batch_size", "pre_dispatch", "timeout", "verbose"),
    *("timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"),
    *("partition", "qos", "account", "constraint", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu"),
    *("signal_delay_s", "max_num_timeout", "array_parallelism", "name", "gres", "comment"),
    *("ray.init.num_cpus", "ray.init.num_gpus", "ray.init.log_to_driver"),
    *("ray.remote.num_cpus", "ray.remote.num_gpus", "ray.remote.memory", "ray.remote.max_retries"),
}
"""The keys of launchers, each with a number or a name, that are followed."""
NUMBER_OR_NAME = re.compile(r"-\d[\d.]*|(?P<q>['\"]?)[A-Za-z0-9][\w.:-]*( [A-Za-z0-9][\w.:-]*)*(?P=q)", re.ASCII)
"""A number, or words of which none begins with a dash, as an option of a program would."""
OF_JOBS = re.compile(r"(?P<q>['\"]?)\d{1,4}\*n_jobs(?P=q)", re.ASCII)
"""What joblib may work out."""
OPTIONS = re.compile(r"(?:[\w*,\[\]() =-]|(?<=\w)/(?=\w))*", re.ASCII)
"""Options of a group, several of them or Hydra's functions of them: no path leads out of the group."""
OTHER_KEY = re.compile(r"\$\{[A-Za-z_][\w.]*\}", re.ASCII)
"""An interpolation that is the value of another key."""
REFERENCES = 16
"""Interpolations on record: through several of them values grow as a power."""
DEPTH = 32
"""How deep the values of a word may be nested."""
LAUNCHERS = ("launcher", "hydra/launcher")
"""The keys that choose a launcher."""
OF_THIS_COMMAND = ("sweep.resume", "hydra.sweep.dir")
"""Keys of which what is on record does not count: the folder is where it is now."""
NEVER = ("allow", "resume", "choices", "search.store", "search.trial")
"""Keys that no file may give."""


def with_recorded(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command, after those on record of the sweep that `sweep.resume=` among them names, if any.

    With `-m` those of the command are all there are. Words on record that say how the sweep is run and are not followed
    are told.

    Raises:
        ConfigError: the folder holds no sweep, or a word that says what a job is cannot be followed.
    """
    folder = named_folder(arguments, "sweep.resume", "a sweep")
    if folder is None:
        return list(arguments)
    shown = printable(str(folder / SWEEP))
    refuse_links(folder)
    flags, overrides = split(arguments)
    other_flags, recorded = split([] if "-m" in flags else read_manifest(folder).command)
    dropped = [flag for flag in other_flags if flag != "-m"]
    if not overrides.keys().isdisjoint(LAUNCHERS):  # what is set of another one may be none of its keys
        theirs = [key for key in recorded if is_below(key.replace("/", "."), ("launcher", "hydra.launcher"))]
        dropped += [recorded.pop(key) for key in theirs if key not in overrides]
    for key in [key for key, word in recorded.items() if key not in overrides and not is_followed(word)]:
        word = recorded.pop(key)
        if not is_below(key.replace("/", "."), ("hydra", "launcher", "sweep.resume", *NEVER)):
            raise ConfigError(f"{shown} holds {printable(word)}, which no file may give; if it is right, give it again")
        if key not in OF_THIS_COMMAND:
            dropped.append(word)
    if sum(word.count("${") for word in recorded.values()) > REFERENCES:
        raise ConfigError(f"{shown} holds more than {REFERENCES} interpolations, whose values may grow without end")
    for word in dropped:
        log.warning("%s of %s is not taken over; give it again if it is needed", printable(word), shown)
    merged = {key: word for key, word in (recorded | overrides).items() if key not in OF_THIS_COMMAND}
    place = [f"{key}={quote(str(folder))}" for key in OF_THIS_COMMAND]  # last: nothing comes after it
    return [*itertools.chain(*{"-m": ["-m"], **flags}.values()), *merged.values(), *place]


def is_followed(word: str) -> bool:
    """Tell whether a word on record is followed."""
    depth = itertools.accumulate((char in "[{(") - (char in "]})") for char in word)
    others = OTHER_KEY.sub("", word)
    if max(depth, default=0) > DEPTH or "${" in others or ("$" in word and "\\" in word):
        return False
    try:
        parsed = OverridesParser.create().parse_override(word)
    except Exception:  # Hydra's and ANTLR's
        return False
    key, value = parsed.key_or_group, word.partition("=")[2]
    if key == "launcher" or is_below(key.replace("/", "."), ("hydra",)):
        return parsed.package is None and not parsed.is_delete() and _is_harmless(key, value, parsed)
    part = key.partition(".")[0]
    if key in ("sweep", "search", *OF_THIS_COMMAND) or is_below(key, NEVER):
        return False
    if parsed.package is not None and parsed.package.partition(".")[0] not in KEYS:
        return False
    return OPTIONS.fullmatch(value) is not None if key in groups() else part in KEYS


def _is_harmless(key: str, value: str, parsed: Override) -> bool:
    """Tell whether a word of Hydra's own configuration starts nothing but what this package ships."""
    if key in CHOSEN:
        return value in CHOSEN[key]
    name = key.removeprefix("hydra.sweeper.params.")
    if name != key:
        return "." not in name and is_followed(f"{name}={parsed.value()}")
    if key == "hydra.sweep.subdir":  # where it leads is looked at for each job
        return True
    if key == "hydra.launcher.pre_dispatch" and OF_JOBS.fullmatch(value):
        return True
    plain = key == "hydra.sweeper.max_batch_size" or key.removeprefix("hydra.launcher.") in OF_LAUNCHER
    return plain and NUMBER_OR_NAME.fullmatch(value) is not None


def split(words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return flags with what follows them, and overrides by their keys; of several the last counts."""
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
