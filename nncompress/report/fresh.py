"""Whether a report is whole and of its present inputs, as report.json beside it tells. Imports no pandas.

Times of files do not tell: copies and unpacked archives have new ones.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

from nncompress.errors import NNCompressError
from nncompress.files import is_held, read_file, read_json, write_bytes
from nncompress.results.records import COLUMNS, LOCK, RECORDS, SEARCH, SETTINGS, STATUS, SUMMARY

MADE = "report.json"
"""The digest of what a report was made of, and its files with the checksums of their contents; it is written last."""
PAGE = "report.html"
PARTS = ("tables", "plots")
"""The folders of a report."""
PART = re.compile(rf"({'|'.join(PARTS)})/[^/]+|{re.escape(PAGE)}")
"""The names of its files: others are not looked at."""
ENVIRONMENT = "environment.json"
INPUTS = (RECORDS, SUMMARY, STATUS, SETTINGS, COLUMNS, ENVIRONMENT)
"""What the report of a run is made of."""
ENDED = b'"done"'


def is_reported(folder: Path) -> bool:
    """Tell whether a run's tables and plots are there, whole and of its present files."""
    return is_whole(folder, digest_of(folder))


def is_whole(folder: Path, digest: str, wanted: Collection[str] = ()) -> bool:
    """Tell whether the report in a folder is of inputs with this digest, has the files wanted, and lacks none."""
    made = read_json(folder / MADE) or {}
    files = made.get("files")
    if made.get("digest") != digest or not isinstance(files, dict) or not set(wanted) <= set(files):
        return False
    return all(PART.fullmatch(name) and _sum(folder / name) == known is not None for name, known in files.items())


def mark(folder: Path, digest: str, paths: Iterable[Path]) -> None:
    """Say that the report in a folder is these files, made of inputs that had this digest before they were read."""
    files = {str(path.relative_to(folder)): _sum(path) for path in paths}
    write_part(folder / MADE, json.dumps({"digest": digest, "files": files}, indent=2).encode())


def write_part(path: Path, content: bytes) -> Path:
    """Write a file of a report, into a folder made when absent; return its path.

    Raises:
        NNCompressError: it cannot be written; something else may be in its place.
    """
    try:
        if path.parent.name in PARTS and path.parent.is_symlink():
            raise FileExistsError(errno.EEXIST, "it is a link, which may lead anywhere")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, lasting=False)
    except OSError as error:
        place = path if path.parent.is_dir() else path.parent
        raise NNCompressError(
            f"a report needs to write {path}, found that {place} cannot be written ({error.strerror}); move what is "
            "there away, or make room for it"
        ) from error
    return path


def digest_of(folder: Path) -> str:
    """Return the digest of what a run's report is made of, this version of the code among it."""
    contents = {name: _content(folder / name) for name in INPUTS}
    held = ENDED not in contents[STATUS] and is_held(folder / LOCK)  # tells killed from running
    return _digest([_code(), str(held).encode(), *contents.values()])


def digest_of_sweep(folder: Path, runs: Mapping[Path, str]) -> str:
    """Return the digest of what a sweep's report is made of, from the digests of its runs by their folders."""
    parts = (f"{run.relative_to(folder)}\0{digest}" for run, digest in runs.items())
    return _digest([_code(), _content(folder / SEARCH), *(part.encode(errors="surrogateescape") for part in parts)])


@cache
def _code() -> bytes:
    """Return the source that makes reports."""
    package = Path(__file__).parents[1]
    sources = sorted(path for part in ("report", "results") for path in (package / part).rglob("*.py"))
    return _digest(map(_content, sources)).encode()


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8) + part)
    return total.hexdigest()


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError:
        return b""


def _sum(path: Path) -> int | None:
    """Return a checksum of a file's content: it tells an edit, at a third of the time of a digest."""
    try:
        return zlib.crc32(read_file(path))
    except (OSError, ValueError):  # ValueError: of a name that no file can have
        return None
