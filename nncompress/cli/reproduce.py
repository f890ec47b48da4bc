"""`nncompress reproduce`: the words of the command."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from nncompress.cli.parser import Parser
from nncompress.config.options import groups
from nncompress.config.schema import FREE, is_below
from nncompress.errors import ConfigError
from nncompress.reproduce.protocol import PAPERS, SCALES

log = logging.getLogger(__name__)

OUT = Path("outputs/reproduce")
CHANGEABLE = ("seed", *FREE)
"""Keys that change no protocol."""
RUNNING = ("sweep.retries", "sweep.on_error", "hydra.launcher.")
"""How the keys begin that say how sweeps are run."""
KEYS = {
    "seed=0,1,2": "the seeds of all runs",
    "device=auto|cpu|cuda|cuda:N": "where they are computed",
    "data_dir=FOLDER": "where data sets are (default: $NNCOMPRESS_DATA, else data)",
    "data.download=true|false": "false: nothing is fetched",
    "reference_dir=FOLDER": "where references are kept",
    "checkpoint_every=N": "steps between two checkpoints",
    "sweep.retries=N": "how often a job that failed is tried again",
    "sweep.on_error=continue|stop": "what comes after a job that failed",
    "hydra.launcher.KEY=VALUE": "settings of the launcher",
}


def parser() -> Parser:
    """Return the parser of `reproduce`."""
    command = Parser(
        "reproduce",
        "PAPER ... [--scale smoke|cpu|gpu] [OPTION ...] [KEY=VALUE ...]",
        "Runs the experiments of papers as sweeps, and writes their figures beside the published ones. The same "
        "command goes on where it was stopped.",
        keys=KEYS,
        names={"PAPER": (*PAPERS, "all")},
        notes="examples:\n  nncompress reproduce nnbcd --scale smoke\n  nncompress reproduce all --plan\n",
    )
    papers = f"{', '.join(PAPERS)} or all; cross: the main solvers with the main compressions"
    command.add_argument("words", nargs="*", metavar="PAPER", help=papers)
    command.add_argument(
        "--scale", choices=SCALES, default="cpu",
        help="smoke: minutes, on the embedded digits; cpu (default): hours on two cores, on real data; gpu: the "
        "published protocols",
    )  # fmt: skip
    command.add_argument("--study", default="", metavar="NAME,NAME", help="these studies alone")
    command.add_argument("--launcher", choices=groups()["launcher"], help="of the sweeps (default: local)")
    command.add_argument(
        "--plan", action="store_true",
        help="shows what would be run, how long it may take, and what data are missing; runs no more than a step of "
        "each study, to time it, and keeps nothing",
    )  # fmt: skip
    command.add_argument("--tables", action="store_true", help="writes the tables and plots anew; runs nothing")
    command.add_argument(
        "--out", type=Path, default=OUT, metavar="FOLDER", help=f"where everything goes (default: {OUT})"
    )
    return command


def reproduce(arguments: Sequence[str]) -> int:
    """Run what the words ask for; 0, 1 when a job failed or data are missing, 130 or 143 when it was stopped.

    Raises:
        ConfigError: a word is wrong.
    """
    values = parser().parse(arguments)
    overrides = [word for word in values.words if "=" in word]
    papers = [word for word in values.words if "=" not in word]
    _check(papers, overrides)
    from nncompress.reproduce import run

    launcher = [f"launcher={values.launcher}"] if values.launcher else []
    request = run.Request(
        papers=list(PAPERS) if "all" in papers else list(dict.fromkeys(papers)),
        scale=values.scale,
        studies=[name for name in values.study.split(",") if name],
        launcher=launcher + [word for word in overrides if _is_running(word)],
        plan=values.plan,
        tables=values.tables,
        out=values.out,
        words=[word for word in overrides if not _is_running(word)],
    )
    try:
        code = run.run(request)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:  # a signal while a run was measured
        code = int(stop.code or 0)
    if code >= 128:
        log.error("stopped by a signal; go on with: nncompress reproduce %s", shlex.join(arguments))
    return code


def _check(papers: Sequence[str], overrides: Sequence[str]) -> None:
    wrong = [paper for paper in papers if paper not in (*PAPERS, "all")]
    if wrong or not papers:
        parser().error(
            f"reproduce needs one or more of {', '.join(PAPERS)} or all, found {wrong[0] if wrong else 'none'}"
        )
    for word in overrides:
        if not is_below(word.partition("=")[0], CHANGEABLE) and not _is_running(word):
            raise ConfigError(
                f"{word.partition('=')[0]} would change what is reproduced, found {word}; give only "
                f"{', '.join(CHANGEABLE)}, sweep.retries, sweep.on_error and hydra.launcher.*, or run the experiment "
                "with nncompress train"
            )


def _is_running(word: str) -> bool:
    """Return whether a word says how sweeps are run."""
    return word.lstrip("+").startswith(RUNNING)
