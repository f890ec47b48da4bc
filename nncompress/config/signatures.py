"""What a call by dotted path needs: does the target exist, do the keywords bind, do the values have the right type."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nncompress.errors import ConfigError, nearest, one_line

MISSING = "???"
"""A value that is still to be given."""
RESERVED = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})
"""The keys of a node that are no keywords."""
NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", type(None): "null"}
"""What the user is told of the types of plain values."""
EMPTY = inspect.Parameter.empty
"""The annotation or default of a parameter that has none."""


def locate(name: str) -> Any:
    """Return the callable at the dotted path `name`.

    Raises:
        ConfigError: a module cannot be imported, an attribute is not there, or what is there cannot be called.
    """
    steps = name.split(".")
    if len(steps) < 2 or not all(steps):
        raise ConfigError(f"_target_ must be a dotted path such as my_module.MyClass, found '{name}'")
    target, path = _import(steps[0], name), steps[0]
    if target is None:
        raise ConfigError(f"cannot import '{name}': no module '{path}' in the current folder or the environment")
    for step in steps[1:]:
        if hasattr(target, "__path__") and not hasattr(target, step):
            _import(f"{path}.{step}", name)
        if not hasattr(target, step):
            modules = pkgutil.iter_modules(getattr(target, "__path__", []))
            hint = nearest(step, {*dir(target), *(module.name for module in modules)})
            raise ConfigError(f"cannot find '{name}': '{path}' has no '{step}'{hint}")
        target, path = getattr(target, step), f"{path}.{step}"
    if not callable(target):
        raise ConfigError(f"_target_ must be a class or a function, found the {type(target).__name__} '{name}'")
    return target


def _import(module: str, name: str) -> Any:
    """Return the module, or None when there is none of that name; refuse `name` when its import fails otherwise."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return None
        raise ConfigError(f"cannot import '{name}': {type(error).__name__}: {one_line(error)}") from error


@dataclass(frozen=True)
class Callee:
    """A callable with its dotted path."""

    name: str
    function: Any

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters by name, annotations evaluated where they can be; none for a callable that shows none."""
        for evaluate in (True, False):
            try:
                return dict(inspect.signature(self.function, eval_str=evaluate).parameters)
            except (ValueError, TypeError, NameError, AttributeError, SyntaxError):
                continue
        return {}

    @property
    def open(self) -> bool:
        """Whether any keyword is accepted."""
        return not self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    @cached_property
    def keywords(self) -> dict[str, inspect.Parameter]:
        """The parameters that may be given by name."""
        return {n: p for n, p in self.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def takes(self, keyword: str) -> bool:
        """Return whether the signature names `keyword`."""
        return keyword in self.keywords


def check_call(place: str, node: Mapping[str, Any], offered: Collection[str] = ()) -> Iterator[str]:
    """Yield the problems of a node (`_target_` and keywords): with its target, its keywords, their types.

    Args:
        place: the node's path in the configuration, put before each problem.
        node: plain containers, interpolations resolved.
        offered: keywords that are supplied when the target takes them.
    """
    name = node["_target_"]
    try:
        target = Callee(str(name), locate(str(name)))
    except ConfigError as error:
        yield f"{place}: {error}"
        return
    values = {key: value for key, value in node.items() if key not in RESERVED}
    for key in values:
        if not target.open and not target.takes(key):
            hint = nearest(key, target.keywords) or f"; it takes {', '.join(target.keywords) or 'none'}"
            yield f"{place}.{key}: {target.name} has no keyword '{key}'{hint}"
    positional = [n for n, p in target.parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    count = len(node.get("_args_", ())) + (1 if node.get("_partial_") else 0)
    supplied = {*values, *offered, *[n for n in positional if n not in values][:count]}
    for key, parameter in target.keywords.items():
        if parameter.default is EMPTY and key not in supplied:
            yield f"{place}.{key}: {target.name} needs it; give {place}.{key}=..."
    for key, value in values.items():
        annotation = target.keywords[key].annotation if target.takes(key) else EMPTY
        yield from _check_value(f"{place}.{key}", value, annotation)


def _check_value(place: str, value: Any, annotation: Any) -> Iterator[str]:
    """Yield the problems of one value: nodes within it, a value still to be given, a type that does not fit."""
    nodes = list(_nodes(place, value))
    for inner, node in nodes:
        yield from check_call(inner, node)
    if value == MISSING:
        yield f"{place}: a value is required; give {place}=..."
    elif not nodes and not fits(value, annotation):
        is_text = isinstance(value, str) and _is_number(value)
        hint = " (that is text: write the number without quotes)" if is_text else ""
        yield f"{place}: must be {describe(annotation)}, found {_show(value)}{hint}"


def _nodes(place: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the outermost nodes inside a value, each with its place."""
    if isinstance(value, dict) and "_target_" in value:
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nodes(f"{place}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nodes(f"{place}[{index}]", item)


def fits(value: Any, annotation: Any) -> bool:
    """Return whether a plain YAML value may be passed for an annotation; one that is not understood accepts all."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    kind = origin or annotation
    if kind in (None, type(None)):
        return value is None
    if not isinstance(kind, type) or kind in (EMPTY, object):
        return True
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in NAMES:
        return isinstance(value, str if kind is Path else kind)
    return _fits_container(value, kind, arguments)


def _fits_container(value: Any, kind: type, arguments: tuple[Any, ...]) -> bool:
    if issubclass(kind, collections.abc.Mapping):
        return isinstance(value, dict) and (not arguments or all(fits(item, arguments[1]) for item in value.values()))
    if _is_ours(kind):
        return not isinstance(value, str | int | float)
    if not issubclass(kind, collections.abc.Iterable) or kind.__module__ not in ("builtins", "collections.abc"):
        return True
    if not isinstance(value, list):
        return False
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return not arguments or all(fits(item, arguments[0]) for item in value)


def _is_ours(kind: Any) -> bool:
    """Return whether it is a class of this package, whose objects only a node can give."""
    return isinstance(kind, type) and kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def describe(annotation: Any) -> str:
    """Return what an annotation asks for, in words: `a list of an integer or null`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is typing.Annotated:
        return describe(arguments[0])
    kind = origin or annotation
    if kind in NAMES:
        return NAMES[kind]
    if _is_ours(kind):
        return f"a node ({{_target_: ...}}) of {kind.__name__}"
    if isinstance(kind, type) and issubclass(kind, collections.abc.Mapping):
        return f"a mapping to {describe(arguments[1])}" if arguments else "a mapping"
    if isinstance(kind, type) and issubclass(kind, collections.abc.Iterable):
        inner = [describe(argument) for argument in arguments if argument is not Ellipsis]
        return f"a list of {', '.join(inner)}" if inner else "a list"
    return getattr(kind, "__name__", str(kind))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"'{value}'" if isinstance(value, str) else str(value)
