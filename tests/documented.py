"""The commands of README.md and docs/*.md: which there are, the folder of their reader, what is not run and why."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from problems import ROOT

from nncompress.cli.main import COMMANDS
from nncompress.config.overrides import retarget
from nncompress.config.schema import register

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATA = Path(os.environ.get("NNCOMPRESS_DATA", ROOT / "data")).absolute()
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
OTHER = r"torchrun |make [a-z]|python -m |pytest |pip install |([A-Z]+=\S+ )*scripts/"
INLINE = re.compile(rf"(nncompress ({'|'.join(COMMANDS)}) |{OTHER})\S")
GROUPS = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
USAGE = re.compile(r"[A-Z]\.\.\.|\[[A-Z]{3}")
"""What shows a command's form and is none: `nncompress ls [DIR...] [FILTER...]`."""
PLACES = {
    "RUN": "outputs/RUN", "compression=NAME": "compression=l0", "experiment=lc/ROW": "experiment=lc/quantize_all",
    "resume=RUN": "resume=outputs/RUN", "FOLDER": "outputs/FOLDER", "...": "model=resnet20",
}  # fmt: skip
"""What stands for a word that the reader is to choose."""


def lines_of(page: Path) -> Iterator[str]:
    """The commands of a page: the lines of its shell blocks, and those in its text."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if language == "sh":
            lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
            yield from (line for line in lines if line)
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        line = " ".join(span.split())
        if INLINE.match(line) and not USAGE.search(line):
            yield line


DOCUMENTED = list(dict.fromkeys(line for page in PAGES for line in lines_of(page)))
"""Every command, once."""


def calls(line: str) -> list[list[str]]:
    """The calls of nncompress in a line of the shell, as words; runs stand for what the shell would put in."""
    inner = re.findall(r"\$\((.*?)\)", line)
    outer = re.sub(r"\$\(.*?\)", "outputs/RUN outputs/OTHER", line)
    found = [shlex.split(part) for part in [*inner, *outer.split(" | ")] if re.match(r"(nncompress|torchrun) ", part)]
    return [[PLACES.get(word, word) for word in words[words.index("nncompress") + 1 :]] for words in found]


CALLS = {" ".join(words): words for line in DOCUMENTED for words in calls(line)}
RUNS = {name: words for name, words in CALLS.items() if words[0] in ("train", "search")}
OTHERS = {name: words for name, words in CALLS.items() if name not in RUNS}


def furnish(folder: Path) -> None:
    """What is in the reader's folder: docs/your_own, and more modules, configurations and data."""
    unwanted = shutil.ignore_patterns("__pycache__", "outputs")
    shutil.copytree(ROOT / "docs/your_own", folder, ignore=unwanted, dirs_exist_ok=True)
    net = "from nncompress.models.mlp import MLP\n\n\nclass Net(MLP):\n    def __init__(self, input_shape, num_classes"
    net += ", hidden=8):\n        super().__init__(input_shape, num_classes, widths=[hidden])\n"
    (folder / "my_nets.py").write_text(net)
    blocks = FENCE.findall((ROOT / "docs/tracking.md").read_text(encoding="utf-8"))
    (folder / "mine.py").write_text(next(block for language, block in blocks if language == "python"))
    for group, node in {"model": "_target_: my_nets.Net\nhidden: 8\n", "compression": own_mixture()}.items():
        (folder / "my_conf" / group).mkdir(parents=True)
        (folder / "my_conf" / group / "mine.yaml").write_text(node)
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(size=(300, 5)).astype("float32") for part in ("train", "test")}
    np.savez(folder / "points.npz", **arrays, y_train=np.arange(300) % 3, y_test=np.arange(300) % 3)


def own_mixture() -> str:
    """A sum of parts in the form of conf/compression/additive.yaml."""
    return (ROOT / "conf/compression/additive.yaml").read_text(encoding="utf-8")


def option(words: Sequence[str], *names: str) -> str | None:
    """The word behind a flag."""
    return next((words[i + 1] for i, word in enumerate(words) if word in names), None)


def overrides(words: Sequence[str]) -> list[str]:
    """The words that change the configuration, without flags and what follows them."""
    valued = ("--cfg", "-c", "-p", "--config-dir")
    behind = {i + 1 for i, word in enumerate(words) if word in valued}
    return [word for i, word in enumerate(words) if i not in behind and not word.startswith("-")]


def key_of(word: str) -> str:
    """What an override changes."""
    return word.partition("=")[0].lstrip("+~")


def values(word: str) -> list[str]:
    """A swept word as the single ones it stands for; of an interval its start."""
    (parsed,) = OverridesParser.create().parse_overrides([word])
    if not parsed.is_sweep_override():
        return [word]
    key = word.partition("=")[0]
    if not parsed.is_discrete_sweep():
        return [f"{key}={parsed.value().start}"]
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def jobs(words: Sequence[str]) -> list[list[str]]:
    """Jobs with every option of a group and the first of other values; not every combination."""
    columns = [values(word) for word in overrides(words)]
    columns = [column if key_of(column[0]) in GROUPS else column[:1] for column in columns]
    count = max((len(column) for column in columns), default=1)
    return [[column[i % len(column)] for column in columns] for i in range(count)]


def composed(words: Sequence[str], folder: str | None) -> DictConfig:
    """The configuration of one job as `nncompress train` makes it; folder: that of `--config-dir`."""
    register()
    own = [] if folder is None else [f"hydra.searchpath=[file://{Path(folder).absolute()}]"]
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        cfg = compose("config", [*own, *words], return_hydra_config=True)
    retarget(cfg, words)
    return cfg


def outside(line: str) -> list[str]:
    """The words of a line that calls no command of the package, without variables set in front of it."""
    words = shlex.split(line)
    while re.match(r"[A-Z]+=", words[0]):
        words = words[1:]
    return words


ENGINE = "tests/commands and tests/slow run sweeps with joblib, ray and slurm_local; slurm itself needs a cluster"
ELSEWHERE = {
    "make demo": "makes .venv anew; its two commands are run by themselves",
    "make test": "would run this test",
    "make bench": "takes long and measures; what it calls exists",
    "make reproduce-paper": "hours; tests/unit/reproduce runs what it calls",
    "export": "a variable of the shell, which tests/unit/config reads",
    "pip": "installs from the network; what it names exists",
    "python": "a benchmark: takes long and measures",
    "pytest": "tests are run by themselves",
    "pkill": "would end the workers of other processes",
    "scripts": "hours; its commands are composed above, and they have the form of commands that are run here",
}


def not_run(line: str) -> str | None:
    """Why a line is not run; None for one that is."""
    if re.search(r"launcher=(joblib|ray|slurm)", line):
        return ENGINE
    if "reproduce" in line and calls(line):
        return "hours, and minutes to plan; tests/unit/reproduce runs, plans and reports a paper of its own"
    if calls(line):
        return None
    words = outside(line)
    return ELSEWHERE.get(" ".join(words[:2]) if words[0] == "make" else words[0].partition("/")[0])


RUN = [line for line in DOCUMENTED if calls(line) and not_run(line) is None]
