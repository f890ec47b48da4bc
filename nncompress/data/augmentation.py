"""Random changes of training images, all samples of a batch at once, on the device of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from nncompress.problem import Augmentation


@dataclass(frozen=True, kw_only=True)
class Augmentations(Augmentation):
    """One change after the other; their random numbers lie side by side.

    - parts: the changes, in their order; none at all returns x itself. Raises ValueError for another kind of part.
    """

    parts: Sequence[Augmentation]

    def __post_init__(self) -> None:
        for part in self.parts:
            if not isinstance(part, Augmentation):
                raise ValueError(f"parts must be augmentations, found {part!r}")

    @property
    def columns(self) -> int:
        return sum(part.columns for part in self.parts)

    @property
    def smallest_side(self) -> int:
        return max((part.smallest_side for part in self.parts), default=0)

    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        columns = [part.columns for part in self.parts]
        for part, numbers in zip(self.parts, torch.split(drawn, columns, dim=1), strict=True):
            x = part.apply(x, numbers, blank)
        return x


@dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """A window of the original size of the image with `padding` blank pixels on all sides.

    - padding: all (2 padding + 1)² windows are equally likely; 4, as published for CIFAR. ValueError below 0.
    """

    columns: ClassVar[int] = 2
    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0, found {self.padding}")

    @property
    def smallest_side(self) -> int:
        return self.padding + 1

    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        n, _, h, w = x.shape
        windows = _pad(x, self.padding, blank).unfold(2, h, 1).unfold(3, w, 1)  # (n, c, top, left, h, w), a view
        top, left = _whole_numbers(drawn, 2 * self.padding + 1).unbind(1)
        return windows[torch.arange(n, device=x.device), :, top, left]


@dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Left and right exchanged.

    - probability: of the exchange, in [0, 1], else ValueError; one half, as in the papers' training on CIFAR.
    """

    columns: ClassVar[int] = 1
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], found {self.probability}")

    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        return torch.where(drawn[:, :, None, None] < self.probability, x.flip(3), x)


@dataclass(frozen=True, kw_only=True)
class Rotation(Augmentation):
    """Rotated anticlockwise about the centre by an angle uniform in [-degrees, degrees); bilinear, blank outside.

    Types shorter than float32 are interpolated in float32.

    - degrees: in [0, 180], else ValueError; 15, as in the published code of SparseFW for CIFAR-100.
    """

    columns: ClassVar[int] = 1
    degrees: float = 15.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"degrees must be in [0, 180], found {self.degrees}")

    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        h, w = x.shape[2:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        angle = math.radians(self.degrees) * (2 * drawn[:, :, None].to(dtype) - 1)  # (n, 1, 1)
        row = torch.arange(h, dtype=dtype, device=x.device)[:, None] - (h - 1) / 2  # from the centre, down
        column = torch.arange(w, dtype=dtype, device=x.device) - (w - 1) / 2
        across = angle.cos() * column - angle.sin() * row  # (n, h, w): where the value of a pixel comes from
        down = angle.sin() * column + angle.cos() * row
        grid = torch.stack([across * (2 / (w + 2)), down * (2 / (h + 2))], dim=3)
        ringed = _pad(x, 1, blank).to(dtype)  # "border" continues the ring of blank pixels outwards
        y = grid_sample(ringed, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return y.to(x.dtype).contiguous(memory_format=_memory_format(x))


@dataclass(frozen=True, kw_only=True)
class Cutout(Augmentation):
    """A blank square of `size` pixels, clipped at the border, centred at a uniformly random pixel.

    An even square has one pixel more above and to the left of its centre. Source: DeVries and Taylor, arXiv 1708.04552,
    section 3.

    - size: the side in pixels, at least 1, else ValueError; 8 is this package's choice.
    """

    columns: ClassVar[int] = 2
    size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, found {self.size}")

    def apply(self, x: Tensor, drawn: Tensor, blank: Tensor) -> Tensor:
        down, across = (self._rows_covered(drawn[:, i, None], x.shape[2 + i]) for i in (0, 1))
        return torch.where(down[:, None, :, None] & across[:, None, None, :], blank.to(x.dtype), x)

    def _rows_covered(self, drawn: Tensor, side: int) -> Tensor:
        """Return which of the `side` rows (or columns) the square covers, (n, side)."""
        start = _whole_numbers(drawn, side) - self.size // 2
        index = torch.arange(side, device=drawn.device)
        return (index >= start) & (index < start + self.size)


def _whole_numbers(drawn: Tensor, count: int) -> Tensor:
    """Return numbers 0 ... count - 1, equally likely: in float32 u < 1 gives u * count < count, rounded or not."""
    return (drawn * count).long()


def _pad(x: Tensor, margin: int, blank: Tensor) -> Tensor:
    """Pad x with `margin` blank pixels on all sides, in its memory format."""
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * margin, w + 2 * margin)
    padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))
    padded.copy_(blank)
    padded[:, :, margin : margin + h, margin : margin + w] = x
    return padded


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last only where x is not contiguous as well."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
