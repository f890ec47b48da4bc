"""`nncompress eval`: what it measures of a run, what it leaves, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import case
from golden import Golden
from runs import run as done
from torch import nn

from nncompress.cli.main import main
from nncompress.config.evaluation import read_settings
from nncompress.data.digits import digits
from nncompress.errors import ConfigError
from nncompress.experiment import evaluation, latency
from nncompress.report.evaluation import latency_table

QUICK = ["batch_sizes=[2]", "seconds=0.001"]
KEYS = {
    "artefact", "architecture", "accuracy/test", "loss/test", "data", "params/dense", "params/compressed", "bits/dense",
    "bits/compressed", "bytes/dense", "bytes/theoretical", "bytes/disk", "bytes/gzip", "bytes/zstd", "macs/dense",
    "macs/compressed", "ratio/params", "ratio/bits", "ratio/tasks", "ratio/macs", "difference/rebuilt", "latency",
    "ways", "environment", "notes",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on arrays of its own, beside it in points.npz."""
    folder = tmp_path_factory.mktemp("eval")
    data = digits(train_size=100, test_size=60)
    arrays = {f"x_{name}": getattr(data, name).x.numpy() for name in ("train", "test")}
    arrays |= {f"y_{name}": getattr(data, name).y.numpy() for name in ("train", "test")}
    np.savez(folder / "points.npz", **arrays)
    words = ["solver=sgd", "model.widths=[64]", "compression=low_rank", "compression.rank=4", "solver.num_steps=2"]
    done(folder / "run", *words, "dataset=npz", f"dataset.path={folder}/points.npz")
    torch.set_deterministic_debug_mode("default")
    return folder / "run"


@pytest.fixture
def without_data(run: Path) -> Iterator[None]:
    """The run's data are gone."""
    points = run.parent / "points.npz"
    points.rename(points.with_suffix(".away"))
    yield
    points.with_suffix(".away").rename(points)


def measured(*words: str) -> dict:
    """`evaluation.json` of an evaluation that is done, in the folder `found`."""
    assert main(["eval", *words, *QUICK, "output=found"]) == 0
    return json.loads(Path("found/evaluation.json").read_text())


