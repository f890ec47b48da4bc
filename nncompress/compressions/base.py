"""A compression: the set of compressed parameters Θ with its projection Π and its decompression Δ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from torch import Tensor

Theta = TypeVar("Theta")

FLOAT_BITS = 32
"""Bits of one stored real number (the papers' convention; indices and codes are counted apart)."""

CHUNK = 1 << 17
"""Entries whose difference is formed at once: a buffer of the tensors' size would cost more than the arithmetic."""


class Compression(ABC, Generic[Theta]):
    """A set (or penalty) of compressed parameters Θ, without state; subclasses are frozen dataclasses.

    `theta_type` is the NamedTuple (of tensors, numbers and tuples of them) that Θ is an instance of.
    Carreira-Perpinan, "Model compression as constrained optimization, Part I", arXiv 1707.01209, section 3.
    """

    theta_type: ClassVar[type[Any]]
    exact: ClassVar[bool]
    """Whether `project` solves its problem; otherwise it is a local method, safeguarded by `update`."""

    @final
    def compress(self, w: Tensor, mu: float = 1.0, start: Theta | None = None) -> Theta:
        """Π(w) = argmin over Θ of mu/2 ‖w - Δ(Θ)‖² + C(Θ).

        `w` is left unchanged; the result is on its device and of its dtype. Where the problem is solved only
        locally, the result is never worse than a feasible `start`.
        """
        return self.update(w, mu, start)[0]

    @final
    @torch.no_grad()
    def update(
        self, w: Tensor, mu: float = 1.0, start: Theta | None = None, dense: Tensor | None = None
    ) -> tuple[Theta, Tensor]:
        """Θ = Π(w) and Δ(Θ); `dense` is Δ(start), if at hand."""
        theta = self.project(w, mu, start)
        new = self.decompress(theta)
        if self.exact or start is None:
            return theta, new
        old = self.decompress(start) if dense is None else dense
        return (theta, new) if distance_sq(w, new) <= distance_sq(w, old) else (start, old)

    @abstractmethod
    def project(self, w: Tensor, mu: float, start: Theta | None) -> Theta:
        """The minimiser of `compress`, or a good local one, from `start` where that helps."""

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


def distance_sq(a: Tensor, b: Tensor) -> Tensor:
    """‖a - b‖², a 0-dimensional tensor: chunks in their own precision, their sum in float64."""
    size = CHUNK if a.device.type == "cpu" else max(1, a.numel())
    pairs = zip(torch.split(a.reshape(-1), size), torch.split(b.reshape(-1), size), strict=True)
    differences = (x - y for x, y in pairs)
    return torch.stack([torch.dot(d, d) for d in differences]).sum(dtype=torch.float64)
