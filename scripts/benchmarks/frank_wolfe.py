"""Time of a training step of ResNet-18 under each constraint of Frank-Wolfe against SGD, and of its oracles alone.

A step is a minibatch of random images (precision=bf16, on the device; no CUDA graphs) and the update behind it:
SGD with momentum and weight decay; stochastic Frank-Wolfe with the set on every parameter, or on the convolutions and
l2 balls for the rest (k = 10 %); SGD with the proximal operator of the nuclear norm by full singular value
decompositions. Every form takes turns with SGD; medians are printed, and the ratio of each to SGD. Then the vertices of
all convolutions alone: by the Gram matrix of the smaller side or one warm round of power iteration against full
singular value decompositions, and the k largest of the largest convolution's entries against torch.topk.

    python -m scripts.benchmarks.frank_wolfe [--quick] [--batch 64] [--forms spectral_k_support ...]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from nncompress.compressions.plan import none
from nncompress.constraints.assignment import Assignment, diameters
from nncompress.constraints.base import Constraint, largest
from nncompress.constraints.k_support import GroupKSupport, KSparse, KSupport
from nncompress.constraints.lp import L1, L2, Linf, Lp
from nncompress.constraints.size import FromInitialisation, initial_norms
from nncompress.constraints.spectral import Nuclear, Spectral, SpectralKSparse, SpectralKSupport
from nncompress.environment import choose_dtype
from nncompress.models.resnet import ResNet18
from nncompress.problem import Computation, Dataset, Problem, Split, weights_of
from nncompress.solvers.frank_wolfe.sfw import SFW
from nncompress.solvers.sgd.regularisers import ProximalNuclearNorm
from nncompress.solvers.training.minibatches import Minibatches, epoch
from scripts.benchmarks.timing import compare

SHAPE, LR = (3, 32, 32), 0.01
PROXIMAL = "proximal nuclear norm, full SVD"
SETS: dict[str, tuple[Constraint, str]] = {
    "l2": (L2(), "all"),
    "lp, p = 3": (Lp(p=3.0), "all"),
    "l1": (L1(), "all"),
    "linf": (Linf(), "all"),
    "k_sparse": (KSparse(k=0.1), "all"),
    "k_support": (KSupport(k=0.1), "all"),
    "group_k_support": (GroupKSupport(k=0.1), "convolutions"),
    "nuclear": (Nuclear(), "convolutions"),
    "spectral_k_support": (SpectralKSupport(k=0.1), "convolutions"),
    "spectral_k_support, rounds=1": (SpectralKSupport(k=0.1, rounds=1), "convolutions"),
    "spectral_k_sparse": (SpectralKSparse(k=0.1), "convolutions"),
    "spectral_k_sparse, rounds=1": (SpectralKSparse(k=0.1, rounds=1), "convolutions"),
}
Step = Callable[[], None]


def problem_of(device: torch.device, batch: int) -> Problem:
    """ResNet-18 and one minibatch of random images."""
    torch.manual_seed(0)
    choose_dtype("bf16", "float32")
    model = ResNet18(SHAPE, 10).to(device, memory_format=torch.channels_last)
    g = Generator().manual_seed(0)
    split = Split(torch.randn(batch, *SHAPE, generator=g), torch.randint(10, (batch,), generator=g))
    data = Dataset(split, split, 10, "noise").to(device, torch.float32)
    return Problem(model, data, none(weights_of(model)), computation=Computation(half=True))


def step_of(problem: Problem, model: nn.Module, optimizer: Optimizer, after: Step | None = None) -> Step:
    """Return a training step."""
    minibatches = Minibatches(len(problem.data.train), Generator().manual_seed(0))
    return lambda: void(epoch(problem, model, minibatches, optimizer=optimizer, after_step=after))


def void(_: object) -> None:
    """For a callable without a result."""


def sgd(problem: Problem) -> Step:
    """SGD with momentum and weight decay."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    return step_of(problem, model, optimizer)


