"""MLflow: every run is a run there, in a sqlite file on this machine or on a tracking server."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nncompress.errors import NNCompressError, without_user_info
from nncompress.files import hold
from nncompress.tracking.base import About, Tracker, final
from nncompress.tracking.sqlite import ask, damage_told, make_absent

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

T = TypeVar("T")

SQLITE = "sqlite:///"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""What MLflow is given unless the environment says otherwise: no telemetry, no chatter, no long wait for a server."""
EVERY = 1.0
"""Seconds between two writes of metrics."""
PARAMS, METRICS, LONGEST = 100, 1000, 6000
"""How many of them MLflow takes at once, and how many characters of a value."""
ENDS = {"done": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}
"""MLflow's word for how a run ended; FAILED for all others."""


class MLflow(Tracker):
    """A run of an MLflow experiment: settings as parameters, rows as metrics by step, summary as `final/*`.

    A resumed run goes on in the same MLflow run, which keeps the figures that it has at a step; a parameter that
    changed is a tag `changed/<key>`, since MLflow's parameters do not change. A moved or copied run is a new one.

    Args:
        uri: of the store; a relative path of a sqlite file is one from the current folder, and is made when absent.
        experiment: its name, made when absent.
    """

    extra = "mlflow"

    def __init__(self, *, uri: str, experiment: str = "nncompress") -> None:
        self._uri, self._experiment = uri, experiment
        self._waiting: list[Metric] = []
        self._written = time.monotonic()

    def start(self, about: About) -> dict[str, Any]:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self._uri = _store_of(self._uri, about)
        with _store(self._uri), _hold(self._uri):  # two processes that make the same experiment at a time fail
            self._client = MlflowClient(tracking_uri=self._uri)
            run = _find_run(self._client, about)
            if run is None:
                if about.known:
                    log.warning("tracking.mlflow: the run is a new one there, none is found by what tracking.json says")
                experiment = _experiment(self._client, self._experiment, self._uri)
                run = self._client.create_run(experiment, tags=dict(about.tags), run_name=about.name)
            self._run, self._before = run.info.run_id, set(run.data.metrics)
            self._client.update_run(self._run, status="RUNNING")
            self._steps = self._steps_of("seconds")
        self._params({_name(key): str(value)[:LONGEST] for key, value in about.config.items()}, run.data.params)
        return {"uri": without_user_info(self._uri), "run": self._run}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        if step in self._steps:
            return
        self._steps.add(step)
        self._metrics(figures, step)
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        step = max(self._steps, default=0)
        figures = {_name(key): value for key, value in final(summary).items()}
        with _store(self._uri):
            self._metrics({key: value for key, value in figures.items() if step not in self._steps_of(key)}, step)
            self._write()
            for key in ("status", "reason"):
                self._client.set_tag(self._run, key, str(status.get(key) or "")[:LONGEST])
            self._client.set_terminated(self._run, ENDS.get(str(status["status"]), "FAILED"))

    def _steps_of(self, key: str) -> set[int]:
        """Return the steps at which the run had a figure before it was resumed."""
        if key not in self._before:
            return set()
        return {metric.step for metric in self._client.get_metric_history(self._run, key)}

    def _params(self, params: Mapping[str, str], there: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        new = [Param(key, value) for key, value in params.items() if key not in there]
        changed = [(f"changed/{key}", value) for key, value in params.items() if there.get(key, value) != value]
        for part in _parts(new, PARAMS):
            self._client.log_batch(self._run, params=part)
        for tag in changed:
            self._client.set_tag(self._run, *tag)

    def _metrics(self, figures: Mapping[str, float], step: int) -> None:
        """Take figures of one step, which are written at once: a run that is killed has all of them or none."""
        from mlflow.entities import Metric

        if len(self._waiting) + len(figures) > METRICS:
            self._write()
        now = int(1000 * time.time())
        self._waiting += [Metric(_name(key), value, now, step) for key, value in figures.items()]

    def _write(self) -> None:
        with _store(self._uri):
            for part in _parts(self._waiting, METRICS):
                self._client.log_batch(self._run, metrics=part)
        self._waiting = []
        self._written = time.monotonic()


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def _name(key: str) -> str:
    """Return the key with what MLflow does not take in a name replaced."""
    return re.sub(r"[^\w\-./ :]", "_", key)


def _sqlite_file(uri: str) -> Path | None:
    """Return the path in the address of a sqlite file; None for another address."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]).expanduser() if uri.startswith(SQLITE) else None


def _store_of(uri: str, about: About) -> str:
    """Return the address of the store: of a sqlite file with its path from any folder.

    A run that is resumed from another folder than it was begun in goes on in the file on record, if that has the run.
    """
    path, kept = _sqlite_file(uri), _sqlite_file(str(about.known.get("uri")))
    if path is None:
        return uri
    if kept is not None and not path.is_absolute() and _has_run(kept, about):
        path = kept
    path = path.absolute()
    if "?" in str(path):
        raise NNCompressError(
            f"MLflow reads a path up to its first ?, found {path}; give tracking.mlflow.uri without one"
        )
    return f"{SQLITE}{path}{''.join(uri.partition('?')[1:])}"


def _has_run(path: Path, about: About) -> bool:
    """Tell whether a sqlite file has the run on record, under the folder of this run."""
    question = "SELECT 1 FROM tags WHERE run_uuid = ? AND key = 'folder' AND value = ?"
    try:
        return os.path.isfile(path) and bool(ask(path, question, str(about.known.get("run")), str(about.folder)))
    except (sqlite3.Error, ValueError):
        return False


@contextmanager
def _store(uri: str) -> Iterator[None]:
    """Name the sqlite file in what is said of a damaged one."""
    path = _sqlite_file(uri)
    if path is None:
        yield
        return
    remedy = f"move it away and a new one is made, or, if another version of MLflow made it: mlflow db upgrade {uri}"
    with damage_told(path, "a whole store of this version of MLflow", remedy):
        yield


@contextmanager
def _hold(uri: str) -> Iterator[None]:
    """Hold a sqlite file, which is made when absent: whoever else wants to open it waits."""
    path = _sqlite_file(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_name(f"{path.name}.lock"), waiting=""):
        make_absent(path, lambda draft: _make(draft, _artifacts(path)))
        _require_tables(path)
        yield


def _make(path: Path, artifacts: str) -> None:
    """Make a store: dozens of migrations, of which none may be missing."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store: Any = SqlAlchemyStore(f"{SQLITE}{path}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()


def _require_tables(path: Path) -> None:
    """Raise sqlite3.Error unless all tables are there: MLflow would make them in place, where a kill ruins it."""
    from mlflow.store.db import utils

    there = {name for (name,) in ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    lacking = sorted(utils.Base.metadata.tables.keys() - there)  # type: ignore[attr-defined]
    if lacking:
        raise sqlite3.DatabaseError(f"no such table: {lacking[0]}")


def _artifacts(path: Path) -> str:
    """Return where what is added to runs is kept: beside the sqlite file."""
    return (path.parent / "mlflow-artifacts").as_uri()


def _find_run(client: MlflowClient, about: About) -> Run | None:
    """Return the run on record, if the store has it under the folder of this run."""
    from mlflow.exceptions import MlflowException

    run = about.known.get("run")
    if not isinstance(run, str):
        return None
    try:
        kept = client.get_run(run)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    ours = kept.info.lifecycle_stage == "active" and kept.data.tags.get("folder") == str(about.folder)
    return kept if ours else None


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Return the experiment's id; a new one beside a sqlite file keeps what may be added to its runs there too."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    path = _sqlite_file(uri)
    return str(client.create_experiment(name, artifact_location=None if path is None else _artifacts(path)))
