"""What a study has to do: its jobs, how many have ended, and how long the others may take, from one step of one job."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from nncompress.config.build import build
from nncompress.config.overrides import quote
from nncompress.errors import DataError, NNCompressError
from nncompress.experiment.reference import reference_of
from nncompress.files import read_json
from nncompress.reproduce.protocol import PaperStudy
from nncompress.results.records import SUMMARY
from nncompress.results.sweep_folder import ENDED, SWEEP, read_manifest, standing
from nncompress.sweeps.combinations import ComposedJob, composed_jobs
from nncompress.sweeps.launch import QUIET, train

ONE_STEP = {"num_steps": 1, "epochs": 1, "first_epochs": 1}
"""The keys of a solver that set how much it does, and their values when one step of it is measured."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: its key in the sweep's manifest, its words, its steps (epochs, where a step has several).

    data: the node of its data set, as JSON. reference: the folder of the trained network it starts from, and the epochs
    of that training; None without one.
    parts: the networks that it is compressed to without retraining. one_step: the words that leave it one step, and one
    such network by each method.
    """

    key: str
    overrides: tuple[str, ...]
    steps: int
    data: str
    reference: tuple[str, int] | None
    parts: int
    one_step: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What one step of one job took: seconds of the step, seconds of all else of a job, bytes that a job leaves.

    epoch: seconds of an epoch of the reference's training. part: seconds of one of the networks it is compressed to.
    """

    step: float
    rest: float
    size: int
    epoch: float
    part: float


@dataclass(frozen=True)
class Forecast:
    """A study as it stands.

    words: those of the study, or of its alternative data too. instead: whether these are taken. missing: why it cannot
    be run. ended: the keys of the jobs that have. cost: None where nothing is left to run or it could not be measured.
    """

    study: PaperStudy
    words: tuple[str, ...]
    jobs: tuple[PlannedRun, ...]
    ended: frozenset[str]
    instead: bool = False
    missing: str | None = None
    cost: Cost | None = None

    def left(self) -> Sequence[PlannedRun]:
        """Return the jobs to run."""
        return [] if self.missing else [job for job in self.jobs if job.key not in self.ended]


def forecast(study: PaperStudy, more: Sequence[str], folder: Path, before: Mapping[str, Any]) -> Forecast:
    """Return the plan of a study whose sweep is in `folder`, `more` being words that all studies get.

    before: what was found out when this was planned the last time (`on_record`); what is missing is looked for again.
    """
    words = (*study.words, *more)
    if study.instead is not None and before.get("instead") and (folder / SWEEP).exists():
        return _plan(study, (*words, *study.instead.words), folder, before, instead=True)
    plan = _plan(study, words, folder, before)
    if plan.missing and study.instead is not None:
        other = _plan(study, (*words, *study.instead.words), folder, before, instead=True)
        return plan if other.missing else other
    return plan


def on_record(plan: Forecast) -> dict[str, Any]:
    """Return what `forecast` need not find out again, and what the tables need to know of a study."""
    return {
        "words": list(plan.words),
        "instead": plan.instead,
        "missing": plan.missing,
        "keys": [job.key for job in plan.jobs],
        "cost": None if plan.cost is None else vars(plan.cost),
    }


def seconds(plans: Sequence[Forecast]) -> float | None:
    """Return the seconds of what is left to do, one job after the other, of measured studies; None without any."""
    total, references = 0.0, set[str]()
    for plan in plans:
        for job in plan.left():
            if plan.cost is None:
                continue
            total += plan.cost.rest + job.steps * plan.cost.step + job.parts * plan.cost.part
            if job.reference is not None and job.reference[0] not in references:
                references.add(job.reference[0])
                trained = (Path(job.reference[0]) / SUMMARY).exists()
                total += 0.0 if trained else job.reference[1] * plan.cost.epoch
    return total if total or not any(plan.left() for plan in plans) else None


def size(plans: Sequence[Forecast]) -> int:
    """Return the bytes that what is left to do will write, as far as known."""
    return sum(len(plan.left()) * plan.cost.size for plan in plans if plan.cost is not None)


def planned_runs(words: Sequence[str]) -> list[PlannedRun]:
    """Return the runs of `nncompress train -m` with these words. Raises ConfigError for a word that is wrong."""
    return [_planned_run(job) for job in composed_jobs(words)]


