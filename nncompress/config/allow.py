"""Which classes a file that is read back may name: what configurations here are made of, and what the user allows.

Whoever can write such a file could else have any function of any module called.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nncompress.config.schema import FOLLOWED, role_of
from nncompress.config.signatures import locate
from nncompress.errors import ConfigError, one_line

ENVIRONMENT = "NNCOMPRESS_ALLOW"
"""The variable that allows modules too, separated by commas."""
PARTS = (
    "compressions", "constraints", "data.augmentation", "data.cifar", "data.digits", "data.har", "data.image_folder",
    "data.mnist", "data.npz", "experiment.one_shot", "models", "solvers", "tracking",
)  # fmt: skip
"""The modules of this package that configurations name."""
PACKAGE = __name__.partition(".")[0]
KNOWN = (
    *(f"{PACKAGE}.{part}" for part in PARTS), "torch.nn", "torch.optim", "optuna.samplers", "optuna.pruners",
    "optuna.samplers.TPESampler", "optuna.pruners.MedianPruner",
)  # fmt: skip
"""What is allowed without asking. The last two, found in every configuration, are not imported to see what they are."""
PLACES = tuple(f"${{{key}}}" for key in FOLLOWED.values() if role_of(key) == "place")
"""Interpolations that the data set of a compact network holds."""
TARGET = "_target_"


def check(tree: Mapping[str, Any], allow: Sequence[str], source: str) -> None:
    """Refuse a tree of containers, read from `source`, that names what is neither known nor allowed.

    allow: modules, with all below them, or classes. What a name leads to must lie in such a module too, so that nothing
    is reached through what a module imports. Nothing is imported before every name is known or allowed.

    Raises:
        ConfigError: with every name that is refused and what allows it; a name leads nowhere; a text in the tree holds
            an interpolation.
    """
    allowed = [*KNOWN, *([allow] if isinstance(allow, str) else allow), *_from_environment()]
    found = _plain(tree, source)
    for text in _texts(found):
        if "${" in text and text not in PLACES:
            raise ConfigError(f"{source} must hold values, found the interpolation '{text}'; write the value there")
    names = sorted(set(targets(found)))
    refused = {name: name for name in names if not _covered(name, allowed)}
    if not refused:
        origins = {name: _origin(name, source) for name in names if name not in allowed}
        refused = {
            name: origin
            for name, origin in origins.items()
            if not (_covered(origin, allowed) and _public(name, origin))
        }
    if refused:
        raise ConfigError(_refusal(refused, source))


def targets(tree: Any, key: str = TARGET) -> list[str]:
    """The dotted paths that a tree of containers gives under a key, at any depth."""
    plain = OmegaConf.to_container(tree) if OmegaConf.is_config(tree) else tree
    return [str(name) for name in _named(plain, key)]


def given(words: Sequence[str]) -> list[str]:
    """The modules of the last word `allow=[...]` of a command.

    Raises:
        ConfigError: it gives something else than a list of names.
    """
    last = [word for word in words if word.startswith("allow=")][-1:]
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist(last)).get("allow", [])  # type: ignore[union-attr]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{last[0]}: {one_line(error)}") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"allow must be a list of modules such as allow=[my_nets], found {last[0]}")
    return found


def _from_environment() -> list[str]:
    return [word.strip() for word in os.environ.get(ENVIRONMENT, "").split(",") if word.strip()]


def _plain(tree: Any, source: str) -> Any:
    """Plain containers, in which nothing is left to resolve."""
    try:
        return OmegaConf.to_container(tree, resolve=True) if OmegaConf.is_config(tree) else tree
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {error.full_key}: {one_line(error)}") from error


def _named(tree: Any, key: str) -> Iterator[Any]:
    """The values of a key, at any depth."""
    if isinstance(tree, Mapping):
        if key in tree:
            yield tree[key]
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from _named(item, key)


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _texts([*tree, *tree.values()])
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _texts(item)


def _covered(name: str, allowed: Collection[str]) -> bool:
    """Whether a dotted path is one of the allowed ones or below one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def _origin(name: str, source: str) -> str:
    """Where the class or function at a dotted path was made; refused when `locate` finds none, for Hydra might."""
    try:
        found = locate(name)
    except ConfigError as error:
        raise ConfigError(
            f"{source} names {name}, which must be importable: {error}; run where it can be imported (its folder on "
            "PYTHONPATH, or the current one)"
        ) from error
    named = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    return f"{getattr(named, '__module__', None)}.{getattr(named, '__qualname__', named)}"


def _public(name: str, origin: str) -> bool:
    """Whether it is not a function that is private to this package or torch."""
    return not _covered(name, KNOWN) or not origin.rpartition(".")[2].startswith("_")


def _refusal(refused: Mapping[str, str], source: str) -> str:
    found = [name if name == origin else f"{name}, which is {origin}" for name, origin in refused.items()]
    modules = list(dict.fromkeys(origin.rpartition(".")[0] or origin for origin in refused.values()))
    quoted = ", ".join(f'"{module}"' for module in modules)
    return (
        f"{source} names {', '.join(found)}, but only classes of {PACKAGE}, torch and the modules you allow are "
        f"imported; if you trust it, add allow=[{','.join(modules)}], or nncompress.load(path, allow=[{quoted}])"
    )
