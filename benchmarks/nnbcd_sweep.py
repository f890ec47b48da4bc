"""One NN-BCD sweep against its plain form on the shapes of UCI HAR: `make bench`.

The plain form is what the published notebooks compute: explicit inverses, TensorLy's numpy TT-SVD, the case table of
the U block written out with masks. Both forms run in turn in one process on the same data; the ratios are of medians.
Both start from the weights the solver has reached after the warm-up sweeps; peak memory is that of a fresh process for
each form.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
from collections.abc import Callable

import tensorly
import torch
from tensorly.decomposition import tensor_train
from torch import Tensor

from benchmarks.timing import compare
from nncompress.compressions.tensor_train import tt, tt_ranks
from nncompress.models.mlp import MLP
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.nnbcd import NNBCD
from nncompress.solvers.nnbcd_state import NNBCDState

WIDTHS = (1024, 1024, 1024, 512)
MODES = {"fc1": [6, 22, 34, *[2] * 7], "fc2": [4] * 10, "fc3": [4] * 10, "fc4": [*[4] * 9, 2]}
RANK, TAU, ALPHA, GAMMA, RHO = 80, 5.0, 1.0, 0.5, 0.5


def make_problem(n: int, dtype: torch.dtype) -> Problem:
    """HAR-like data: n samples of 561 correlated features in [-1, 1] and 6 classes."""
    g = torch.Generator().manual_seed(0)
    factors, labels = torch.randn(40, 561, generator=g), torch.randint(6, (n,), generator=g)
    centres = torch.randn(6, 40, generator=g)
    x = torch.tanh((centres[labels] + torch.randn(n, 40, generator=g)) @ factors / 8).to(dtype)
    split = Split(x, labels)
    model = MLP((561,), 6, widths=WIDTHS, bias=False).to(dtype)
    return Problem(model, Dataset(split, split, 6, "har-like"), tt(weights_of(model), rank=RANK, modes=MODES))


class Plain:
    """The plain form, its blocks updated in place of the old ones."""

    def __init__(self, problem: Problem, state: NNBCDState) -> None:
        self.W, self.T = [w.clone() for w in state.W], [None if t is None else t.clone() for t in state.T]
        # samples as columns, as published
        self.U = [u.T.contiguous() for u in state.U]
        self.V = [v.T.contiguous() for v in (problem.data.train.x, *state.V)]
        self.Y = torch.nn.functional.one_hot(problem.data.train.y, 6).to(problem.dtype).T

    def sweep(self) -> None:
        W, U, V = self.W, self.U, self.V
        V[5] = (self.Y + GAMMA * U[4] + ALPHA * V[5]) / (1 + GAMMA + ALPHA)
        U[4] = (GAMMA * V[5] + RHO * (W[4] @ V[4])) / (GAMMA + RHO)
        W[4] = (ALPHA * W[4] + RHO * (U[4] @ V[4].T)) @ self._inverse(V[4] @ V[4].T, ALPHA)
        for i in (3, 2, 1, 0):
            inverse = torch.inverse(RHO * (W[i + 1].T @ W[i + 1]) + GAMMA * torch.eye(len(V[i + 1]), dtype=V[5].dtype))
            V[i + 1] = inverse @ (RHO * (W[i + 1].T @ U[i + 1]) + GAMMA * torch.relu(U[i]))
            U[i] = plain_prox(V[i + 1], (RHO * (W[i] @ V[i]) + ALPHA * U[i]) / (RHO + ALPHA), (RHO + ALPHA) / GAMMA)
            right = ALPHA * W[i] + TAU * self.T[i] + RHO * (U[i] @ V[i].T)
            W[i] = right @ self._inverse(V[i] @ V[i].T, ALPHA + TAU)
            self.T[i] = plain_tt(W[i], MODES[f"fc{i + 1}"])

    def _inverse(self, gram: Tensor, shift: float) -> Tensor:
        return torch.inverse(shift * torch.eye(len(gram), dtype=gram.dtype) + RHO * gram)


def plain_prox(a: Tensor, b: Tensor, g: float) -> Tensor:
    """The case table of the ReLU fit, one mask a case."""
    t = math.sqrt(g * (g + 1)) - g
    inner = (a + g * b) / (1 + g)
    u = torch.minimum(b, torch.zeros_like(b))
    first = (b >= 0) & (a + g * b >= 0)
    second = (b < 0) & (g * b > -t * a) & (a + g * b >= 0)
    u[first] = inner[first]
    u[second] = inner[second]
    return u


def plain_tt(w: Tensor, modes: list[int]) -> Tensor:
    """TT-SVD and reconstruction with TensorLy's numpy backend."""
    cores = tensor_train(w.numpy().reshape(modes), rank=[1, *tt_ranks(modes, RANK)])
    return torch.from_numpy(tensorly.tt_to_tensor(cores)).reshape(w.shape)


class Ours:
    """The solver's own sweep."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.solver = problem, NNBCD(tau=TAU, alpha=ALPHA, gamma=GAMMA, rho=RHO)
        self.state = self.solver.init(problem)

    def sweep(self) -> None:
        self.state = self.solver.step(self.problem, self.state)


def tt_steps(plain: Plain, ours: Ours) -> tuple[Callable[[], object], Callable[[], object]]:
    """The G blocks of one sweep alone, in both forms: from the weights after a sweep and Θ before it."""
    before, plan = ours.state, ours.problem.plan
    ours.sweep()
    plain.sweep()
    weights = dict(zip(plan.shapes, ours.state.W, strict=False))
    dense = dict(zip(plan.shapes, before.T, strict=False))

    def our_step() -> None:
        for task, theta in zip(plan.tasks, before.theta, strict=True):
            plan.update_task(task, weights, TAU, theta, dense)

    return lambda: [plain_tt(w, MODES[f"fc{i}"]) for i, w in enumerate(plain.W[:4], 1)], our_step


def peak_memory(form: str, arguments: list[str]) -> int:
    """Peak resident bytes of a fresh process that runs three sweeps of one form."""
    command = [sys.executable, "-m", "benchmarks.nnbcd_sweep", "--memory", form, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5066)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=50, help="sweeps before the clock starts")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--memory", choices=("plain", "ours"), help="only print one form's peak memory, in bytes")
    options = parser.parse_args()
    problem = make_problem(options.samples, getattr(torch, options.precision))
    ours = Ours(problem)
    if options.memory:
        form: Plain | Ours = ours
        if options.memory == "plain":
            form = Plain(problem, ours.state)
            del ours
        for _ in range(3):
            form.sweep()
        sys.stdout.write(f"{1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n")
        return
    for _ in range(options.warmup):
        ours.sweep()
    plain = Plain(problem, ours.state)
    about = (
        f"{options.samples} samples, {options.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    sys.stdout.write(f"NN-BCD on 561-1024-1024-1024-512-6, TT rank {RANK}, after {options.warmup} sweeps; {about}\n")
    sys.stdout.write(f"{'':<28}{'plain ms':>10}{'ours ms':>10}{'ratio':>10}\n")
    compare("one sweep", plain.sweep, ours.sweep, options.repeats)
    compare("TT step alone", *tt_steps(plain, ours), options.repeats)
    shape = [f"--samples={options.samples}", f"--precision={options.precision}"]
    p, o = (peak_memory(form, shape) / 2**20 for form in ("plain", "ours"))
    sys.stdout.write(f"{'peak memory (MiB)':<28}{p:>10.0f}{o:>10.0f}{p / o:>9.2f}x\n")


if __name__ == "__main__":
    main()
