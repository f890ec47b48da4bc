"""The compact network on disk: Θ and the uncompressed parameters in two files, and the network rebuilt from them."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zstandard
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nncompress.artefact.encoding import Reader, Writer, decode, encode, put_plain, take_plain
from nncompress.artefact.objects import CLASS, Missing, located, restored_object, stored_object
from nncompress.compressions.base import Compression
from nncompress.compressions.plan import Plan, Task
from nncompress.compressions.views import View
from nncompress.config.allow import TARGET, check, targets
from nncompress.config.build import build
from nncompress.errors import CheckpointError, ConfigError, one_line
from nncompress.files import replace_bytes
from nncompress.problem import Problem
from nncompress.results.records import STATUS
from nncompress.surgery.channels import is_reshaped
from nncompress.surgery.compact_layers import PLANS, compacted
from nncompress.surgery.removal import reshape, structure
from nncompress.surgery.theta import HeldTheta

if TYPE_CHECKING:
    from nncompress.solvers.base import Observation

FORMAT = 4


MODEL, TENSORS, DESCRIPTION = "model", "model.safetensors", "model.json"


CHECKSUM, TIED = "checksum", "tied"


READ_AT_ONCE = 1 << 20


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
        """The network as its constructor makes it: untrained, of full size."""
        with _described(self.folder):
            return _constructed(self.description).eval()

    def network(self, *, compact: bool = False, plans: Sequence[str] = PLANS) -> nn.Module:
        """The deployed network in evaluation mode, on the CPU, in float32.

        Its layers are those of torch with the weights Δ(Θ). `compact`: layers with a Θ of their own keep that in its
        place and compute by one of `plans` (`surgery.compact_layers`); gradients are off until `requires_grad_` is
        called.
        """
        with _described(self.folder):
            weights = {**self.weights, **self.plan.decompress(self.theta)}
            weights |= {name: weights[first] for name, first in self.description.get(TIED, {}).items()}
            network = _filled(copy.deepcopy(self.template), weights)
        if compact:
            pairs = zip(self.plan.tasks, self.theta, strict=True)
            with torch.device("cpu"):
                thetas = [HeldTheta(task.compression, theta) for task, theta in pairs]
                compacted(network.requires_grad_(False), self.plan, thetas, plans=plans)
                network.requires_grad_(False)
        return network.eval()


def load(
    path: Path | str, *, compact: bool = False, plans: Sequence[str] = PLANS, allow: Sequence[str] = ()
) -> nn.Module:
    """The network that a run deploys, in evaluation mode, on the CPU, in float32: `Artefact.network`.

    path: the folder of a finished run, or the folder `model` in it. allow: the modules, beside this package and torch,
    of which the files may name classes of networks and compressions, such as `my_nets`.

    Raises:
        CheckpointError: naming the file, for what is missing, damaged, edited, or of another version of the format.
        ConfigError: a class is named that is not allowed (`allow.check`).
    """
    return open_artefact(Path(path), allow).network(compact=compact, plans=plans)


def open_artefact(path: Path, allow: Sequence[str] | None = ()) -> Artefact:
    """The compact network in a folder; path, allow and errors as with `load`.

    allow: None takes whatever is named, for what this process has just written.
    """
    folder = _model_folder(Path(path))
    description = _read(folder)
    try:
        streams = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} must be a whole safetensors file: {error}") from error
    if description.get(CHECKSUM) != _checksum(folder, description):
        raise CheckpointError(
            f"{folder / DESCRIPTION} and {TENSORS} must be as they were written, found another checksum: one of them "
            "was edited, damaged or replaced; write them again (train resume=RUN), or take a whole copy"
        )
    if allow is not None:
        kinds = [{TARGET: name} for name in targets(description.get("kinds"), CLASS)]
        named = {"architecture": description.get("architecture"), "kinds": kinds}
        check(named, allow, str(folder / DESCRIPTION))
    with _described(folder):
        return _opened(folder, description, streams)


def save_compact(
    folder: Path,
    problem: Problem,
    observation: Observation,
    architecture: Any,
    network: nn.Module | None = None,
    data: Any = None,
) -> None:
    """Write Θ, its real numbers of 64 bits as of 32, and every uncompressed parameter and buffer, real ones of 32 bits.

    `architecture` is the model's configuration node, `data` that of its data set; `network` what is left of the
    observed one where channels are removed (it is written in its place). Raises CheckpointError for a compression or
    a Θ that no file can hold or no other process can find.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = observation.model if network is None else network
    writer, kinds, tasks = Writer(), _Kinds(), []
    for task, theta in zip(problem.plan.tasks, observation.theta, strict=True):
        sizes: list[Any] = []
        form = encode(theta, writer, sizes)
        kind = kinds.index(
            {"compression": stored_object(task.compression), "view": stored_object(task.view), "theta": form}
        )
        tasks.append({"params": list(task.params), "kind": kind, "sizes": sizes})
    tied = _ties(network)
    for _, tensor in _outside(network, {*problem.plan.shapes, *tied}):
        put_plain(tensor.float() if tensor.is_floating_point() else tensor, writer)
    about = problem.data
    description = {
        "format": FORMAT,
        "architecture": architecture,
        "input_shape": list(about.input_shape),
        "output_shape": _output_shape(network, about.train.x[:1]),
        "num_classes": about.num_classes,
        "classes": about.classes,
        "dataset": about.name,
        "data": data,
        "preprocessing": about.preprocessing,
        "kinds": kinds.found,
        "tasks": tasks,
    }
    if tied:
        description[TIED] = tied
    if is_reshaped(network):
        shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        description["channels"] = structure(network) | {"shapes": shapes}
    _write(folder, description, writer.streams())


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of a compact network: of its two files on the disk, and of both put through gzip and zstd (their defaults).

    Raises CheckpointError where there is none.
    """
    folder = _model_folder(Path(folder))
    gzip, zstd = zlib.compressobj(wbits=31), zstandard.ZstdCompressor().compressobj()
    sizes = {"disk": 0, "gzip": 0, "zstd": 0}
    for part in _parts(folder):
        sizes["disk"] += len(part)
        sizes["gzip"] += len(gzip.compress(part))
        sizes["zstd"] += len(zstd.compress(part))
    sizes["gzip"] += len(gzip.flush())
    sizes["zstd"] += len(zstd.flush())
    return {f"bytes/{name}": size for name, size in sizes.items()}


@contextmanager
def _described(folder: Path) -> Iterator[None]:
    """Within it tensors are made on the CPU, and what goes wrong is a CheckpointError that names the description."""
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


class _Kinds:
    """What tasks have in common, each once."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self._places: dict[str, int] = {}

    def index(self, kind: Any) -> int:
        place = self._places.setdefault(_json(kind, sort_keys=True), len(self.found))
        if place == len(self.found):
            self.found.append(kind)
        return place


