"""NN-BCD against the number of samples and of processes: `make bench`.

The paper's CNN on n synthetic 28x28 images: seconds of a sweep and the peak resident memory of the whole process, in a
fresh one for each n; beside them what the state and the images hold, and what they would hold in float64. Then a
multilayer perceptron with one process of one thread, one of two and two of one (torchrun, gloo). Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nncompress import parallel
from nncompress.models.mlp import MLP
from scripts.benchmarks.nnbcd_sweep import CNN, Network, Ours, make_problem, resident

MLP3 = Network(
    title="784-1024-1024-10",
    model=lambda: MLP((784,), 10, widths=(1024, 1024), bias=False),
    input_shape=(784,),
    lowest=0.0,
    classes=10,
    samples=20_000,
    modes={"fc1": [*[4] * 6, 7, 4, 7], "fc2": [4] * 10},
    rank=40,
    rates={"tau": 5.0, "alpha": 1.0, "gamma": 0.5, "rho": 0.5},
    warmup=1,
    repeats=2,
)
NETWORKS = {"cnn": CNN, "mlp": MLP3}
SAMPLES, QUICK = (6_000, 15_000, 30_000, 60_000), (500, 1_000)
LIMIT = 8 * 2**30
"""Bytes in which the largest n of the CNN shall fit in float32."""


def held(value: Any) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(held(part) for part in value) if isinstance(value, tuple | list) else 0


def measure(options: argparse.Namespace) -> None:
    """Print, as JSON, seconds of a sweep and the bytes of the process that holds most."""
    parallel.start()
    torch.set_num_threads(options.threads)
    problem = make_problem(NETWORKS[options.measure], options.samples[0], getattr(torch, options.precision))
    ours = Ours(NETWORKS[options.measure], problem)
    for _ in range(options.warmup):
        ours.sweep()
    parallel.largest(0)  # until all processes are here
    start = time.perf_counter()
    for _ in range(options.sweeps):
        ours.sweep()
    seconds = (time.perf_counter() - start) / options.sweeps
    bytes_held = parallel.largest(held(ours.state) + problem.data.train.x.nbytes)
    peak = parallel.largest(resident("VmHWM"))
    if parallel.rank() == 0:
        sys.stdout.write(json.dumps({"seconds": seconds, "peak": peak, "held": bytes_held}) + "\n")


def measured(name: str, n: int, options: argparse.Namespace, *, processes: int = 1, threads: int) -> dict[str, Any]:
    """Return the figures of `measure` from fresh processes."""
    launch = [
        *("-m", "torch.distributed.run", f"--nproc_per_node={processes}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    ]
    settings = [f"--{key}={getattr(options, key)}" for key in ("warmup", "sweeps", "precision")]
    output = subprocess.run(
        [
            *(sys.executable, *(launch if processes > 1 else [])),
            *("-m", "scripts.benchmarks.nnbcd_scale"),
            *(f"--measure={name}", f"--samples={n}", f"--threads={threads}", *settings),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ).stdout
    return dict(json.loads(output))


def report_samples(samples: Sequence[int], options: argparse.Namespace) -> None:
    """The CNN against n."""
    about = f"TT rank {CNN.rank}, {options.precision}, {options.threads} threads, torch {torch.__version__}"
    sys.stdout.write(f"NN-BCD on {CNN.title}; {about}\n")
    double = 2 if options.precision == "float32" else 1
    sys.stdout.write(
        f"{'samples':>10}{'s/sweep':>10}{'ms/1000':>10}{'peak MiB':>12}{'held MiB':>12}{'held in float64':>18}\n"
    )
    for n in samples:
        found = measured("cnn", n, options, threads=options.threads)
        peak, state = found["peak"] / 2**20, found["held"] / 2**20
        each = 1e6 * found["seconds"] / n
        sys.stdout.write(
            f"{n:>10}{found['seconds']:>10.2f}{each:>10.1f}{peak:>12.0f}{state:>12.0f}{double * state:>18.0f}\n"
        )
        sys.stdout.flush()
    fits = "fits" if found["peak"] <= LIMIT else "does not fit"
    sys.stdout.write(f"n = {n} {fits} in {LIMIT / 2**30:.0f} GiB in {options.precision}\n\n")


def report_processes(n: int, options: argparse.Namespace) -> None:
    """The multilayer perceptron against processes and threads."""
    sys.stdout.write(f"NN-BCD on {MLP3.title}, {n} samples, TT rank {MLP3.rank}, {options.precision}\n")
    sys.stdout.write(f"{'processes':>10}{'threads':>10}{'s/sweep':>10}{'speed-up':>10}{'peak MiB of each':>20}\n")
    first = None
    for processes, threads in ((1, 1), (1, 2), (2, 1)):
        found = measured("mlp", n, options, processes=processes, threads=threads)
        first = first or found["seconds"]
        speed_up, peak = first / found["seconds"], found["peak"] / 2**20
        sys.stdout.write(f"{processes:>10}{threads:>10}{found['seconds']:>10.2f}{speed_up:>9.2f}x{peak:>20.0f}\n")
        sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"n = {', '.join(map(str, QUICK))} only")
    parser.add_argument("--network", choices=(*NETWORKS, "all"), default="all")
    parser.add_argument("--samples", type=int, nargs="+", help="n, instead of the networks' own")
    parser.add_argument("--warmup", type=int, default=1, help="sweeps before those that are timed")
    parser.add_argument("--sweeps", type=int, default=2, help="sweeps that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CNN's process")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--measure", choices=NETWORKS, help="only print the figures of this process, as JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.measure:
        measure(options)
        return
    if options.network in ("cnn", "all"):
        report_samples(options.samples or (QUICK if options.quick else SAMPLES), options)
    if options.network in ("mlp", "all"):
        for n in options.samples or [QUICK[-1] if options.quick else MLP3.samples]:
            report_processes(n, options)


if __name__ == "__main__":
    main()
