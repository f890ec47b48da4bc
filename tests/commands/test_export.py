"""`nncompress export`: files that compute what the network computes, as small as it; what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import case
from runs import run as done
from safetensors.torch import load_file
from torch import nn

import nncompress
from nncompress.artefact import export
from nncompress.artefact import export as formats
from nncompress.artefact.model import open_artefact
from nncompress.cli.main import main
from nncompress.metrics import dense_bits

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose two hidden layers are codebooks of few codes."""
    folder = tmp_path_factory.mktemp("export") / "run"
    words = ["solver=sgd", "model.widths=[64,64]", "compression=codebook", "compression.K=4"]
    done(folder, *words, "solver.num_steps=1", "dataset.train_size=50", "dataset.test_size=20")
    torch.set_deterministic_debug_mode("default")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run in the current folder."""
    shutil.copytree(trained, tmp_path / "run")
    return Path("run")


def refused(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What is told of words that are refused with this code, in one line; nothing is left."""
    before = set(Path().rglob("*"))
    assert main(["export", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert set(Path().rglob("*")) == before
    return err


def test_the_artefact_is_copied_after_a_check(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run)]) == 0
    assert {path.name for path in (run / "export/safetensors").iterdir()} == {"model.safetensors", "model.json"}
    x = open_artefact(run).samples(3)
    assert torch.equal(nncompress.load(run / "export/safetensors")(x), nncompress.load(run)(x))
    out = capsys.readouterr().out
    assert "wrote run/export/safetensors" in out
    assert "largest difference of the outputs from those of the rebuilt network: " in out
    for name in ("this export", "the artefact", "the dense network in float32"):
        assert name in out


def test_dense_tensors_need_nothing_of_this_package(run: Path) -> None:
    assert main(["export", str(run), "--dense", "--output", "plain.safetensors"]) == 0
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    places = {"fc1": "0", "fc2": "2", "fc3": "4"}
    tensors = {places[name[:3]] + name[3:]: tensor for name, tensor in load_file("plain.safetensors").items()}
    network.load_state_dict(tensors)
    x = open_artefact(run).samples(3)
    torch.testing.assert_close(network(x.flatten(1)), nncompress.load(run)(x))


