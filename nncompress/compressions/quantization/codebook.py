"""An adaptive codebook: every weight becomes one of K values, which are chosen with it.

Carreira-Perpinan and Idelbayev, "Model compression as constrained optimization, with application to neural nets. Part
II: quantization", arXiv 1707.04319 (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nncompress.compressions.base import check_count, sort_rows
from nncompress.compressions.plan import Layers, Plan, Tensors
from nncompress.compressions.quantization.codes import Coded, Per, Quantization, check_per, digitize, quantize, rows_of
from nncompress.compressions.quantization.kmeans import better, compand, lloyd, points_of
from nncompress.compressions.quantization.kmeans_exact import search


@dataclass(frozen=True)
class Codebook(Quantization):
    """Weights with at most K different values: Π is k-means in one dimension.

    Exact by dynamic programming (`kmeans_exact`) for K up to 256, unless its search grows too large (K = 256 of a
    million weights); then and beyond, the best of several searches. Never worse than `start` in any case. A row with
    fewer than K weights has as many values as weights.

    - K: the number of values, at least 1, else ValueError.
    - per_channel: whether each row has values of its own; false, one set for all, as in the paper.
    """

    exact: ClassVar[bool] = True
    K: int
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_count("K", self.K)

    def project(self, w: Tensor, mu: float, start: Coded | None) -> Coded:
        return self.project_many([w], mu, [start])[0]

    def project_many(self, ws: Sequence[Tensor], mu: float, starts: Sequence[Coded | None]) -> list[Coded]:
        rows = torch.cat([rows_of(w, self.per_channel) for w in ws])
        known = [start.table for start in starts if start is not None]
        centres = nearest_centres(rows, self.K, torch.cat(known) if len(known) == len(ws) else None)
        codes = digitize(rows, (centres[:, 1:] + centres[:, :-1]) / 2)
        parts = zip(codes.chunk(len(ws)), centres.chunk(len(ws)), strict=True)
        return [Coded(own.reshape(w.shape).clone(), table.clone()) for w, (own, table) in zip(ws, parts, strict=True)]

    def levels(self, table: Tensor) -> Tensor:
        return table

    def clipped(self, shape: Sequence[int]) -> str | None:
        entries = torch.Size(shape[self.per_channel :]).numel()
        if entries >= self.K:
            return None
        return f"K {self.K} is above the {entries} weights of a codebook, {entries} is used"


def nearest_centres(rows: Tensor, K: int, start: Tensor | None = None) -> Tensor:
    """Return K ascending values (R, K) nearest to the numbers of each of R rows (R, P), in the sum of squares."""
    sorted_rows = sort_rows(rows).double()
    mean = sorted_rows.mean(1, keepdim=True)
    count = min(K, rows.shape[1])
    if count == 1:
        return mean.to(rows.dtype)
    points = points_of(sorted_rows - mean)
    best = lloyd(points, compand(points, count))
    if start is not None and start.shape == best.centres.shape:
        best = better(best, lloyd(points, start.double().sort(1).values - mean))
    return (search(points, best).centres + mean).to(rows.dtype)


def codebook(weights: Tensors, *, K: int = 4, per: Per = "layer", layers: Layers = "hidden") -> Plan:
    """Give the chosen weights K different values in each part that has a codebook of its own (`per`)."""
    return quantize(weights, Codebook(K, check_per(per)), per, layers)
