"""The groups of the packaged configuration, their options and their keys, without composing anything or Hydra."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from nncompress.config.schema import AUGMENTATION, GROUPS, TRACKING, Config

ROOT = "nncompress.conf"
"""The package of the configuration."""
OF_RUN = (*GROUPS, "constraint", AUGMENTATION, TRACKING)
"""The groups whose options a run is made of; those of the others choose among these, or say how runs are run."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fastest loader of YAML that is installed."""


def groups(*added: Traversable) -> dict[str, list[str]]:
    """Return the sorted options of every group that has any; an option in a folder of its group is `folder/name`.

    The folders of `scale` hold what its options choose for each network: nobody chooses them.

    Args:
        added: folders of configurations beside the packaged one.
    """
    options: dict[str, set[str]] = {}
    for root in (importlib.resources.files(ROOT), *added):
        for folder in (entry for entry in root.iterdir() if entry.is_dir()):
            options.setdefault(folder.name, set()).update(_options(folder))
    options["scale"] = {option for option in options["scale"] if "/" not in option}
    return {name: sorted(options[name]) for name in sorted(options) if options[name]}


def outline(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys with their values as nested dictionaries, much as Hydra composes them from words GROUP=OPTION.

    It is read in a tenth of the time, for completion: nothing is checked, and options that are not packaged are left
    out.
    """
    given = dict(re.findall(r"^(\w+)=([\w/]+)$", "\n".join(overrides), re.MULTILINE))
    shell, chosen = _read("config")
    chosen |= given
    for group in ("experiment", "model", "solver"):  # which choose options of other groups
        chosen |= _read(group, chosen.get(group))[1] | given
    keys = asdict(Config())
    for name, node in {**shell, **{group: _read(group, chosen.get(group))[0] for group in OF_RUN}}.items():
        keys[name] = keys.get(name, {}) | node if isinstance(keys.get(name), dict) else node
    return keys


def _read(*path: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the node in a file of the packaged configuration, and the options of groups that it chooses."""
    file = importlib.resources.files(ROOT).joinpath(f"{'/'.join(map(str, path))}.yaml")
    node: dict[str, Any] = yaml.load(file.read_bytes(), Loader=LOADER) if file.is_file() else {}
    chosen: dict[str, str] = {}
    for default in node.pop("defaults", ()):
        if isinstance(default, Mapping):
            ((key, option),) = default.items()
            chosen[key.rpartition("/")[2].partition("@")[0].removeprefix("override ")] = option
        elif default != "_self_":
            base, others = _read(*(path[:-1] if "/" not in default else ()), default.strip("/"))
            node, chosen = base | node, others | chosen
    return node, chosen


def _options(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _options(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")
