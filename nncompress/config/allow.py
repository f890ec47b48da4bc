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
"""The key whose value is the dotted path of a class or function."""


def check(tree: Mapping[str, Any], allow: Sequence[str], source: str) -> None:
    """Refuse a tree of containers, read from `source`, that names what is neither known nor allowed.

    What a name leads to must lie in such a module too, so that nothing is reached through what a module imports.
    Nothing is imported before every name is known or allowed.

    Args:
        allow: modules, with all below them, or classes.

    Raises:
        ConfigError: with every name that is refused and what allows it; a name leads nowhere; a text in the tree holds
            an interpolation.
    """
    environment = [name.strip() for name in os.environ.get(ENVIRONMENT, "").split(",") if name.strip()]
    allowed = [*KNOWN, *([allow] if isinstance(allow, str) else allow), *environment]
    try:
        plain = OmegaConf.to_container(tree, resolve=True) if OmegaConf.is_config(tree) else tree
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {error.full_key}: {one_line(error)}") from error
    for text in _parts(plain):
        if isinstance(text, str) and "${" in text and text not in PLACES:
            raise ConfigError(f"{source} must hold values, found the interpolation '{text}'; write the value there")
    names = sorted(set(targets(plain)))
    refused = {name: name for name in names if not _is_covered(name, allowed)}
    if not refused:
        origins = {name: _origin(name, source) for name in names if name not in allowed}
        refused = {name: origin for name, origin in origins.items() if not _may_lead_to(origin, name, allowed)}
    if refused:
        raise ConfigError(_refusal(refused, source))


def targets(tree: Any, key: str = TARGET) -> list[str]:
    """Return the dotted paths that a tree of containers gives under a key, at any depth."""
    plain = OmegaConf.to_container(tree) if OmegaConf.is_config(tree) else tree
    return [str(part[key]) for part in _parts(plain) if isinstance(part, Mapping) and key in part]


def allowed_modules(overrides: Sequence[str]) -> list[str]:
    """Return the modules of the last override `allow=[...]` of a command.

    Raises:
        ConfigError: it gives something else than a list of names.
    """
    last = [override for override in overrides if override.startswith("allow=")][-1:]
    try:
        modules = OmegaConf.to_container(OmegaConf.from_dotlist(last)).get("allow", [])  # type: ignore[union-attr]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{last[0]}: {one_line(error)}") from error
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ConfigError(f"allow must be a list of modules such as allow=[my_nets], found {last[0]}")
    return modules


def _parts(tree: Any) -> Iterator[Any]:
    """Yield a tree of containers and all that is in it, keys included."""
    yield tree
    if isinstance(tree, Mapping | list | tuple):
        for item in [*tree, *tree.values()] if isinstance(tree, Mapping) else tree:
            yield from _parts(item)


def _is_covered(name: str, allowed: Collection[str]) -> bool:
    """Return whether a dotted path is one of the allowed ones or below one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def _origin(name: str, source: str) -> str:
    """Return where the class or function at a dotted path was made; refuse what `locate` does not find: Hydra might."""
    try:
        target = locate(name)
    except ConfigError as error:
        raise ConfigError(
            f"{source} names {name}, which must be importable: {error}; run where it can be imported (its folder on "
            "PYTHONPATH, or the current one)"
        ) from error
    made = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    return f"{getattr(made, '__module__', None)}.{getattr(made, '__qualname__', made)}"


def _may_lead_to(origin: str, name: str, allowed: Collection[str]) -> bool:
    """Return whether a name may stand for what was made at `origin`: no private function of this package or torch."""
    return _is_covered(origin, allowed) and not (_is_covered(name, KNOWN) and origin.rpartition(".")[2].startswith("_"))


def _refusal(refused: Mapping[str, str], source: str) -> str:
    names = [name if name == origin else f"{name}, which is {origin}" for name, origin in refused.items()]
    modules = list(dict.fromkeys(origin.rpartition(".")[0] or origin for origin in refused.values()))
    quoted = ", ".join(f'"{module}"' for module in modules)
    return (
        f"{source} names {', '.join(names)}, but only classes of {PACKAGE}, torch and the modules you allow are "
        f"imported; if you trust it, add allow=[{','.join(modules)}], or nncompress.load(path, allow=[{quoted}])"
    )
