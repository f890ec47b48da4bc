"""NN-BCD: block coordinate descent with tensor-train or pruned weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nncompress.compressions.plan import Plan, Task
from nncompress.errors import Unsupported
from nncompress.params import Params
from nncompress.problem import Problem, weights_of, with_weights
from nncompress.solvers import blocks
from nncompress.solvers.base import Observation, Solver
from nncompress.solvers.chain import Chain, activation
from nncompress.solvers.initialization import SCHEMES, draw


class NNBCDState(NamedTuple):
    """Blocks of layer i at index i - 1; U, V are d_i x n, W is d_i x d_{i-1}, b is (d_i,) or None."""

    k: int
    chain: Chain
    W: tuple[Tensor, ...]
    b: tuple[Tensor | None, ...]
    U: tuple[Tensor, ...]
    V: tuple[Tensor, ...]
    theta: tuple[Any, ...]
    T: tuple[Tensor | None, ...]
    # of the input, which never changes: Cholesky factor for W_1
    input_factor: Tensor
    # figures of the last sweep and sums over all sweeps, float64
    step_sq: Tensor
    theta_sq: Tensor
    step_sq_sum: Tensor
    guaranteed: Tensor


@dataclass(frozen=True, kw_only=True)
class NNBCD(Solver[NNBCDState]):
    """Block coordinate descent (NN-BCD, first named tenBCD) for a chain of linear layers.

    Minimise over P = ({V_i}, {U_i}, {W_i}, {G_i}), with sigma_N the identity and V_0 the input,

        L(P) = 1/2 ‖V_N - Y‖² + sum_i gamma/2 ‖V_i - sigma_i(U_i)‖² + sum_i rho/2 ‖U_i - W_i V_{i-1}‖²
             + sum over compressed layers of tau/2 ‖W_i - T(G_i)‖²

    by one backward Gauss-Seidel sweep a step: V_N, U_N, W_N, then V_i, U_i, W_i, G_i for i = N-1, ..., 1. Each block
    is minimised exactly, the blocks V_N, W_i and U_i (i < N) with the proximal term alpha/2 ‖block - old‖² added.
    T(G_i) stands for Δ(Θ) of any plan: tensor trains, or the kept entries of pruned weights. A layer with a bias has
    (W_i, b_i) as one block, U_i - b_i 1ᵀ in place of U_i elsewhere.

    Li et al., arXiv 2303.06815 (2023), sections 2-3: sufficient decrease with lambda = min(alpha, gamma)/2 and
    O(1/k) for the running mean of the squared subgradients.

    num_steps: sweeps. plain: recompute Θ from scratch, as the published code does (by default the old Θ stays when
    it is better, which makes L monotone). project: overwrite W_i with T(G_i) after each sweep, the published pruning.
    initial: a scheme of `initialization.SCHEMES`, or "model" for the network's own weights and biases; initial_scale:
    its factor (None: the published one); initial_rank: rank of the first Θ only (published: 400, HAR; 700, CNN).
    tolerance: stop when L falls by less, relatively, between observations (0: never).
    """

    precision: ClassVar[str] = "float64"

    num_steps: int = 50
    tau: float = 1.0
    alpha: float = 1.0
    gamma: float = 1.0
    rho: float = 1.0
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
        if self.initial not in (*SCHEMES, "model"):
            raise ValueError(f"initial must be model or one of {', '.join(SCHEMES)}, found {self.initial!r}")

    def init(self, problem: Problem) -> NNBCDState:
        chain = Chain.of(problem.model)
        W, b = self._initial_weights(problem, chain)
        plan = problem.plan if self.initial_rank is None else _with_rank(problem.plan, self.initial_rank)
        theta = plan.compress(Params({layer.weight: w for layer, w in zip(chain.layers, W, strict=True)}), self.tau)
        dense = plan.decompress(theta)
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        T = tuple(dense.get(layer.weight) for layer in chain.layers)
        V0 = _inputs(problem)
        tau = self.tau if T[0] is not None else 0.0
        factor = blocks.weight_factor(blocks.gram(V0, b[0] is not None), self.rho, self._diagonal(W[0], b[0], tau))
        state = NNBCDState(0, chain, W, b, (), (), theta, T, factor, zero, zero, zero, zero)
        return state._replace(**self._forward(V0, state))

    def step(self, problem: Problem, state: NNBCDState) -> NNBCDState:
        P = _Blocks.of(problem, state)
        N = len(state.W)
        self._update_output(P, N)  # V_N, U_N
        self._update_weight(P, N)  # W_N
        self._update_compressed(P, N)  # only where the plan compresses the output layer
        for i in range(N - 1, 0, -1):
            self._update_activation(P, i)  # V_i
            self._update_preactivation(P, i)  # U_i
            self._update_weight(P, i)  # W_i
            self._update_compressed(P, i)  # G_i
        return P.state(state)

    def observe(self, problem: Problem, state: NNBCDState) -> Observation:
        P = _Blocks.of(problem, state)
        terms = self._objective(P)
        if state.k > 0:
            terms |= {
                "step_sq": float(state.step_sq),
                "step_sq/sum": float(state.step_sq_sum),
                "step_sq/theta": float(state.theta_sq),
                "decrease/guaranteed": float(state.guaranteed),
                "decrease/lambda": min(self.alpha, self.gamma) / 2,
            }
        weights = {layer.weight: w for layer, w in zip(state.chain.layers, state.W, strict=True)}
        biases = {layer.bias: b for layer, b in zip(state.chain.layers, state.b, strict=True) if layer.bias is not None}
        return Observation(with_weights(problem.model, {**weights, **biases}), state.theta, terms)

    # The block updates; index i is the paper's, P.V[0] is the input.

    def _update_output(self, P: _Blocks, N: int) -> None:
        old_V, old_U = P.V[N], P.U[N]
        P.V[N] = blocks.output_activation(P.Y, old_U, old_V, self.gamma, self.alpha)
        P.U[N] = blocks.output_preactivation(P.V[N], P.product(N), self.gamma, self.rho)
        P.moved(blocks.sq(P.V[N] - old_V), self.alpha + (1 + self.gamma) / 2)
        P.moved(blocks.sq(P.U[N] - old_U), (self.gamma + self.rho) / 2)

    def _update_activation(self, P: _Blocks, i: int) -> None:
        target = activation(P.U[i], P.chain.layers[i - 1].slope)
        new = blocks.activation_step(P.W[i + 1], P.without_bias(i + 1), target, self.rho, self.gamma)
        P.moved(blocks.sq(P.V[i].sub_(new)), self.gamma / 2)
        P.V[i].copy_(new)

    def _update_preactivation(self, P: _Blocks, i: int) -> None:
        share = self.rho / (self.rho + self.alpha)
        b = torch.addmm(P.U[i], P.W[i], P.V[i - 1], beta=1 - share, alpha=share)
        bias = P.b[i]
        if bias is not None:
            b.add_(bias[:, None], alpha=share)
        slope = P.chain.layers[i - 1].slope
        step_sq = blocks.preactivation_step_(P.U[i], P.V[i], b, (self.rho + self.alpha) / self.gamma, slope)
        P.moved(step_sq, self.alpha / 2)

    def _update_weight(self, P: _Blocks, i: int) -> None:
        W, b, T = P.W[i], P.b[i], P.T[i]
        tau = 0.0 if T is None else self.tau
        anchor = self.alpha * W if T is None else (self.alpha * W).add_(T, alpha=tau)
        if b is not None:
            anchor = torch.cat([anchor, self.alpha * b[:, None]], dim=1)
        factor = P.input_factor
        if i > 1:
            factor = blocks.weight_factor(blocks.gram(P.V[i - 1], b is not None), self.rho, self._diagonal(W, b, tau))
        new = blocks.weight_step(anchor, blocks.cross(P.U[i], P.V[i - 1], b is not None), factor, self.rho)
        if b is not None:
            P.b[i] = new[:, -1].contiguous()
            P.moved(blocks.sq(new[:, -1] - b), self.alpha)
            new = new[:, :-1].contiguous()
        P.W[i] = new
        P.moved(blocks.sq(new - W), self.alpha + tau / 2)

    def _update_compressed(self, P: _Blocks, i: int) -> None:
        for j, task in enumerate(P.plan.tasks):
            layers = P.layers_of(task)
            if min(layers.values()) != i:  # a joint task waits for the last of its layers
                continue
            weights = {name: P.W[n] for name, n in layers.items()}
            P.theta[j] = P.plan.compress_task(task, weights, self.tau, None if self.plain else P.theta[j])
            for name, T in P.plan.decompress_task(task, P.theta[j]).items():
                n = layers[name]
                P.replaced(n, T, self.tau)
                if self.project:
                    P.W[n] = T.clone()

    # The start and the figures.

    def _initial_weights(
        self, problem: Problem, chain: Chain
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        given = {name: p.detach() for name, p in problem.model.named_parameters()}
        outside = weights_of(problem.model).keys() - {layer.weight for layer in chain.layers}
        if outside:
            raise Unsupported(f"NN-BCD needs every weight to belong to a Linear layer of the chain; found {min(outside)}")
        biases = [None if layer.bias is None else given[layer.bias] for layer in chain.layers]
        if self.initial == "model":
            return tuple(given[layer.weight].clone() for layer in chain.layers), tuple(
                None if b is None else b.clone() for b in biases
            )
        generator = torch.Generator().manual_seed(self.seed)
        W = [draw(given[layer.weight].shape, self.initial, self.initial_scale, generator) for layer in chain.layers]
        return tuple(w.to(problem.device, problem.dtype) for w in W), tuple(
            None if b is None else torch.zeros_like(b) for b in biases
        )

    def _forward(self, V0: Tensor, state: NNBCDState) -> dict[str, tuple[Tensor, ...]]:
        """U_i = W_i V_{i-1} + b_i and V_i = sigma(U_i): at the start only the fit and the compression cost."""
        U, V = [], [V0]
        for layer, w, b in zip(state.chain.layers, state.W, state.b, strict=True):
            U.append(_affine(w, b, V[-1]))
            V.append(activation(U[-1], layer.slope))
        return {"U": tuple(U), "V": tuple(V[1:])}

    def _diagonal(self, W: Tensor, b: Tensor | None, tau: float) -> Tensor:
        diagonal = W.new_full((W.shape[1] + (b is not None),), self.alpha + tau)
        if b is not None:
            diagonal[-1] = self.alpha
        return diagonal

    def _objective(self, P: _Blocks) -> dict[str, float]:
        """L(P) with its terms, and the squared norm of the smallest limiting subgradient in (V, U, W, b)."""
        N = len(P.W) - 1
        misfit = P.V[N] - P.Y
        activations, linear, compression = (torch.zeros_like(P.step_sq) for _ in range(3))
        grad_sq = blocks.sq(misfit + self.gamma * (P.V[N] - P.U[N]))
        upper = None  # rho W_{i+1}ᵀ R_{i+1}, the part of the gradient in V_i that comes from layer i + 1
        for i in range(N, 0, -1):
            slope = P.chain.layers[i - 1].slope
            excess = P.V[i] - activation(P.U[i], slope)
            activations += blocks.sq(excess)
            if upper is not None:
                grad_sq += blocks.sq(upper.add_(excess, alpha=self.gamma))
            del excess
            R = P.product(i).sub_(P.U[i])
            linear += blocks.sq(R)
            R.mul_(self.rho)
            grad_sq += blocks.subgradient_sq(P.U[i], P.V[i], -R, self.gamma, slope)
            grad_W = R @ P.V[i - 1].T
            T, b = P.T[i], P.b[i]
            if T is not None:
                compression += blocks.sq(P.W[i] - T)
                grad_W.add_(P.W[i] - T, alpha=self.tau)
            grad_sq += blocks.sq(grad_W) + (0 if b is None else blocks.sq(R.sum(dim=1)))
            upper = P.W[i].T @ R if i > 1 else None
        terms = {
            "term/fit": float(blocks.sq(misfit)) / 2,
            "term/activation": self.gamma / 2 * float(activations),
            "term/linear": self.rho / 2 * float(linear),
            "term/compression": self.tau / 2 * float(compression),
        }
        return {"objective": sum(terms.values()), **terms, "grad_sq": float(grad_sq)}


@dataclass
class _Blocks:
    """The blocks of one sweep, with the paper's indices (index 0 unused but for V[0], the input)."""

    plan: Plan
    chain: Chain
    Y: Tensor
    W: list[Tensor]
    b: list[Tensor | None]
    U: list[Tensor]
    V: list[Tensor]
    T: list[Tensor | None]
    theta: list[Any]
    input_factor: Tensor
    step_sq: Tensor
    theta_sq: Tensor
    guaranteed: Tensor

    @classmethod
    def of(cls, problem: Problem, state: NNBCDState) -> _Blocks:
        zero = torch.zeros_like(state.step_sq)
        labels = problem.data.train.y
        Y = nn.functional.one_hot(labels, problem.data.num_classes).to(problem.dtype).T
        V0 = _inputs(problem)
        first = (V0,)
        return cls(
            problem.plan, state.chain, Y, [V0, *state.W], [None, *state.b], [V0, *state.U], [*first, *state.V],
            [None, *state.T], list(state.theta), state.input_factor, zero, zero.clone(), state.guaranteed.clone(),
        )  # fmt: skip

    def state(self, old: NNBCDState) -> NNBCDState:
        return old._replace(
            k=old.k + 1, W=tuple(self.W[1:]), b=tuple(self.b[1:]), U=tuple(self.U[1:]), V=tuple(self.V[1:]),
            theta=tuple(self.theta), T=tuple(self.T[1:]), step_sq=self.step_sq, theta_sq=self.theta_sq,
            step_sq_sum=old.step_sq_sum + self.step_sq, guaranteed=self.guaranteed,
        )  # fmt: skip

    def product(self, i: int) -> Tensor:
        """W_i V_{i-1} + b_i."""
        return _affine(self.W[i], self.b[i], self.V[i - 1])

    def without_bias(self, i: int) -> Tensor:
        """U_i - b_i 1ᵀ."""
        b = self.b[i]
        return self.U[i] if b is None else self.U[i] - b[:, None]

    def layers_of(self, task: Task) -> dict[str, int]:
        """The paper's index of each weight of a task."""
        index = {layer.weight: i for i, layer in enumerate(self.chain.layers, 1)}
        return {name: index[name] for name in task.params}

    def moved(self, change_sq: Tensor, strength: float) -> None:
        """Account for a block that moved: its exact minimisation made L fall by at least strength * change_sq."""
        self.step_sq += change_sq
        self.guaranteed += strength * change_sq

    def replaced(self, i: int, T: Tensor, tau: float) -> None:
        """Replace T(G_i): L falls by the fall of tau/2 ‖W_i - T‖²."""
        old = self.T[i]
        if old is not None:
            self.theta_sq += blocks.sq(T - old)
            self.guaranteed += tau / 2 * (blocks.sq(self.W[i] - old) - blocks.sq(self.W[i] - T))
        self.T[i] = T


def _inputs(problem: Problem) -> Tensor:
    """V_0 = X (d_0 x n), a view."""
    return problem.data.train.x.flatten(1).T


def _affine(W: Tensor, b: Tensor | None, V: Tensor) -> Tensor:
    return W @ V if b is None else torch.addmm(b[:, None], W, V)


def _with_rank(plan: Plan, rank: int) -> Plan:
    """The same tasks at another rank."""

    def changed(task: Task) -> Task:
        if all(field.name != "rank" for field in dataclasses.fields(task.compression)):  # type: ignore[arg-type]
            raise Unsupported(
                f"solver.initial_rank needs a compression with a rank, found {type(task.compression).__name__}; remove it"
            )
        return dataclasses.replace(task, compression=dataclasses.replace(task.compression, rank=rank))  # type: ignore[type-var]

    return dataclasses.replace(plan, tasks=tuple(changed(task) for task in plan.tasks))
