"""Files and folders written whole or not at all, and held by one process at a time. Imports no torch.

A hold ends with its process. A file system without locks lets everybody hold everything.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import numbers
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from nncompress.errors import ConfigError, NNCompressError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

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
        with _terminable(), ExitStack() as claim:
            _remove_left(path.parent)
            apart.mkdir(parents=True)
            claim.enter_context(held(apart))
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


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None without one, which is told in the log where the file is damaged."""
    try:
        content = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if isinstance(content, dict):
        return content
    log.warning("%s: ignored, it is damaged (no JSON object).", path)
    return None


def write_json(path: Path, obj: Any) -> None:
    """Write a JSON file whole or not at all (a new file, then renamed); numbers that are not finite become null."""
    text = json.dumps(finite(obj), indent=2, ensure_ascii=False) + "\n"
    replace_bytes(Path(path), text.encode())


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all: a new one that is on the disk before it takes the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except FileNotFoundError:  # a run that began in this folder took it for what a killed process left
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError:
        with suppress(OSError):  # half of it may be what fills the disk
            temporary.unlink(missing_ok=True)
        raise


def finite_number(value: Any) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def finite(obj: Any) -> Any:
    """The object with every number that JSON cannot hold replaced by None, and numpy's numbers by Python's."""
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [finite(value) for value in obj]
    return finite_number(obj) if isinstance(obj, numbers.Real) else obj


def parse_json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
