"""Whole numbers in few bits, and Θ as streams of numbers: what is written is read again, and is as long as counted."""

import itertools
import json
import math
from typing import Any, NamedTuple

import pytest
import torch
from cases import case
from compression_cases import CASES
from problems import randn
from torch import Tensor

from nncompress.artefact import encoding
from nncompress.artefact.encoding import (
    BITS,
    Reader,
    Writer,
    bytes_of,
    decode,
    dtype_of,
    encode,
    from_fields,
    name_of,
    pack,
    put_plain,
    take_plain,
    to_fields,
    unpack,
)
from nncompress.compressions.base import map_tensors
from nncompress.compressions.bits import best_fields, position_bits
from nncompress.compressions.sparsity.structured import NM
from nncompress.errors import CheckpointError


def numbers(count: int, width: int, seed: int = 0) -> Tensor:
    """Codes of at most `width` bits, the least and the greatest among them."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << width, (count,), generator=g)
    codes[:1], codes[1:2] = (1 << width) - 1, 0
    return codes


def positions(count: int, size: int, seed: int = 0) -> Tensor:
    """Ascending positions below `size`."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].sort().values


# Codes.


def test_codes_of_every_width_are_read_as_they_were_written():
    for width, count in itertools.product(range(1, 33), (0, 1, 2, 7, 8, 9, 31, 64, 65)):
        with case(width=width, count=count):
            codes = numbers(count, width)
            found = pack(codes, width)
            assert found.dtype == torch.uint8
            assert found.shape == (bytes_of(count, width),) == (math.ceil(count * width / 8),)
            again = unpack(found, count, width)
            assert again.dtype == torch.int64
            assert torch.equal(again, codes)


def test_codes_of_no_bits_are_zeros_of_which_there_are_only_so_many():
    reader = Reader({}, blank=10)
    assert reader.take_codes(7, 0).tolist() == [0] * 7
    with pytest.raises(CheckpointError, match="4 codes of no bits are described"):
        reader.take_codes(4, 0)


def test_chunks_leave_no_seam(monkeypatch):
    sizes = [*itertools.product((1, 2, 3, 5, 7, 8, 9, 13, 16, 31, 32), (7, 8, 16, 17, 63, 64, 65, 200))]
    whole = {(width, count): pack(numbers(count, width), width) for width, count in sizes}
    monkeypatch.setattr(encoding, "CHUNK", 8)
    for (width, count), expected in whole.items():
        with case(width=width, count=count):
            assert torch.equal(pack(numbers(count, width), width), expected)
            assert torch.equal(unpack(expected, count, width), numbers(count, width))


def test_a_real_chunk_is_passed_over_in_few_bits():
    codes = numbers(encoding.CHUNK + 3, 3)
    assert encoding.CHUNK % 8 == 0
    assert torch.equal(unpack(pack(codes, 3), len(codes), 3), codes)


def test_the_lowest_bit_comes_first_and_codes_cross_bytes():
    for codes, width, layout in [
        ([1, 0, 0, 0, 0, 0, 0, 1, 1], 1, [0b10000001, 0b1]),
        ([1, 2, 3, 0, 2], 2, [0b00111001, 0b10]),
        ([5, 3, 6], 3, [0b10_011_101, 0b1]),
        ([0x123, 0xABC], 12, [0x23, 0xC1, 0xAB]),
        ([0x01020304, 0xFFFFFFFF], 32, [4, 3, 2, 1, 255, 255, 255, 255]),
    ]:
        with case(codes=codes, width=width):
            assert pack(torch.tensor(codes), width).tolist() == layout


def test_codes_of_any_whole_type_and_layout_are_taken():
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64):
        with case(dtype=dtype):
            codes = torch.tensor([[1, 0, 1], [0, 0, 1]]).to(dtype).T.reshape(-1)
            assert unpack(pack(codes, 1), 6, 1).tolist() == [1, 0, 0, 0, 1, 1]
            strided = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0]).to(dtype)[::2]  # not contiguous
            assert pack(strided, 1).tolist() == [0b1110]


# Positions.


def test_fields_give_the_positions_again():
    sizes = ((0, 5), (1, 1), (1, 5000), (5, 5), (40, 5000), (700, 1000))
    for width, seed, (count, size) in itertools.product((2, 3, 4, 8, 16, 32), range(3), sizes):
        with case(width=width, seed=seed, count=count, size=size):
            ascending = positions(count, size, seed)
            fields = to_fields(ascending, width)
            assert torch.equal(from_fields(fields, width), ascending)
            assert bool((fields >= 0).all())
            assert bool((fields < 2**width).all())


