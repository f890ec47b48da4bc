"""CIFAR-10 and CIFAR-100, from the official python batches."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from nncompress.data.files import Official, Source, fetch
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
    """50,000 training and 10,000 test colour images (3, 32, 32) of bytes, 10 classes.

    torchvision reads `root`/cifar-10-batches-py, or downloads it when `download`; an official
    `root`/cifar-10-python.tar.gz is used instead of the network. The other options are those of `Preparation`.

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
    """50,000 training and 10,000 test colour images (3, 32, 32) of bytes, 100 (fine) classes.

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
        train, test = _repacked(repacked)
        note = f"re-packed copy {repacked.name}"
    else:
        train, test = _official(CIFAR100, source, download)
    return prepare(train, test, how, num_classes=100, name="cifar100", maximum=255.0, note=note)


def _source(cls: Any, title: str, root: str) -> Source:
    """The files that a torchvision CIFAR class declares, with their md5s."""
    files = {name: Official(md5) for name, md5 in [*cls.train_list, *cls.test_list]}
    files[cls.meta["filename"]] = Official(cls.meta["md5"])
    folder = Path(root).expanduser().absolute()
    return Source(title, folder, folder / cls.base_folder, files, cls.url)


def _official(cls: Any, source: Source, download: bool) -> tuple[Split, Split]:
    for name in source.files:
        if source.path(name).is_file():
            source.check_content(name)
    if source.missing():
        if not download:
            raise source.not_found()
        fetch(source, lambda folder: _download(cls, source, folder))
    return _read(cls, source, train=True), _read(cls, source, train=False)


def _download(cls: Any, source: Source, folder: Path) -> Path:
    archive = source.root / cls.filename
    if archive.is_file():
        shutil.copy(archive, folder)  # torchvision checks its md5, and fetches it if it is not the official one
    cls(str(folder), download=True)
    return folder / str(cls.base_folder)


def _read(cls: Any, source: Source, *, train: bool) -> Split:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of the old form in which the official pickles store a dtype
        raw = cls(str(source.root), train=train)
    return Split(torch.from_numpy(raw.data).permute(0, 3, 1, 2), torch.tensor(raw.targets))


def _repacked(path: Path) -> tuple[Split, Split]:
    arrays = read_arrays(path)
    for key in ("x_train", "x_test"):
        array = arrays[key]
        if array.dtype != "uint8" or array.shape[1:] != (32, 32, 3):
            raise DataError(f"{path}: {key} must be uint8 (n, 32, 32, 3); found {array.dtype} {array.shape}.")
    train, test = read_npz(path, arrays, channels_last=True)
    if max(int(train.y.max()), int(test.y.max())) > 99:
        raise DataError(f"{path}: the labels must lie between 0 and 99.")
    return train, test
