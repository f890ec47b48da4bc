"""CIFAR-10 and CIFAR-100, from the official python batches."""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nncompress.data.files import Official, Source, checksum, fetch, reason, unpack
from nncompress.data.files import download as download_file
from nncompress.data.npz import read_arrays, read_npz
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import DataError
from nncompress.problem import Dataset, Split

log = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Of CIFAR-10, as its file batches.meta names them."""
LARGEST = 160_000_000
"""Bytes of an official file at the most: train of CIFAR-100 has 155,249,918."""
ADMITTED = (
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "numpy.dtype", "_codecs.encode",
)  # fmt: skip
"""What pickled arrays of bytes are made with; nothing is made with it here."""
TUPLES = 16
"""Tuples in a batch at the most; the official ones have 6. Python falls over thousands of them inside one another."""


def cifar10(
    *,
    root: str,
    download: bool = True,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "standard",
    flatten: bool = False,
) -> Dataset:
    """Load 50,000 training and 10,000 test colour images (3, 32, 32) of bytes, 10 classes.

    Reads `root`/cifar-10-batches-py, which is fetched when `download`; an official `root`/cifar-10-python.tar.gz is
    used instead of the network. The files are pickles, of which arrays and plain values alone are read. The other
    options are those of `Preparation`.

    Raises DataError for missing or altered files (official md5s), ConfigError for bad options.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)

    from torchvision.datasets import CIFAR10

    train, test = _official(CIFAR10, _source(CIFAR10, "CIFAR-10", root), download)
    return prepare(train, test, how, num_classes=10, name="cifar10", maximum=255.0, classes=CLASSES)


def cifar100(
    *,
    root: str,
    download: bool = True,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "standard",
    flatten: bool = False,
) -> Dataset:
    """Load 50,000 training and 10,000 test colour images (3, 32, 32) of bytes, 100 (fine) classes.

    As `cifar10`, from `root`/cifar-100-python. Where that folder is not complete, a re-packed `root`/cifar100.npz
    (x_train, y_train, x_test, y_test, images uint8 (n, 32, 32, 3)) is read with a warning: its pixels and order need
    not be the official ones, and the preprocessing text says so.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)

    from torchvision.datasets import CIFAR100

    source = _source(CIFAR100, "CIFAR-100", root)
    repacked = source.root / "cifar100.npz"
    note = ""
    if source.missing() and repacked.is_file():
        log.warning("CIFAR-100 is read from %s, a re-packed copy: it may differ from the official files", repacked)
        train, test = _read_repacked(repacked)
        note = f"re-packed copy {repacked.name}"
    else:
        train, test = _official(CIFAR100, source, download)
    return prepare(train, test, how, num_classes=100, name="cifar100", maximum=255.0, note=note)


def _source(cls: Any, title: str, root: str) -> Source:
    """Return the files that a torchvision CIFAR class declares, with their md5s."""
    files = {name: Official(md5) for name, md5 in [*cls.train_list, *cls.test_list]}
    files[cls.meta["filename"]] = Official(cls.meta["md5"])
    folder = Path(root).expanduser().absolute()
    return Source(title, folder, folder / cls.base_folder, files, cls.url)


def _official(cls: Any, source: Source, download: bool) -> tuple[Split, Split]:
    for name in source.files:
        if source.path(name).is_file():
            source.check_content(name)
    fetch(source, download, lambda folder: _download(cls, source, folder))
    return _read(cls, source, train=True), _read(cls, source, train=False)


def _download(cls: Any, source: Source, folder: Path) -> Path:
    """Take the official files out of the archive in the data folder, or fetch it; write no other member."""
    archive = source.root / cls.filename
    if not archive.is_file() or checksum(archive, "md5") != cls.tgz_md5:
        archive = folder / cls.filename
        download_file(cls.url, archive, f"md5:{cls.tgz_md5}")
    with tarfile.open(archive, "r:gz") as packed:
        for name in source.files:
            try:
                content = packed.extractfile(f"{cls.base_folder}/{name}")
            except KeyError:
                content = None
            if content is None:  # a folder or device
                raise OSError(f"the archive holds no file {cls.base_folder}/{name}")
            unpack(content, folder / name, LARGEST)
    return folder


def _read(cls: Any, source: Source, *, train: bool) -> Split:
    """Read the batches of one part, in their order."""
    batches = [_batch(source, name) for name, _ in (cls.train_list if train else cls.test_list)]
    x = torch.cat([images for images, _ in batches])
    return Split(x.reshape(-1, 3, 32, 32), torch.cat([labels for _, labels in batches]))


def _batch(source: Source, name: str) -> tuple[Tensor, Tensor]:
    """Read the images (n, 3072) as bytes and the labels of one file."""
    try:
        content = _unpickled(source.path(name).read_bytes())
        key, num_classes = ("labels", 10) if "labels" in content else ("fine_labels", 100)
        images, labels = _pixels(content["data"]), content[key]
        if len(labels) != len(images) or any(type(y) is not int or not 0 <= y < num_classes for y in labels):
            raise ValueError(f"{len(images)} images, and labels other than so many whole numbers below {num_classes}")
        return images, torch.tensor(labels)
    except Exception as error:  # of whatever kind: a pickle may hold anything
        said = f"a python batch of images and labels is required, found {reason(error)}"
        raise source.damaged(name, said) from error


def _unpickled(content: bytes) -> Any:
    """Read numbers, texts, containers and what arrays are made of, after the lengths have been compared with the bytes.

    Raises ValueError for lengths beyond the end, UnpicklingError for anything else that no batch has.
    """
    place: Any
    tuples = 0
    for count, (opcode, place, _) in enumerate(pickletools.genops(content), start=1):
        tuples += opcode.name.startswith("TUPLE")
        if tuples > TUPLES or (opcode.name.endswith("PUT") and place > count):
            raise pickle.UnpicklingError("more tuples or places than a batch has")
    return _Parts(io.BytesIO(content), encoding="latin1").load()


class _Part:
    """What would be made in unpickling: keeps what of, and makes nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Parts(pickle.Unpickler):
    """The format is pickle, but no function of the file is called."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is not admitted")
        return _Part


def _pixels(array: _Part) -> Tensor:
    """Return the bytes (n, 3072) that a pickled array has, ValueError where it has another form."""
    _, shape, dtype, by_columns, content = array.state
    content = content.args[0] if isinstance(content, _Part) else content  # as old pickles write bytes
    pixels = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(pixels, bytes) or dtype.args[0] not in ("u1", "|u1") or by_columns:
        raise ValueError("an array of another form")
    if shape != (len(pixels) // 3072, 3072):
        raise ValueError(f"an array of {len(pixels)} bytes where its shape requires others")
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(-1, 3072)


def _read_repacked(path: Path) -> tuple[Split, Split]:
    arrays = read_arrays(path)
    for key in ("x_train", "x_test"):
        array = arrays[key]
        if array.dtype != "uint8" or array.shape[1:] != (32, 32, 3):
            raise DataError(f"{path}: {key} must be uint8 (n, 32, 32, 3); found {array.dtype} {array.shape}.")
    train, test = read_npz(path, arrays, channels_last=True)
    if max(int(train.y.max()), int(test.y.max())) > 99:
        raise DataError(f"{path}: the labels must lie between 0 and 99.")
    return train, test
