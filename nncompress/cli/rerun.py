"""`nncompress rerun RUN`: the configuration of a run anew in a new folder, with changes, compared with that run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nncompress import parallel
from nncompress.cli.parser import Parser
from nncompress.config.options import OF_RUN
from nncompress.errors import ConfigError
from nncompress.files import read_json
from nncompress.results.records import SUMMARY

log = logging.getLogger(__name__)

KEYS = {
    "seed=N": "and any other key of its configuration",
    "hydra.run.dir=FOLDER": "where the run goes (default: outputs/SOLVER-MODEL-DATASET/TIME)",
    "allow=[MODULE,...]": "modules of yours of which RUN may name classes",
}
OF_TRAIN = ("resume=", "sweep.", "experiment=", "scale=", "launcher=")
"""How words begin that are about several runs, or about how one is put together."""
FIGURES = ("accuracy/test", "accuracy/train", "objective/final", "ratio/params", "ratio/bits", "ratio/macs")
"""The figures whose difference is told first."""
UNEQUAL = ("seconds", "memory")
"""How the keys of a summary begin that are of a run, not of its result."""


def parser() -> Parser:
    """Return the parser of `rerun`."""
    command = Parser(
        "rerun",
        "RUN [GROUP=OPTION ...] [KEY=VALUE ...]",
        "Runs the configuration in the folder RUN anew in a new folder, with changes, and tells how its final figures "
        "differ from those of that run.",
        keys=KEYS,
        groups=OF_RUN,
        notes="examples:\n  nncompress rerun outputs/RUN\n  nncompress rerun outputs/RUN seed=1 solver.num_steps=200\n"
        "  nncompress rerun outputs/RUN compression=l0 compression.keep=0.3\n",
    )
    command.add_argument("words", nargs="*", metavar="RUN", help="the folder of a run, or of a job of a sweep")
    return command


def rerun(arguments: Sequence[str]) -> int:
    """Run what the words name; the exit code.

    Raises:
        ConfigError: a word is wrong, or RUN names a class that is not allowed.
        NNCompressError: RUN has no configuration, or what a run raises.
    """
    folder, overrides = parser().run_and_overrides(parser().parse(arguments).words)
    for word in overrides:
        if word.startswith(OF_TRAIN):
            raise ConfigError(f"rerun runs the configuration of one run, found {word}; give it to nncompress train")
    from nncompress.sweeps import jobs
    from nncompress.sweeps.launch import under_hydra
    from nncompress.sweeps.saved import rerun_task

    old = folder.absolute()

    def run(cfg: Any, new: Path) -> None:
        jobs.run_single(cfg, new)
        if parallel.first():
            for line in differences(old, new):
                log.info("%s", line)

    return under_hydra(lambda: rerun_task(old, overrides, run))


def differences(old: Path, new: Path) -> Iterator[str]:
    """Tell what sets the summary in the folder `new` apart from that in `old`, a line for each figure."""
    from nncompress.sweeps.jobs import short

    before, after = (read_json(folder / SUMMARY) for folder in (old, new))
    if before is None or after is None:
        yield f"{short(old)} has no {SUMMARY}, so that there is nothing to compare"
        return
    keys = [key for key in {**before, **after} if not key.startswith(UNEQUAL)]
    unequal = [key for key in keys if before.get(key) != after.get(key)]
    if not unequal:
        yield f"the final figures are equal to those of {short(old)}"
        return
    yield f"the final figures differ from those of {short(old)}:"
    for key in FIGURES:
        if key in unequal:
            yield f"  {key} {_text(after.get(key))}, there {_text(before.get(key))}"
    others = [key for key in unequal if key not in FIGURES]
    if others:
        yield f"  and {', '.join(others)}"


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
