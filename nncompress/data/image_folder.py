"""A user's own images, one folder per class."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nncompress.data.files import check_expansion, describe, reason
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import ConfigError, DataError
from nncompress.problem import Dataset, Split

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What files are read as, whatever their names: other formats that Pillow knows start programs (EPS)."""
TILE_WIDTH, TILE_LENGTH = 322, 323
"""Tags of a TIFF."""


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
    Grey values of 16 bits are divided by 257. The other options are those of `Preparation`. The whole set is held in
    memory.

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
    files = [Path(file) for file, _ in images.samples]
    height, width = shape if shape and resize else _common_size(files, shape)
    x = torch.empty((len(files), height, width, 3), dtype=torch.uint8)
    for row, file in enumerate(files):
        x[row] = torch.from_numpy(_pixels(file, height, width))
    return Split(x.permute(0, 3, 1, 2), torch.tensor(images.targets))


def _common_size(files: Sequence[Path], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the (height, width) of all images, `shape` if that is given, from their headers alone."""
    size = 0
    for file in files:
        with _opened(file) as image:
            height, width = image.height, image.width
        shape = shape or (height, width)
        if (height, width) != shape:
            raise DataError(
                f"Images of one size are required; {file} has {height} x {width} pixels where "
                f"{shape[0]} x {shape[1]} are expected: set dataset.size to resize them all."
            )
        size += file.stat().st_size
    try:
        check_expansion(3 * height * width * len(files), size)
    except ValueError as error:
        raise DataError(
            f"The images beside {file} are too large ({error}): set dataset.size to resize them."
        ) from error
    return height, width


def _pixels(file: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Decode one image into RGB bytes (h, w, 3)."""
    from PIL import Image

    with _opened(file) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"its mode {image.mode} has no largest value, 8 or 16 bits are required")
        image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.array(image)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open an image whose pixels are in proportion to its bytes. Raises DataError, for what fails inside as well."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not file.is_file():
            raise ValueError("a file is required")
        content = file.read_bytes()  # what Pillow is asked to read beyond their end takes no memory
        _check_pixels(_webp_size(content), len(content))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_pixels(image.size, len(content))
                tags = getattr(image, "tag_v2", {})  # the tiles of a TIFF may be larger than its image
                _check_pixels((int(tags.get(TILE_WIDTH, 1)), int(tags.get(TILE_LENGTH, 1))), len(content))
                yield image
    except Exception as error:  # of whatever kind: each of Pillow's formats has its own
        unknown = isinstance(error, UnidentifiedImageError)
        said = f"none of {', '.join(FORMATS)}" if unknown else reason(error)
        raise DataError(
            f"{file} cannot be read as an image ({said}; {describe(file)}): replace or delete it."
        ) from error


def _check_pixels(sides: tuple[int, int], size: int) -> None:
    """Raise ValueError for an image without pixels, or with more than a file of `size` bytes may have."""
    if 0 in sides:
        raise ValueError("it has no pixels")
    check_expansion(3 * sides[0] * sides[1], size)


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a WebP file, whose memory Pillow takes before they can be asked for; else (1, 1)."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return 1, 1
    kind, number = content[12:16], int.from_bytes
    if kind == b"VP8X":
        return 1 + number(content[24:27], "little"), 1 + number(content[27:30], "little")
    if kind == b"VP8L":
        bits = number(content[21:25], "little")
        return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    return number(content[26:28], "little") % 2**14, number(content[28:30], "little") % 2**14
