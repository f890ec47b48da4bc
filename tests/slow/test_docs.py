"""The commands of README.md and docs/*.md: all are composed and checked, and the slow tests run them, shrunk.

`make test-slow` runs them as a reader would, but for the steps, samples, trials and values of a sweep that `shrunk`
takes away. RUN, OTHER, SWEEP and the like are small runs that are made once. What is not run says why (`not_run`).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from runs import status

import nncompress.eval
import nncompress.export
import nncompress.listing
import nncompress.reproduce.command
from nncompress import config
from nncompress.cli import COMMANDS, main
from nncompress.resume import ALLOWED
from nncompress.train import retarget

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATA = Path(os.environ.get("NNCOMPRESS_DATA", ROOT / "data")).absolute()
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
OTHER = r"torchrun |make [a-z]|python -m |pytest |pip install |([A-Z]+=\S+ )*scripts/"
INLINE = re.compile(rf"(nncompress ({'|'.join(COMMANDS)}) |{OTHER})\S")
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


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder."""
    folder = tmp_path_factory.mktemp("reader")
    furnish(folder)
    return folder


@pytest.fixture
def here(furnished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It, as the current folder, on the path."""
    monkeypatch.chdir(furnished)
    monkeypatch.syspath_prepend(furnished)
    return furnished


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
    """A swept word as the single ones it stands for, at most nine; of an interval its start."""
    (parsed,) = OverridesParser.create().parse_overrides([word])
    if not parsed.is_sweep_override():
        return [word]
    key = word.partition("=")[0]
    if not parsed.is_discrete_sweep():
        return [f"{key}={parsed.value().start}"]
    return [f"{key}={value}" for value in list(parsed.sweep_string_iterator())[:9]]


def jobs(words: Sequence[str]) -> list[list[str]]:
    """Jobs with every option of a group and the first and last of other values; not every combination."""
    columns = [values(word) for word in overrides(words)]
    columns = [column if "." not in key_of(column[0]) else [column[0], column[-1]] for column in columns]
    count = max((len({*column}) for column in columns), default=1)
    return [[column[i % len(column)] for column in columns] for i in range(count)]


def composed(words: Sequence[str], folder: str | None) -> DictConfig:
    """The configuration of one job as `nncompress train` makes it; folder: that of `--config-dir`."""
    config.register()
    own = [] if folder is None else [f"hydra.searchpath=[file://{Path(folder).absolute()}]"]
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        cfg = compose("config", [*own, *words], return_hydra_config=True)
    retarget(cfg, words)
    return cfg


def check(words: Sequence[str]) -> list[DictConfig]:
    """Compose and bind every job of the words of a run; the configurations, none for a run that is resumed."""
    resumed = [word for word in words if word.startswith("resume=")]
    if resumed:
        assert {key_of(word) for word in words[1:]} <= {"resume", *ALLOWED}
        return []
    left = [word for word in words[1:] if not word.startswith("sweep.resume=")]
    made = []
    for job in jobs(left):
        cfg = composed(job, option(words, "--config-dir"))
        if cfg.reference is not None:
            (Path(cfg.reference) / "model").mkdir(parents=True, exist_ok=True)
            (Path(cfg.reference) / "model/model.json").touch()
        config.validate(cfg)
        made.append(cfg)
    return made


def test_every_page_has_commands_that_are_found() -> None:
    assert len(DOCUMENTED) > 60
    without = {page.name for page in PAGES if not list(lines_of(page))}
    assert without <= {"counting.md"}
    assert "train solver=nnbcd model=tt_mlp" in RUNS
    assert "ls model=tt_mlp -n 2 --quiet" in OTHERS


@pytest.mark.parametrize("words", RUNS.values(), ids=list(RUNS))
def test_a_documented_run_composes_and_binds(words: list[str], here: Path) -> None:
    resumed = any(word.startswith("resume=") for word in words)
    assert bool(check(words)) != resumed


def check_eval(words: Sequence[str]) -> None:
    digits = {"_target_": "nncompress.data.digits.digits", "train_size": None, "test_size": None}
    path, rest = nncompress.eval._read(words)
    assert path.parts[0] == "outputs"
    nncompress.eval.composed(rest, digits)


def check_export(words: Sequence[str]) -> None:
    parsed = nncompress.export._parser().parse_args([word for word in words if not word.startswith("allow=")])
    nncompress.export._check(parsed)


def check_ls(words: Sequence[str]) -> None:
    nncompress.listing._parser().parse_intermixed_args(words)


def check_rerun(words: Sequence[str]) -> None:
    assert words[0].startswith("outputs/")
    for word in words[1:]:
        assert "=" in word


def check_folders(words: Sequence[str]) -> None:
    assert all(word.startswith("outputs/") for word in words if word != "--html")


def check_reproduce(words: Sequence[str]) -> None:
    asked = nncompress.reproduce.command._read(words)
    assert asked.papers


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "eval": check_eval, "export": check_export, "ls": check_ls, "rerun": check_rerun, "compare": check_folders,
    "report": check_folders, "reproduce": check_reproduce,
}  # fmt: skip


@pytest.mark.parametrize("words", OTHERS.values(), ids=list(OTHERS))
def test_the_options_of_a_documented_command_are_known(words: list[str], here: Path) -> None:
    assert words[0] in COMMANDS
    if words[1:] != ["--help"]:
        CHECKS[words[0]](words[1:])


def outside(line: str) -> list[str]:
    """The words of a line that calls no command of the package, without variables set in front of it."""
    words = shlex.split(line)
    while re.match(r"[A-Z]+=", words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize("line", [line for line in DOCUMENTED if not calls(line)])
def test_what_a_documented_line_of_the_shell_names_is_there(line: str) -> None:
    match outside(line):
        case ["make", target, *_]:
            assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["pytest", *words]:
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
        case ["pip", "install", package]:
            extra = re.fullmatch(r"nncompress\[(\w+)\]", package)
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert package == "." or (extra is not None and extra.group(1) in extras)
        case ["export", setting]:
            assert setting.startswith("NNCOMPRESS_")
        case [script, *_]:
            assert os.access(ROOT / script, os.X_OK)


def experiments() -> list[str]:
    """The names behind `experiment=` in the pages; patterns and beginnings are none."""
    found = {name for page in PAGES for name in re.findall(r"experiment=([\w/]+)(?![\w/*.])", page.read_text("utf-8"))}
    return sorted(name for name in found if not name.endswith(("/", "_")) and "ROW" not in name)


@pytest.mark.parametrize("name", experiments())
def test_a_documented_experiment_exists(name: str) -> None:
    assert (ROOT / "conf/experiment" / f"{name}.yaml").is_file()


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_every_command_of_a_script_composes_and_binds(script: Path, here: Path) -> None:
    (here / "bin").mkdir(exist_ok=True)
    Path("calls").unlink(missing_ok=True)
    stand_in = here / "bin/nncompress"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >> calls\necho >> calls\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{here / 'bin'}:{os.environ['PATH']}"}
    Path("calls").touch()
    subprocess.run([script, "outputs/FOLDER"], env=environment, check=True, stdout=subprocess.DEVNULL)
    for called in Path("calls").read_text().split("\n\n")[:-1]:
        words = called.split("\n")
        assert words[0] in ("train", "report")
        if words[0] == "train":
            check(words)


SMALL = ["solver.num_steps=1", "dataset.train_size=200", "dataset.test_size=100"]
TRAIN = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16,16]", *SMALL]
REAL = {
    "mnist": "MNIST/raw",
    "har": "UCI HAR Dataset",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}
"""The folders of the data sets that are no part of a package."""
ENGINE = "tests/test_sweeps.py runs sweeps with joblib, ray and slurm_local; slurm itself needs a cluster"
ELSEWHERE = {
    "make demo": "makes .venv anew; its two commands are run by themselves",
    "make test": "would run this test",
    "make bench": "takes long and measures; what it calls exists",
    "make reproduce-paper": "hours; tests/test_reproduce.py runs what it calls",
    "export": "a variable of the shell, which tests/test_trusted.py reads",
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
        return "hours, and minutes to plan; tests/test_reproduce.py runs, plans and reports a paper of its own"
    if calls(line):
        return None
    words = outside(line)
    return ELSEWHERE.get(" ".join(words[:2]) if words[0] == "make" else words[0].partition("/")[0])


RUN = [line for line in DOCUMENTED if calls(line) and not_run(line) is None]


def shrunk(words: Sequence[str]) -> list[str]:
    """The words of a run with few steps, samples, trials and values; real data are not fetched."""
    if {"--cfg", "--help"} & {*words}:
        return list(words)
    if any(word.startswith("resume=") for word in words):
        return [re.sub(r"(num_steps)=.*", r"\1=2", word) for word in words]
    words = list(words)
    if any(word.startswith("sweep.resume=") for word in words):
        return [narrowed(re.sub(r"(trials)=.*", r"\1=3", word), 2) for word in words]
    cfgs = [composed(job, option(words, "--config-dir")) for job in jobs(words[1:])]
    cfg = cfgs[0]
    few = {"solver.num_steps": 2 if "fine_tune" in cfg.solver else 1, "reference_training.num_steps": 1}
    few |= {f"solver.{key}": 1 for key in ("epochs", "first_epochs") if all(key in each.solver for each in cfgs)}
    name = str(cfg.dataset._target_).rpartition(".")[2]
    if "train_size" in cfg.dataset and "dataset._target_" not in map(key_of, words):
        few |= {"dataset.train_size": 64 if "cifar" in name else 200, "dataset.test_size": 64}
    if cfg.compress_at:
        few |= {"compress_at": "[.5]", "recalibrate": 50}
    if words[0] == "search":
        few |= {"search.trials": 2}
    if name in REAL:
        few |= {"data.download": "false"}
    kept = [narrowed(word, 2 if key_of(word) == "seed" else 1) for word in words if key_of(word) not in few]
    return [*kept, *(f"{key}={value}" for key, value in few.items())]


def narrowed(word: str, most: int) -> str:
    """A swept word with fewer numbers; options of a group all stay, intervals and ranges too."""
    key, _, value = word.partition("=")
    if "," not in value or value.startswith(("[", "range", "tag", "interval")) or key in ("compression", "experiment"):
        return word
    return f"{key}={','.join(value.split(',')[:most])}"


def missing_data(words: Sequence[str]) -> str | None:
    """The folder of real data that the words need and that is not there."""
    text = " ".join(words)
    named = [name for name in REAL if re.search(rf"dataset={name}\b|_{name}\b|/{name}_|/{name}\d", text)]
    named += ["mnist"] if "experiment=lc/" in text else []
    named += ["cifar10"] if "experiment=slimming/lambdas" in text else []
    return next((REAL[name] for name in named if not (DATA / REAL[name]).is_dir()), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A furnished folder with the runs that the commands name."""
    folder = tmp_path_factory.mktemp("docs")
    furnish(folder)
    slim = ["solver=slimming", "model=resnet20", "dataset.train_size=64", "dataset.test_size=32", "solver.num_steps=1"]
    swept = [*TRAIN, "compression.rank=2,3", "seed=10", "hydra.sweep.dir=outputs/sweeps/SWEEP"]
    searched = [*TRAIN, "compression.rank=range(2,5)", "search.trials=2", "hydra.sweep.dir=outputs/sweeps/SEARCH"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.setattr("nncompress.report.write.run_plots", lambda run, folder: [])
        for name, seed in {"RUN": 0, "OTHER": 1}.items():
            assert main(["train", *TRAIN, "compression.rank=2", f"seed={seed}", f"hydra.run.dir=outputs/{name}"]) == 0
        assert main(["train", *slim, "hydra.run.dir=outputs/SLIMMED_RUN"]) == 0
        assert main(["train", "-m", *swept]) == 0
        assert main(["search", *searched]) == 0
    torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture
def there(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the made folder as the current one."""
    folder = Path(shutil.copytree(made, tmp_path / "there"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("NNCOMPRESS_DATA", str(DATA))
    return folder


def call(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command in this process; what it should leave is there."""
    before = {*Path("outputs").rglob("*")}
    assert main(list(words)) == 0
    torch.use_deterministic_algorithms(False)
    new = {*Path("outputs").rglob("*")} - before
    out = capsys.readouterr().out
    match words:
        case [_, "--help"]:
            assert "usage" in out
        case ["train", *rest] if "--cfg" in rest:
            assert "_target_: nncompress." in out
            assert not new
        case ["train" | "search", *rest] if "-m" in rest or words[0] == "search" or "sweep.resume=" in " ".join(rest):
            folders = [path.parent for path in Path("outputs/sweeps").glob("*/sweep.json")]
            (folder,) = [path for path in folders if path / "sweep.json" in new] or [Path(option_folder(rest))]
            assert (folder / "tables/summary.md").is_file()
            assert {status(path.parent)["status"] for path in folder.glob("*/status.json")} <= {"done", "pruned"}
            assert words[0] == "train" or (folder / "study.db").is_file()
        case ["train" | "rerun", *rest]:
            found = [path.parent for path in new if path.name == "summary.json" and "references" not in path.parts]
            (folder,) = found or [Path("outputs/RUN")]
            assert status(folder)["status"] == "done"
            assert (folder / "model/model.safetensors").is_file()
            assert (folder / "tables/accuracy.md").is_file()
            assert list((folder / "plots").glob("*.png"))
        case ["eval", *_]:
            assert any(path.name == "evaluation.json" for path in new)
        case ["export", *_]:
            assert any(path.parent.name in ("safetensors", "safetensors_dense", "onnx", "torch_export") for path in new)
        case ["report", _, folder]:
            assert (Path(folder) / "report.html").is_file()
        case ["ls" | "compare" | "reproduce", *_]:
            assert out


def option_folder(words: Sequence[str]) -> str:
    """The sweep that is resumed."""
    return next(word.partition("=")[2] for word in words if word.startswith("sweep.resume="))


def of_its_kind(words: Sequence[str]) -> list[str]:
    """A search is resumed in the folder of a search; an evaluation is short, on data of the artefact's shape."""
    if "--help" in words:
        return list(words)
    if words[0] == "search":
        return [word.replace("sweeps/SWEEP", "sweeps/SEARCH") for word in words]
    if words[0] == "eval":
        short = [word for word in words if not word.startswith("seconds=")]
        return [*(word.replace("=/data", f"={DATA}").replace("test_size=1000", "test_size=50") for word in short),
                "seconds=0.02"]  # fmt: skip
    return list(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader's Python shows them, it does not stop at them
@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(
    line: str, there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = calls(line)
    absent = missing_data([word for words in found for word in words])
    if absent is not None:
        pytest.skip(f"the real data are absent: $NNCOMPRESS_DATA/{absent} does not exist")
    if line.startswith("torchrun"):
        in_processes(found[0])
        return
    if "$(" in line or " | " in line:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        said = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], env=environment, capture_output=True, check=True
        )
        assert said.stdout or "jq" in line  # a filter may leave nothing
        return
    (words,) = found
    if words[0] == "eval" and any(word in ("dataset=mnist",) for word in words):
        small = ["dataset=mnist", "dataset.train_size=100", "dataset.test_size=50", "solver.num_steps=1"]
        shutil.rmtree("outputs/RUN")
        assert main(["train", "model.widths=[8]", *small, "data.download=false", "hydra.run.dir=outputs/RUN"]) == 0
    if words[0] in ("train", "search"):
        if "-m" in words or words[0] == "search":
            monkeypatch.setattr("nncompress.report.write.run_plots", lambda run, folder: [])
        words = shrunk(words)
    call(of_its_kind(words), capsys)


def in_processes(words: Sequence[str]) -> None:
    """Run a command in two processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    start += ["--rdzv-endpoint=localhost:0", "-m", "nncompress"]
    subprocess.run([*start, *shrunk(words), "hydra.run.dir=outputs/two"], check=True)
    assert status(Path("outputs/two"))["status"] == "done"


def test_every_command_that_is_not_run_has_a_reason() -> None:
    left = {line: not_run(line) for line in DOCUMENTED if line not in RUN}
    assert all(left.values())
