"""Runs of the LC algorithm: a network of one's own, what a run leaves, resuming, divergence."""

import pytest
from cases import case
from own_parts import Tied
from problems import small_digits
from runs import resume, rows, run, summary
from torch import float32, nn

from nncompress.artefact.model import load
from nncompress.errors import ConfigError, Diverged, NNCompressError
from nncompress.metrics import evaluate

pytestmark = pytest.mark.usefixtures("apart")

SHORT = ["dataset.train_size=100", "dataset.test_size=100", "reference_training.num_steps=10"]
WORDS = [
    "solver=lc", "model.widths=[16]", "compression=codebook", "compression.K=2", "compression.layers=all", *SHORT,
    "solver.num_steps=4", "solver.epochs=2", "solver.batch_size=32",
]  # fmt: skip


def accuracy(network: nn.Module) -> float:
    """On the test data of the runs; they do not depend on the training size."""
    return evaluate(network, small_digits(100, float32).test, nn.functional.cross_entropy).accuracy


def test_a_network_of_ones_own_with_batch_norm_and_a_skip_is_compressed_and_stored(tmp_path):
    words = [*SHORT, "solver.num_steps=3", "solver.epochs=2", "solver.growth=2", "solver.batch_size=32"]
    words += ["solver=lc", "compression=codebook", "compression.layers=all"]
    ends = run(tmp_path / "run", *words, "model._target_=own_parts.Residual", "+model.width=6")
    network = load(tmp_path / "run/model", allow=["own_parts"])
    assert network.stem.out_channels == 6
    assert all(len(p.unique()) <= 4 for p in network.parameters() if p.dim() >= 2)
    assert accuracy(network) == pytest.approx(ends["accuracy/test"])


def test_the_summary_and_the_stored_network_are_those_of_the_step_that_was_kept(tmp_path):
    # rates so large that the last steps are no good
    ends = run(tmp_path, *WORDS, "solver.lr=1.5", "solver.mu0=1e-9", "solver.growth=1.0", "solver.epochs=3")
    records = rows(tmp_path)
    kept = min(range(len(records)), key=lambda k: records[k]["objective"])
    assert ends["step/kept"] == records[-1]["step/kept"] == kept < 4
    assert ends["accuracy/test"] == records[kept]["accuracy/test"]
    assert ends["objective/final"] == pytest.approx(records[kept]["objective"])
    assert ends["gap"] == pytest.approx(records[kept]["gap"], rel=1e-5)
    assert ends["epochs"] == 5 * 3
    assert {task["params"] for task in ends["tasks"]} == {"fc1.weight", "fc2.weight"}
    assert accuracy(load(tmp_path / "model")) == ends["accuracy/test"]


def test_a_weight_with_two_names_is_stored_compressed(tmp_path):
    words = ["model._target_=own_parts.Tied", "solver=lc", "compression=codebook", "compression.layers=['2.weight']"]
    ends = run(tmp_path, *words, *SHORT, "solver.num_steps=2", "solver.epochs=2", "solver.batch_size=32")
    network = load(tmp_path / "model", allow=["own_parts"])
    assert isinstance(network, Tied)
    assert network[2].weight is network[4].weight
    assert len(network[2].weight.unique()) <= 4
    assert accuracy(network) == pytest.approx(ends["accuracy/test"])


def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path):
    words = [*WORDS, "solver.mu0=0.01"]  # which, left to the data, depends on the number of steps
    run(tmp_path / "whole", *words)
    run(tmp_path / "part", *(word.replace("num_steps=4", "num_steps=2") for word in words))
    assert resume(tmp_path / "part", "solver.num_steps=4") == summary(tmp_path / "whole")
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")


def test_bad_input_is_one_sentence_of_the_right_kind(tmp_path):
    unclipped = [*WORDS, "solver.mu0=50", "solver.clip=false", "solver.epochs=20"]
    cases: list[tuple[list[str], type[NNCompressError], str]] = [
        ([*WORDS, "solver.mu0=0"], ConfigError, "mu0 must be positive and finite (null: found from the data), found 0"),
        (unclipped, Diverged, "stable for lr times mu below 1.357, here it is 5); use solver.clip=true"),
        ([*WORDS, "solver.lr=500"], Diverged, "use a smaller solver.lr; the records are kept"),
    ]
    for k, (words, kind, said) in enumerate(cases):
        with case(words=words), pytest.raises(NNCompressError) as error:
            run(tmp_path / str(k), *words)
        assert type(error.value) is kind
        assert said in str(error.value)
        assert "\n" not in str(error.value)
