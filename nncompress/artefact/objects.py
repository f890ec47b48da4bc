"""Write the objects of a compact network, compressions and views, as plain values, and restore them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nncompress.artefact.encoding import path_of
from nncompress.config.signatures import locate
from nncompress.errors import CheckpointError, ConfigError

CLASS = "class"


class Missing(Exception):
    """A class that the description names cannot be imported."""


def stored_object(value: Any) -> Any:
    """Return plain values as they are; for a frozen dataclass its class by dotted path and its fields."""
    if isinstance(value, tuple | list):
        return [stored_object(item) for item in value]
    if isinstance(value, Mapping):
        raise CheckpointError(f"a compression and a view have no mappings among their fields, found {value}")
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: stored_object(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {CLASS: path_of(type(value))} | fields


def restored_object(stored: Any) -> Any:
    """Return what `stored_object` was given, whatever its constructor takes; fields not stored have their default."""
    if isinstance(stored, list):
        return tuple(restored_object(item) for item in stored)
    if not isinstance(stored, dict):
        return stored
    kind = find_class(stored[CLASS])
    names = [field.name for field in dataclasses.fields(kind)]
    wrong = {*stored} - {CLASS, *names} | {name for name in names if name not in stored and not hasattr(kind, name)}
    if wrong:
        raise CheckpointError(f"{stored[CLASS]} has the fields {', '.join(names)}, found otherwise {min(wrong)}")
    value = object.__new__(kind)
    for field, content in stored.items():
        if field != CLASS:
            object.__setattr__(value, field, restored_object(content))
    return value


def find_class(path: str) -> type[Any]:
    """Return the dataclass or NamedTuple at a dotted path. Raises CheckpointError for anything else."""
    try:
        kind = locate(path)
    except ConfigError as error:
        raise Missing(
            f"the class {path} must be importable: {error}; run where it can be imported (its folder on "
            "PYTHONPATH, or the current one)"
        ) from error
    if not isinstance(kind, type) or not (dataclasses.is_dataclass(kind) or issubclass(kind, tuple)):
        raise CheckpointError(f"a compact model is made of compressions, views and their Θ, found {path}")
    return kind
