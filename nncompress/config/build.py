"""Check every node of a configuration before anything is loaded, and build what it names.

The only module that calls Hydra's `instantiate`. Imports no torch of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress.config.schema import AUGMENTATION, GROUPS, ONE_SHOT, REFERENCE_TRAINING, TRACKING
from nncompress.config.signatures import Callee, check_call, locate
from nncompress.errors import ConfigError, one_line

OFFERED: dict[str, frozenset[str]] = {"model": frozenset({"input_shape", "num_classes"})}
"""The keywords that each group is supplied with where its target takes them."""
LEAST = {
    "eval_every": 1, "checkpoint_every": 1, "round_to": 1, "seed": 0, "sweep.retries": 0, "search.trials": 1,
    "search.parallel": 1,
}  # fmt: skip
"""The least value of each key that is a whole number."""
OPTIONS = {
    "precision": ("auto", "float32", "float64", "tf32", "bf16"),
    "protocol": ("last", "paper"),
    "sweep.on_error": ("continue", "stop"),
}
"""The values of each key that is one of several words."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
"""The names of devices."""


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers with every interpolation replaced.

    Raises:
        ConfigError: a value is missing (`???`) or an interpolation leads nowhere.
    """
    try:
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {one_line(error)}") from error
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def validate(cfg: DictConfig) -> None:
    """Check the shell's ranges and bind every node to the signature of its `_target_`; nothing is built.

    Raises:
        ConfigError: with all problems, one a line, each prefixed by its place in the configuration.
    """
    problems = [*range_problems(cfg, LEAST, OPTIONS), *_shell_problems(cfg), *_target_problems(cfg)]
    for group in GROUPS:
        problems += group_problems(cfg, group)
    if cfg.constraint is not None and "constraint" not in cfg.solver:
        problems.append(
            "constraint: is for solver=frank_wolfe; choose that solver, or take the constraint out (~constraint)"
        )
    for place in (REFERENCE_TRAINING, AUGMENTATION, *(f"{ONE_SHOT}.{name}" for name in cfg[ONE_SHOT] or ())):
        if OmegaConf.select(cfg, place) is not None:
            problems += group_problems(cfg, place)
    if OmegaConf.is_dict(cfg[TRACKING]):
        for name in cfg[TRACKING]:
            problems += group_problems(cfg, f"{TRACKING}.{name}")
    elif cfg[TRACKING] is not None:
        problems.append(
            f"{TRACKING}: needs a node for each tracker; choose with {TRACKING}=NAME, found '{cfg[TRACKING]}'"
        )
    if problems:
        raise ConfigError("\n".join(problem.replace("solver.constraint", "constraint") for problem in problems))


def build(node: DictConfig | Mapping[str, Any], /, **offered: Any) -> Any:
    """Return the object that `node` describes.

    Args:
        offered: keywords that its target is given where it takes them and the node does not give them.

    Raises:
        ConfigError: the target cannot be imported, or its constructor refuses a value.
    """
    name = str(node.get("_target_"))
    target = Callee(name, locate(name))
    accepted = {key: value for key, value in offered.items() if target.takes(key) and key not in node}
    with refusals(str(node._get_full_key(None)) if isinstance(node, DictConfig) else name):
        # Hydra would turn tuples among its keywords into lists: what is offered goes past it.
        construct = partial(instantiate(node, _convert_="all", _partial_=True), **accepted)
        return construct if node.get("_partial_") else construct()


@contextmanager
def refusals(place: str) -> Iterator[None]:
    """Turn a value that is refused within it into a ConfigError that begins with `place`; our own errors pass.

    Raises:
        ConfigError: in place of a ValueError or TypeError.
    """
    try:
        yield
    except InstantiationException as error:
        inner = re.search(r"full_key: (?:solver\.(?=constraint))?(\S+)", str(error))
        cause = error.__cause__ or error
        if isinstance(cause, InstantiationException | ValueError | TypeError):
            raise ConfigError(f"{inner.group(1) if inner else place}: {one_line(cause)}") from error
        raise cause from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place}: {one_line(error)}") from error


def range_problems(settings: Any, least: Mapping[str, int], options: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what is wrong with the numbers and words of settings, and with their `device`.

    Args:
        least: the least value of each dotted key.
        options: the values that each dotted key may have.
    """
    for key, bound in least.items():
        if (value := attrgetter(key)(settings)) < bound:
            yield f"{key}: must be at least {bound}, found {value}"
    for key, names in options.items():
        if (value := attrgetter(key)(settings)) not in names:
            yield f"{key}: must be one of {', '.join(names)}, found '{value}'"
    if not DEVICE.fullmatch(settings.device):
        yield f"device: must be auto, cpu, cuda or cuda:N, found '{settings.device}'"


def _shell_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield what is wrong with the keys of the shell whose ranges are their own."""
    own = {f"{ONE_SHOT}.{name}.at": node.get("at") for name, node in (cfg[ONE_SHOT] or {}).items()}
    for key, parts in {"compress_at": cfg.compress_at, **own}.items():
        wrong = [part for part in parts or () if not isinstance(part, int | float) or not 0 <= part < 1]
        if wrong:
            yield f"{key}: must be parts to take away, at least 0 and below 1, found {wrong[0]}"
    if cfg.sweep.retries > 100:
        yield f"sweep.retries: must be at most 100, found {cfg.sweep.retries}"
    if cfg.recalibrate < 0 or cfg.recalibrate == 1:
        yield f"recalibrate: must be 0 or at least 2 samples, found {cfg.recalibrate}"
    if not 0 <= cfg.validation < 1:
        yield f"validation: must be a part of the training samples, at least 0 and below 1, found {cfg.validation}"
    if cfg.reference is not None and not (Path(cfg.reference) / "model" / "model.json").is_file():
        yield f"reference: must be the folder of a finished run, found no model/model.json in '{cfg.reference}'"


def _target_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield what is wrong with the size to reach."""
    sizes = {str(key): value for key, value in cfg.target.items() if value is not None}
    for key, value in sizes.items():
        if key == "ratio" and not 0 < value <= 1:
            yield f"target.ratio: must be above 0 and at most 1 (compressed over dense parameters), found {value}"
        elif not 0 < value < math.inf:
            yield f"target.{key}: must be above 0 and finite, found {value}"
    if len(sizes) > 1:
        yield f"target: must be one of ratio, bits, macs, found {' and '.join(sizes)}"


def group_problems(cfg: DictConfig, group: str) -> Iterator[str]:
    """Yield what keeps the node at `group` from being built: it has no target, or keywords that do not bind."""
    try:
        selected = OmegaConf.select(cfg, group)
        node = OmegaConf.to_container(selected, resolve=True) if OmegaConf.is_config(selected) else selected
    except OmegaConfBaseException as error:
        yield f"{group}: {one_line(error)}"
        return
    if not isinstance(node, dict) or "_target_" not in node:
        choose = f"choose one with {group}=NAME" if group in GROUPS else f"give {group}._target_=..."
        yield f"{group}: needs a _target_ (the dotted path of a class or function); {choose}"
        return
    if group in ("solver", REFERENCE_TRAINING):
        steps = node.get("num_steps")
        if steps is None:
            yield f"{group}.num_steps: every solver needs its number of steps; give {group}.num_steps=N"
        elif isinstance(steps, int) and steps < 0:
            yield f"{group}.num_steps: must be at least 0, found {steps}"
    yield from check_call(group, {str(key): value for key, value in node.items()}, OFFERED.get(group, frozenset()))
