"""NN-BCD: block coordinate descent with tensor-train or pruned weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nncompress import parallel
from nncompress.compressions.base import distance_sq
from nncompress.problem import Problem, with_weights
from nncompress.solvers.base import Observation, Solver, observation_of
from nncompress.solvers.nnbcd import blocks, start
from nncompress.solvers.nnbcd.extrapolation import INITIAL_BETA, extrapolate
from nncompress.solvers.nnbcd.figures import figures, sparsity
from nncompress.solvers.nnbcd.state import Blocks, NNBCDState, each, inputs_of, own, whole
from nncompress.solvers.training.descent import step_terms


@dataclass(frozen=True, kw_only=True)
class NNBCD(Solver[NNBCDState]):
    """Minimise by block coordinate descent (NN-BCD, first named tenBCD) for a chain of linear layers.

    Over P = ({V_i}, {U_i}, {W_i}, {G_i}), with sigma_N the identity and V_0 the input,

        L(P) = 1/2 ‖V_N - Y‖² + sum_i gamma/2 ‖V_i - sigma_i(U_i)‖² + sum_i rho/2 ‖U_i - W_i V_{i-1}‖²
             + sum over compressed layers of tau/2 ‖W_i - T(G_i)‖² - <lam_i, W_i - T(G_i)> + C(G_i)

    by one backward Gauss-Seidel sweep a step: V_N, U_N, W_N, then V_i, U_i, W_i, G_i for i = N-1, ..., 1. Each block
    is minimised exactly, the blocks V_N, W_i and U_i (i < N) with the proximal term alpha/2 ‖block - old‖² added.
    (Written as in the paper, samples as columns; the code keeps them as rows.) T(G_i) stands for Δ(Θ) of any plan:
    tensor trains, the kept entries of pruned weights, codebooks, ...; C(G_i) is 0 except for penalties. A layer with a
    bias has (W_i, b_i) as one block, U_i - b_i 1ᵀ in place of U_i elsewhere. In a convolution W_i acts on the patches
    of V_{i-1}; average pooling and reordering are part of the map before W_i. An identity skip adds an earlier V_j to
    U_i or to sigma_i(U_i); the blocks stay closed forms.

    Li et al., arXiv 2303.06815 (2023): sufficient decrease with lambda = min(alpha, gamma)/2 in (V, U, W), and
    O(1/k) for the running mean of the squared subgradients.

    - num_steps: sweeps.
    - tau, alpha, gamma, rho: as above; tau, gamma and rho as published for four hidden layers on UCI HAR.
    - plain: recompute Θ from scratch, as the published code does; false: the old Θ stays when it is better, which makes
      L monotone.
    - project: W_i is T(G_i) at the start and overwritten with it after each G step, the published pruning; false, since
      it may raise L.
    - initial: a scheme of `start.SCHEMES` (convolutions: always 0.01 N(0,1), as published), or "model" for the
      network's own weights and biases; initial_scale: its factor (None: the published one).
    - initial_rank: rank of the first Θ only (published: 400, HAR; 700, CNN); None, the final one, since with another
      the tau term jumps in the first sweep.
    - tolerance: stop when L falls by less, relatively, between observations; 0: never, as published.

    Beyond the paper, off by default:

    - tau_growth: tau is multiplied by it after every sweep, up to tau_max (continuation).
    - multipliers: lam_i <- lam_i - tau (W_i - T(G_i)) after every sweep (augmented Lagrangian; lam = 0 without).
    - alpha_theta: proximal weight of the G step, which projects (tau W - lam + alpha_theta T_old)/(tau + alpha_theta);
      with it steps and decrease cover T too.
    - extrapolation: inertial steps with a monotone restart (`nnbcd.extrapolation`).
    """

    precision: ClassVar[str] = "float64"
    parallel: ClassVar[bool] = True

    num_steps: int = 100
    tau: float = 5.0
    alpha: float = 0.2
    gamma: float = 0.5
    rho: float = 0.5
    plain: bool = False
    project: bool = False
    tau_growth: float = 1.0
    tau_max: float = math.inf
    multipliers: bool = False
    alpha_theta: float = 0.0
    extrapolation: bool = False
    initial: str = "normal"
    initial_scale: float | None = None
    initial_rank: int | None = None
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("tau", "alpha", "gamma", "rho", *(["initial_scale"] if self.initial_scale is not None else []))
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, found {getattr(self, name)}")
        if not 1 <= self.tau_growth < math.inf:
            raise ValueError(f"tau_growth must be at least 1 and finite, found {self.tau_growth}")
        if not self.tau_max >= self.tau:
            raise ValueError(f"tau_max must be at least tau = {self.tau}, found {self.tau_max}")
        if not 0 <= self.alpha_theta < math.inf:
            raise ValueError(f"alpha_theta must be at least 0 and finite, found {self.alpha_theta}")
        options = ("multipliers", "extrapolation", "alpha_theta")
        chosen = [name for name in options if getattr(self, name)]
        if self.project and chosen:
            raise ValueError(
                f"project keeps W = T and goes with none of {', '.join(options)}, found {chosen[0]}; drop one"
            )
        if self.initial_rank is not None and self.initial_rank < 1:
            raise ValueError(f"initial_rank must be at least 1, found {self.initial_rank}")
        if self.initial not in (*start.SCHEMES, "model"):
            raise ValueError(f"initial must be model or one of {', '.join(start.SCHEMES)}, found {self.initial!r}")

    def init(self, problem: Problem) -> NNBCDState:
        chain = start.chain_for(problem)
        W, b = start.initial_weights(problem, chain, self.initial, self.initial_scale, self.seed)
        theta, T = start.initial_theta(problem, chain, W, self.tau, self.initial_rank)
        if self.project:
            W = [w if t is None else t.clone() for w, t in zip(W, T, strict=True)]
        U, V = start.forward(chain, W, b, inputs_of(problem))
        lam = each(T, torch.zeros_like) if self.multipliers else (None,) * len(T)
        ended = tuple(each(group, torch.clone) for group in (W, b, U, V[1:])) if self.extrapolation else ()
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        state = NNBCDState(
            k=0, chain=chain, W=tuple(W), b=tuple(b), U=tuple(U), V=tuple(V[1:]), theta=theta, T=T, lam=lam,
            products=start.known_products(chain, U, V), ended=ended, beta=(INITIAL_BETA, 1.0), input_gram=None,
            step_sq=zero, theta_sq=zero, step_sq_sum=zero, sweep_sq=zero, sweep_sq_sum=zero, guaranteed=zero,
        )  # fmt: skip
        return state._replace(input_gram=start.input_gram(Blocks.of(problem, state)))

    def step(self, problem: Problem, state: NNBCDState) -> NNBCDState:
        P, tau = Blocks.of(problem, state), self._tau(state.k)
        if state.k > 0 and tau > self._tau(state.k - 1):
            P.guaranteed -= (tau - self._tau(state.k - 1)) / 2 * P.distance_sq()
        for i in range(P.last, 0, -1):
            self._update_layer(P, i, tau)  # V_i, U_i, W_i
            self._update_compressed(P, i, tau)  # G_i
        if self.alpha_theta:
            P.step_sq += P.theta_sq
        if self.multipliers:
            P.update_multipliers(tau)
        new = P.state(state)
        if not self.extrapolation:
            return new
        return extrapolate(P, new, tau=tau, gamma=self.gamma, rho=self.rho, total=state.step_sq_sum)

    def observe(self, problem: Problem, state: NNBCDState) -> Observation:
        P, tau = Blocks.of(problem, state), self._tau(max(0, state.k - 1))
        terms = figures(P, tau=tau, gamma=self.gamma, rho=self.rho)
        terms |= step_terms(state)
        if state.k > 0:
            terms["step_sq/theta"] = float(state.theta_sq)
        if state.k > 0 and self.extrapolation:
            terms |= {"step_sq/sweep": float(state.sweep_sq), "step_sq/sweep/sum": float(state.sweep_sq_sum)}
        if self.tau_growth > 1:
            terms["tau"] = tau
        if state.k > 0 and not self.project:  # projecting may raise L
            terms["decrease/guaranteed"] = float(state.guaranteed)
        terms |= sparsity(P)
        promised = not (self.project or self.plain or self.multipliers) and self.tau_growth == 1
        if state.k > 0 and promised and self.initial_rank is None:
            strengths = [self.alpha, self.gamma, *([self.alpha_theta] if self.alpha_theta else [])]
            terms["decrease/lambda"] = min(strengths) / 2
        return observation_of(problem, with_weights(problem.model, P.weights()), state.theta, terms)

    def whole(self, problem: Problem, state: NNBCDState) -> NNBCDState:
        return whole(problem, state)

    def own(self, problem: Problem, state: NNBCDState) -> NNBCDState:
        return own(problem, state)

    # The block updates (`blocks` has the formulas); index i is the paper's.

    def _update_layer(self, P: Blocks, i: int, tau: float) -> None:
        """Update V_i and U_i, some samples at a time, then W_i from the sums over all samples."""
        layer, W, b = P.layer(i), P.W[i], P.b[i]
        T, lam = P.T[i], P.lam[i]
        pull = torch.zeros_like(W) if T is None else tau * (T - W)  # -1 times the gradient of the terms with T in W_i
        if lam is not None:
            pull += lam
        diagonal = W.new_full((W.shape[1],), self.alpha if P.T[i] is None else self.alpha + tau)
        if b is not None:
            pull = torch.nn.functional.pad(pull, (0, 1))
            diagonal = torch.cat([diagonal, W.new_full((1,), self.alpha)])
        step = None if i == P.last else self._activation_step(P, i)
        if P.few(i):
            R = self._update_samples(P, i, slice(None), step)
            seen = layer.map.rows(P.V[i - 1])
            if b is not None:
                seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
            move = blocks.weight_step_few(pull, R.view(len(seen), -1), seen, diagonal, self.rho)
        else:
            known = P.input_gram if i == 1 else None
            gram = pull.new_zeros(len(diagonal), len(diagonal)) if known is None else known
            cross = torch.zeros_like(pull)
            for rows in P.chunks(i):
                R = self._update_samples(P, i, rows, step)
                seen = layer.map.rows(P.V[i - 1][rows])
                blocks.add_cross_(cross, R.view(len(seen), -1), seen, b is not None)
                if known is None:
                    blocks.add_gram_(gram, seen, b is not None)
            parallel.sum_(cross, *([gram] if known is None else []))
            move = blocks.weight_step(pull, cross, gram, diagonal, self.rho)
        if b is not None:
            P.moved(blocks.sq(move[:, -1]), self.alpha)
            P.b[i], move = b + move[:, -1], move[:, :-1]
        P.moved(blocks.sq(move), self.alpha if P.T[i] is None else self.alpha + tau / 2)
        P.W_old[i], P.W[i] = W, W + move

    def _update_samples(self, P: Blocks, i: int, rows: slice, step: blocks.ActivationStep | None) -> Tensor:
        """Update V_i and U_i of some samples; return the residual U_i - map(V_{i-1}) W_iᵀ - ... of the linear layer."""
        if step is None:
            return self._update_output(P, i, rows)
        self._update_activation(P, i, rows, step)
        return self._update_preactivation(P, i, rows)

    def _update_output(self, P: Blocks, N: int, rows: slice) -> Tensor:
        V = blocks.output_activation(P.Y[rows], P.U[N][rows], P.V[N][rows], self.gamma, self.alpha)
        P.moved(blocks.sq(V - P.V[N][rows]), self.alpha + (1 + self.gamma) / 2, of_samples=True)
        product = P.known_product(N, rows)
        U = blocks.output_preactivation(V, product, self.gamma, self.rho)
        P.moved(blocks.sq(U - P.U[N][rows]), (self.gamma + self.rho) / 2, of_samples=True)
        P.V[N][rows], P.U[N][rows] = V, U
        return U - product

    def _activation_step(self, P: Blocks, i: int) -> blocks.ActivationStep:
        """Return the V_i block, ready for any samples: what skips leave V_i add to its curvature."""
        B = P.layer(i + 1).map.matrix(P.W[i + 1])
        if P.layer(i + 1).inner == i:
            B = B + torch.eye(len(B), dtype=B.dtype, device=B.device)
        return blocks.ActivationStep(B, self.rho, sum(self._strengths(P, i).values()))

    def _strengths(self, P: Blocks, i: int) -> dict[tuple[int, bool], float]:
        """Return the weights of ½‖V_i - t‖² for each t: sigma_i(U_i) at (i, False), and the layers V_i skips to."""
        leaving = [(m, inner) for m, inner in P.chain.leaving(i) if not (inner and m == i + 1)]
        return {(i, False): self.gamma} | {(m, inner): self.rho if inner else self.gamma for m, inner in leaving}

    def _update_activation(self, P: Blocks, i: int, rows: slice, step: blocks.ActivationStep) -> None:
        following, b = P.layer(i + 1), P.b[i + 1]
        straight = following.inner == i  # then V_i Bᵀ contains the skip
        U = P.U[i + 1][rows] if straight else P.linear_part(i + 1, rows)
        V, product = step(self._target(P, i, rows, step.c), U if b is None else U - b.repeat(following.map.positions))
        P.moved(distance_sq(P.V[i][rows], V), step.c / 2, of_samples=True)
        P.V[i][rows] = V
        saved = P.products[i + 1]
        if product is not None and saved is not None:
            if straight:
                product -= V
            saved[rows] = product if b is None else product + b.repeat(following.map.positions)

    def _target(self, P: Blocks, i: int, rows: slice, c: float) -> Tensor:
        """Return what the V_i block pulls V_i to, a new tensor: sigma_i(U_i) and, weighted, what it skips to."""
        target, outer = P.activation(i, rows), P.layer(i).outer
        if outer is not None:
            target += P.V[outer][rows]
        strengths = self._strengths(P, i)
        if len(strengths) == 1:
            return target
        target *= self.gamma / c
        for (m, inner), strength in list(strengths.items())[1:]:
            part = P.U[m][rows] - P.known_product(m, rows) if inner else P.V[m][rows] - P.activation(m, rows)
            target.add_(part, alpha=strength / c)
        return target

    def _update_preactivation(self, P: Blocks, i: int, rows: slice) -> Tensor:
        product, inner = P.known_product(i, rows), P.layer(i).inner
        if inner is not None:
            product = product + P.V[inner][rows]
        settings = {"rho": self.rho, "gamma": self.gamma, "alpha": self.alpha, "slope": P.layer(i).slope}
        step_sq = blocks.preactivation_step_(P.U[i][rows], P.activated_part(i, rows), product, **settings)
        P.moved(step_sq, self.alpha / 2, of_samples=True)
        return product  # now the residual

    def _update_compressed(self, P: Blocks, i: int, tau: float) -> None:
        for j, task in enumerate(P.plan.tasks):
            layers = P.layers_of(task)
            if min(layers.values()) != i:  # a joint task waits for the last of its layers
                continue
            old = {name: T.view(P.shapes[name]) for name, n in layers.items() if (T := P.T[n]) is not None}
            weights = {name: self._centre(P, n, tau).view(P.shapes[name]) for name, n in layers.items()}
            larger = self.initial_rank is not None and P.k == 0  # the first Θ then is no point of the plan's set
            old_theta = None if self.plain or larger else P.theta[j]
            theta, new = P.plan.update_task(task, weights, tau + self.alpha_theta, old_theta, old)
            P.guaranteed += task.compression.penalty(P.theta[j]) - task.compression.penalty(theta)
            P.theta[j] = theta
            for name, T in new.items():
                P.replace(layers[name], T.flatten(1), tau)
                if self.project:
                    P.project(layers[name])

    def _centre(self, P: Blocks, i: int, tau: float) -> Tensor:
        """Return what the G step projects: W_i, or (tau W_i - lam_i + alpha_theta T_old)/(tau + alpha_theta)."""
        W, T, lam = P.W[i], P.T[i], P.lam[i]
        centre = W if lam is None else W - lam / tau
        share = self.alpha_theta / (tau + self.alpha_theta)
        return centre if share == 0 or T is None else torch.lerp(centre, T, share)

    def _tau(self, k: int) -> float:
        """Return tau of sweep k, from 0."""
        exponent = k * math.log(self.tau_growth)
        if exponent > math.log(self.tau_max / self.tau):
            return self.tau_max
        return self.tau * math.exp(min(exponent, 700.0))  # beyond, floats end
