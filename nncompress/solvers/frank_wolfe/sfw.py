"""The update of stochastic Frank-Wolfe, as an optimiser for any training loop.

Pokutta, Spiegel, Zimmer, "Deep neural network training with Frank-Wolfe", arXiv 2010.07243; Zimmer, Spiegel, Pokutta,
"Compression-aware training of neural networks using Frank-Wolfe", arXiv 2205.11921.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from nncompress.constraints.base import Constraint, euclidean

TINY = 1e-30
"""A distance of zero: the vertex is where the weights are, and any step size leaves them there."""
SMALL = 1 << 16
"""Tensors of fewer entries are treated together on a CPU, where larger ones gain nothing from it."""


class Rescaling(ABC):
    """eta of the update w + eta (v - w), before it is clipped to [0, 1]. Zimmer et al., arXiv 2205.11921."""

    largest_rate: float = float("inf")

    @abstractmethod
    def eta(self, lr: float, gradient: Tensor, distance: Tensor, diameter: Tensor) -> Tensor:
        """Return eta (b,) from the norms ‖m‖ of momentum gradients, distances ‖v - w‖ and diameters of sets (b,)."""


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


class SFW(Optimizer):
    """Take m <- momentum m + (1 - dampening) g (at first m = g), v = LMO(m), w <- w + eta (v - w), eta in [0, 1].

    For every set by itself; a point of it stays in it. What is in no set takes w <- w - lr m. A set none of whose
    tensors has a gradient is left alone. Gradients must have been unscaled (mixed precision). Tensors of one shape in
    sets of one kind are treated together.

    - bodies: the tensors of each set, one or several together.
    - constraints: the sets; others follow by `constrain`.
    - lr: learning rate, that of the first parameter group.
    """

    def __init__(
        self,
        bodies: Sequence[Sequence[Tensor]],
        constraints: Sequence[Constraint | None],
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        dampening: float = 0.0,
        rescaling: Rescaling | None = None,
    ) -> None:
        super().__init__([{"params": list(body)} for body in bodies], {"lr": lr})
        self.momentum, self.dampening = momentum, dampening
        self.rescaling = rescaling or GradientRescaling()
        self.constrain(constraints)

    def constrain(self, constraints: Sequence[Constraint | None]) -> None:
        """Keep the bodies in these sets, in their order, from now on; they must lie there already."""
        bodies = [group["params"] for group in self.param_groups]
        self._stacks = _stacks(bodies, constraints)
        free = [body for body, constraint in zip(bodies, constraints, strict=True) if constraint is None]
        self._free: list[Tensor] = [p for body in free for p in body]
        self.totals = torch.zeros(len(bodies), 2, dtype=torch.float64, device=bodies[0][0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. `totals` (bodies, 2) adds up eta, and 1 where it was clipped."""
        if closure is not None:
            raise ValueError("SFW takes its gradient from the parameters: no closure, found one")
        lr = float(self.param_groups[0]["lr"])
        self._update_momenta()
        for stack in self._stacks:
            self._move(stack, lr)
        if self._free:
            torch._foreach_add_(self._free, [self.state[p]["m"] for p in self._free], alpha=-lr)

    def _update_momenta(self) -> None:
        """Take the gradients into the momenta."""
        parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if "m" not in self.state[parameters[0]]:
            for p, gradient in zip(parameters, gradients, strict=True):
                self.state[p]["m"] = gradient.clone()
            return
        momenta = [self.state[p]["m"] for p in parameters]
        torch._foreach_mul_(momenta, self.momentum)
        torch._foreach_add_(momenta, gradients, alpha=1 - self.dampening)

    def _move(self, stack: _Stack, lr: float) -> None:
        """Move the tensors of a stack towards their vertices."""
        m, w = (stack.seen(tensors) for tensors in (lambda p: self.state[p]["m"], lambda p: p.detach()))
        v, basis = stack.constraint.vertices(m, self._start(stack))
        shape = (-1, *[1] * (v.dim() - 1))
        toward = torch.addcmul(-w, v, stack.radii.to(v).view(shape))
        wanted = self.rescaling.eta(lr, euclidean(m), euclidean(toward), stack.diameters)
        moved = [any(p.grad is not None for p in body) for body in stack.bodies]
        eta = wanted.clamp(0, 1) if all(moved) else wanted.clamp(0, 1) * wanted.new_tensor(moved)
        stack.put(toward.mul_(eta.to(v).view(shape)))
        self.totals[stack.numbers] += torch.stack([eta, (wanted > 1).to(eta)], 1)
        if basis is not None:
            for body, own in zip(stack.bodies, basis, strict=True):
                self.state[body[0]]["basis"] = own

    def _start(self, stack: _Stack) -> Tensor | None:
        """Return the bases found last, if all are there."""
        known = [basis for body in stack.bodies if (basis := self.state[body[0]].get("basis")) is not None]
        alike = len(known) == len(stack.bodies) and len({basis.shape for basis in known}) == 1
        return torch.stack(known) if alike else None


class _Stack(NamedTuple):
    """Bodies of one shape in sets of one kind. numbers (b,): which bodies; radii, diameters (b,): float64."""

    constraint: Constraint
    bodies: list[list[Tensor]]
    numbers: Tensor
    radii: Tensor
    diameters: Tensor

    def seen(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what belongs to the parameters, as the set sees it: (b, ...)."""
        joined = [self.constraint.join([of(p) for p in body]) for body in self.bodies]
        return torch.stack(joined) if len(joined) > 1 else joined[0][None]

    def put(self, steps: Tensor) -> None:
        """Add steps (b, ...) to the parameters."""
        parts = [part for s, body in zip(steps, self.bodies, strict=True) for part in self.constraint.split(s, body)]
        torch._foreach_add_([p for body in self.bodies for p in body], parts)


def _stacks(bodies: Sequence[list[Tensor]], constraints: Sequence[Constraint | None]) -> list[_Stack]:
    """Return the constrained bodies, those alike together."""
    alike: dict[Any, list[int]] = {}
    for number, (body, constraint) in enumerate(zip(bodies, constraints, strict=True)):
        if constraint is not None:
            alone = body[0].is_cpu and sum(p.numel() for p in body) >= SMALL
            kind = constraint.of_radius(1.0)
            key = (kind, *(p.shape for p in body), body[0].dtype, body[0].device, number if alone else -1)
            alike.setdefault(key, []).append(number)
    stacks = []
    for (kind, *shapes, _, device, _), numbers in alike.items():
        reach = kind.reach(kind.seen_shape(shapes))
        sizes = [constraint.radius for number in numbers if (constraint := constraints[number]) is not None]
        radii, indices = torch.tensor(sizes, dtype=torch.float64, device=device), torch.tensor(numbers, device=device)
        stacks.append(_Stack(kind, [bodies[number] for number in numbers], indices, radii, 2 * reach * radii))
    return stacks
