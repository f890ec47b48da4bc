"""Data files that claim more than they have, and mutated ones, read in this process under a limit on memory: a script.

python hostile_data.py COUNT SEED reads all that is `hostile`, then COUNT mutated files; it prints a line for each thing
that went wrong, then how many there were of each outcome. Run in an empty folder.
"""

import gzip
import io
import os
import pickle
import random
import resource
import struct
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nncompress.data.cifar import cifar10
from nncompress.data.files import LEAST, Source
from nncompress.data.har import har
from nncompress.data.image_folder import FORMATS, image_folder
from nncompress.data.mnist import mnist
from nncompress.data.npz import KEYS, npz
from nncompress.errors import DataError

ROOM = 4 * LEAST
"""Bytes beside those in use: the contents of a small file, in float32 and on the way there."""
NUMBERS = (0, 1, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
FIELDS = ("<B", ">H", "<H", ">I", "<I", ">Q", "<Q")
READERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "npz": ("mine.npz", lambda: npz(path="mine.npz")),
    "cifar": ("cifar-10-batches-py/data_batch_2", lambda: cifar10(root=".", download=False)),
    "mnist": ("MNIST/raw/t10k-images-idx3-ubyte", lambda: mnist(root=".", download=False)),
    "gzip": ("MNIST/raw/t10k-labels-idx1-ubyte.gz", lambda: mnist(root=".", download=False)),
    "har": ("UCI HAR Dataset/train/X_train.txt", lambda: har(root=".", download=False)),
    "image": ("pets/train/a/0.png", lambda: image_folder(path="pets")),
}
"""The file that is replaced, below the folder, and what reads it."""


