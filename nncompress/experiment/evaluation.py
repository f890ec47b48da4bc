"""What is measured of a compact network: accuracy, sizes, operations, and latency beside the dense network."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from nncompress import environment, metrics
from nncompress.artefact.model import Artefact, samples, stored_bytes
from nncompress.config.build import build, group_problems
from nncompress.config.overrides import sentence
from nncompress.config.schema import Downloads
from nncompress.errors import ConfigError, NNCompressError
from nncompress.experiment import latency
from nncompress.experiment.setup import layers_of
from nncompress.files import check_free
from nncompress.problem import Dataset, Problem, Split
from nncompress.results.run_folder import stamp
from nncompress.surgery.compact_layers import chosen_plans

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
    problems = list(group_problems(cfg, "dataset"))
    if problems:
        raise ConfigError("\n".join(problems))
    data = build(cfg.dataset)
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


EVALUATION_CONFIG = "eval"


OF_ARTEFACT = "artefact"
"""The option of the group `dataset` that is the data set a network was trained on."""


PRECISIONS = ("auto", "float32", "float64")


@dataclass
class EvaluationConfig:
    """The typed shell of `conf/eval.yaml`."""

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    data_dir: str = "${oc.env:NNCOMPRESS_DATA,data}"
    data: Downloads = field(default_factory=Downloads)
    batch_sizes: list[int] = field(default_factory=lambda: [1, 256])
    seconds: float = 0.5
    output: str | None = None
    allow: list[str] = field(default_factory=list)
    dataset: Any = None


def composed(words: Sequence[str], data: Any) -> DictConfig:
    """The configuration the words make; `data` is the data set's node unless they choose another.

    Raises:
        ConfigError: with all that is wrong, or with the first word that Hydra refuses.
    """
    store = ConfigStore.instance()
    store.store(name="eval_shell", node=EvaluationConfig)
    store.store(group="dataset", name=OF_ARTEFACT, node=data if isinstance(data, dict) else {})
    try:
        with initialize_config_module("nncompress.conf", version_base="1.3"):
            cfg = compose(EVALUATION_CONFIG, list(words))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(sentence(error, words, EVALUATION_CONFIG)) from error
    given = [word.partition("=")[0].lstrip("+~") for word in words]
    if "dataset._target_" in given:  # the keys of the one it replaces no longer count
        cfg.dataset = {key: value for key, value in cfg.dataset.items() if f"dataset.{key}" in given}
    problems = [*_unknown_words(given), *_problems(cfg)]
    if problems:
        raise ConfigError("\n".join(problems))
    return cfg


def _unknown_words(given: Sequence[str]) -> Iterator[str]:
    """Words that Hydra takes although nothing reads them."""
    known = [each.name for each in fields(EvaluationConfig)]
    for key in given:
        if re.split(r"[.@/]", key)[0] not in known:
            yield f"Key '{key}' not in the configuration; there are {', '.join(known)}"


def _problems(cfg: DictConfig) -> Iterator[str]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", cfg.device):
        yield f"device: must be auto, cpu, cuda or cuda:N, found '{cfg.device}'"
    if cfg.precision not in PRECISIONS:
        yield f"precision: must be one of {', '.join(PRECISIONS)}, found '{cfg.precision}'"
    wrong = [size for size in cfg.batch_sizes if size < 1]
    if wrong:
        yield f"batch_sizes: must be numbers of samples, at least 1, found {wrong[0]}"
    if not 0 < cfg.seconds < float("inf"):
        yield f"seconds: must be above 0 and finite, found {cfg.seconds}"
    if cfg.seed < 0:
        yield f"seed: must be at least 0, found {cfg.seed}"
    try:
        check_free(Path(cfg.output or stamp()), "output=FOLDER")
    except ConfigError as error:
        yield str(error)
