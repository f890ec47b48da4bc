"""One run: build what the configuration names, iterate the solver, measure and record."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import statistics
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nncompress import checkpoint, config, environment, metrics
from nncompress.compact.artefact import save_compact
from nncompress.compressions.plan import Plan, check_finite, plan_of
from nncompress.compressions.target import Target, fit
from nncompress.errors import ConfigError, Diverged, NNCompressError, Unsupported
from nncompress.interruption import Interruption
from nncompress.problem import Dataset, Problem, weights_of, with_weights
from nncompress.progress import ProgressLog
from nncompress.rates import rate_summary
from nncompress.records import CONFIG, RECORDS, STATUS, SUMMARY, Recorder, read_run, write_json
from nncompress.report import write_run_report
from nncompress.signatures import one_line
from nncompress.solvers.base import Iterate, Observation, Solver

log = logging.getLogger(__name__)

CHECKPOINT = Path("checkpoints") / "last.pt"
DIVERGED_ABOVE = 1e6
"""A run whose objective exceeds this multiple of its start (at least 1) has diverged."""


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Do the run that `cfg` describes in `folder` and return its summary.

    Writes the files of a run folder, `status.json` whatever happens. Raises an NNCompressError or what else went
    wrong, and SystemExit(130 or 143) after a checkpoint when interrupted.
    """
    with _claimed(folder):
        if cfg.resume is None and (folder / RECORDS).exists():
            raise ConfigError(
                f"a run needs a folder of its own, found the records of another run in {folder}; "
                f"continue that one with resume={folder}, or give another hydra.run.dir"
            )
        with _status(folder, cfg.resume is not None) as status, Interruption() as interruption:
            saved = OmegaConf.merge(cfg, {"resume": None})
            (folder / CONFIG).write_text(OmegaConf.to_yaml(saved, resolve=True), encoding="utf-8")
            summary = _Execution(cfg, folder, interruption, status).run()
            write_run_report(folder)
    return summary


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder: a second process that wants to run in it is refused. The claim ends with the process."""
    with open(folder / "run.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"a run needs a folder of its own, found another process running in {folder}; wait for it, or give "
                "another hydra.run.dir"
            ) from error
        yield


@contextmanager
def _status(folder: Path, resumed: bool) -> Iterator[dict[str, Any]]:
    """Keep `status.json` true: running inside, then done or what ended the run, with its traceback in the log.

    A run that cannot be taken up again (`resumed`, no step restored) keeps the status it had.
    """
    before = read_run(folder).status if resumed else None
    status: dict[str, Any] = {"status": "running", "reason": None, "traceback": None, "step": None}
    write_json(folder / STATUS, status)
    try:
        yield status
        status["status"] = "done"
    except (SystemExit, KeyboardInterrupt) as stop:
        status |= {"status": "interrupted", "reason": "stopped by a signal; continue with resume=<this folder>"}
        log.warning("interrupted at step %s; continue with: nncompress train resume=%s", status["step"], folder)
        raise stop
    except BaseException as error:
        kinds: dict[type[BaseException], str] = {Unsupported: "unsupported", Diverged: "diverged"}
        name = kinds.get(type(error), "failed")
        last_line = traceback.format_exception_only(error)[-1].strip()
        status |= {"status": name, "reason": str(error) or last_line, "traceback": last_line}
        if before is not None and status["step"] is None:
            status = before
        log.error("%s", error, exc_info=error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise NNCompressError(
                f"the disk that holds {folder} is full; free space, then continue with resume={folder} if it holds "
                f"{CHECKPOINT}, else start the run again"
            ) from error
        raise
    finally:
        with suppress(OSError):  # a full disk must not hide what went wrong
            write_json(folder / STATUS, status)


def _build(cfg: DictConfig) -> tuple[Problem, Solver[Any], dict[str, Any]]:
    """What the configuration names; the solver first, since it needs no data to refuse a bad value."""
    solver = config.build(cfg.solver)
    device = environment.choose_device(cfg.device)
    dtype = environment.choose_dtype(cfg.precision, solver.precision)
    environment.make_deterministic(cfg.seed, cfg.deterministic)
    data = config.build(cfg.dataset)
    if not isinstance(data, Dataset):
        raise ConfigError(f"dataset: must give an nncompress.problem.Dataset, found {type(data).__name__}")
    data = data.to(device, dtype)
    model = config.build(cfg.model, input_shape=data.input_shape, num_classes=data.num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: must give a torch.nn.Module, found {type(model).__name__}")
    model = model.to(device, dtype)
    plan, target = _plan(cfg, model, data)
    for words in plan.clipped():
        log.warning("%s", words)
    return Problem(model, data, plan), solver, target


def _plan(cfg: DictConfig, model: nn.Module, data: Dataset) -> tuple[Plan, dict[str, Any]]:
    """The plan of the compression's recipe, fitted to a target if there is one, and what the summary says of that."""
    weights, recipe = weights_of(model), config.build(cfg.compression)
    check_finite(weights)
    layers = _layers(model, data)
    uses = metrics.uses_of(layers)
    given = [(str(name), value) for name, value in cfg.target.items() if value is not None]
    with config.refusals("compression"):
        if not given:
            return plan_of(recipe, weights, uses), {}
        name, requested = given[0]
        key = TARGETS[name][requested > 1]

        def measure(plan: Plan) -> float:
            theta = plan.compress(plan.select(weights))
            return (metrics.sizes(Problem(model, data, plan), theta) | metrics.macs(plan, theta, layers))[key]

        found = fit(recipe, weights, Target(name, measure, requested), uses)
    log.info("target.%s=%g: %s gives %.6g on the initial weights", name, requested, found.setting, found.achieved)
    return found.plan, {"target/key": key, "target/requested": requested, "target/setting": found.setting}


