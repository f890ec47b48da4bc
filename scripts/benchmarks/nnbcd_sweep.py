"""One NN-BCD sweep against its plain form on the networks of the paper: `make bench`.

The plain form is what the published notebooks compute (`plain_nnbcd.py`). Both forms run in turn in one process on the
same data, from the weights that the solver has reached after the warm-up sweeps; the ratios are of medians. Memory is
that of a fresh process for each form, from the initial weights: the peak of all it does, and the peak of the sweeps
alone, which is what they need beyond the blocks, the weights and the data (Linux only).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.models.cnn import NNBCDCNN
from nncompress.models.mlp import MLP
from nncompress.problem import Dataset, Problem, Split, weights_of
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from scripts.benchmarks import plain_nnbcd
from scripts.benchmarks.plain_nnbcd import Plain
from scripts.benchmarks.timing import compare


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the paper with its hyper-parameters; `modes` for every compressed layer."""

    title: str
    model: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    lowest: float
    classes: int
    samples: int
    modes: Mapping[str, Sequence[int]]
    rank: int
    rates: Mapping[str, Any]
    warmup: int
    repeats: int

    @property
    def conv(self) -> bool:
        return len(self.input_shape) == 3


HAR4 = Network(
    title="561-1024-1024-1024-512-6",
    model=lambda: MLP((561,), 6, widths=(1024, 1024, 1024, 512), bias=False),
    input_shape=(561,),
    lowest=-1.0,
    classes=6,
    samples=5066,
    modes={"fc1": [6, 22, 34, *[2] * 7], "fc2": [4] * 10, "fc3": [4] * 10, "fc4": [*[4] * 9, 2]},
    rank=80,
    rates={"tau": 5.0, "alpha": 1.0, "gamma": 0.5, "rho": 0.5},
    warmup=50,
    repeats=9,
)
CNN = Network(
    title="conv 32 3x3 / 2, 5408-1024-1024-10",
    model=lambda: NNBCDCNN((1, 28, 28), 10),
    input_shape=(1, 28, 28),
    lowest=0.0,
    classes=10,
    samples=6000,
    modes={"fc2": [26, 26, *[4] * 5, *[2] * 3], "fc3": [4] * 10},
    rank=40,
    rates={"tau": 0.1, "alpha": 1.0, "gamma": 5.0, "rho": 5.0},
    warmup=5,
    repeats=3,
)
NETWORKS = {"har4": HAR4, "cnn": CNN}


def make_problem(network: Network, n: int, dtype: torch.dtype) -> Problem:
    """n samples of correlated entries between `lowest` and 1, around a centre for each class; weights 0.01 N(0, 1)."""
    g = torch.Generator().manual_seed(0)
    size = torch.Size(network.input_shape).numel()
    factors, labels = torch.randn(40, size, generator=g), torch.randint(network.classes, (n,), generator=g)
    centres = torch.randn(network.classes, 40, generator=g)
    x = torch.tanh((centres[labels] + torch.randn(n, 40, generator=g)) @ factors / 8).clamp_min(network.lowest)
    split = Split(x.reshape(n, *network.input_shape).to(dtype), labels)
    model = network.model().to(dtype)
    with torch.no_grad():
        for w in weights_of(model).values():
            w.copy_(0.01 * torch.randn(w.shape, generator=g))
    plan = tt(weights_of(model), rank=network.rank, modes=network.modes, layers=list(network.modes))
    return Problem(model, Dataset(split, split, network.classes, "like the paper's"), plan)


def make_plain(network: Network, problem: Problem, model: nn.Module) -> Plain:
    """Return the plain form on the data of a problem, from the weights of `model`."""
    weights = {name.removesuffix(".weight"): w.detach().clone() for name, w in weights_of(model).items()}
    trains = {name: plain_nnbcd.tt(modes, network.rank) for name, modes in network.modes.items()}
    x, y = problem.data.train.x, problem.data.train.y
    return Plain(
        [plain_nnbcd.patch_weight(w) if w.ndim == 4 else w for w in weights.values()],
        plain_nnbcd.patches(x, 3, 2) if network.conv else x.T.contiguous(),
        one_hot(y, network.classes).to(x.dtype).T.contiguous(),
        **network.rates,
        compress=[trains.get(name) for name in weights],
        conv=network.conv,
    )


