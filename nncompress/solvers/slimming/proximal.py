"""Proximal network slimming: channels choose_channels while the network is trained.

Bui, Xue, Park, Qi, Xin, "A proximal algorithm for network slimming", arXiv 2307.00684 (2023).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress import parallel
from nncompress.compressions.sparsity.magnitude import L1Penalty, SeparablePenalty
from nncompress.metrics import evaluate
from nncompress.problem import Problem
from nncompress.solvers.base import Observation, Solver
from nncompress.solvers.slimming.columns import PROXIMAL
from nncompress.solvers.slimming.figures import channel_details, channel_observation, unrounded_details
from nncompress.solvers.slimming.scales import Scales, check_slimming, choose_channels, groups_of
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, epoch
from nncompress.surgery.channels import mask_channels
from nncompress.surgery.norms import SharedNorm, shared_norms

CURVATURE_SEED = 0
"""Of the samples and the first vector of the power method."""
STARTING_SPREAD = 0.06
"""xi starts at gamma times a number uniform in 1 -+ this: U(0.47, 0.53) for scaling factors of 0.5, as published."""


class SlimmingState(NamedTuple):
    """W and gamma in the network, xi (m,), the optimiser, the order of the samples, and squared steps (float64).

    gamma_sq, xi_sq: of the last step; step_sq: of W, gamma and xi together.
    """

    k: int
    model: nn.Module
    xi: Tensor
    optimizer: Optimizer
    generator: Generator
    gamma_sq: Tensor
    xi_sq: Tensor
    step_sq: Tensor
    step_sq_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class Slimming(Solver[SlimmingState]):
    """Minimise F = L(W, gamma) + C(xi) + beta/2 ‖gamma - xi‖² over W, gamma and xi, C(xi) = lam ‖xi‖_1.

    gamma are the scaling factors of the batch norms, W all other parameters. After every minibatch, with g a
    (stochastic, with momentum) gradient of L at (W, gamma) and alpha = 1/lr:

        W     <- W - g_W / alpha                                                            (1)
        gamma <- (alpha (gamma - g_gamma / alpha) + beta xi) / (alpha + beta)               (2)
        xi    <- prox of C/(alpha + beta) at (alpha xi + beta gamma) / (alpha + beta)       (3)

    with the new gamma in (3): proximal alternating linearised minimisation. The prox is soft thresholding at
    lam/(alpha + beta). For full gradients F decreases whenever alpha > L/2, L the Lipschitz constant of the gradient
    (the paper asks alpha > L). A channel goes when its xi is 0, with its shift; there is no fine-tuning. One step is
    one epoch, the last one is the result. Bui et al., arXiv 2307.00684.

    - num_steps: epochs; 160 as published.
    - lam, beta: as above; the published values for VGG-19 on CIFAR-10 (PreResNet-164: 0.002 and 0.25).
    - lr: learning rate, times `schedule`; alpha = 1/lr follows it. As published, like batch_size and optimizer.
    - optimizer: called with the parameters and `lr`.
    - schedule: a tenth from half and again from three quarters of the epochs on, as published.
    - penalty: C for a lam; another separable one (l0, l_1/2, transformed l1) changes the prox alone.
    - decay_scales: whether weight decay acts on gamma too, which F does not hold; as published.
    - project: deploy gamma = xi; false: gamma itself on the channels that stay, for a small beta, where the two differ
      by up to lam/beta.
    - fold: give what dead channels still emit, ReLU of their shift, to the layer behind them; not so published.
    - label_smoothing, mixup: as in `Minibatches`; not published.
    - curvature: steps of the power method for L at every observation, on curvature_samples samples; 0, none, since it
      takes that many gradients of gradients.
    - tolerance: stop when F falls by less, relatively, between observations; 0: all epochs, as published.
    """

    parallel: ClassVar[bool] = True
    removes_channels: ClassVar[bool] = True
    columns = PROXIMAL

    num_steps: int = 160
    lam: float = 0.0045
    beta: float = 100.0
    lr: float = 0.1
    batch_size: int = 64
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4))
    schedule: descent.Schedule = field(default_factory=descent.MultiStep)
    penalty: Callable[[float], SeparablePenalty] = L1Penalty
    decay_scales: bool = True
    project: bool = True
    fold: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    curvature: int = 0
    curvature_samples: int = 128
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size, self.label_smoothing, self.mixup)
        for name, value in (("lam", self.lam), ("beta", self.beta)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, found {value}")
        penalty = self.penalty(self.lam)
        if not isinstance(penalty, SeparablePenalty):
            raise ValueError(f"penalty must give a SeparablePenalty (L1Penalty, L0Penalty, ...), found {penalty}")
        for k in range(self.num_steps):
            if not self._rate(k) > 0:
                raise ValueError(
                    f"the learning rate 1/alpha must stay positive, found {self._rate(k)} in epoch {k + 1}"
                )
        if self.curvature < 0 or self.curvature_samples < 1:
            raise ValueError(
                f"curvature must be at least 0 and curvature_samples at least 1, found {self.curvature} and "
                f"{self.curvature_samples}"
            )

    def init(self, problem: Problem) -> SlimmingState:
        check_slimming(problem, self.batch_size, self.fold)
        model = shared_norms(copy.deepcopy(problem.model))
        generator = Generator().manual_seed(self.seed)
        gamma = Scales.of(model).gamma()
        spread = 1 + STARTING_SPREAD * (2 * torch.rand(len(gamma), generator=generator) - 1)
        optimizer = descent.optimizer_of(self.optimizer, groups_of(model, self.decay_scales), self.lr)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return SlimmingState(0, model, gamma * spread.to(gamma), optimizer, generator, zero, zero, zero, zero)

    def step(self, problem: Problem, state: SlimmingState) -> SlimmingState:
        k, model, xi, optimizer, generator, *_, step_sq_sum = state
        scales, before = Scales.of(model), [p.detach().clone() for p in model.parameters()]
        gamma_before, xi_before = scales.gamma(), xi.clone()
        descent.set_rate(optimizer, self._rate(k))
        minibatches = Minibatches(self.batch_size, generator, self.label_smoothing, self.mixup)
        update = self._update(scales, xi, 1 / self._rate(k))
        epoch(problem, model, minibatches, optimizer=optimizer, after_step=update)  # (1), then (2) and (3)
        parallel.check_alike([*model.state_dict().values(), xi], "network and xi")
        gamma_sq = (scales.gamma() - gamma_before).double().square().sum()
        xi_sq = (xi - xi_before).double().square().sum()
        step_sq = descent.moved_sq(model, before) + xi_sq
        total = step_sq_sum + step_sq
        return SlimmingState(k + 1, model, xi, optimizer, generator, gamma_sq, xi_sq, step_sq, total)

    def observe(self, problem: Problem, state: SlimmingState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        xi = state.xi
        terms = self._terms(problem, model, Scales.of(model).gamma(), xi) | {
            "epochs": state.k,
            "alpha": 1 / self._rate(max(0, state.k - 1)),
            "channels/zero": int((xi == 0).sum()),
        }
        if state.k > 0:
            moves = {"xi": state.xi_sq, "gamma": state.gamma_sq, "W": state.step_sq - state.gamma_sq - state.xi_sq}
            terms |= {f"step_sq/{name}": float(value) for name, value in moves.items()}
            terms |= {"step_sq": float(state.step_sq), "step_sq/sum": float(state.step_sq_sum)}
        if self.curvature:
            samples = self.curvature_samples
            terms["curvature"] = largest_curvature(problem, model, steps=self.curvature, samples=samples)
        return channel_observation(problem, model, self.masked_network(problem, state), terms)

    def result(self, problem: Problem, state: SlimmingState, observation: Observation) -> Observation:
        model, xi, test = observation.model, state.xi, problem.data.test
        keep, notes = self._choose_kept(problem, model, xi)
        networks = {project: self._deployed(model, xi, keep, project) for project in (True, False)}
        accuracies = {
            f"accuracy/{name}_test": evaluate(networks[project], test, problem.loss).accuracy
            for name, project in (("projected", True), ("masked", False))
        }
        details = channel_details(networks[self.project], Scales.of(model).named(xi))
        if problem.round_to > 1:
            details |= unrounded_details(problem, self.masked_network(replace(problem, round_to=1), state))
        return observation._replace(
            terms=observation.terms | accuracies, details=details, notes=(*observation.notes, *notes)
        )

    def masked_network(self, problem: Problem, state: SlimmingState) -> nn.Module:
        """Return the network whose dead channels are zero, in evaluation mode."""
        model = copy.deepcopy(state.model).eval()
        return self._deployed(model, state.xi, self._choose_kept(problem, model, state.xi)[0], self.project)

    def _rate(self, k: int) -> float:
        """Return the learning rate of epoch k, 1/alpha."""
        return self.lr * self.schedule.factor(k, self.num_steps)

    def _update(self, scales: Scales, xi: Tensor, alpha: float) -> Callable[[], None]:
        """Return what follows the optimiser's step: the rest of (2), then (3), both in place."""
        penalty = self.penalty(self.lam)

        @torch.no_grad()
        def update() -> None:
            gamma = blend(scales.gamma(), xi, alpha, self.beta)
            scales.put(gamma)
            xi.copy_(shrunk(xi, gamma, alpha, self.beta, penalty))

        return update

    def _choose_kept(self, problem: Problem, model: nn.Module, xi: Tensor) -> tuple[dict[str, Tensor], list[str]]:
        """Return the channels that stay, by batch norm, and notes of what had to change in those with xi != 0."""
        gamma = Scales.of(model).gamma()
        scores = torch.where(xi != 0, xi, gamma).abs()
        return choose_channels(problem, model, xi != 0, scores, fold=self.fold)

    def _deployed(self, model: nn.Module, xi: Tensor, keep: dict[str, Tensor], project: bool) -> nn.Module:
        """Return the masked network with scaling factors xi (`project`) or gamma."""
        network = copy.deepcopy(model)
        scales = Scales.of(network)
        if project:
            scales.put(torch.where(xi != 0, xi, scales.gamma()))
        return mask_channels(network, keep, fold=self.fold)

    def _terms(self, problem: Problem, model: nn.Module, gamma: Tensor, xi: Tensor) -> dict[str, float]:
        """Return F and its three terms, L in evaluation mode."""
        terms = {
            "term/loss": evaluate(model, problem.data.train, problem.loss).loss,
            "term/penalty": float(self.penalty(self.lam).price(xi)),
            "term/coupling": self.beta / 2 * float((gamma - xi).double().square().sum()),
        }
        return {"objective": sum(terms.values())} | terms


