"""The k largest of many numbers."""

from __future__ import annotations

import torch
from torch import Tensor

LOW = 15
"""Bits of a float32 that are looked at second; its sign apart, 16 are left to be looked at first."""


def largest(a: Tensor, k: int) -> Tensor:
    """Which entries of each row of a (b, n), none negative, are its k largest: exactly k, bool (b, n)."""
    if k >= a.shape[1]:
        return torch.ones_like(a, dtype=torch.bool)
    if a.is_cpu and a.dtype == torch.float32:
        return torch.stack([_largest(row, k) for row in a]) if len(a) > 1 else _largest(a[0], k)[None]
    at = a.topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(a, dtype=torch.bool).scatter_(1, at, True)


def _largest(a: Tensor, k: int) -> Tensor:
    """Of one row of float32 on the CPU, by counting: several times as fast as torch.topk when k is large.

    The bits of a float that is not negative are ordered as the number is; the k-th largest is found by its first 16
    bits, then by the others.
    """
    bits = a.contiguous().view(torch.int32)
    high, above = _bucket(bits >> LOW, 1 << 16, k)
    inside = bits[bits >> LOW == high]
    low, more = _bucket(inside & ((1 << LOW) - 1), 1 << LOW, k - above)
    at = (high << LOW) | low
    keep, left = bits > at, k - above - more
    ties = (bits == at).nonzero().squeeze(1)
    keep[ties[:left]] = True
    return keep


def _bucket(values: Tensor, count: int, k: int) -> tuple[int, int]:
    """The value (below `count`) of the k-th largest of whole numbers, and how many are larger than it."""
    from_top = torch.bincount(values, minlength=count).flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    return count - 1 - place, int(from_top[place - 1]) if place else 0
