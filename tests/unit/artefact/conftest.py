"""What tests of stored networks share."""

import pytest

from nncompress.surgery import autotune


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that hold Θ measure shortly: no fact hangs on what they take."""
    monkeypatch.setattr(autotune, "BLOCKS", 1)
    monkeypatch.setattr(autotune, "BLOCK_SECONDS", 1e-5)
