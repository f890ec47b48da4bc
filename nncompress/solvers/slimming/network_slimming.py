"""Network slimming as first published: sparse scaling factors by subgradients, a global threshold, fine-tuning.

Liu, Li, Shen, Huang, Yan, Zhang, "Learning efficient convolutional networks through network slimming", ICCV 2017.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress import parallel
from nncompress.compressions.sparsity.magnitude import L1Penalty
from nncompress.metrics import evaluate
from nncompress.problem import Problem
from nncompress.solvers.base import Observation, Solver
from nncompress.solvers.slimming.columns import NETWORK_SLIMMING
from nncompress.solvers.slimming.figures import channel_details, channel_observation, unrounded_details
from nncompress.solvers.slimming.scales import Scales, check_slimming, choose_channels, groups_of
from nncompress.solvers.training import descent
from nncompress.solvers.training.minibatches import Minibatches, epoch
from nncompress.surgery.channels import mask_channels
from nncompress.surgery.norms import shared_norms

log = logging.getLogger(__name__)


class NetworkSlimmingState(NamedTuple):
    """The network, its optimiser, the order of the samples, the squared steps (float64), and which channels stay.

    keep: 1 or 0 for each channel (m,), all 1 until fine-tuning begins. plain: the same, had it not been rounded to
    multiples. pruned: the step behind which fine-tuning began, or -1.
    """

    k: int
    model: nn.Module
    keep: Tensor
    pruned: int
    optimizer: Optimizer
    generator: Generator
    step_sq: Tensor
    step_sq_sum: Tensor
    plain: Tensor


@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(Solver[NetworkSlimmingState]):
    """Minimise L(w) + lam ‖gamma‖_1 over w, gamma its scaling factors of batch norms, then cut at a global threshold.

        g_gamma <- g_gamma + lam sign(gamma),  sign(0) = 0,  in every minibatch, so that it passes through the momentum
        the channels with |gamma| at most the int(percent m)-th smallest of all m (counted from 0) go, with their shifts
        the rest is trained without the penalty, with a new optimiser and the schedule from its beginning

    The dead channels stay in the network, as zeros, until it is stored. One step is one epoch. Liu et al., ICCV 2017.

    - num_steps: epochs; 320 and half of them, 160 each, as published.
    - fine_tune: how many of them, the last, are fine-tuning; None: half.
    - lam: as above; published: 1e-4 for VGG, 1e-5 for ResNet-164 and DenseNet-40.
    - percent: part of the channels that goes, published for VGG on CIFAR-10; a target takes its place.
    - lr: learning rate, times `schedule`. As published, like batch_size and optimizer.
    - optimizer: called with the parameters and `lr`.
    - schedule: a tenth from half and again from three quarters of the epochs on, as published.
    - decay_scales: whether weight decay acts on gamma too; as published.
    - fold: give what dead channels still emit, ReLU of their shift, to the layer behind them (without fine-tuning); not
      so published.
    - label_smoothing, mixup: as in `Minibatches`; not published.
    - tolerance: stop when the objective falls by less, relatively, between observations; 0: all epochs, as published.
    """

    parallel: ClassVar[bool] = True
    removes_channels: ClassVar[bool] = True
    columns = NETWORK_SLIMMING

    num_steps: int = 320
    fine_tune: int | None = None
    lam: float = 1e-4
    percent: float = 0.7
    lr: float = 0.1
    batch_size: int = 64
    optimizer: Callable[..., Optimizer] = field(default=partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4))
    schedule: descent.Schedule = field(default_factory=descent.MultiStep)
    decay_scales: bool = True
    fold: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        descent.check_minibatches(self.lr, self.batch_size, self.label_smoothing, self.mixup)
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"lam must be at least 0 and finite, found {self.lam}")
        if not 0 <= self.percent < 1:
            raise ValueError(f"percent must be a part of the channels, at least 0 and below 1, found {self.percent}")
        if self.fine_tune is not None and not 0 <= self.fine_tune <= self.num_steps:
            raise ValueError(
                f"fine_tune must be at least 0 and at most num_steps ({self.num_steps}), found {self.fine_tune}"
            )
        if self.fold and self._fine_tuning:
            raise ValueError("fold is for networks that are not fine-tuned; give solver.fine_tune=0, or fold=false")

    def init(self, problem: Problem) -> NetworkSlimmingState:
        check_slimming(problem, self.batch_size, self.fold)
        model = shared_norms(copy.deepcopy(problem.model))
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        keep, generator = torch.ones_like(Scales.of(model).gamma()), Generator().manual_seed(self.seed)
        return NetworkSlimmingState(0, model, keep, -1, self._optimizer(model), generator, zero, zero, keep.clone())

    def step(self, problem: Problem, state: NetworkSlimmingState) -> NetworkSlimmingState:
        if state.pruned < 0 and state.k >= self._training(state):
            state = self._prune(problem, state)
        k, model, keep, pruned, optimizer, generator, _, step_sq_sum, plain = state
        scales, before = Scales.of(model), [p.detach().clone() for p in model.parameters()]
        descent.set_rate(optimizer, self._rate(state))
        minibatches = Minibatches(self.batch_size, generator, self.label_smoothing, self.mixup)
        if pruned < 0:
            epoch(problem, model, minibatches, optimizer=optimizer, add_gradient=self._subgradient(scales))
        else:
            parts = list(torch.split(keep, scales.sizes))
            epoch(problem, model, minibatches, optimizer=optimizer, after_step=lambda: scales.mask(parts))
        parallel.check_alike([*model.state_dict().values(), keep], "network and channels")
        step_sq = descent.moved_sq(model, before)
        total = step_sq_sum + step_sq
        return NetworkSlimmingState(k + 1, model, keep, pruned, optimizer, generator, step_sq, total, plain)

    def observe(self, problem: Problem, state: NetworkSlimmingState) -> Observation:
        model = copy.deepcopy(state.model).eval()
        scales = Scales.of(model)
        loss = evaluate(model, problem.data.train, problem.loss).loss
        penalty = float(L1Penalty(self.lam).price(scales.gamma())) if state.pruned < 0 else 0.0
        terms = {"objective": loss + penalty, "term/loss": loss, "term/penalty": penalty, "epochs": state.k}
        terms |= descent.step_terms(state)
        return channel_observation(problem, model, self.masked_network(problem, state), terms)

    def result(self, problem: Problem, state: NetworkSlimmingState, observation: Observation) -> Observation:
        scales = Scales.of(observation.model)
        keep, notes = self._choose_kept(problem, state)
        network = mask_channels(observation.model, keep, fold=self.fold)
        details = channel_details(network, scales.named(scales.gamma()))
        if problem.round_to > 1:
            if state.pruned < 0:
                unrounded = self.masked_network(replace(problem, round_to=1), state)
            else:
                unrounded = mask_channels(problem.model, scales.named(state.plain != 0))
            details |= unrounded_details(problem, unrounded)
        return observation._replace(details=details, notes=(*observation.notes, *notes))

    def masked_network(self, problem: Problem, state: NetworkSlimmingState) -> nn.Module:
        """Return the network whose dead channels are zero, in evaluation mode."""
        model = copy.deepcopy(state.model).eval()
        return mask_channels(model, self._choose_kept(problem, state)[0], fold=self.fold)

    @property
    def _fine_tuning(self) -> int:
        return self.num_steps // 2 if self.fine_tune is None else self.fine_tune

    def _training(self, state: NetworkSlimmingState) -> int:
        """Return the epochs before fine-tuning: as they were, once it has begun (num_steps may then be another)."""
        return self.num_steps - self._fine_tuning if state.pruned < 0 else state.pruned

    def _rate(self, state: NetworkSlimmingState) -> float:
        training = self._training(state)
        phase, k = (training, state.k) if state.pruned < 0 else (self.num_steps - training, state.k - training)
        return self.lr * self.schedule.factor(k, phase)

    def _optimizer(self, model: nn.Module) -> Optimizer:
        return descent.optimizer_of(self.optimizer, groups_of(model, self.decay_scales), self.lr)

    def _subgradient(self, scales: Scales) -> Callable[[], None]:
        """Return what adds lam sign(gamma) to the gradients of the scaling factors."""

        @torch.no_grad()
        def add() -> None:
            pairs = [(gamma.grad, gamma) for gamma in scales.gammas if gamma.grad is not None]  # the loss reaches them
            if pairs:
                gradients, reached = zip(*pairs, strict=True)
                torch._foreach_add_(gradients, torch._foreach_sign(reached), alpha=self.lam)

        return add

    def _choose_kept(self, problem: Problem, state: NetworkSlimmingState) -> tuple[dict[str, Tensor], list[str]]:
        """Return the channels that stay, by batch norm, and notes of what had to change above the threshold."""
        scales = Scales.of(state.model)
        if state.pruned >= 0:
            return scales.named(state.keep != 0), []
        scores = scales.gamma().abs()
        above = torch.ones_like(scores, dtype=torch.bool)
        if problem.target is None:
            above = scores > scores.sort().values[int(self.percent * len(scores))]
        return choose_channels(problem, state.model, above, scores, fold=self.fold)

    def _prune(self, problem: Problem, state: NetworkSlimmingState) -> NetworkSlimmingState:
        """Return the masked network, with a new optimiser, for fine-tuning."""
        keep, notes = self._choose_kept(problem, state)
        for note in notes:
            log.warning("%s", note)
        plain = keep if problem.round_to == 1 else self._choose_kept(replace(problem, round_to=1), state)[0]
        model = mask_channels(state.model, keep, fold=self.fold)
        flags, without = (torch.cat(list(each.values())).to(state.keep) for each in (keep, plain))
        optimizer = self._optimizer(model)
        return state._replace(model=model, keep=flags, pruned=state.k, optimizer=optimizer, plain=without)
