"""MLflow: every run is a run there, in a sqlite file on this machine or on a tracking server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nncompress.files import hold
from nncompress.tracking.base import About, Tracker, final

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

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

    A resumed run goes on in the same MLflow run, which keeps the steps that it has; a parameter that changed is a tag
    `changed/<key>`, since MLflow's parameters do not change.

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

        uri = str(about.known.get("uri") or _absolute(self._uri))
        with _hold_store(uri):  # two processes that make the same store at a time leave half of it
            self._client = MlflowClient(tracking_uri=uri)
            run = _find_run(self._client, about.known.get("run"))
            if run is None:
                experiment = _experiment(self._client, self._experiment, uri)
                run = self._client.create_run(experiment, tags=dict(about.tags), run_name=about.name)
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        self._steps = {metric.step for metric in self._client.get_metric_history(self._run, "seconds")}
        self._params({_name(key): str(value)[:LONGEST] for key, value in about.config.items()}, run.data.params)
        return {"uri": uri, "run": self._run}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        if step in self._steps:
            return
        self._steps.add(step)
        self._metrics(figures, step)
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        self._metrics(final(summary), max(self._steps, default=0))
        self._write()
        for key in ("status", "reason"):
            self._client.set_tag(self._run, key, str(status.get(key) or "")[:LONGEST])
        self._client.set_terminated(self._run, ENDS.get(str(status["status"]), "FAILED"))

    def _params(self, params: Mapping[str, str], there: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        new = [Param(key, value) for key, value in params.items() if key not in there]
        changed = [(f"changed/{key}", value) for key, value in params.items() if there.get(key, value) != value]
        for part in _parts(new, PARAMS):
            self._client.log_batch(self._run, params=part)
        for tag in changed:
            self._client.set_tag(self._run, *tag)

    def _metrics(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(_name(key), value, now, step) for key, value in figures.items()]

    def _write(self) -> None:
        for part in _parts(self._waiting, METRICS):
            self._client.log_batch(self._run, metrics=part)
        self._waiting = []
        self._written = time.monotonic()


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def _name(key: str) -> str:
    """Return the key with what MLflow does not take in a name replaced."""
    return re.sub(r"[^\w\-./ :]", "_", key)


def _absolute(uri: str) -> str:
    """Return the address of a sqlite file from any folder; others as they are."""
    path = uri.removeprefix(SQLITE)
    return uri if path == uri else f"{SQLITE}{Path(path).expanduser().absolute()}"


@contextmanager
def _hold_store(uri: str) -> Iterator[None]:
    """Make the folder of a sqlite file and hold the file: whoever else wants to open it waits."""
    if not uri.startswith(SQLITE):
        yield
        return
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_name(f"{path.name}.lock"), waiting=""):
        yield


def _find_run(client: MlflowClient, run: str | None) -> Run | None:
    """Return the run of this id, if the store still has it."""
    from mlflow.exceptions import MlflowException

    if run is None:
        return None
    try:
        kept = client.get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if kept.info.lifecycle_stage == "deleted" else kept


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Return the experiment's id; a new one beside a sqlite file keeps what may be added to its runs there too."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    beside = Path(uri.removeprefix(SQLITE)).parent / "mlflow-artifacts" if uri.startswith(SQLITE) else None
    return str(client.create_experiment(name, artifact_location=None if beside is None else beside.as_uri()))