class Ours:
    """The solver's own sweep."""

    def __init__(self, network: Network, problem: Problem) -> None:
        self.problem, self.solver = problem, NNBCD(initial="model", **network.rates)
        self.state = self.solver.init(problem)

    def sweep(self) -> None:
        self.state = self.solver.step(self.problem, self.state)

    def model(self) -> nn.Module:
        """Return the network with the weights W."""
        return self.solver.observe(self.problem, self.state).model


def tt_steps(plain: Plain, ours: Ours) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the G blocks of one sweep alone, in both forms: from the weights after a sweep and Θ before it."""
    plan, theta = ours.problem.plan, ours.state.theta
    dense: Mapping[str, Tensor] = plan.decompress(theta)
    ours.sweep()
    plain.sweep()
    weights = {name: w.detach() for name, w in weights_of(ours.model()).items()}

    def plain_step() -> None:
        for compress, w in zip(plain.compress, plain.W, strict=True):
            _ = None if compress is None else compress(w)

    def our_step() -> None:
        for task, start in zip(plan.tasks, theta, strict=True):
            plan.update_task(task, weights, plain.tau, start, dense)

    return plain_step, our_step


def resident(field: str) -> int:
    """VmRSS, the resident bytes, or VmHWM, the most there have been."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def print_memory(form: Plain | Ours) -> None:
    """The peak resident bytes so far and with three sweeps, and what of it is of the last two sweeps alone."""
    form.sweep()
    before, first = resident("VmRSS"), resident("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    for _ in range(2):
        form.sweep()
    last = resident("VmHWM")
    sys.stdout.write(f"{max(first, last)} {last - before}\n")


def peak_memory(form: str, arguments: Sequence[str]) -> list[float]:
    """Return the two figures of `print_memory`, in MiB, from a fresh process."""
    command = [sys.executable, "-m", "scripts.benchmarks.nnbcd_sweep", "--memory", form, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(figure) / 2**20 for figure in output.split()]


def report(name: str, options: argparse.Namespace) -> None:
    """Print the rows of one network."""
    network = NETWORKS[name]
    samples, repeats = options.samples or network.samples, options.repeats or network.repeats
    warmup = network.warmup if options.warmup is None else options.warmup
    problem = make_problem(network, samples, getattr(torch, options.precision))
    ours = Ours(network, problem)
    for _ in range(warmup):
        ours.sweep()
    plain = make_plain(network, problem, ours.model())
    about = f"{samples} samples, {options.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    sys.stdout.write(f"NN-BCD on {network.title}, TT rank {network.rank}, after {warmup} sweeps; {about}\n")
    sys.stdout.write(f"{'':<28}{'plain ms':>10}{'ours ms':>10}{'ratio':>10}\n")
    compare("one sweep", plain.sweep, ours.sweep, repeats)
    compare("TT step alone", *tt_steps(plain, ours), repeats)
    shape = [f"--network={name}", f"--samples={samples}", f"--precision={options.precision}"]
    for title, p, o in zip(
        ("peak memory (MiB)", "of the sweeps alone (MiB)"),
        *(peak_memory(form, shape) for form in ("plain", "ours")),
        strict=True,
    ):
        sys.stdout.write(f"{title:<28}{p:>10.0f}{o:>10.0f}{p / o:>9.2f}x\n")
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=(*NETWORKS, "all"), default="all")
    parser.add_argument("--samples", type=int, help=f"default: {HAR4.samples} for har4, {CNN.samples} for cnn")
    parser.add_argument("--repeats", type=int, help=f"default: {HAR4.repeats} for har4, {CNN.repeats} for cnn")
    parser.add_argument("--warmup", type=int, help=f"default: {HAR4.warmup} for har4, {CNN.warmup} for cnn")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--memory", choices=("plain", "ours"), help="only print the memory of one form, in bytes")
    return parser.parse_args()


def main() -> None:
    options = parse()
    names = list(NETWORKS) if options.network == "all" else [options.network]
    if options.memory is None:
        for name in names:
            report(name, options)
        return
    network = NETWORKS[names[0]]
    problem = make_problem(network, options.samples or network.samples, getattr(torch, options.precision))
    form = make_plain(network, problem, problem.model) if options.memory == "plain" else Ours(network, problem)
    print_memory(form)


if __name__ == "__main__":
    main()
