"""What trials share with their search: where its study is, and whether a trial is worth going on with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncompress.config.build import build
from nncompress.config.schema import SearchSettings
from nncompress.errors import NNCompressError, Pruned, one_line

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

Watch = Callable[[Mapping[str, Any]], None]

NAME = "nncompress"
"""What every study is called in its file."""
STORE = "study.db"
"""The file of a study in the folder of its search."""
PATIENCE = 60
"""Seconds to wait for another process that writes to the study."""


def require_optuna() -> None:
    """Refuse to go on without Optuna.

    Raises:
        NNCompressError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise NNCompressError("search needs Optuna, found none; pip install 'nncompress[search]'")


def storage(path: Path) -> optuna.storages.RDBStorage:
    """Return the sqlite file of a study, made when absent."""
    import optuna

    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": PATIENCE}})


def watch_of(search: SearchSettings) -> Watch | None:
    """Return what shows every row of a trial with one objective to the search's pruner; None where nothing does.

    It raises Pruned when the trials so far make this one hopeless. Where the study cannot be read, the run goes on
    without it.
    """
    objectives = [*search.maximize, *search.minimize]
    if search.trial is None or search.store is None or search.pruner is None or len(objectives) != 1:
        return None
    if not Path(search.store).is_file():
        log.info("the run was trial %d of a search whose study is not at %s any more", search.trial, search.store)
        return None
    import optuna

    objective, number = objectives[0], search.trial
    study = optuna.load_study(study_name=NAME, storage=storage(Path(search.store)), pruner=build(search.pruner))
    frozen = next(trial for trial in study.get_trials() if trial.number == number)
    trial = None if frozen.state.is_finished() else optuna.trial.Trial(study, frozen._trial_id)

    def watch(row: Mapping[str, Any]) -> None:
        nonlocal trial
        value, step = row.get(objective), int(row["step"])
        if trial is None or value is None or step in frozen.intermediate_values:  # a resumed trial comes by again
            return
        try:
            trial.report(value, step)
            hopeless = trial.should_prune()
        except Exception as error:
            log.warning("the trial is not watched any more: %s", one_line(error))
            trial = None
            return
        if hopeless:
            raise Pruned(f"the trials before this one were better at step {step}, found {objective} {value:.4g}")

    return watch
