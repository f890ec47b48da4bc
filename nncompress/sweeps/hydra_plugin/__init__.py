"""Installed as `hydra_plugins.nncompress`, the only place from which Hydra takes a sweeper."""

from nncompress.sweeps.search import Search
from nncompress.sweeps.sweeper import Jobs

__all__ = ["Jobs", "Search"]
