"""Files and folders that appear whole or not at all, where nothing was. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from nncompress import locks
from nncompress.errors import ConfigError, NNCompressError


def check_free(path: Path, option: str) -> None:
    """Raise ConfigError when something is at `path` already (an empty folder is nothing); `option` gives another."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"nothing is overwritten, found {path}; give another place with {option}")


@contextmanager
def whole(path: Path, option: str) -> Iterator[Path]:
    """A path of the same name in a new folder beside `path`: what is made there is moved to `path` at the end.

    So is what lies beside it. When anything is raised within, an interruption included, nothing is left; what a killed
    process left is taken away by the next one.

    Raises:
        ConfigError: `path` is taken; NNCompressError: it cannot be written. `option` gives another.
    """
    check_free(path, option)
    shown, path = path, path.absolute()
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    apart = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _terminable(), ExitStack() as held:
            _remove_left(path.parent)
            apart.mkdir(parents=True)
            held.enter_context(locks.held(apart))
            yield apart / path.name
            for made in sorted(apart.iterdir()):
                check_free(path.with_name(made.name), option)
                made.replace(path.with_name(made.name))
            apart.rmdir()
    except BaseException as error:
        shutil.rmtree(apart, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and _concerns(error, apart):
            raise NNCompressError(
                f"cannot write {shown}: {error.strerror or error}; give another place with {option}"
            ) from error
        raise


def _remove_left(parent: Path) -> None:
    """Remove the new folders in which nobody is at work any more."""
    for left in parent.glob(".*.tmp"):
        with suppress(OSError):  # held by another process, or it is no folder
            place = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(place)


def _concerns(error: OSError, apart: Path) -> bool:
    """Whether it is about the new folder, one above it or a file in it; what fails within a file names none."""
    if error.filename is None:
        return not isinstance(error, BrokenPipeError)
    apart, name = apart.absolute(), Path(str(error.filename)).absolute()
    return name.is_relative_to(apart) or apart.is_relative_to(name)


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM is an exit (143) that cleans up, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
