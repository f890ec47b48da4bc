"""Check every node of a configuration before anything is loaded, and build what it names.

The only module that calls Hydra's `instantiate`. Imports no torch of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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


PRECISIONS = ("auto", "float32", "float64", "tf32", "bf16")


PROTOCOLS = ("last", "paper")


ON_ERROR = ("continue", "stop")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation replaced.

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
        ConfigError: with all problems found, one a line, each prefixed by its place in the configuration.
    """
    problems = list(_shell_problems(cfg))
    for group in GROUPS:
        problems += group_problems(cfg, group)
    if cfg.constraint is not None and "constraint" not in cfg.solver:
        problems.append(
            "constraint: is for solver=frank_wolfe; choose that solver, or take the constraint out (~constraint)"
        )
    for place in (REFERENCE_TRAINING, AUGMENTATION, *(f"{ONE_SHOT}.{name}" for name in cfg[ONE_SHOT] or ())):
        if OmegaConf.select(cfg, place) is not None:
            problems += group_problems(cfg, place)
    problems += _tracking_problems(cfg)
    if problems:
        raise ConfigError("\n".join(problem.replace("solver.constraint", "constraint") for problem in problems))


def build(node: DictConfig | Mapping[str, Any], /, **offered: Any) -> Any:
    """The object `node` describes; of the `offered` keywords those its target takes and the node does not give.

    Raises:
        ConfigError: the target cannot be imported, or its constructor refuses a value.
    """
    name = str(node.get("_target_"))
    target = Callee(name, locate(name))
    accepted = {key: value for key, value in offered.items() if target.takes(key) and key not in node}
    with refusals(str(node._get_full_key(None)) if isinstance(node, DictConfig) else name):
        # Hydra would turn tuples among its keywords into lists: what is offered goes past it.
        made = partial(instantiate(node, _convert_="all", _partial_=True), **accepted)
        return made if node.get("_partial_") else made()


@contextmanager
def refusals(place: str) -> Iterator[None]:
    """Within it a value that is refused becomes a ConfigError that begins with `place`; our own errors pass.

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


def _shell_problems(cfg: DictConfig) -> Iterator[str]:
    for key in ("eval_every", "checkpoint_every", "round_to"):
        if cfg[key] < 1:
            yield f"{key}: must be at least 1, found {cfg[key]}"
    own = {f"{ONE_SHOT}.{name}.at": node.get("at") for name, node in (cfg[ONE_SHOT] or {}).items()}
    for key, parts in {"compress_at": cfg.compress_at, **own}.items():
        wrong = [part for part in parts or () if not isinstance(part, int | float) or not 0 <= part < 1]
        if wrong:
            yield f"{key}: must be parts to take away, at least 0 and below 1, found {wrong[0]}"
    if cfg.recalibrate < 0 or cfg.recalibrate == 1:
        yield f"recalibrate: must be 0 or at least 2 samples, found {cfg.recalibrate}"
    if cfg.seed < 0:
        yield f"seed: must be at least 0, found {cfg.seed}"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", cfg.device):
        yield f"device: must be auto, cpu, cuda or cuda:N, found '{cfg.device}'"
    if cfg.precision not in PRECISIONS:
        yield f"precision: must be one of {', '.join(PRECISIONS)}, found '{cfg.precision}'"
    if cfg.protocol not in PROTOCOLS:
        yield f"protocol: must be one of {', '.join(PROTOCOLS)}, found '{cfg.protocol}'"
    if cfg.sweep.on_error not in ON_ERROR:
        yield f"sweep.on_error: must be one of {', '.join(ON_ERROR)}, found '{cfg.sweep.on_error}'"
    for key in ("trials", "parallel"):
        if cfg.search[key] < 1:
            yield f"search.{key}: must be at least 1, found {cfg.search[key]}"
    if cfg.sweep.retries < 0:
        yield f"sweep.retries: must be at least 0, found {cfg.sweep.retries}"
    if not 0 <= cfg.validation < 1:
        yield f"validation: must be a part of the training samples, at least 0 and below 1, found {cfg.validation}"
    if cfg.reference is not None and not (Path(cfg.reference) / "model" / "model.json").is_file():
        yield f"reference: must be the folder of a finished run, found no model/model.json in '{cfg.reference}'"
    yield from _target_problems(cfg)


def _tracking_problems(cfg: DictConfig) -> Iterator[str]:
    trackers = cfg[TRACKING]
    if trackers is None:
        return
    if not OmegaConf.is_dict(trackers):
        yield f"{TRACKING}: needs a node for each tracker; choose with {TRACKING}=NAME, found '{trackers}'"
        return
    for name in trackers:
        yield from group_problems(cfg, f"{TRACKING}.{name}")


def _target_problems(cfg: DictConfig) -> Iterator[str]:
    given = {str(key): value for key, value in cfg.target.items() if value is not None}
    for key, value in given.items():
        if not 0 < value < math.inf or (key == "ratio" and value > 1):
            least = (
                "above 0 and at most 1 (compressed over dense parameters)" if key == "ratio" else "above 0 and finite"
            )
            yield f"target.{key}: must be {least}, found {value}"
    if len(given) > 1:
        yield f"target: must be one of ratio, bits, macs, found {' and '.join(given)}"


def group_problems(cfg: DictConfig, group: str) -> Iterator[str]:
    """What keeps the node at `group` from being built, in words: no target, keywords that do not bind."""
    try:
        given = OmegaConf.select(cfg, group)
        node = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    except OmegaConfBaseException as error:
        yield f"{group}: {one_line(error)}"
        return
    if not isinstance(node, dict) or "_target_" not in node:
        choose = f"choose one with {group}=NAME" if group in GROUPS else f"give {group}._target_=..."
        yield f"{group}: needs a _target_ (the dotted path of a class or function); {choose}"
        return
    if group in ("solver", REFERENCE_TRAINING):
        yield from _step_problems(group, node)
    yield from check_call(group, {str(key): value for key, value in node.items()}, OFFERED.get(group, frozenset()))


def _step_problems(place: str, solver: Mapping[Any, Any]) -> Iterator[str]:
    steps = solver.get("num_steps")
    if steps is None:
        yield f"{place}.num_steps: every solver needs its number of steps; give {place}.num_steps=N"
    elif isinstance(steps, int) and steps < 0:
        yield f"{place}.num_steps: must be at least 0, found {steps}"
