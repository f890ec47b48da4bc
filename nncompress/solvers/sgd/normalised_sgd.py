"""Gradient descent with momentum whose steps have a fixed length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class NormalisedSGD(Optimizer):
    """Take m <- mu m + (1 - mu) g, from m = g;  w <- w - lr m / ‖m‖ - lr weight_decay w, for every tensor.

    m / ‖m‖ is 0 for m = 0. Cutkosky and Mehta, "Momentum improves normalized SGD", ICML 2020, where ‖m‖ is that of all
    tensors together (`joint`). With eta = lr weight_decay and tau = 1 / weight_decay it is w <- (1 - eta) w + eta v,
    v = -tau m / ‖m‖: Frank-Wolfe with momentum and a constant step over the l2 ball of radius tau, for eta at most 1.

    - lr: length of a step of each tensor (of all together if `joint`).
    - momentum: mu.
    - weight_decay: decoupled.

    The norms stay on the device. Raises ValueError for a negative lr or weight_decay, and a momentum outside [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        joint: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, found {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, found {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "joint": joint})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients of the parameters; return the value of `closure`, if any, computed first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        groups = [(group, params) for group, params in groups if params]
        averages = [self._averages(params, group["momentum"]) for group, params in groups]
        norms = [torch._foreach_norm(own) for own in averages]
        if self.defaults["joint"] and norms:
            total = torch.linalg.vector_norm(torch.stack([norm for own in norms for norm in own]))
            norms = [(total,) * len(own) for own in norms]
        for (group, params), own, lengths in zip(groups, averages, norms, strict=True):
            directions = torch._foreach_div(own, [torch.where(norm > 0, norm, 1) for norm in lengths])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, directions, alpha=-group["lr"])
        return loss

    def _averages(self, params: Sequence[Tensor], momentum: float) -> list[Tensor]:
        """Take gradients into m; return it, of the parameters that have one."""
        gradients = [p.grad for p in params if p.grad is not None]
        for p, g in zip(params, gradients, strict=True):
            if "average" not in self.state[p]:
                self.state[p]["average"] = g.clone()
        averages: list[Tensor] = [self.state[p]["average"] for p in params]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        return averages
