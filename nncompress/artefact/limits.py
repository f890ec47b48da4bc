"""How much memory a compact network may take, given the bytes of its files: it is made on `meta` before it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nncompress.errors import CheckpointError

EXPANSION = 1000
"""Bytes of the whole network, and of each tensor made on the way to it, for a byte of its files at the most."""
LEAST = 64 << 20
"""Bytes that it may have however small its files are."""
OPERATIONS, BYTES_OF_ONE = 20_000, 16
"""Operations that make the network at the most: so many, and one for so many bytes of its files; a layer takes ten."""

FILLING = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")
"""Random numbers for a tensor that is there: left out on `meta`, where the first needs a second of imports."""


class TooLarge(CheckpointError):
    """What the files describe is out of proportion to their bytes."""


@dataclass(frozen=True)
class Limit:
    """What files of `size` bytes may become."""

    size: int

    @property
    def bytes(self) -> int:
        """The largest number of bytes."""
        return max(LEAST, EXPANSION * self.size)

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raise TooLarge for tensors that together have more bytes."""
        wanted = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if wanted > self.bytes:
            raise TooLarge(
                f"a network of at most {self.bytes:,} bytes is made of files of {self.size:,} bytes, {wanted:,} are "
                "described; take a whole copy, or train it again with less compression"
            )

    @contextmanager
    def on_meta(self) -> Iterator[None]:
        """Make tensors without memory, and raise TooLarge where one would have too many bytes or there are too many."""
        with torch.device("meta"), _Watch(self):
            yield


class _Watch(TorchFunctionMode):
    """Looks at the result of every operation."""

    def __init__(self, limit: Limit) -> None:
        super().__init__()
        self._limit, self._left = limit, OPERATIONS + limit.size // BYTES_OF_ONE

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = {key: value if key != "device" else "meta" for key, value in (kwargs or {}).items()}
        fills = getattr(func, "__name__", "") in FILLING
        result = (args[0] if args else kwargs["tensor"]) if fills else func(*args, **kwargs)
        self._left -= 1
        if self._left < 0:
            raise TooLarge(f"a network is made in proportion to its {self._limit.size:,} bytes, found no end of layers")
        parts = result if isinstance(result, tuple) else [result]
        self._limit.check(part for part in parts if isinstance(part, Tensor))
        return result
