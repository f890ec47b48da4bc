"""One run: build what the configuration names, iterate the solver, measure and record."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nncompress import environment, metrics, parallel
from nncompress.artefact.model import MODEL, open_artefact, save_compact
from nncompress.errors import CheckpointError, ConfigError, Diverged
from nncompress.experiment import checkpoint
from nncompress.experiment.interruption import Interruption
from nncompress.experiment.progress import ProgressLog
from nncompress.experiment.setup import build, portable, study_of
from nncompress.experiment.summary import channels_of, counts_of, file_sizes, rounding_of, summary_of
from nncompress.experiment.trial import watch
from nncompress.files import replace_bytes, write_json
from nncompress.problem import weights_of, with_weights
from nncompress.results.records import CONFIG, RECORDS, SUMMARY, Recorder, read_run
from nncompress.results.run_folder import CHECKPOINT, claimed, room, status_of
from nncompress.solvers.base import Iterate, Observation, Slimmed
from nncompress.surgery.pruning import smaller
from nncompress.tracking.tracking import Tracking

log = logging.getLogger(__name__)

READ_BACK = 1e-3
"""Largest difference of the outputs of the stored network and the deployed one, relative to the largest output."""
COMPARED = 32
"""Training samples on which a network is compared with what is left of it."""
DIVERGED_ABOVE = 1e6
"""A run whose objective exceeds this multiple of its start (at least 1) has diverged."""


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Do the run that `cfg` describes in `folder` and return its summary.

    Writes the files of a run folder but its tables and plots, `status.json` whatever happens. Raises an
    NNCompressError or what else went wrong, and SystemExit(130 or 143) after a checkpoint when interrupted.
    """
    with ExitStack() as claim:
        with parallel.together():
            if parallel.rank() == 0:
                claim.enter_context(claimed(folder, cfg.resume is not None))
        if parallel.rank() > 0:  # process 0 writes the folder
            with Interruption() as interruption:
                return _Execution(cfg, folder, interruption, {}, Tracking(cfg, folder)).recorded()
        with room(folder), Interruption() as interruption:
            saved = OmegaConf.merge(cfg, {"resume": None})  # before the status: a folder with a status can be resumed
            replace_bytes(folder / CONFIG, OmegaConf.to_yaml(saved, resolve=True).encode())
            with Tracking(cfg, folder) as tracking, status_of(folder, cfg.resume is not None) as status:
                tracking.start()
                execution = _Execution(cfg, folder, interruption, status, tracking)
                summary = execution.recorded()
            if interruption.code and parallel.size() == 1:  # too late for this run, not for what would follow it
                log.warning(
                    "stopped by a signal once the run had all its steps; it is done, and nncompress report %s writes "
                    "its tables and plots", folder,
                )  # fmt: skip
                interruption.leave(interruption.code)
    return summary


