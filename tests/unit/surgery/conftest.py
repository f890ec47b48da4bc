"""What tests of the layers that hold Θ share."""

import pytest

from nncompress.surgery import autotune


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements: no fact hangs on what they give."""
    monkeypatch.setattr(autotune, "BLOCKS", 1)
    monkeypatch.setattr(autotune, "BLOCK_SECONDS", 1e-5)
