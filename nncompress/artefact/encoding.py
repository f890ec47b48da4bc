"""Write Θ of any compression as numbers end to end, and read it back.

A form is JSON: a word for each tensor, for a NamedTuple its class and the forms of its fields. The sizes that the
tensors of one Θ have, and its numbers, stand in a list of their own in the order of the form: of many equal layers it
is said once how they are stored.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nncompress.artefact.objects import CLASS, class_name
from nncompress.compressions.bits import best_fields, fields_of, gaps_of
from nncompress.errors import CheckpointError

BITS = "bits"
"""The stream of packed whole numbers, bytes; every other one is named by its dtype."""
VALUE = "value"
"""The form of what is no tensor: it stands among the sizes as it is."""
CHUNK = 1 << 18
"""Codes that are packed at once, a multiple of 8: each takes 4 bytes and as many again for every 8 bits."""
WIDEST = 32
"""Bits of the widest code."""
Bytes = npt.NDArray[np.uint8]


class Writer:
    """Streams of numbers that grow at their end."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def put(self, stream: str, values: Tensor) -> None:
        """Append values, flattened, to a stream."""
        self._parts.setdefault(stream, []).append(values.detach().cpu().reshape(-1))

    def streams(self) -> dict[str, Tensor]:
        """Return every stream as one vector."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


class Reader:
    """Streams that are read from their start. Raises CheckpointError for more than they hold, and for what is left.

    blank: how many codes of no bits, of which there is nothing in the streams, there may be.
    """

    def __init__(self, streams: Mapping[str, Tensor], blank: int = sys.maxsize) -> None:
        self._streams, self._blank = streams, blank
        self._at = dict.fromkeys(streams, 0)

    def take(self, stream: str, count: int) -> Tensor:
        """Return the next `count` numbers."""
        start = self._at.get(stream, 0)
        held = len(self._streams.get(stream, ()))
        if not 0 <= count <= held - start:
            raise CheckpointError(f"{count} more numbers of {stream} are described, found {held - start}")
        if count == 0:
            return torch.empty(0, dtype=torch.uint8 if stream == BITS else dtype_of(stream))
        self._at[stream] = start + count
        return self._streams[stream][start : start + count]

    def take_codes(self, count: int, width: int) -> Tensor:
        """Return the next `count` codes of `width` bits, int64 (count,)."""
        if width:
            return unpack(self.take(BITS, bytes_of(count, width)), count, width)
        self._blank -= count
        if self._blank < 0:
            raise CheckpointError(f"{count} codes of no bits are described, which is out of proportion to the files")
        return torch.zeros(count, dtype=torch.int64)

    def end(self) -> None:
        """Raise CheckpointError unless everything has been read."""
        for name, tensor in self._streams.items():
            if self._at[name] != len(tensor):
                raise CheckpointError(f"{self._at[name]} numbers of {name} are described, found {len(tensor)}")


def encode(value: Any, writer: Writer, sizes: list[Any]) -> Any:
    """Put (a part of) Θ into the streams, append its sizes and return its form."""
    if isinstance(value, Tensor):
        return _encode_tensor(value, writer, sizes)
    kind = type(value)
    fields: tuple[str, ...] | None = getattr(kind, "_fields", None)
    if fields is not None:
        parts = {name: encode(item, writer, sizes) for name, item in zip(fields, value, strict=True)}
        return {CLASS: class_name(kind)} | parts
    if isinstance(value, tuple | list) and any(isinstance(item, Tensor | tuple) for item in value):
        return [encode(item, writer, sizes) for item in value]
    sizes.append(value)
    return VALUE


def decode(form: Any, reader: Reader, sizes: Iterator[Any], find_class: Callable[[str], type[Any]]) -> Any:
    """Return what `encode` was given, numbers of 64 bits rounded to 32; `find_class` finds a class by its path.

    Raises:
        CheckpointError: form, streams and sizes do not fit; sizes that are left over are the caller's to find.
    """
    if isinstance(form, dict):
        parts = {name: decode(item, reader, sizes, find_class) for name, item in form.items() if name != CLASS}
        return find_class(form[CLASS])(**parts)
    if isinstance(form, list):
        return tuple(decode(item, reader, sizes, find_class) for item in form)
    if form == VALUE:
        value = _next(sizes)
        return tuple(value) if isinstance(value, list) else value
    return _decode_tensor(form, reader, sizes)


def put_plain(tensor: Tensor, writer: Writer) -> str:
    """Append a tensor number by number, float64 as float32, and return the stream."""
    stored = tensor.float() if tensor.dtype == torch.float64 else tensor
    writer.put(name_of(stored.dtype), stored)
    return name_of(stored.dtype)


def take_plain(shape: torch.Size, dtype: torch.dtype, reader: Reader) -> Tensor:
    """Read the next tensor that `put_plain` wrote."""
    stored = torch.float32 if dtype == torch.float64 else dtype
    return reader.take(name_of(stored), shape.numel()).reshape(shape)


def name_of(dtype: torch.dtype) -> str:
    """Return `float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Return torch.float32 for `float32`. Raises CheckpointError for another word."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"numbers are of a type of torch, found {name!r}")
    return dtype


def _encode_tensor(tensor: Tensor, writer: Writer, sizes: list[Any]) -> str:
    """Put real numbers as they are; whole ones as codes, gaps or a mask, whichever is the least, or as they are."""
    real = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    least, greatest = (0, 0) if real or tensor.numel() == 0 else map(int, tensor.long().aminmax())
    if real or least < 0 or greatest >= 1 << WIDEST:
        sizes.append(list(tensor.shape))
        return f"plain {put_plain(tensor, writer)}"
    flat, name = tensor.detach().reshape(-1).cpu().long(), name_of(tensor.dtype)
    width = greatest.bit_length()
    codes = flat.numel() * width
    if tensor.dim() == 1 and bool((flat.diff() > 0).all()):
        (gaps, field), mask = best_fields(flat), greatest + 1
        if gaps < min(codes, mask):
            fields = to_fields(flat, field)
            writer.put(BITS, pack(fields, field))
            sizes.append([len(fields), field])
            return f"gaps {name}"
        if mask < codes:
            writer.put(BITS, pack(torch.zeros(mask, dtype=torch.int64).index_fill_(0, flat, 1), 1))
            sizes.append([mask])
            return f"mask {name}"
    writer.put(BITS, pack(flat, width) if width else flat.new_empty(0, dtype=torch.uint8))
    sizes.append([*tensor.shape, width])
    return f"codes {name}"


def _decode_tensor(form: str, reader: Reader, sizes: Iterator[Any]) -> Tensor:
    """Read the next tensor."""
    encoding, _, name = form.partition(" ")
    size, dtype = _next(sizes), dtype_of(name)
    if not isinstance(size, list) or not all(type(part) is int and part >= 0 for part in size):
        raise CheckpointError(f"a tensor has whole sizes from 0 on, found {size}")
    if encoding == "plain":
        return take_plain(torch.Size(size), dtype, reader)
    *shape, width = (*size, 1) if encoding == "mask" else size
    if width > WIDEST:
        raise CheckpointError(f"a code has at most {WIDEST} bits, found {width}")
    codes = reader.take_codes(math.prod(shape), width)
    if encoding == "codes":
        return codes.reshape(shape).to(dtype)
    if encoding == "mask":
        return codes.nonzero().squeeze(1).to(dtype)
    if encoding == "gaps":
        return from_fields(codes, width).to(dtype)
    raise CheckpointError(f"a tensor is stored as plain, codes, gaps or mask, found {encoding!r}")


def _next(sizes: Iterator[Any]) -> Any:
    for size in sizes:
        return size
    raise CheckpointError("a Θ has fewer sizes than tensors and values")


def pack(codes: Tensor, width: int) -> Tensor:
    """Return codes (n,) below 2^width end to end, the lowest bit first: uint8 (ceil(n width / 8),)."""

    def packed(part: npt.NDArray[np.uint32]) -> Bytes:
        bits = np.unpackbits(part.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        return np.packbits(bits[:, :width], bitorder="little")

    return _in_chunks(packed, codes.detach().cpu().numpy().astype("<u4"), CHUNK)


def unpack(packed: Tensor, count: int, width: int) -> Tensor:
    """Return the codes, int64 (count,), of 1 bit or more, that `pack` put into uint8 (ceil(count width / 8),)."""

    def codes(part: Bytes) -> npt.NDArray[np.int64]:
        bits = np.unpackbits(part, bitorder="little", count=len(part) * 8 // width * width).reshape(-1, width)
        whole = np.zeros((len(bits), 32), dtype=np.uint8)
        whole[:, :width] = bits
        return np.packbits(whole, axis=1, bitorder="little").view("<u4").reshape(-1).astype(np.int64)

    return _in_chunks(codes, packed.numpy(), CHUNK * width // 8)[:count]


def _in_chunks(function: Callable[..., npt.NDArray[np.generic]], values: npt.NDArray[np.generic], size: int) -> Tensor:
    """Apply `function` to every `size` values and put the results end to end."""
    starts = range(0, max(1, len(values)), size)
    return torch.from_numpy(np.concatenate([function(values[start : start + size]) for start in starts]))


def bytes_of(count: int, width: int) -> int:
    """Return the bytes that so many codes take."""
    return -(-count * width // 8)


def to_fields(positions: Tensor, width: int) -> Tensor:
    """Write ascending positions as fields (n,) of `width` bits, `bits.position_bits`.

    A field is 0 (go on by 2^width - 1 positions) or what is left of the gap, 1 to 2^width - 1.
    """
    gaps = gaps_of(positions)
    fields = fields_of(gaps, width)
    written = gaps.new_zeros(int(fields.sum()))
    written[fields.cumsum(0) - 1] = gaps - (fields - 1) * (2**width - 1)
    return written


def from_fields(fields: Tensor, width: int) -> Tensor:
    """Return the positions that `to_fields` was given."""
    reached = torch.where(fields == 0, 2**width - 1, fields).cumsum(0) - 1
    return reached[fields != 0]
