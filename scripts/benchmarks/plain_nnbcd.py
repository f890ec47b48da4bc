"""NN-BCD as its published notebooks compute it: the plain form that the solver is measured against and tested equal to.

Samples are columns; every linear system is solved by an explicit inverse, every tensor train is found from scratch by
TensorLy, biases are none and nothing is safeguarded. Repository ChenyangLi-97/NN-BCD; arXiv 2303.06815.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy
import tensorly
import torch
from tensorly.decomposition import tensor_train
from torch import Tensor

Compress = Callable[[Tensor], Tensor]


class Plain:
    """The blocks W, U, V, T of a chain of layers with ReLU between them; layer i maps V[i] to U[i] and V[i + 1].

    `W`: the initial weights, d_i x d_{i-1}; with `conv` the first is (size² channels) x filters. `X`: d_0 x n; with
    `conv` the `patches` of the images. `Y`: d_N x n, one-hot. `compress`: for each layer None or the map from W to T.
    `initial_T`: the first T, where it is not that of `compress`. With `project` a compressed W is overwritten by its T,
    before the first forward pass and in every sweep. Everything is of the dtype of `W`.
    """

    def __init__(
        self,
        W: Sequence[Tensor],
        X: Tensor,
        Y: Tensor,
        *,
        tau: float,
        alpha: float,
        gamma: float,
        rho: float,
        compress: Sequence[Compress | None],
        initial_T: Sequence[Tensor | None] | None = None,
        project: bool = False,
        conv: bool = False,
    ) -> None:
        self.tau, self.alpha, self.gamma, self.rho = tau, alpha, gamma, rho
        self.Y, self.compress, self.project, self.conv = Y, compress, project, conv
        first = [None if c is None else c(w) for c, w in zip(compress, W, strict=True)]
        self.T = first if initial_T is None else list(initial_T)
        self.W = [w if t is None or not project else t for w, t in zip(W, self.T, strict=True)]
        self.U: list[Tensor] = []
        self.V = [X]
        for i in range(len(W)):
            self.U.append(self.linear(i))
            self.V.append(self.U[i] if i == self.last else torch.relu(self.U[i]))

    @property
    def last(self) -> int:
        return len(self.W) - 1

    def linear(self, i: int) -> Tensor:
        """Return what layer i makes of V[i], d_i x n; after a convolution the filter is the index that runs fastest."""
        if self._is_conv(i):
            return (self.V[0] @ self.W[0]).reshape(self.Y.shape[1], -1).T
        return self.W[i] @ self.V[i]

    def sweep(self) -> None:
        self.update_output()
        self.update_weight(self.last)
        for i in reversed(range(self.last)):
            self.update_activation(i)
            self.update_preactivation(i)
            self.update_weight(i)

    def update_output(self) -> None:
        alpha, gamma, rho, U, V = self.alpha, self.gamma, self.rho, self.U, self.V
        V[-1] = (self.Y + gamma * U[-1] + alpha * V[-1]) / (1 + gamma + alpha)
        U[-1] = (gamma * V[-1] + rho * self.linear(self.last)) / (gamma + rho)

    def update_activation(self, i: int) -> None:
        """V[i + 1], the activation of layer i."""
        W, U = self.W[i + 1], self.U[i + 1]
        right = self.rho * (W.T @ U) + self.gamma * torch.relu(self.U[i])
        self.V[i + 1] = torch.inverse(self.rho * (W.T @ W) + self.gamma * eye(W)) @ right

    def update_preactivation(self, i: int) -> None:
        total = self.rho + self.alpha
        b = (self.rho * self.linear(i) + self.alpha * self.U[i]) / total
        self.U[i] = relu_prox(self.V[i + 1], b, total / self.gamma)

    def update_weight(self, i: int) -> None:
        """W[i] and its T."""
        W, T, V, U = self.W[i], self.T[i], self.V[i], self.U[i]
        shift, pull = self.alpha, self.alpha * W
        if T is not None:
            shift, pull = shift + self.tau, pull + self.tau * T
        if self._is_conv(i):
            U = U.T.reshape(len(V), -1)
            inverse = torch.inverse(self.rho * (V.T @ V) + shift * eye(V))
            self.W[i] = inverse @ (self.rho * (V.T @ U) + pull)
        else:
            self.W[i] = (pull + self.rho * (U @ V.T)) @ torch.inverse(shift * eye(V.T) + self.rho * (V @ V.T))
        compress = self.compress[i]
        if compress is not None:
            self.T[i] = T = compress(self.W[i])
            self.W[i] = T if self.project else self.W[i]

    def objective(self) -> dict[str, float]:
        """Return each term with its weight, and their sum as "objective"."""
        terms = {"fit": distance_sq(self.V[-1], self.Y) / 2, "activation": 0.0, "linear": 0.0, "compression": 0.0}
        for i, (W, U, T) in enumerate(zip(self.W, self.U, self.T, strict=True)):
            active = U if i == self.last else torch.relu(U)
            terms["activation"] += self.gamma / 2 * distance_sq(self.V[i + 1], active)
            terms["linear"] += self.rho / 2 * distance_sq(U, self.linear(i))
            terms["compression"] += 0.0 if T is None else self.tau / 2 * distance_sq(W, T)
        return {**terms, "objective": sum(terms.values())}

    def _is_conv(self, i: int) -> bool:
        return self.conv and i == 0


def eye(a: Tensor) -> Tensor:
    """Return the identity with as many rows as `a` has columns."""
    return torch.eye(a.shape[1], dtype=a.dtype)


def distance_sq(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().sum())


def relu_prox(a: Tensor, b: Tensor, g: float) -> Tensor:
    """Entry by entry the minimiser u of (max(u, 0) - a)²/2 + g (u - b)²/2: the published case table, a mask a case."""
    t = math.sqrt(g * (g + 1)) - g
    inner = (a + g * b) / (1 + g)
    u = torch.zeros_like(b)
    u = torch.where(a + g * b < 0, torch.minimum(b, torch.zeros_like(b)), u)
    u = torch.where(((a + g * b >= 0) & (b >= 0)) | ((b < 0) & (g * b > -t * a)), inner, u)
    return torch.where((b < 0) & (-a <= g * b) & (g * b <= -t * a), b, u)


def patches(x: Tensor, size: int, stride: int) -> Tensor:
    """Return the patch matrix of images x (n, channels, height, width): (n height' width') x (size² channels).

    The rows run over the samples, then the rows and columns of the output; the columns over those of a patch, then its
    channels.
    """
    windows = x.unfold(2, size, stride).unfold(3, size, stride)  # n, channels, height', width', size, size
    return windows.permute(0, 2, 3, 4, 5, 1).reshape(-1, size * size * x.shape[1])


def patch_weight(w: Tensor) -> Tensor:
    """Return the weight (filters, channels, size, size) of a convolution as a matrix behind `patches`."""
    return w.permute(2, 3, 1, 0).reshape(-1, len(w))


def tt(modes: Sequence[int], rank: int) -> Compress:
    """TT-SVD of the flattened weight and its reconstruction, with TensorLy's numpy backend."""

    def compress(w: Tensor) -> Tensor:
        cores = tensor_train(w.numpy().reshape(modes), rank=rank)
        return torch.from_numpy(tensorly.tt_to_tensor(cores)).reshape(w.shape)

    return compress


def prune(keep: float) -> Compress:
    """Zero where the square is below the (1 - keep)-quantile of the squares."""

    def compress(w: Tensor) -> Tensor:
        squares = w.square()
        return torch.where(squares < float(numpy.quantile(squares.numpy(), 1 - keep)), torch.zeros_like(w), w)

    return compress
