"""The final figures of a run, as `summary.json` holds them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from nncompress import metrics
from nncompress.building import layers_of
from nncompress.problem import Problem, weights_of
from nncompress.rates import rate_summary
from nncompress.solvers.base import Observation

log = logging.getLogger(__name__)

RECORDED = ("accuracy/test", "accuracy/train", "accuracy/dense_test", "loss/train", "loss/test", "gap", "sparsity")
GROUPS = ("solver", "model", "dataset", "compression")


def summary_of(
    cfg: DictConfig, problem: Problem, observation: Observation, rows: pd.DataFrame, final: Mapping[Any, Any]
) -> dict[str, Any]:
    """What there is to say of the network a run ends with; `final` is its record, `rows` are all records.

    Logs a warning for a task whose weights all became zero.
    """
    theta, weights = observation.theta, problem.plan.select(weights_of(observation.model))
    summary = {key: final[key] for key in RECORDED} | metrics.sizes(problem, theta)
    summary |= {"huffman/compressed": metrics.huffman_bits(problem, theta)}
    summary |= metrics.macs(problem.plan, theta, layers_of(problem.model, problem.data)) | rate_summary(rows)
    summary |= {"objective/final": final.get("objective")}
    summary |= {key: final[key] for key in ("epochs", "step/kept") if key in final}
    summary |= {"tasks": metrics.task_sizes(problem.plan, weights, theta)}
    for task in summary["tasks"]:
        if task["gap"] == 1:
            log.warning("%s: all of it is compressed to zero (%s)", task["params"], task["compression"])
    if cfg.reference is not None:
        start = metrics.evaluate(problem.model, problem.data.test, problem.loss)
        summary |= {"reference": cfg.reference, "accuracy/reference_test": start.accuracy}
    return summary | {"seed": cfg.seed} | {group: cfg.choices.get(group) for group in GROUPS}
