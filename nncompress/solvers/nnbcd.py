"""NN-BCD: block coordinate descent with tensor-train or pruned weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from nncompress.compressions.base import distance_sq
from nncompress.compressions.plan import Plan, Task
from nncompress.errors import ConfigError, Unsupported
from nncompress.problem import Problem, weights_of, with_weights
from nncompress.solvers import blocks
from nncompress.solvers.base import Observation, Solver
from nncompress.solvers.chain import REQUIREMENT, Chain, activation
from nncompress.solvers.initialization import SCHEMES, draw
from nncompress.solvers.nnbcd_state import Blocks, NNBCDState, affine, figures, inputs_of


@dataclass(frozen=True, kw_only=True)
class NNBCD(Solver[NNBCDState]):
    """Block coordinate descent (NN-BCD, first named tenBCD) for a chain of linear layers.

    Minimise over P = ({V_i}, {U_i}, {W_i}, {G_i}), with sigma_N the identity and V_0 the input,

        L(P) = 1/2 ‖V_N - Y‖² + sum_i gamma/2 ‖V_i - sigma_i(U_i)‖² + sum_i rho/2 ‖U_i - W_i V_{i-1}‖²
             + sum over compressed layers of tau/2 ‖W_i - T(G_i)‖² + C(G_i)

    by one backward Gauss-Seidel sweep a step: V_N, U_N, W_N, then V_i, U_i, W_i, G_i for i = N-1, ..., 1. Each block
    is minimised exactly, the blocks V_N, W_i and U_i (i < N) with the proximal term alpha/2 ‖block - old‖² added.
    (Written as in the paper, samples as columns; the code keeps them as rows.)
    T(G_i) stands for Δ(Θ) of any plan: tensor trains, the kept entries of pruned weights, codebooks, ...; C(G_i) is 0
    except for penalties. A layer with a bias has (W_i, b_i) as one block, U_i - b_i 1ᵀ in place of U_i elsewhere.

    Li et al., arXiv 2303.06815 (2023): sufficient decrease with lambda = min(alpha, gamma)/2 in (V, U, W), and
    O(1/k) for the running mean of the squared subgradients.

    num_steps: sweeps. plain: recompute Θ from scratch, as the published code does (by default the old Θ stays when
    it is better, which makes L monotone). project: overwrite W_i with T(G_i) after each G step, the published pruning.
    initial: a scheme of `initialization.SCHEMES`, or "model" for the network's own weights and biases; initial_scale:
    its factor (None: the published one); initial_rank: rank of the first Θ only (published: 400, HAR; 700, CNN).
    tolerance: stop when L falls by less, relatively, between observations (0: never).
    """

    precision: ClassVar[str] = "float64"

    num_steps: int = 100
    tau: float = 5.0
    alpha: float = 0.2
    gamma: float = 0.5
    rho: float = 0.5
    plain: bool = False
    project: bool = False
    initial: str = "normal"
    initial_scale: float | None = None
    initial_rank: int | None = None
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tau", "alpha", "gamma", "rho"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.initial_rank is not None and self.initial_rank < 1:
            raise ValueError(f"initial_rank must be at least 1, found {self.initial_rank}")
        if self.initial not in (*SCHEMES, "model"):
            raise ValueError(f"initial must be model or one of {', '.join(SCHEMES)}, found {self.initial!r}")

    def init(self, problem: Problem) -> NNBCDState:
        chain = Chain.of(problem.model)
        outside = weights_of(problem.model).keys() - {layer.weight for layer in chain.layers}
        if outside:
            raise Unsupported(f"{REQUIREMENT}; found the weight {min(outside)!r} outside the chain")
        W, b = self._initial_weights(problem, chain)
        plan = problem.plan if self.initial_rank is None else _with_rank(problem.plan, self.initial_rank)
        names = [layer.weight for layer in chain.layers]
        theta = plan.compress(plan.select(dict(zip(names, W, strict=True))), self.tau)
        dense = plan.decompress(theta)
        T = tuple(dense.get(name) for name in names)
        U, V = [], [inputs_of(problem)]
        for layer, w, bias in zip(chain.layers, W, b, strict=True):
            U.append(affine(w, bias, V[-1]))
            V.append(activation(U[-1], layer.slope))
        diagonal = self._diagonal(W[0], b[0], T[0])
        factor = blocks.weight_factor(blocks.gram(V[0], bias=b[0] is not None), self.rho, diagonal)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return NNBCDState(
            0, chain, tuple(W), tuple(b), tuple(U), tuple(V[1:]), theta, T, factor, zero, zero, zero, zero
        )

    def step(self, problem: Problem, state: NNBCDState) -> NNBCDState:
        P = Blocks.of(problem, state)
        N = len(state.W)
        residual = self._update_output(P, N)  # V_N, U_N
        self._update_weight(P, N, residual)  # W_N
        self._update_compressed(P, N)  # G_N, only where the plan compresses the output layer
        for i in range(N - 1, 0, -1):
            self._update_activation(P, i)  # V_i
            residual = self._update_preactivation(P, i)  # U_i
            self._update_weight(P, i, residual)  # W_i
            self._update_compressed(P, i)  # G_i
        return P.state(state)

    def observe(self, problem: Problem, state: NNBCDState) -> Observation:
        terms = figures(Blocks.of(problem, state), tau=self.tau, gamma=self.gamma, rho=self.rho)
        if state.k > 0:
            terms |= {
                "step_sq": float(state.step_sq),
                "step_sq/sum": float(state.step_sq_sum),
                "step_sq/theta": float(state.theta_sq),
            }
        if state.k > 0 and not self.project:  # projecting may raise L
            terms["decrease/guaranteed"] = float(state.guaranteed)
        if state.k > 0 and not (self.project or self.plain):
            terms["decrease/lambda"] = min(self.alpha, self.gamma) / 2
        weights: dict[str, Tensor] = {}
        for layer, w, b in zip(state.chain.layers, state.W, state.b, strict=True):
            weights[layer.weight] = w
            if layer.bias is not None and b is not None:
                weights[layer.bias] = b
        return Observation(with_weights(problem.model, weights), state.theta, terms)

    # The block updates (`blocks` has the formulas); index i is the paper's.

    def _update_output(self, P: Blocks, N: int) -> Tensor:
        V = blocks.output_activation(P.Y, P.U[N], P.V[N], self.gamma, self.alpha)
        P.moved(blocks.sq(V - P.V[N]), self.alpha + (1 + self.gamma) / 2)
        product = P.product(N)
        U = blocks.output_preactivation(V, product, self.gamma, self.rho)
        P.moved(blocks.sq(U - P.U[N]), (self.gamma + self.rho) / 2)
        P.V[N], P.U[N] = V, U
        return U - product

    def _update_activation(self, P: Blocks, i: int) -> None:
        target = activation(P.U[i], P.slope(i), out=P.spare(i))
        V = blocks.activation_step_(target, P.W[i + 1], P.without_bias(i + 1), self.rho, self.gamma)
        P.moved(distance_sq(P.V[i], V), self.gamma / 2)
        P.exchange(i)

    def _update_preactivation(self, P: Blocks, i: int) -> Tensor:
        product = P.product(i, out=P.spare(i))
        step_sq = blocks.preactivation_step_(
            P.U[i], P.V[i], product, rho=self.rho, gamma=self.gamma, alpha=self.alpha, slope=P.slope(i)
        )
        P.moved(step_sq, self.alpha / 2)
        return product  # now the residual

    def _update_weight(self, P: Blocks, i: int, residual: Tensor) -> None:
        W, b, T = P.W[i], P.b[i], P.T[i]
        bias = b is not None
        pull = torch.zeros_like(W) if T is None else self.tau * (T - W)
        if bias:
            pull = torch.nn.functional.pad(pull, (0, 1))
        factor = P.input_factor
        if i > 1:
            factor = blocks.weight_factor(blocks.gram(P.V[i - 1], bias), self.rho, self._diagonal(W, b, T))
        move = blocks.weight_step(pull, blocks.cross(residual, P.V[i - 1], bias), factor, self.rho)
        if b is not None:
            P.moved(blocks.sq(move[:, -1]), self.alpha)
            P.b[i], move = b + move[:, -1], move[:, :-1]
        P.moved(blocks.sq(move), self.alpha if T is None else self.alpha + self.tau / 2)
        P.W_old[i], P.W[i] = W, W + move

    def _update_compressed(self, P: Blocks, i: int) -> None:
        for j, task in enumerate(P.plan.tasks):
            layers = P.layers_of(task)
            if min(layers.values()) != i:  # a joint task waits for the last of its layers
                continue
            weights = {name: P.W[n] for name, n in layers.items()}
            old = {name: T for name, n in layers.items() if (T := P.T[n]) is not None}
            larger = self.initial_rank is not None and P.k == 0  # the first Θ then is no point of the plan's set
            start = None if self.plain or larger else P.theta[j]
            theta, new = P.plan.update_task(task, weights, self.tau, start, old)
            P.guaranteed += task.compression.penalty(P.theta[j]) - task.compression.penalty(theta)
            P.theta[j] = theta
            for name, T in new.items():
                P.replace(layers[name], T, self.tau)
                if self.project:
                    P.project(layers[name])

    def _diagonal(self, W: Tensor, b: Tensor | None, T: Tensor | None) -> Tensor:
        """Diagonal of the W step: alpha + tau (tau = 0 for an uncompressed layer), alpha for the bias."""
        diagonal = W.new_full((W.shape[1],), self.alpha if T is None else self.alpha + self.tau)
        return diagonal if b is None else torch.cat([diagonal, W.new_full((1,), self.alpha)])

    def _initial_weights(self, problem: Problem, chain: Chain) -> tuple[list[Tensor], list[Tensor | None]]:
        given = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
        if self.initial != "model":
            generator = Generator().manual_seed(self.seed)
            for layer in chain.layers:
                w = draw(given[layer.weight].shape, self.initial, self.initial_scale, generator)
                given[layer.weight] = w.to(problem.device, problem.dtype)
                if layer.bias is not None:
                    given[layer.bias].zero_()
        weights = [given[layer.weight] for layer in chain.layers]
        return weights, [None if layer.bias is None else given[layer.bias] for layer in chain.layers]


def _with_rank(plan: Plan, rank: int) -> Plan:
    """The same tasks at another rank."""

    def changed(task: Task) -> Task:
        settings = {field.name for field in dataclasses.fields(task.compression)}  # type: ignore[arg-type]
        if "rank" not in settings:
            kind = type(task.compression).__name__
            raise ConfigError(f"solver.initial_rank needs a compression with a rank, found {kind}; leave it null")
        return dataclasses.replace(task, compression=dataclasses.replace(task.compression, rank=rank))  # type: ignore[type-var]

    return dataclasses.replace(plan, tasks=tuple(changed(task) for task in plan.tasks))
