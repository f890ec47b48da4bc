"""How the learning rate of stochastic Frank-Wolfe becomes the step size eta of each constraint set."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Rescaling(ABC):
    """eta of the update w + eta (v - w), before it is clipped to [0, 1]. Zimmer et al., arXiv 2205.11921."""

    largest_rate: float = float("inf")

    @abstractmethod
    def eta(self, lr: float, gradient: Tensor, distance: Tensor, diameter: Tensor) -> Tensor:
        """(b,) of the norms ‖m‖ of the momentum gradients, the distances ‖v - w‖ and the diameters of sets (b,)."""


class NoRescaling(Rescaling):
    """eta = lr, which must be at most 1: the step has the length lr ‖v - w‖."""

    largest_rate = 1.0

    def eta(self, lr: float, gradient: Tensor, distance: Tensor, diameter: Tensor) -> Tensor:
        return distance.new_full(distance.shape, lr)


class DiameterRescaling(Rescaling):
    """eta = lr / diameter."""

    def eta(self, lr: float, gradient: Tensor, distance: Tensor, diameter: Tensor) -> Tensor:
        return lr / diameter


class GradientRescaling(Rescaling):
    """eta = lr ‖m‖ / ‖v - w‖: the step has the length lr ‖m‖, as that of SGD."""

    def eta(self, lr: float, gradient: Tensor, distance: Tensor, diameter: Tensor) -> Tensor:
        return lr * gradient / distance.clamp_min(TINY)


class FastGradientRescaling(Rescaling):
    """eta = lr ‖m‖ / (diameter / 2): the step has a length between 0 and 2 lr ‖m‖."""

    def eta(self, lr: float, gradient: Tensor, distance: Tensor, diameter: Tensor) -> Tensor:
        return lr * gradient / (diameter / 2)


TINY = 1e-30
"""A distance of zero: the vertex is where the weights are, and any step size leaves them there."""
