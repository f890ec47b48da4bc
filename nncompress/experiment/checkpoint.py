"""Checkpoints: a solver's state as plain tensors and containers, written whole or not at all."""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress import environment
from nncompress.errors import CheckpointError
from nncompress.files import write_bytes
from nncompress.results.shapes import fits

FORMAT = 2
"""The version of what is written; another one is refused."""
ADMITTED = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict")
"""What the pickle of a checkpoint names, besides texts and numbers."""
RUN = {
    "rows": {int}, "check": {int}, "finished": {bool},
    "seconds": {float}, "step_seconds": [{float}], "random": [{Tensor}],
}  # fmt: skip
"""What a run adds to the state of its solver."""


def pack(value: Any) -> Any:
    """Return a value as tensors, numbers, texts, lists and dicts; what a problem determines (a chain) becomes None."""
    if isinstance(value, nn.Module | Optimizer):
        return value.state_dict()
    if isinstance(value, Generator):
        return value.get_state()
    if isinstance(value, tuple | list):
        return [pack(item) for item in value]
    if isinstance(value, Tensor | int | float | str | bool):
        return value
    return None


def unpack(template: Any, packed: Any) -> Any:
    """Rebuild the value that was packed on the pattern of `template`, a freshly initialised state.

    What was not packed stays the template's: the problem determines it.
    """
    if isinstance(template, int | float | str):
        if type(packed) is not type(template):
            raise TypeError(f"{type(template).__name__} is expected, found {type(packed).__name__}")
        return packed
    if isinstance(template, nn.Module | Optimizer):
        template.load_state_dict(packed)
        return template
    if isinstance(template, Generator):
        return template.set_state(packed.cpu())
    if isinstance(template, tuple | list):
        if len(template) != len(packed):
            raise ValueError(f"{len(template)} parts are expected, found {len(packed)}")
        items = [unpack(t, p) for t, p in zip(template, packed, strict=True)]
        return type(template)(*items) if hasattr(template, "_fields") else type(template)(items)
    if packed is None:
        return template
    if isinstance(template, Tensor):
        return packed.to(device=template.device, dtype=template.dtype)
    return packed


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: `path` always holds one that can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = BytesIO()  # torch.save to a file would hide that the disk is full
    torch.save({"format": FORMAT, **content}, packed)
    write_bytes(path, packed.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU, read without unpickling objects.

    Raises:
        CheckpointError: there is none, it is damaged, or another version wrote it.
    """
    if not path.is_file():
        raise CheckpointError(
            f"resuming needs a checkpoint, found none at {path}: the run ended before its first one; start it afresh"
        )
    try:
        _check_bytes(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} is truncated or damaged, found {path.stat().st_size} bytes that torch cannot read "
            f"({type(error).__name__}); start the run afresh"
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} has format {version!r:.80}, this version reads {FORMAT}; start the run afresh"
        )
    return content


def _check_bytes(path: Path) -> None:
    """Raise ValueError for a file of another kind, or with other bytes than were written: torch does not look.

    Of what torch would make of its pickle tensors and dicts alone are admitted.
    """
    with ZipFile(path) as file:
        if any(part.compress_type != ZIP_STORED for part in file.infolist()) or file.testzip() is not None:
            raise ValueError("packed, or changed after it was written")
        (pickled,) = (part for part in file.namelist() if part.endswith("/data.pkl"))
        for opcode, name, _ in pickletools.genops(file.read(pickled)):
            if opcode.name in ("STACK_GLOBAL", "INST") or (
                opcode.name == "GLOBAL" and not ADMITTED.fullmatch(str(name))
            ):
                raise ValueError(f"{name} is none of the parts of a checkpoint")


def load_run(path: Path) -> dict[str, Any]:
    """Return the content of a run's checkpoint as `load` does: `state`, and what `RUN` names.

    Raises:
        CheckpointError: as `load`, or a part is missing or of another kind.
    """
    content = load(path)
    wrong = [key for key in RUN if not fits(content.get(key), RUN[key])]
    wrong += ["state"] if "state" not in content else []
    if not wrong and not all(0 <= each < math.inf for each in (*content["step_seconds"], content["seconds"])):
        wrong = ["seconds"]
    if wrong:
        raise CheckpointError(
            f"the checkpoint {path} must hold what it was written with, found {', '.join(wrong)} missing or damaged; "
            "start the run afresh"
        )
    return content


def restore(template: Any, packed: Any, path: Path) -> Any:
    """Rebuild what a checkpoint holds, as `unpack` does.

    Raises:
        CheckpointError: it belongs to another problem.
    """
    with _fitting(path):
        return unpack(template, packed)


def restore_random(states: list[Tensor], device: torch.device, path: Path) -> None:
    """Set torch's global generators as `environment.restore_random_state` does.

    Raises:
        CheckpointError: what the checkpoint holds is no state of them.
    """
    with _fitting(path):
        environment.restore_random_state(states, device)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"the checkpoint {path} does not fit this network and solver: {error}") from error
