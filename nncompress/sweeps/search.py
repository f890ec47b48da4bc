"""`nncompress search`: Optuna proposes the settings, a sweep's jobs try them, and the study is kept beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from nncompress import parallel
from nncompress.config.build import build
from nncompress.config.overrides import quote
from nncompress.config.schema import SEARCHER
from nncompress.errors import ConfigError, NNCompressError, nearest, printable
from nncompress.files import read_json, write_json
from nncompress.results.records import SEARCH, SUMMARY
from nncompress.results.sweep_folder import ENDED, Job, Manifest, require_within, standing, write_manifest
from nncompress.sweeps.sweeper import SweepOfJobs
from nncompress.sweeps.trial import FOLDER, NAME, OBJECTIVES, STORE, Direction, new_study, require_optuna, storage
from nncompress.tracking.sqlite import ask, damage_told, make_absent

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

STATES = {"COMPLETE": "done", "FAIL": "failed"}
"""The states of trials that Optuna names otherwise than we do."""
MOST_VALUES = 1_000_000
"""Values of a range."""
UNPICKLED = "optuna.samplers.CmaEsSampler"
"""The sampler that keeps its state in a study as a pickle."""


class Search(SweepOfJobs):
    """Hydra's sweeper of `nncompress search`: batches of `search.parallel` trials until there are `search.trials`.

    A key with several values is searched: `a,b,c` any of them, `range(1,9)` whole numbers, `interval(0.1,1)` numbers,
    `tag(log,interval(1e-4,1))` numbers on a logarithmic scale.
    """

    __module__ = SEARCHER.rpartition(".")[0]

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Try settings until there are enough trials.

        Raises:
            ConfigError: as with `SweepOfJobs.sweep`, or another study is in the folder.
        """
        require_optuna()
        if parallel.several():
            raise ConfigError("search runs in one process, found several (torchrun); start it without torchrun")
        parsed = self.parse(arguments)
        space = {o.get_key_element(): distribution(o) for o in parsed if o.is_sweep_override()}
        fixed = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in parsed if not o.is_sweep_override()]
        if not space:
            raise ConfigError(
                "search needs at least one key with several values (a,b,c, range(1,9), interval(0.1,1), "
                "tag(log,interval(1e-4,1))), found none"
            )
        with ExitStack() as claim:
            manifest = self.begin(claim, list(space))
            write_manifest(self.folder, manifest)
            return self._run_batches(manifest, OptunaStudy(self.config, self.folder, space), fixed)

    def _run_batches(self, manifest: Manifest, study: OptunaStudy, fixed: Sequence[str]) -> list[Sequence[JobReturn]]:
        """Run batch after batch, each closed before the next is proposed."""
        results = []
        while batch := study.batch():
            jobs: dict[str, Job] = {}
            for number, proposed in batch.items():
                manifest, job = self.with_job(manifest, [*fixed, *proposed], list(study.space))
                study.place(number, job.folder)
                if standing(self.folder / job.folder) not in ENDED:
                    own = [f"search.trial={number}", f"search.store={quote(str(self.folder / STORE))}"]
                    jobs.setdefault(job.folder, replace(job, overrides=[*job.overrides, *own]))
            write_manifest(self.folder, manifest)
            if jobs:
                results.append(self.launch(list(jobs.values()), manifest))
            study.close(list(batch))
        return results


