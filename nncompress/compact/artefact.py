"""`model.safetensors` + `model.json`: the deployed network as it is stored, without pickle."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nncompress import config
from nncompress.channels import is_reshaped
from nncompress.compact.removal import reshape, structure
from nncompress.compressions.plan import Task
from nncompress.errors import CheckpointError
from nncompress.problem import Problem
from nncompress.records import write_json
from nncompress.solvers.base import Observation

FORMAT = 2
TENSORS, DESCRIPTION = "model.safetensors", "model.json"


def save_compact(
    folder: Path, problem: Problem, observation: Observation, architecture: Any, network: nn.Module | None = None
) -> None:
    """Write Θ and every uncompressed parameter and buffer, real numbers as float32.

    `architecture` is the model's configuration node; `network` what is left of the observed one where channels are
    removed (it is written in its place). The tensors of a task are named
    `theta/<its first weight>/<field>[/<index>]`, all others as in the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tasks = [
        _described(task, theta, problem, tensors)
        for task, theta in zip(problem.plan.tasks, observation.theta, strict=True)
    ]
    network = observation.model if network is None else network
    weights = network.state_dict()
    compressed = {weights[name].data_ptr() for name in problem.plan.shapes}
    for name, value in weights.items():
        if value.data_ptr() not in compressed:  # by place, since a weight may have a second name
            _store(name, value, tensors)
    save_file(tensors, folder / TENSORS)
    data = problem.data
    description = {
        "format": FORMAT,
        "architecture": architecture,
        "input_shape": list(data.input_shape),
        "num_classes": data.num_classes,
        "dataset": data.name,
        "preprocessing": data.preprocessing,
        "tasks": tasks,
    }
    if is_reshaped(network):
        description["channels"] = structure(network)
    write_json(folder / DESCRIPTION, description)


def _described(task: Task, theta: Any, problem: Problem, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A task and its Θ in JSON, the tensors of Θ put among `tensors`."""
    return {
        "params": list(task.params),
        "shapes": [list(problem.plan.shapes[name]) for name in task.params],
        "compression": _stored_object(task.compression),
        "view": _stored_object(task.view),
        "theta": _store(f"theta/{task.params[0]}", theta, tensors),
    }


def _stored_object(value: Any) -> Any:
    """Plain values as they are; a frozen dataclass as its class by dotted path and its fields."""
    if isinstance(value, tuple | list):
        return [_stored_object(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    kind = type(value)
    fields = {field.name: _stored_object(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "fields": fields}


def _restored_object(stored: Any) -> Any:
    """The value of `_stored_object`, whatever its constructor takes."""
    if isinstance(stored, list):
        return tuple(_restored_object(item) for item in stored)
    if not isinstance(stored, dict):
        return stored
    value = object.__new__(_located(stored["class"]))
    for field, content in stored["fields"].items():
        object.__setattr__(value, field, _restored_object(content))
    return value


def _located(path: str) -> type[Any]:
    """The dataclass or NamedTuple at a dotted path; CheckpointError for anything else."""
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name, None)
    if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or issubclass(found, tuple)):
        raise CheckpointError(f"a compact model is made of compressions, views and their Θ, found {path}")
    return found


def _store(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors of (a part of) Θ under `name`; what is left is its description in JSON."""
    if isinstance(value, Tensor):
        dtype = torch.float32 if value.dtype == torch.float64 else value.dtype
        if value.dtype == torch.int64 and (value.numel() == 0 or int(value.max()) < 2**31):
            dtype = torch.int32
        tensors[name] = value.detach().to("cpu", dtype).contiguous().clone()
        return {"tensor": name}
    kind = type(value)
    names: tuple[str, ...] | None = getattr(kind, "_fields", None)
    if names is not None:  # a Θ, or one inside another
        fields = {field: _store(f"{name}/{field}", item, tensors) for field, item in zip(names, value, strict=True)}
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "fields": fields}
    if isinstance(value, tuple | list):
        return [_store(f"{name}/{i}", item, tensors) for i, item in enumerate(value)]
    return value


def load_compact(folder: Path) -> nn.Module:
    """The deployed network in evaluation mode, on the CPU, rebuilt from Θ. Raises CheckpointError, naming the file.

    The file names the classes of the network and its compressions, which are imported: load only what you trust.
    """
    description = _read(folder / DESCRIPTION)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} must be a whole safetensors file: {error}") from error
    try:
        return _network(description, tensors)
    except (ImportError, AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION} must describe a network that fits {TENSORS}, found {type(error).__name__}: {error}"
        ) from error


def _network(description: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    node = OmegaConf.create(description["architecture"])
    network: nn.Module = config.build(
        node, input_shape=description["input_shape"], num_classes=description["num_classes"]
    )
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("theta/")}
    for task in description["tasks"]:
        weights |= _rebuilt(task, tensors)
    if "channels" in description:
        reshape(network, weights, description["channels"])
    own = network.state_dict()
    held = {own[name].data_ptr() for name in weights}
    again = {name: own[name] for name in own if name not in weights and own[name].data_ptr() in held}
    network.load_state_dict(weights | again)  # the second name of a weight: copied onto itself
    return network.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be a whole JSON file: {error}") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {description.get('format')}, this version reads format {FORMAT}")
    return description


def _rebuilt(task: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Δ(Θ) of one task: its weights by name."""
    compression, view = _restored_object(task["compression"]), _restored_object(task["view"])
    theta = _restore(task["theta"], tensors)
    shapes = [torch.Size(shape) for shape in task["shapes"]]
    return dict(zip(task["params"], view.split(compression.decompress(theta), shapes), strict=True))


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.long() if tensor.dtype == torch.int32 else tensor
    if isinstance(value, dict):
        return _located(value["class"])(**{field: _restore(item, tensors) for field, item in value["fields"].items()})
    return tuple(_restore(item, tensors) for item in value) if isinstance(value, list) else value
