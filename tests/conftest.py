"""What every test gets: one thread, no display, no network."""

import io
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["golden"]

# Before torch or matplotlib are imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

KEPT: set[str] = set()
"""Modules that no test wrote: to look at all of them behind every test takes a minute."""


@pytest.fixture(scope="session", autouse=True)
def packaged_files_read_once() -> Iterator[None]:
    """The files of the packaged configuration are read once, not for each of some thousand compositions."""
    from composing import ReadOnce, loader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "CachingConfigRepository", ReadOnce)
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once instead of waiting for it."""

    def refuse(self: socket.socket, address: object) -> None:
        raise OSError(f"tests have no network, found a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What there is to download, by its address; it fills with what the test puts there."""
    from urllib.error import URLError

    import nncompress.data.files

    found: dict[str, bytes] = {}

    def opened(url: str) -> io.BytesIO:
        nncompress.data.files._check_address(url)
        if url not in found:
            raise URLError("Name or service not known")
        return io.BytesIO(found[url])

    monkeypatch.setattr(nncompress.data.files, "_open", opened)
    return found


@pytest.fixture(autouse=True)
def closed_logs() -> Iterator[None]:
    """The log files of a run from the command line are closed behind the test, and its console is let go."""
    yield
    root = logging.getLogger()
    kinds = (logging.FileHandler, logging.StreamHandler)  # no subclasses: pytest has handlers of its own
    for handler in [handler for handler in root.handlers if type(handler) in kinds]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def no_module_of_another_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test wrote and imported are forgotten, so that another may write one of the same name."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - KEPT:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(base):
            del sys.modules[name]
        else:
            KEPT.add(name)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, and commands that draw no pictures."""
    import torch

    import nncompress.sweeps.jobs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(nncompress.sweeps.jobs, "write_report", lambda folder: None)
    yield
    torch.set_deterministic_debug_mode("default")
