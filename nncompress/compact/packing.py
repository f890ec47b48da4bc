"""Whole numbers in as few bits as they need: codes of a fixed width, and ascending positions as gaps or as a mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nncompress.compressions.coding import fields_of, gaps_of

CHUNK = 1 << 18
"""Codes that are packed at once, a multiple of 8: each takes 4 bytes and as many again for every 8 bits."""
WIDEST = 32
"""Bits of the widest code."""

Bytes = npt.NDArray[np.uint8]


def pack(codes: Tensor, width: int) -> Tensor:
    """Codes (n,) below 2^width end to end, the lowest bit first: uint8 (ceil(n width / 8),)."""
    words = codes.detach().cpu().numpy().astype("<u4")

    def packed(part: npt.NDArray[np.uint32]) -> Bytes:
        bits = np.unpackbits(part.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        return np.packbits(bits[:, :width], bitorder="little")

    return _in_chunks(packed, words, CHUNK)


def unpack(packed: Tensor, count: int, width: int) -> Tensor:
    """The codes, int64 (count,), that `pack` put into uint8 (ceil(count width / 8),)."""

    def codes(part: Bytes) -> npt.NDArray[np.int64]:
        bits = np.unpackbits(part, bitorder="little", count=len(part) * 8 // width * width).reshape(-1, width)
        whole = np.zeros((len(bits), 32), dtype=np.uint8)
        whole[:, :width] = bits
        return np.packbits(whole, axis=1, bitorder="little").view("<u4").reshape(-1).astype(np.int64)

    if width == 0:
        return torch.zeros(count, dtype=torch.int64)
    return _in_chunks(codes, packed.numpy(), CHUNK * width // 8)[:count]


def _in_chunks(function: Callable[..., npt.NDArray[np.generic]], values: npt.NDArray[np.generic], size: int) -> Tensor:
    """`function` of every `size` values, end to end."""
    starts = range(0, max(1, len(values)), size)
    return torch.from_numpy(np.concatenate([function(values[start : start + size]) for start in starts]))


def bytes_of(count: int, width: int) -> int:
    """Bytes of so many codes."""
    return -(-count * width // 8)


def to_fields(positions: Tensor, width: int) -> Tensor:
    """Ascending positions as fields (n,) of `width` bits, `coding.position_bits`.

    A field is 0 (go on by 2^width - 1 positions) or what is left of the gap, 1 to 2^width - 1.
    """
    gaps = gaps_of(positions)
    fields = fields_of(gaps, width)
    found = gaps.new_zeros(int(fields.sum()))
    found[fields.cumsum(0) - 1] = gaps - (fields - 1) * (2**width - 1)
    return found


def from_fields(fields: Tensor, width: int) -> Tensor:
    """The positions of `to_fields`."""
    reached = torch.where(fields == 0, 2**width - 1, fields).cumsum(0) - 1
    return reached[fields != 0]
