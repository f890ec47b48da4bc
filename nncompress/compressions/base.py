"""A compression: the set of compressed parameters Θ with its projection Π and its decompression Δ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

Theta = TypeVar("Theta")

FLOAT_BITS = 32
"""Bits of one stored real number (the papers' convention; indices and codes are counted apart)."""


class Compression(ABC, Generic[Theta]):
    """A set (or penalty) of compressed parameters Θ, without state; subclasses are frozen dataclasses.

    `theta_type` is the NamedTuple (of tensors, numbers and tuples of them) that Θ is an instance of.
    Carreira-Perpinan, "Model compression as constrained optimization, Part I", arXiv 1707.01209, section 3.
    """

    theta_type: ClassVar[type[Any]]

    @abstractmethod
    def compress(self, w: Tensor, mu: float = 1.0, start: Theta | None = None) -> Theta:
        """Π(w) = argmin over Θ of mu/2 ‖w - Δ(Θ)‖² + C(Θ).

        `w` is left unchanged; the result is on its device and of its dtype. Where the problem is solved only
        locally, the result is never worse than a feasible `start`.
        """

    @abstractmethod
    def decompress(self, theta: Theta) -> Tensor:
        """Δ(Θ), shaped like the w that was compressed."""

    @abstractmethod
    def bits(self, theta: Theta) -> int:
        """All that must be stored to rebuild Δ(Θ), in bits."""

    @abstractmethod
    def num_params(self, theta: Theta) -> int:
        """How many real numbers Θ holds (positions and codes are not real numbers)."""

    @abstractmethod
    def macs(self, theta: Theta, rows: int) -> int | None:
        """Multiply-accumulates of one product Δ(Θ) x without rebuilding Δ(Θ), seen as a matrix of `rows` rows.

        None where Θ offers no such form; the nonzero entries of Δ(Θ) are counted then.
        """
