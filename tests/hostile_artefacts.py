"""Mutated compact networks, each loaded in this process under a limit on its address space: run as a script.

python hostile_artefacts.py COUNT SEED FOLDER... prints a line for each thing that went wrong, then how many there were
of each outcome. Run in an empty folder: what is left there tells of code that ran.
"""

import json
import os
import random
import resource
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from nncompress.artefact.files import checksum
from nncompress.artefact.limits import LEAST
from nncompress.artefact.model import load
from nncompress.errors import NNCompressError

ROOM = 4 * LEAST
"""Bytes beside those in use: the template, a copy of it, its weights, and what is on the way."""
NAMES = (
    "os.system", "os.mkdir", "builtins.eval", "builtins.exec", "subprocess.run", "evil.Net", "torch.hub.load",
    "torch.load", "torch.nn.attention._fa4.register_flash_attention_fa4", "nncompress.data.mnist.mnist",
    "nncompress.data.cifar.cifar10", "nncompress.data.npz.npz", "torch.nn.Transformer", "torch.nn.Linear",
    "torch.nn.Embedding", "torch.nn.ModuleList", "nncompress.models.PreResNet", "nncompress.models.WideResNet",
    "torch.nn.modules.module.register_module_forward_hook", "torch.optim.SGD", "nncompress.solvers.lc.LC",
    "pathlib.Path.touch", "shutil.rmtree", "L0", "Sparse", "Rows", "CP", "Cores", "CPFactors", "Factors", "GroupL0",
    "NM", "Additive", "Parts", "Uniform", "Plan", "_Net", "..", "", "a.b.c.d",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 7, 40, 255, 10**4, 10**6, 10**9, 10**12, 10**18, 10**40, 0.5, -2.5, 1e308, float("nan"),
    float("inf"),
)  # fmt: skip
DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]
SHAPES = ([10**6, 10**6], [10**5] * 3, [1], [], [0, 10**12], [10**9, 64], [[64]], ["64"], [64, -1], [2**63, 2])
TEXTS = (
    "\ud800", "${oc.env:HOME}", "\x1b[31m", "x" * 5000, "plain float32", "codes int64", "mask int64", "gaps int64",
    "plain load",
)  # fmt: skip
VALUES: tuple[Any, ...] = (*NAMES, *NUMBERS, *SHAPES, *TEXTS, None, True, False, {}, [], DEEP, {"class": "L0"})
NODES = (
    {"_target_": "os.system", "_args_": ["touch struck"]},
    {"_target_": "os.mkdir", "path": "struck"},
    {"_target_": "nncompress.data.mnist.mnist", "root": "struck", "download": True},
    {"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6},
    {"_target_": "torch.nn.Transformer", "num_encoder_layers": 10**9},
    {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "evil.Net"}]},
    {"_target_": "nncompress.models.PreResNet", "depth": 9 * 10**6 + 2},
    {"_target_": "nncompress.models.MLP", "widths": [10**7, 10**7]},
)


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{line}\n")


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    keys = [*tree] if isinstance(tree, dict) else [*range(len(tree))] if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


def mutate(about: dict[str, Any], rng: random.Random) -> None:
    """Change something in the description."""
    holder, key = rng.choice(places(about))
    change = rng.randrange(6)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder[key], int):
        holder[key] = holder[key] * rng.choice((10, 1000, 10**6, 10**9)) + rng.choice((0, 1))
    elif change == 2:
        other, at = rng.choice(places(about))
        holder[key] = json.loads(json.dumps(other[at]))
    elif change == 3:
        about["architecture"] = rng.choice(NODES)
    elif change == 4 and isinstance(holder, dict):
        holder[rng.choice(("extra", "_partial_", "_args_", "_convert_", "class", "_target_"))] = rng.choice(VALUES)
    else:
        holder[key] = rng.choice(VALUES)


def mutated(source: Path, folder: Path, rng: random.Random) -> None:
    """Leave in the folder a copy that is damaged, or changed and signed again."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    kind = rng.randrange(8)
    path = folder / rng.choice(("model.json", "model.safetensors"))
    if kind == 0:
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice((1, 8, 100))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    elif kind == 1:
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    else:
        about = json.loads((folder / "model.json").read_text())
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutate(about, rng)
        about["checksum"] = checksum(folder, {key: value for key, value in about.items() if key != "checksum"})
        (folder / "model.json").write_text(json.dumps(about))


def main() -> None:
    count, seed, *sources = sys.argv[1:]
    warnings.simplefilter("ignore")

    for source in sources:
        load(Path(source))
        load(Path(source), compact=True)
    used = 1024 * next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    rng, outcomes = random.Random(int(seed)), Counter[str]()
    before, folder = {*os.listdir()}, Path("mutated")
    for number in range(int(count)):
        mutated(Path(rng.choice(sources)), folder, rng)
        try:
            load(folder, compact=rng.random() < 0.5)
            outcomes["loaded"] += 1
        except NNCompressError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or "MemoryError" in str(error) or "alloc" in str(error):
                say(f"{number}: {str(error)[:300]!r}")
        except BaseException as error:
            say(f"{number}: {type(error).__name__}: {str(error)[:300]!r}")
            shutil.copytree(folder, f"bad{number}")
    left = {*os.listdir()} - before - {"mutated"}
    if left:
        say(f"left behind: {sorted(left)}")
    say(json.dumps(outcomes))


if __name__ == "__main__":
    main()
