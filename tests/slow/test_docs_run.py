"""The commands of README.md and docs/*.md run as a reader would, but for what `shrunk` takes away from them.

RUN, OTHER, SWEEP and the like are small runs that are made once. What is not run says why (`not_run`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from documented import DATA, RUN, calls, composed, furnish, jobs, key_of, option
from fake_runs import undrawn
from runs import status

from nncompress.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # a reader's Python shows them, it does not stop at them
]
SMALL = ["solver.num_steps=1", "dataset.train_size=200", "dataset.test_size=100"]
TRAIN = ["solver=nnbcd", "model=tt_mlp", "model.widths=[16,16]", *SMALL]
REAL = {
    "mnist": "MNIST/raw",
    "har": "UCI HAR Dataset",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}
"""The folders of the data sets that are no part of a package."""


def shrunk(words: Sequence[str]) -> list[str]:
    """The words of a run with few steps, samples, trials and values; real data are not fetched."""
    if {"--cfg", "--help"} & {*words}:
        return list(words)
    if any(word.startswith("resume=") for word in words):
        return [re.sub(r"(num_steps)=.*", r"\1=2", word) for word in words]
    words = list(words)
    if any(word.startswith("sweep.resume=") for word in words):
        resumed = [narrowed(re.sub(r"(trials)=.*", r"\1=3", word), 2) for word in words]
        return [*resumed, "model.widths=[16,16]", *SMALL] if "-m" in words else resumed  # -m: all words are given anew
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
    named = [name for name in REAL if re.search(rf"dataset={name}\b|[_/]{name}(?!\d)", text)]
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
        undrawn(patch)
        for name, seed in {"RUN": 0, "OTHER": 1}.items():
            assert main(["train", *TRAIN, "compression.rank=2", f"seed={seed}", f"hydra.run.dir=outputs/{name}"]) == 0
        assert main(["train", *slim, "hydra.run.dir=outputs/SLIMMED_RUN"]) == 0
        assert main(["train", "-m", *swept]) == 0
        assert main(["search", *searched]) == 0
    torch.set_deterministic_debug_mode("default")
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
    torch.set_deterministic_debug_mode("default")
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


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(
    line: str, there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if line != RUN[0]:
        undrawn(monkeypatch)
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
        words = shrunk(words)
    call(of_its_kind(words), capsys)


def in_processes(words: Sequence[str]) -> None:
    """Run a command in two processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    start += ["--rdzv-endpoint=localhost:0", "-m", "nncompress"]
    subprocess.run([*start, *shrunk(words), "hydra.run.dir=outputs/two"], check=True)
    assert status(Path("outputs/two"))["status"] == "done"
