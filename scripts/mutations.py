"""Do the tests notice a wrong edit? Forty small ones, each made in a copy of the project, with its default tests.

Run by hand, in the project:

    .venv/bin/python scripts/mutations.py [--only N,M] [--jobs 2]

An edit is caught when a test fails which passes without it. The directories of tests that concern the edited file come
first, all others only if these pass. What pytest ends with otherwise (no tests, tests that cannot be collected, no end)
is an error of this check. The exit code is 0 when at most `MOST` edits survive and there was no error, 1 otherwise, 2
for a table that does not fit the project or copies that cannot be tested, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROJECT = Path(__file__).resolve().parents[1]
COUNT, MOST = 40, 2
"""How many edits there are, and how many may survive."""
LONGEST, PATIENCE = 3600.0, 10.0
"""Seconds after which tests are given up, and that an interrupted pytest has to end by itself."""


@dataclass(frozen=True)
class Mutation:
    """A wrong edit: in the file `path` of the project the text `old`, which is there once, becomes `new`."""

    path: str
    old: str
    new: str
    about: str


MUTATIONS = (
    # Solvers: NN-BCD
    Mutation(
        "nncompress/solvers/nnbcd/nnbcd.py",
        "diagonal = torch.cat([diagonal, W.new_full((1,), self.alpha)])",
        "diagonal = torch.cat([diagonal, diagonal[:1]])",
        "W block: the bias gets tau too",
    ),
    Mutation(
        "nncompress/solvers/nnbcd/blocks.py",
        "inside = (left <= 0) & (right >= 0)",
        "inside = left * right <= 0",
        "subgradient: a concave kink treated as a convex one",
    ),
    Mutation(
        "nncompress/solvers/nnbcd/nnbcd.py",
        "P.moved(blocks.sq(move), self.alpha if P.T[i] is None else self.alpha + tau / 2)",
        "P.moved(blocks.sq(move), self.alpha if P.T[i] is None else self.alpha + tau)",
        "guaranteed decrease of W: tau for tau/2",
    ),
    # Solvers: LC
    Mutation(
        "nncompress/solvers/lc/lc.py",
        "theta = plan.compress(v, mu, start=state.theta)",
        "theta = plan.compress(w, mu, start=state.theta)",
        "C step without the multipliers",
    ),
    Mutation(
        "nncompress/solvers/lc/lc.py",
        "lam = Params(dict(zip(plan.shapes, state.lam, strict=True))) * float(self.multipliers)",
        "lam = Params(dict(zip(plan.shapes, state.lam, strict=True)))",
        "quadratic penalty: multipliers are not 0",
    ),
    Mutation(
        "nncompress/solvers/lc/lc.py",
        "max(0, state.k + ahead)",
        "max(0, state.k + ahead - 1)",
        "mu one step late",
    ),
    # Solvers: slimming, proximal and as first published
    Mutation(
        "nncompress/solvers/slimming/proximal.py",
        "xi.copy_(shrunk(xi, gamma, alpha, self.beta, penalty))",
        "xi.copy_(shrunk(gamma, xi, alpha, self.beta, penalty))",
        "update of xi: xi and gamma swapped",
    ),
    Mutation(
        "nncompress/solvers/slimming/network_slimming.py",
        "above = scores > scores.sort()",
        "above = scores >= scores.sort()",
        "percentile: the channel at the threshold stays",
    ),
    # Solvers: Frank-Wolfe
    Mutation(
        "nncompress/solvers/frank_wolfe/sfw.py",
        "torch._foreach_add_(momenta, gradients, alpha=1 - self.dampening)",
        "torch._foreach_add_(momenta, gradients, alpha=1 - self.momentum)",
        "momentum always dampened",
    ),
    Mutation(
        "nncompress/solvers/frank_wolfe/sfw.py",
        "radii, 2 * reach * radii)",
        "radii, 2 * radii)",
        "rescaling: the diameter of a set is twice its radius",
    ),
    # Solvers: SGD
    Mutation(
        "nncompress/solvers/training/descent.py",
        "return self.then.factor(step - self.epochs, num_steps - self.epochs)",
        "return self.then.factor(step - self.epochs, num_steps)",
        "warm-up: what follows it is too long",
    ),
    Mutation(
        "nncompress/solvers/training/minibatches.py",
        "value = torch.lerp(self.loss(logits, y[:-1]), value, batch.weight)",
        "value = torch.lerp(value, self.loss(logits, y[:-1]), batch.weight)",
        "mixup: the labels' weights swapped",
    ),
    Mutation(
        "nncompress/solvers/sgd/sgd.py",
        "t = state.k * len(batch_lengths(len(problem.data.train), self.batch_size))",
        "t = state.k",
        "averaging: minibatches counted as epochs",
    ),
    Mutation(
        "nncompress/solvers/sgd/regularisers.py",
        "_shorter_rows(a, lr * self.lam)",
        "_shorter_rows(a, self.lam)",
        "proximal group lasso without the learning rate",
    ),
    # Compressions
    Mutation(
        "nncompress/compressions/decomposition/trains.py",
        "return image * torch.where(scale > tiny, 1 / scale, 0), scale[:, None] * rows.T",
        "return image, rows.T",
        "TT-SVD: singular values left in the core",
    ),
    Mutation(
        "nncompress/compressions/decomposition/low_rank.py",
        "(held < energy * held[-1])",
        "(held <= energy * held[-1])",
        "rank of an energy that is met exactly",
    ),
    Mutation(
        "nncompress/compressions/decomposition/tucker.py",
        "if used[k] >= math.prod(used[:k]) * math.prod(used[k + 1 :]):",
        "if used[k] > math.prod(used[:k]) * math.prod(used[k + 1 :]):",
        "Tucker: a mode that its rank does not restrict is not left whole",
    ),
    Mutation(
        "nncompress/compressions/decomposition/cp.py",
        "g = math.prod(others[1:], start=others[0]) if others",
        "g = math.prod(others, start=others[0]) if others",
        "CP normal equations: one Gram matrix twice",
    ),
    Mutation(
        "nncompress/compressions/quantization/codes.py",
        "codes += rows >= threshold[:, None]",
        "codes += rows > threshold[:, None]",
        "codebook: weights halfway between two entries",
    ),
    Mutation(
        "nncompress/compressions/quantization/uniform.py",
        "return (1 << self.b) - 1 if self.symmetric and self.b > 1 else 1 << self.b",
        "return 1 << self.b",
        "symmetric grid with one integer more below 0",
    ),
    Mutation(
        "nncompress/compressions/sparsity/magnitude.py",
        "ties & (ties.cumsum(0) <= count - keep.sum())",
        "ties & (ties.flip(0).cumsum(0).flip(0) <= count - keep.sum())",
        "l0: the last of equal magnitudes stay",
    ),
    Mutation(
        "nncompress/compressions/sparsity/magnitude.py",
        "return levels.max().clamp_min(0).to(magnitudes.dtype)",
        "return levels.max().to(magnitudes.dtype)",
        "l1 ball: what lies inside is pushed to its surface",
    ),
    Mutation(
        "nncompress/compressions/decomposition/rank_selection.py",
        "torch.stack([run.mean(-1) for run in runs], dim=-1)",
        "torch.stack([run.sum(-1) / self.round_to for run in runs], dim=-1)",
        "rank selection: a shorter last run at the price of a full one",
    ),
    Mutation(
        "nncompress/compressions/additive.py",
        "part.compression.update(seen, mu, thetas[j]",
        "part.compression.update(seen, 1.0, thetas[j]",
        "additive: the parts' penalties without mu",
    ),
    # Constraints
    Mutation(
        "nncompress/constraints/lp.py",
        "opposite(scaled.sign() * scaled.abs() ** power, size, g)",
        "opposite(scaled.abs() ** power, size, g)",
        "LMO of the lp ball: the sign",
    ),
    Mutation(
        "nncompress/constraints/k_support.py",
        "keep = largest(torch.linalg.vector_norm(g, dim=2), self.count(g.shape[1]))",
        "keep = largest(torch.linalg.vector_norm(g, 1, dim=2), self.count(g.shape[1]))",
        "group k-support: groups ranked by their l1 norms",
    ),
    Mutation(
        "nncompress/constraints/k_support.py",
        "squared = torch.where(head[:, :-1] >= rest, squares + times * rest.square(), 0)",
        "squared = squares + times * rest.square()",
        "gauge of the k-support ball: every split admitted",
    ),
    Mutation(
        "nncompress/constraints/spectral.py",
        "return math.sqrt(self.count(min(shape)))",
        "return math.sqrt(self.count(max(shape)))",
        "diameter of the spectral k-sparse set: the larger side",
    ),
    Mutation(
        "nncompress/constraints/spectral.py",
        "return s[:, : self.count(s.shape[1])].sum(1)",
        "return euclidean(s[:, : self.count(s.shape[1])])",
        "dual norm of the spectral k-sparse set: that of k-support",
    ),
    # Counts
    Mutation(
        "nncompress/metrics.py",
        "FLOAT_BITS * outside + masks + plan.bits(theta)",
        "FLOAT_BITS * outside + plan.bits(theta)",
        "bits without the channels' masks",
    ),
    Mutation(
        "nncompress/metrics.py",
        '"ratio/tasks": plan.num_params(theta) / plan.numel()',
        '"ratio/tasks": compressed / plan.numel()',
        "ratio of the tasks: the numerator is the whole network's",
    ),
    Mutation(
        "nncompress/compressions/products.py",
        "total, at = 0, use.inputs",
        "total, at = 0, use.outputs",
        "operations before a stride counted behind it",
    ),
    Mutation(
        "nncompress/compressions/bits.py",
        "return (count - 1).bit_length()",
        "return count.bit_length()",
        "bits of an index below a power of two",
    ),
    Mutation(
        "nncompress/compressions/quantization/codes.py",
        "return theta.codes.numel() * length + FLOAT_BITS * theta.table.numel()",
        "return theta.codes.numel() * length + FLOAT_BITS * theta.table.shape[1]",
        "bits of one codebook for all channels",
    ),
    Mutation(
        "nncompress/compressions/bits.py",
        "    counts[0] = (fields - 1).sum()\n",
        "",
        "Huffman: long gaps' further fields forgotten",
    ),
    # Compact networks and their files
    Mutation(
        "nncompress/artefact/encoding.py",
        "reached = torch.where(fields == 0, 2**width - 1, fields)",
        "reached = torch.where(fields == 0, 2**width, fields)",
        "unpacking: long gaps one position too far",
    ),
    Mutation(
        "nncompress/artefact/encoding.py",
        "if tensor.dim() == 1 and bool((flat.diff() > 0).all()):",
        "if tensor.dim() == 1 and bool((flat.diff() >= 0).all()):",
        "encoding: sorted codes taken for positions",
    ),
    Mutation(
        "nncompress/artefact/save.py",
        "for name, tensor in network.state_dict().items() if name not in others",
        "for name, tensor in network.named_parameters() if name not in others",
        "artefact without buffers",
    ),
    Mutation(
        "nncompress/surgery/removal.py",
        "module.indices = module.indices[kept]",
        "module.indices = kept",
        "channels removed a second time from a selection",
    ),
    Mutation(
        "nncompress/surgery/theta.py",
        "if kept is None or not all(map(is_, kept.tensors, tensors)) or sum(map(VERSION, tensors)) != kept.version:",
        "if kept is None or not all(map(is_, kept.tensors, tensors)):",
        "compact layer: the product of a Θ that has changed since",
    ),
)

NEAR = (
    ("nncompress/solvers/nnbcd", ("tests/unit/solvers/nnbcd",)),
    ("nncompress/solvers/lc", ("tests/unit/solvers/lc",)),
    ("nncompress/solvers/slimming", ("tests/unit/solvers/slimming",)),
    ("nncompress/solvers/frank_wolfe", ("tests/unit/solvers/frank_wolfe",)),
    ("nncompress/solvers/", ("tests/unit/solvers",)),
    ("nncompress/compressions/", ("tests/unit/compressions", "tests/theorems")),
    ("nncompress/constraints/", ("tests/unit/constraints", "tests/theorems")),
    ("nncompress/artefact/", ("tests/unit/artefact", "tests/theorems")),
    ("nncompress/surgery/", ("tests/unit/surgery", "tests/unit/artefact", "tests/theorems")),
    ("nncompress/", ("tests/unit/experiment", "tests/unit/surgery")),
)
"""The directories of tests that concern a file, by the first of these beginnings of its path that fits."""


class Stopped(Exception):
    """No more processes are started."""


class Processes:
    """The processes this check has started, each at the head of a group of its own, so that all of it can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> tuple[int, str]:
        """Return the exit code of a command (-9 when it was given up) and its output; `log` holds that on the way."""
        with log.open("wb") as file:
            with self._lock:
                if self._stopped:
                    raise Stopped
                child = subprocess.Popen(
                    command, cwd=folder, env=environment, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
                self._running.add(child)
            with suppress(subprocess.TimeoutExpired):
                child.wait(LONGEST)
            with self._lock:
                self._running.discard(child)
            _signal(child, signal.SIGKILL)  # what it has left behind, too
            code = child.wait()
        if self._stopped:
            raise Stopped
        return code, log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End all of them: by an interrupt, as tests have processes of their own to end, then for good.

        Another interrupt meanwhile has no effect: what was begun is to be cleared away.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        with self._lock:
            self._stopped = True
            children = list(self._running)
        for child in children:
            _signal(child, signal.SIGINT)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
            _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the whole group of a process, if there is anything left of it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


@dataclass(frozen=True)
class Outcome:
    """How the tests took an edit; `detail` is the first test that failed, or what went wrong."""

    kind: Literal["caught", "survived", "error"]
    detail: str = ""

    def __str__(self) -> str:
        return {"caught": self.detail, "survived": "SURVIVED", "error": f"ERROR: {self.detail}"}[self.kind]


class Copy:
    """A copy of the project in a folder of its own, in which edits are made and tested one after the other."""

    def __init__(self, folder: Path, files: Iterable[str], processes: Processes) -> None:
        self.root, self._folder, self._processes = folder / "project", folder, processes
        for name in files:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target)
        self._environment = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}

    def imported(self) -> str:
        """Return the file that `import nncompress` takes here, as its tests do; or what Python says."""
        code = "import sys, nncompress; sys.stdout.write(str(nncompress.__file__))"
        return self._run([sys.executable, "-c", code])[1]

    def try_out(self, mutation: Mutation) -> Outcome:
        """Make an edit, run the tests and take it back; a test that fails has to pass without it."""
        path = self.root / mutation.path
        right = path.read_text(encoding="utf-8")
        self._write(path, right.replace(mutation.old, mutation.new))
        try:
            outcome = self._tested(mutation)
        finally:
            self._write(path, right)
        if outcome.kind == "caught":
            code, _ = self._pytest(outcome.detail)
            if code != 0:
                return Outcome("error", f"without the edit pytest ends with {code}: {outcome.detail}")
        return outcome

    def _tested(self, mutation: Mutation) -> Outcome:
        near = [name for name in directories(mutation.path) if (self.root / name).is_dir()]
        for words in ([near] if near else []) + [["tests", *(f"--ignore={name}" for name in near)]]:
            code, output = self._pytest(*words)
            if code == 1:
                return Outcome("caught", first_failure(output))
            if code != 0:
                return Outcome("error", f"pytest ends with {code}: {last_line(output)}")
        return Outcome("survived")

    def _pytest(self, *words: str) -> tuple[int, str]:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--basetemp={self._folder / 'temporary'}"]
        return self._run([sys.executable, "-m", "pytest", *options, *words])

    def _run(self, command: Sequence[str]) -> tuple[int, str]:
        return self._processes.run(command, self.root, self._environment, self._folder / "output")

    def _write(self, path: Path, text: str) -> None:
        """Write a module and drop its bytecode: that of another text of the same length and second would be taken."""
        path.write_text(text, encoding="utf-8")
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def directories(path: str) -> tuple[str, ...]:
    """Return the directories of tests that concern a file of the package."""
    return next((found for beginning, found in NEAR if path.startswith(beginning)), ())


