"""UCI HAR: tiny official tables."""

from __future__ import annotations

import hashlib
import stat
import zipfile

import numpy as np
import pytest
from cases import case

from nncompress.data import har as har_module
from nncompress.data.har import har
from nncompress.errors import ConfigError, DataError


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def table(rows):
    return b"".join(b" ".join(b"%16.7e" % value for value in row) + b"\r\n" for row in rows)


def har_files():
    """Official tables of a few rows: persons 1, 3 (training) and 2 (test), two windows each of classes 1 and 6."""
    g = np.random.default_rng(0)
    files = {}
    for part, people in (("train", [1, 1, 3, 3]), ("test", [2, 2])):
        n = len(people)
        files[f"{part}/X_{part}.txt"] = table(g.uniform(-1, 1, (n, 561)))
        files[f"{part}/y_{part}.txt"] = b"".join(b"%d\n" % (1 + 5 * (i % 2)) for i in range(n))
        files[f"{part}/subject_{part}.txt"] = b"".join(b"%d\n" % person for person in people)
    return files


@pytest.fixture
def har_root(tmp_path):
    for name, content in har_files().items():
        path = tmp_path / "UCI HAR Dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_har_reads_the_official_split(har_root):
    data = har(root=str(har_root), download=False)
    assert data.train.x.shape == (4, 561)
    assert data.test.x.shape == (2, 561)
    assert data.num_classes == 6
    assert data.train.y.tolist() == [0, 5, 0, 5]
    assert data.preprocessing == "none"
    first = np.array(har_files()["train/X_train.txt"].split()[:561], dtype=np.float32)
    assert data.train.x[0].tolist() == first.tolist()


def test_har_splits_by_person_over_both_parts_when_both_are_there(har_root):
    data = har(root=str(har_root), download=False, test_subjects=[2, 3])
    assert len(data.train) == 2
    assert len(data.test) == 4
    assert data.preprocessing == "held-out subjects 2 3 of the train and test part; none"


def test_har_splits_the_training_part_by_person_when_it_is_alone(har_root):
    (har_root / "UCI HAR Dataset/test/X_test.txt").unlink()
    data = har(root=str(har_root), test_subjects=[3])
    assert len(data.train) == 2
    assert len(data.test) == 2
    assert data.preprocessing == "held-out subjects 3 of the train part; none"
    with pytest.raises(ConfigError, match=r"must name some of the persons 1, 3 .*found 2"):
        har(root=str(har_root), test_subjects=[2])


def test_bad_test_subjects_are_refused(har_root):
    for subjects in ([], 3, "3", [3.0], [True], [1, 2, 3]):
        with case(subjects=subjects), pytest.raises(ConfigError, match=r"dataset.test_subjects must"):
            har(root=str(har_root), download=False, test_subjects=subjects)


def test_a_missing_test_part_points_to_the_split_by_person(har_root):
    (har_root / "UCI HAR Dataset/test/X_test.txt").unlink()
    with pytest.raises(DataError, match=r"needs test/X_test.txt, not found in .*dataset.test_subjects"):
        har(root=str(har_root), download=False)


def test_har_names_a_damaged_file_with_its_checksum(har_root):
    damages = [
        ("train/X_train.txt", lambda b: b[: len(b) * 7 // 8], "rows of 561 numbers are required, found .* in row 4"),
        ("train/X_train.txt", lambda b: b[: len(b) // 4], "must have as many rows; found 1 of features, 4 of labels"),
        ("train/X_train.txt", lambda b: b[:-3], "cut after row 4"),
        ("train/X_train.txt", lambda b: b[:100], "found 6 in row 1"),
        ("train/X_train.txt", lambda b: b" 0.5" + b, "found 562 in row 1"),
        ("train/X_train.txt", lambda b: b"", "found none"),
        ("train/X_train.txt", lambda b: b.replace(b"e", b"x", 1), "561 finite numbers"),
        ("train/X_train.txt", lambda b: b"             NaN" + b[16:], "561 finite numbers"),
        ("train/y_train.txt", lambda b: b[:-2], "y_train.txt is damaged.*as many rows"),
        ("train/y_train.txt", lambda b: b"7" + b[1:], "whole numbers from 1 to 6"),
        ("train/subject_train.txt", lambda b: b[:-2], "subject_train.txt is damaged.*as many rows"),
        ("test/subject_test.txt", lambda b: b"0" + b[1:], "whole numbers from 1 to 30"),
    ]
    for name, damage, words in damages:
        path = har_root / "UCI HAR Dataset" / name
        content = path.read_bytes()
        path.write_bytes(damage(content))
        with case(name=name, words=words):
            with pytest.raises(DataError, match=words) as error:
                har(root=str(har_root), download=False)
            for word in (str(path), md5(path), har_module.OFFICIAL[name].md5, "delete it and run again"):
                assert word in str(error.value)
        path.write_bytes(content)


@pytest.fixture
def archive(tmp_path, monkeypatch, served):
    """The archive as UCI serves it (a zip inside a zip), with its checksums declared official and more in it."""
    folder = tmp_path / "server"
    folder.mkdir()
    inner, outer = folder / "inner.zip", folder / "outer.zip"
    with zipfile.ZipFile(inner, "w") as packed:
        for name, content in har_files().items():
            packed.writestr(f"UCI HAR Dataset/{name}", content)
        packed.writestr("../escaped.txt", "outside")
        packed.writestr(str(tmp_path / "escaped.txt"), "outside")
        link = zipfile.ZipInfo("UCI HAR Dataset/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, str(tmp_path))
        packed.writestr("UCI HAR Dataset/link/escaped.txt", "outside")
    with zipfile.ZipFile(outer, "w") as packed:
        packed.write(inner, "UCI HAR Dataset.zip")
    served[har_module.ARCHIVE] = outer.read_bytes()
    monkeypatch.setattr(har_module, "ARCHIVE_SHA256", hashlib.sha256(outer.read_bytes()).hexdigest())
    monkeypatch.setattr(har_module, "INNER_SHA256", hashlib.sha256(inner.read_bytes()).hexdigest())
    return outer


def test_har_downloads_checks_and_unpacks_the_official_archive(tmp_path, archive):
    root = tmp_path / "data"
    assert len(har(root=str(root), test_subjects=[3]).test) == 2
    assert len(har(root=str(root), download=False).test) == 2
    files = {str(p.relative_to(root / "UCI HAR Dataset")) for p in root.rglob("*") if p.is_file()}
    assert files == set(har_module.OFFICIAL)
    assert not list(tmp_path.rglob("escaped.txt"))


def test_har_refuses_an_archive_with_another_checksum(tmp_path, archive, served):
    served[har_module.ARCHIVE] += b"x"
    with pytest.raises(DataError, match=r"the download failed \(.* has sha256 \w+, \w+ is required\)"):
        har(root=str(tmp_path / "data"))
    assert list((tmp_path / "data").iterdir()) == []
