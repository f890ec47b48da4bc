"""Write the objects of a compact network, compressions and views, as plain values, and restore them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from nncompress import compressions
from nncompress.compressions import Compression, Part, View, decomposition, quantization, sparsity
from nncompress.config.signatures import locate
from nncompress.errors import CheckpointError, ConfigError

CLASS = "class"
PACKAGES: tuple[ModuleType, ...] = (compressions, decomposition, quantization, sparsity)
KINDS: dict[str, type[Any]] = {
    name: kind
    for package in PACKAGES
    for name in package.__all__
    if isinstance(kind := getattr(package, name), type) and issubclass(kind, Compression | View | Part | tuple)
}
"""The classes of this package that files name, by the names they are offered under; all others have dotted paths."""


class Missing(Exception):
    """A class that the description names cannot be imported."""


def stored_object(value: Any) -> Any:
    """Return plain values as they are; for a frozen dataclass its class by name and its fields."""
    if isinstance(value, tuple | list):
        return [stored_object(item) for item in value]
    if isinstance(value, Mapping):
        raise CheckpointError(f"a compression and a view have no mappings among their fields, found {value}")
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: stored_object(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {CLASS: class_name(type(value))} | fields


def restored_object(stored: Any) -> Any:
    """Return what `stored_object` was given, whatever its constructor takes; fields not stored have their default.

    Its ranges are checked as by a constructor (`__post_init__`).
    """
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
    if hasattr(value, "__post_init__"):
        value.__post_init__()
    return value


def class_name(kind: type[Any]) -> str:
    """Return the name of a class in files: one of `KINDS`, else its dotted path.

    Raises:
        CheckpointError: no import finds it.
    """
    if KINDS.get(kind.__name__) is kind:
        return kind.__name__
    path = f"{kind.__module__}.{kind.__qualname__}"
    if "<" in path:
        raise CheckpointError(f"a class that is stored is found again by its path, found {path}; move it to a module")
    return path


def find_class(name: str) -> type[Any]:
    """Return the dataclass or NamedTuple of a name in a file; a dotted path must be allowed. Raises CheckpointError."""
    if name in KINDS:
        return KINDS[name]
    try:
        kind = locate(name)
    except ConfigError as error:
        raise Missing(
            f"the class {name} must be importable: {error}; run where it can be imported (its folder on "
            "PYTHONPATH, or the current one)"
        ) from error
    if not isinstance(kind, type) or not (dataclasses.is_dataclass(kind) or issubclass(kind, tuple)):
        raise CheckpointError(f"a compact model is made of compressions, views and their Θ, found {name}")
    return kind
