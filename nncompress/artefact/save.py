"""Write a compact network: Θ and the uncompressed parameters in one file, what they are in another."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.artefact.encoding import Writer, encode, put_plain
from nncompress.artefact.files import FORMAT, to_json, write_files
from nncompress.artefact.objects import stored_object
from nncompress.compressions.plan import Plan
from nncompress.surgery.channels import is_reshaped
from nncompress.surgery.removal import structure

TIED = "tied"


@dataclass(frozen=True)
class About:
    """What a file says of a network beside its weights.

    - architecture: the configuration node that makes the network.
    - sample: one input (1, *input_shape) on the network's device, for the shapes of input and output.
    - num_classes, classes, dataset, preprocessing: the data set's number and names of classes, its name, and what was
      done to its inputs.
    - data: the configuration node of the data set; None, the default, where there is none.
    """

    architecture: Any
    sample: Tensor
    num_classes: int
    classes: Sequence[str] | None
    dataset: str
    preprocessing: str
    data: Any = None


def save(folder: Path, network: nn.Module, plan: Plan, theta: Sequence[Any], about: About) -> None:
    """Write Θ and every uncompressed parameter and buffer of a network, real numbers of 64 bits as of 32.

    Raises:
        CheckpointError: no file can hold a compression or a Θ, or no other process can find its class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer, tasks = Writer(), []
    kinds: dict[str, tuple[int, Any]] = {}  # what tasks have in common, each once with its number
    for task, part in zip(plan.tasks, theta, strict=True):
        sizes: list[Any] = []
        form = encode(part, writer, sizes)
        kind = {"compression": stored_object(task.compression), "view": stored_object(task.view), "theta": form}
        number, _ = kinds.setdefault(to_json(kind, sort_keys=True), (len(kinds), kind))
        tasks.append({"params": list(task.params), "kind": number, "sizes": sizes})
    tied = _ties(network)
    for _, tensor in outside(network, {*plan.shapes, *tied}):
        put_plain(tensor.float() if tensor.is_floating_point() else tensor, writer)
    with torch.no_grad():
        output = copy.deepcopy(network).eval()(about.sample)
    description = {
        "format": FORMAT,
        "architecture": about.architecture,
        "input_shape": list(about.sample.shape[1:]),
        "output_shape": list(output.shape[1:]),
        "num_classes": about.num_classes,
        "classes": about.classes,
        "dataset": about.dataset,
        "data": about.data,
        "preprocessing": about.preprocessing,
        "kinds": [kind for _, kind in kinds.values()],
        "tasks": tasks,
    }
    if tied:
        description[TIED] = tied
    if is_reshaped(network):
        shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        description["channels"] = structure(network) | {"shapes": shapes}
    write_files(folder, description, writer.streams())


def outside(network: nn.Module, others: Collection[str]) -> list[tuple[str, Tensor]]:
    """Return what of a network's state is not among the `others`: what tasks compress, and names besides the first."""
    return [(name, tensor) for name, tensor in network.state_dict().items() if name not in others]


def _ties(network: nn.Module) -> dict[str, str]:
    """Return the first name of every tensor of a network's state that has more than one, by its other names.

    A network anew need not have the same: `Module.to` gives each module a copy of its own of a buffer that several
    share.
    """
    first: dict[tuple[Any, ...], str] = {}
    ties = {}
    for name, tensor in network.state_dict().items():
        own = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if tensor.numel() and own != name:
            ties[name] = own
    return ties