def test_an_onnx_file_takes_any_batch_and_holds_codes_not_weights(run: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", "onnx"]) == 0
    path = run / "export/onnx/model.onnx"
    assert [path] == list(path.parent.iterdir())
    artefact = open_artefact(run)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in (1, 7):
        x = artefact.samples(size)
        (found,) = session.run(["logits"], {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), artefact.network()(x), atol=1e-5, rtol=1e-4)
    model = onnx.load(path)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(onnx.numpy_helper.to_array(tensor).size for tensor in floats) == 640  # the layer that is not compressed
    assert path.stat().st_size < dense_bits(artefact.dense()) / 16
    assert {p.key: json.loads(p.value) for p in model.metadata_props}["dataset"] == "digits"
    assert b".py" not in path.read_bytes()
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_program_of_torch_export_takes_any_batch(run: Path) -> None:
    assert main(["export", str(run), "--format", "torch_export", "--output", "somewhere"]) == 0
    told = {"model.json": ""}
    program = torch.export.load("somewhere/model.pt2", extra_files=told)
    x = open_artefact(run).samples(7)
    torch.testing.assert_close(program.module()(x), nncompress.load(run)(x), atol=1e-5, rtol=1e-4)
    assert json.loads(told["model.json"])["input_shape"] == [1, 8, 8]


def test_a_batch_size_that_is_given_is_the_only_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("onnx", "torch_export"):
        with case(kind=kind):
            assert main(["export", str(run), "--format", kind, "--batch", "3", "--output", f"fixed_{kind}"]) == 0
            assert "batches of 3)" in capsys.readouterr().out


def test_a_network_that_cannot_take_any_batch_is_export_program_for_one_sample(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = export._export_program

    def fixed(network: nn.Module, x: torch.Tensor, dynamic_shapes: Any) -> Any:
        if dynamic_shapes is not None:
            raise RuntimeError("constraints violated")
        return exported(network, x, None)

    monkeypatch.setattr(formats, "_export_program", fixed)
    assert main(["export", str(run), "--format", "torch_export"]) == 0
    out = capsys.readouterr().out
    assert "the batch size is fixed to 1 (another: --batch N), since any size failed: RuntimeError: constraints" in out
    assert "batches of 1)" in out


def test_a_network_that_cannot_be_export_program_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("data-dependent branch")

    monkeypatch.setattr(formats, "_export_program", fails)
    told = refused([str(run), "--format", "torch_export"], 1, capsys)
    assert "found RuntimeError: data-dependent branch; take the format safetensors" in told


def test_other_outputs_are_an_error_and_the_file_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "_compare", lambda *arguments: (0.5, 2.0))
    assert main(["export", str(run)]) == 1
    err = capsys.readouterr().err
    assert "the outputs of run/export/safetensors must be those of the network within 0.0001 of the largest" in err
    assert (run / "export/safetensors/model.json").is_file()


def test_without_the_exporter_it_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript"):
        with case(package=package), monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            told = refused([str(run), "--format", "onnx"], 1, capsys)
            assert f"the format onnx needs {package}, which is not installed: pip install 'nncompress[onnx]'" in told


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter to ONNX that is done at once, with a file that nobody reads."""
    made = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda path: Path(path).write_bytes(b"onnx"))
    monkeypatch.setattr(formats, "_onnx_program", lambda program, dynamic_shapes: made)


@pytest.mark.usefixtures("exporter")
def test_without_onnxruntime_it_is_written_but_not_compared(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(run), "--format", "onnx"]) == 0
    out = capsys.readouterr().out
    assert "the outputs are not compared, which needs onnxruntime" in out
    assert (run / "export/onnx/model.onnx").read_bytes() == b"onnx"
    assert "largest difference" not in out


def test_wrong_usage_is_one_sentence_and_exit_code_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model.safetensors").touch()
    wrong: list[tuple[list[str], str]] = [
        ([], "export needs one folder of a run, found none; usage: nncompress export RUN"),
        (["run", "run"], "export needs one folder of a run, found run and run"),
        (["run", "seed=1"], "export takes no KEY=VALUE but allow=[MODULE,...], found seed=1"),
        (["run", "--format", "tflite"], "argument --format: invalid choice: 'tflite'"),
        (["run", "--fast"], "unrecognized arguments: --fast"),
        (["run", "--format", "onnx", "--batch", "0"], "--batch must be a number of samples, at least 1, found 0"),
        (["run", "--format", "onnx", "--batch", "few"], "argument --batch: invalid int value: 'few'"),
        (["run", "--batch", "2"], "--batch is for the formats onnx and torch_export, found safetensors"),
        (["run", "--dense", "--format", "onnx"], "--dense is for the format safetensors, found onnx"),
        (["run", "--output", "run/model"], "nothing is overwritten, found run/model; give another place with --output"),
        (["run", "--dense", "--output", "run"], "nothing is overwritten, found run/model.safetensors"),
    ]
    for words, expected in wrong:
        with case(words=words):
            assert expected in refused(words, 2, capsys)


def test_nothing_is_written_twice(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run)]) == 0
    capsys.readouterr()
    assert "nothing is overwritten, found run/export/safetensors" in refused([str(run)], 2, capsys)


def test_a_folder_without_a_network_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "model")
    (run / "status.json").write_text('{"status": "interrupted"}')
    assert "there is no such folder" in refused(["nowhere"], 1, capsys)
    assert "this run is interrupted and has none" in refused([str(run)], 1, capsys)


def test_an_interruption_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(artefact: object, path: Path, batch: object) -> None:
        path.write_text("half a file")
        raise KeyboardInterrupt

    monkeypatch.setitem(export.FORMATS, "onnx", (stopped, "model.onnx"))
    assert main(["export", str(run), "--format", "onnx"]) == 130
    assert not (run / "export").exists()


def test_help_names_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert "[--format safetensors|onnx|torch_export]" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "  export  " in capsys.readouterr().out


@pytest.mark.usefixtures("exporter")
def test_a_file_that_cannot_be_run_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("expected 2 samples")

    monkeypatch.setattr(formats, "_session", lambda path: fails)
    told = refused([str(run), "--format", "onnx"], 1, capsys)
    assert "what is written must take a batch of 1, found RuntimeError: expected 2 samples; give one batch size" in told
