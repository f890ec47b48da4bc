"""What trials share with their search: where its study is, and whether a trial is worth going on with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from nncompress.config.build import build
from nncompress.config.schema import SearchSettings
from nncompress.errors import NNCompressError, Pruned, one_line
from nncompress.tracking.sqlite import PATIENCE, damage_told

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

Direction = Literal["maximize", "minimize"]
Watch = Callable[[Mapping[str, Any]], None]

NAME = "nncompress"
"""What every study is called in its file."""
STORE = "study.db"
"""The file of a study in the folder of its search."""
FOLDER = "folder"
"""The attribute of a trial that names its job by its folder, from that of the search."""
OBJECTIVES = "objectives"
"""The attribute of a study with the figures that it is about."""


def require_optuna() -> None:
    """Refuse to go on without Optuna.

    Raises:
        NNCompressError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise NNCompressError("search needs Optuna, found none; pip install 'nncompress[search]'")


def storage(path: Path, *, new: bool = False) -> optuna.storages.RDBStorage:
    """Return the sqlite file of a study, without tables yet if it is new."""
    import optuna

    address = f"sqlite:///file:{quote(str(path.absolute()))}?uri=true"  # a path may have what means something there
    wait = {"connect_args": {"timeout": PATIENCE}}
    return optuna.storages.RDBStorage(address, engine_kwargs=wait, skip_table_creation=not new)


def new_study(path: Path, objectives: Mapping[str, Direction]) -> None:
    """Make the sqlite file of a study with objectives, each with its direction."""
    import optuna

    file = storage(path, new=True)
    study = optuna.create_study(storage=file, study_name=NAME, directions=list(objectives.values()))
    study.set_user_attr(OBJECTIVES, list(objectives))
    file.remove_session()
    file.engine.dispose()


def watch_of(search: SearchSettings, folder: Path) -> Watch | None:
    """Return what shows every row of a trial with one objective to the search's pruner; None where nothing does.

    It raises Pruned when the trials so far make this one hopeless. Where the study of the search that the run is in the
    folder of cannot be read, the run goes on without it.
    """
    objectives = [*search.maximize, *search.minimize]
    if search.trial is None or search.store is None or search.pruner is None or len(objectives) != 1:
        return None
    store, number, objective = Path(search.store), search.trial, objectives[0]
    if store.name != STORE or store.parent not in folder.absolute().parents or not store.is_file():
        log.info("the run was trial %d of a search whose %s is not above its folder any more", number, STORE)
        return None
    import optuna

    pruner = build(search.pruner)
    try:
        with damage_told(store, "the study of its search", "the run goes on without it", Exception):
            study = optuna.load_study(study_name=NAME, storage=storage(store), pruner=pruner)
            frozen = study.get_trials()[number]
        ours = frozen.user_attrs.get(FOLDER) == str(folder.absolute().relative_to(store.parent))
        trial = optuna.trial.Trial(study, frozen._trial_id) if ours and not frozen.state.is_finished() else None
    except Exception as error:
        log.warning("the trial is not watched: %s", one_line(error))
        return None

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