def _planned_run(job: ComposedJob) -> PlannedRun:
    cfg = job.cfg
    solver = cfg.solver
    steps = int(solver.get("num_steps") or 0)
    if solver.get("epochs") is not None:
        first = solver.get("first_epochs")
        steps = int((2 * solver.epochs if first is None else first) + (steps - 1) * solver.epochs)
    words = [f"++solver.{key}={value}" for key, value in ONE_STEP.items() if key in solver]
    shared, methods = list(cfg.compress_at), cfg.compress_by or {}
    own = {f"compress_by.{name}.at": list(method.get("at") or []) for name, method in methods.items()}
    words += [f"{key}=[{parts[0]}]" for key, parts in {"compress_at": shared, **own}.items() if parts]
    count = sum(len(parts or shared) for parts in own.values())
    data = json.dumps(OmegaConf.to_container(cfg.dataset, resolve=True))
    return PlannedRun(job.key, job.overrides, steps, data, reference_of(cfg), count, tuple(words))


def _plan(
    study: PaperStudy, words: tuple[str, ...], folder: Path, before: Mapping[str, Any], instead: bool = False
) -> Forecast:
    jobs = tuple(planned_runs(words))
    stand = _standings(folder)
    ended = frozenset(job.key for job in jobs if stand.get(job.key) in ENDED)
    if len(ended) == len(jobs):
        return Forecast(study, words, jobs, ended, instead)
    try:
        cost = _recorded_cost(before, words)
        if cost is None:
            cost = _measure_cost(jobs[0])
        else:
            _check_data(jobs[0].data)
        return Forecast(study, words, jobs, ended, instead, cost=cost)
    except DataError as error:
        return Forecast(study, words, jobs, ended, instead, missing=str(error))
    except NNCompressError:  # the run itself will tell
        return Forecast(study, words, jobs, ended, instead)


def _recorded_cost(before: Mapping[str, Any], words: Sequence[str]) -> Cost | None:
    """Return what was measured the last time with the same words; None where it was not, or where it cannot be read."""
    try:
        return Cost(**before["cost"]) if before.get("words") == list(words) else None
    except (KeyError, TypeError):
        return None


@cache
def _check_data(node: str) -> None:
    """Load a data set, given as JSON, for what is wrong with it; once for all studies that have it.

    Raises:
        NNCompressError: it cannot be loaded.
    """
    build(json.loads(node))


def ended_otherwise(folder: Path, jobs: Sequence[PlannedRun]) -> dict[str, int]:
    """Count the jobs of the sweep in `folder` by their status, those that are `done` left out."""
    found = _standings(folder)
    return dict(Counter(found.get(job.key, "pending") for job in jobs if found.get(job.key) != "done"))


def _standings(folder: Path) -> dict[str, str]:
    """Return the status of each job of the sweep in `folder`, by its key."""
    if not (folder / SWEEP).exists():
        return {}
    return {job.key: standing(folder / job.folder) for job in read_manifest(folder).jobs}


def _measure_cost(job: PlannedRun) -> Cost:
    """Run one step of the job where it leaves nothing.

    Raises:
        NNCompressError: it does not run.
    """
    with TemporaryDirectory() as place:
        run, references = Path(place, "run"), Path(place, "references")
        words = [
            *job.overrides, *job.one_step, "hydra.mode=RUN",
            "reference_training.num_steps=1", f"reference_dir={quote(str(references))}",
            f"hydra.run.dir={quote(str(run))}", *QUIET,
        ]  # fmt: skip
        begin = time.perf_counter()
        with _silence():
            code = train(words)
        wall = time.perf_counter() - begin
        if code >= 128:
            raise SystemExit(code)
        summary = read_json(run / SUMMARY)
        if summary is None:
            raise NNCompressError(f"one step of {' '.join(job.overrides)} left no summary (exit code {code})")
        trained = [read_json(path) or {} for path in references.glob(f"*/{SUMMARY}")]
        epoch = sum(each.get("seconds/step_median") or 0.0 for each in trained)
        step, one_shot = summary.get("seconds/step_median") or 0.0, summary.get("seconds/one_shot") or 0.0
        part = one_shot / max(1, sum(not row["recalibrated"] for row in summary.get("one_shot", ())))
        return Cost(step, max(0.0, wall - step - epoch - one_shot), _bytes(run), epoch, part)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _silence() -> Iterator[None]:
    """Show nothing of the run that is measured."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)
