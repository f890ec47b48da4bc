"""Write a compact network to other files, read them back and compare: a copy, plain tensors, ONNX, torch.export.

ONNX and torch.export files compute with Θ as the compact network does.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nncompress import metrics
from nncompress.artefact.files import DESCRIPTION, TENSORS, stored_bytes
from nncompress.artefact.model import Artefact, open_artefact
from nncompress.errors import NNCompressError, one_line

TOLERANCE = 1e-4
"""Of the largest output: how far the outputs of an export may be from those of the rebuilt network."""
BATCHES = (1, 2, 5)
"""Sizes of the batches that are compared where any may be passed."""
FOLDED = 64
"""Numbers in the largest tensor that ONNX's optimiser computes in advance: shapes, but neither factors nor codes."""
INPUT, OUTPUT = "input", "logits"
ANY = ({0: torch.export.Dim("batch")},)
"""The shapes of the input that may vary."""
MISSING = "needs {}, which is not installed: pip install 'nncompress[onnx]'"
PLACES = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack")
"""What torch.export notes of each operation's place in the source: a third of the files of deep, narrow networks."""
FACTS = ("dataset", "preprocessing", "classes", "input_shape", "num_classes")
"""What of the description goes into ONNX and torch.export files."""


class ReadBack(NamedTuple):
    """A network read back: how it computes (None: nothing here can), its only batch size or None, remarks."""

    run: Callable[[Tensor], Tensor] | None
    batch: int | None
    remarks: list[str]


@dataclass(frozen=True)
class Exported:
    """An export: bytes of its files and others, and how far its outputs are from those of the rebuilt network.

    - difference: the largest of any output; None where nothing was compared.
    - largest: the largest output.
    - batches: the sizes of the batches compared.
    """

    bytes: dict[str, int]
    difference: float | None
    largest: float
    batches: Sequence[int]
    remarks: Sequence[str]

    @property
    def agrees(self) -> bool:
        """Return whether the outputs are those of the rebuilt network, as far as they were compared."""
        return self.difference is None or self.difference <= TOLERANCE * self.largest


Format = Callable[[Artefact, Path, int | None], ReadBack]
"""Writes an artefact to a path; the number is the only batch size to provide for, None: any."""


def export(artefact: Artefact, path: Path, write: Format, batch: int | None = None) -> Exported:
    """Write a new file or folder in a format, read it back and compare its outputs on random samples.

    The folder of `path` must hold nothing else.

    Raises:
        NNCompressError: the exporter is not installed or fails.
    """
    network = write(artefact, path, batch)
    batches = BATCHES if network.batch is None else (network.batch,)
    difference, largest = _compare(artefact, network.run, batches)
    sizes = {
        "this export": sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()),
        "the artefact": stored_bytes(artefact.folder)["bytes/disk"],
        "the dense network in float32": -(-metrics.dense_bits(artefact.dense()) // 8),
    }
    return Exported(sizes, difference, largest, batches, network.remarks)


def copy_artefact(artefact: Artefact, path: Path, batch: int | None) -> ReadBack:
    """Copy the artefact itself into the folder `path`."""
    path.mkdir()
    for name in (TENSORS, DESCRIPTION):
        shutil.copyfile(artefact.folder / name, path / name)
    return ReadBack(open_artefact(path, None).network(compact=True), None, [])


def write_plain(artefact: Artefact, path: Path, batch: int | None) -> ReadBack:
    """Write the state of the rebuilt network as named tensors: for layers of torch, without this package."""
    network = artefact.network()
    # A tensor of two names is written twice, so that a reader needs to know nothing of that.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()
    }
    save_file(tensors, path, {"format": "pt"})
    network.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    network.load_state_dict(load_file(path))
    return ReadBack(network, None, [])


def write_torch_export(artefact: Artefact, path: Path, batch: int | None) -> ReadBack:
    """Write a program for `torch.export.load(path).module()`, with facts of the network in an extra file `model.json`.

    Raises:
        NNCompressError: torch.export does not understand the network.
    """
    program, batch, remarks = _program(artefact, batch)
    with _quiet():
        torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(_facts(artefact))})
        return ReadBack(torch.export.load(path).module(), batch, remarks)