def _write(folder: Path, description: dict[str, Any], streams: dict[str, Tensor]) -> None:
    """The tensors first: until the description is there too, the checksum says that the two do not belong together."""
    description = json.loads(_json(description))
    replace_bytes(folder / TENSORS, save(streams))
    signed = _json(description | {CHECKSUM: _checksum(folder, description)}, separators=(",", ":"), ensure_ascii=False)
    replace_bytes(folder / DESCRIPTION, f"{signed}\n".encode())


def _json(value: Any, **settings: Any) -> str:
    """JSON, in which numbers of numpy are those of Python; CheckpointError for what it cannot hold."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise CheckpointError(
            f"a compact network is described by numbers, words and lists of them, found {item}, a "
            f"{type(item).__name__}; give a compression and its Θ such fields, or tensors in Θ"
        )

    return json.dumps(value, default=plain, **settings)


def _checksum(folder: Path, description: Mapping[str, Any]) -> str:
    """SHA-256 of the description without its checksum and of the file of tensors."""
    about = {key: value for key, value in description.items() if key != CHECKSUM}
    digest = hashlib.sha256(_json(about, sort_keys=True).encode())
    for part in _parts(folder, [TENSORS]):
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _parts(folder: Path, names: Sequence[str] = (TENSORS, DESCRIPTION)) -> Iterator[bytes]:
    for name in names:
        try:
            with open(folder / name, "rb") as file:
                while part := file.read(READ_AT_ONCE):
                    yield part
        except OSError as error:
            raise CheckpointError(f"{folder / name} must be there and readable: {error}") from error


def _model_folder(path: Path) -> Path:
    """The folder that holds a compact network: the given one, or `model` in that of a run."""
    folder = next((place for place in (path, path / MODEL) if (place / DESCRIPTION).is_file()), None)
    if folder is not None:
        return folder
    if not path.exists():
        found = "there is no such folder"
    elif (path / STATUS).is_file():
        found = f"this run is {_status(path)} and has none; a run writes it when it is done (train resume={path})"
    else:
        found = f"neither {DESCRIPTION} nor {MODEL}/{DESCRIPTION} is there"
    raise CheckpointError(
        f"a compact network is needed, the folder of a finished run or its {MODEL}/, in {path}: {found}"
    )


def _status(path: Path) -> str:
    """How a run ended; `unknown` where its file does not say."""
    try:
        return str(json.loads((path / STATUS).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, TypeError, KeyError):
        return "unknown"


def _read(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be a whole JSON file: {error}") from error
    if not isinstance(description, dict) or "format" not in description:
        raise CheckpointError(f"{path} must describe a compact network, found no format in it")
    if description["format"] != FORMAT:
        newer = isinstance(description["format"], int) and description["format"] > FORMAT
        remedy = "take a newer nncompress" if newer else "train it again with this version"
        raise CheckpointError(
            f"{path} has format {description['format']}, this version reads format {FORMAT}: {remedy}"
        )
    return description


def _opened(folder: Path, description: Mapping[str, Any], streams: Mapping[str, Tensor]) -> Artefact:
    template = _constructed(description)
    channels = description.get("channels")
    if channels is not None:
        shapes = {name: torch.empty(shape) for name, shape in channels["shapes"].items()}
        reshape(template, shapes, channels)
    reader = Reader(streams)
    tasks, theta = [], []
    for task in description["tasks"]:
        kind, sizes = description["kinds"][task["kind"]], iter(task["sizes"])
        compression, view = restored_object(kind["compression"]), restored_object(kind["view"])
        if not isinstance(compression, Compression) or not isinstance(view, View):
            raise CheckpointError(f"a task is a compression and a view, found {compression} and {view}")
        tasks.append(Task(tuple(task["params"]), view, compression))
        theta.append(decode(kind["theta"], reader, sizes, located))
        if list(sizes):
            raise CheckpointError(f"a Θ has more sizes than tensors and values, of {', '.join(task['params'])}")
    parameters = dict(template.named_parameters())
    plan = Plan(tuple(tasks), {name: parameters[name].shape for task in tasks for name in task.params})
    outside = _outside(template, {*plan.shapes, *description.get(TIED, ())})
    weights = {name: take_plain(tensor.shape, tensor.dtype, reader) for name, tensor in outside}
    reader.end()
    return Artefact(folder, description, plan, tuple(theta), weights, template)


def _constructed(description: Mapping[str, Any]) -> nn.Module:
    """What the architecture names, in float32 on the CPU; the global generator is left as it was."""
    node = OmegaConf.create(description["architecture"])
    with torch.random.fork_rng(devices=[]):
        try:
            made = build(node, input_shape=tuple(description["input_shape"]), num_classes=description["num_classes"])
        except ConfigError as error:
            raise Missing(
                f"the network's class {node.get('_target_')} must be importable and take the described settings: "
                f"{error}; run where it can be imported (its folder on PYTHONPATH, or the current one)"
            ) from error
    if not isinstance(made, nn.Module):
        raise Missing(f"the architecture must give a torch.nn.Module, found {type(made).__name__}")
    return made.float()


def _outside(network: nn.Module, others: Collection[str]) -> list[tuple[str, Tensor]]:
    """What of a network's state is not among the `others`: what tasks compress, and names besides the first."""
    return [(name, tensor) for name, tensor in network.state_dict().items() if name not in others]


def _ties(network: nn.Module) -> dict[str, str]:
    """The first name of every tensor of a network's state that has more than one, by its other names.

    A network anew need not have the same: `Module.to` gives each module a copy of its own of a buffer that several
    share.
    """
    places: dict[tuple[Any, ...], str] = {}
    state = {name: tensor for name, tensor in network.state_dict().items() if tensor.numel()}
    first = {
        name: places.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        for name, tensor in state.items()
    }
    return {name: other for name, other in first.items() if other != name}


@torch.no_grad()
def _filled(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """`network` with these tensors in its state."""
    own = network.state_dict()
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    return network


@torch.no_grad()
def _output_shape(network: nn.Module, x: Tensor) -> list[int]:
    """Of one sample."""
    return list(copy.deepcopy(network).eval()(x).shape[1:])


def samples(artefact: Artefact, count: int, seed: int = 0) -> Tensor:
    """Random inputs (count, *input_shape) of the network, normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *artefact.description["input_shape"], generator=generator)
