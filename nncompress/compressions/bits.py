"""Bits of positions and codes, as `artefact.encoding` writes them."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

TABLE_BITS = 8
"""Bits of the length of a symbol's (canonical) code in a Huffman table."""


def index_bits(count: int) -> int:
    """Return ceil(log2 count): bits of an index below `count` >= 1."""
    return (count - 1).bit_length()


def position_bits(positions: Tensor) -> int:
    """Count the bits of ascending positions stored as gaps d >= 1 (the first from -1) in fields of the best width.

    With b-bit fields a gap costs ceil(d / (2^b - 1)) fields; b runs from 2 to 32 (Han et al., "Deep compression",
    ICLR 2016, with relative indices; Carreira-Perpinan and Idelbayev, CVPR 2018, for the choice of b).
    """
    return best_fields(positions)[0]


def best_fields(positions: Tensor) -> tuple[int, int]:
    """Return the bits of `position_bits` and the width b of the fields that needs so few."""
    gaps = gaps_of(positions)
    widths = range(2, 33)
    counts: list[int] = torch.stack([fields_of(gaps, b).sum() for b in widths]).tolist()  # one read from the device
    return min((b * count, b) for b, count in zip(widths, counts, strict=True))


def huffman_position_bits(positions: Tensor) -> int:
    """Count the bits of the gaps' fields Huffman-coded with their table, at the width from 2 to 16 of fewest bits.

    A field is 0 (go on by 2^b - 1 positions) or what is left of the gap, 1 to 2^b - 1.
    """
    gaps = gaps_of(positions)
    if gaps.numel() == 0:
        return 0
    return min(huffman_bits(_field_counts(gaps, b)) for b in range(2, 17))


def huffman_bits(counts: Tensor, symbols: int | None = None) -> int:
    """Count the bits of a text whose symbols occur `counts` times, in the best prefix code, its table included.

    The table lists the lengths of all `symbols` (by default as many as there are counts), or those of the ones that
    occur with their indices, whichever is less. Huffman, "A method for the construction of minimum-redundancy codes",
    Proc. IRE 40(9), 1952. An estimate of what entropy coding would give: a text of one symbol costs its table alone.
    """
    heap = [count for count in counts.tolist() if count > 0]
    symbols = len(counts) if symbols is None else symbols
    total = min(TABLE_BITS * symbols, (TABLE_BITS + index_bits(symbols)) * len(heap))
    heapq.heapify(heap)
    while len(heap) > 1:  # each merger adds a bit to every occurrence below it
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def gaps_of(positions: Tensor) -> Tensor:
    """Return the gaps d >= 1 of ascending positions, the first counted from -1."""
    return torch.diff(positions, prepend=positions.new_tensor([-1]))


def fields_of(gaps: Tensor, b: int) -> Tensor:
    """Return how many b-bit fields each gap costs."""
    whole: Tensor = (gaps + 2**b - 2) // (2**b - 1)
    return whole


def _field_counts(gaps: Tensor, b: int) -> Tensor:
    """Return how often each b-bit field 0, 1, ..., 2^b - 1 is written."""
    fields = fields_of(gaps, b)
    counts = torch.bincount(gaps - (fields - 1) * (2**b - 1), minlength=2**b)
    counts[0] = (fields - 1).sum()
    return counts