def first_failure(output: str) -> str:
    """Return the id of the first test in pytest's short summary."""
    summary = output.rpartition("short test summary info")[2]
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", summary, re.MULTILINE)
    return found[1] if found else "a test that pytest does not name"


def last_line(output: str) -> str:
    """Return the last line of an output that says something."""
    return next((line.strip("= !") for line in reversed(output.splitlines()) if line.strip("= !")), "no output")


def misfits() -> list[str]:
    """Return what is wrong with the table of edits, in sentences."""
    found = [] if len(MUTATIONS) == COUNT else [f"the table must hold {COUNT} edits, found {len(MUTATIONS)}"]
    for number, mutation in enumerate(MUTATIONS, 1):
        path = PROJECT / mutation.path
        count = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else None
        if count is None:
            found.append(f"edit {number} ({mutation.about}) needs the file {mutation.path}, which is not there")
        elif count != 1:
            found.append(
                f"edit {number} ({mutation.about}) replaces a text that must be in {mutation.path} once, found it "
                f"{count} times: {mutation.old.strip()}"
            )
        elif mutation.old == mutation.new:
            found.append(f"edit {number} ({mutation.about}) changes nothing in {mutation.path}")
    return found


def project_files() -> list[str]:
    """Return the files of the project that git has or would take, those deleted since left out."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    return [name for name in dict.fromkeys(listed.split("\0")) if name and (PROJECT / name).is_file()]


def check(numbers: Sequence[int], jobs: int, folder: Path, processes: Processes) -> dict[int, Outcome] | None:
    """Try the edits of these numbers in `jobs` copies in a folder; None when a copy would not test itself."""
    files = project_files()
    made = [Copy(folder / str(job), files, processes) for job in range(min(jobs, len(numbers)))]
    imported = made[0].imported()
    if not Path(imported).is_relative_to(made[0].root):
        sys.stderr.write(f"the tests must import nncompress from the copy {made[0].root}, found {imported}\n")
        return None
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in made:
        free.put(copy)

    def outcome(number: int) -> Outcome:
        copy = free.get()
        try:
            return copy.try_out(MUTATIONS[number - 1])
        finally:
            free.put(copy)

    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(len(made)) as pool:
        futures = {pool.submit(outcome, number): number for number in numbers}
        try:
            for future in as_completed(futures):
                number = futures[future]
                outcomes[number] = future.result()
                sys.stderr.write(f"{len(outcomes)}/{len(numbers)}: edit {number}, {outcomes[number]}\n")
        except BaseException:
            processes.stop()  # the pool waits for its threads, and these for what they have started
            raise
    return outcomes


def table(outcomes: dict[int, Outcome]) -> str:
    """Return the outcomes as a Markdown table, and how many edits were caught."""
    lines = ["| number | file | about | caught by |", "| ---: | --- | --- | --- |"]
    for number, outcome in sorted(outcomes.items()):
        mutation = MUTATIONS[number - 1]
        cells = [cell.replace("|", "\\|") for cell in (str(number), mutation.path, mutation.about, str(outcome))]
        lines.append(f"| {' | '.join(cells)} |")
    kinds = [outcome.kind for outcome in outcomes.values()]
    caught, survived, errors = (kinds.count(kind) for kind in ("caught", "survived", "error"))
    return "\n".join([*lines, "", f"{caught} of {len(kinds)} caught, {survived} survived, {errors} errors", ""])


def chosen(words: str) -> list[int]:
    """Return the numbers of edits in words such as `3,17`; argparse tells of a ValueError."""
    numbers = sorted({int(word) for word in words.split(",")})
    if not all(1 <= number <= COUNT for number in numbers):
        raise ValueError
    return numbers


def positive(word: str) -> int:
    """Return a number of at least 1; argparse tells of a ValueError."""
    if int(word) < 1:
        raise ValueError
    return int(word)


def main() -> int:
    """Read the command line, check the table, try the edits, print the outcomes; the exit code."""
    parser = argparse.ArgumentParser(description="Try 40 small wrong edits: do the default tests notice them?")
    parser.add_argument(
        "--only", type=chosen, metavar="N,M", default=[*range(1, COUNT + 1)], help=f"numbers of edits, 1 to {COUNT}"
    )
    parser.add_argument("--jobs", type=positive, default=2, help="how many are tried at a time (default: 2)")
    options = parser.parse_args()
    wrong = misfits()
    if wrong:
        sys.stderr.write("".join(f"{sentence}\n" for sentence in wrong))
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        try:
            outcomes = check(options.only, options.jobs, Path(folder).resolve(), processes)
        except KeyboardInterrupt:
            processes.stop()
            sys.stderr.write("interrupted\n")
            return 130
    if outcomes is None:
        return 2
    sys.stdout.write(table(outcomes))
    kinds = [outcome.kind for outcome in outcomes.values()]
    return 0 if kinds.count("survived") <= MOST and "error" not in kinds else 1


if __name__ == "__main__":
    sys.exit(main())
