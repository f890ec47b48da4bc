"""`nncompress eval`: the words around an evaluation, composed by Hydra; its tables on stdout and in a new folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nncompress.cli.parser import Parser
from nncompress.errors import printable

KEYS = {
    "dataset=NAME": "other data than those it was trained on; ~dataset: none, so no accuracy",
    "dataset.KEY=VALUE": "other settings of the data",
    "data_dir=FOLDER": "where data sets are (default: $NNCOMPRESS_DATA, else data)",
    "data.download=true|false": "false: fetches no data",
    "device=auto|cpu|cuda|cuda:N": "auto: accuracy on the GPU if there is one, latency on both",
    "precision=auto|float32|float64": "with which numbers it computes (default: float32)",
    "batch_sizes=[1,256]": "samples of the forward passes whose latency is measured; []: no latency",
    "seconds=0.5": "least measuring time of each latency",
    "allow=[MODULE,...]": "modules of yours of which the files may name classes",
    "output=FOLDER": "a new folder for tables and evaluation.json (default: outputs/evaluations/TIME)",
    "seed=0": "of the random samples of the latency",
}
EVALUATION = "evaluation.json"
CHOOSES_DATA = re.compile(r"\+*dataset(\._target_)?=|~dataset$")
"""The words that take another data set than that of the artefact."""
NEEDS_DATA = re.compile(r"\+*(dataset|data|data_dir)[.=]")
"""The words that say anything of the data, so that it is wrong if there are none."""


def parser() -> Parser:
    """Return the parser of `eval`."""
    command = Parser(
        "eval",
        "RUN [KEY=VALUE ...]",
        "Measures accuracy, sizes and latency of the compact network of a run beside the dense one.",
        keys=KEYS,
        groups=("dataset",),
        notes="examples:\n  nncompress eval outputs/RUN batch_sizes=[1,32]\n"
        "  nncompress eval outputs/RUN dataset=digits dataset.test_size=50 device=cpu\n",
    )
    command.add_argument(
        "words", nargs="*", metavar="RUN", help="the folder of a finished run, or the folder `model` in it"
    )
    return command


def evaluate(arguments: Sequence[str]) -> int:
    """Measure the network the words name, print the tables, write them with `evaluation.json`; the exit code.

    Raises:
        ConfigError: a word is wrong, the data it chooses do not fit, the output folder is taken.
        NNCompressError: there is no network, the data that the words choose are not there.
    """
    path, overrides = parser().run_and_overrides(parser().parse(arguments).words)
    from nncompress.artefact.files import DESCRIPTION
    from nncompress.artefact.model import open_artefact
    from nncompress.config.allow import allowed_modules, check, with_own_places
    from nncompress.config.evaluation import read_settings
    from nncompress.experiment import evaluation
    from nncompress.files import create, write_json
    from nncompress.report.evaluation import evaluation_tables
    from nncompress.report.tables import markdown, write_table
    from nncompress.results.run_folder import stamp

    allow = allowed_modules(overrides)
    artefact = open_artefact(path, allow)
    data = with_own_places(artefact.description.get("data"))
    if not any(CHOOSES_DATA.match(word) for word in overrides):
        check({"dataset": data}, allow, f"{artefact.folder / DESCRIPTION}")
    settings = read_settings(overrides, data)
    folder = Path(settings.output or f"outputs/evaluations/{stamp()}")
    with create(folder, "output=FOLDER") as draft:
        figures = evaluation.measure(artefact, settings, required=any(NEEDS_DATA.match(word) for word in overrides))
        tables = evaluation_tables(figures)
        for table in tables:
            write_table(table, draft / "tables")
        write_json(draft / EVALUATION, figures)
    for table in tables:
        sys.stdout.write(f"{markdown(table)}\n")
    sys.stdout.write(printable(f"wrote {folder / EVALUATION} and {folder / 'tables'}") + "\n")
    return 0
