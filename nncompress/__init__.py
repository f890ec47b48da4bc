"""nncompress: neural-network compression by optimisation. Importing the package imports nothing heavy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncompress.artefact.model import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `nncompress.load` when it is asked for: the network that a run deploys (`artefact.model.load`)."""
    if name == "load":
        from nncompress.artefact.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