def npz_file(
    headers: dict[str, bytes] | None = None, sizes: dict[str, int] | None = None, how: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """An .npz file of 4 and 2 samples, with the headers of some arrays and the sizes in the directory replaced."""
    arrays = {"x_train": np.zeros((4, 7)), "y_train": np.arange(4), "x_test": np.zeros((2, 7)), "y_test": np.arange(2)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", how) as file:
        for key in KEYS:
            plain = io.BytesIO()
            np.save(plain, arrays[key])
            header = (headers or {}).get(key)
            file.writestr(f"{key}.npy", plain.getvalue() if header is None else header + plain.getvalue()[128:])
            file.getinfo(f"{key}.npy").file_size = (sizes or {}).get(key, file.getinfo(f"{key}.npy").file_size)
    return content.getvalue()


def header(shape: object, kind: object = "<f8", version: int = 1) -> bytes:
    """The header of an .npy file."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


def batch(state: object = None, place: int = 1, kind: bytes = b"u1", more: bytes = b"") -> bytes:
    """A python batch of 4 images in the opcodes of the official ones."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = (
        b"cnumpy\ndtype\nU"
        + bytes([len(kind)])
        + kind
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    size = b"K\x04M\x00\x0c\x86" if state is None else pickle.dumps(state, 2)[2:-1]
    pixels = b"T" + struct.pack("<I", 4 * 3072) + bytes(4 * 3072)
    labels = b"](K\x00K\x01K\x02K\x03e"
    return (
        b"\x80\x02}r" + struct.pack("<I", place) + more + b"(U\x06labels" + labels
        + b"U\x04data" + array + b"(K\x01" + size + dtype + b"\x89" + pixels + b"tbu."
    )  # fmt: skip


def image(kind: str, mode: str = "L", side: int = 8) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (side, side)).save(content, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return content.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG whose header says that it is so large."""
    plain = image("PNG")
    chunk = b"IHDR" + struct.pack(">II", width, height) + plain[24:29]
    return plain[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]


def tiff(**fields: tuple[int, int, int]) -> bytes:
    """A grey TIFF of 8 x 8 pixels; fields: (tag, count, value), of type LONG."""
    known = {"w": (256, 1, 8), "h": (257, 1, 8), "b": (258, 1, 8), "c": (259, 1, 8), "p": (262, 1, 1)}
    known |= {"o": (273, 1, 8), "r": (278, 1, 8), "n": (279, 1, 64), **fields}
    rows = sorted(row for row in known.values() if row)
    data = zlib.compress(bytes(64)).ljust(64, b"\0")
    table = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in rows)
    return b"II*\0" + struct.pack("<I", 72) + data + struct.pack("<H", len(rows)) + table + bytes(4)


def webp(kind: bytes) -> bytes:
    """A WebP file whose header says that its canvas is as large as can be."""
    plain = image("WEBP", "RGB")
    if kind == b"VP8L":
        return plain[:21] + b"\xff\xff\xff\x0f" + plain[25:]
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\x00" * 2
    return b"RIFF" + struct.pack("<I", len(plain) - 8 + len(chunk)) + b"WEBP" + chunk + plain[12:]


def hostile() -> Iterator[tuple[str, str, bytes]]:
    """What has to be refused: the reader, what is wrong, the content of its file."""
    for shape in (
        (10**12,),
        (10**6, 10**6),
        (2**62, 4),
        (-2, -14),
        (4, 10**40),
        (0, 10**30),
        (True, 28.0),
        [4, 7],
        (4, 7, 10**9),
    ):
        yield "npz", f"shape {shape}", npz_file({"x_train": header(shape)})
    kinds: tuple[object, ...] = (
        "|O",
        "S0",
        "U1000000000",
        [("a", "<f8", (10**6, 10**6))],
        [("a", "<f8")],
        "<c16",
        7,
        "V8",
    )
    for kind in kinds:
        yield "npz", f"kind {kind}", npz_file({"x_train": header((4, 7), kind)})
    yield "npz", "deep header", npz_file({"x_train": header((4,)).replace(b"(4,)", b"(" * 4000)})
    yield "npz", "long header", npz_file({"x_train": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"})
    yield "npz", "version 9", npz_file({"x_train": header((4, 7), version=9)})
    yield "npz", "described as 1 TiB", npz_file(sizes={"x_test": 2**40})
    yield "npz", "described as smaller", npz_file(sizes={"x_test": 130})
    yield (
        "npz",
        "array and directory of 100 GiB",
        npz_file({"x_train": header((5 * 2**28, 10))}, {"x_train": 100 * 2**30 + 78}),
    )
    for how in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        yield "npz", f"compression {how}", npz_file(how=how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = io.BytesIO(npz_file())
        with zipfile.ZipFile(twice, "a") as file:
            file.writestr("x_test.npy", b"")
    yield "npz", "an array twice", twice.getvalue()

    yield "cifar", "cut", batch()[:-700]
    for state in ((4, 10**12), (10**6, 3072), (-1, 3072), (2, 6144), 3, (4.5, 3072), ()):
        yield "cifar", f"shape {state}", batch(state=state)
    for kind in (b"<f8", b"V4", b"U999999999", b"O"):
        yield "cifar", f"kind {kind!r}", batch(kind=kind)
    yield "cifar", "a place far out", batch(place=2**31 - 1)
    yield "cifar", "tuples in one another as a key", batch(more=b")" + b"\x85" * 10**6 + b"Ns")
    yield "cifar", "labels beyond the last", batch().replace(b"K\x03e", b"K\x0ae")
    yield "cifar", "labels of truth", batch().replace(b"K\x03e", b"\x88e")
    yield "cifar", "a label too few", batch().replace(b"K\x02K\x03e", b"K\x03e")
    yield (
        "cifar",
        "numbers instead of bytes",
        batch().replace(b"T\x00\x30\x00\x00" + bytes(4 * 3072), b"J\xff\xff\xff\x7f"),
    )
    for opcode, size in (
        (b"\x8e", "<Q"),
        (b"\x8d", "<Q"),
        (b"\x96", "<Q"),
        (b"B", "<I"),
        (b"X", "<I"),
        (b"T", "<i"),
        (b"\x8b", "<i"),
    ):
        most = 2**40 if size == "<Q" else 2**31 - 1
        yield "cifar", f"a length behind {opcode!r}", batch(more=opcode + struct.pack(size, most))
    yield "cifar", "a long frame", b"\x80\x04\x95" + struct.pack("<Q", 2**60) + batch()[2:]
    yield "cifar", "an array made by the file", batch().replace(b"cnumpy\nndarray", b"c__builtin__\nbytearray")

    yield "mnist", "a billion images", struct.pack(">IIII", 0x803, 10**9, 28, 28) + bytes(784)
    yield "mnist", "sides that overflow", struct.pack(">IIII", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    yield "gzip", "more than the official file", gzip.compress(bytes(10**6))
    yield "har", "rows of one number", b"1 " * 561 + b"\n" + b"1\n" * 20000
    yield "har", "rows of one number behind other line ends", b"1 " * 561 + b"\r" + b"1\r" * 20000
    yield "har", "a long row", b"1 " * 200000 + b"\n"
    yield "har", "a quotation", b'"' + b"1 " * 560 + b"1\n" + b"1 " * 561 + b"\n"

    for width, height in ((60000, 60000), (2**31 - 1, 2**31 - 1), (10000, 10000), (1, 2**31 - 1), (0, 8)):
        yield "image", f"PNG of {width} x {height}", png(width, height)
    yield "image", "much of nothing", image("PNG", "1", 8000)
    yield "image", "BMP", image("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + image("BMP")[26:]
    yield "image", "GIF", image("GIF").replace(b"\x08\x00\x08\x00", b"\xff\xff\xff\xff")
    yield "image", "JPEG", image("JPEG").replace(b"\x00\x08\x00\x08", b"\xff\xff\xff\xff")
    yield "image", "PPM", b"P6 99999 99999 255\n" + bytes(192)
    yield "image", "WebP", webp(b"VP8L")
    yield "image", "WebP with a canvas", webp(b"VP8X")
    yield "image", "TIFF", tiff(w=(256, 1, 60000), h=(257, 1, 60000))
    tiles = {"t": (322, 1, 32752), "l": (323, 1, 65520), "a": (324, 1, 8), "s": (325, 1, 64)}
    yield "image", "TIFF with large tiles", tiff(**tiles, o=(), r=(), n=())
    yield "image", "a mode without a largest value", image("TIFF", "F")
    yield "image", "a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    yield "image", "nothing", b""


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")


def write_sets() -> None:
    """Small whole data sets in the current folder."""
    files = {"mine.npz": npz_file(), **{f"cifar-10-batches-py/data_batch_{i}": batch() for i in range(1, 6)}}
    files |= {"cifar-10-batches-py/test_batch": batch(), "cifar-10-batches-py/batches.meta": b""}
    for part, n in (("train", 4), ("t10k", 2)):
        files[f"MNIST/raw/{part}-images-idx3-ubyte"] = struct.pack(">IIII", 0x803, n, 28, 28) + bytes(784 * n)
        files[f"MNIST/raw/{part}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, n) + bytes(n)
    files["MNIST/raw/t10k-labels-idx1-ubyte.gz"] = gzip.compress(files["MNIST/raw/t10k-labels-idx1-ubyte"])
    for part in ("train", "test"):
        files[f"UCI HAR Dataset/{part}/X_{part}.txt"] = (b"-0.5e+0 " * 561 + b"\r\n") * 2
        files |= {f"UCI HAR Dataset/{part}/{name}_{part}.txt": b"1\n2\n" for name in ("y", "subject")}
        files |= {f"pets/{part}/{name}/{i}.png": image("PNG") for name in "ab" for i in range(2)}
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def outcome(kind: str, content: bytes) -> str:
    """Read the data set with another content of its file: `read`, `refused`, or what went wrong."""
    name, read = READERS[kind]
    path, plain = Path(name), Path(name).read_bytes()
    path.write_bytes(content)
    if kind == "gzip":
        path.with_suffix("").unlink(missing_ok=True)
    try:
        read()
        return "read"
    except DataError as error:
        cause: BaseException | None = error
        while cause := cause and cause.__cause__:
            if isinstance(cause, MemoryError) or any(word in str(cause) for word in ("alloc", "memory", "error -9")):
                return f"out of memory: {cause!r}"[:300]
        return "refused" if len(str(error)) < 2000 and "\n" not in str(error) else f"a long sentence: {error}"[:300]
    except Exception as error:
        return repr(error)[:300]
    finally:
        path.write_bytes(plain)


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """One of the files with a few wrong numbers, bytes or pieces."""
    kind = rng.choice([*READERS, "image", "npz", "cifar"])
    plain = Path(READERS[kind][0]).read_bytes()
    if kind == "image":
        plain = image(rng.choice(FORMATS), rng.choice(("1", "L", "RGB")))
    elif kind == "npz":
        shape = tuple(rng.choice((*NUMBERS, 4, 7, -1)) for _ in range(rng.randrange(4)))
        lies = {rng.choice(KEYS): header(shape, rng.choice(("<f8", "|u1", "<f2", "|b1", "S9", "|O", "<M8[s]")))}
        plain = npz_file(
            rng.choice(({}, lies)), rng.choice(({}, {rng.choice(KEYS): rng.choice(NUMBERS[:10])})), rng.choice((0, 8))
        )
    content = bytearray(plain)
    start = 400 if rng.random() < 0.7 else len(content)  # most headers are at the beginning
    for _ in range(rng.randrange(3)):
        at, field = rng.randrange(min(start, len(content)) + 1), rng.choice(FIELDS)
        number = struct.pack(field, rng.choice(NUMBERS) % 256 ** struct.calcsize(field))
        piece = rng.choice((number, rng.randbytes(rng.randrange(9)), bytes(content[at : at + 40])))
        content[at : at + rng.choice((0, len(piece), len(piece) + 3))] = piece
    return kind, bytes(content[: rng.choice((len(content),) * 4 + (rng.randrange(len(content) + 1),))])


def main(count: int, seed: int) -> None:
    write_sets()
    Source.check_content = lambda self, name: None  # type: ignore[method-assign]
    found: Counter[str] = Counter()
    for kind in READERS:
        assert outcome(kind, Path(READERS[kind][0]).read_bytes()) == "read", kind
    threatening, rng = list(hostile()), random.Random(seed)
    for kind in FORMATS:
        outcome("image", image(kind))  # Pillow imports its formats when they are asked for
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    for kind, wrong, content in threatening:
        said = outcome(kind, content)
        found[said if said == "refused" else "wrong"] += 1
        if said != "refused":
            say(f"{kind}, {wrong}: {said}")
    for number in range(count):
        kind, content = mutated(rng)
        said = outcome(kind, content)
        found[said if said in ("read", "refused") else "wrong"] += 1
        if said not in ("read", "refused"):
            Path(f"wrong{number}").write_bytes(content)
            say(f"{kind}, number {number}: {said}")
    say(dict(sorted(found.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
