"""The steps every data set shares: take a subset, normalise, flatten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.errors import ConfigError
from nncompress.problem import Dataset, Split

NORMALISATIONS = ("none", "unit", "standard", "pixel_mean")

DIGITS = tuple("0123456789")
"""Names of the labels of handwritten digits."""

PART = 64
"""Samples summed at a time: few, so that the float64 copy stays in the cache."""


@dataclass(frozen=True)
class Preparation:
    """The treatment of the raw samples of any data set.

    - train_size, test_size: how many samples to keep, drawn by a shuffle; None, all.
    - seed: of that shuffle, the same for both splits and independent of the run's seed; 10, as in the published code of
      NN-BCD.
    - normalise: `none` keeps the raw values; `unit` divides by the largest raw value of the data set's type (255 for
      bytes) and leaves float data unchanged; `standard` then subtracts the mean and divides by the standard deviation
      (population form) of the training samples kept, per channel for images and sequences, per feature for flat data,
      a constant feature being divided by 1; `pixel_mean` is `unit` minus the mean training sample.
    - flatten: whether samples become vectors, after normalisation; false.

    Raises ConfigError for an unknown normalisation or a size below 1.
    """

    train_size: int | None = None
    test_size: int | None = None
    seed: int = 10
    normalise: str = "unit"
    flatten: bool = False

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISATIONS:
            raise ConfigError(
                f"dataset.normalise must be one of {', '.join(NORMALISATIONS)}; found {self.normalise!r}."
            )
        _check_size("train", self.train_size)
        _check_size("test", self.test_size)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"dataset.seed must be an integer; found {self.seed!r}.")


def prepare(
    train: Split,
    test: Split,
    how: Preparation,
    *,
    num_classes: int,
    name: str,
    maximum: float = 1.0,
    note: str = "",
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Make a data set of raw samples: x (n, ...) of any real type, y (n,) integer.

    `maximum` is the raw value that `unit` maps to 1; `note` starts the text of the preprocessing; `classes` are the
    names of the labels.
    Raises ConfigError when a subset larger than its split is asked for.
    """
    train = _subset(train, how.train_size, how.seed, "train")
    test = _subset(test, how.test_size, how.seed, "test")
    x_train, x_test, text, blank = _normalise(_as_float(train.x), _as_float(test.x), how.normalise, maximum)
    if how.flatten:
        x_train, x_test = x_train.flatten(1), x_test.flatten(1)
    parts = [note, text, _subset_text(how)]
    return Dataset(
        Split(x_train, train.y.long()),
        Split(x_test, test.y.long()),
        num_classes,
        name,
        "; ".join(part for part in parts if part),
        blank=blank if x_train.dim() == 4 else torch.zeros(()),
        classes=None if classes is None else tuple(classes),
    )


def _check_size(split: str, size: int | None, available: int | None = None) -> None:
    if size is None:
        return
    is_count = isinstance(size, int) and not isinstance(size, bool)
    if is_count and size >= 1 and (available is None or size <= available):
        return
    end = f"the {available} samples there are" if available else f"the number of {split} samples"
    raise ConfigError(f"dataset.{split}_size must be null or an integer from 1 to {end}; found {size!r}.")


def _subset(split: Split, size: int | None, seed: int, name: str) -> Split:
    if size is None:
        return split
    _check_size(name, size, len(split))
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:size]
    return Split(split.x[rows], split.y[rows])


def _subset_text(how: Preparation) -> str:
    sizes = {"train_size": how.train_size, "test_size": how.test_size}
    kept = [f"{key} {size}" for key, size in sizes.items() if size is not None]
    return ", ".join([*kept, f"seed {how.seed}"]) if kept else ""


def _as_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy, which the normalisation may overwrite."""
    return x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _normalise(train: Tensor, test: Tensor, kind: str, maximum: float) -> tuple[Tensor, Tensor, str, Tensor]:
    """Normalise both in place by the statistics of `train`; return them, a text for the records, the blank value.

    The last is what a raw 0 of images becomes: a number for each channel (channels, 1, 1), of `pixel_mean` the average
    over the pixels; or 0.
    """
    if kind != "none" and maximum != 1.0:
        train.div_(maximum)
        test.div_(maximum)
    text, blank = kind, torch.zeros(())
    if kind == "standard":
        mean, std = _standardise(train, test)
        text, blank = f"standard: {_statistics_text(mean.flatten(), std.flatten())}", (-mean / std)[0]
    elif kind == "pixel_mean":
        mean = _mean(train, [0])
        train.sub_(mean)
        test.sub_(mean)
        blank = -mean[0].mean(list(range(1, mean.dim() - 1)), keepdim=True)
    return train, test, text, blank


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean and divide by the standard deviation; return both, shaped to go with the samples.

    Two passes: the deviations are taken from the mean before they are squared.
    """
    dims = [d for d in range(train.dim()) if d != 1]
    constant = train.amax(dims, keepdim=True) == train.amin(dims, keepdim=True)
    mean = _mean(train, dims)
    train.sub_(mean)
    test.sub_(mean)
    std = _mean(train, dims, power=2).sqrt().masked_fill_(constant, 1.0)
    train.div_(std)
    test.div_(std)
    return mean, std


def _mean(x: Tensor, dims: list[int], power: int = 1) -> Tensor:
    """Return the mean of x ** power over `dims`, summed in float64."""
    parts = (x[start : start + PART].double() for start in range(0, len(x), PART))
    total = sum((part.pow_(power).sum(dims, keepdim=True) for part in parts), torch.zeros((), dtype=torch.float64))
    return (total * (total.numel() / x.numel())).float()


def _statistics_text(mean: Tensor, std: Tensor) -> str:
    if len(mean) > 4:
        return f"mean and std of each of {len(mean)} features"
    means, stds = (" ".join(f"{value:.4f}" for value in values.tolist()) for values in (mean, std))
    return f"mean {means}, std {stds}"
