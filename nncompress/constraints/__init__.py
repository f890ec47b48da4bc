"""The convex sets of Frank-Wolfe: linear minimisation over each, and which weights get which."""

from nncompress.constraints.assignment import Assignment, Body
from nncompress.constraints.base import Constraint, Vertices
from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.size import Diameter, FromInitialisation, Radius, SetSize
from nncompress.constraints.spectral import Nuclear, SpectralKSparse, SpectralKSupport

__all__ = [
    "L1", "L2", "Assignment", "Body", "Constraint", "Diameter", "FromInitialisation", "GroupKSupport", "KSparse",
    "KSupport", "Linf", "Lp", "Nuclear", "Radius", "SetSize", "SpectralKSparse", "SpectralKSupport", "Vertices",
]  # fmt: skip
