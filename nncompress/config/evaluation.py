"""The configuration of `nncompress eval`: its keys, and how words and the data set of an artefact make it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from hydra import compose
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from nncompress.config.build import build, group_problems, range_problems
from nncompress.config.overrides import packaged_config
from nncompress.config.schema import Downloads
from nncompress.errors import ConfigError
from nncompress.files import require_free

NAME = "eval"
"""The configuration in `conf/`."""
OF_ARTEFACT = "artefact"
"""The option of the group `dataset` that is the data set a network was trained on."""
PRECISIONS = ("auto", "float32", "float64")


@dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation measures, where, and with which data; the typed keys of `conf/eval.yaml`.

    - seed: of the random samples of the latency.
    - device, precision: where accuracy and latency are measured, and with which numbers.
    - data_dir, data: where data sets are, and whether those that are not there are fetched.
    - batch_sizes: samples of the forward passes whose latency is measured.
    - seconds: the least measuring time of each latency.
    - output: the new folder for what is found; None: one below `outputs/evaluations`.
    - allow: modules of which the artefact may name classes.
    - dataset: the node of the data set, `_target_` and its keywords; None: no accuracy is measured.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    data_dir: str = "${oc.env:NNCOMPRESS_DATA,data}"
    data: Downloads = field(default_factory=Downloads)
    batch_sizes: list[int] = field(default_factory=lambda: [1, 256])
    seconds: float = 0.5
    output: str | None = None
    allow: list[str] = field(default_factory=list)
    dataset: Any = None


def read_settings(overrides: Sequence[str], data: Any) -> EvaluationSettings:
    """Return the settings that words KEY=VALUE make.

    Args:
        data: the node of the data set, unless the words choose another.

    Raises:
        ConfigError: with all that is wrong, or with the first word that Hydra refuses.
    """
    keys = [word.partition("=")[0].lstrip("+~") for word in overrides]
    with packaged_config(overrides, NAME):
        cfg = _compose(overrides, data)
        if "dataset._target_" in keys:  # the keys of the one it replaces no longer count
            cfg.dataset = {key: value for key, value in cfg.dataset.items() if f"dataset.{key}" in keys}
        _refuse([*_unknown(keys)])
        settings = cast(EvaluationSettings, OmegaConf.to_object(cfg))
    _refuse([*_problems(settings)])
    return settings


def build_dataset(node: Any) -> Any:
    """Build the data set that a node describes, once it binds to the signature of its target.

    Raises:
        ConfigError: it does not, or what it names refuses a value.
    """
    cfg = OmegaConf.create({"dataset": node})
    _refuse([*group_problems(cfg, "dataset")])
    return build(cfg.dataset)


def _refuse(problems: Sequence[str]) -> None:
    """Raise a ConfigError that tells the problems, if there are any."""
    if problems:
        raise ConfigError("\n".join(problems))


def _compose(overrides: Sequence[str], data: Any) -> DictConfig:
    shell = OmegaConf.structured(EvaluationSettings)
    OmegaConf.set_readonly(shell, None)  # as a frozen class is
    store = ConfigStore.instance()
    store.store(name="eval_shell", node=shell)
    store.store(group="dataset", name=OF_ARTEFACT, node=data if isinstance(data, dict) else {})
    return compose(NAME, list(overrides))


def _unknown(keys: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each key that Hydra takes although nothing reads it."""
    known = [each.name for each in fields(EvaluationSettings)]
    for key in keys:
        if re.split(r"[.@/]", key)[0] not in known:
            yield f"Key '{key}' not in the configuration; there are {', '.join(known)}"


def _problems(settings: EvaluationSettings) -> Iterator[str]:
    yield from range_problems(settings, {"seed": 0}, {"precision": PRECISIONS})
    wrong = [size for size in settings.batch_sizes if size < 1]
    if wrong:
        yield f"batch_sizes: must be numbers of samples, at least 1, found {wrong[0]}"
    if not 0 < settings.seconds < float("inf"):
        yield f"seconds: must be above 0 and finite, found {settings.seconds}"
    if settings.output:
        try:
            require_free(Path(settings.output), "output=FOLDER")
        except ConfigError as error:
            yield str(error)
