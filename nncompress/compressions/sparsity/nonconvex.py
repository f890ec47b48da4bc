"""Sparse weights by two penalties between l0 and l1: the square root of each magnitude, and transformed l1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.compressions.plan import Layers, Plan, Tensors, each_layer
from nncompress.compressions.sparsity.magnitude import SeparablePenalty


@dataclass(frozen=True)
class LHalfPenalty(SeparablePenalty):
    """C(Θ) = alpha Σ |Θ_i|^(1/2): Π is half thresholding (`half_threshold`) at alpha / mu.

    Xu, Chang, Xu and Zhang, "L1/2 regularization: a thresholding representation theory and a fast solver", IEEE TNNLS
    2012.
    """

    def prox(self, v: Tensor, mu: float) -> Tensor:
        return half_threshold(v, self.alpha / mu)

    def price(self, x: Tensor) -> Tensor:
        return self.alpha * x.abs().double().sqrt().sum()


@dataclass(frozen=True)
class TransformedL1Penalty(SeparablePenalty):
    """C(Θ) = alpha Σ (a + 1)|Θ_i| / (a + |Θ_i|): l0 as a -> 0, l1 as a -> inf; Π is `transformed_l1_threshold`.

    Zhang and Xin, "Minimization of transformed L1 penalty: closed form representation and iterative thresholding
    algorithms", Communications in Mathematical Sciences 2017.

    - a: where between l0 and l1 the penalty lies, positive and finite, else ValueError; 1 is this package's choice.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.a < math.inf:
            raise ValueError(f"a must be positive and finite (l1_penalty is its limit), found {self.a}")

    def prox(self, v: Tensor, mu: float) -> Tensor:
        return transformed_l1_threshold(v, self.alpha / mu, self.a)

    def price(self, x: Tensor) -> Tensor:
        magnitudes = x.abs().double()
        return self.alpha * (self.a + 1) * (magnitudes / (self.a + magnitudes)).sum()


def half_threshold(v: Tensor, level: float) -> Tensor:
    """Return argmin over x of (v - x)²/2 + level |x|^(1/2) for each entry of v, of its shape and dtype; level >= 0.

    0 up to |v| = 3/2 level^(2/3), where the result jumps to level^(2/3) (the λ of Xu et al. is 2 level).
    Beyond, z = |x|^(1/2) is the largest root of z³ - |v| z + level/2 = 0. Numbers that are not finite stay.
    """
    if level == 0:
        return v.clone()
    u = v.abs().double()
    cosine = (-math.sqrt(27) / 4 * level / (u * u.sqrt())).clamp_min(-1)
    root = 2 * (u / 3).sqrt() * torch.cos(torch.acos(cosine) / 3)
    x = (u - level / (2 * root)).clamp_min(0).to(v.dtype).double()  # as rounded it has to be better than 0
    # objective of 0 less that of x, over sqrt(x): x (u - x/2) - level sqrt(x) without cancellation
    return torch.where(x.sqrt() * (u - x / 2) <= level, 0.0, x.copysign(v)).to(v.dtype)


def transformed_l1_threshold(v: Tensor, level: float, a: float) -> Tensor:
    """Return argmin over x of (v - x)²/2 + level (a + 1)|x| / (a + |x|) for each entry of v, of its shape and dtype.

    level >= 0, a > 0. If level <= a²/(2(a + 1)): 0 up to |v| = level (a + 1)/a, from where it rises without a jump.
    Otherwise: 0 up to |v| = (2 level (a + 1))^(1/2) - a/2, where it jumps to (2 level (a + 1))^(1/2) - a. Beyond,
    y = a + |x| is the largest root of y³ - (a + |v|) y² + level a (a + 1) = 0. Numbers that are not finite stay.
    """
    if level == 0:
        return v.clone()
    u = v.abs().double()
    s, cost = a + u, level * (a + 1)
    cosine = (1 - 27 / 2 * (cost * (a / s) / s / s)).clamp_min(-1)
    y = s / 3 * (1 + 2 * torch.cos(torch.acos(cosine) / 3))
    x = (u - cost * (a / y) / y).clamp_min(0).to(v.dtype).double()  # as rounded it has to be better than 0
    # objective of 0 less that of x, times (a + x) / x
    return torch.where((u - x / 2) * (a + x) <= cost, 0.0, x.copysign(v)).to(v.dtype)


def l_half_penalty(weights: Tensors, *, alpha: float = 1e-3, layers: Layers = "hidden") -> Plan:
    """Add alpha times the sum of the square roots of the magnitudes of the chosen weights to the loss."""
    return each_layer(weights, compression=LHalfPenalty(alpha), layers=layers)


def transformed_l1_penalty(weights: Tensors, *, alpha: float = 5e-3, a: float = 1.0, layers: Layers = "hidden") -> Plan:
    """Add alpha times the transformed l1 of the chosen weights to the loss."""
    return each_layer(weights, compression=TransformedL1Penalty(alpha, a), layers=layers)
