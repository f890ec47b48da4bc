"""A user's own images, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nncompress.data.files import describe
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import ConfigError, DataError
from nncompress.problem import Dataset, Split


def image_folder(
    *,
    path: str | None = None,
    size: int | Sequence[int] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "standard",
    flatten: bool = False,
) -> Dataset:
    """Load the images `path`/train/<class>/* and `path`/test/<class>/*, decoded once as RGB bytes (3, h, w).

    Classes are numbered in alphabetical order; both parts must have the same ones. size: None keeps the images, which
    must then all be as large; an integer or (height, width) resizes each of them (bilinear, the aspect is not kept).
    The other options are those of `Preparation`. The whole set is held in memory.

    Raises ConfigError when `path` is not given or `size` is bad, DataError for missing folders or unreadable images.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)
    if not path:
        raise ConfigError(
            f"dataset=image_folder needs dataset.path, a folder with train/<class>/ and test/<class>/; found {path!r}."
        )
    shape = None if size is None else _height_width(size)
    folder = Path(path).expanduser()
    train, test = _list(folder / "train"), _list(folder / "test")
    if train.classes != test.classes:
        raise DataError(
            f"{folder}: train and test must have the same class folders; found {', '.join(train.classes)} "
            f"and {', '.join(test.classes)}."
        )
    train_split = _decode(train, shape, resize=shape is not None)
    test_split = _decode(test, shape or tuple(train_split.x.shape[2:]), resize=shape is not None)
    return prepare(
        train_split, test_split, how,
        num_classes=len(train.classes), name=folder.name, maximum=255.0, classes=train.classes,
    )  # fmt: skip


def _height_width(size: int | Sequence[int]) -> tuple[int, int]:
    values = [size, size] if isinstance(size, int) else [] if isinstance(size, str) else list(size)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
        raise ConfigError(f"dataset.size must be null, a positive integer or [height, width]; found {size!r}.")
    return values[0], values[1]


def _list(folder: Path) -> Any:
    """List the images of one part, as torchvision does."""
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder))
    except OSError as error:
        raise DataError(f"One folder of images for each class is required in {folder}; found: {error}") from error


def _decode(images: Any, shape: tuple[int, ...] | None, *, resize: bool) -> Split:
    """Decode all images into one tensor (n, 3, h, w) of bytes; without `shape`, that of the first one."""
    files = [file for file, _ in images.samples]
    height, width = shape or _pixels(files[0], None).shape[:2]
    x = torch.empty((len(files), height, width, 3), dtype=torch.uint8)
    for row, file in enumerate(files):
        pixels = _pixels(file, (height, width) if resize else None)
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"Images of one size are required; {file} has {pixels.shape[0]} x {pixels.shape[1]} pixels where "
                f"{height} x {width} are expected: set dataset.size to resize them all."
            )
        x[row] = torch.from_numpy(pixels)
    return Split(x.permute(0, 3, 1, 2), torch.tensor(images.targets))


def _pixels(file: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Decode one image into RGB bytes (h, w, 3)."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            decoded = image.convert("RGB")
        if size is not None:
            decoded = decoded.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.array(decoded)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{file} is not a whole image ({error}; {describe(Path(file))}): replace or delete it."
        ) from error
