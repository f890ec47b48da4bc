"""Compression steps against their plain forms: `make bench`.

The plain forms are what one would write with the usual library: a full sort in numpy, scikit-learn's KMeans, the full
singular value decomposition, TensorLy. Both forms run in turn in one process on the same weights; the ratios are of
medians, the errors relative, ours / plain.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

import numpy as np
import tensorly
import torch
from sklearn.cluster import KMeans
from tensorly.decomposition import parafac, tensor_train, tucker
from torch import Tensor

from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition.cp import CP
from nncompress.compressions.decomposition.low_rank import LowRank
from nncompress.compressions.decomposition.tensor_train import TensorTrain
from nncompress.compressions.decomposition.trains import tt_ranks
from nncompress.compressions.decomposition.tt_matrix import TTMatrix
from nncompress.compressions.decomposition.tucker import Tucker
from nncompress.compressions.quantization.codebook import Codebook
from nncompress.compressions.quantization.fixed import ScaledTernary
from nncompress.compressions.sparsity.magnitude import L0, L1
from scripts.benchmarks.timing import compare

Form = Callable[[Tensor], Tensor]


def plain_l0(w: Tensor) -> Tensor:
    """Return all magnitudes sorted in numpy."""
    flat = w.numpy().ravel()
    kept = np.argsort(-np.abs(flat), kind="stable")[: flat.size // 20]
    dense = np.zeros_like(flat)
    dense[kept] = flat[kept]
    return torch.from_numpy(dense).reshape(w.shape)


def plain_l1(w: Tensor) -> Tensor:
    """Duchi et al.'s algorithm in numpy."""
    flat = w.numpy().ravel()
    u = np.sort(np.abs(flat))[::-1].astype(np.float64)
    levels = (np.cumsum(u) - 1e5) / np.arange(1, u.size + 1)
    level = levels[np.count_nonzero(u > levels) - 1]
    return torch.from_numpy((np.sign(flat) * np.maximum(np.abs(flat) - level, 0)).astype(np.float32)).reshape(w.shape)


def plain_ternary(w: Tensor) -> Tensor:
    """Return the best scaled ternary weights by a full sort in numpy."""
    flat = w.numpy().ravel()
    magnitudes = np.sort(np.abs(flat))[::-1].astype(np.float64)
    sums = np.cumsum(magnitudes)
    best = int(np.argmax(sums / np.sqrt(np.arange(1, flat.size + 1))))
    scale = sums[best] / (best + 1)
    return torch.from_numpy((scale * np.sign(flat) * (np.abs(flat) > scale / 2)).astype(np.float32)).reshape(w.shape)


def plain_codebook(clusters: int) -> Form:
    """scikit-learn's KMeans with one start."""

    def form(w: Tensor) -> Tensor:
        model = KMeans(clusters, n_init=1, random_state=0).fit(w.numpy().reshape(-1, 1))
        return torch.from_numpy(model.cluster_centers_[model.labels_, 0].astype(np.float32)).reshape(w.shape)

    return form


def plain_low_rank(rank: int) -> Form:
    """Return the full singular value decomposition, truncated."""

    def form(w: Tensor) -> Tensor:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ v[:rank]

    return form


def plain_tt(rank: int) -> Form:
    """TensorLy's TT-SVD in numpy."""

    def form(w: Tensor) -> Tensor:
        cores = tensor_train(w.numpy(), rank=[1, *tt_ranks(w.shape, rank)])
        return torch.from_numpy(tensorly.tt_to_tensor(cores))

    return form


def plain_tt_matrix(modes: list[int], rank: int) -> Form:
    """TensorLy's TT-SVD of the paired modes, in numpy."""
    d = len(modes)
    order = [k for pair in zip(range(d), range(d, 2 * d), strict=True) for k in pair]

    def form(w: Tensor) -> Tensor:
        paired = w.reshape(*modes, *modes).permute(order).reshape([n * n for n in modes])
        dense = plain_tt(rank)(paired).reshape([n for n in modes for _ in range(2)])
        back = [2 * k for k in range(d)] + [2 * k + 1 for k in range(d)]
        return dense.permute(back).reshape(w.shape)

    return form


def plain_tucker(ranks: list[int]) -> Form:
    """TensorLy's HOOI with its torch backend."""

    def form(w: Tensor) -> Tensor:
        with tensorly.backend_context("pytorch"):
            return tensorly.tucker_to_tensor(tucker(w, rank=ranks, n_iter_max=20, tol=1e-5))

    return form


def plain_cp(rank: int) -> Form:
    """TensorLy's alternating least squares with its torch backend."""

    def form(w: Tensor) -> Tensor:
        with tensorly.backend_context("pytorch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ranks above the modes
            return tensorly.cp_to_tensor(parafac(w, rank, n_iter_max=50, tol=1e-6, init="svd"))

    return form


def row(name: str, w: Tensor, plain: Form, compression: Compression, repeats: int) -> None:
    """One row: both times, their ratio, and both errors."""
    compare(name, lambda: plain(w), lambda: compression.decompress(compression.compress(w)), repeats)
    errors = [
        float(torch.linalg.vector_norm(w - dense) / torch.linalg.vector_norm(w))
        for dense in (plain(w), compression.decompress(compression.compress(w)))
    ]
    sys.stdout.write(
        f"{'':<28}error: plain {errors[0]:.6f}, ours {errors[1]:.6f}, ours/plain {errors[1] / errors[0]:.6f}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    g = torch.Generator().manual_seed(0)
    w = torch.randn(1000, 1000, generator=g)
    square, large = torch.randn(1024, 1024, generator=g), torch.randn(2048, 2048, generator=g)
    four, kernel = torch.randn(16, 32, 16, 32, generator=g), torch.randn(256, 256, 3, 3, generator=g)
    sys.stdout.write(f"Gaussian weights, float32, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    sys.stdout.write(f"{'':<28}{'plain ms':>10}{'ours ms':>10}{'ratio':>10}\n")
    row("l0 5 %, 10^6", w, plain_l0, L0(0.05), repeats)
    row("l1 ball, 10^6", w, plain_l1, L1(1e5), repeats)
    row("scaled ternary, 10^6", w, plain_ternary, ScaledTernary(), repeats)
    row("codebook K=16, 10^6", w, plain_codebook(16), Codebook(16), min(repeats, 3))
    row("codebook K=256, 10^5", w[:100], plain_codebook(256), Codebook(256), min(repeats, 3))
    row("TT 4^10 rank 80", square.reshape((4,) * 10), plain_tt(80), TensorTrain(80), repeats)
    row(
        "TT-matrix 8*8*16 rank 64",
        square,
        plain_tt_matrix([8, 8, 16], 64),
        TTMatrix(64, (8, 8, 16), (8, 8, 16)),
        repeats,
    )
    row("low rank 64 of 2048^2", large, plain_low_rank(64), LowRank(64), min(repeats, 3))
    row("Tucker 12 of 16*32*16*32", four, plain_tucker([12] * 4), Tucker(12), repeats)
    row("Tucker-2 64 of 256*256*3*3", kernel, plain_tucker([64, 64, 3, 3]), Tucker((64, 64, 3, 3)), repeats)
    row("CP 64 of 16*32*16*32", four, plain_cp(64), CP(64), min(repeats, 3))


if __name__ == "__main__":
    main()