def _layers(model: nn.Module, data: Dataset) -> list[metrics.Layer]:
    """The layers one sample passes; ConfigError when the network does not take the data."""
    try:
        return metrics.layers_of(model, data.train.x[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"model: the network must take samples of shape {data.input_shape}, found that its forward pass fails "
            f"({one_line(error)}); choose another model or data set (dataset.flatten=...)"
        ) from error


TARGETS = {
    "ratio": ("ratio/params", "ratio/params"),
    "bits": ("ratio/bits", "bits/compressed"),
    "macs": ("ratio/macs", "macs/compressed"),
}
"""The figure each target sets, for a request of at most 1 and for a larger one."""


class _Execution:
    """The loop over a solver's iterates, from the start or from a checkpoint."""

    def __init__(self, cfg: DictConfig, folder: Path, interruption: Interruption, status: dict[str, Any]) -> None:
        self.cfg, self.folder, self.interruption, self.status = cfg, folder, interruption, status
        self.problem, self.solver, self.target = _build(cfg)
        environment.reset_peak_memory(self.problem.device)
        self.step_seconds: list[float] = []
        self.start: dict[str, Any] | None = None
        self.previous: dict[str, Any] | None = None
        self._describe_environment()

    def run(self) -> dict[str, Any]:
        restored, rows = self._restored()
        last = self.solver.num_steps
        with Recorder(self.folder / RECORDS, keep=rows) as recorder:
            if restored is not None:
                observed = read_run(self.folder).rows
                self.start, self.previous = _row_of(observed, 0), _row_of(observed, -1)
            with ProgressLog(0 if restored is None else restored.step, last) as progress:
                iterate, saved = restored, True
                for iterate in self._iterates(restored):
                    progress.update(iterate.step, self._recorded(iterate, recorder))
                    stop = self.interruption.code
                    saved = bool(stop) or (iterate.step > 0 and iterate.step % self.cfg.checkpoint_every == 0)
                    if saved:
                        self._save(iterate, recorder)
                    if stop and iterate.step < last:
                        raise SystemExit(stop)
            if iterate is None:
                raise ConfigError(f"solver.num_steps must be at least 0, found {last}")
            if not saved:
                self._save(iterate, recorder)
        return self._summary(iterate)

    def _iterates(self, restored: Iterate | None) -> Iterator[Iterate]:
        """The solver's iterates with the seconds of the whole run; numerical breakdown becomes Diverged."""
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
        deployed = with_weights(model, compressed) if problem.plan.tasks else model
        train = metrics.evaluate(deployed, problem.data.train, problem.loss)
        test = metrics.evaluate(deployed, problem.data.test, problem.loss)
        dense_test = metrics.evaluate(model, problem.data.test, problem.loss)
        size = metrics.sizes(problem, theta)
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
        if "decrease/guaranteed" in terms and self.previous is not None:
            promised = terms["decrease/guaranteed"] - self.previous.get("decrease/guaranteed", 0.0)
            row["decrease/slack"] = self.previous["objective"] - terms["objective"] - promised
        return row

    def _save(self, iterate: Iterate, recorder: Recorder) -> None:
        recorder.sync()
        content = {
            "rows": recorder.count,
            "seconds": iterate.seconds,
            "step_seconds": self.step_seconds,
            "random": environment.random_state(self.problem.device),
            "state": checkpoint.pack(iterate.state),
        }
        checkpoint.save(self.folder / CHECKPOINT, content)

    def _restored(self) -> tuple[Iterate | None, int]:
        """The iterate of the checkpoint to resume from and its number of rows; nothing for a new run."""
        if self.cfg.resume is None:
            return None, 0
        path = self.folder / CHECKPOINT
        content = checkpoint.load(path)
        state = checkpoint.restore(self.solver.init(self.problem), content["state"], path)
        environment.restore_random_state(content["random"], self.problem.device)
        self.step_seconds = content["step_seconds"]
        self.status["step"] = state.k
        log.info("resuming at step %d", state.k)
        return Iterate(state.k, content["seconds"], state, None), content["rows"]

    def _describe_environment(self) -> None:
        """Write `environment.json`; a resumed run adds what it runs with to what it began with."""
        path = self.folder / "environment.json"
        about = environment.describe(self.problem.device, self.problem.dtype, self.cfg.seed)
        if self.cfg.resume is not None and path.exists():
            began = json.loads(path.read_text(encoding="utf-8"))
            earlier = began.get("resumed")
            about = began | {"resumed": [*(earlier if isinstance(earlier, list) else []), about]}
        write_json(path, about)

    def _summary(self, iterate: Iterate) -> dict[str, Any]:
        """The final figures: written to `summary.json` beside the compact network."""
        problem, choices = self.problem, self.cfg.choices
        observation = iterate.observation or self.solver.observe(problem, iterate.state)
        rows = read_run(self.folder).rows
        final = rows.iloc[-1].to_dict()
        kept = ("accuracy/test", "accuracy/train", "accuracy/dense_test", "loss/train", "loss/test", "gap", "sparsity")
        theta, weights = observation.theta, problem.plan.select(weights_of(observation.model))
        layers = _layers(problem.model, problem.data)
        summary = {key: final[key] for key in kept} | metrics.sizes(problem, theta)
        summary |= {"huffman/compressed": metrics.huffman_bits(problem, theta)}
        summary |= metrics.macs(problem.plan, theta, layers) | rate_summary(rows)
        if self.target:
            summary |= self.target | {"target/achieved": summary[self.target["target/key"]]}
        summary |= {
            "seconds/total": iterate.seconds,
            "seconds/step_median": statistics.median(self.step_seconds) if self.step_seconds else None,
            "memory/peak_bytes": environment.peak_memory(problem.device),
            "objective/final": final.get("objective"),
            "steps": iterate.step,
            "device": str(problem.device),
            "seed": self.cfg.seed,
            "status": "done",
            "tasks": metrics.task_sizes(problem.plan, weights, theta),
        } | {group: choices.get(group) for group in ("solver", "model", "dataset", "compression")}
        for task in summary["tasks"]:
            if task["gap"] == 1:
                log.warning("%s: all of it is compressed to zero (%s)", task["params"], task["compression"])
        save_compact(self.folder / "model", problem, observation, OmegaConf.to_container(self.cfg.model, resolve=True))
        write_json(self.folder / SUMMARY, summary)
        return summary


def _row_of(rows: pd.DataFrame, index: int) -> dict[str, Any] | None:
    return {str(key): value for key, value in rows.iloc[index].dropna().items()} if len(rows) else None