class _Execution:
    """The loop over a solver's iterates, from the start or from a checkpoint."""

    def __init__(
        self, cfg: DictConfig, folder: Path, interruption: Interruption, status: dict[str, Any], tracking: Tracking
    ) -> None:
        self.cfg, self.folder, self.interruption, self.status = cfg, folder, interruption, status
        self.tracking = tracking
        with parallel.together():
            self.problem, self.solver, self.said = build(cfg)
            self.study = study_of(cfg, self.problem.model)
        environment.reset_peak_memory(self.problem.device)
        self.watch = watch(cfg) if parallel.rank() == 0 else None
        self.step_seconds: list[float] = []
        self.start: dict[str, Any] | None = None
        self.previous: dict[str, Any] | None = None
        self.told: set[str] = set()
        self.restored, self.rows = self._restored()

    def recorded(self) -> dict[str, Any]:
        """Iterate; the summary, once process 0 has all records in the folder (nothing in the others)."""
        leads = parallel.rank() == 0
        with ExitStack() as opened:
            with parallel.together():
                recorder = opened.enter_context(self._recorder()) if leads else None
            iterate, observation = self.run(recorder)
        return self._summary(iterate, observation) if leads else {}

    def _recorder(self) -> Recorder:
        self._describe_environment()
        recorder = Recorder(self.folder / RECORDS, keep=self.rows)
        if self.restored is not None:
            self.status["step"] = self.restored.step
            observed = read_run(self.folder).rows
            self.start, self.previous = _row_of(observed, 0), _row_of(observed, -1)
            for row in observed.to_dict("records"):
                self.tracking.row(row)
        return recorder

    def run(self, recorder: Recorder | None) -> tuple[Iterate, Observation]:
        """The last iterate and its observation; what there is to write goes to the recorder of process 0."""
        self.previous = parallel.broadcast(self.previous)
        iterate, saved, last = self.restored, True, self.solver.num_steps
        first = 0 if iterate is None else iterate.step
        with ProgressLog(first, last, shown=recorder is not None) as progress:
            for iterate in self._iterates(self.restored):
                with parallel.together():
                    progress.update(iterate.step, None if recorder is None else self._recorded(iterate, recorder))
                stop = parallel.largest(self.interruption.code)
                saved = bool(stop) or (iterate.step > 0 and iterate.step % self.cfg.checkpoint_every == 0)
                if saved:
                    self._save(iterate, recorder)
                if stop and iterate.step < last:
                    self.interruption.leave(stop)
        if iterate is None:
            raise ConfigError(f"solver.num_steps must be at least 0, found {last}")
        if not saved:
            self._save(iterate, recorder)
        observation = iterate.observation or self.solver.observe(self.problem, iterate.state)
        return iterate, self.solver.result(self.problem, iterate.state, observation)

    def _iterates(self, restored: Iterate | None) -> Iterator[Iterate]:
        """The solver's iterates with the seconds of the whole run; numerical breakdown becomes Diverged."""
        if restored is not None and restored.finished:
            return
        state, before = (None, 0.0) if restored is None else (restored.state, restored.seconds)
        previous = None if self.previous is None else self.previous.get("objective")
        seconds = before
        try:
            for iterate in self.solver.run(
                self.problem, self.solver.num_steps, self.cfg.eval_every, state=state, previous=previous
            ):
                self.status["step"] = iterate.step
                now = before + iterate.seconds
                if iterate.step > 0:
                    self.step_seconds.append(now - seconds)
                seconds = now
                yield iterate._replace(seconds=now)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise Diverged(
                f"the iterates must stay finite, found none after step {self.status['step']} ({error}); "
                "the records are kept; try other solver settings"
            ) from error

    def _recorded(self, iterate: Iterate, recorder: Recorder) -> dict[str, Any] | None:
        if iterate.observation is None:
            return None
        row = self._row(iterate, iterate.observation)
        recorder.write(row)
        self.tracking.row(row)
        if self.watch is not None:
            self.watch(row)
        self.start = self.start or row
        self.previous = row
        limit = DIVERGED_ABOVE * max(1.0, abs(self.start.get("objective") or 0.0))
        objective = row.get("objective", 0.0)
        if not math.isfinite(objective) or objective > limit:
            raise Diverged(
                f"the objective must stay finite and below {limit:.3g}, found {objective:.4g} at step {iterate.step}; "
                "the records are kept; try other solver settings (a smaller learning rate, precision=float64)"
            )
        return row

    def _row(self, iterate: Iterate, observation: Observation) -> dict[str, Any]:
        """One observation as it goes into `records.jsonl`; accuracy and loss are those of the deployed network."""
        problem, (model, theta, terms) = self.problem, observation
        compressed = problem.plan.decompress(theta)
        deployed, slimmed = self._deployed(iterate, observation)
        train = metrics.evaluate(deployed, problem.data.train, problem.loss)
        test = metrics.evaluate(deployed, problem.data.test, problem.loss)
        dense_test = test if deployed is model else metrics.evaluate(model, problem.data.test, problem.loss)
        size = metrics.sizes(problem, theta, deployed)
        row = {"step": iterate.step, "seconds": iterate.seconds, **terms} | {
            "loss/train": train.loss,
            "accuracy/train": train.accuracy,
            "loss/test": test.loss,
            "accuracy/test": test.accuracy,
            "accuracy/dense_test": dense_test.accuracy,
            "gap": metrics.gap(problem.plan.select(weights_of(model)), compressed),
            "ratio/params": size["ratio/params"],
            "ratio/bits": size["ratio/bits"],
            "sparsity": metrics.sparsity(weights_of(deployed)),
        }
        if slimmed is not None:
            row |= counts_of(slimmed)
        if self.study is not None:
            row |= self.study.distances(deployed)
        if problem.data.validation is not None:
            held_out = metrics.evaluate(deployed, problem.data.validation, problem.loss)
            row |= {"loss/validation": held_out.loss, "accuracy/validation": held_out.accuracy}
        if "decrease/guaranteed" in terms and self.previous is not None:
            promised = terms["decrease/guaranteed"] - self.previous.get("decrease/guaranteed", 0.0)
            row["decrease/slack"] = self.previous["objective"] - terms["objective"] - promised
        return row

    def _deployed(self, iterate: Iterate, observation: Observation) -> tuple[nn.Module, Slimmed | None]:
        """The network that a run would end with now, with Δ(Θ) in it or without dead channels; and with them masked."""
        problem, slimmed = self.problem, self.solver.slimmed(self.problem, iterate.state)
        if slimmed is not None:
            network, words = smaller(slimmed.network, problem.data.train.x[:COMPARED])
            if words is not None and words not in self.told:
                log.warning("%s", words)
                self.told.add(words)
            return network, slimmed
        if not problem.plan.tasks:
            return observation.model, None
        return with_weights(observation.model, problem.plan.decompress(observation.theta)), None

    def _unrounded(self, iterate: Iterate) -> nn.Module | None:
        """What a solver that removes channels would leave of the network without rounding."""
        network = self.solver.unrounded(self.problem, iterate.state)
        return None if network is None else smaller(network, self.problem.data.train.x[:COMPARED])[0]

    def _save(self, iterate: Iterate, recorder: Recorder | None) -> None:
        state = self.solver.whole(self.problem, iterate.state)
        with parallel.together():
            if recorder is not None:
                self._write(iterate, state, recorder)

    def _write(self, iterate: Iterate, state: Any, recorder: Recorder) -> None:
        recorder.sync()
        content = {
            "rows": recorder.count,
            "seconds": iterate.seconds,
            "step_seconds": self.step_seconds,
            "finished": iterate.finished,
            "random": environment.random_state(self.problem.device),
            "state": checkpoint.pack(state),
        }
        checkpoint.save(self.folder / CHECKPOINT, content)

    def _restored(self) -> tuple[Iterate | None, int]:
        """The iterate of the checkpoint to resume from and its number of rows; nothing for a new run or without one."""
        path = self.folder / CHECKPOINT
        if self.cfg.resume is None:
            return None, 0
        if not path.exists():
            log.info("there is no checkpoint yet: starting at step 0")
            return None, 0
        content = checkpoint.load(path)
        state = checkpoint.restore(self.solver.init(self.problem), content["state"], path)
        state = self.solver.own(self.problem, state)
        environment.restore_random_state(content["random"], self.problem.device)
        self.step_seconds = content["step_seconds"]
        log.info("resuming at step %d", state.k)
        return Iterate(state.k, content["seconds"], state, None, content.get("finished", False)), content["rows"]

    def _describe_environment(self) -> None:
        """Write `environment.json`; a resumed run adds what it runs with to what it began with."""
        path = self.folder / "environment.json"
        about = environment.describe(self.problem.device, self.problem.dtype, self.cfg.seed)
        if self.cfg.resume is not None and path.exists():
            began = json.loads(path.read_text(encoding="utf-8"))
            earlier = began.get("resumed")
            about = began | {"resumed": [*(earlier if isinstance(earlier, list) else []), about]}
        write_json(path, about)

    def _one_shot(self, network: nn.Module) -> list[dict[str, Any]]:
        """The rows of the study of what the run ends with; an interruption ends it between two of them."""
        log.info("the network is compressed to every part of compress_at")
        rows = []
        for row in self.study.rows(self.problem, network) if self.study else ():
            rows.append(row)
            if self.interruption.code:
                self.interruption.leave(self.interruption.code)
        return rows

    def _summary(self, iterate: Iterate, observation: Observation) -> dict[str, Any]:
        """The final figures: written to `summary.json` beside the compact network."""
        rows = read_run(self.folder).rows
        final: dict[Any, Any] = rows.iloc[-1].to_dict()
        if final.get("step/kept", iterate.step) != iterate.step:  # the solver ends with an earlier step's network
            final |= self._row(iterate, observation)
        network, slimmed = self._deployed(iterate, observation)
        summary = summary_of(self.cfg, self.problem, observation, rows, final, network)
        if slimmed is not None:
            summary |= channels_of(slimmed)
        summary |= self.said
        if "target/key" in self.said:
            summary["target/achieved"] = summary[self.said["target/key"]]
        if self.problem.round_to > 1:
            summary |= rounding_of(summary, self._unrounded(iterate))
        summary |= {
            "seconds/total": iterate.seconds,
            "seconds/step_median": statistics.median(self.step_seconds) if self.step_seconds else None,
            "memory/peak_bytes": environment.peak_memory(self.problem.device),
            "steps": iterate.step,
            "device": str(self.problem.device),
            "status": "done",
        }
        write_json(self.folder / SUMMARY, summary)
        left = None if slimmed is None else network
        model = OmegaConf.to_container(self.cfg.model, resolve=True)
        save_compact(self.folder / MODEL, self.problem, observation, model, left, portable(self.cfg))
        self._read_back(network)
        summary |= file_sizes(self.problem, observation.theta, network, self.folder)
        write_json(self.folder / SUMMARY, summary)
        if self.study is not None:
            began = time.perf_counter()
            summary |= {"one_shot": self._one_shot(network), "seconds/one_shot": time.perf_counter() - began}
            write_json(self.folder / SUMMARY, summary)
        return summary

    def _read_back(self, network: nn.Module) -> None:
        """Say so when the files give another network than the deployed one, or none."""
        x = self.problem.data.train.x[:COMPARED]
        try:
            found = open_artefact(self.folder / MODEL, None).network().to(x.device, x.dtype)
        except CheckpointError as error:
            log.warning("the compact network cannot be read back: %s", error)
            return
        with torch.no_grad():
            expected, outputs = network.eval()(x), found(x)
        difference = float((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not difference <= READ_BACK:
            log.warning(
                "the network in %s must give the deployed one's outputs, found a difference of %.3g of the largest: "
                "what it keeps outside its state (random buffers that are not persistent, say) is not stored",
                self.folder / MODEL, difference,
            )  # fmt: skip


def _row_of(rows: pd.DataFrame, index: int) -> dict[str, Any] | None:
    return {str(key): value for key, value in rows.iloc[index].dropna().items()} if len(rows) else None
