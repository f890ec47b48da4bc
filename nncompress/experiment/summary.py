"""The final figures of a run, as `summary.json` holds them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import nn

from nncompress import metrics
from nncompress.artefact.model import stored_bytes
from nncompress.experiment.setup import layers_of
from nncompress.problem import Problem, weights_of
from nncompress.results.convergence import rate_summary
from nncompress.solvers.base import Observation, Slimmed
from nncompress.surgery.channels import kept_in

log = logging.getLogger(__name__)

RECORDED = ("accuracy/test", "accuracy/train", "accuracy/dense_test", "loss/train", "loss/test", "gap", "sparsity")
FACTOR_DECADES = (-8, 1)
"""Powers of ten between which factors are counted, in quarters of a decade."""
GROUPS = ("solver", "model", "dataset", "compression")


def summary_of(
    cfg: DictConfig,
    problem: Problem,
    observation: Observation,
    rows: pd.DataFrame,
    final: Mapping[Any, Any],
    network: nn.Module,
) -> dict[str, Any]:
    """What there is to say of the `network` a run ends with; `final` is its record, `rows` are all records.

    Logs a warning for a task whose weights all became zero.
    """
    theta, weights = observation.theta, problem.plan.select(weights_of(observation.model))
    summary = {key: final[key] for key in RECORDED} | metrics.sizes(problem, theta, network)
    summary |= {"huffman/compressed": metrics.huffman_bits(problem, theta, network)}
    layers = [layers_of(model, problem.data) for model in (problem.model, network)]
    summary |= metrics.macs(problem.plan, theta, *layers) | rate_summary(rows)
    summary |= _selected(cfg, rows)
    summary |= {"objective/final": final.get("objective")}
    summary |= {key: final[key] for key in ("epochs", "step/kept") if key in final}
    summary |= {key: value for key, value in observation.terms.items() if key.startswith("accuracy/")}
    summary |= {"tasks": metrics.task_sizes(problem.plan, weights, theta)}
    for task in summary["tasks"]:
        if task["gap"] == 1:
            log.warning("%s: all of it is compressed to zero (%s)", task["params"], task["compression"])
    if cfg.reference is not None:
        start = metrics.evaluate(problem.model, problem.data.test, problem.loss)
        summary |= {"reference": cfg.reference, "accuracy/reference_test": start.accuracy}
    if problem.data.validation is not None:
        summary |= {key: final[key] for key in ("accuracy/validation", "loss/validation")}
    return summary | {"seed": cfg.seed, "round_to": cfg.round_to} | {group: cfg.choices.get(group) for group in GROUPS}


def file_sizes(problem: Problem, theta: Sequence[Any], network: nn.Module, folder: Path) -> dict[str, float]:
    """Bytes of the dense network, of the compressed one in theory, and of its files in a run's folder."""
    bits = metrics.file_bits(problem, theta, network)
    found = {"bytes/dense": -(-bits["dense"] // 8), "bytes/theoretical": -(-bits["compressed"] // 8)}
    found |= stored_bytes(folder)
    return found | {"ratio/bytes": found["bytes/disk"] / found["bytes/dense"]}


def counts_of(slimmed: Slimmed) -> dict[str, int]:
    """How many channels with a scaling factor there are and are left."""
    kept = kept_in(slimmed.network)
    left = sum(int(kept[name].sum()) for name in slimmed.factors)
    return {"channels/kept": left, "channels/total": sum(len(kept[name]) for name in slimmed.factors)}


def channels_of(slimmed: Slimmed) -> dict[str, Any]:
    """How many channels each batch norm is left with, and how the factors they were chosen by are distributed."""
    kept, factors = kept_in(slimmed.network), slimmed.factors
    layers: list[dict[str, Any]] = [
        {"norm": name, "channels": len(kept[name]), "kept": int(kept[name].sum())} for name in factors
    ]
    counts = counts_of(slimmed)
    magnitudes = torch.cat([tensor.detach().abs().flatten() for tensor in factors.values()]).cpu()
    positive = magnitudes[magnitudes > 0].log10().clamp(FACTOR_DECADES[0], FACTOR_DECADES[1])
    histogram = torch.histc(positive, 4 * (FACTOR_DECADES[1] - FACTOR_DECADES[0]), FACTOR_DECADES[0], FACTOR_DECADES[1])
    return counts | {
        "ratio/channels": counts["channels/kept"] / counts["channels/total"],
        "channels": layers,
        "factors": {
            "decades": list(FACTOR_DECADES),
            "counts": [int(count) for count in histogram],
            "zero": len(magnitudes) - len(positive),
        },
    }


def rounding_of(summary: Mapping[str, Any], network: nn.Module | None) -> dict[str, Any]:
    """What the network would have without rounding: parameters, and channels with a scaling factor.

    network: that network, where channels are removed. Otherwise what is known of the compressions counts (None: not
    all is).
    """
    if network is None:
        added = summary.get("round_to/added")
        return {"round_to/params": None if added is None else summary["params/compressed"] - added}
    params = sum(p.numel() for p in network.parameters())
    return {"round_to/params": params, "round_to/channels": sum(int(kept.sum()) for kept in kept_in(network).values())}


def _selected(cfg: DictConfig, rows: pd.DataFrame) -> dict[str, Any]:
    """The best recorded test accuracy under protocol=paper, and that of the best validation accuracy."""
    found: dict[str, Any] = {"protocol": cfg.protocol}
    if cfg.protocol == "paper":
        at = int(rows["accuracy/test"].argmax())
        found |= {"accuracy/best_test": rows["accuracy/test"].iloc[at], "step/best_test": int(rows["step"].iloc[at])}
    if "accuracy/validation" in rows:
        at = int(rows["accuracy/validation"].argmax())
        found |= {f"accuracy/{of}_at_best_validation": rows[f"accuracy/{of}"].iloc[at] for of in ("test", "validation")}
        found |= {"step/best_validation": int(rows["step"].iloc[at])}
    return found
