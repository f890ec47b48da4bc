"""Initial weights of NN-BCD: the schemes of the paper's sensitivity study, drawn from a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import init


def _lecun_normal(w: Tensor, generator: Generator) -> Tensor:
    return init.normal_(w, std=1 / math.sqrt(w[0].numel()), generator=generator)


def _lecun_uniform(w: Tensor, generator: Generator) -> Tensor:
    bound = math.sqrt(3 / w[0].numel())
    return init.uniform_(w, -bound, bound, generator=generator)


SCHEMES: Mapping[str, tuple[float, Callable[..., Tensor]]] = {
    "normal": (0.01, init.normal_),
    "uniform": (0.01, lambda w, generator: init.uniform_(w, -1, 1, generator=generator)),
    "kaiming_normal": (0.2, init.kaiming_normal_),
    "kaiming_uniform": (0.2, init.kaiming_uniform_),
    "xavier_normal": (0.2, init.xavier_normal_),
    "xavier_uniform": (0.2, init.xavier_uniform_),
    "lecun_normal": (0.2, _lecun_normal),
    "lecun_uniform": (0.2, _lecun_uniform),
    "orthogonal": (0.2, init.orthogonal_),
}
"""Default scale and draw of each scheme (arXiv 2303.06815, experiments on UCI HAR)."""


def draw(shape: torch.Size, scheme: str, scale: float | None, generator: Generator) -> Tensor:
    """A weight (outputs x inputs ...), float32 on the CPU whatever the run's precision, so that all precisions and
    devices start from the same numbers."""
    default, fill = SCHEMES[scheme]
    w = torch.empty(shape, dtype=torch.float32)
    return fill(w, generator=generator) * (default if scale is None else scale)
