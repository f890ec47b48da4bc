"""UCI HAR: human activity recognition using smartphones, the 561 features."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from nncompress.data.files import Official, Source, check, download, fetch, unpack
from nncompress.data.prepare import Preparation, prepare
from nncompress.errors import ConfigError
from nncompress.problem import Dataset, Split

FOLDER = "UCI HAR Dataset"
PAGE = "https://archive.ics.uci.edu/dataset/240/human+activity+recognition+using+smartphones"
ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
"""The names of the labels, as activity_labels.txt has them."""
ARCHIVE = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
ARCHIVE_SHA256 = "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"
INNER = f"{FOLDER}.zip"
INNER_SHA256 = "2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0"

FEATURES = 561
OFFICIAL = {
    "train/X_train.txt": Official("8fac6d9d9463c7a7e3620fc9c5b85e46", 66006256),
    "train/y_train.txt": Official("03cde39e4f847aea23d3b106428b67d5", 14704),
    "train/subject_train.txt": Official("890ee3bca62ef477e218f241ae84c898", 20152),
    "test/X_test.txt": Official(size=26458166),  # 2947 rows of 8978 bytes
    "test/y_test.txt": Official("c7d8b43fbf9500662a3fadc8286f6f85", 5894),
    "test/subject_test.txt": Official("7e5b62d345490918cd5ed4aeacc74673", 7934),
}


class _Rows(NamedTuple):
    x: Tensor  # (n, 561) float32
    y: Tensor  # (n,) classes 0 to 5
    subjects: Tensor  # (n,) persons 1 to 30


def har(
    *,
    root: str,
    download: bool = True,
    test_subjects: Sequence[int] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "none",
    flatten: bool = False,
) -> Dataset:
    """Load windows of 2.56 s as 561 features in [-1, 1], 6 activities, 30 persons.

    Reads the official folder `root`/UCI HAR Dataset. test_subjects None: the official split, 7352 and 2947 windows.
    A list of persons, such as [25, 26, 27, 28, 29, 30]: their windows are the test split and all others the training
    split, taken from both official parts, or from the training part alone where test/X_test.txt is absent.
    The other options are those of `Preparation`; `unit` changes nothing here.

    When `download`, missing files come from the UCI repository's archive. Its sha256, and that of the archive inside
    it, must be those under which independent public projects pin the download (UCI itself publishes none).

    Raises DataError for missing or damaged files, ConfigError for bad options or a person who is not there.
    Source: D. Anguita, A. Ghio, L. Oneto, X. Parra, J. L. Reyes-Ortiz, "A public domain dataset for human activity
    recognition using smartphones", ESANN 2013.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)
    held_out = None if test_subjects is None else _person_numbers(test_subjects)
    if held_out is None:
        source = _source(root, ["train", "test"])
        fetch(source, download, _download)
        train, test = (_read(source, part) for part in ("train", "test"))
        splits, note = (Split(train.x, train.y), Split(test.x, test.y)), ""
    else:
        source = _source(root, ["train"])
        fetch(source, download, _download)
        parts = ["train"] if _source(root, ["test"]).missing() else ["train", "test"]
        splits = _by_subject([_read(source, part) for part in parts], held_out)
        note = f"held-out subjects {' '.join(str(s) for s in held_out)} of the {' and '.join(parts)} part"
    return prepare(*splits, how, num_classes=6, name="har", note=note, classes=ACTIVITIES)


def _source(root: str, parts: Sequence[str]) -> Source:
    folder = Path(root).expanduser().absolute()
    optional = frozenset(name for name in OFFICIAL if name.split("/")[0] not in parts)
    hint = ""
    if "test" in parts:
        hint = ", or set dataset.test_subjects, for example [25,26,27,28,29,30], to split the training part by person"
    return Source("UCI HAR", folder, folder / FOLDER, OFFICIAL, PAGE, optional, hint)


def _person_numbers(subjects: Sequence[int]) -> list[int]:
    numbers = [] if isinstance(subjects, int | str) else list(subjects)
    if not numbers or any(isinstance(s, bool) or not isinstance(s, int) for s in numbers):
        raise ConfigError(
            "dataset.test_subjects must be null or a list of person numbers such as [25,26,27,28,29,30]; "
            f"found {subjects!r}."
        )
    return numbers