class OptunaStudy:
    """Optuna's study of a search, kept in `study.db` and, for reports, in `search.json`.

    Trials that were begun and not closed come first. The sampler is seeded anew for each trial, by its number: a search
    that was interrupted proposes what an unbroken one does (with `search.parallel=1`).
    """

    def __init__(self, config: DictConfig, folder: Path, space: Mapping[str, Any]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.settings, self.seed, self.folder, self.space = config.search, config.seed, folder, dict(space)
        self.objectives: dict[str, Direction] = dict.fromkeys(self.settings.maximize, "maximize")
        self.objectives |= dict.fromkeys(self.settings.minimize, "minimize")
        if not self.objectives:
            raise ConfigError(
                "search needs an objective, found none; give search.maximize=[...] or search.minimize=[...]"
            )
        self._folders: dict[int, str] = {}
        make_absent(folder / STORE, lambda path: new_study(path, self.objectives))
        again = f"nncompress search sweep.resume={printable(str(folder))}"
        remedy = f"move it away and give {again}: jobs that ended are not run again"
        with damage_told(folder / STORE, "the study of this search", remedy, Exception):
            if ask(folder / STORE, "SELECT 1 FROM sqlite_master WHERE type IN ('trigger', 'view')"):
                raise ValueError("it would do what no search asked for (a trigger or view)")
            if ask(folder / STORE, "PRAGMA quick_check(1)") != [("ok",)]:
                raise ValueError("PRAGMA quick_check fails")
            self._storage = storage(folder / STORE)
            self._study = optuna.load_study(study_name=NAME, storage=self._storage)
            self._check(config.allow)
        on_test = [key for key in self.objectives if key.endswith("/test")]
        if on_test:
            log.warning("%s is measured on the test samples: what is found by it is chosen on them", ", ".join(on_test))

    def batch(self) -> dict[int, list[str]]:
        """Return the next trials by their numbers, with the overrides they try; none when there have been enough."""
        from optuna.trial import TrialState

        begun = self._study.get_trials(states=(TrialState.RUNNING,))
        batch: dict[int, list[str]] = {}
        while len(batch) < self.settings.parallel and (trial := begun.pop(0) if begun else self._propose()):
            if trial.distributions == self.space:
                batch[trial.number] = [f"{key}={trial.params[key]}" for key in self.space]
            else:  # killed while it was proposed, or another space by now
                self._study.tell(trial.number, state=TrialState.FAIL)
        return batch

    def _propose(self) -> optuna.trial.FrozenTrial | None:
        """Return a new trial; None when there have been enough."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self.settings.trials:
            return None
        self._study.sampler = build(self.settings.sampler, seed=self.seed + number)
        proposed = self._study.ask(self.space)
        return self._study.get_trials()[proposed.number]

    def place(self, number: int, folder: str) -> None:
        """Note which job a trial is."""
        self._folders[number] = folder
        trial = self._study.get_trials(deepcopy=False)[number]
        self._storage.set_trial_user_attr(trial._trial_id, FOLDER, folder)

    def close(self, numbers: Sequence[int]) -> None:
        """Tell the study what the jobs of these trials ended with.

        Raises:
            NNCompressError: a job did not end, or an objective is none of the figures of a summary.
        """
        from optuna.trial import TrialState

        for number in numbers:
            folder = self.folder / self._folders[number]
            status, summary = standing(folder), read_json(folder / SUMMARY)
            if status == "done" and summary is not None:
                self._study.tell(number, self._values(summary))
            elif status in ENDED and status != "done":  # what diverges or cannot be done is as bad as what was pruned
                self._study.tell(number, state=TrialState.PRUNED)
            elif status in ("done", "failed"):
                self._study.tell(number, state=TrialState.FAIL)
            else:
                raise NNCompressError(
                    f"trial {number} did not end (it is {status}); continue with: nncompress search "
                    f"sweep.resume={printable(str(self.folder))}"
                )
        self._write()

    def _check(self, allow: Sequence[str]) -> None:
        """Refuse a study of other objectives, one that no search made, and one with what a sampler would unpickle.

        Raises:
            ConfigError: of other objectives, or with a pickle that is not allowed.
            ValueError: no search made it.
        """
        from optuna.trial import TrialState, create_trial

        keys, before = list(self.objectives), self._study.user_attrs[OBJECTIVES]
        directions = [direction.name.lower() for direction in self._study.directions]
        if before != keys or directions != list(self.objectives.values()):
            raise ConfigError(
                f"a search keeps its objectives, found {self.objectives} after {before} ({', '.join(directions)}); "
                "start another"
            )
        for number, trial in enumerate(self._study.get_trials()):
            create_trial(state=trial.state, values=trial.values, params=trial.params, distributions=trial.distributions)
            if trial.number != number or trial.state == TrialState.WAITING:
                raise ValueError(f"trial {number} is no trial of a search")
            self._require_measured(trial)
            if any("optimizer" in key for key in trial.system_attrs) and UNPICKLED not in allow:
                raise ConfigError(
                    f"{self.folder / STORE} must hold numbers and texts, found the pickled state of a sampler, which "
                    f"can run any code; if you trust it, add allow=[{UNPICKLED}]"
                )

    def _require_measured(self, trial: optuna.trial.FrozenTrial) -> None:
        """Refuse a trial with other values than those in the summary of its job, where that is still there.

        Raises:
            ConfigError: its job is not below the folder of the search, or has none of the figures.
            ValueError: it has other values.
        """
        job = trial.user_attrs.get(FOLDER)
        if trial.state.name != "COMPLETE" or not isinstance(job, str):
            return
        require_within(self.folder, job)
        summary = read_json(self.folder / job / SUMMARY)
        if summary is not None and trial.values != self._values(summary):
            raise ValueError(f"trial {trial.number} has {trial.values}, its job {job} has {self._values(summary)}")

    def _values(self, summary: Mapping[str, Any]) -> list[float]:
        """Return what a job has reached of each objective."""
        figures = [key for key, value in summary.items() if isinstance(value, int | float)]
        for key in self.objectives:
            if not isinstance(summary.get(key), int | float):
                raise ConfigError(
                    f"search.maximize, search.minimize: must name figures of summary.json, found '{key}'"
                    f"{nearest(key, figures)}; there are {', '.join(figures)}"
                )
        return [float(summary[key]) for key in self.objectives]

    def _write(self) -> None:
        """Write `search.json`: the objectives and every trial that has ended, the best ones marked."""
        from optuna.trial import TrialState

        trials = self._study.get_trials()
        complete = any(trial.state == TrialState.COMPLETE for trial in trials)
        best = {trial.number for trial in self._study.best_trials} if complete else set()
        rows = [
            {
                "trial": trial.number,
                "job": trial.user_attrs.get(FOLDER),
                "state": STATES.get(trial.state.name, trial.state.name.lower()),
                "settings": trial.params,
                "values": trial.values,
                "best": trial.number in best,
            }
            for trial in trials
            if trial.state.is_finished()
        ]
        write_json(self.folder / SEARCH, {"objectives": self.objectives, "trials": rows})


def distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """Return what Optuna draws the values of a key from.

    Raises:
        ConfigError: there is nothing to draw.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    try:
        if isinstance(value, IntervalSweep):
            return FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)  # type: ignore[arg-type]
        if isinstance(value, RangeSweep):
            if not abs(value.stop - value.start) <= MOST_VALUES * abs(value.step):  # type: ignore[operator]
                raise ValueError(f"more than {MOST_VALUES:,} values; an interval has any number")
            numbers, on_log_scale = list(value.range()), "log" in value.tags
            if all(isinstance(number, int) for number in numbers):
                step = 1 if on_log_scale else abs(int(value.step))
                return IntDistribution(numbers[0], numbers[-1], log=on_log_scale, step=step)
            return FloatDistribution(numbers[0], numbers[-1], step=float(value.step))
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"{override.key_or_group}: nothing can be drawn from it ({error}); give other ends"
        ) from error
    return CategoricalDistribution(list(override.sweep_string_iterator()))
