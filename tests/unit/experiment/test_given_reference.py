"""A run whose network others start from, by reference=RUN: its weights are taken, or it is told why they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cases import case
from runs import configuration, finish, refusal, rows, summary

DATA = ["dataset.train_size=100", "dataset.test_size=50"]
SMALL = [*DATA, "model.widths=[16]"]
NOISY = [*DATA, "model._target_=own_parts.Noisy"]

pytestmark = pytest.mark.usefixtures("apart")


def trained(folder: Path, *words: str) -> Path:
    """The folder of a run that others start from."""
    finish(configuration("solver=sgd", "solver.num_steps=5", "seed=3", *words), folder)
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("reference") / "there", *SMALL)


def test_sgd_starts_where_the_given_run_ended(there, tmp_path):
    found = finish(configuration(*SMALL, "solver.num_steps=1", f"reference={there}"), tmp_path / "here")
    for key in ("accuracy/test", "accuracy/train", "loss/test"):
        assert rows(tmp_path / "here")[0][key] == rows(there)[-1][key]
    assert found["reference"] == str(there)
    assert not (tmp_path / "outputs").exists()


def test_a_reference_given_by_a_path_from_here_is_recorded_by_its_whole_path(there, tmp_path, monkeypatch):
    from nncompress.experiment.reference import with_reference

    monkeypatch.chdir(there.parent)
    assert with_reference(configuration(*SMALL, "reference=there")).reference == str(there)


def test_a_run_without_reference_says_nothing_of_one(there):
    assert not summary(there).keys() & {"reference", "accuracy/reference_test"}


def test_the_start_is_the_deployed_network_of_a_compressed_run(tmp_path):
    compressed = trained(tmp_path / "compressed", *SMALL, "compression=l0", "compression.keep=0.3")
    words = [*SMALL, "solver.num_steps=0", f"reference={compressed}", "precision=float64"]
    finish(configuration(*words), tmp_path / "here")
    assert rows(tmp_path / "here")[0]["sparsity"] == rows(compressed)[-1]["sparsity"] > 0.5


def test_a_network_of_other_shapes_is_refused_with_what_differs(there, tmp_path):
    bare = trained(tmp_path / "bare", *SMALL, "model.bias=false", "solver.num_steps=0")
    for reference, words, found in (
        (bare, ["model.widths=[12]", "model.bias=false"],
         ["fc1.weight is 16x64 there and 12x64 here", "fc2.weight is 10x16 there and 10x12 here"]),
        (bare, [], ["fc1.bias is missing there and 16 here"]),
        (there, ["model.bias=false"], ["fc1.bias is 16 there and missing here"]),
    ):  # fmt: skip
        with case(words=words):
            failure = refusal(tmp_path / "a", *SMALL, *words, f"reference={reference}")
            assert failure.exit_code == 2
            for said in found:
                assert said in str(failure)


def test_a_network_with_another_activation_is_refused(there, tmp_path):
    for activation in ("tanh", "leaky_relu"):
        with case(activation=activation):
            failure = refusal(tmp_path / "a", *SMALL, f"model.activation={activation}", f"reference={there}")
            assert failure.exit_code == 2
            assert "gives other outputs with the same weights" in str(failure)


def test_a_network_with_another_dropout_rate_is_taken(tmp_path):
    noisy = trained(tmp_path / "noisy", *NOISY)
    finish(configuration(*NOISY, "+model.p=0.1", "solver.num_steps=0", f"reference={noisy}"), tmp_path / "a")
    assert rows(tmp_path / "a")[0]["accuracy/test"] == rows(noisy)[-1]["accuracy/test"]


def test_a_reference_of_other_data_is_taken_with_a_warning(there, tmp_path, caplog):
    words = [*SMALL, "solver.num_steps=0", f"reference={there}"]
    finish(configuration(*words), tmp_path / "a")
    assert "the reference was trained on" not in caplog.text
    finish(configuration(*words, "dataset.normalise=standard"), tmp_path / "b")
    assert "the reference was trained on digits (preprocessing: " in caplog.text


def test_a_folder_without_a_finished_run_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "unfinished").mkdir()
    for folder in ("nowhere", "unfinished", ""):
        with case(folder=folder):
            failure = refusal(tmp_path / "a", *SMALL, f"reference='{folder}'", "seed=-1")
            assert failure.exit_code == 2
            said = f"must be the folder of a finished run, found no model/model.json in '{folder}'"
            assert said in str(failure)
            assert "seed: must be" in str(failure)


def test_a_damaged_network_is_named(there, tmp_path):
    for file in ("model.safetensors", "model.json"):
        with case(file=file):
            path = Path(shutil.copytree(there, tmp_path / Path(file).suffix[1:])) / "model" / file
            path.write_bytes(path.read_bytes()[:100])
            failure = refusal(tmp_path / "a", *SMALL, f"reference={path.parents[1]}")
            assert failure.exit_code == 1
            assert str(failure).startswith(f"reference: {path} must be a whole")
            assert "give another run" in str(failure)
    assert json.loads((there / "model/model.json").read_text())
