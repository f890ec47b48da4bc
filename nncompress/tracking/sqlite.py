"""Databases of other libraries in sqlite files: made whole or not at all, and told in one sentence when damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nncompress.errors import NNCompressError, one_line, printable
from nncompress.files import hold, remove_unfinished

OF_CONTENT = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Sqlite's codes for what is wrong with what a database holds."""
OF_FILE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
"""Those for a file that cannot be read, or is none; all others are of the moment: it is locked, the disk is full."""

PATIENCE = 60
"""Seconds to wait for another process that writes to a database."""


def make_absent(path: Path, make: Callable[[Path], None]) -> None:
    """Let `make` make the database in a new folder beside `path`, unless something is there; whole, it takes the name.

    The caller keeps other processes away. What killed ones left is removed.

    Raises:
        NNCompressError: the journal of another database is there, which sqlite would play into the new one.
    """
    remove_unfinished(path.parent.glob(f".{escape(path.name)}.*.tmp"))
    if os.path.lexists(path):
        return
    for journal in (path.with_name(f"{path.name}-{part}") for part in ("journal", "wal")):
        if journal.exists():
            raise NNCompressError(f"{path} is made beside nothing of an earlier one, found {journal}; move it away too")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        with hold(draft):
            with _unsynced():
                make(draft / path.name)
            with (draft / path.name).open("rb") as file:
                os.fsync(file.fileno())
            (draft / path.name).replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _unsynced() -> Iterator[None]:
    """Let sqlite wait for no disk: a file that has no name yet is synced once, when it is whole."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)


def ask(path: Path, question: str, *values: str) -> list[tuple[Any, ...]]:
    """Return what a database that is there answers. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", PATIENCE, uri=True)) as database:
        return database.execute(question, values).fetchall()


@contextmanager
def damage_told(path: Path, needed: str, remedy: str, *also: type[Exception]) -> Iterator[None]:
    """Turn what sqlite says of a damaged or unreadable file into a sentence; errors of the moment (locked) pass.

    Args:
        needed: what the file must be.
        remedy: what the user can do.
        also: errors that mean damage though they come from elsewhere; our own pass.

    Raises:
        NNCompressError: in place of what was raised.
    """
    try:
        yield
    except NNCompressError:
        raise
    except Exception as error:
        cause = _cause(error)
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if not isinstance(error, also) if cause is None else code not in (*OF_CONTENT, *OF_FILE):
            raise
        wrong = "cannot be read" if code in OF_FILE else "is damaged"
        found = one_line(cause or error)
        raise NNCompressError(f"{printable(str(path))} must be {needed}, but it {wrong} ({found}); {remedy}") from error


def _cause(error: BaseException) -> sqlite3.Error | None:
    """Return the error of sqlite that another one comes from, if any."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, sqlite3.Error):
        inner = inner.__cause__ or inner.__context__
    return inner
