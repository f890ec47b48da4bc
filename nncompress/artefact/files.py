"""The two files of a compact network: written, read and checked, and their bytes counted."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nncompress.errors import CheckpointError
from nncompress.files import parse_json, read_json, write_bytes, write_text
from nncompress.results.records import STATUS

FORMAT = 5
MODEL, TENSORS, DESCRIPTION = "model", "model.safetensors", "model.json"
CHECKSUM = "checksum"
FLOAT, NOT_FINITE = "float", ("inf", "-inf", "nan")
READ_AT_ONCE = 1 << 20


def write_files(folder: Path, description: dict[str, Any], streams: dict[str, Tensor]) -> None:
    """Write the tensors first: until the description is there too, the checksum says that the two do not fit."""
    description = spell(json.loads(to_json(description)))
    write_bytes(folder / TENSORS, save(streams))
    signed = description | {CHECKSUM: checksum(folder, description)}
    write_text(folder / DESCRIPTION, f"{to_json(signed, separators=(',', ':'), ensure_ascii=False)}\n")


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the streams of numbers. Raises CheckpointError for what is damaged or edited."""
    description = _description(folder)
    try:
        if not (folder / TENSORS).is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        streams = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} must be a whole safetensors file: {error}") from error
    if description.get(CHECKSUM) != checksum(folder, description):
        raise CheckpointError(
            f"{folder / DESCRIPTION} and {TENSORS} must be as they were written, found another checksum: one of them "
            "was edited, damaged or replaced; write them again (train resume=RUN), or take a whole copy"
        )
    return unspell(description), streams


def model_folder(path: Path) -> Path:
    """Return the folder that holds a compact network: the given one, or `model` in that of a run."""
    for folder in (path, path / MODEL):
        if (folder / DESCRIPTION).is_file():
            return folder
    if not path.exists():
        reason = "there is no such folder"
    elif (path / STATUS).is_file():
        status = (read_json(path / STATUS) or {}).get("status", "unknown")
        reason = f"this run is {status} and has none; a run writes it when it is done (train resume={path})"
    else:
        reason = f"neither {DESCRIPTION} nor {MODEL}/{DESCRIPTION} is there"
    raise CheckpointError(
        f"a compact network is needed, the folder of a finished run or its {MODEL}/, in {path}: {reason}"
    )


def stored_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of both files on the disk, and of both put through gzip and zstd (their defaults).

    Raises:
        CheckpointError: there is no compact network.
    """
    folder = model_folder(Path(folder))
    gzip, zstd = zlib.compressobj(wbits=31), zstandard.ZstdCompressor().compressobj()
    sizes = {"disk": 0, "gzip": 0, "zstd": 0}
    for part in _parts(folder, (TENSORS, DESCRIPTION)):
        sizes["disk"] += len(part)
        sizes["gzip"] += len(gzip.compress(part))
        sizes["zstd"] += len(zstd.compress(part))
    sizes["gzip"] += len(gzip.flush())
    sizes["zstd"] += len(zstd.flush())
    return {f"bytes/{name}": size for name, size in sizes.items()}


def checksum(folder: Path, description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the description without its checksum and of the file of tensors."""
    unsigned = {key: value for key, value in description.items() if key != CHECKSUM}
    digest = hashlib.sha256(to_json(unsigned, sort_keys=True).encode())
    for part in _parts(folder, (TENSORS,)):
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def to_json(value: Any, **settings: Any) -> str:
    """Return JSON, in which numbers of numpy are those of Python. Raises CheckpointError for what it cannot hold."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise CheckpointError(
            f"a compact network is described by numbers, words and lists of them, found {item}, a "
            f"{type(item).__name__}; give a compression and its Θ such fields, or tensors in Θ"
        )

    return json.dumps(value, default=plain, **settings)


def spell(value: Any) -> Any:
    """Return the containers with `{"float": "inf"}` for an infinite number and the like, of which JSON has none."""
    if isinstance(value, dict):
        return {key: spell(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spell(item) for item in value]
    return {FLOAT: str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def unspell(value: Any) -> Any:
    """Return what `spell` was given."""
    if isinstance(value, dict):
        number = value.get(FLOAT)
        return float(number) if number in NOT_FINITE else {key: unspell(item) for key, item in value.items()}
    return [unspell(item) for item in value] if isinstance(value, list) else value


def _description(folder: Path) -> dict[str, Any]:
    """Read `model.json`, of this version of the format."""
    path = folder / DESCRIPTION
    try:
        description = parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} must be there and readable: {error}") from error
    if not isinstance(description, dict) or "format" not in description:
        raise CheckpointError(
            f"{path} must be a whole JSON file that describes a compact network, found no format in it; take a whole "
            "copy, or train it again"
        )
    version = description["format"]
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        remedy = "take a newer nncompress" if newer else "train it again with this version"
        raise CheckpointError(f"{path} has format {version}, this version reads format {FORMAT}: {remedy}")
    return description


def _parts(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    for name in names:
        try:
            with open(folder / name, "rb") as file:
                while part := file.read(READ_AT_ONCE):
                    yield part
        except OSError as error:
            raise CheckpointError(f"{folder / name} must be there and readable: {error}") from error
