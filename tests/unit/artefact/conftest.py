"""What tests of stored networks share."""

import pytest

from nncompress.surgery import autotune as planning


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that hold Θ measure shortly: no fact hangs on what they take."""
    monkeypatch.setattr(planning, "BLOCKS", 1)
    monkeypatch.setattr(planning, "BLOCK_SECONDS", 1e-5)
