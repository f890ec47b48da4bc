"""What is measured of a compact network: accuracy, sizes, operations, and latency beside the dense network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import torch
from torch import Tensor, nn

from nncompress import environment, metrics
from nncompress.artefact.files import stored_bytes
from nncompress.artefact.model import Artefact
from nncompress.config.evaluation import EvaluationSettings, build_dataset
from nncompress.errors import ConfigError, NNCompressError
from nncompress.experiment import latency
from nncompress.problem import Dataset, Problem, Split
from nncompress.surgery.compact_layers import chosen_ways
from nncompress.surgery.uses import layers_of

log = logging.getLogger(__name__)

DENSE, REBUILT, COMPACT = "dense", "rebuilt", "compact"
"""The networks: untrained and of full size; with the weights Δ(Θ); with layers that keep Θ."""
TOLERANCE = 1e-4
"""How far the outputs of the compact network may be from those of the rebuilt one, relative to the largest."""
COMPARED = 32
"""Samples on which the compact network is compared with the rebuilt one."""


def measure(artefact: Artefact, settings: EvaluationSettings, *, required: bool) -> dict[str, Any]:
    """Return all figures of `evaluation.json`; the rows of `latency` and `ways` are flat.

    Args:
        required: the data are asked for, so that it is an error when they are not there or do not fit; else accuracy is
            not measured, and `unmeasured` says why.

    Raises:
        NNCompressError: no such device, too little memory, or what `required` says.
    """
    device = environment.choose_device(settings.device)
    dtype = environment.choose_dtype(settings.precision, "float32")
    environment.make_deterministic(settings.seed, False)
    networks = {DENSE: artefact.dense(), REBUILT: artefact.network(), COMPACT: artefact.network(compact=True)}
    figures: dict[str, Any] = {"artefact": str(artefact.folder), "architecture": artefact.description["architecture"]}
    figures |= {"notes": [], "environment": _environment(device, dtype, settings)}
    try:
        data = _data(artefact, settings).to(device, dtype)
        figures |= _accuracy(networks[COMPACT].to(device, dtype), data)
        figures["notes"] += _departures(artefact, data)
    except NNCompressError as error:
        if required:
            raise
        figures["unmeasured"] = f"accuracy is not measured: {error}"
        log.warning("%s", figures["unmeasured"])
    x = artefact.samples(COMPARED, settings.seed).to(device, dtype)
    difference = _difference(networks[REBUILT].to(device, dtype), networks[COMPACT].to(device, dtype), x)
    figures["difference/rebuilt"] = difference
    if not difference <= TOLERANCE:
        note = f"Do not use the compact network: it differs from the rebuilt one by {difference:.3g} of the largest."
        log.warning("%s", note)
        figures["notes"].append(note)
    figures |= _sizes(artefact, networks[DENSE], networks[REBUILT].to("cpu", torch.float32))
    figures |= stored_bytes(artefact.folder)
    timed = [_latencies(artefact, settings, each, dtype) for each in _devices(settings.device)]
    latencies, ways = ([row for rows in parts for row in rows] for parts in zip(*timed, strict=True))
    return figures | {"latency": latencies, "ways": ways}


def _environment(device: torch.device, dtype: torch.dtype, settings: EvaluationSettings) -> dict[str, Any]:
    about = environment.describe(device, dtype, settings.seed)
    devices = _devices(settings.device)
    names = {str(each): environment.describe(each, dtype, settings.seed)["device_name"] for each in devices}
    return about | {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "devices": names}


def _devices(name: str) -> list[torch.device]:
    """Return where latency is measured."""
    chosen = environment.choose_device(name)
    return [torch.device("cpu"), chosen] if name == "auto" and chosen.type != "cpu" else [chosen]


def _data(artefact: Artefact, settings: EvaluationSettings) -> Dataset:
    """Return the data set of the settings, once it is checked; a ConfigError when the network does not take it."""
    if not settings.dataset:
        raise ConfigError("no data are given (the file names none, or ~dataset); choose some with dataset=NAME")
    data = build_dataset(settings.dataset)
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
    """Return loss and accuracy on the test data."""
    test = metrics.evaluate(network, data.test, nn.functional.cross_entropy)
    about = {"name": data.name, "preprocessing": data.preprocessing, "samples": len(data.test)}
    return {"accuracy/test": test.accuracy, "loss/test": test.loss, "data": about}


def _departures(artefact: Artefact, data: Dataset) -> Iterator[str]:
    """Tell where the data are others than those of the training, or prepared in another way; in the log too."""
    for key, here in (("dataset", data.name), ("preprocessing", data.preprocessing)):
        there = artefact.description[key]
        if _steps(str(there)) != _steps(here):
            note = f"the network was trained with {key} {there}, found {key} {here}: the accuracy is that of the latter"
            log.warning("%s", note)
            yield note[0].upper() + note[1:] + "."


def _steps(preprocessing: str) -> list[str]:
    """Return the parts of a preprocessing but the one that says how many samples are kept."""
    return [part for part in preprocessing.split("; ") if not part.startswith(("train_size ", "test_size "))]


@torch.no_grad()
def _difference(rebuilt: nn.Module, compact: nn.Module, x: Tensor) -> float:
    """Return the largest difference of the outputs of two networks over the largest output of the first."""
    expected = rebuilt(x)
    return float((compact(x) - expected).abs().max() / expected.abs().max())


def _sizes(artefact: Artefact, dense: nn.Module, rebuilt: nn.Module) -> dict[str, float]:
    """Return parameters, bits and bytes as they are counted, and multiply-accumulates."""
    x = torch.zeros(1, *artefact.description["input_shape"])
    split = Split(x, torch.zeros(1, dtype=torch.int64))
    data = Dataset(split, split, artefact.description["num_classes"], "one sample")
    problem = Problem(dense, data, artefact.plan)
    counts = metrics.sizes(problem, artefact.theta, rebuilt)
    bits = metrics.file_bits(problem, artefact.theta, rebuilt)
    counts |= {"bytes/dense": -(-bits["dense"] // 8), "bytes/theoretical": -(-bits["compressed"] // 8)}
    layers = [layers_of(network, x) for network in (dense, rebuilt)]
    return counts | metrics.macs(artefact.plan, artefact.theta, *layers)


def _latencies(
    artefact: Artefact, settings: EvaluationSettings, device: torch.device, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each batch size and network on a device, and the ways that compact layers chose there."""
    networks = {DENSE: artefact.dense(), REBUILT: artefact.network(), COMPACT: artefact.network(compact=True)}
    if _alike(networks[COMPACT], networks[REBUILT]):
        del networks[REBUILT]
    networks = {name: network.to(device, dtype) for name, network in networks.items()}
    rows: list[dict[str, Any]] = []
    for size in settings.batch_sizes:
        x = artefact.samples(size, settings.seed).to(device, dtype)
        times = latency.side_by_side(networks, x, settings.seconds)
        for name, each in times.items():
            row = {"device": str(device), "batch_size": size, "network": name, "seconds/median": each.median}
            row |= {"seconds/lower": each.lower, "seconds/upper": each.upper, "blocks": each.blocks}
            if name != DENSE:
                gain = latency.ratio(times[DENSE], each)
                row |= {"speedup": gain.median, "speedup/least": gain.least, "speedup/greatest": gain.greatest}
            rows.append(row)
    return rows, [{"device": str(device), **row} for row in chosen_ways(networks[COMPACT])]


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks are made of modules of the same classes."""
    kinds = [[(name, type(module)) for name, module in network.named_modules()] for network in (one, other)]
    return kinds[0] == kinds[1]
