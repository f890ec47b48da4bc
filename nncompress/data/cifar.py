"""CIFAR-10 and CIFAR-100, from the official python batches."""

from __future__ import annotations

import logging
import pickle
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.data.files import Official, Source, checksum, fetch
from nncompress.data.files import download as download_file
from nncompress.data.npz import read_arrays, read_npz
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import DataError
from nncompress.problem import Dataset, Split

log = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Of CIFAR-10, as its file batches.meta names them."""


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
            with open(folder / name, "wb") as file:
                shutil.copyfileobj(content, file)
    return folder


def _read(cls: Any, source: Source, *, train: bool) -> Split:
    """Read the batches of one part, in their order."""
    batches = [_batch(source, name) for name, _ in (cls.train_list if train else cls.test_list)]
    x = torch.cat([images for images, _ in batches])
    return Split(x.reshape(-1, 3, 32, 32), torch.cat([labels for _, labels in batches]))


def _batch(source: Source, name: str) -> tuple[Tensor, Tensor]:
    """Read the images (n, 3072) as bytes and the labels of one file."""
    try:
        with open(source.path(name), "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of the old form in which the official pickles store a dtype
            content = _Arrays(file, encoding="latin1").load()
        labels = torch.tensor(content["labels" if "labels" in content else "fine_labels"])
        return torch.from_numpy(np.ascontiguousarray(content["data"])), labels
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise source.damaged(name, f"a python batch of images and labels is required, found {error}") from error


class _Arrays(pickle.Unpickler):
    """Reads arrays, numbers, texts and containers of them: the format is pickle, but nothing else can be made by it."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray(0).__reduce__()[0]  # wherever this version of NumPy has it
        admitted = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _bytes}
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"{module}.{name}, which is not admitted")
        return admitted[module, name]


def _bytes(text: str, encoding: str) -> bytes:
    """Encode a text as old pickles do to write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode(encoding)


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
