"""Compressions: sets Θ with their projection Π and decompression Δ, the views of weights, and plans of tasks."""

from nncompress.compressions.additive import Additive, Part, Parts, additive
from nncompress.compressions.base import Compression, Factorised
from nncompress.compressions.plan import Plan, Task, mixed, none
from nncompress.compressions.views import AsMatrix, AsTensor, AsVector, View

__all__ = [
    "Additive", "AsMatrix", "AsTensor", "AsVector", "Compression", "Factorised", "Part", "Parts", "Plan", "Task",
    "View", "additive", "mixed", "none",
]  # fmt: skip