def _by_subject(parts: Sequence[_Rows], held_out: Sequence[int]) -> tuple[Split, Split]:
    x, y, subjects = (torch.cat(columns) for columns in zip(*parts, strict=True))
    present = sorted(set(subjects.tolist()))
    unknown = [s for s in held_out if s not in present]
    if unknown or set(held_out) == set(present):
        complaint = f"found {unknown[0]}" if unknown else "found all of them, which leaves none for training"
        raise ConfigError(
            f"dataset.test_subjects must name some of the persons {', '.join(str(s) for s in present)} "
            f"that the files at hand hold; {complaint}."
        )
    in_test = torch.isin(subjects, torch.tensor(held_out))
    return Split(x[~in_test], y[~in_test]), Split(x[in_test], y[in_test])


def _read(source: Source, part: str) -> _Rows:
    """Read one part of the data, its three files checked against one another."""
    names = [f"{part}/{kind}_{part}.txt" for kind in ("X", "y", "subject")]
    x, y, subjects = (_table(source, name, columns) for name, columns in zip(names, (FEATURES, 1, 1), strict=True))
    for name, column, last in ((names[1], y, 6), (names[2], subjects, 30)):
        if not bool(((column == column.round()) & (column >= 1) & (column <= last)).all()):
            raise source.damaged(name, f"whole numbers from 1 to {last} are required")
    if not len(x) == len(y) == len(subjects):
        # The labels and persons outvote a cut feature file; otherwise the odd one of the two is named.
        culprit = names[0] if len(y) == len(subjects) else names[1] if len(x) == len(subjects) else names[2]
        raise source.damaged(
            culprit,
            f"the three files of a part must have as many rows; found {len(x)} of features, {len(y)} of labels "
            f"and {len(subjects)} of persons",
        )
    return _Rows(x, y[:, 0].long() - 1, subjects[:, 0].long())


def _table(source: Source, name: str, columns: int) -> Tensor:
    """Read a text file of numbers between blanks, (rows, columns) float32."""
    import numpy as np
    import pandas as pd

    source.check_content(name)
    content = source.path(name).read_bytes()
    for row, line in enumerate(content.splitlines(), start=1):
        length = len(line.split())
        if length not in (0, columns):  # a short row would be filled: a table larger than its file
            raise source.damaged(name, f"rows of {columns} numbers are required, found {length} in row {row}")
    complaint = f"rows of {columns} finite numbers are required, found none or something else"
    try:
        table = pd.read_csv(io.BytesIO(content), sep=r"\s+", header=None, dtype=np.float32).to_numpy()
    except Exception as error:  # of whatever kind: pandas cannot read it
        raise source.damaged(name, complaint) from error
    if table.shape[1] != columns or not np.isfinite(table).all():
        raise source.damaged(name, complaint)
    if not content.endswith(b"\n"):
        raise source.damaged(name, f"its last row must end with a line end, it is cut after row {len(table)}")
    return torch.tensor(table)


def _download(folder: Path) -> Path:
    """Fetch the archive and unpack the tables of the archive inside it; return the folder they are in."""
    outer, inner = folder / "outer.zip", folder / "inner.zip"
    download(ARCHIVE, outer, f"sha256:{ARCHIVE_SHA256}")
    with zipfile.ZipFile(outer) as archive, archive.open(INNER) as packed, open(inner, "wb") as file:
        shutil.copyfileobj(packed, file)
    check(inner, "sha256", INNER_SHA256, INNER)
    _unpack(inner, folder)
    return folder / FOLDER


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files of `OFFICIAL` under exactly their names, and no other member: none can escape `folder`."""
    with zipfile.ZipFile(archive) as packed:
        members = set(packed.namelist())
        for name in OFFICIAL:
            member = str(PurePosixPath(FOLDER) / name)
            if member not in members:
                raise OSError(f"the archive holds no {member}")
            path = folder / member
            path.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as content:
                unpack(content, path, OFFICIAL[name].size)
