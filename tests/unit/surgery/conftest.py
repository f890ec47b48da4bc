"""What tests of the layers that hold Θ share."""

import pytest

from nncompress.surgery import autotune as planning


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements: no fact hangs on what they give."""
    monkeypatch.setattr(planning, "BLOCKS", 1)
    monkeypatch.setattr(planning, "BLOCK_SECONDS", 1e-5)