def blend(gamma: Tensor, xi: Tensor, alpha: float, beta: float) -> Tensor:
    """Return (2), (alpha gamma + beta xi) / (alpha + beta), gamma as the optimiser's step left it."""
    return (alpha * gamma + beta * xi) / (alpha + beta)


def shrunk(xi: Tensor, gamma: Tensor, alpha: float, beta: float, penalty: SeparablePenalty) -> Tensor:
    """Return (3), argmin over x of C(x) + beta/2 ‖gamma - x‖² + alpha/2 ‖x - xi‖²."""
    return penalty.prox((alpha * xi + beta * gamma) / (alpha + beta), alpha + beta)


def largest_curvature(problem: Problem, model: nn.Module, *, steps: int, samples: int) -> float:
    """Return the largest |eigenvalue| of the Hessian of the loss in all trainable parameters, where `model` is now.

    It is a lower estimate of the Lipschitz constant of the gradient of the loss on these samples, of which there are
    `samples`, always the same. Batch norms normalise with their statistics, as in training. `steps` of the power method
    from a fixed random vector: the norm of the Hessian's product with the last one.
    """
    network = copy.deepcopy(model).train()
    for module in network.modules():
        if isinstance(module, SharedNorm):
            module.together = False  # every process takes the same samples
    parameters = [p for p in network.parameters() if p.requires_grad]
    batch = problem.data.train.some(samples, CURVATURE_SEED)
    with torch.random.fork_rng([problem.device] if problem.device.type == "cuda" else []):  # of dropout
        torch.manual_seed(CURVATURE_SEED)
        loss = problem.loss(network(batch.x), batch.y)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None]
    generator = Generator().manual_seed(CURVATURE_SEED)
    v = [torch.randn(p.shape, generator=generator).to(p) for p, _ in pairs]
    size = _norm(v)
    for _ in range(steps):
        v = [part / size for part in v]
        v = list(torch.autograd.grad([g for _, g in pairs], [p for p, _ in pairs], v, retain_graph=True))
        size = _norm(v)
        if not bool(size > 0):
            break
    return float(size)


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]).norm()
    return norm
