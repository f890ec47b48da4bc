"""The figures of a run: a row of `records.jsonl` for an observation, and `summary.json` for what it ends with."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress import environment, metrics
from nncompress.artefact.files import stored_bytes
from nncompress.errors import Diverged
from nncompress.experiment.setup import Setup
from nncompress.problem import Problem, weights_of
from nncompress.results.convergence import rate_summary
from nncompress.solvers.base import Iterate, Observation
from nncompress.surgery.uses import layers_of

log = logging.getLogger(__name__)

DIVERGED_ABOVE = 1e6
"""A run whose objective exceeds this multiple of its start (at least 1) has diverged."""
RECORDED = ("accuracy/test", "accuracy/train", "accuracy/dense_test", "loss/train", "loss/test", "gap", "sparsity")


def row_of(
    setup: Setup, iterate: Iterate, observation: Observation, previous: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return one observation as it goes into the records; accuracy and loss are those of the deployed network.

    previous: the row before, from which the objective must have fallen by what the solver guarantees.
    """
    problem, (model, theta, terms, deployed, *_) = setup.problem, observation
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
        "gap": metrics.gap(*(problem.plan.select(weights_of(network)) for network in (model, deployed))),
        "ratio/params": size["ratio/params"],
        "ratio/bits": size["ratio/bits"],
        "sparsity": metrics.sparsity(weights_of(deployed)),
    }
    if setup.study is not None:
        row |= setup.study.distances(deployed)
    if problem.data.validation is not None:
        validation = metrics.evaluate(deployed, problem.data.validation, problem.loss)
        row |= {"loss/validation": validation.loss, "accuracy/validation": validation.accuracy}
    if "decrease/guaranteed" in terms and previous is not None:
        guaranteed = terms["decrease/guaranteed"] - previous.get("decrease/guaranteed", 0.0)
        row["decrease/slack"] = previous["objective"] - terms["objective"] - guaranteed
    return row


def check_bounded(row: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raise Diverged when the objective is not finite, or far above that of the first row."""
    limit = DIVERGED_ABOVE * max(1.0, abs(first.get("objective") or 0.0))
    objective = row.get("objective", 0.0)
    if not math.isfinite(objective) or objective > limit:
        raise Diverged(
            f"the objective must stay finite and below {limit:.3g}, found {objective:.4g} at step {row['step']}; "
            "the records are kept; try other solver settings (a smaller learning rate, precision=float64)"
        )


def summary_of(
    setup: Setup,
    iterate: Iterate,
    observation: Observation,
    rows: pd.DataFrame,
    previous: Mapping[str, Any] | None,
    step_seconds: Sequence[float],
) -> dict[str, Any]:
    """Return what there is to say of the network that a run ends with.

    Log a warning for a task whose weights all became zero.

    Args:
        observation: of that network, which may be that of an earlier step than the last.
        rows: all records.
        previous: the last of them.
        step_seconds: of each step.
    """
    problem, facts = setup.problem, setup.facts
    final: dict[Any, Any] = rows.iloc[-1].to_dict()
    if final.get("step/kept", iterate.step) != iterate.step:  # the solver ends with an earlier step's network
        final |= row_of(setup, iterate, observation, previous)
    summary = {key: final[key] for key in RECORDED} | _sizes(problem, observation) | rate_summary(rows)
    summary |= _best(rows, setup.settings.protocol)
    summary |= {"objective/final": final.get("objective")}
    summary |= {key: final[key] for key in ("epochs", "step/kept") if key in final}
    summary |= {key: value for key, value in observation.terms.items() if key.startswith("accuracy/")}
    if "reference" in facts:
        start = metrics.evaluate(problem.model, problem.data.test, problem.loss)
        summary |= {"accuracy/reference_test": start.accuracy}
    if problem.data.validation is not None:
        summary |= {key: final[key] for key in ("accuracy/validation", "loss/validation")}
    summary |= facts
    if "target/key" in facts:
        summary["target/achieved"] = summary[facts["target/key"]]
    if problem.round_to > 1:
        added = facts.get("round_to/added")
        summary["round_to/params"] = None if added is None else summary["params/compressed"] - added
    return {
        **summary,
        **observation.details,
        "seconds/total": iterate.seconds,
        "seconds/step_median": statistics.median(step_seconds) if step_seconds else None,
        "memory/peak_bytes": environment.peak_memory(problem.device),
        "steps": iterate.step,
        "device": str(problem.device),
        "status": "done",
    }


def _sizes(problem: Problem, observation: Observation) -> dict[str, Any]:
    """Return sizes and multiply-accumulates of the whole network, and of each task."""
    theta, network = observation.theta, observation.deployed
    sizes: dict[str, Any] = dict(metrics.sizes(problem, theta, network))
    sizes["huffman/compressed"] = metrics.huffman_bits(problem, theta, network)
    layers = [layers_of(model, problem.data.train.x[:1]) for model in (problem.model, network)]
    sizes |= metrics.macs(problem.plan, theta, *layers)
    weights = problem.plan.select(weights_of(observation.model))
    sizes["weights"] = metrics.weight_histograms(problem.plan, theta, network)
    sizes["tasks"] = metrics.task_sizes(problem.plan, weights, theta)
    for task in sizes["tasks"]:
        if task["gap"] == 1:
            log.warning("%s: all of it is compressed to zero (%s)", task["params"], task["compression"])
    return sizes


def _best(rows: pd.DataFrame, protocol: str) -> dict[str, Any]:
    """Return the best recorded test accuracy under protocol=paper, and that of the best validation accuracy."""
    best: dict[str, Any] = {"protocol": protocol}
    if protocol == "paper":
        at = int(rows["accuracy/test"].argmax())
        best |= {"accuracy/best_test": rows["accuracy/test"].iloc[at], "step/best_test": int(rows["step"].iloc[at])}
    if "accuracy/validation" in rows:
        at = int(rows["accuracy/validation"].argmax())
        best |= {f"accuracy/{of}_at_best_validation": rows[f"accuracy/{of}"].iloc[at] for of in ("test", "validation")}
        best |= {"step/best_validation": int(rows["step"].iloc[at])}
    return best


def file_sizes(problem: Problem, observation: Observation, folder: Path) -> dict[str, float]:
    """Return bytes of the dense network, of the compressed one in theory, and of its files in a run's folder."""
    bits = metrics.file_bits(problem, observation.theta, observation.deployed)
    sizes = {"bytes/dense": -(-bits["dense"] // 8), "bytes/theoretical": -(-bits["compressed"] // 8)}
    sizes |= stored_bytes(folder)
    return sizes | {"ratio/bytes": sizes["bytes/disk"] / sizes["bytes/dense"]}
