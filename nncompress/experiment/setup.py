"""From a configuration to the problem and the solver it names."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nncompress import environment, metrics, parallel
from nncompress.artefact.model import DESCRIPTION, load
from nncompress.compressions.plan import Plan, check_finite, plan_of
from nncompress.compressions.target import SizeTarget, changes, fit
from nncompress.config import build as config_build
from nncompress.config.allow import targets
from nncompress.config.build import refusals
from nncompress.errors import ConfigError, NNCompressError, Unsupported, one_line
from nncompress.experiment.one_shot import OneShot
from nncompress.experiment.study import OneShotStudy
from nncompress.problem import Augmentation, Computation, Dataset, Problem, Split, weights_of
from nncompress.solvers.base import Solver
from nncompress.surgery import uses as metrics_uses
from nncompress.surgery.channels import is_reshaped
from nncompress.surgery.removal import reshape, structure
from nncompress.surgery.uses import Layer, uses_of

log = logging.getLogger(__name__)


def build(cfg: DictConfig) -> tuple[Problem, Solver[Any], dict[str, Any]]:
    """What the configuration names, and what its summary says of target and rounding.

    The solver first, since it needs no data to refuse a bad value.
    """
    solver = config_build.build(cfg.solver)
    if parallel.size() > 1 and not solver.parallel:
        raise Unsupported(
            f"several processes (torchrun) need a solver that shares the samples out (nnbcd, sgd, slimming, "
            f"frank_wolfe, ...), found {type(solver).__name__}; start one process"
        )
    device = environment.choose_device(cfg.device)
    dtype = environment.choose_dtype(cfg.precision, solver.precision)
    environment.make_deterministic(cfg.seed, cfg.deterministic)
    data = config_build.build(cfg.dataset)
    if not isinstance(data, Dataset):
        raise ConfigError(f"dataset: must give an nncompress.problem.Dataset, found {type(data).__name__}")
    data = _prepared(cfg, data.to(device, dtype))
    if len(data.train) < parallel.size():
        raise ConfigError(
            f"each of {parallel.size()} processes needs a sample, found {len(data.train)}; start fewer processes"
        )
    computation = Computation(half=cfg.precision == "bf16", graphs=cfg.cuda_graphs)
    model = _model(cfg, data)
    if computation.half:
        model = model.to(memory_format=torch.channels_last)
        data = data.laid_out(torch.channels_last)
    plan, said = _plan(cfg, model, data, solver)
    for words in plan.clipped():
        log.warning("%s", words)
    asked = _asked(cfg) if solver.removes_channels else None
    problem = Problem(model, data, plan, computation=computation, target=asked, round_to=cfg.round_to)
    return problem, solver, said


def portable(cfg: DictConfig) -> Any:
    """The node of the data set as it is on any machine: where this one keeps data is `data_dir`."""
    data: Any = OmegaConf.to_container(cfg.dataset, resolve=True)
    given: Any = OmegaConf.to_container(cfg.dataset, resolve=False)
    left = {key: value for key, value in given.items() if value in ("${data_dir}", "${data.download}")}
    if data.get("root") == cfg.data_dir:  # in the configuration of a run that is resumed nothing is left to resolve
        left["root"] = "${data_dir}"
    return data | left


def study_of(cfg: DictConfig, model: nn.Module) -> OneShotStudy | None:
    """How the final network is compressed without retraining; None without a part to take away."""
    methods: dict[str, OneShot] = {}
    for name, node in (cfg.compress_by or {}).items():
        method = config_build.build(node)
        if not isinstance(method, OneShot):
            found = type(method).__name__
            raise ConfigError(f"compress_by.{name}: must give an nncompress.experiment.one_shot.OneShot, found {found}")
        if cfg.compress_at or method.at:
            methods[str(name)] = method
    if not methods:
        return None
    return OneShotStudy(methods=methods, at=list(cfg.compress_at), recalibrate=cfg.recalibrate, seed=cfg.seed).suited(
        model
    )


def _prepared(cfg: DictConfig, data: Dataset) -> Dataset:
    """The data set with what the run does to any: a part of the training samples held out, augmentation."""
    with refusals("augmentation"):
        augmentation = None if cfg.augmentation is None else config_build.build(cfg.augmentation)
        if augmentation is not None and not isinstance(augmentation, Augmentation):
            found = type(augmentation).__name__
            raise ConfigError(f"augmentation: must give an nncompress.problem.Augmentation, found {found}")
        if augmentation is not None:
            augmentation.check(data.input_shape)
            augmentation = augmentation if augmentation.columns else None
    held = round(cfg.validation * len(data.train))
    if cfg.validation > 0 and held in (0, len(data.train)):
        raise ConfigError(
            f"validation: must hold out some and leave some of the training samples, found {cfg.validation} of "
            f"{len(data.train)}; give another part"
        )
    if not held:
        return replace(data, augmentation=augmentation)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(cfg.seed)).to(data.train.y.device)
    validation, train = (Split(data.train.x[rows], data.train.y[rows]) for rows in (order[:held], order[held:]))
    return replace(data, train=train, validation=validation, augmentation=augmentation)


def _model(cfg: DictConfig, data: Dataset) -> nn.Module:
    """The network on the data's device and of its type, with the weights of the reference if there is one."""
    model = config_build.build(cfg.model, input_shape=data.input_shape, num_classes=data.num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: must give a torch.nn.Module, found {type(model).__name__}")
    x = data.train.x
    model = model.to(x.device)
    model = model.double() if x.dtype == torch.float64 else model.float()  # complex numbers stay what they are
    if cfg.reference is not None:
        _start_from(cfg, model, data)
    return model


def _start_from(cfg: DictConfig, model: nn.Module, data: Dataset) -> None:
    """Give `model` the weights of the network that the run in `reference` deploys.

    Raises:
        ConfigError: that network is another one, or made of classes that are neither allowed nor in `cfg` itself.
        CheckpointError: the run's compact network is damaged.
    """
    folder = cfg.reference
    try:
        allow = [*cfg.allow, *targets(cfg)]
        reference = load(Path(folder) / "model", allow=allow).to(data.train.x.device, data.train.x.dtype)
    except NNCompressError as error:
        raise type(error)(f"reference: {error}; give another run, or remove it and train it again") from error
    if is_reshaped(reference):
        _reshaped(model, reference)
    weights = reference.state_dict()
    differences = _differences(weights, model.state_dict())
    if differences:
        shown = ", ".join(differences[:SHOWN]) + (", ..." if len(differences) > SHOWN else "")
        raise ConfigError(f"reference: must be a run of the same network, found that {shown} (there is {folder})")
    model.load_state_dict(weights)
    for network in (reference, model):
        layers_of(network, data)
    if not _agree(reference, model, data.train.x[:COMPARED]):
        raise ConfigError(
            f"reference: must be a run of the same network, found that the one in {folder} gives other outputs with "
            "the same weights; give the model its activations and other settings, or another run"
        )
    about = json.loads((Path(folder) / "model" / DESCRIPTION).read_text(encoding="utf-8"))
    there, here = (about["dataset"], about["preprocessing"]), (data.name, data.preprocessing)
    if there != here:
        log.warning("the reference was trained on %s (preprocessing: %s), this run takes %s (%s)", *there, *here)


def _reshaped(model: nn.Module, reference: nn.Module) -> None:
    """Take the channels out of `model` that `reference` lacks, if the two are the same network else."""
    with suppress(AttributeError, KeyError):  # then their differences are told
        reshape(model, reference.state_dict(), structure(reference))


def _differences(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """What is not alike in the names and shapes of two networks' tensors, in words."""
    found = []
    for name in dict.fromkeys([*there, *here]):
        shapes = [_shape(tensors[name]) if name in tensors else "missing" for tensors in (there, here)]
        if shapes[0] != shapes[1]:
            found.append(f"{name} is {shapes[0]} there and {shapes[1]} here")
    return found


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


@torch.no_grad()
def _agree(there: nn.Module, here: nn.Module, x: Tensor) -> bool:
    """Whether two networks of equal weights compute the same in evaluation mode, up to rounding."""
    training = here.training
    a, b = there.eval()(x), here.eval()(x)
    here.train(training)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()), equal_nan=True)