def frank_wolfe(problem: Problem, constraint: Constraint, params: str) -> Step:
    """Stochastic Frank-Wolfe."""
    model, size = copy.deepcopy(problem.model), FromInitialisation(w=30.0)
    rest = None if params == "all" else Assignment(set=L2(), size=size)
    bodies = Assignment(set=constraint, params=params, size=size, rest=rest).bodies(model)
    parameters = dict(model.named_parameters())
    tensors = [[parameters[name] for name in body.names] for body in bodies]
    sizes = diameters(bodies, parameters, initial_norms(model)).tolist()
    sets = [b.constraint.at_diameter(d, ts[0].shape) for b, d, ts in zip(bodies, sizes, tensors, strict=True)]
    return step_of(problem, model, SFW(tensors, sets, lr=LR))


def proximal_nuclear(problem: Problem) -> Step:
    """SGD, then the singular values of every convolution shrunk by full decompositions."""
    model = copy.deepcopy(problem.model)
    prox = ProximalNuclearNorm(lam=1e-4)
    weights = prox.weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    return step_of(problem, model, optimizer, lambda: prox.shrink(weights, LR))


def taken(step: Step, device: torch.device) -> float:
    """Seconds of a step, the device's work included."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def steps(device: torch.device, repeats: int, batch: int, names: list[str]) -> None:
    """Print a row for each form of the update."""
    problem = problem_of(device, batch)
    forms = {name: partial(frank_wolfe, problem, *given) for name, given in SETS.items()}
    forms[PROXIMAL] = partial(proximal_nuclear, problem)
    sys.stdout.write(f"{f'a step of ResNet-18, batch {batch}':<34}{'SGD ms':>10}{'ms':>10}{'ratio':>9}\n")
    for name in names:
        plain, own = sgd(problem), forms[name]()
        for step in (plain, own):
            step()
        pairs = [(taken(plain, device), taken(own, device)) for _ in range(repeats)]
        p, o = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        sys.stdout.write(f"{name:<34}{p:>10.0f}{o:>10.0f}{statistics.median(ratios):>9.2f}")
        sys.stdout.write(f"   (pairwise {ratios[0]:.2f} to {ratios[-1]:.2f}, n={repeats})\n")
        sys.stdout.flush()


def oracles(device: torch.device, repeats: int) -> None:
    """Print the vertices of all convolutions of ResNet-18 against full decompositions."""
    gradients = [torch.randn_like(w).flatten(1) for w in problem_of(device, 2).model.parameters() if w.dim() == 4]
    sys.stdout.write(f"{'oracles of all convolutions':<28}{'plain ms':>10}{'ours ms':>10}{'ratio':>10}\n")

    def decomposed(k: float) -> None:
        for g in gradients:
            U, s, V = torch.linalg.svd(g, full_matrices=False)
            r = SpectralKSupport(k=k).count(len(s))
            void(-(U[:, :r] * (s[:r] / s[:r].norm())) @ V[:r])

    exact, warm = SpectralKSupport(k=0.1), SpectralKSupport(k=0.1, rounds=10)
    starts: list[Tensor | None] = [warm.vertices(g[None]).basis for g in gradients]

    def ours(constraint: Spectral) -> None:
        for g, start in zip(gradients, starts, strict=True):
            void(constraint.vertices(g[None], start))

    compare("spectral_k_support", lambda: decomposed(0.1), lambda: ours(exact), repeats)
    compare("same, rounds=1, warm", lambda: decomposed(0.1), lambda: ours(replace(exact, rounds=1)), repeats)
    compare("nuclear", lambda: decomposed(1e-9), lambda: ours(Nuclear()), repeats)
    entries = max(gradients, key=Tensor.numel).flatten().abs()[None]
    k = entries.numel() // 10

    def topk() -> None:
        at = entries.topk(k, dim=1).indices
        void(torch.zeros_like(entries, dtype=torch.bool).scatter_(1, at, True))

    compare("k largest of 2,359,296", topk, lambda: void(largest(entries, k)), repeats)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--batch", type=int, default=128, help="images of a minibatch")
    parser.add_argument("--forms", nargs="+", choices=[*SETS, PROXIMAL], default=[*SETS, PROXIMAL], help="default: all")
    options = parser.parse_args()
    repeats = 1 if options.quick else 7
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    sys.stdout.write(f"{device.type}, {where}\n")
    steps(device, repeats, options.batch, options.forms)
    oracles(device, repeats)


if __name__ == "__main__":
    main()