def write_onnx(artefact: Artefact, path: Path, batch: int | None) -> ReadBack:
    """Write a file with the input `input` (batch, *input_shape), the output `logits` and facts of the network.

    Without onnxruntime nothing is compared.

    Raises:
        NNCompressError: packages of the extra [onnx] are not installed, or an operation has no form in ONNX.
    """
    for package in ("onnx", "onnxscript"):
        if not _is_installed(package):
            raise NNCompressError(f"the format onnx {MISSING.format(package)}")
    program, batch, remarks = _program(artefact, batch)
    with _quiet():
        try:
            written = _onnx_program(program, ANY if batch is None else None)
        except Exception as error:
            raise NNCompressError(
                f"every operation of the network must have a form in ONNX, found {type(error).__name__}: "
                f"{one_line(error)}; take the format torch_export or safetensors"
            ) from error
        written.model.metadata_props.update({key: json.dumps(value) for key, value in _facts(artefact).items()})
        written.save(str(path))  # above 2 GB with a second file beside it
    if not _is_installed("onnxruntime"):
        return ReadBack(None, batch, [*remarks, f"the outputs are not compared, which {MISSING.format('onnxruntime')}"])
    return ReadBack(_session(path), batch, remarks)


FORMATS: dict[str, tuple[Format, str]] = {
    "safetensors": (copy_artefact, ""),
    "onnx": (write_onnx, "model.onnx"),
    "torch_export": (write_torch_export, "model.pt2"),
}
"""What writes each format, and the name of its file (none: a folder)."""
PLAIN = (write_plain, "model.safetensors")


def _program(artefact: Artefact, batch: int | None) -> tuple[torch.export.ExportedProgram, int | None, list[str]]:
    """Return the compact network as a program, its batch size (None: any) and remarks.

    Where there is none for any batch size it is tried with 1.
    """
    network, remarks, x = artefact.network(compact=True), [], artefact.samples(batch or 2)
    if batch is None:
        try:
            return _export_program(network, x, ANY), None, []
        except Exception as error:  # an exporter raises anything
            batch, x, why = 1, x[:1], f"{type(error).__name__}: {one_line(error)}"
            remarks = [f"the batch size is fixed to 1 (another: --batch N), since any size failed: {why}"]
    try:
        return _export_program(network, x, None), batch, remarks
    except Exception as error:
        raise NNCompressError(
            f"torch.export must understand the network, found {type(error).__name__}: {one_line(error)}; "
            "take the format safetensors, or change the network's forward()"
        ) from error


def _export_program(network: nn.Module, x: Tensor, dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """Return the program of a network, without the places in the source it comes from."""
    with _quiet():
        program = torch.export.export(network, (x,), dynamic_shapes=dynamic_shapes)
    for node in program.graph.nodes:
        for key in PLACES:
            node.meta.pop(key, None)
    return program


def _onnx_program(program: torch.export.ExportedProgram, dynamic_shapes: Any) -> Any:
    """Return the ONNX program, optimised without what makes it larger.

    By default the optimiser multiplies small factors out and writes the dense weight in their place.
    """
    from onnxscript.optimizer import optimize

    written: Any = torch.onnx.export(
        program, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=dynamic_shapes,
        dynamo=True, optimize=False, verbose=False,
    )  # fmt: skip
    optimize(written.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    graph = written.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for place in [graph, *graph, *values]:  # what the exporter notes for itself
        place.metadata_props.clear()
    return written


@torch.no_grad()
def _compare(
    artefact: Artefact, run: Callable[[Tensor], Tensor] | None, batches: Sequence[int]
) -> tuple[float | None, float]:
    """Return the largest difference from the rebuilt network's outputs (nan where one is not finite); their largest."""
    network, differences, outputs = artefact.network(), [], []
    for seed, size in enumerate(batches):
        x = artefact.samples(size, seed)
        outputs.append(network(x))
        if run is not None:
            try:
                differences.append((run(x) - outputs[-1]).abs().max())
            except Exception as error:  # of torch.export or onnxruntime
                raise NNCompressError(
                    f"what is written must take a batch of {size}, found {type(error).__name__}: {one_line(error)}; "
                    "give one batch size with --batch N, or another format"
                ) from error
    largest = torch.stack([output.abs().max() for output in outputs]).max()
    return float(torch.stack(differences).max()) if differences else None, float(largest)


def _session(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what runs an ONNX file, by onnxruntime on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what it cannot compute in advance is nothing to tell
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _facts(artefact: Artefact) -> dict[str, Any]:
    return {key: artefact.description.get(key) for key in FACTS}


def _is_installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Do not show the exporters' warnings, which are about themselves: what they write is compared."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
