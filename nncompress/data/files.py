"""Data files on disk: found, checked, fetched."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from nncompress.errors import DataError, one_line, printable
from nncompress.files import hold

log = logging.getLogger(__name__)

EXPANSION = 1100
"""Bytes of contents for a byte of data files at the most: DEFLATE, in npz, gz and PNG files, makes 1032 of one."""
LEAST = 64 << 20
"""Bytes of contents that files may have however small they are: a blank page takes a few bytes for millions of pixels.

While contents are read and become float32, they take up to ten times their own bytes.
"""

TIMEOUT = 60.0
"""Seconds without a byte before a download is given up."""

TEMPORARY = ".download-"
"""How the folders begin into which files are downloaded."""


class Official(NamedTuple):
    """The md5 and the size in bytes of a published file, as far as they are known."""

    md5: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """Where the files of a data set lie on disk, and where they come from.

    - title: the data set's name in messages.
    - root: the data folder.
    - folder: the data set's folder inside it.
    - files: what is known of each, by name relative to `folder`.
    - url: where a person finds them.
    - optional: the files that can be done without, but come with a download; none.
    - hint: one more way out, put into the messages; none.
    """

    title: str
    root: Path
    folder: Path
    files: Mapping[str, Official]
    url: str
    optional: frozenset[str] = frozenset()
    hint: str = ""

    def path(self, name: str) -> Path:
        """Return where the file is looked for."""
        return self.folder / name

    def absent(self) -> list[str]:
        """Return the files that are not there."""
        return [name for name in self.files if not self.path(name).is_file()]

    def missing(self) -> list[str]:
        """Return the files that are not there and are needed."""
        return [name for name in self.absent() if name not in self.optional]

    def not_found(self, failure: str = "") -> DataError:
        """Return the error for missing files; `failure` says why a download did not work, empty when none was tried."""
        tried = f"the download failed ({failure}), get" if failure else "set data.download=true to fetch them, or get"
        return DataError(
            f"{self.title} needs {', '.join(self.missing())}, not found in {self.folder}: {tried} them from "
            f"{self.url}, or point data_dir (or $NNCOMPRESS_DATA), now {self.root}, to the folder that has "
            f"them{self.hint}."
        )

    def damaged(self, name: str, complaint: str) -> DataError:
        """Return the error for a file that is not what it should be; `complaint` says what was required and found."""
        official = self.files.get(name, Official())
        known = [f"{official.size} bytes"] * (official.size is not None) + [f"md5 {official.md5}"] * bool(official.md5)
        published = f"; the official file: {', '.join(known)}" if known else ""
        return DataError(
            f"{self.path(name)} is damaged: {complaint} (this file: {describe(self.path(name))}{published}); "
            f"delete it and run again with data.download=true, or get it from {self.url}."
        )

    def check_content(self, name: str) -> None:
        """Raise DataError for a file as long as the official one (if its length is known) with other content."""
        official = self.files[name]
        same_size = official.size in (None, self.path(name).stat().st_size)
        if official.md5 and same_size and checksum(self.path(name), "md5") != official.md5:
            raise self.damaged(name, "its content differs from the official file's")


def check_expansion(contents: int, size: int) -> None:
    """Raise ValueError where files of `size` bytes say that they have more bytes of `contents` than such files may."""
    most = max(LEAST, EXPANSION * size)
    if contents > most:
        raise ValueError(f"{size:,} bytes may have {most:,} bytes of contents at the most, {contents:,} are described")


def unpack(packed: IO[bytes] | GzipFile, path: Path, most: int | None) -> None:
    """Write what is read from `packed` into the file `path`.

    Raises EOFError for more than `most` bytes, the size of the official file where it is known.
    """
    with open(path, "wb") as file:
        while part := packed.read(1 << 20):
            file.write(part)
            if most is not None and file.tell() > most:
                raise EOFError(f"the official file ends after {most:,} bytes, found more")


def reason(error: Exception) -> str:
    """Return what a library says against a file, for a message: its words may come from the file."""
    return printable(one_line(error))[:200]


def checksum(path: Path, kind: str) -> str:
    """Return the checksum of a file, `md5` or `sha256`, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def describe(path: Path) -> str:
    """Describe a file by its size and checksum, for a message."""
    if not path.is_file():
        return "no file"
    try:
        return f"{path.stat().st_size} bytes, md5 {checksum(path, 'md5')}"
    except OSError as error:
        return str(error)


def fetch(source: Source, download: bool, fill: Callable[[Path], Path]) -> None:
    """Download the absent files of `source` when some are missing; files that are there are left alone.

    `fill` downloads into a temporary folder inside the data folder and returns the folder that holds the files, which
    are then renamed into place: an interrupted download leaves nothing behind, a killed one what the next takes away.
    Of several processes one downloads. Raises DataError when it fails or is not wanted (`download`).
    """
    if not source.missing():
        return
    if not download:
        raise source.not_found()
    try:
        source.root.mkdir(parents=True, exist_ok=True)
        with hold(source.root, waiting=f"waiting for the process that fetches files into {source.root}"):
            for left in source.root.glob(f"{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)
            if not source.missing():
                return
            log.info("Downloading %s into %s", source.title, source.folder)
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=source.root) as temporary:
                filled = fill(Path(temporary))
                for name in source.absent():
                    source.path(name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(filled / name, source.path(name))
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise source.not_found(_last_line(error)) from error


def download(url: str, path: Path, checksum: str) -> None:
    """Fetch a file over https into the new file `path`. checksum: `sha256:` or `md5:` and hexadecimal digits.

    Raises OSError when it is not to be had, has another checksum, or the address or one it leads to is not https.
    """
    kind, _, expected = checksum.partition(":")
    with _open(url) as response, open(path, "wb") as file:
        shutil.copyfileobj(response, file)
    check(path, kind, expected, url)


def check(path: Path, kind: str, expected: str, name: str) -> None:
    """Raise OSError for a file with another checksum than the one expected; `name` is what it is called."""
    actual = checksum(path, kind)
    if actual != expected:
        raise OSError(f"{name} has {kind} {actual}, {expected} is required")


class _Secure(HTTPRedirectHandler):
    """Follows https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise URLError(f"https is required, found {url}")


def _open(url: str) -> Any:
    """Open an address, waiting no longer than `TIMEOUT` for a byte."""
    _check_address(url)
    return build_opener(_Secure()).open(url, timeout=TIMEOUT)


def _last_line(error: Exception) -> str:
    """Return the last line of an error, without urllib's brackets."""
    lines = str(getattr(error, "reason", error)).strip().splitlines() or [type(error).__name__]
    return lines[-1].removeprefix("<urlopen error ").removesuffix(">")
