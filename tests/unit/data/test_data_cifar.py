"""CIFAR: tiny python batches."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import case

from nncompress.data import cifar
from nncompress.data.cifar import cifar10, cifar100
from nncompress.errors import DataError


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(monkeypatch, root, cls, label_key, classes):
    """Official python batches of 4 images each, their md5s declared official."""
    g = np.random.default_rng(0)
    folder = root / cls.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, md5(folder / name)]

    def batch(name):
        pixels = g.integers(0, 256, (4, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, label_key: g.integers(0, classes, 4).tolist()})

    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(cls, attribute, [batch(name) for name, _ in getattr(cls, attribute)])
    name = cls.meta["filename"]
    meta = write(name, {cls.meta["key"]: [str(c) for c in range(classes)]})
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": meta[1]})
    return folder


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    write_cifar(monkeypatch, tmp_path, CIFAR10, "labels", 10)
    return tmp_path


def test_cifar10_reads_the_python_batches_channels_first(cifar_root):
    data = cifar10(root=str(cifar_root), download=False, normalise="none")
    assert data.train.x.shape == (20, 3, 32, 32)
    assert data.test.x.shape == (4, 3, 32, 32)
    assert data.num_classes == 10
    with open(cifar_root / "cifar-10-batches-py/data_batch_1", "rb") as file:
        batch = pickle.load(file)
    assert torch.equal(data.train.x[0].flatten(), torch.from_numpy(batch["data"][0]).float())
    assert data.train.y[:4].tolist() == batch["labels"]


def test_cifar10_names_the_file_whose_checksum_differs(cifar_root):
    path = cifar_root / "cifar-10-batches-py/data_batch_3"
    official, content = md5(path), path.read_bytes()
    for damaged in (content[:-50], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        with case(size=len(damaged)):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match="data_batch_3 is damaged: its content differs") as error:
                cifar10(root=str(cifar_root))
            assert official in str(error.value)
            assert md5(path) in str(error.value)


def test_cifar10_names_the_missing_files(cifar_root):
    (cifar_root / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(
        DataError, match=r"CIFAR-10 needs test_batch, not found in .*cifar-10-batches-py: set data.download"
    ):
        cifar10(root=str(cifar_root), download=False)


def test_a_cifar10_download_without_network_says_so(tmp_path, served):
    with pytest.raises(DataError, match=r"the download failed \(Name or service not known\)"):
        cifar10(root=str(tmp_path))


def packed(root, extra=()):
    """The archive of the batches below a folder, with more members before them."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
        for path in sorted(root.rglob("*")):
            archive.add(path, path.relative_to(root).as_posix(), recursive=False)
    return content.getvalue()


def member(name, **settings):
    """What may be in an archive to do harm."""
    found = tarfile.TarInfo(name)
    found.size = 0 if settings else 3
    for key, value in settings.items():
        setattr(found, key, value)
    return found


def test_an_archive_of_cifar10_is_checked_and_leaves_its_official_files_alone(cifar_root, monkeypatch, served):
    from torchvision.datasets import CIFAR10

    outside = cifar_root / "outside"
    outside.mkdir()
    evil = [
        member("../evil"),
        member(str(outside / "evil")),
        member("cifar-10-batches-py/link", type=tarfile.SYMTYPE, linkname=str(outside)),
        member("cifar-10-batches-py/link/evil"),
        member("cifar-10-batches-py/more"),
    ]
    (cifar_root / "server").mkdir()
    (cifar_root / "cifar-10-batches-py").rename(cifar_root / "server/cifar-10-batches-py")
    archive = packed(cifar_root / "server", evil)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    for local in (False, True):
        with case(local=local):
            root = cifar_root / f"data{local}"
            root.mkdir()
            served.clear()
            if local:
                (root / CIFAR10.filename).write_bytes(archive)
            else:
                served[CIFAR10.url] = archive
            data = cifar10(root=str(root), normalise="none")
            assert len(data.train) == 20
            names = {path.name for path in (root / "cifar-10-batches-py").iterdir()}
            assert names == {*(name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]), "batches.meta"}
            left = {"cifar-10-batches-py", *([CIFAR10.filename] if local else [])}
            assert {path.name for path in root.iterdir()} == left
            assert not list(cifar_root.rglob("evil"))


