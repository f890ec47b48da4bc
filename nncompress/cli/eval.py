"""`nncompress eval`: the words around an evaluation, composed by Hydra; its tables on stdout and in a new folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nncompress.config.allow import check, given
from nncompress.errors import ConfigError
from nncompress.experiment.evaluation import composed
from nncompress.files import whole
from nncompress.results.run_folder import stamp

USAGE = """\
usage: nncompress eval ARTEFACT [KEY=VALUE ...]

ARTEFACT is the folder of a finished run, or the folder `model` in it.
Measures accuracy, sizes and latency of the compact network beside the dense one.

  dataset=NAME              other data than those it was trained on; ~dataset: none, so no accuracy
  dataset.KEY=VALUE         other settings of the data
  data_dir=FOLDER           where data sets are (default: $NNCOMPRESS_DATA, else data)
  data.download=false       fetches no data
  device=auto|cpu|cuda|cuda:N   auto: accuracy on the GPU if there is one, latency on both
  precision=auto|float32|float64
  batch_sizes=[1,256]       samples of the forward passes whose latency is measured; []: no latency
  seconds=0.5               least measuring time of each latency
  allow=[MODULE,...]        modules of yours of which the files may name classes
  output=FOLDER             a new folder for tables and evaluation.json (default: outputs/evaluations/TIME)
  seed=0                    of the random samples of the latency
"""


EVALUATION = "evaluation.json"


def evaluate(arguments: Sequence[str]) -> int:
    """Measure the network the words name, print the tables, write them with `evaluation.json`; the exit code.

    Raises:
        ConfigError: a word is wrong, the data asked for do not fit, the output folder is taken.
        NNCompressError: there is no network, the data asked for are not there.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    path, words = _read(arguments)
    from nncompress.artefact.model import DESCRIPTION, open_artefact
    from nncompress.experiment import evaluation
    from nncompress.files import write_json
    from nncompress.report.evaluation import evaluation_tables
    from nncompress.report.tables import markdown, write_table

    allow = given(words)
    artefact = open_artefact(path, allow)
    data = artefact.description.get("data")
    if not _chooses_data(words):
        check({"data": data}, allow, f"{artefact.folder / DESCRIPTION}")
    cfg = composed(words, data)
    folder = Path(cfg.output or f"outputs/evaluations/{stamp()}")
    with whole(folder, "output=FOLDER") as made:
        found = evaluation.measure(artefact, cfg, required=_asks_for_data(words))
        tables = evaluation_tables(found)
        for table in tables:
            write_table(table, made / "tables")
        write_json(made / EVALUATION, found)
    for table in tables:
        sys.stdout.write(f"{markdown(table)}\n")
    sys.stdout.write(f"wrote {folder / EVALUATION} and {folder / 'tables'}\n")
    return 0


def _read(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The artefact and the overrides."""
    words = [word for word in arguments if _overrides(word)]
    paths = [word for word in arguments if not _overrides(word)]
    flags = [word for word in paths if word.startswith("-")]
    if flags or len(paths) != 1:
        none = f"no folder among {', '.join(words)}" if words else "none"
        found = f"found {flags[0]}" if flags else f"found {' and '.join(paths) or none}"
        raise ConfigError(
            f"eval needs one folder of a run and then KEY=VALUE, {found}: nncompress eval RUN [KEY=VALUE]"
        )
    return Path(paths[0]), words


def _chooses_data(words: Sequence[str]) -> bool:
    """Whether the words take another data set than that of the artefact."""
    return any(re.match(r"\+*dataset(\._target_)?=|~dataset$", word) for word in words)


def _overrides(word: str) -> bool:
    """Whether a word changes the configuration; a folder's name may look like that too."""
    return not os.path.exists(word) and ("=" in word or word.startswith("~"))


def _asks_for_data(words: Sequence[str]) -> bool:
    """Whether the words say anything of the data, so that it is wrong if there are none."""
    return any(re.match(r"\+*(dataset|data|data_dir)[.=]", word) for word in words)
