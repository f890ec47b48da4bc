"""Handwritten digits that come with scikit-learn: no file, no network."""

from __future__ import annotations

import gzip
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nncompress.data.prepare import DIGITS, Preparation, prepare
from nncompress.problem import Dataset, Split

FILE = "datasets/data/digits.csv.gz"
"""Where scikit-learn keeps the digits: a row of 64 values and the label for each."""


def digits(
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "unit",
    flatten: bool = False,
) -> Dataset:
    """Load 1797 grey images (1, 8, 8) with values 0 to 16, 10 classes; 1437 for training and 360 for test.

    The split is stratified and always the same, whatever the seeds: that of scikit-learn's `train_test_split` with
    `test_size=0.2, random_state=0, stratify=labels`. The options are those of `Preparation`. Raises ConfigError.
    Source: the test part of E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI Machine
    Learning Repository, as embedded in scikit-learn.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)
    x, y = _images()
    lines = (files("nncompress.data") / "digits_split.csv").read_text(encoding="ascii").splitlines()
    train, test = (torch.tensor([int(index) for index in line.split(",")]) for line in lines)
    splits = Split(x[train], y[train]), Split(x[test], y[test])
    return prepare(*splits, how, num_classes=10, name="digits", maximum=16.0, classes=DIGITS)


def _images() -> tuple[Tensor, Tensor]:
    """Return all images (1797, 1, 8, 8) in float64 and their labels, where possible without the second of import
    scikit-learn.
    """
    package = find_spec("sklearn")
    path = Path(str(package.origin)).parent / FILE if package else Path()
    if path.is_file():
        with gzip.open(path, "rt", encoding="ascii") as file:
            rows = np.loadtxt(file, delimiter=",")
    else:
        from sklearn.datasets import load_digits

        data, labels = load_digits(return_X_y=True)
        rows = np.column_stack([data, labels])
    return torch.from_numpy(rows[:, :-1]).reshape(-1, 1, 8, 8), torch.from_numpy(rows[:, -1]).long()