def test_a_gap_takes_as_many_fields_as_it_needs():
    """Fields of 2 bits: 0 goes on by 3. Gaps 1, 3, 4, 7 and 9, the first counted from -1."""
    ascending = torch.tensor([0, 3, 7, 14, 23])
    assert to_fields(ascending, 2).tolist() == [1, 3, 0, 1, 0, 0, 1, 0, 0, 3]
    assert from_fields(torch.tensor([1, 3, 0, 1, 0, 0, 1, 0, 0, 3]), 2).tolist() == ascending.tolist()


def test_the_fields_of_the_best_width_have_exactly_the_bits_that_are_counted():
    for seed, (count, size) in itertools.product(range(3), ((0, 1), (1, 9), (3, 100_000), (50, 400), (99, 100))):
        ascending = positions(count, size, seed)
        bits, width = best_fields(ascending)
        assert bits == position_bits(ascending) == width * len(to_fields(ascending, width))


# Θ.


def written(theta: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """Form, sizes (as JSON keeps both) and streams."""
    writer, sizes = Writer(), []
    form = encode(theta, writer, sizes)
    form, sizes = json.loads(json.dumps([form, sizes]))
    return form, sizes, writer.streams()


def read(form: Any, sizes: Any, streams: dict[str, Tensor], kind: type[Any] | None = None) -> Any:
    """What was written, every number of it."""
    reader, left = Reader(streams), iter(sizes)
    kinds = {f"{k.__module__}.{k.__qualname__}": k for k in ([kind] if kind else [])}
    value = decode(form, reader, left, lambda path: kinds.get(path) or find_class(path))
    reader.end()
    assert list(left) == []
    return value


def find_class(path: str) -> type[Any]:
    from nncompress.artefact.objects import find_class

    return find_class(path)


def through(theta: Any, kind: type[Any] | None = None) -> Any:
    return read(*written(theta), kind)


def single(value: Any) -> Any:
    """Real numbers of 64 bits as of 32."""
    return map_tensors(value, lambda t: t.float() if t.dtype == torch.float64 else t)


def tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(value, lambda t: found.append(t) or t)
    return found


def assert_equal(a: Any, b: Any) -> None:
    """The same classes, values, types and shapes."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b) or torch.equal(torch.isnan(a), torch.isnan(b))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def test_theta_of_every_compression_comes_back_and_takes_the_bytes_that_are_counted():
    for param in CASES:
        compression, shape, _ = param.values
        with case(name=param.id):
            theta = compression.compress(randn(*shape, seed=3))
            form, sizes, streams = written(theta)
            again = read(form, sizes, streams)
            assert_equal(again, single(theta))
            # products of equal numbers may be rounded otherwise where these lie otherwise in memory
            found, expected = (
                compression.decompress(map_tensors(value, lambda t: t.contiguous().clone()))
                for value in (again, single(theta))
            )
            assert torch.equal(found, expected)
            assert expected.dtype == torch.float32
            stored = sum(stream.numel() * stream.element_size() for stream in streams.values())
            if not isinstance(compression, NM):  # what pads its last groups is stored, but not counted
                assert stored <= math.ceil(compression.bits(theta) / 8) + len(tensors_in(theta))


def test_what_pads_a_short_last_group_is_all_that_n_m_stores_above_its_bits():
    compression = NM(1, 3)
    theta = compression.compress(randn(4, 7))  # groups of 3, 3 and 1: none is padded beyond the one that is kept
    streams = written(theta)[2]
    assert sum(s.numel() * s.element_size() for s in streams.values()) == math.ceil(compression.bits(theta) / 8)
    compression = NM(2, 3)
    theta = compression.compress(randn(4, 7))  # groups of 3, 3 and 1: of the last ones 1 of 2 is padding
    streams = written(theta)[2]
    padding = 4 * (32 + 2)
    stored = sum(s.numel() * s.element_size() for s in streams.values())
    assert stored == math.ceil((compression.bits(theta) + padding) / 8)


FORMS = [
    (torch.tensor([0, 1, 2, 3]).reshape(2, 2), "codes int64", [[2, 2, 2]], 1),
    (torch.tensor(5), "codes int64", [[3]], 1),
    (torch.zeros(3, 3, dtype=torch.uint8), "codes uint8", [[3, 3, 0]], 0),
    (torch.zeros(0, dtype=torch.int64), "codes int64", [[0, 0]], 0),
    (torch.tensor([1000, 9000, 20000]), "gaps int64", [[3, 14]], 6),
    (torch.arange(40), "mask int64", [[40]], 5),
    (torch.tensor([[True, False], [True, True]]), "codes bool", [[2, 2, 1]], 1),
    (torch.tensor([-1, 2]), "plain int64", [[2]], 16),
    (torch.tensor([0, 2**32 - 1]), "codes int64", [[2, 32]], 8),
    (torch.tensor([2**32, 0]), "plain int64", [[2]], 16),
    (torch.tensor([1.5, 2.5], dtype=torch.float64), "plain float32", [[2]], 8),
    (torch.tensor([1.5], dtype=torch.float16), "plain float16", [[1]], 2),
    (torch.tensor([1.5], dtype=torch.bfloat16), "plain bfloat16", [[1]], 2),
    (torch.zeros(0, 4), "plain float32", [[0, 4]], 0),
]


def test_a_tensor_is_stored_in_the_form_that_takes_the_least():
    for tensor, form, sizes, bytes_ in FORMS:
        with case(tensor=tensor, form=form):
            found = written(tensor)
            assert found[:2] == (form, sizes)
            assert sum(stream.numel() * stream.element_size() for stream in found[2].values()) == bytes_
            assert_equal(read(*found), single(tensor))


class Inner(NamedTuple):
    """A user's own."""

    k: int
    t: Tensor


class Own(NamedTuple):
    """A user's own Θ."""

    positions: Tensor
    keep: Tensor
    half: Tensor
    signed: Tensor
    nested: tuple[Any, ...]
    nothing: None
    word: str
    shape: tuple[int, ...]
    share: float
    empty: tuple[()]


def test_a_users_own_theta_comes_back_whole():
    theta = Own(
        torch.tensor([2, 3, 900]),
        torch.tensor([True, False, True]),
        torch.tensor([[0.5, -2.0]], dtype=torch.float16),
        torch.tensor([-3, 7], dtype=torch.int32),
        (torch.ones(2), None, "x", (torch.tensor([4, 1]), ((1, 2), (3, 4))), Inner(3, torch.tensor([1.0]))),
        None,
        "word",
        (3, 4, 5),
        0.1,
        (),
    )
    form, sizes, streams = written(theta)
    kinds = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (Own, Inner)}
    left = iter(sizes)
    assert_equal(decode(form, Reader(streams), left, kinds.__getitem__), theta)
    assert list(left) == []


