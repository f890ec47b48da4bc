"""The groups of the packaged configuration and their options, without composing anything."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from importlib.resources.abc import Traversable

ROOT = "nncompress.conf"


def groups() -> dict[str, list[str]]:
    """The sorted options of every group that has any; an option in a folder of its group is `folder/name`.

    The folders of `scale` hold what its options choose for each network: nobody chooses them.
    """
    folders = [entry for entry in importlib.resources.files(ROOT).iterdir() if entry.is_dir()]
    found = {folder.name: sorted(_options(folder)) for folder in folders}
    found["scale"] = [option for option in found["scale"] if "/" not in option]
    return {name: found[name] for name in sorted(found) if found[name]}


def _options(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _options(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")