def refused(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What is told of words that are refused with this code, in one line; nothing is left."""
    before = set(Path().rglob("*"))
    assert main(["eval", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert set(Path().rglob("*")) == before
    return err


def test_a_run_is_measured_with_its_own_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(str(run))
    assert set(found) == KEYS
    summary = json.loads((run / "summary.json").read_text())
    for key in (
        "params/dense",
        "params/compressed",
        "bits/compressed",
        "macs/compressed",
        "ratio/params",
        "bytes/disk",
    ):
        assert found[key] == summary[key]
    assert found["accuracy/test"] == pytest.approx(summary["accuracy/test"], abs=0.02)
    assert found["difference/rebuilt"] < 1e-5
    assert found["data"]["samples"] == 60
    assert found["notes"] == []
    assert [row["network"] for row in found["latency"]] == ["dense", "rebuilt", "compact"]
    assert all(row["seconds/lower"] <= row["seconds/median"] <= row["seconds/upper"] for row in found["latency"])
    assert [row["layer"] for row in found["ways"]] == ["fc1.weight"]
    out = capsys.readouterr().out
    for title in ("# Evaluation: ", "# Latency: ", "# Ways of the compact layers: "):
        assert title in out
    for words in ("accuracy on the test data (%)", "bytes (theoretical)", "Theoretical speed-up (MACs)", "torch 2."):
        assert words in out


def test_it_leaves_tables_in_three_forms(run: Path) -> None:
    found = measured(str(run / "model"))
    names = {f"{name}.{form}" for name in ("evaluation", "latency", "ways") for form in ("csv", "md", "tex")}
    assert {path.name for path in Path("found/tables").iterdir()} == names
    table = pd.read_csv("found/tables/evaluation.csv").set_index("quantity")
    assert table["compact"]["bytes on disk"] == found["bytes/disk"]
    assert table["ratio"]["parameters"] == pytest.approx(found["ratio/params"])


def test_the_default_folder_is_new_every_time(run: Path) -> None:
    for _ in range(2):
        assert main(["eval", str(run), "batch_sizes=[]"]) == 0
    folders = list(Path("outputs/evaluations").iterdir())
    assert len(folders) == 2
    assert all((folder / "evaluation.json").is_file() for folder in folders)


def test_other_data_are_measured_with_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = measured(str(run), "dataset=digits", "dataset.test_size=50", "precision=float64")
    assert found["data"] == {"name": "digits", "preprocessing": "unit; test_size 50, seed 10", "samples": 50}
    assert found["environment"]["precision"] == "float64"
    assert any("trained with dataset points" in note for note in found["notes"])
    assert "found dataset digits" in caplog.text


def test_settings_of_its_own_data_may_be_changed(run: Path) -> None:
    found = measured(str(run), "dataset.test_size=7")
    assert found["data"]["samples"] == 7
    assert found["notes"] == []


@pytest.mark.usefixtures("without_data")
def test_without_its_data_all_but_the_accuracy_is_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(str(run))
    assert "points.npz" in found["unmeasured"]
    assert "accuracy/test" not in found
    assert len(found["latency"]) == 3
    assert "Accuracy is not measured: " in capsys.readouterr().out


@pytest.mark.usefixtures("without_data")
def test_data_that_are_asked_for_must_be_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "points.npz" in refused([str(run), "dataset.test_size=5"], 1, capsys)


def test_no_data_set_means_no_accuracy(run: Path) -> None:
    assert "accuracy is not measured" in measured(str(run), "~dataset")["unmeasured"]


def test_a_network_of_plain_layers_is_its_own_rebuilt_one(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(str(golden.kept("slimming")))
    assert [row["network"] for row in found["latency"]] == ["dense", "compact"]
    assert found["ways"] == []
    out = capsys.readouterr().out
    assert "rebuilt (ms)" not in out
    assert "made of plain layers" in out


def test_a_wrong_word_is_one_sentence() -> None:
    assert ConfigError.exit_code == 2
    for word, expected in (
        ("sed=1", "Key 'sed' not in the configuration; did you mean 'seed'?"),
        ("lr=1", "Key 'lr' not in the configuration; there are seed, device, precision, data_dir, data, batch_sizes"),
        ("+lr=1", "Key 'lr' not in the configuration; there are seed"),
        ("model=mlp", "Key 'model' not in the configuration; there are seed"),
        ("solver.lr=1", "Key 'solver' not in the configuration; there are seed"),
        ("hydra.run.dir=x", "Key 'hydra.run.dir' not in the configuration; there are seed"),
        ("dataset=mnits", "dataset=mnits: no such option; there are artefact, cifar10"),
        ("dataset.tst_size=1", "Key 'tst_size' not in 'dataset'; did you mean 'test_size'?"),
        ("batch_sizes=1,2", "a list needs brackets (KEY=[1,2])"),
        ("batch_sizes=[a]", "batch_sizes[0]: Value 'a'"),
    ):
        with case(word=word):
            with pytest.raises(ConfigError) as refusal:
                read_settings([word], {"test_size": 10})
            assert expected in str(refusal.value)
            assert "\n" not in str(refusal.value)


def test_all_values_that_are_wrong_are_told_at_once() -> None:
    Path("taken").mkdir()
    Path("taken/by").touch()
    with pytest.raises(ConfigError) as refusal:
        read_settings(["batch_sizes=[0]", "seconds=0", "seed=-1", "precision=bf16", "device=gpu", "output=taken"], {})
    assert str(refusal.value).splitlines() == [
        "seed: must be at least 0, found -1",
        "precision: must be one of auto, float32, float64, found 'bf16'",
        "device: must be auto, cpu, cuda or cuda:N, found 'gpu'",
        "batch_sizes: must be numbers of samples, at least 1, found 0",
        "seconds: must be above 0 and finite, found 0.0",
        "nothing is overwritten, found taken; give another place with output=FOLDER",
    ]


def test_settings_are_plain_values_with_the_data_of_the_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNCOMPRESS_DATA", "/somewhere")
    own = {"_target_": "own.data", "root": "${data_dir}", "size": 3}
    settings = read_settings(["dataset.size=4", "batch_sizes=[5]", "device=cpu"], own)
    assert (settings.batch_sizes, settings.device, settings.seed) == ([5], "cpu", 0)
    assert settings.dataset == {"_target_": "own.data", "root": "/somewhere", "size": 4}
    assert type(settings.dataset) is dict
    assert type(settings.batch_sizes) is list
    settings = read_settings(["dataset._target_=my.data", "dataset.size=4"], own)
    assert settings.dataset == {"_target_": "my.data", "size": 4}
    assert not read_settings(["~dataset"], own).dataset


def test_what_does_not_fit_the_network_or_the_machine_is_one_sentence_and_exit_code_2(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in (
        (["sed=1"], "nncompress: Key 'sed' not in the configuration; did you mean 'seed'?"),
        (["seconds=0"], "seconds: must be above 0 and finite, found 0.0"),
        (["+dataset.nothing=1"], "dataset.nothing: "),
        (["device=cuda:99"], "device=cuda:99 needs that GPU"),
        (["dataset=digits", "dataset.flatten=true"], "the network takes samples of shape (1, 8, 8)"),
        (["-m"], "unrecognized arguments: -m; usage: nncompress eval RUN [KEY=VALUE ...]"),
        (["elsewhere"], "eval needs one folder of a run, found elsewhere and "),
    ):
        with case(words=words):
            assert expected in refused([*words, str(run)], 2, capsys)


def test_without_a_folder_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    for words, found in (([], "found none;"), (["seed=1", "~dataset"], "found no folder among seed=1, ~dataset;")):
        with case(words=words):
            assert f"eval needs one folder of a run, {found} usage: nncompress eval RUN [KEY=VALUE ...]" in refused(
                words, 2, capsys
            )


def test_a_folder_without_a_network_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    shutil.copytree(run, "unfinished", ignore=shutil.ignore_patterns("model", "checkpoints"))
    Path("unfinished/status.json").write_text('{"status": "running"}')
    shutil.copytree(run / "model", "damaged")
    Path("damaged/model.safetensors").write_bytes(Path("damaged/model.safetensors").read_bytes()[:-3])
    for folder, expected in (
        ("nowhere", "there is no such folder"),
        ("empty", "neither model.json nor model/model.json is there"),
        ("unfinished", "this run is running and has none"),
        ("damaged", "damaged/model.safetensors"),
    ):
        assert expected in refused([folder], 1, capsys)


def test_an_interruption_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **keywords: object) -> None:
        assert Path("a").exists()  # where the output is made
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "measure", stopped)
    assert main(["eval", str(run), "output=a/b/found"]) == 130
    assert not Path("a").exists()


def test_a_folder_that_cannot_be_written_is_told_with_the_reason(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert "cannot write file/found: Not a directory" in refused([str(run), "output=file/found"], 1, capsys)


def test_help_needs_no_torch_and_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    out = capsys.readouterr().out
    for key in (
        "dataset=",
        "data_dir=",
        "data.download=",
        "device=",
        "precision=",
        "batch_sizes=",
        "seconds=",
        "seed=",
    ):
        assert key in out
    assert main(["--help"]) == 0
    assert "  eval    " in capsys.readouterr().out


class Counting(nn.Module):
    """Notes every pass in a list that networks share."""

    def __init__(self, name: str, passes: list[str]) -> None:
        super().__init__()
        self.name, self.passes = name, passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes.append(self.name)
        return x


def test_networks_are_measured_in_turns() -> None:
    passes: list[str] = []
    networks = {name: Counting(name, passes) for name in ("a", "b")}
    found = latency.side_by_side(networks, torch.zeros(1), 0.001)
    turns = "".join(name for k, name in enumerate(passes) if k == 0 or passes[k - 1] != name)
    assert turns == "ab" * (1 + latency.ROUNDS)  # the warm-up, then the rounds
    assert len(found["a"].rounds) == latency.ROUNDS
    ratio = latency.ratio(found["a"], found["b"])
    assert ratio.least <= ratio.median <= ratio.greatest


def test_too_many_samples_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(latency.NNCompressError, match=r"the latency of 5 samples needs more memory than cpu has"):
        latency.side_by_side({"large": Large()}, torch.zeros(5), 0.001)


def test_a_busy_machine_is_told() -> None:
    row = {"device": "cpu", "batch_size": 1, "seconds/median": 1.0, "seconds/lower": 1.0, "seconds/upper": 1.0}
    about = {"date": "today", "packages": {"torch": "2"}, "precision": "float32", "threads": 1, "devices": {"cpu": "x"}}
    for greatest, told in ((1.2, False), (3.0, True)):
        speed = {"speedup": 1.1, "speedup/least": 1.0, "speedup/greatest": greatest}
        rows = [row | {"network": "dense"}, row | {"network": "compact"} | speed]
        table = latency_table({"latency": rows, "artefact": "a", "ratio/macs": 0.5, "environment": about})
        with case(greatest=greatest):
            assert any("other processes were busy" in note for note in table.notes) is told
