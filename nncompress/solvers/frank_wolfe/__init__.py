"""Stochastic Frank-Wolfe: training within convex sets."""

from nncompress.solvers.frank_wolfe.frank_wolfe import FrankWolfe, LossFeedback
from nncompress.solvers.frank_wolfe.sfw import (
    SFW,
    DiameterRescaling,
    FastGradientRescaling,
    GradientRescaling,
    NoRescaling,
    Rescaling,
)  # fmt: skip

__all__ = [
    "SFW", "DiameterRescaling", "FastGradientRescaling", "FrankWolfe", "GradientRescaling", "LossFeedback",
    "NoRescaling", "Rescaling",
]  # fmt: skip
