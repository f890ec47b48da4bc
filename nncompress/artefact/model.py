"""Read a compact network: Θ and the uncompressed parameters from two files, and the network rebuilt from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from nncompress.artefact.encoding import Reader, decode, take_plain
from nncompress.artefact.files import DESCRIPTION, TENSORS, model_folder, read_files
from nncompress.artefact.limits import Limit, TooLarge
from nncompress.artefact.objects import CLASS, KINDS, Missing, find_class, restored_object
from nncompress.artefact.save import TIED, outside
from nncompress.compressions.base import Compression, map_leaves
from nncompress.compressions.plan import Plan, Task
from nncompress.compressions.views import View
from nncompress.config.allow import TARGET, check, is_offered, targets
from nncompress.config.build import build
from nncompress.errors import CheckpointError, ConfigError, one_line
from nncompress.surgery.compact_layers import WAYS, replace_layers
from nncompress.surgery.removal import reshape
from nncompress.surgery.theta import HeldTheta

SAMPLES = 1 << 30
"""Bytes of random inputs that small files may ask for."""


@dataclass(frozen=True)
class Artefact:
    """What is in a folder with a compact network: its description, the plan and Θ, and what no task compresses.

    `description` has the keys of `model.json`; `weights` are named as in the network's state.
    """

    folder: Path
    description: Mapping[str, Any]
    plan: Plan
    theta: tuple[Any, ...]
    weights: Mapping[str, Tensor]
    template: nn.Module

    def dense(self) -> nn.Module:
        """Return the network as its constructor makes it: untrained, of full size."""
        with _naming(self.folder):
            return _dense(self.description).eval()

    @torch.no_grad()
    def network(self, *, compact: bool = False, ways: Sequence[str] = WAYS) -> nn.Module:
        """Return the deployed network in evaluation mode, on the CPU, in float32.

        Its layers are those of torch with the weights Δ(Θ). `compact`: layers with a Θ of their own keep that in its
        place and compute as their compression says or in one of the `ways` (`surgery.compact_layers`); gradients are
        off until `requires_grad_` is called.
        """
        with _naming(self.folder):
            weights = {**self.weights, **self.plan.decompress(self.theta)}
            weights |= {name: weights[first] for name, first in self.description.get(TIED, {}).items()}
            network = copy.deepcopy(self.template)
            state = network.state_dict()
            for name, tensor in weights.items():
                state[name].copy_(tensor)
        if compact:
            with torch.device("cpu"):
                pairs = zip(self.plan.tasks, self.theta, strict=True)
                replace_layers(
                    network, self.plan, [HeldTheta(task.compression, theta) for task, theta in pairs], ways=ways
                )
            network.requires_grad_(False)
        return network.eval()

    def samples(self, count: int, seed: int = 0) -> Tensor:
        """Return random inputs (count, *input_shape) of the network, normally distributed.

        Raises:
            CheckpointError: they take more than 1 GiB, and more than the network may.
        """
        most = max(_limit(self.folder).bytes, SAMPLES)
        wanted = 4 * count * math.prod(self.description["input_shape"])
        if wanted > most:
            raise CheckpointError(
                f"{self.folder / DESCRIPTION} describes inputs of which {count} take {wanted:,} bytes, at most "
                f"{most:,} are made for files of that size; give smaller batch_sizes"
            )
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.description["input_shape"], generator=generator)


def load(
    path: Path | str, *, compact: bool = False, ways: Sequence[str] = WAYS, allow: Sequence[str] = ()
) -> nn.Module:
    """Return the network that a run deploys, in evaluation mode, on the CPU, in float32: `Artefact.network`.

    path: the folder of a finished run, or the folder `model` in it. allow: the modules, beside this package and torch,
    of which the files may name classes of networks and compressions, such as `my_nets`.

    Raises:
        CheckpointError: naming the file, for what is missing, damaged, edited, or of another version of the format.
        ConfigError: a class is named that is not allowed (`allow.check`).
    """
    return open_artefact(Path(path), allow).network(compact=compact, ways=ways)


def open_artefact(path: Path, allow: Sequence[str] | None = ()) -> Artefact:
    """Read the compact network in a folder; path, allow and errors as with `load`.

    allow: None takes whatever is named, for what this process has just written.
    """
    folder = model_folder(Path(path))
    description, streams = read_files(folder)
    architecture, kinds = description.get("architecture"), targets(description.get("kinds"), CLASS)
    if not isinstance(architecture, dict):  # a text would be read as one
        raise CheckpointError(
            f"{folder / DESCRIPTION} must hold the node of an architecture, found {architecture!r:.80}"
        )
    if allow is not None:
        dotted = [{TARGET: name} for name in kinds if name not in KINDS]
        check({"model": architecture, "kinds": dotted}, allow, str(folder / DESCRIPTION))
    with _naming(folder):
        sizes = [*description["input_shape"], description["num_classes"]]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise CheckpointError(f"an input has sizes and an output classes, whole numbers from 1 on, found {sizes}")
        limit = _limit(folder)
        try:
            with limit.on_meta():
                outline = _template(description)
        except Exception as error:
            if isinstance(error, TooLarge) or all(is_offered(name, "model") for name in targets(architecture)):
                raise
            outline = _template(description)  # the user's own constructor may need numbers, which `meta` has not
        limit.check([*outline.state_dict().values(), torch.empty(description["input_shape"], device="meta")])
        artefact = _artefact(folder, description, streams, outline, limit, trusted=allow is None)
        return replace(artefact, template=_template(description))


def _limit(folder: Path) -> Limit:
    """Return what the two files in a folder may become."""
    return Limit(sum((folder / name).stat().st_size for name in (DESCRIPTION, TENSORS)))


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Make tensors on the CPU, and of whatever goes wrong a CheckpointError that names the description."""
    try:
        with torch.device("cpu"):
            yield
    except CheckpointError as error:
        raise CheckpointError(f"{folder / DESCRIPTION} must describe what {TENSORS} holds: {error}") from error
    except Missing as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {error}") from error
    except Exception as error:  # what it names may raise anything
        raise CheckpointError(
            f"{folder / DESCRIPTION} must describe a network that fits {TENSORS}, found {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def _artefact(
    folder: Path,
    description: Mapping[str, Any],
    streams: Mapping[str, Tensor],
    outline: nn.Module,
    limit: Limit,
    *,
    trusted: bool,
) -> Artefact:
    """Return what the description and the streams of numbers amount to.

    Args:
        outline: the network, of which the names and shapes are read.
        trusted: Θ is taken to have the shapes of its weights.
    """
    reader = Reader(streams, blank=limit.bytes // 8)
    parameters = dict(outline.named_parameters())
    tasks, theta, taken = [], [], list[str]()
    for about in description["tasks"]:
        kind, sizes = description["kinds"][about["kind"]], iter(about["sizes"])
        compression, view = restored_object(kind["compression"]), restored_object(kind["view"])
        if not isinstance(compression, Compression) or not isinstance(view, View):
            raise CheckpointError(f"a task is a compression and a view, found {compression} and {view}")
        taken += about["params"]
        if len(taken) > len(set(taken)):
            raise CheckpointError(f"a weight belongs to one task, found {', '.join(about['params'])} in another too")
        task, part = Task(tuple(about["params"]), view, compression), decode(kind["theta"], reader, sizes, find_class)
        if list(sizes):
            raise CheckpointError(f"a Θ has more sizes than tensors and values, of {', '.join(task.params)}")
        if not trusted and set(targets(kind, CLASS)) <= set(KINDS):  # what is the user's own need not work on `meta`
            _check_shapes(task, part, [parameters[name].shape for name in task.params], limit)
        tasks.append(task)
        theta.append(part)
    plan = Plan(tuple(tasks), {name: parameters[name].shape for task in tasks for name in task.params})
    uncompressed = outside(outline, {*plan.shapes, *description.get(TIED, ())})
    weights = {name: take_plain(tensor.shape, tensor.dtype, reader) for name, tensor in uncompressed}
    reader.end()
    return Artefact(folder, description, plan, tuple(theta), weights, outline)


def _check_shapes(task: Task, theta: Any, shapes: Sequence[torch.Size], limit: Limit) -> None:
    """Raise CheckpointError unless Θ decompresses to weights of these shapes; nothing is computed."""
    with limit.on_meta():
        joined = task.compression.decompress(map_leaves(theta, Tensor, lambda tensor: tensor.to("meta")))
        found = [tensor.shape for tensor in task.view.split(joined, shapes)]
    if found != list(shapes):
        names, wrong = ", ".join(task.params), " ".join(str([*shape]) for shape in found)
        raise CheckpointError(f"a Θ decompresses to the shapes of its weights, found {wrong} for {names}")


def _template(description: Mapping[str, Any]) -> nn.Module:
    """Make the network without the channels that were taken out, in float32; the global generator is left as it was."""
    model = _dense(description)
    channels = description.get("channels")
    if channels is not None:
        shapes = {name: torch.empty(shape, device="meta") for name, shape in channels["shapes"].items()}
        reshape(model, shapes, channels)
    return model


def _dense(description: Mapping[str, Any]) -> nn.Module:
    """Make what the architecture names, in float32."""
    node = OmegaConf.create(description["architecture"])
    with torch.random.fork_rng(devices=[]):
        try:
            model = build(node, input_shape=tuple(description["input_shape"]), num_classes=description["num_classes"])
        except ConfigError as error:
            raise Missing(
                f"the network's class {node.get('_target_')} must be importable and take the described settings: "
                f"{error}; run where it can be imported (its folder on PYTHONPATH, or the current one)"
            ) from error
    if not isinstance(model, nn.Module):
        raise Missing(f"the architecture must give a torch.nn.Module, found {type(model).__name__}")
    return model.float()
