"""A process that gives the commands changed copies of a sweep's folder, and tells what should not have happened.

    python hostile_sweeps.py SWEEP FIRST LAST

Of each number from FIRST on there is one copy, with one to three files changed as the number determines. The process
may take LIMIT bytes more than it has after the imports.
"""

import json
import os
import random
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nncompress.cli.main import main
from nncompress.errors import NNCompressError
from nncompress.report import write
from nncompress.sweeps import jobs, saved, sweeper

LIMIT = 1 << 30
MARK = "struck"
STARTED: list[str] = []
"""What was started."""
DEEP = 5000
CODE = {"_target_": "os.system", "command": f"touch {MARK}"}
VALUES: list[Any] = [
    *(None, True, -1, 0, 2, 1e308, 10**30, 10**4000, [], {}, [[1]], {"a": {"b": 1}}, CODE, [CODE]),
    *("", "..", "/", "a/../..", "x" * 5000, "\ud800", "a\0b", "\x1b[2J\n", "${oc.env:HOME}", "$x^{", "=cmd()"),
    [1, "a", None] * 100,
]  # fmt: skip
WORDS = [
    "model._target_=os.system", f"+model.command='touch {MARK}'", "search.sampler._target_=planted.strike",
    "solver.schedule._target_=planted.strike", "allow=[os,posix,planted]",
    "+hydra.callbacks.x._target_=planted.strike", "hydra/job_logging=none",
    "hydra.job_logging.formatters.simple.class=planted.strike", f"hydra.job.env_set.PATH={MARK}",
    "hydra.searchpath=[file:///tmp]", f"hydra.launcher.setup=['touch {MARK}']", "launcher=slurm_local",
    "launcher=ray", "+hydra.launcher.ray.init.runtime_env={}", "hydra.launcher._target_=planted.strike",
    "hydra/sweeper=basic", "hydra.sweeper._target_=planted.strike", "hydra.sweep.subdir='../../../s${seed}'",
    "hydra.sweep.dir=..", "hydra.run.dir=..", "model=../../planted", "model@hydra.callbacks.x=mlp",
    "seed=${oc.env:HOME}", "seed=range(0,1e9)", "sweep.resume=null", "sweep={resume: null}", "hydra.mode=RUN",
    "resume=..", "reference=..", "--config-dir", "--run", "--experimental-rerun=planted.pickle", "[", "=", "seed='",
    f"seed={'[' * DEEP}", "\ud800=1", "seed=1\0", "~model", "~", "search.store=../study.db",
    "dataset._target_=planted.strike", "tracking={x: {_target_: planted.strike}}", "seed=a",
]  # fmt: skip
YAML = [
    f"model: !!python/object/apply:os.system ['touch {MARK}']", "a: &a [x]\nb: *a", f"x: {'[' * DEEP}", "seed: {",
    "\t", "model: {_target_: planted.strike}", "solver: {_target_: os.system}", "model: ${oc.env:HOME}",
    'x: "\\ud800"', "- 1", f"seed: 0x{'f' * 5000}", "choices: {model: ../../..}", "seed: [1]",
    "compress_by: {a: {_target_: planted.strike}}",
]  # fmt: skip


