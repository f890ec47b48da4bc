"""The first mu of the learning-compression algorithm, found from the reference and its compression."""

from __future__ import annotations

from typing import Any

from nncompress.compressions.params import Params
from nncompress.metrics import evaluate
from nncompress.problem import Problem, with_weights

SHARE = 0.01
"""Part of the loss that compressing costs which the penalty is to have at the start."""

EXPONENTS = (-64, 40)
"""The powers of 2 between which the least mu of a penalty is sought."""


def find_mu0(problem: Problem, w: Params, reach: float) -> float:
    """Return a first mu for compressed weights w; `reach` is the sum of the learning rates of the first L steps.

    Constraints: mu/2 ‖w - Δ(Θ)‖² is 1 % of the loss L(Δ(Θ)) - L(w) that direct compression costs (of L(Δ(Θ)) where it
    costs none): the path then starts near w, as it has to (arXiv 1707.01209: mu0 near 0). Penalties C: the least mu, up
    to a factor of 2, at which every task with one keeps something, if there is such a least mu. In any case at least
    1/reach: along directions that leave the loss as it is these steps move w by the part 1 - exp(-mu reach) of the way
    to its target, and a smaller mu would waste them. Where the weights compress without error any mu will do: 1.
    """
    least = _least_mu(problem, w)
    return max(_share_mu(problem, w) if least is None else least, 1 / reach) or 1.0


def _share_mu(problem: Problem, w: Params) -> float:
    dense = problem.plan.decompress(problem.plan.compress(w))
    error = float((w - dense).sq())
    if error == 0:
        return 1.0
    reference, compressed = (
        evaluate(with_weights(problem.model, tensors), problem.data.train, problem.loss).loss for tensors in (w, dense)
    )
    cost = compressed - reference if compressed > reference else compressed
    return 2 * SHARE * cost / error


def _least_mu(problem: Problem, w: Params) -> float | None:
    """Bisect, what a task keeps grows with mu; return None without a penalty, or where it never removes all."""
    plan = problem.plan
    low, high = EXPONENTS
    largest = plan.compress(w, 2.0**high)
    priced = [j for j, task in enumerate(plan.tasks) if task.compression.penalty(largest[j]) > 0]

    def all_keep(theta: tuple[Any, ...]) -> bool:
        return all(bool(plan.decompress_task(plan.tasks[j], theta[j]).sq() > 0) for j in priced)

    if not priced or not all_keep(largest) or all_keep(plan.compress(w, 2.0**low)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if all_keep(plan.compress(w, 2.0**middle)) else (middle, high)
    return float(2.0**high)
