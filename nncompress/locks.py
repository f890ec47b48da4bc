"""Files and folders that one process holds at a time. The hold ends with the process. Imports no torch.

A file system without locks lets everybody hold everything.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GLANCE = 0.1
"""Seconds until a file that is taken is looked at again: somebody may only have asked whether it is (`taken`)."""


@contextmanager
def held(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder, or a file that is made when absent. With `waiting`, which is called then, wait for who has it.

    Raises:
        BlockingIOError: another process holds it, and there is no `waiting`.
    """
    place = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _tried(place):
            time.sleep(GLANCE)
            if not _tried(place):
                if waiting is None:
                    raise BlockingIOError(f"{path} is held by another process")
                waiting()
                fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def taken(path: Path) -> bool:
    """Whether a process holds the file, or may: a file system without locks does not tell. Writes nothing."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not take each other for a holder
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _tried(place: int) -> bool:
    """Hold an open file unless somebody else does; whether nobody did."""
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there
        return True
    return True
