"""A user's own arrays, from one .npz file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from nncompress.data.files import check_expansion, describe, reason
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import ConfigError, DataError
from nncompress.problem import Dataset, Split

LABELS = 1000
"""Classes that few samples may have; of more there are at most as many as samples for training."""
KEYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = {f"{key}.npy": key for key in KEYS}
"""The members of the file."""
Arrays = dict[str, NDArray[Any]]


def npz(
    *,
    path: str | None = None,
    channels_last: bool = False,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "unit",
    flatten: bool = False,
) -> Dataset:
    """Load the arrays x_train, y_train, x_test, y_test of the file `path`.

    x: (n, ...) of any real type, kept as given: (n, d), (n, channels, length) or (n, channels, h, w); with
    `channels_last` the last axis is moved to the second place. Bytes of shape (n, h, w) are grey images and become
    (n, 1, h, w). `normalise=unit` divides bytes by 255 and leaves other types unchanged. y: (n,) or (n, 1) integers
    from 0; the number of classes is the largest label of both splits plus one. The rest is as in `Preparation`.

    Raises ConfigError when `path` is not given, DataError for an unreadable file or arrays that do not fit.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)
    if not path:
        raise ConfigError(f"dataset=npz needs dataset.path, an .npz file with {', '.join(KEYS)}; found {path!r}.")
    file = Path(path).expanduser()
    arrays = read_arrays(file)
    train, test = read_npz(file, arrays, channels_last=channels_last)
    classes = 1 + max(int(train.y.max()), int(test.y.max()))
    if classes > max(LABELS, len(train)):
        raise DataError(
            f"{file}: labels number the classes from 0 on, found {classes - 1} with {len(train)} samples: number those "
            "that there are."
        )
    maximum = 255.0 if train.x.dtype == torch.uint8 else 1.0
    return prepare(train, test, how, num_classes=classes, name=file.stem, maximum=maximum)


def read_arrays(path: Path) -> Arrays:
    """Read the four arrays as stored, never unpickled. Raises DataError."""
    if not path.is_file():
        raise DataError(f"An .npz file with {', '.join(KEYS)} is required; {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as file:
            members = [member for member in file.infolist() if member.filename in NAMES]
            _check_members(members, path.stat().st_size)
            arrays = {NAMES[member.filename]: _array(file, member) for member in members}
    except Exception as error:  # of whatever kind: zipfile, zlib and NumPy raise a dozen
        raise DataError(
            f"{path} must be an .npz file of plain arrays, but cannot be read ({reason(error)}; {describe(path)}): "
            "write it again with numpy.savez."
        ) from error
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path} must hold the arrays {', '.join(KEYS)}; not found: {', '.join(missing)}.")
    return arrays


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raise ValueError unless each is there once, in a form whose contents are limited by the `size` of the file."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("an array is there twice")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("its members must be stored or deflated")
    check_expansion(sum(member.file_size for member in members), size)


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array, after its header has been compared with its bytes. Raises ValueError where they differ."""
    with file.open(member) as content:
        short = npy.read_magic(content) == (1, 0)
        shape, _, dtype = npy.read_array_header_1_0(content) if short else npy.read_array_header_2_0(content)
        required, there = math.prod(shape) * dtype.itemsize, member.file_size - content.tell()
        if required != there and not dtype.hasobject:
            raise ValueError(f"{member.filename}: {dtype} {shape} requires {required} bytes, found {there}")
        content.seek(0)
        return npy.read_array(content, allow_pickle=False)


def read_npz(path: Path, arrays: Arrays, *, channels_last: bool) -> tuple[Split, Split]:
    """Check both splits and return them. Raises DataError."""
    train, test = (_split(path, arrays, part, channels_last) for part in ("train", "test"))
    if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
        kinds = " and ".join(f"{arrays[key].dtype} {arrays[key].shape}" for key in ("x_train", "x_test"))
        raise DataError(f"{path}: x_train and x_test must have the same type and sample shape; found {kinds}.")
    return train, test


def _split(path: Path, arrays: Arrays, part: str, channels_last: bool) -> Split:
    x = _inputs(path, f"x_{part}", arrays[f"x_{part}"], channels_last)
    y = _labels(path, f"y_{part}", arrays[f"y_{part}"])
    if len(x) != len(y):
        raise DataError(f"{path}: x_{part} and y_{part} must be equally long; found {len(x)} and {len(y)}.")
    return Split(x, y)


def _inputs(path: Path, key: str, array: NDArray[Any], channels_last: bool) -> Tensor:
    if array.dtype.kind not in "buif" or array.ndim < 2 or array.size == 0:
        raise DataError(
            f"{path}: {key} must be real numbers of shape (n, ...), n at least 1; found {array.dtype} {array.shape}."
        )
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            raise DataError(
                f"{path}: {key} must be finite in float32; found {int((~finite).sum())} NaN, infinite or larger values."
            )
    if channels_last and array.ndim > 2:
        array = np.moveaxis(array, -1, 1)
    elif array.ndim == 3 and array.dtype == np.uint8:
        array = array[:, None]
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(path: Path, key: str, array: NDArray[Any]) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "ui" or array.ndim != 1:
        raise DataError(f"{path}: {key} must be integer labels of shape (n,); found {array.dtype} {array.shape}.")
    if array.size and int(array.min()) < 0:
        raise DataError(f"{path}: {key} must hold labels from 0 on; found {int(array.min())}.")
    return torch.from_numpy(array.astype(np.int64))
