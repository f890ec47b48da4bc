"""What minibatch descent adds to its loss so that weights become compressible: group lasso, nuclear norm.

Each as a subgradient, added to the gradient of the loss, or as a proximal step behind that of the optimiser. The former
passes through the momentum, the latter does not: behind torch.optim.SGD with momentum beta, no dampening, whose steps
add up to lr/(1 - beta) times the gradient, a proximal step leads to a stationary point of L + (1 - beta) lam R.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nncompress.compressions.decomposition.svd import exact_svd, singular_values
from nncompress.compressions.plan import choose
from nncompress.errors import Unsupported
from nncompress.problem import weights_of
from nncompress.solvers.training.descent import gradient_of
from nncompress.surgery.channels import own_weights


@dataclass(frozen=True, kw_only=True)
class Regulariser(ABC):
    """lam R(w), where R is a sum over weights, each seen as a matrix (outputs) x (everything else).

    - lam: at least 0; R is not scaled by the sizes of the layers.
    - layers: "convolutions" (the weights of all nn.Conv2d), "all" (every parameter of two or more dimensions), "hidden"
      (all but the last of them), or name patterns.

    Raises ValueError for a lam that is negative or not finite.
    """

    lam: float
    layers: str | Sequence[str] = "convolutions"

    def __post_init__(self) -> None:
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"lam must be at least 0 and finite, found {self.lam}")

    @abstractmethod
    def price(self, weights: Sequence[Tensor]) -> Tensor:
        """Return lam R(w), a 0-dimensional float64 tensor."""

    def add_gradient(self, weights: Sequence[Tensor]) -> None:
        """Add a subgradient of lam R to the gradients of the weights. Default: nothing, for a proximal method."""
        return

    def shrink(self, weights: Sequence[Tensor], lr: float) -> None:
        """Replace the weights w by argmin over x of ‖x - w‖²/2 + lr lam R(x). Default: nothing, for subgradients."""
        return

    def weights(self, model: nn.Module) -> list[Tensor]:
        """Return the parameters of `model` that R is a function of, in the model's order.

        Raises ConfigError for a pattern that matches nothing, Unsupported for a network without such weights or one
        that is frozen.
        """
        parameters = dict(model.named_parameters())
        convolutions = self.layers == "convolutions"
        names = [*own_weights(model, nn.Conv2d)] if convolutions else choose(weights_of(model), self.layers)
        if not names:
            raise Unsupported(
                "the regulariser acts on convolutions, found none in the network; "
                "give solver.regulariser.layers=all, or name patterns"
            )
        frozen = [name for name in names if not parameters[name].requires_grad]
        if frozen:
            raise Unsupported(
                f"every regularised weight must be trainable, found that {frozen[0]} is frozen (requires_grad=False); "
                "unfreeze it, or leave it out by solver.regulariser.layers"
            )
        return [parameters[name] for name in names]


@dataclass(frozen=True, kw_only=True)
class GroupLasso(Regulariser):
    """R(w) = sum over filters f (rows) of ‖w_f‖_2, by the subgradient w_f / ‖w_f‖_2, 0 for a filter of zeros.

    Structured sparsity learning over filters: Wen et al., "Learning structured sparsity in deep neural networks", NIPS
    2016. Filters come near zero; none becomes zero.
    """

    def price(self, weights: Sequence[Tensor]) -> Tensor:
        return self.lam * _group_norm(weights)

    @torch.no_grad()
    def add_gradient(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_add_([gradient_of(w) for w in weights], _each(weights, _directions), alpha=self.lam)


@dataclass(frozen=True, kw_only=True)
class ProximalGroupLasso(Regulariser):
    """R(w) = sum over filters f (rows) of ‖w_f‖_2, by its proximal step: w_f max(1 - lr lam / ‖w_f‖_2, 0).

    Yuan and Lin, "Model selection and estimation in regression with grouped variables", J. R. Stat. Soc. B 68, 2006.
    Filters become exactly zero.
    """

    def price(self, weights: Sequence[Tensor]) -> Tensor:
        return self.lam * _group_norm(weights)

    @torch.no_grad()
    def shrink(self, weights: Sequence[Tensor], lr: float) -> None:
        torch._foreach_copy_(list(weights), _each(weights, lambda a: _shorter_rows(a, lr * self.lam)))


@dataclass(frozen=True, kw_only=True)
class NuclearNorm(Regulariser):
    """R(w) = sum over weights of the sum of their singular values, by the subgradient U Vᵀ of w = U diag(s) Vᵀ.

    U and V over the numerical rank: singular values above max(m, n) eps s_1. The decomposition at every minibatch makes
    the host wait for the device.
    """

    def price(self, weights: Sequence[Tensor]) -> Tensor:
        return self.lam * _nuclear_norm(weights)

    @torch.no_grad()
    def add_gradient(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_add_([gradient_of(w) for w in weights], _each(weights, _polar), alpha=self.lam)


@dataclass(frozen=True, kw_only=True)
class ProximalNuclearNorm(Regulariser):
    """R(w) = sum over weights of the sum of their singular values, by its proximal step: s <- max(s - lr lam, 0).

    Cai, Candès, Shen, "A singular value thresholding algorithm for matrix completion", SIAM J. Optim. 20, 2010.
    Singular values become zero, up to rounding. The decomposition at every minibatch makes the host wait for the
    device.
    """

    def price(self, weights: Sequence[Tensor]) -> Tensor:
        return self.lam * _nuclear_norm(weights)

    @torch.no_grad()
    def shrink(self, weights: Sequence[Tensor], lr: float) -> None:
        torch._foreach_copy_(list(weights), _each(weights, lambda a: _threshold_singular_values(a, lr * self.lam)))


def _each(weights: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Apply `function` to every weight as a matrix; it gets those of one shape and type as (count, rows, columns)."""
    alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for j, w in enumerate(weights):
        alike.setdefault((w.flatten(1).shape, w.dtype), []).append(j)
    results: dict[int, Tensor] = {}
    for positions in alike.values():
        stack = function(torch.stack([weights[j].flatten(1) for j in positions]))
        results |= {j: result.view(weights[j].shape) for j, result in zip(positions, stack, strict=True)}
    return [results[j] for j in range(len(weights))]