def changed(content: bytes, name: str, rng: random.Random) -> bytes:
    """The content of a file, changed somehow."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [flipped, cut, shuffled]
    if name.endswith((".json", ".jsonl")):
        ways += [with_value] * 5
    if name == "sweep.json":
        ways += [with_word] * 10
    if name.endswith(".yaml"):
        ways += [with_yaml] * 4
    return rng.choice(ways)(content, rng)


def flipped(content: bytes, rng: random.Random) -> bytes:
    whole = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 3, 30))):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def shuffled(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one : one + 1] = rng.choice(([], [lines[one]] * 2, [lines[other]], [b"\n"]))
    return b"".join(lines)


def with_value(content: bytes, rng: random.Random) -> bytes:
    """One value in a row or in the whole is another one, or very deep."""
    rows = content.splitlines() if content.count(b"\n{") else [content]
    at = rng.randrange(len(rows))
    root = [json.loads(rows[at])]
    node: Any = root
    key: Any = 0
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.9:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    node[key] = "DEEP" if rng.random() < 0.1 else rng.choice(VALUES)
    sys.set_int_max_str_digits(0)
    text = json.dumps(root[0]).replace('"DEEP"', "[" * DEEP + "]" * DEEP)
    sys.set_int_max_str_digits(4300)
    rows[at] = text.encode()
    return b"\n".join(rows) + b"\n"


def with_word(content: bytes, rng: random.Random) -> bytes:
    manifest = json.loads(content)
    for _ in range(rng.choice((1, 1, 3))):
        manifest["command"].insert(rng.randrange(len(manifest["command"]) + 1), rng.choice(WORDS))
    return json.dumps(manifest).encode()


def with_yaml(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((content, b"")) + f"\n{rng.choice(YAML)}\n".encode()


def change(folder: Path, rng: random.Random) -> list[str]:
    """Change one to three files of a sweep's folder; which."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml"))
    files = [path for path in files if path.parent in (folder, folder / "0", folder / "1")]
    files += [folder / "sweep.json"] * len(files)
    chosen = {rng.choice(files) for _ in range(rng.choice((1, 1, 2, 3)))}
    for path in sorted(chosen):
        content = path.read_bytes()
        path.unlink()
        if rng.random() < 0.05:
            path.mkdir()
        elif rng.random() < 0.97:
            path.write_bytes(changed(content, path.name, rng))
    return [str(path.relative_to(folder)) for path in sorted(chosen)]


def resume_a_job() -> None:
    saved.resume_task(["resume=sweep/0"], jobs.run_single)


def commands() -> dict[str, Callable[[], object]]:
    """What is done with each folder."""
    return {
        "sweep.resume": lambda: main(["train", "sweep.resume=sweep"]),
        "resume": resume_a_job,
        "ls": lambda: main(["ls", "sweep"]),
        "compare": lambda: main(["compare", "sweep/0", "sweep/1"]),
        "report": lambda: main(["report", "sweep"]),
    }


def complaints(number: int, whole: Path) -> list[str]:
    """Give the commands the folder of this number; what went wrong."""
    rng = random.Random(number)
    shutil.rmtree("sweep", ignore_errors=True)
    shutil.copytree(whole, "sweep")
    files = change(Path("sweep"), rng)
    found = []
    outside = {*Path.cwd().iterdir()}
    for name, command in commands().items():
        said = StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                command()
        except NNCompressError:
            pass
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/nncompress/" in frame.filename]
            where = f"{ours[-1].filename}:{ours[-1].lineno}" if ours else ""
            message = f"{type(error).__name__} {str(error)[:200]!r} in {where}, {last.filename}:{last.lineno}"
            found.append(f"{number} {files} {name}: {message}")
        if STARTED:
            found.append(f"{number} {files} {name}: {STARTED}")
            STARTED.clear()
        if "Traceback" in said.getvalue():
            found.append(f"{number} {files} {name}: {said.getvalue()[-300:]!r}")
    made = {*Path.cwd().iterdir()} - outside
    if made:
        found.append(f"{number} {files}: made {sorted(map(str, made))}")
    return found


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Note what starts something."""
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"):
        STARTED.append(f"{event} {arguments}")


def prepare(whole: Path) -> None:
    """Start what every command needs once, and take what it costs as the least: LIMIT comes beside it."""
    Path("planted.py").write_text(f"open({MARK!r}, 'w').close()\n\n\ndef strike(*args, **kwargs):\n    pass\n")
    sys.path.insert(0, os.getcwd())
    sweeper.SweepOfJobs.launch = lambda self, jobs, manifest: []  # type: ignore[method-assign, assignment]
    write.save_sweep_plots = lambda figures, folder: []
    main(["train", f"sweep.resume={whole}"])
    main(["report", str(whole)])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    sys.addaudithook(watch)


if __name__ == "__main__":
    before = {*Path.cwd().parent.iterdir()}
    with redirect_stdout(StringIO()):  # whatever the log says
        prepare(Path(sys.argv[1]))
        told = [each for number in range(*map(int, sys.argv[2:])) for each in complaints(number, Path(sys.argv[1]))]
    made_beside = {*Path.cwd().parent.iterdir()} - before
    sys.stdout.write("\n".join([*told, *(f"made {path}" for path in made_beside)]))
