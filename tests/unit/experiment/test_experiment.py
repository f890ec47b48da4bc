"""Whole runs: what they leave, what the seed decides, sizes that are asked for, divergence, the compact network."""

from __future__ import annotations

import json

import pytest
import torch
from cases import case
from golden import DIGITS, WORDS
from runs import configuration, finish, resign, rows, run, status, summary
from torch import nn

from nncompress.artefact.model import load
from nncompress.data.digits import digits
from nncompress.errors import CheckpointError, ConfigError, Diverged
from nncompress.experiment.run import run as run_setup
from nncompress.experiment.setup import setup
from nncompress.files import read_json
from nncompress.metrics import evaluate
from nncompress.report.run.tables import run_tables
from nncompress.results.records import read_run
from nncompress.solvers.nnbcd.nnbcd import NNBCD

SMALL = ["dataset.train_size=100", "dataset.test_size=50"]
NNBCD_WORDS = ["solver=nnbcd", "model=tt_mlp", "model.widths=[32,32]", "compression.rank=8", *SMALL]
CODEBOOK_WORDS = [
    *("solver=nnbcd", "model.widths=[16,16]", "model.bias=false", "compression=codebook", "solver.num_steps=1"),
    *SMALL,
]
SUMMARY_KEYS = {
    "accuracy/test", "accuracy/train", "accuracy/dense_test", "params/dense", "params/compressed", "bits/dense",
    "bits/compressed", "ratio/params", "ratio/bits", "ratio/tasks", "macs/dense", "macs/compressed", "seconds/total",
    "seconds/step_median", "memory/peak_bytes", "objective/final", "rate/slope", "rate/bound_ok", "device", "seed",
}  # fmt: skip
ROW_KEYS = {
    "step", "seconds", "objective", "loss/train", "accuracy/train", "loss/test", "accuracy/test",
    "accuracy/dense_test", "gap", "step_sq", "ratio/params", "ratio/bits", "sparsity",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("apart")
families = pytest.mark.parametrize("family", ["nnbcd", "sgd"])


@families
def test_a_run_leaves_every_file_with_its_keys(family, golden):
    folder = golden.kept(family)
    for name in ("config.yaml", "environment.json", "checkpoints/last.pt", "model/model.json"):
        assert (folder / name).is_file(), name
    assert status(folder)["status"] == "done"
    full = json.loads((folder / "summary.json").read_text())
    assert full.keys() >= SUMMARY_KEYS
    assert full["seed"] == 3
    assert rows(folder)[-1].keys() >= ROW_KEYS - {"seconds"}
    assert [row["step"] for row in rows(folder)] == list(range(full["steps"] + 1))
    environment = json.loads((folder / "environment.json").read_text())
    assert {"packages", "device", "commit", "command", "seed", "deterministic"} <= environment.keys()
    assert [table.name for table in run_tables(read_run(folder))] == ["accuracy", "compression", "convergence"]
    assert full["weights"]["largest"]  # what the plot of the weights is drawn from
    assert json.loads((folder / "columns.json").read_text()).keys() == {"columns", "plots"}


@families
def test_same_seed_same_records_and_another_seed_others(family, golden, tmp_path):
    cfg = configuration(*WORDS[family], *DIGITS, "seed=3")
    finish(cfg, tmp_path / "again")
    assert rows(tmp_path / "again") == rows(golden.kept(family))
    assert summary(tmp_path / "again") == summary(golden.kept(family))
    cfg.seed = 4
    finish(cfg, tmp_path / "other")
    assert rows(tmp_path / "other") != rows(golden.kept(family))


def test_a_run_by_itself_writes_no_tables_and_plots(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    written = run_setup(setup(configuration(*CODEBOOK_WORDS)), folder)
    assert written == read_json(folder / "summary.json")
    left = {path.name for path in folder.iterdir()}
    assert left == {
        "config.yaml", "settings.json", "environment.json", "columns.json", "records.jsonl", "status.json",
        "summary.json", "checkpoints", "model", "run.lock",
    }  # fmt: skip


def test_a_numerical_breakdown_is_divergence(tmp_path, monkeypatch):
    step = NNBCD.step

    def poisoned(self, problem, state):
        if state.k == 2:
            state.V[0].fill_(float("nan"))
            state.W[1].fill_(float("nan"))
        return step(self, problem, state)

    monkeypatch.setattr(NNBCD, "step", poisoned)
    with pytest.raises(Diverged) as diverged:
        run(tmp_path / "run", *NNBCD_WORDS, "solver.num_steps=5")
    assert diverged.value.exit_code == 1
    assert status(tmp_path / "run")["status"] == "diverged"
    assert len(rows(tmp_path / "run")) >= 3


# The compact network


@families
def test_the_compact_network_loads_and_classifies_as_recorded(family, golden):
    network = load(golden.kept(family) / "model")
    test = digits(train_size=200, test_size=100).test
    found = evaluate(network, test, nn.functional.cross_entropy)
    assert found.accuracy == pytest.approx(rows(golden.kept(family))[-1]["accuracy/test"], abs=1e-12)
    assert found.loss == pytest.approx(rows(golden.kept(family))[-1]["loss/test"], rel=1e-5)


def test_a_damaged_compact_network_is_named(golden, tmp_path):
    folder = golden.copied("nnbcd", tmp_path / "run")
    tensors = folder / "model/model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        load(folder / "model")
    tensors.write_bytes(whole)
    description = folder / "model/model.json"
    text = description.read_text()
    for wrong in ("nowhere.L0", "os.system"):
        with case(wrong=wrong):
            resign(
                folder / "model", lambda about, wrong=wrong: about["kinds"][0]["compression"].update({"class": wrong})
            )
            with pytest.raises(ConfigError, match=rf"model.json names {wrong}, but only"):
                load(folder / "model")
            description.write_text(text)
    description.write_text(text.replace('"rank":', '"rank": 1'))
    with pytest.raises(CheckpointError, match=r"model\.json and model\.safetensors must be as they were written"):
        load(folder)
    description.write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99"):
        load(folder / "model")


# Sizes


def test_a_target_is_met_and_what_was_requested_and_achieved_recorded(tmp_path):
    targets = [("ratio", "ratio/params", 0.5), ("bits", "bits/compressed", 60_000.0), ("macs", "ratio/macs", 0.9)]
    for target, key, requested in targets:
        with case(target=target):
            finish(configuration(*NNBCD_WORDS, "solver.num_steps=1", f"target.{target}={requested}"), tmp_path / target)
            found = summary(tmp_path / target)
            assert 0.8 * requested < found[key] <= requested
            assert found["target/key"] == key
            assert (found["target/requested"], found["target/achieved"]) == (requested, found[key])
            assert found["target/setting"].startswith("rank=")


def test_a_target_chooses_the_codebook(tmp_path):
    finish(configuration(*CODEBOOK_WORDS, "target.bits=0.25"), tmp_path / "run")
    found = summary(tmp_path / "run")
    assert found["ratio/bits"] <= 0.25
    assert found["target/setting"] == f"K={int(found['target/setting'][2:])}"


def test_a_rank_above_the_shape_is_said_once(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="nncompress"):
        finish(configuration(*NNBCD_WORDS, "compression.rank=1000", "solver.num_steps=2"), tmp_path / "run")
    assert caplog.text.count("fc1.weight: rank 1000 is above the largest") == 1


def test_the_summary_lists_every_task(tmp_path):
    finish(configuration(*CODEBOOK_WORDS, "compression=mixed"), tmp_path / "run")
    tasks = json.loads((tmp_path / "run/summary.json").read_text())["tasks"]
    assert [task["params"] for task in tasks] == ["fc1.weight", "fc2.weight"]
    assert [task["bits/compressed"] for task in tasks] == [32 * 16 * (64 + 16), 2 * 256 + 32 * 4]
    assert [task["theta"] for task in tasks] == ["U 16x16, V 16x64", "codes 256, table 1x4"]


# Parts of the user's own


def test_a_users_model_compression_and_data_are_taken_by_their_dotted_paths(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nfrom nncompress.compressions.sparsity.magnitude import L0\n"
        "from nncompress.problem import Dataset, Split\n\n\n"
        "class Net(nn.Sequential):\n    def __init__(self, num_classes, hidden=8):\n"
        "        super().__init__(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))\n\n\n"
        "class Half(L0):\n    def __init__(self):\n        super().__init__(0.5)\n\n\n"
        "def points(n=30):\n    x = torch.randn(n, 5)\n    split = Split(x, (x[:, 0] > 0).long())\n"
        "    return Dataset(split, split, 2, 'points')\n"
    )
    options = {"model": "_target_: mine.Net\nhidden: 6\n", "dataset": "_target_: mine.points\nn: 40\n",
               "compression": "_target_: mine.Half\n"}  # fmt: skip
    for group, text in options.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    words = ["solver=nnbcd", "solver.num_steps=3", "model=mine", "dataset=mine", "compression=mine"]
    run(tmp_path / "run", f"hydra.searchpath=[file://{tmp_path}/conf]", *words)
    assert summary(tmp_path / "run")["params/dense"] == 5 * 6 + 6 + 6 * 2 + 2
    assert rows(tmp_path / "run")[-1]["sparsity"] > 0.2
    with pytest.raises(ConfigError, match=r"names mine.Half, mine.Net, but .* allow=\[mine\]"):
        load(tmp_path / "run")
    network = load(tmp_path / "run/model", allow=["mine"])
    assert int(torch.count_nonzero(network[0].weight)) == 15
