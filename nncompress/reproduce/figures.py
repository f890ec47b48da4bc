"""Figures of runs as papers quote them: errors, parts that were taken away, figures before fine-tuning."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nncompress.report.collect import final
from nncompress.results.records import Run

ONE_SHOT = "one_shot/"
TASKS = "tasks/"
BEFORE = "before fine-tuning"


class Metric(NamedTuple):
    """How a published metric follows from a run.

    key: the figure of the run; form: of its value. better: 1 when larger is better, −1 when smaller is, 0 when it
    should be equal. tolerance: by how much ours may be worse (or differ). moment: None for the end of the run.
    """

    key: str
    form: Callable[[float], float]
    better: int
    tolerance: float
    moment: str | None = None


def _same(value: float) -> float:
    return value


def _percent(value: float) -> float:
    return 100 * value


def _rest(value: float) -> float:
    """Return what is left of 1, in %: the error for an accuracy, what was pruned for what is left."""
    return 100 * (1 - value)


METRICS: Mapping[str, Metric] = {
    "test accuracy (%)": Metric("accuracy/test", _percent, 1, 0.5),
    "train accuracy (%)": Metric("accuracy/train", _percent, 1, 0.5),
    "test accuracy with sparsity (%)": Metric("accuracy/dense_test", _percent, 1, 0.5, BEFORE),
    "test accuracy pruned (%)": Metric("accuracy/test", _percent, 1, 0.5, BEFORE),
    "test accuracy fine-tuned (%)": Metric("accuracy/test", _percent, 1, 0.5),
    "test error (%)": Metric("accuracy/test", _rest, -1, 0.3),
    "CR_1": Metric("ratio/params", _same, 0, 5e-5),
    "CR_2": Metric("ratio/tasks", _same, 0, 5e-5),
    "parameters": Metric("params/dense", _same, 0, 0.0),
    "parameters left": Metric("params/compressed", _same, 0, 0.0),
    "parameters pruned (%)": Metric("ratio/params", _rest, 1, 2.0),
    "FLOPs pruned (%)": Metric("ratio/macs", _rest, 1, 2.0),
    "MACs": Metric("macs/dense", _same, 0, 0.0),
    "channels": Metric("channels/total", _same, 0, 0.0),
    "compression factor": Metric("ratio/bits", lambda value: 1 / value, 1, 0.5),
    "bits": Metric("bits/compressed", _same, 0, 0.0),
    "ratio of bits": Metric("ratio/bits", lambda value: 1 / value, 0, 0.005),
    "weights removed (%)": Metric("sparsity", _percent, 0, 0.05),
}
"""What can be held against a published figure. Objectives are not: the published code weighs its terms differently."""

_ELSEWHERE = "no figure of a run; nncompress.reproduce.counts counts it as published, the tests hold it"
UNCOMPARED: Mapping[str, str] = {"FLOPs": _ELSEWHERE, "parameters with selection vectors": _ELSEWHERE}
"""Published metrics that no run has, and why."""


def metric_value(run: Run, metric: Metric, step: int | None = None, key: str | None = None) -> float | None:
    """Return a metric of a run at its end or a step, None where it is not known; `key` in place of its own."""
    if metric.moment == BEFORE:
        step = _fine_tuned_from(run)
    value = figure(run, key or metric.key, step)
    return None if value is None else metric.form(value)


def figure(run: Run, key: str, step: int | None = None, parts: frozenset[float] | None = None) -> float | None:
    """Return a key of the summary or, at a step, of the records. `tasks/KEY`: the sum over the tasks.

    `one_shot/METHOD`: the mean accuracy over all parts taken away by it (of `parts`, where given), without
    recalibration; `one_shot/METHOD/recalibrated`: with it.
    """
    if step is not None:
        at = run.rows[run.rows["step"] == step] if "step" in run.rows else run.rows
        return None if at.empty or key not in at else _number(at[key].iloc[-1])
    if key.startswith(ONE_SHOT):
        kept = [value for part, value in _one_shot(run, key).items() if parts is None or part in parts]
        return sum(kept) / len(kept) if kept else None
    if key.startswith(TASKS):
        tasks = (run.summary or {}).get("tasks") or []
        return float(sum(task[key.removeprefix(TASKS)] for task in tasks)) if tasks else None
    return _number(final(run).get(key)) if run.summary is not None else None


def shared_parts(runs: Sequence[Run], key: str) -> frozenset[float] | None:
    """Return the parts that all runs were compressed to by the method of a key `one_shot/METHOD`; None for another."""
    if not key.startswith(ONE_SHOT):
        return None
    parts = [frozenset(_one_shot(run, key)) for run in runs]
    return frozenset.intersection(*parts) if parts else frozenset()


def _one_shot(run: Run, key: str) -> dict[float, float]:
    """Return the accuracy at each part that was taken away."""
    method, _, recalibrated = key.removeprefix(ONE_SHOT).partition("/")
    return {
        float(row["part"]): float(row["accuracy/test"])
        for row in (run.summary or {}).get("one_shot") or []
        if row["method"] == method and row["part"] > 0 and row["recalibrated"] == bool(recalibrated)
    }


def _fine_tuned_from(run: Run) -> int | None:
    """Return the last step before fine-tuning; None for a run without it."""
    steps, tuned = run.settings.get("solver.num_steps"), run.settings.get("solver.fine_tune", 0)
    if steps is None or tuned == 0:
        return None
    return int(steps) - (int(steps) // 2 if tuned is None else int(tuned))


def _number(value: Any) -> float | None:
    """Return a value on record as a number, a check as 0 or 1; None for anything else and for NaN."""
    return float(value) if isinstance(value, int | float) and value == value else None
