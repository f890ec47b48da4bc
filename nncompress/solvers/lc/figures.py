"""What the learning-compression algorithm records of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nncompress.compressions.params import Params
from nncompress.metrics import evaluate
from nncompress.problem import Problem, with_weights
from nncompress.solvers.training.descent import full_gradient


def multiplier_figures(problem: Problem, model: nn.Module, w: Params, lam: Params, decay: float) -> dict[str, float]:
    """Return how far λ is from grad L(w), to which it is equal at a minimum: norms, cosine and relative distance.

    L is the mean training loss of `model` in evaluation mode plus decay/2 ‖w‖², w being the compressed weights.
    """
    of_loss = full_gradient(model, problem.data.train, problem.loss)
    gradient = Params({name: of_loss.get(name, torch.zeros_like(t)) + decay * t for name, t in w.items()})
    norm, size = float(gradient.sq()) ** 0.5, float(lam.sq()) ** 0.5
    product = sum(float((gradient[name] * lam[name]).sum()) for name in w)
    return {
        "lam/norm": size,
        "grad/norm": norm,
        "kkt/cosine": product / (norm * size) if norm * size > 0 else 0.0,
        "kkt/distance": float((lam - gradient).sq()) ** 0.5 / norm if norm > 0 else size,
    }


def objective_of(problem: Problem, model: nn.Module, theta: tuple[Any, ...], dense: Params) -> float:
    """Return L(Δ(Θ)) + C(Θ) on the training data, the uncompressed parameters being those of `model`."""
    return evaluate(with_weights(model, dense), problem.data.train, problem.loss).loss + problem.plan.penalty(theta)


def parts_of(objective: float, penalty: float) -> dict[str, float]:
    """Return the objective and, where there is a penalty, its two terms."""
    parts = {"term/loss": objective - penalty, "term/penalty": penalty} if penalty > 0 else {}
    return {"objective": objective, **parts}


def divergence(step: int, loss: float, rate: float, mu: float, limit: float | None) -> str:
    """Say in one sentence what diverged, where the limit is, what to do."""
    bound = f" (the penalty is stable for lr times mu below {limit:.4g}, here it is {rate * mu:.4g})" if limit else ""
    over = limit is not None and rate * mu >= limit
    remedy = "use solver.clip=true or a smaller solver.lr" if over else "use a smaller solver.lr"
    return (
        f"the loss must stay bounded in an L step, found {loss:.4g} in step {step} with learning rate {rate:.4g} and "
        f"mu {mu:.4g}{bound}; {remedy}; the records are kept"
    )
