"""`nncompress eval`: the words around an evaluation, composed by Hydra; its tables on stdout and in a new folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nncompress import trusted
from nncompress.config import Downloads
from nncompress.errors import ConfigError
from nncompress.hydra_errors import sentence
from nncompress.train import stamp
from nncompress.whole import check_free, whole

USAGE = """\
usage: nncompress eval ARTEFACT [KEY=VALUE ...]

ARTEFACT is the folder of a finished run, or the folder `model` in it.
Measures accuracy, sizes and latency of the compact network beside the dense one.

  dataset=NAME              other data than those it was trained on; ~dataset: none, so no accuracy
  dataset.KEY=VALUE         other settings of the data
  data_dir=FOLDER           where data sets are (default: $NNCOMPRESS_DATA, else data)
  data.download=false       fetches no data
  device=auto|cpu|cuda|cuda:N   auto: accuracy on the GPU if there is one, latency on both
  precision=auto|float32|float64
  batch_sizes=[1,256]       samples of the forward passes whose latency is measured; []: no latency
  seconds=0.5               least measuring time of each latency
  allow=[MODULE,...]        modules of yours of which the files may name classes
  output=FOLDER             a new folder for tables and evaluation.json (default: outputs/evaluations/TIME)
  seed=0                    of the random samples of the latency
"""
EVALUATION = "evaluation.json"
CONFIG = "eval"
OF_ARTEFACT = "artefact"
"""The option of the group `dataset` that is the data set a network was trained on."""
PRECISIONS = ("auto", "float32", "float64")


@dataclass
class Config:
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


def evaluate(arguments: Sequence[str]) -> int:
    """Measure the network the words name, print the tables, write them with `evaluation.json`; the exit code.

    Raises:
        ConfigError: a word is wrong, the data asked for do not fit, the output folder is taken.
        NNCompressError: there is no network, the data asked for are not there.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    path, words = _read(arguments)
    from nncompress import evaluation
    from nncompress.compact.artefact import DESCRIPTION, open_artefact
    from nncompress.records import write_json
    from nncompress.report.evaluation_tables import evaluation_tables
    from nncompress.report.tables import markdown, write_table

    allow = trusted.given(words)
    artefact = open_artefact(path, allow)
    data = artefact.description.get("data")
    if not _chooses_data(words):
        trusted.check({"data": data}, allow, f"{artefact.folder / DESCRIPTION}")
    cfg = composed(words, data)
    folder = Path(cfg.output or f"outputs/evaluations/{stamp()}")
    with whole(folder, "output=FOLDER") as made:
        found = evaluation.measure(artefact, cfg, required=_asks_for_data(words))
        tables = evaluation_tables(found)
        for table in tables:
            write_table(table, made / "tables")
        write_json(made / EVALUATION, found)
    for table in tables:
        sys.stdout.write(f"{markdown(table)}\n")
    sys.stdout.write(f"wrote {folder / EVALUATION} and {folder / 'tables'}\n")
    return 0


def composed(words: Sequence[str], data: Any) -> DictConfig:
    """The configuration the words make; `data` is the data set's node unless they choose another.

    Raises:
        ConfigError: with all that is wrong, or with the first word that Hydra refuses.
    """
    store = ConfigStore.instance()
    store.store(name="eval_shell", node=Config)
    store.store(group="dataset", name=OF_ARTEFACT, node=data if isinstance(data, dict) else {})
    try:
        with initialize_config_module("nncompress.conf", version_base="1.3"):
            cfg = compose(CONFIG, list(words))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(sentence(error, words, CONFIG)) from error
    given = [word.partition("=")[0].lstrip("+~") for word in words]
    if "dataset._target_" in given:  # the keys of the one it replaces no longer count
        cfg.dataset = {key: value for key, value in cfg.dataset.items() if f"dataset.{key}" in given}
    problems = [*_unknown(given), *_problems(cfg)]
    if problems:
        raise ConfigError("\n".join(problems))
    return cfg


def _read(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The artefact and the overrides."""
    words = [word for word in arguments if _overrides(word)]
    paths = [word for word in arguments if not _overrides(word)]
    flags = [word for word in paths if word.startswith("-")]
    if flags or len(paths) != 1:
        none = f"no folder among {', '.join(words)}" if words else "none"
        found = f"found {flags[0]}" if flags else f"found {' and '.join(paths) or none}"
        raise ConfigError(
            f"eval needs one folder of a run and then KEY=VALUE, {found}: nncompress eval RUN [KEY=VALUE]"
        )
    return Path(paths[0]), words


def _chooses_data(words: Sequence[str]) -> bool:
    """Whether the words take another data set than that of the artefact."""
    return any(re.match(r"\+*dataset(\._target_)?=|~dataset$", word) for word in words)


def _overrides(word: str) -> bool:
    """Whether a word changes the configuration; a folder's name may look like that too."""
    return not os.path.exists(word) and ("=" in word or word.startswith("~"))


def _asks_for_data(words: Sequence[str]) -> bool:
    """Whether the words say anything of the data, so that it is wrong if there are none."""
    return any(re.match(r"\+*(dataset|data|data_dir)[.=]", word) for word in words)


def _unknown(given: Sequence[str]) -> Iterator[str]:
    """Words that Hydra takes although nothing reads them."""
    known = [each.name for each in fields(Config)]
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