def _group_norm(weights: Sequence[Tensor]) -> Tensor:
    rows = [torch.linalg.vector_norm(w.flatten(1), dim=1, dtype=torch.float64) for w in weights]
    return torch.cat(rows).sum()


def _nuclear_norm(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([singular_values(w.flatten(1)) for w in weights]).sum()


def _directions(a: Tensor) -> Tensor:
    """Return the rows of a (..., m, n) divided by their norms, zeros where they are zero."""
    norms = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    directions: Tensor = a / torch.where(norms > 0, norms, 1)
    return directions


def _shorter_rows(a: Tensor, threshold: float) -> Tensor:
    """Return the rows of a (..., m, n), their norms less by `threshold`, zeros where that is negative."""
    norms = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    shorter: Tensor = a * ((norms - threshold).clamp_min(0) / torch.where(norms > 0, norms, 1))
    return shorter


def _polar(a: Tensor) -> Tensor:
    """Return U Vᵀ of a (..., m, n) over its numerical rank."""
    U, s, V = exact_svd(a, min(a.shape[-2:]))
    least = max(a.shape[-2:]) * torch.finfo(a.dtype).eps * s[..., :1]
    return (U * (s > least).unsqueeze(-2)) @ V


def _threshold_singular_values(a: Tensor, threshold: float) -> Tensor:
    """Return a (..., m, n) with its singular values less by `threshold`, zeros where that is negative."""
    U, s, V = torch.linalg.svd(a, full_matrices=False)
    shrunk: Tensor = (U * (s - threshold).clamp_min(0).unsqueeze(-2)) @ V
    return shrunk
