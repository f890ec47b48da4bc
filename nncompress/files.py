"""Write files and folders whole or not at all, and let one process at a time hold a place. Imports no torch.

A hold ends with its process. A file system without locks lets everybody hold everything.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import numbers
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from nncompress.errors import ConfigError, NNCompressError

log = logging.getLogger(__name__)

GLANCE = 0.1
"""Seconds until a place that is held is tried again: somebody may only have asked whether it is (`is_held`)."""
SEAL = re.compile(rb'  "check": "[0-9a-f]{8}"\n\}\n$')
"""The end of a JSON file that is sealed."""
UNFINISHED = ".*.tmp"
"""The names of files and folders until they are whole: `.NAME.PID.tmp`."""
NESTED = 32
"""Lists and objects within each other that a JSON text may have."""


@contextmanager
def hold(path: Path, refusal: str = "", *, waiting: str | None = None) -> Iterator[None]:
    """Hold a folder, or a file that is made when absent: no other process does until the end of the block.

    Args:
        path: the place.
        refusal: what the user is told when another process holds it.
        waiting: with it the other process is waited for, once this has been logged (`""`: nothing is).

    Raises:
        ConfigError: another process holds the place, and it is not waited for.
    """
    place = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(place):
            time.sleep(GLANCE)
            if not _lock(place):
                if waiting is None:
                    raise ConfigError(refusal or f"{path} is held by another process")
                if waiting:
                    log.info("%s", waiting)
                fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def is_held(path: Path) -> bool:
    """Tell whether a process holds the place, or may: a file system without locks does not say. Writes nothing."""
    try:
        place = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(place, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not take each other for a holder
    except OSError:
        return True
    finally:
        os.close(place)
    return False


def _lock(place: int) -> bool:
    """Lock an open place unless another process has; False when one has."""
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there
        return True
    return True


def require_free(path: Path, option: str) -> None:
    """Raise ConfigError when something is at `path` already (an empty folder is nothing); `option` gives another."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"nothing is overwritten, found {path}; give another place with {option}")


@contextmanager
def create(path: Path, option: str) -> Iterator[Path]:
    """Give a path of the same name in a new folder; move what is made there, and beside it, to `path` at the end.

    When anything is raised within, an interruption included, nothing is left; what a killed process left is taken away
    by the next one.

    Raises:
        ConfigError: something is at `path` already; `option` gives another.
        NNCompressError: it cannot be written.
    """
    require_free(path, option)
    shown, path = path, path.absolute()
    missing = [folder for folder in path.parents if not folder.exists()]
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with exit_on_signals(), ExitStack() as held:
            remove_unfinished(left for left in path.parent.glob(UNFINISHED) if left.is_dir())
            draft.mkdir(parents=True)
            held.enter_context(hold(draft))
            yield draft / path.name
            for part in sorted(draft.iterdir()):
                require_free(path.with_name(part.name), option)
                part.replace(path.with_name(part.name))
            draft.rmdir()
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and _concerns(error, draft):
            raise NNCompressError(
                f"cannot write {shown}: {error.strerror or error}; give another place with {option}"
            ) from error
        raise


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove files that a killed process was writing, and folders that it was filling: those that nobody holds."""
    for path in list(paths):
        if path.is_dir() and not is_held(path):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)


def _concerns(error: OSError, draft: Path) -> bool:
    """Tell whether it is about the new folder, one above it or a file in it; what fails within a file names none."""
    if error.filename is None:
        return not isinstance(error, BrokenPipeError)
    name = Path(str(error.filename)).absolute()
    return name.is_relative_to(draft) or draft.is_relative_to(name)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Make SIGTERM an exit (143) that cleans up, in the main thread.

    So are SIGUSR1 and SIGUSR2, by which a cluster takes its machine back, where nobody handles them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    unhandled = [each for each in (signal.SIGUSR1, signal.SIGUSR2) if signal.getsignal(each) is signal.SIG_DFL]
    before = {each: signal.signal(each, _exit) for each in (signal.SIGTERM, *unhandled)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None without one, which is told in the log where it is damaged."""
    try:
        text = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("%s: ignored, it cannot be read (%s).", path, error.strerror)
        return None
    content, seal = parse_json(text), SEAL.search(text)
    if not isinstance(content, dict):
        log.warning("%s: ignored, it is damaged (no JSON object).", path)
        return None
    if seal is None:
        return content
    if zlib.crc32(text[: seal.start()]) != int(content.pop("check"), 16):
        log.warning("%s: ignored, it was changed after it was written.", path)
        return None
    return content


def read_file(path: Path, last: int | None = None) -> bytes:
    """Return the content of a file, or so many bytes at its end; a pipe is none, and not waited for. Raises OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if last is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - last))
        return file.read()


def parse_json(text: bytes) -> Any:
    """Return what a JSON text in UTF-8 says, None when it is damaged: half of it, nested too deep, no text in it.

    Integers are those of 64 bits, other numbers finite floats; what no float can hold is None.
    """
    try:
        whole = [json.loads(text.decode("utf-8-sig"))]
        _limit_numbers(whole, NESTED + 1)
        if b"\\ud" in text or b"\\uD" in text:
            json.dumps(whole, ensure_ascii=False).encode()  # raises ValueError for half of a surrogate pair
    except (ValueError, RecursionError):
        return None
    return whole[0]


def _limit_numbers(container: Any, depth: int) -> None:
    """Make the numbers in a list or dict of JSON those that `parse_json` names. Raises ValueError beyond the depth."""
    if depth == 0:
        raise ValueError(f"nested deeper than {NESTED}")
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        kind = type(value)
        if kind is float:
            if not -math.inf < value < math.inf:
                container[key] = None
        elif kind is int:
            if not -(1 << 63) <= value < 1 << 63:
                container[key] = float(value) if abs(value) <= sys.float_info.max else None
        elif kind is dict or kind is list:
            _limit_numbers(value, depth - 1)


def write_json(path: Path, obj: Any, sealed: bool = False) -> None:
    """Write a JSON file as `write_bytes` does; numbers that are not finite become null.

    sealed: whether an object gets a `check` as its last key, by which `read_json` notices what was changed afterwards.
    """
    text = json.dumps(finite(obj), indent=2, ensure_ascii=False)
    if sealed:
        body = f"{text[:-2]},\n"
        text = f'{body}  "check": "{zlib.crc32(body.encode()):08x}"\n}}'
    write_text(path, f"{text}\n")


def write_text(path: Path, text: str, lasting: bool = True) -> None:
    """Write a file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode(), lasting)


def write_bytes(path: Path, content: bytes | memoryview, lasting: bool = True) -> None:
    """Write a file whole or not at all: a new one that is on the disk before it takes the name.

    lasting: whether to wait for the disk; not for what is made again where it is not whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a link that somebody left there would be followed
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if lasting:
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


def finite(obj: Any) -> Any:
    """Return the object with every number that JSON cannot hold replaced by None, and numpy's numbers by Python's."""
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [finite(value) for value in obj]
    return finite_number(obj) if isinstance(obj, numbers.Real) else obj


def finite_number(value: Any) -> float | int | None:
    """Return the number as Python's own; None for one that is not finite."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None
