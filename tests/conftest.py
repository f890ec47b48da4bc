"""What every test gets: one thread, no display, no network."""

import os
import socket

import pytest

# Before torch or matplotlib are imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once instead of waiting for it."""

    def refuse(self: socket.socket, address: object) -> None:
        raise OSError(f"tests have no network, found a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
