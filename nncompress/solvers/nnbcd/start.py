"""Where NN-BCD starts: the first weights and the variables that follow from them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import init

from nncompress import parallel
from nncompress.compressions.plan import Plan, Task
from nncompress.errors import ConfigError, Unsupported
from nncompress.problem import Problem, weights_of
from nncompress.solvers.nnbcd import blocks
from nncompress.solvers.nnbcd.chain import Chain, activation
from nncompress.solvers.nnbcd.state import Blocks
from nncompress.solvers.nnbcd.trace import REQUIREMENT, chain_of

LARGEST = 1 << 31
"""Entries of the matrix that stands for a convolution behind other layers; a larger one is refused."""


def chain_for(problem: Problem) -> Chain:
    """Return the chain of the problem's network, on its device. Raises Unsupported, naming what NN-BCD cannot treat."""
    model = copy.deepcopy(problem.model).eval()  # as it is deployed
    chain = chain_of(model, problem.data.input_shape)
    outside = weights_of(problem.model).keys() - {layer.weight for layer in chain.layers}
    if outside:
        raise Unsupported(f"{REQUIREMENT}; found the weight {min(outside)!r} outside the chain")
    parameters = dict(problem.model.named_parameters())
    last, classes = chain.layers[-1], problem.data.num_classes
    outputs = last.map.positions * len(parameters[last.weight])
    if outputs != classes:
        raise Unsupported(
            f"NN-BCD needs one output for each of the {classes} classes; found {outputs} of {last.weight!r}"
        )
    for layer in chain.layers[1:]:
        entries = layer.map.positions * len(parameters[layer.weight]) * layer.map.width
        if layer.map.index is not None and entries > LARGEST:
            raise Unsupported(
                f"NN-BCD needs the matrix of each convolution behind the first layer, at most {LARGEST} entries; "
                f"found {entries} for {layer.weight!r}; use smaller images, fewer channels or larger strides"
            )
    chain = Chain(tuple(dataclasses.replace(layer, map=layer.map.to(problem.device)) for layer in chain.layers))
    _compare(problem, chain, model)
    return chain


@torch.no_grad()
def _compare(problem: Problem, chain: Chain, model: nn.Module) -> None:
    """Raise Unsupported when the chain computes something else than the network: what a trace cannot see."""
    x = problem.data.train.x[:2]
    W, b = initial_weights(problem, chain, "model", None, 0)
    logits, expected = forward(chain, W, b, x.flatten(1))[0][-1], model(x)
    if not isinstance(expected, Tensor) or logits.shape != expected.shape:
        raise Unsupported(f"NN-BCD needs a network that returns logits (n, classes), found {type(expected).__name__}")
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise Unsupported(
            f"{REQUIREMENT}; found that {type(problem.model).__name__} computes something else than its traced graph: "
            "write what it does in place (+=, add_) out of place, remove hooks"
        )


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
    """Return a weight (outputs x inputs ...), float32 on the CPU: all precisions and devices start from the same."""
    default, fill = SCHEMES[scheme]
    w = torch.empty(shape, dtype=torch.float32)
    return fill(w, generator=generator) * (default if scale is None else scale)


def initial_weights(
    problem: Problem, chain: Chain, initial: str, scale: float | None, seed: int
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return W_i (outputs x inputs matrices) and b_i by a scheme, or "model": the network's own.

    Convolutions are drawn from 0.01 N(0,1) by every scheme, as published; biases start at 0.
    """
    values = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    if initial != "model":
        generator = Generator().manual_seed(seed)
        for layer in chain.layers:
            shape = values[layer.weight].shape
            drawn = draw(shape, *((initial, scale) if len(shape) == 2 else ("normal", None)), generator)
            values[layer.weight] = drawn.to(problem.device, problem.dtype)
            if layer.bias is not None:
                values[layer.bias].zero_()
    weights = [values[layer.weight].flatten(1) for layer in chain.layers]
    return weights, [None if layer.bias is None else values[layer.bias] for layer in chain.layers]


def initial_theta(
    problem: Problem, chain: Chain, W: list[Tensor], tau: float, rank: int | None
) -> tuple[tuple[Any, ...], tuple[Tensor | None, ...]]:
    """Return Θ = Π(W), at another rank if asked, and Δ(Θ) of each layer as a matrix, None where it is uncompressed."""
    plan = problem.plan if rank is None else with_rank(problem.plan, rank)
    shapes = {name: p.shape for name, p in problem.model.named_parameters()}
    names = [layer.weight for layer in chain.layers]
    weights = {name: w.view(shapes[name]) for name, w in zip(names, W, strict=True)}
    theta = plan.compress(plan.select(weights), tau)
    dense = plan.decompress(theta)
    return theta, tuple(dense[name].flatten(1) if name in dense else None for name in names)


def with_rank(plan: Plan, rank: int) -> Plan:
    """Return the same tasks at another rank."""

    def at_rank(task: Task) -> Task:
        settings = {field.name for field in dataclasses.fields(task.compression)}  # type: ignore[arg-type]
        if "rank" not in settings:
            kind = type(task.compression).__name__
            raise ConfigError(f"solver.initial_rank needs a compression with a rank, found {kind}; leave it null")
        return dataclasses.replace(task, compression=dataclasses.replace(task.compression, rank=rank))  # type: ignore[type-var]

    return dataclasses.replace(plan, tasks=tuple(at_rank(task) for task in plan.tasks))


def forward(chain: Chain, W: list[Tensor], b: list[Tensor | None], V0: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return U_1, ..., U_N and V_0, ..., V_N as the network makes them of its input."""
    U: list[Tensor] = []
    V = [V0]
    for layer, w, bias in zip(chain.layers, W, b, strict=True):
        u = layer.map.product(V[-1], w, bias)
        U.append(u if layer.inner is None else u + V[layer.inner])
        v = activation(U[-1], layer.slope)
        V.append(v if layer.outer is None else v + V[layer.outer])
    return U, V


def known_products(chain: Chain, U: list[Tensor], V: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the products at the start, map(V_{i-1}) W_iᵀ + 1 b_iᵀ, of the layers whose V block will give them."""
    products: list[Tensor | None] = [None]
    for layer, u in zip(chain.layers[1:], U[1:], strict=True):
        product = u.clone() if layer.inner is None else u - V[layer.inner]
        products.append(product if blocks.gives_product((u.shape[1], layer.map.width)) else None)
    return tuple(products)


def input_gram(P: Blocks) -> Tensor | None:
    """Return rowsᵀrows of the input, None where the W_1 block does without."""
    if P.few(1):
        return None
    bias = P.b[1] is not None
    d = P.W[1].shape[1] + bias
    gram = P.W[1].new_zeros(d, d)
    for rows in P.chunks(1):
        blocks.add_gram_(gram, P.layer(1).map.rows(P.V[0][rows]), bias)
    parallel.sum_(gram)
    return gram