def _asked(cfg: DictConfig) -> tuple[str, float] | None:
    """The target: its name and value, if there is one."""
    return next(((str(name), value) for name, value in cfg.target.items() if value is not None), None)


def _plan(cfg: DictConfig, model: nn.Module, data: Dataset, solver: Solver[Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan of the compression's recipe, and what the summary says of the target and of rounding.

    The plan is fitted to a target, unless the solver meets it.
    """
    weights, recipe = weights_of(model), config_build.build(cfg.compression)
    check_finite(weights)
    layers = layers_of(model, data)
    uses = uses_of(layers)
    asked = _asked(cfg)

    def made(**settings: Any) -> tuple[Plan, dict[str, Any]]:
        plan = plan_of(recipe, weights, uses, round_to=cfg.round_to, **settings)
        if cfg.round_to == 1 or not plan.tasks:
            return plan, {}
        return plan, _rounding(plan, plan_of(recipe, weights, uses, **settings))

    with refusals("compression"):
        if asked is None:
            return made()
        name, requested = asked
        key = TARGETS[name][requested > 1]
        said = {"target/key": key, "target/requested": requested}
        if solver.removes_channels:
            return made()[0], said

        def measure(plan: Plan) -> float:
            theta = plan.compress(plan.select(weights))
            return (metrics.sizes(Problem(model, data, plan), theta) | metrics.macs(plan, theta, layers))[key]

        found = fit(recipe, weights, SizeTarget(name, measure, requested), uses, round_to=cfg.round_to)
        plan, rounding = made(**{found.name: found.value})
    log.info("target.%s=%g: %s gives %.6g on the initial weights", name, requested, found.setting, found.achieved)
    return plan, said | {"target/setting": found.setting} | rounding


def _rounding(plan: Plan, plain: Plan) -> dict[str, Any]:
    """What the summary says of a plan beside that without rounding."""
    found = changes(plan, plain)
    added = [change.added for change in found]
    known = None if None in added else sum(number for number in added if number is not None)
    return {"round_to/changed": [change._asdict() for change in found], "round_to/added": known}


def layers_of(model: nn.Module, data: Dataset) -> list[Layer]:
    """The layers one sample passes; ConfigError when the network does not take the data."""
    try:
        return metrics_uses.layers_of(model, data.train.x[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"model: the network must take samples of shape {data.input_shape}, found that its forward pass fails "
            f"({one_line(error)}); choose another model or data set (dataset.flatten=...)"
        ) from error


COMPARED = 32
"""Training samples on which a reference is compared with the network that is to start from it."""
SHOWN = 4
"""Differences that a message lists."""
TARGETS = {
    "ratio": ("ratio/params", "ratio/params"),
    "bits": ("ratio/bits", "bits/compressed"),
    "macs": ("ratio/macs", "macs/compressed"),
}
"""The figure each target sets, for a request of at most 1 and for a larger one."""
