"""The LC algorithm from the command line: a network of one's own, what a run leaves, resuming, divergence."""

import os

import pytest
import torch
from runs import assert_refused, rows, summary, train
from torch import nn

from nncompress.cli import main
from nncompress.compact.artefact import load
from nncompress.data.digits import digits
from nncompress.metrics import evaluate

pytestmark = pytest.mark.usefixtures("apart")

SHORT = ["dataset.train_size=200", "dataset.test_size=100", "reference_training.num_steps=10"]
WORDS = [
    "solver=lc", "model.widths=[32]", "compression=codebook", "compression.K=2", "compression.layers=all", *SHORT,
    "solver.num_steps=6", "solver.epochs=3", "solver.batch_size=32",
]  # fmt: skip


class Residual(nn.Module):
    """Convolutions with batch norm and a skip connection."""

    def __init__(self, input_shape, num_classes, width):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.out = nn.Linear(width, num_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.bn(self.conv(x)))
        return self.out(x.mean((2, 3)))


class Frozen(nn.Sequential):
    """A network whose first layer is not trained."""

    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
        self[1].requires_grad_(False)


class Tied(nn.Sequential):
    """A network that uses a weight twice."""

    def __init__(self, num_classes):
        layers = [nn.Linear(64, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, num_classes)]
        super().__init__(nn.Flatten(), *layers)
        self[4].weight = self[2].weight


def test_a_network_of_ones_own_with_batch_norm_and_a_skip_needs_two_lines(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    (tmp_path / "my_conf/model").mkdir(parents=True)
    (tmp_path / "my_conf/model/mine.yaml").write_text("_target_: test_lc_runs.Residual\nwidth: 8\n")
    words = [*SHORT, "solver.num_steps=4", "solver.epochs=2", "solver.growth=2", "solver.batch_size=32"]
    words += ["solver=lc", "model=mine", "compression=codebook", "compression.layers=all"]
    assert train(tmp_path / "run", "--config-dir", "my_conf", *words) == 0
    network = load(tmp_path / "run/model", allow=["test_lc_runs"])
    assert all(len(p.unique()) <= 4 for p in network.parameters() if p.dim() >= 2)
    test = digits(train_size=200, test_size=100).test
    found = evaluate(network, test.to("cpu", torch.float32), nn.functional.cross_entropy).accuracy
    assert found == pytest.approx(summary(tmp_path / "run")["accuracy/test"])


def test_the_summary_and_the_stored_network_are_those_of_the_step_that_was_kept(tmp_path):
    folder = tmp_path / "run"
    # rates so large that the last steps are no good
    assert train(folder, *WORDS, "solver.lr=1.5", "solver.mu0=1e-9", "solver.growth=1.0") == 0
    ends, records = summary(folder), rows(folder)
    kept = min(range(len(records)), key=lambda k: records[k]["objective"])
    assert ends["step/kept"] == records[-1]["step/kept"] == kept < 6
    assert ends["accuracy/test"] == records[kept]["accuracy/test"]
    assert ends["objective/final"] == pytest.approx(records[kept]["objective"])
    assert ends["gap"] == pytest.approx(records[kept]["gap"], rel=1e-5)
    assert ends["epochs"] == 7 * 3
    assert {task["params"] for task in ends["tasks"]} == {"fc1.weight", "fc2.weight"}
    test = digits(train_size=200, test_size=100).test.to("cpu", torch.float32)
    assert evaluate(load(folder / "model"), test, nn.functional.cross_entropy).accuracy == ends["accuracy/test"]


def test_a_weight_with_two_names_is_stored_compressed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    words = [
        "model._target_=test_lc_runs.Tied",
        "solver=lc",
        "compression=codebook",
        "compression.layers=['2.weight']",
        *SHORT,
    ]
    assert train(tmp_path / "run", *words, "solver.num_steps=2", "solver.epochs=2", "solver.batch_size=32") == 0
    network = load(tmp_path / "run/model", allow=["test_lc_runs"])
    assert network[2].weight is network[4].weight
    assert len(network[2].weight.unique()) <= 4
    test = digits(train_size=200, test_size=100).test.to("cpu", torch.float32)
    accuracy = evaluate(network, test, nn.functional.cross_entropy).accuracy
    assert accuracy == pytest.approx(summary(tmp_path / "run")["accuracy/test"])


def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path):
    words = [*WORDS, "solver.mu0=0.01"]  # which, left to the data, depends on the number of steps
    assert train(tmp_path / "whole", *words) == 0
    assert train(tmp_path / "part", *(word.replace("num_steps=6", "num_steps=3") for word in words)) == 0
    assert main(["train", f"resume={tmp_path / 'part'}", "solver.num_steps=6"]) == 0
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    assert summary(tmp_path / "part") == summary(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([*WORDS, "solver.mu0=0"], 2, "mu0 must be positive and finite (null: found from the data), found 0"),
        ([*WORDS, "solver.mu0=-1"], 2, "mu0 must be positive"),
        (["solver=lc", *SHORT], 1, "found none in the plan; choose a compression"),
        (
            ["solver=lc", "model._target_=test_lc_runs.Frozen", "compression=l0", "compression.layers=all", *SHORT],
            1, "found that 1.weight is frozen (requires_grad=False)",
        ),
        (
            [*WORDS, "solver.mu0=50", "solver.clip=false", "solver.epochs=40"],
            1, "(the penalty is stable for lr times mu below 1.357, here it is 5); use solver.clip=true",
        ),
        ([*WORDS, "solver.lr=500", "solver.epochs=40"], 1, "use a smaller solver.lr; the records are kept"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_the_right_exit_code(words, code, said, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    assert_refused(tmp_path / "run", words, code, said, capsys)
