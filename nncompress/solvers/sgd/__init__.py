"""Minibatch descent on the loss, with regularisers."""

from nncompress.solvers.sgd.normalised_sgd import NormalisedSGD
from nncompress.solvers.sgd.regularisers import (
    GroupLasso,
    NuclearNorm,
    ProximalGroupLasso,
    ProximalNuclearNorm,
    Regulariser,
)  # fmt: skip
from nncompress.solvers.sgd.sgd import SGD

__all__ = [
    "SGD", "GroupLasso", "NormalisedSGD", "NuclearNorm", "ProximalGroupLasso", "ProximalNuclearNorm",
    "Regulariser",
]  # fmt: skip
