"""Whole runs that slim networks: what they record, store and report, resumed ones, and how they end when refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import case
from omegaconf import OmegaConf
from runs import refusal, resume, rows, run, status, summary
from slimming_cases import size_by_hand, tensors
from torch import nn

from nncompress.artefact.model import load
from nncompress.experiment import checkpoint
from nncompress.experiment.setup import setup
from nncompress.metrics import evaluate
from nncompress.report.run import plots as run_plots
from nncompress.report.run.tables import run_tables
from nncompress.report.tables import csv, markdown
from nncompress.results.records import read_run
from nncompress.solvers.slimming import figures

DATA = ["dataset.train_size=100", "dataset.test_size=50"]
VGG = ["model=vgg19", "model.layers=[1,1,1]", "model.width=0.1", *DATA]
PROXIMAL = ["solver=slimming", *VGG, "solver.beta=5", "solver.batch_size=10"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run in which channels go."""
    folder = tmp_path_factory.mktemp("slimming") / "run"
    run(folder, *PROXIMAL, "solver.lam=0.4", "solver.num_steps=6", "solver.curvature=2", "eval_every=3")
    yield folder
    torch.set_deterministic_debug_mode("default")


def test_the_summary_of_a_run_counts_channels_and_holds_both_accuracies(ran):
    ends = summary(ran)
    assert 0 < ends["channels/kept"] < ends["channels/total"] == 45
    assert [layer["channels"] for layer in ends["channels"]] == [6, 13, 26]
    kept = [layer["kept"] for layer in ends["channels"]]
    assert sum(kept) == ends["channels/kept"]
    assert ends["params/compressed"] == size_by_hand("ratio", kept)
    assert ends["macs/compressed"] == size_by_hand("macs", kept)
    assert ends["bits/compressed"] == size_by_hand("bits", kept)
    assert ends["accuracy/test"] == ends["accuracy/projected_test"]
    assert 0 <= ends["accuracy/masked_test"] <= 1
    assert rows(ran)[-1]["curvature"] > 0


def test_the_stored_network_is_smaller_and_gives_the_outputs_of_the_masked_one(ran):
    made = setup(OmegaConf.load(ran / "config.yaml"))
    p, method = made.problem, made.solver
    content = checkpoint.load(ran / "checkpoints/last.pt")
    state = checkpoint.restore(method.init(p), content["state"], ran)
    masked = method.masked_network(p, state)
    found, x = load(ran / "model"), p.data.test.x
    with torch.no_grad():
        torch.testing.assert_close(found(x), masked.eval()(x), rtol=1e-5, atol=1e-5)
    size = (ran / "model/model.safetensors").stat().st_size
    assert size < 4 * size_by_hand("ratio", [6, 13, 26])
    assert evaluate(found, p.data.test, p.loss).accuracy == summary(ran)["accuracy/test"]


def test_why_channels_stay_masked_is_told_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(figures, "smaller", lambda network, x: (network, "no channel is taken out: so it is"))
    ends = run(tmp_path / "run", *PROXIMAL, "solver.lam=0.4", "solver.num_steps=2")
    assert caplog.messages.count("no channel is taken out: so it is") == 1
    assert ends["params/compressed"] == ends["params/dense"]


