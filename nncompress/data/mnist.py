"""MNIST, from the four IDX files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

from torch import Tensor

from nncompress.data.files import Official, Source, fetch, unpack
from nncompress.data.files import download as download_file
from nncompress.data.prepare import DIGITS, Preparation, prepare
from nncompress.files import hold
from nncompress.problem import Dataset, Split

FILES = {
    "train-images-idx3-ubyte": Official("6bbc9ace898e44ae57da46a324031adb", 47040016),
    "train-labels-idx1-ubyte": Official("a25bea736e30d166cdddb491f175f624", 60008),
    "t10k-images-idx3-ubyte": Official("2646ac647ad5339dbf082846283269ea", 7840016),
    "t10k-labels-idx1-ubyte": Official("27ae3e4e09519cfbb04c329615203637", 10008),
}
ARCHIVES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""The packed files and their md5s."""
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def mnist(
    *,
    root: str,
    download: bool = True,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "unit",
    flatten: bool = False,
) -> Dataset:
    """Load 60,000 training and 10,000 test images (1, 28, 28) of bytes, 10 classes.

    Reads `root`/MNIST/raw/*-ubyte, torchvision's layout; a `.gz` beside a missing file is unpacked, and what is missing
    is downloaded when `download`. Smaller sets in the same format are accepted.
    The other options are those of `Preparation`.

    Raises DataError for missing, truncated or altered files, ConfigError for bad options.
    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)
    folder = Path(root).expanduser().absolute()
    source = Source("MNIST", folder, folder / "MNIST" / "raw", FILES, URL)
    for name in source.missing():
        _gunzip(source, name)
    fetch(source, download, _download)
    train, test = _read(source, "train"), _read(source, "t10k")
    return prepare(train, test, how, num_classes=10, name="mnist", maximum=255.0, classes=DIGITS)


def _download(folder: Path) -> Path:
    for name, official in ARCHIVES.items():
        packed = folder / name
        download_file(URL + name, packed, f"md5:{official}")
        _unpack(packed, packed.with_suffix(""), packed.stem)
    return folder


def _unpack(packed: Path, path: Path, name: str) -> None:
    """Unpack a file that has as many bytes as the official one of this name at the most."""
    with gzip.open(packed) as content:
        unpack(content, path, FILES[name].size)


def _gunzip(source: Source, name: str) -> None:
    """Unpack `name`.gz, if it is there, under another name first, so that a broken one leaves nothing behind."""
    packed, partial = source.path(f"{name}.gz"), source.path(f"{name}.part")
    if not packed.is_file():
        return
    with hold(source.folder, waiting=""):
        try:
            _unpack(packed, partial, name)
            os.replace(partial, source.path(name))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise source.damaged(packed.name, f"not a whole gzip file ({error})") from error
        finally:
            partial.unlink(missing_ok=True)


def _read(source: Source, part: str) -> Split:
    """Read the images (n, 1, h, w) and labels of one part, after its two files have been checked."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images, labels = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    n = _check_idx(source, images, 3)[0]
    _check_idx(source, labels, 1)
    x: Tensor = read_image_file(str(source.path(images)))
    y: Tensor = read_label_file(str(source.path(labels)))
    if len(y) != n:
        raise source.damaged(labels, f"one label for each of the {n} images of {images} is required, found {len(y)}")
    if int(y.max()) > 9:
        raise source.damaged(labels, f"labels from 0 to 9 are required, found {int(y.max())}")
    return Split(x.unsqueeze(1), y)


def _check_idx(source: Source, name: str, dims: int) -> tuple[int, ...]:
    """Return the sizes that an IDX file of bytes declares (big-endian: magic 0x0800 + dims, sizes) and fits."""
    path, header = source.path(name), 4 + 4 * dims
    with open(path, "rb") as file:
        start = file.read(header)
    if len(start) < header or start[:4] != struct.pack(">I", 0x0800 + dims):
        raise source.damaged(name, f"the IDX header 0x{0x0800 + dims:08x} is required, found 0x{start[:4].hex()}")
    sizes = struct.unpack(f">{dims}I", start[4:])
    expected = header + math.prod(sizes)
    actual = path.stat().st_size
    if actual != expected or 0 in sizes:
        shape = " x ".join(str(size) for size in sizes)
        raise source.damaged(name, f"its header ({shape}) requires {expected} bytes, found {actual}")
    source.check_content(name)
    return sizes
