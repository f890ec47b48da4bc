"""The first mu of the learning-compression algorithm, found from the reference and its compression."""

from __future__ import annotations

from nncompress.compressions.plan import Plan
from nncompress.metrics import evaluate
from nncompress.params import Params
from nncompress.problem import Problem, with_weights

SHARE = 0.01
"""Part of the loss that compressing costs which the penalty is to have at the start."""

LARGE, HALVINGS = 1e12, 200
"""mu from which the search for the least sensible one goes down, and how often at most."""


def found_mu0(problem: Problem, w: Params, reach: float) -> float:
    """A first mu for compressed weights w; `reach` is the sum of the learning rates of an L step.

    Constraints: mu/2 ‖w - Δ(Θ)‖² is 1 % of the loss L(Δ(Θ)) - L(w) that direct compression costs (of L(Δ(Θ)) where it
    costs none): the path then starts near w, as it has to (arXiv 1707.01209: mu0 near 0). Penalties C: the least mu, up
    to a factor of 2, at which every task keeps something. In any case at least 1/reach: along directions that leave the
    loss as it is an L step moves w by the part 1 - exp(-mu reach) of the way to its target, and a smaller mu would
    waste it. Where the weights compress without error any mu will do: 1.
    """
    plan = problem.plan
    least = _least_mu(plan, w) if plan.penalty(plan.compress(w, LARGE)) > 0 else _share_mu(problem, w)
    return max(least, 1 / reach)


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


def _least_mu(plan: Plan, w: Params) -> float:
    mu = LARGE
    for _ in range(HALVINGS):
        theta = plan.compress(w, mu / 2)
        if not all(plan.decompress_task(task, t).sq() > 0 for task, t in zip(plan.tasks, theta, strict=True)):
            return mu
        mu /= 2
    return mu