def test_the_report_has_the_channels(ran, monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(run_plots, "save_figure", lambda figure, folder, key: drawn.update({key: figure}) or [])
    found = read_run(ran)
    assert run_plots.run_plots(found, tmp_path) == []
    bars, histogram = drawn["channels"].axes
    layers = summary(ran)["channels"]
    assert [list(bar.get_data().values) for bar in bars.patches] == [
        [layer[key] for layer in layers] for key in ("channels", "kept")
    ]
    assert f"{summary(ran)['factors']['zero']} factors are exactly 0" in histogram.get_title()
    tables = {table.name: table for table in run_tables(found)}
    text = " ".join(markdown(tables["compression"]).split())
    assert f"channels with a scaling factor | 45 | {summary(ran)['channels/kept']} " in text
    header = markdown(tables["convergence"])
    assert all(title in header for title in ("ξ = 0", "channels kept", "‖Δξ‖²", "α > curvature/2"))
    columns = set(csv(tables["convergence"]).splitlines()[0].split(","))
    assert {"channels/zero", "step_sq/xi", "alpha", "curvature"} <= columns


@pytest.mark.usefixtures("apart")
def test_a_run_that_is_taken_up_again_ends_bit_for_bit_like_an_unbroken_one_and_may_deploy_gamma(tmp_path):
    words = [*PROXIMAL, "solver.lam=0.4", "solver.schedule.decay=1.0", "solver.project=false"]
    words.append("solver.batch_size=25")
    whole = run(tmp_path / "whole", *words, "solver.num_steps=2")
    run(tmp_path / "part", *words, "solver.num_steps=1")
    assert resume(tmp_path / "part", "solver.num_steps=2") == whole
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    states = [tensors(checkpoint.load(tmp_path / n / "checkpoints/last.pt")["state"]) for n in ("part", "whole")]
    assert all(map(torch.equal, *states))
    assert any(t.shape == (45,) for t in states[0])  # xi
    assert whole["accuracy/test"] == whole["accuracy/masked_test"]


@pytest.mark.usefixtures("apart")
def test_a_run_with_folding_and_no_dead_channel_stores_a_network_that_loads(tmp_path):
    words = ["solver=slimming", "model=resnet20", "model.depth=8", "model.width=0.25", *DATA, "solver.batch_size=50"]
    ends = run(tmp_path / "run", *words, "solver.fold=true", "solver.lam=1e-6", "solver.num_steps=1")
    assert ends["ratio/params"] == 1
    p = setup(OmegaConf.load(tmp_path / "run/config.yaml")).problem
    found = load(tmp_path / "run/model")
    assert evaluate(found, p.data.test, nn.functional.cross_entropy).accuracy == ends["accuracy/test"]


@pytest.mark.usefixtures("apart")
def test_a_run_prunes_fine_tunes_and_stores_the_smaller_network(tmp_path):
    words = ["solver=network_slimming", *VGG, "solver.batch_size=10", "solver.lam=1e-3", "solver.percent=0.7"]
    ends = run(tmp_path, *words, "solver.num_steps=6", "solver.fine_tune=3")
    records = rows(tmp_path)
    assert [row["channels/kept"] for row in records[3:]] == [ends["channels/kept"]] * 4
    above = 45 - (int(0.7 * 45) + 1)
    assert above <= ends["channels/kept"] < above + 3  # a layer without any keeps one
    assert ends["ratio/params"] < 1
    assert records[-1]["loss/train"] < records[3]["loss/train"]
    network = load(tmp_path / "model")
    assert sum(w.numel() for w in network.parameters()) == ends["params/compressed"]


ENDS: list[tuple[list[str], int, str, str]] = [
    ([*PROXIMAL, "solver.lam=-1"], 2, "failed", "lam must be at least 0 and finite, found -1"),
    (["solver=slimming", "model=mlp", *DATA], 1, "unsupported", "needs batch norms with scaling factors"),
    ([*PROXIMAL, "target.ratio=0.001"], 1, "unsupported", "target.ratio=0.001 must leave one channel in every layer"),
    ([*PROXIMAL, "solver.lr=1e8"], 1, "diverged", "the objective must stay finite"),
    ([*PROXIMAL, "solver.lr=1e8", "target.ratio=0.5"], 1, "diverged", "the objective must stay finite"),
    (["solver=network_slimming", *VGG, "solver.percent=1"], 2, "failed", "percent must be a part of the channels"),
]


@pytest.mark.usefixtures("apart")
def test_bad_input_is_one_sentence_and_the_right_exit_code(tmp_path):
    for k, (words, code, kind, said) in enumerate(ENDS):
        with case(words=words[-2:]):
            failure = refusal(tmp_path / str(k), "solver.num_steps=3", *words)
            assert re.search(re.escape(said), str(failure))
            assert failure.exit_code == code
            assert status(tmp_path / str(k))["status"] == kind
