"""From a configuration to the problem and the solver it names."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig
from torch import nn

from nncompress import config, environment, metrics, parallel
from nncompress.compressions.plan import Plan, check_finite, plan_of
from nncompress.compressions.target import Target, fit
from nncompress.errors import ConfigError, Unsupported
from nncompress.problem import Dataset, Problem, weights_of
from nncompress.signatures import one_line
from nncompress.solvers.base import Solver

log = logging.getLogger(__name__)


def build(cfg: DictConfig) -> tuple[Problem, Solver[Any], dict[str, Any]]:
    """What the configuration names; the solver first, since it needs no data to refuse a bad value."""
    solver = config.build(cfg.solver)
    if parallel.size() > 1 and not solver.parallel:
        raise Unsupported(
            f"several processes (torchrun) need a solver that shares the samples out (solver=nnbcd), found "
            f"{type(solver).__name__}; start one process"
        )
    device = environment.choose_device(cfg.device)
    dtype = environment.choose_dtype(cfg.precision, solver.precision)
    environment.make_deterministic(cfg.seed, cfg.deterministic)
    data = config.build(cfg.dataset)
    if not isinstance(data, Dataset):
        raise ConfigError(f"dataset: must give an nncompress.problem.Dataset, found {type(data).__name__}")
    if len(data.train) < parallel.size():
        raise ConfigError(
            f"each of {parallel.size()} processes needs a sample, found {len(data.train)}; start fewer processes"
        )
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
    layers = layers_of(model, data)
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


def layers_of(model: nn.Module, data: Dataset) -> list[metrics.Layer]:
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