def test_theta_on_views_and_with_gradients_is_stored_by_its_values():
    base = torch.arange(12.0).reshape(3, 4)
    theta = Inner(1, base.T[1:].requires_grad_())
    again = through(theta, Inner)
    assert torch.equal(again.t, theta.t)
    assert not again.t.requires_grad


def test_real_numbers_that_are_none_are_kept():
    values = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    again = through(values)
    assert torch.equal(again.view(torch.int32), values.view(torch.int32))


def test_equal_layers_have_equal_forms_and_only_other_sizes():
    compression = CASES[5].values[0]  # l0
    (a, sizes_a, _), (b, sizes_b, _) = (written(compression.compress(randn(60, n))) for n in (50, 80))
    assert a == b
    assert sizes_a != sizes_b


# Bad streams and forms.


def test_plain_tensors_follow_each_other():
    writer, tensors = Writer(), [torch.ones(2, 3), torch.arange(4), torch.zeros(1, dtype=torch.float64)]
    for tensor in tensors:
        put_plain(tensor, writer)
    reader = Reader(writer.streams())
    for tensor in tensors:
        assert_equal(take_plain(tensor.shape, tensor.dtype, reader), single(tensor))
    reader.end()


def test_more_numbers_than_there_are_and_numbers_left_over_are_refused():
    reader = Reader({"float32": torch.zeros(5)})
    assert reader.take("float32", 3).shape == (3,)
    with pytest.raises(CheckpointError, match=r"3 more numbers of float32 are described, found 2"):
        reader.take("float32", 3)
    with pytest.raises(CheckpointError, match=r"3 numbers of float32 are described, found 5"):
        reader.end()
    with pytest.raises(CheckpointError, match=r"1 more numbers of int8 are described, found 0"):
        reader.take("int8", 1)
    with pytest.raises(CheckpointError, match="-1 more numbers"):
        reader.take("float32", -1)
    reader.take("float32", 2)
    reader.end()
    assert reader.take("float16", 0).dtype == torch.float16


WRONG = [
    ("codes", [[2, 2]], "a type of torch, found ''"),
    ("codes tensor", [[2, 2]], "found 'tensor'"),
    ("codes nothing", [[2, 2]], "found 'nothing'"),
    ("bytes int64", [[1, 2]], "plain, codes, gaps or mask, found 'bytes'"),
    ("codes int64", [[900, 2]], "more numbers of bits"),
    ("codes int64", [], "fewer sizes"),
    (["value", "value"], [3], "fewer sizes"),
    ({"class": "tests.Inner", "k": "value", "t": "value"}, [3], "fewer sizes"),
]


def test_wrong_forms_are_refused_in_words():
    streams = {BITS: torch.zeros(10, dtype=torch.uint8)}
    for form, sizes, said in WRONG:
        with case(form=form, sizes=sizes), pytest.raises(CheckpointError, match=said):
            decode(form, Reader(streams), iter(sizes), lambda path: Inner)


def test_types_have_their_own_names():
    for dtype in (torch.float32, torch.float8_e4m3fn, torch.bool, torch.int64, torch.bfloat16):
        assert dtype_of(name_of(dtype)) is dtype
