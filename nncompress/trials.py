"""What the trials of a search share with the search: where its study is, and whether a trial is worth going on with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from nncompress.errors import NNCompressError, Pruned

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

NAME = "nncompress"
STORE = "study.db"
PATIENCE = 60
"""Seconds to wait for another process that writes to the study."""


def missing() -> None:
    """Raise NNCompressError when Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise NNCompressError("search needs Optuna, found none; pip install 'nncompress[search]'")


def storage(path: Path) -> optuna.storages.RDBStorage:
    """The sqlite file of a study, made when absent."""
    import optuna

    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": PATIENCE}})


def watch(cfg: DictConfig) -> Callable[[Mapping[str, Any]], None]:
    """What looks at every row of a run: in a trial with one objective, the search's pruner; else nothing.

    It raises Pruned when the trials so far make this one hopeless.
    """
    objectives = [*cfg.search.maximize, *cfg.search.minimize]
    if cfg.search.trial is None or cfg.search.pruner is None or len(objectives) != 1:
        return lambda row: None
    import optuna

    from nncompress.config import build

    study = optuna.load_study(study_name=NAME, storage=storage(Path(cfg.search.store)), pruner=build(cfg.search.pruner))
    frozen = next(trial for trial in study.get_trials() if trial.number == cfg.search.trial)
    trial = optuna.trial.Trial(study, frozen._trial_id)
    (objective,) = objectives

    def look(row: Mapping[str, Any]) -> None:
        value, step = row.get(objective), int(row["step"])
        if value is None or step in frozen.intermediate_values:  # a resumed trial comes by again
            return
        trial.report(value, step)
        if trial.should_prune():
            raise Pruned(f"the trials before this one were better at step {step}, found {objective} {value:.4g}")

    return look
