"""One run: iterate the solver from the start or from a checkpoint, measure, record, keep the network it ends with."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from nncompress import environment, parallel
from nncompress.artefact.files import MODEL
from nncompress.artefact.model import open_artefact
from nncompress.artefact.save import About, save
from nncompress.config.schema import COPIES, role_of
from nncompress.errors import CheckpointError, ConfigError, Diverged
from nncompress.experiment import checkpoint
from nncompress.experiment.interruption import Interruption
from nncompress.experiment.progress import ProgressLog
from nncompress.experiment.setup import Settings, Setup
from nncompress.experiment.summary import check_bounded, file_sizes, row_of, summary_of
from nncompress.files import read_json, write_json
from nncompress.results.records import COLUMNS, RECORDS, SUMMARY, flatten
from nncompress.results.rows import START, Mark, Recorder, read_rows
from nncompress.results.run_folder import CHECKPOINT, claim_run, room, status_of, write_config
from nncompress.solvers.base import Iterate, Observation, declarations
from nncompress.tracking.tracking import Tracking

log = logging.getLogger(__name__)
Row = dict[str, Any]

READ_BACK, COMPARED = 1e-3, 32
"""How far the stored outputs may be from the deployed ones, relative to the largest, and on how many samples."""


def run(setup: Setup, folder: Path) -> Row:
    """Do a run in `folder` and return its summary.

    Write the files of a run folder but its tables and plots, `status.json` whatever happens. Of the processes of
    torchrun the first writes, and the others return an empty summary.

    Raises:
        NNCompressError: the folder is not free, the iterates diverge, or a watcher ends the run.
        SystemExit: with 130 or 143, after a checkpoint, when the run was interrupted.
    """
    return run_built(setup.settings, lambda: setup, folder)


def run_built(settings: Settings, build: Callable[[], Setup], folder: Path) -> Row:
    """Do a run as `run` does, and build what it needs once the folder is claimed and its configuration kept.

    What goes wrong while it is built ends the run as all else does, and a signal is heeded at the first step.
    """
    resumed = settings.resume
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with parallel.together():
            if parallel.rank() == 0:
                held.enter_context(claim_run(folder, resumed))
        if parallel.rank() > 0:
            with Interruption() as interruption:
                return _Run(build(), folder, interruption, {}, Tracking({}, {}, folder), leads=False).finish()
        with room(folder), Interruption() as interruption:
            if not resumed:  # before the status: a folder with a status can be resumed
                write_config(folder, settings.config, COPIES)
            with ExitStack() as told, status_of(folder, resumed) as status:  # trackers are told the status at the end
                setup = build()
                tracking = told.enter_context(_tracking(setup, folder))
                tracking.start()
                summary = _Run(setup, folder, interruption, status, tracking).finish()
            if interruption.code and parallel.size() == 1:  # too late for this run, not for what would follow it
                log.warning(
                    "stopped by a signal once the run had all its steps; it is done, and nncompress report %s writes "
                    "its tables and plots", folder,
                )  # fmt: skip
                interruption.leave(interruption.code)
    return summary


def _tracking(setup: Setup, folder: Path) -> Tracking:
    """Return the trackers, which are told every setting but where things are."""
    settings = flatten(setup.settings.config, COPIES)
    return Tracking(setup.trackers, {key: settings[key] for key in settings if role_of(key) != "place"}, folder)


class _Start(NamedTuple):
    """Where a run begins: the iterate to go on from, the rows up to it, and the seconds of the steps before it."""

    iterate: Iterate | None
    mark: Mark
    step_seconds: list[float]


class _End(NamedTuple):
    """What a run ends with: the last iterate and the observation of it, the last row, the seconds of each step."""

    iterate: Iterate
    observation: Observation
    row: Row | None
    step_seconds: list[float]


@dataclass(frozen=True)
class _Run:
    """A run under way in one process: what it is made of, and what it reports to.

    - status: the content of `status.json`, whose step follows the iterates.
    - leads: whether this process writes; trackers are told nothing by others.
    """

    setup: Setup
    folder: Path
    interruption: Interruption
    status: Row
    tracking: Tracking
    leads: bool = True

    def finish(self) -> Row:
        """Iterate, write what the run ends with, and return its summary."""
        environment.reset_peak_memory(self.setup.problem.device)
        start = self._start()
        with ExitStack() as opened:
            recorder = None
            with parallel.together():
                if self.leads:
                    recorder = opened.enter_context(Recorder(self.folder / RECORDS, start.mark))
                    self._describe()
            end = self._end(start, recorder)
        return {} if recorder is None else self._write_results(end)

    def _start(self) -> _Start:
        """Return where the checkpoint says that a resumed run goes on; the very start without one."""
        path, problem, solver = self.folder / CHECKPOINT, self.setup.problem, self.setup.solver
        if not self.setup.settings.resume or not path.exists():
            if self.setup.settings.resume:
                log.info("there is no checkpoint yet: starting at step 0")
            return _Start(None, START, [])
        content = checkpoint.load_run(path)
        state = solver.own(problem, checkpoint.restore(solver.init(problem), content["state"], path))
        checkpoint.restore_random(content["random"], problem.device, path)
        log.info("resuming at step %d", state.k)
        iterate = Iterate(state.k, content["seconds"], state, None, content["finished"])
        return _Start(iterate, Mark(content["rows"], content["check"]), content["step_seconds"])

    def _describe(self) -> None:
        """Write `environment.json` (old and new), what the solver adds to reports, and how a resumed run goes on."""
        path, problem, settings = self.folder / "environment.json", self.setup.problem, self.setup.settings
        if settings.resume:  # what cannot be built or taken up leaves the configuration as it was
            write_config(self.folder, settings.config, COPIES)
        about = environment.describe(problem.device, problem.dtype, settings.seed)
        began = read_json(path) if settings.resume else None
        if began is not None:
            earlier = began.get("resumed")
            about = began | {"resumed": [*(earlier if isinstance(earlier, list) else []), about]}
        write_json(path, about)
        write_json(self.folder / COLUMNS, declarations(self.setup.solver))

    def _end(self, start: _Start, recorder: Recorder | None) -> _End:
        """Iterate to the last step; what there is to write goes to the recorder."""
        solver, every = self.setup.solver, self.setup.settings.checkpoint_every
        first, previous = self._rows_before(start, recorder)
        iterate, step_seconds, saved = start.iterate, [*start.step_seconds], True
        now, noted = 0.0 if iterate is None else iterate.seconds, set[str]()
        with ProgressLog(0 if iterate is None else iterate.step, solver.num_steps, shown=recorder is not None) as bar:
            for iterate in self._iterates(start, previous):
                if iterate.step > 0:
                    step_seconds.append(iterate.seconds - now)
                now, row = iterate.seconds, None
                with parallel.together():
                    if recorder is not None and iterate.observation is not None:
                        _log_new(iterate.observation.notes, noted)
                        row = row_of(self.setup, iterate, iterate.observation, previous)
                        recorder.write(row)
                        self.tracking.row(row)
                        if self.setup.watch is not None:
                            self.setup.watch(row)
                        first, previous = first or row, row
                        check_bounded(row, first)
                    bar.update(iterate.step, row)
                stop = parallel.largest(self.interruption.code)
                saved = bool(stop) or (iterate.step > 0 and iterate.step % every == 0)
                if saved:
                    self._save(iterate, step_seconds, recorder)
                if stop and iterate.step < solver.num_steps:
                    self.interruption.leave(stop)
        if iterate is None:
            raise ConfigError(f"solver.num_steps must be at least 0, found {solver.num_steps}")
        if not saved:
            self._save(iterate, step_seconds, recorder)
        observation = iterate.observation or solver.observe(self.setup.problem, iterate.state)
        result = solver.result(self.setup.problem, iterate.state, observation)
        _log_new(result.notes, noted)
        return _End(iterate, result, previous, step_seconds)

    def _rows_before(self, start: _Start, recorder: Recorder | None) -> tuple[Row | None, Row | None]:
        """Return the first and the last row of the steps before, which trackers are told again; the last everywhere."""
        rows: list[Row] = []
        if recorder is not None and start.iterate is not None:
            self.status["step"] = start.iterate.step
            for row in read_rows(self.folder / RECORDS).to_dict("records"):
                rows.append({str(key): value for key, value in row.items() if not math.isnan(value)})
                self.tracking.row(rows[-1])
        first, last = (rows[0], rows[-1]) if rows else (None, None)
        return first, parallel.broadcast(last)

    def _iterates(self, start: _Start, previous: Row | None) -> Iterator[Iterate]:
        """Yield the solver's iterates with the seconds of the whole run; numerical breakdown becomes Diverged."""
        before = start.iterate
        if before is not None and before.finished:
            return
        state, seconds = (None, 0.0) if before is None else (before.state, before.seconds)
        objective = None if previous is None else previous.get("objective")
        solver, every = self.setup.solver, self.setup.settings.eval_every
        try:
            for iterate in solver.run(self.setup.problem, solver.num_steps, every, state=state, previous=objective):
                self.status["step"] = iterate.step
                yield iterate._replace(seconds=seconds + iterate.seconds)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise Diverged(
                f"the iterates must stay finite, found none after step {self.status['step']} ({error}); "
                "the records are kept; try other solver settings"
            ) from error

    def _save(self, iterate: Iterate, step_seconds: list[float], recorder: Recorder | None) -> None:
        """Write a checkpoint, in the process that writes."""
        state = self.setup.solver.whole(self.setup.problem, iterate.state)
        with parallel.together():
            if recorder is None:
                return
            recorder.sync()
            self.status["records"] = [*recorder.mark]
            content = {
                **recorder.mark._asdict(),
                "seconds": iterate.seconds,
                "step_seconds": step_seconds,
                "finished": iterate.finished,
                "random": environment.random_state(self.setup.problem.device),
                "state": checkpoint.pack(state),
            }
            checkpoint.save(self.folder / CHECKPOINT, content)

    def _write_results(self, end: _End) -> Row:
        """Write the compact network and the final figures, and return these."""
        setup, path, observation = self.setup, self.folder / SUMMARY, end.observation
        records = read_rows(self.folder / RECORDS)
        summary = summary_of(setup, end.iterate, observation, records, end.row, end.step_seconds)
        write_json(path, summary, sealed=True)
        data, model = setup.problem.data, setup.settings.config.get("model")
        about = About(
            model, data.train.x[:1], data.num_classes, data.classes, data.name, data.preprocessing, setup.settings.data
        )
        save(self.folder / MODEL, observation.deployed, setup.problem.plan, observation.theta, about)
        self._read_back(observation.deployed)
        write_json(path, summary := summary | file_sizes(setup.problem, observation, self.folder), sealed=True)
        if setup.study is not None:
            began = time.perf_counter()
            rows = list(self._one_shot(observation.deployed))
            summary |= {"one_shot": rows, "seconds/one_shot": time.perf_counter() - began}
            write_json(path, summary, sealed=True)
        return summary

    def _read_back(self, network: nn.Module) -> None:
        """Say so when the files give another network than the deployed one, or none."""
        x = self.setup.problem.data.train.x[:COMPARED]
        try:
            stored = open_artefact(self.folder / MODEL, None).network().to(x.device, x.dtype)
        except CheckpointError as error:
            log.warning("the compact network cannot be read back: %s", error)
            return
        with torch.no_grad():
            expected, outputs = network.eval()(x), stored(x)
        difference = float((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not difference <= READ_BACK:
            log.warning(
                "the network in %s must give the deployed one's outputs, found a difference of %.3g of the largest: "
                "what it keeps outside its state (random buffers that are not persistent, say) is not stored",
                self.folder / MODEL, difference,
            )  # fmt: skip

    def _one_shot(self, network: nn.Module) -> Iterator[Row]:
        """Yield the rows of the study of what the run ends with; an interruption ends it between two of them."""
        log.info("the network is compressed to every part of compress_at")
        for row in self.setup.study.rows(self.setup.problem, network) if self.setup.study else ():
            yield row
            if self.interruption.code:
                self.interruption.leave(self.interruption.code)


def _log_new(notes: Sequence[str], noted: set[str]) -> None:
    """Log what the user has not been told yet."""
    for note in notes:
        if note not in noted:
            log.warning("%s", note)
            noted.add(note)
