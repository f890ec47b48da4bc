"""Handwritten digits that come with scikit-learn: no file, no network."""

from __future__ import annotations

import torch

from nncompress.data.prepare import DIGITS, Preparation, prepare
from nncompress.problem import Dataset, Split


def digits(
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 10,
    normalise: str = "unit",
    flatten: bool = False,
) -> Dataset:
    """1797 grey images (1, 8, 8) with values 0 to 16, 10 classes; 1437 for training and 360 for test.

    The split is stratified and always the same, whatever the seeds. The options are those of `Preparation`.
    Raises ConfigError. Source: the test part of E. Alpaydin and C. Kaynak, "Optical recognition of handwritten
    digits", UCI Machine Learning Repository, as embedded in scikit-learn.
    """
    how = Preparation(train_size, test_size, seed, normalise, flatten)

    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    x = torch.from_numpy(raw.images).unsqueeze(1)  # (1797, 1, 8, 8)
    y = torch.from_numpy(raw.target)
    train, test = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=raw.target)
    splits = Split(x[train], y[train]), Split(x[test], y[test])
    return prepare(*splits, how, num_classes=10, name="digits", maximum=16.0, classes=DIGITS)