def test_an_archive_of_cifar10_with_another_checksum_is_refused(tmp_path, served):
    from torchvision.datasets import CIFAR10

    served[CIFAR10.url] = b"something else"
    with pytest.raises(DataError, match=r"the download failed \(.* has md5 \w+, \w+ is required\)"):
        cifar10(root=str(tmp_path / "data"))
    assert list((tmp_path / "data").iterdir()) == []


def test_a_member_larger_than_every_official_file_is_not_unpacked(cifar_root, monkeypatch):
    from torchvision.datasets import CIFAR10

    (cifar_root / CIFAR10.filename).write_bytes(packed(cifar_root))
    (cifar_root / "cifar-10-batches-py/data_batch_2").unlink()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(cifar_root / CIFAR10.filename))
    monkeypatch.setattr(cifar, "LARGEST", 1000)
    with pytest.raises(
        DataError, match=r"the download failed \(the official file ends after 1,000 bytes, found more\)"
    ):
        cifar10(root=str(cifar_root))
    assert not (cifar_root / "cifar-10-batches-py/data_batch_2").exists()


class Struck:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("struck",)


def test_a_batch_with_more_than_arrays_in_it_is_refused_and_runs_nothing(cifar_root, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.chdir(cifar_root)
    path = cifar_root / "cifar-10-batches-py/data_batch_2"
    official = CIFAR10.train_list
    bad = [
        {"data": Struck(), "labels": [0]},
        [Struck()],
        {"data": np.zeros((1, 3072), np.uint8), "labels": [Path("x")]},
        {"data": np.zeros((1, 3072), np.uint8)},
        {"data": "words", "labels": [0]},
        3,
    ]
    for number, content in enumerate(bad):
        with case(number=number):
            path.write_bytes(pickle.dumps(content))
            listed = [[name, md5(path) if name == path.name else known] for name, known in official]
            monkeypatch.setattr(CIFAR10, "train_list", listed)
            said = "data_batch_2 is damaged: a python batch of images and labels is required"
            with pytest.raises(DataError, match=said):
                cifar10(root=str(cifar_root), download=False)
            assert not Path("struck").exists()


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    write_cifar(monkeypatch, tmp_path, CIFAR100, "fine_labels", 100)
    data = cifar100(root=str(tmp_path), download=False)
    assert data.train.x.shape == (4, 3, 32, 32)
    assert data.num_classes == 100
    assert data.preprocessing.startswith("standard: mean 0.")


def arrays(n=6, m=4, shape=(32, 32, 3), classes=3, dtype=np.uint8):
    g = np.random.default_rng(0)
    return {
        "x_train": g.integers(0, 256, (n, *shape)).astype(dtype),
        "y_train": np.arange(n) % classes,
        "x_test": g.integers(0, 256, (m, *shape)).astype(dtype),
        "y_test": np.arange(m) % classes,
    }


def test_a_repacked_cifar100_is_read_with_a_warning_and_recorded(tmp_path, caplog):
    np.savez(tmp_path / "cifar100.npz", **arrays())
    with caplog.at_level(logging.WARNING):
        data = cifar100(root=str(tmp_path), normalise="none")
    assert "re-packed copy" in caplog.text
    assert data.preprocessing == "re-packed copy cifar100.npz; none"
    assert data.train.x.shape == (6, 3, 32, 32)
    assert data.num_classes == 100
    assert data.train.x[0, 2, 4, 5] == arrays()["x_train"][0, 4, 5, 2]


def test_a_repacked_cifar100_of_another_form_is_refused(tmp_path):
    bad = [{"shape": (3, 32, 32)}, {"dtype": np.float32}, {"classes": 3, "y_test": [100] * 4}]
    for change in bad:
        with case(change=change):
            labels = {key: value for key, value in change.items() if key.startswith("y_")}
            form = {key: value for key, value in change.items() if key not in labels}
            np.savez(tmp_path / "cifar100.npz", **{**arrays(**form), **labels})
            with pytest.raises(DataError, match=r"cifar100.npz"):
                cifar100(root=str(tmp_path))
