"""Installed as `hydra_plugins.nncompress`, the only place from which Hydra takes a sweeper."""

from nncompress.search import Search
from nncompress.sweeper import Jobs

__all__ = ["Jobs", "Search"]
