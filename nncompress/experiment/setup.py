"""From a configuration to the objects of a run. What follows sees those alone, no configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nncompress import environment, metrics, parallel
from nncompress.artefact.start import start_from
from nncompress.compressions.plan import Plan, check_finite, plan_of
from nncompress.compressions.target import SizeTarget, changes, fit
from nncompress.config.allow import INTERPOLATIONS, targets
from nncompress.config.build import build, refusals, resolve
from nncompress.errors import ConfigError, Unsupported
from nncompress.experiment.one_shot import OneShot
from nncompress.experiment.study import OneShotStudy
from nncompress.problem import Augmentation, Computation, Dataset, Problem, Split, weights_of
from nncompress.solvers.base import Solver
from nncompress.surgery.uses import layers_of, uses_of
from nncompress.tracking.base import Tracker

log = logging.getLogger(__name__)

TARGETS = {
    "ratio": ("ratio/params", "ratio/params"),
    "bits": ("ratio/bits", "bits/compressed"),
    "macs": ("ratio/macs", "macs/compressed"),
}
"""The figure each target sets, for a request of at most 1 and for a larger one."""
OPTIONS = ("solver", "model", "dataset", "compression")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is done.

    - seed: goes into the records; what is random was made with it.
    - eval_every, checkpoint_every: steps between two observations, and between two checkpoints.
    - protocol: `paper` adds the best recorded test accuracy to the summary, labelled.
    - resume: go on with what the folder holds.
    - config: the configuration as plain containers, nothing left to resolve, which is kept in the folder.
    - data: the node of the data set as it is on any machine, which is kept with the network.
    """

    seed: int = 0
    eval_every: int = 1
    checkpoint_every: int = 10
    protocol: str = "last"
    resume: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Any = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run needs.

    - problem, solver: what is solved, and how.
    - study: how the final network is compressed without retraining; the default is not at all.
    - trackers: makers of those that are told the records, by name.
    - watch: looks at every row of the records, and may end the run.
    - settings: how the run is done.
    - facts: what the summary repeats: the options taken, the target, the rounding.
    """

    problem: Problem
    solver: Solver[Any]
    study: OneShotStudy | None = None
    trackers: Mapping[str, Callable[[], Tracker]] = field(default_factory=dict)
    watch: Callable[[Mapping[str, Any]], None] | None = None
    settings: Settings = Settings()
    facts: Mapping[str, Any] = field(default_factory=dict)


def setup(cfg: DictConfig) -> Setup:
    """Build what the configuration names; under torchrun in every process, and what fails in one fails in all.

    Raises:
        NNCompressError: a value is refused, the data are not there, or parts do not go together.
    """
    with parallel.together():
        problem, solver, facts = _problem(cfg)
        study = _study(cfg, problem.model)
        return Setup(
            problem=problem,
            solver=solver,
            study=study,
            trackers={str(name): partial(build, node) for name, node in (cfg.tracking or {}).items()},
            settings=settings_of(cfg),
            facts=_facts(cfg) | facts,
        )


def settings_of(cfg: DictConfig) -> Settings:
    """Return how the run of a configuration is done; nothing is built."""
    config = resolve(cfg) | {"resume": None}
    given: Any = OmegaConf.to_container(cfg.dataset, resolve=False)
    return Settings(
        seed=cfg.seed,
        eval_every=cfg.eval_every,
        checkpoint_every=cfg.checkpoint_every,
        protocol=cfg.protocol,
        resume=cfg.resume is not None,
        config=config,
        data=config["dataset"] | {key: value for key, value in given.items() if value in INTERPOLATIONS.values()},
    )


def _facts(cfg: DictConfig) -> dict[str, Any]:
    reference = {} if cfg.reference is None else {"reference": cfg.reference}
    options = {group: cfg.choices.get(group) for group in OPTIONS}
    return reference | {"seed": cfg.seed, "round_to": cfg.round_to} | options


def _problem(cfg: DictConfig) -> tuple[Problem, Solver[Any], dict[str, Any]]:
    """Return the problem, the solver, and what the summary says of target and rounding.

    The solver is built first, since it needs no data to refuse a bad value.
    """
    solver = build(cfg.solver)
    if parallel.size() > 1 and not solver.parallel:
        raise Unsupported(
            f"several processes (torchrun) need a solver that shares the samples out (nnbcd, sgd, slimming, "
            f"frank_wolfe, ...), found {type(solver).__name__}; start one process"
        )
    device = environment.choose_device(cfg.device)
    dtype = environment.choose_dtype(cfg.precision, solver.precision)
    environment.make_deterministic(cfg.seed, cfg.deterministic)
    data = build(cfg.dataset)
    if not isinstance(data, Dataset):
        raise ConfigError(f"dataset: must give an nncompress.problem.Dataset, found {type(data).__name__}")
    data = _prepare(cfg, data.to(device, dtype))
    if len(data.train) < parallel.size():
        raise ConfigError(
            f"each of {parallel.size()} processes needs a sample, found {len(data.train)}; start fewer processes"
        )
    computation = Computation(half=cfg.precision == "bf16", graphs=cfg.cuda_graphs)
    model = _model(cfg, data)
    if computation.half:
        model = model.to(memory_format=torch.channels_last)
        data = data.lay_out(torch.channels_last)
    plan, facts = _plan(cfg, model, data, solver)
    for warning in plan.clipped():
        log.warning("%s", warning)
    target = _target(cfg) if solver.removes_channels else None
    problem = Problem(model, data, plan, computation=computation, target=target, round_to=cfg.round_to)
    return problem, solver, facts


def _study(cfg: DictConfig, model: nn.Module) -> OneShotStudy | None:
    """Return how the final network is compressed without retraining; None without a part to take away."""
    methods: dict[str, OneShot] = {}
    for name, node in (cfg.compress_by or {}).items():
        method = build(node)
        if not isinstance(method, OneShot):
            kind = type(method).__name__
            raise ConfigError(f"compress_by.{name}: must give an nncompress.experiment.one_shot.OneShot, found {kind}")
        if cfg.compress_at or method.at:
            methods[str(name)] = method
    if not methods:
        return None
    study = OneShotStudy(methods=methods, at=list(cfg.compress_at), recalibrate=cfg.recalibrate, seed=cfg.seed)
    return study.for_network(model)


def _prepare(cfg: DictConfig, data: Dataset) -> Dataset:
    """Return the data set with what the run does to any: a part of the training samples held out, augmentation."""
    with refusals("augmentation"):
        augmentation = None if cfg.augmentation is None else build(cfg.augmentation)
        if augmentation is not None and not isinstance(augmentation, Augmentation):
            kind = type(augmentation).__name__
            raise ConfigError(f"augmentation: must give an nncompress.problem.Augmentation, found {kind}")
        if augmentation is not None:
            augmentation.check(data.input_shape)
            augmentation = augmentation if augmentation.columns else None
    held_out = round(cfg.validation * len(data.train))
    if cfg.validation > 0 and held_out in (0, len(data.train)):
        raise ConfigError(
            f"validation: must hold out some and leave some of the training samples, found {cfg.validation} of "
            f"{len(data.train)}; give another part"
        )
    if not held_out:
        return replace(data, augmentation=augmentation)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(cfg.seed)).to(data.train.y.device)
    parts = (order[:held_out], order[held_out:])
    validation, train = (Split(data.train.x[rows], data.train.y[rows]) for rows in parts)
    return replace(data, train=train, validation=validation, augmentation=augmentation)


def _model(cfg: DictConfig, data: Dataset) -> nn.Module:
    """Return the network on the data's device and dtype, with the weights of the reference if there is one."""
    model = build(cfg.model, input_shape=data.input_shape, num_classes=data.num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: must give a torch.nn.Module, found {type(model).__name__}")
    x = data.train.x
    model = model.to(x.device)
    model = model.double() if x.dtype == torch.float64 else model.float()  # complex numbers stay what they are
    if cfg.reference is not None:
        start_from(Path(cfg.reference), model, data, [*cfg.allow, *targets(cfg.model), *targets(cfg.compression)])
    return model


def _target(cfg: DictConfig) -> tuple[str, float] | None:
    """Return the name and the value of the target, if there is one."""
    return next(((str(name), value) for name, value in cfg.target.items() if value is not None), None)


def _plan(cfg: DictConfig, model: nn.Module, data: Dataset, solver: Solver[Any]) -> tuple[Plan, dict[str, Any]]:
    """Return the plan of the compression's recipe, and what the summary says of the target and of rounding.

    The plan is fitted to a target, unless the solver meets it.
    """
    weights, recipe = weights_of(model), build(cfg.compression)
    check_finite(weights)
    layers = layers_of(model, data.train.x[:1])
    uses = uses_of(layers)
    target = _target(cfg)

    def make_plan(**settings: Any) -> tuple[Plan, dict[str, Any]]:
        plan = plan_of(recipe, weights, uses, round_to=cfg.round_to, **settings)
        if cfg.round_to == 1 or not plan.tasks:
            return plan, {}
        return plan, _rounding(plan, plan_of(recipe, weights, uses, **settings))

    with refusals("compression"):
        if target is None:
            return make_plan()
        name, requested = target
        key = TARGETS[name][requested > 1]
        facts = {"target/key": key, "target/requested": requested}
        if solver.removes_channels:
            return make_plan()[0], facts

        def measure(plan: Plan) -> float:
            theta = plan.compress(plan.select(weights))
            return (metrics.sizes(Problem(model, data, plan), theta) | metrics.macs(plan, theta, layers))[key]

        fitted = fit(recipe, weights, SizeTarget(name, measure, requested), uses, round_to=cfg.round_to)
        plan, rounding = make_plan(**{fitted.name: fitted.value})
    log.info("target.%s=%g: %s gives %.6g on the initial weights", name, requested, fitted.setting, fitted.achieved)
    return plan, facts | {"target/setting": fitted.setting} | rounding


def _rounding(plan: Plan, plain: Plan) -> dict[str, Any]:
    """Return what the summary says of a plan beside that without rounding."""
    differences = changes(plan, plain)
    added = [change.added for change in differences]
    known = None if None in added else sum(number for number in added if number is not None)
    return {"round_to/changed": [change._asdict() for change in differences], "round_to/added": known}
