"""MNIST: tiny IDX files."""

from __future__ import annotations

import gzip
import hashlib
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from urllib.request import Request

import numpy as np
import pytest
from cases import case

from nncompress.data import files, har
from nncompress.data import mnist as mnist_module
from nncompress.data.files import Official
from nncompress.data.mnist import mnist
from nncompress.errors import DataError


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist_files(n=5, m=3):
    g = np.random.default_rng(0)
    files = {}
    for part, count in (("train", n), ("t10k", m)):
        files[f"{part}-images-idx3-ubyte"] = idx(g.integers(0, 256, (count, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx(g.integers(0, 10, count))
    return files


@pytest.fixture
def mnist_root(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in mnist_files().items():
        (folder / name).write_bytes(content)
    return tmp_path


def test_mnist_reads_idx_files(mnist_root):
    data = mnist(root=str(mnist_root), download=False, normalise="none")
    assert data.train.x.shape == (5, 1, 28, 28)
    assert data.test.x.shape == (3, 1, 28, 28)
    content = mnist_files()["train-images-idx3-ubyte"]
    assert data.train.x.flatten()[:3].tolist() == list(content[16:19])


def test_mnist_unpacks_gzipped_files(mnist_root):
    plain = mnist_root / "MNIST/raw/t10k-images-idx3-ubyte"
    (plain.parent / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert len(mnist(root=str(mnist_root), download=False).test) == 3
    assert not list(mnist_root.rglob("*.part"))


def test_mnist_names_a_broken_gzip_file_and_leaves_nothing_behind(mnist_root):
    plain = mnist_root / "MNIST/raw/t10k-images-idx3-ubyte"
    (plain.parent / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes())[:-20])
    plain.unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is damaged: not a whole gzip file .*md5"):
        mnist(root=str(mnist_root), download=False)
    assert not plain.exists()
    assert not list(mnist_root.rglob("*.part"))


def test_mnist_names_a_truncated_file_with_its_checksum(mnist_root):
    path = mnist_root / "MNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    known = "6bbc9ace898e44ae57da46a324031adb"
    for cut in (3, 15, 1000):
        path.write_bytes(content[:cut])
        with case(cut=cut):
            with pytest.raises(DataError) as error:
                mnist(root=str(mnist_root))
            for word in (str(path), f"{cut} bytes", md5(path), known, "delete it and run again"):
                assert word in str(error.value)
            assert cut < 1000 or "(5 x 28 x 28) requires 3936 bytes, found 1000" in str(error.value)


def test_mnist_names_a_file_with_another_header_or_too_many_bytes(mnist_root):
    path = mnist_root / "MNIST/raw/t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(b"<htm" + content[4:])
    with pytest.raises(DataError, match="IDX header 0x00000801 is required, found 0x3c68746d"):
        mnist(root=str(mnist_root), download=False)
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="requires 11 bytes, found 12"):
        mnist(root=str(mnist_root), download=False)


def test_mnist_refuses_labels_that_do_not_fit(mnist_root):
    path = mnist_root / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(idx(np.arange(4)))
    with pytest.raises(DataError, match=r"one label for each of the 5 images .* found 4"):
        mnist(root=str(mnist_root), download=False)
    path.write_bytes(idx(np.array([0, 1, 2, 3, 10])))
    with pytest.raises(DataError, match="labels from 0 to 9 are required, found 10"):
        mnist(root=str(mnist_root), download=False)


def test_mnist_names_an_altered_file_of_the_official_size(mnist_root, monkeypatch):
    path = mnist_root / "MNIST/raw/t10k-labels-idx1-ubyte"
    official = Official(md5(path), 11)
    monkeypatch.setitem(mnist_module.FILES, path.name, official)
    assert len(mnist(root=str(mnist_root), download=False).test) == 3
    content = bytearray(path.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"t10k-labels-idx1-ubyte is damaged: its content differs .*{official.md5}"):
        mnist(root=str(mnist_root), download=False)


def test_missing_files_without_download_are_named_with_the_way_to_get_them(mnist_root):
    (mnist_root / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as error:
        mnist(root=str(mnist_root), download=False)
    message = str(error.value)
    assert "MNIST needs t10k-labels-idx1-ubyte, not found in" in message
    assert "train-images" not in message
    for word in (str(mnist_root / "MNIST" / "raw"), "data.download=true", "https://", "$NNCOMPRESS_DATA"):
        assert word in message


@pytest.fixture
def server(served, monkeypatch):
    """Packed files of 7 samples a part where MNIST is downloaded, their md5s declared official."""
    packed = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files(n=7).items()}
    served.update({mnist_module.URL + name: content for name, content in packed.items()})
    official = {name: hashlib.md5(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setattr(mnist_module, "ARCHIVES", official)
    return served


def test_a_failed_download_says_why_and_leaves_nothing_behind(tmp_path, server, capfd):
    for there in (2, 0):  # files that can still be had
        for url in list(server)[there:]:
            del server[url]
        with case(there=there):
            said = r"the download failed \(Name or service not known\), get them from https://"
            with pytest.raises(DataError, match=said):
                mnist(root=str(tmp_path / "data"))
            assert list((tmp_path / "data").iterdir()) == []
            assert capfd.readouterr().err == ""


def test_a_download_of_another_content_is_refused(tmp_path, server):
    server[next(iter(server))] += b"x"
    with pytest.raises(DataError, match=r"the download failed \(https://.* has md5 \w+, \w+ is required\)"):
        mnist(root=str(tmp_path / "data"))
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_fetches_what_is_missing_and_keeps_what_is_there(mnist_root, server, capfd):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (mnist_root / "MNIST/raw" / name).unlink()
    kept = mnist_root / "MNIST/raw/t10k-images-idx3-ubyte"
    before = kept.stat().st_mtime_ns
    (mnist_root / ".download-killed").mkdir()  # what a killed process left
    data = mnist(root=str(mnist_root), download=True)
    assert len(data.train) == 7
    assert len(data.test) == 3
    assert kept.stat().st_mtime_ns == before
    assert [path.name for path in mnist_root.iterdir()] == ["MNIST"]
    assert capfd.readouterr().err == ""


def test_nothing_is_fetched_but_over_https(tmp_path):
    for url in ("http://example.org/x", "file:///etc/passwd", "ftp://example.org/x"):
        with case(url=url):
            with pytest.raises(OSError, match=f"https is required, found {url}"):
                files.download(url, tmp_path / "x", "md5:0")
            with pytest.raises(OSError, match=f"https is required, found {url}"):
                files._Secure().redirect_request(Request("https://example.org"), None, 302, "", {}, url)
            assert not (tmp_path / "x").exists()


def test_every_address_and_checksum_of_a_data_set_is_there():
    from torchvision.datasets import CIFAR10, CIFAR100

    for url in (mnist_module.URL, har.ARCHIVE, CIFAR10.url, CIFAR100.url):
        assert url.startswith("https://")
    assert {len(known) for known in mnist_module.ARCHIVES.values()} == {32}
    assert {len(known) for known in (har.ARCHIVE_SHA256, har.INNER_SHA256)} == {64}
    assert {len(known) for known in (CIFAR10.tgz_md5, CIFAR100.tgz_md5)} == {32}


def test_of_several_that_want_a_download_one_fetches_it(tmp_path, server, monkeypatch):
    fetched = []
    opened = files._open

    def counted(url):
        fetched.append(url)
        time.sleep(0.01)
        return opened(url)

    def wanted(_):
        together.wait()
        return mnist(root=str(tmp_path / "data"))

    together = Barrier(4)
    monkeypatch.setattr(files, "_open", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(wanted, range(4)))
    assert {len(data.train) for data in found} == {7}
    assert len(fetched) == 4


def test_a_data_folder_that_cannot_be_written_is_an_error_of_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the download failed .*Not a directory"):
        mnist(root=str(tmp_path / "file" / "data"))
