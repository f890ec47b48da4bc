"""What is measured of a compact network: accuracy, sizes, operations, and latency beside the dense network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from nncompress import config, environment, latency, metrics
from nncompress.building import layers_of
from nncompress.compact.artefact import Artefact, stored_bytes
from nncompress.compact.layers import chosen_plans
from nncompress.compact.measures import samples
from nncompress.errors import ConfigError, NNCompressError
from nncompress.problem import Dataset, Problem, Split

log = logging.getLogger(__name__)

DENSE, REBUILT, COMPACT = "dense", "rebuilt", "compact"
"""The networks: untrained and of full size; with the weights Δ(Θ); with layers that keep Θ."""
TOLERANCE = 1e-4
"""How far the outputs of the compact network may be from those of the rebuilt one, relative to the largest."""
COMPARED = 32
"""Samples on which the compact network is compared with the rebuilt one."""


def measure(artefact: Artefact, cfg: DictConfig, *, required: bool) -> dict[str, Any]:
    """All figures of `evaluation.json`; the rows of `latency` and `plans` are flat.

    required: the data are asked for, so that it is an error when they are not there or do not fit; else accuracy is not
    measured, and `unmeasured` says why.

    Raises:
        NNCompressError: no such device, too little memory, or what `required` says.
    """
    device = environment.choose_device(cfg.device)
    dtype = environment.choose_dtype(cfg.precision, "float32")
    environment.make_deterministic(cfg.seed, False)
    networks = {DENSE: artefact.dense(), REBUILT: artefact.network(), COMPACT: artefact.network(compact=True)}
    found: dict[str, Any] = {"artefact": str(artefact.folder), "architecture": artefact.description["architecture"]}
    found |= {"notes": [], "environment": _environment(device, dtype, cfg)}
    try:
        data = _data(artefact, cfg).to(device, dtype)
        found |= _accuracy(networks[COMPACT].to(device, dtype), data)
        found["notes"] += _differences(artefact, data)
    except NNCompressError as error:
        if required:
            raise
        found["unmeasured"] = f"accuracy is not measured: {error}"
        log.warning("%s", found["unmeasured"])
    x = samples(artefact, COMPARED, cfg.seed).to(device, dtype)
    difference = _difference(networks[REBUILT].to(device, dtype), networks[COMPACT].to(device, dtype), x)
    found["difference/rebuilt"] = difference
    if not difference <= TOLERANCE:
        words = f"Do not use the compact network: it differs from the rebuilt one by {difference:.3g} of the largest."
        log.warning("%s", words)
        found["notes"].append(words)
    found |= _sizes(artefact, networks[DENSE], networks[REBUILT].to("cpu", torch.float32)) | stored_bytes(
        artefact.folder
    )
    timed = _Latencies(artefact, cfg, dtype)
    found["latency"] = [row for device in _devices(cfg.device) for row in timed.rows(device)]
    return found | {"plans": timed.plans}


def _environment(device: torch.device, dtype: torch.dtype, cfg: DictConfig) -> dict[str, Any]:
    about = environment.describe(device, dtype, cfg.seed)
    names = {str(each): environment.describe(each, dtype, cfg.seed)["device_name"] for each in _devices(cfg.device)}
    return about | {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "devices": names}


def _devices(name: str) -> list[torch.device]:
    """Where latency is measured."""
    chosen = environment.choose_device(name)
    return [torch.device("cpu"), chosen] if name == "auto" and chosen.type != "cpu" else [chosen]


def _data(artefact: Artefact, cfg: DictConfig) -> Dataset:
    """The data set that `cfg` names, once it is checked; a ConfigError when the network does not take it."""
    if not cfg.dataset:
        raise ConfigError("no data are given (the file names none, or ~dataset); choose some with dataset=NAME")
    problems = list(config.group_problems(cfg, "dataset"))
    if problems:
        raise ConfigError("\n".join(problems))
    data = config.build(cfg.dataset)
    if not isinstance(data, Dataset):
        raise ConfigError(f"dataset: must give an nncompress.problem.Dataset, found {type(data).__name__}")
    about = artefact.description
    needed = tuple(about["input_shape"]), about["num_classes"]
    if (data.input_shape, data.num_classes) != needed:
        raise ConfigError(
            f"dataset: the network takes samples of shape {needed[0]} and tells {needed[1]} classes apart, found "
            f"{data.input_shape} and {data.num_classes} in {data.name}; choose data like those it was trained on "
            f"({about['dataset']})"
        )
    return data


def _accuracy(network: nn.Module, data: Dataset) -> dict[str, Any]:
    """Loss and accuracy on the test data."""
    test = metrics.evaluate(network, data.test, nn.functional.cross_entropy)
    about = {"name": data.name, "preprocessing": data.preprocessing, "samples": len(data.test)}
    return {"accuracy/test": test.accuracy, "loss/test": test.loss, "data": about}


def _differences(artefact: Artefact, data: Dataset) -> Iterator[str]:
    """That the data are others than those of the training, or prepared in another way; in the log too."""
    for key, here in (("dataset", data.name), ("preprocessing", data.preprocessing)):
        there = artefact.description[key]
        if _prepared(str(there)) != _prepared(here):
            words = (
                f"the network was trained with {key} {there}, found {key} {here}: the accuracy is that of the latter"
            )
            log.warning("%s", words)
            yield words[0].upper() + words[1:] + "."


def _prepared(preprocessing: str) -> list[str]:
    """The parts of a preprocessing but the one that says how many samples are kept."""
    return [part for part in preprocessing.split("; ") if not part.startswith(("train_size ", "test_size "))]


@torch.no_grad()
def _difference(rebuilt: nn.Module, compact: nn.Module, x: Tensor) -> float:
    """The largest difference of the outputs of two networks over the largest output of the first."""
    expected = rebuilt(x)
    return float((compact(x) - expected).abs().max() / expected.abs().max())


def _sizes(artefact: Artefact, dense: nn.Module, rebuilt: nn.Module) -> dict[str, float]:
    """Parameters, bits and bytes that are counted, and multiply-accumulates."""
    x = torch.zeros(1, *artefact.description["input_shape"])
    split = Split(x, torch.zeros(1, dtype=torch.int64))
    data = Dataset(split, split, artefact.description["num_classes"], "one sample")
    problem = Problem(dense, data, artefact.plan)
    found = metrics.sizes(problem, artefact.theta, rebuilt)
    bits = metrics.file_bits(problem, artefact.theta, rebuilt)
    found |= {"bytes/dense": -(-bits["dense"] // 8), "bytes/theoretical": -(-bits["compressed"] // 8)}
    layers = [layers_of(network, data) for network in (dense, rebuilt)]
    return found | metrics.macs(artefact.plan, artefact.theta, *layers)


@dataclass
class _Latencies:
    """The latencies of an artefact's networks, device after device, and the plans that compact layers chose there."""

    artefact: Artefact
    cfg: DictConfig
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.plans: list[dict[str, Any]] = []

    def rows(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """A row for each batch size and network."""
        made = {DENSE: self.artefact.dense(), REBUILT: self.artefact.network()}
        made |= {COMPACT: self.artefact.network(compact=True)}
        if _alike(made[COMPACT], made[REBUILT]):
            del made[REBUILT]
        networks = {name: network.to(device, self.dtype) for name, network in made.items()}
        for size in self.cfg.batch_sizes:
            x = samples(self.artefact, size, self.cfg.seed).to(device, self.dtype)
            found = latency.side_by_side(networks, x, self.cfg.seconds)
            for name, each in found.items():
                row = {"device": str(device), "batch_size": size, "network": name, "seconds/median": each.median}
                row |= {"seconds/lower": each.lower, "seconds/upper": each.upper, "blocks": each.blocks}
                if name != DENSE:
                    times = latency.ratio(found[DENSE], each)
                    row |= {"speedup": times.median, "speedup/least": times.least, "speedup/greatest": times.greatest}
                yield row
        self.plans += [{"device": str(device), **row} for row in chosen_plans(networks[COMPACT])]


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are made of modules of the same classes."""
    kinds = [[(name, type(module)) for name, module in network.named_modules()] for network in (one, other)]
    return kinds[0] == kinds[1]
