"""NN-BCD: block coordinate descent over tensor-train weights and layer variables (arXiv 2303.06815)."""

from nncompress.solvers.nnbcd.nnbcd import NNBCD

__all__ = ["NNBCD"]
