"""`nncompress ls`: the runs below folders, those that are asked for, in an order that is asked for."""

from __future__ import annotations

import csv
import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nncompress.cli.parser import Parser
from nncompress.errors import ConfigError, printable
from nncompress.files import finite
from nncompress.report.text import columns, harmless_cell, is_number, value_text
from nncompress.results.index import indexed
from nncompress.results.query import Filter, Outline, absent, as_number, read_filter, require_comparable, require_key
from nncompress.results.records import SETTINGS, is_older, run_folders

DEFAULT = "outputs"
COLUMNS = (
    "folder", "status", "solver", "model", "dataset", "compression", "seed", "accuracy/test", "ratio/params",
    "ratio/bits", "seconds/total", "date",
)  # fmt: skip
STATUSES = ("done", "running", "failed", "killed", "interrupted", "diverged", "unsupported", "pruned")
EXPLAINED = """\
FILTER is KEY=VALUE, KEY!=VALUE, KEY>VALUE, KEY>=VALUE, KEY<VALUE or KEY<=VALUE. In the shell, < and > need quotes. KEY
is a column, a key of status.json or summary.json, or a dotted key of config.yaml; the keys that are used are shown too.
VALUE may be several with commas between, hold * and ?, or be null. Figures of a run that has not ended are those of its
last record. date: when it ended, else when it began.

examples:
  nncompress ls status=failed,killed
  nncompress ls solver=nnbcd 'accuracy/test>0.95' 'compression.rank<=16' --sort ratio/bits
  nncompress ls outputs/sweeps/SWEEP --sort accuracy/test --reverse -n 10
  nncompress compare $(nncompress ls model=tt_mlp -n 2 --quiet)
"""


def parser() -> Parser:
    """Return the parser of `ls`."""
    command = Parser(
        "ls",
        "[DIR ...] [FILTER ...] [--sort KEY] [--reverse] [-n N] [--show KEY,KEY] [--json | --csv | --quiet]",
        "Lists every run below the folders, the newest first; with filters those of which all of them hold.",
        keys={f"status={'|'.join(STATUSES)}": "killed: its process is gone, and it did not tell how it ended"},
        names={"KEY": COLUMNS, "FILTER": [f"{key}=" for key in COLUMNS]},
        notes=EXPLAINED,
    )
    command.add_argument("words", nargs="*", metavar="DIR|FILTER", help=f"folders (default: {DEFAULT}), and filters")
    command.add_argument("--sort", metavar="KEY", help="small values first, runs without the value last")
    command.add_argument("--reverse", "-r", action="store_true", help="large values first, or the oldest run")
    command.add_argument("-n", type=int, metavar="N", help="the first N runs alone")
    command.add_argument("--show", default="", metavar="KEY,KEY", help="more columns")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list, values as they are on disk")
    form.add_argument("--csv", action="store_true", help="CSV, text so written that no spreadsheet obeys it")
    form.add_argument("--quiet", "-q", action="store_true", help="folders alone, for other commands")
    return command


def list_runs(arguments: Sequence[str]) -> int:
    """Write the runs that the words choose; the exit code.

    Raises:
        ConfigError: wrong usage, a folder that does not exist, or a key that no run has.
    """
    words = parser().parse(arguments)
    if words.n is not None and words.n < 1:
        raise ConfigError(f"-n must be a number of runs, at least 1, found {words.n}")
    folders, filters = _folders_and_filters(words.words)
    paths = run_folders(folders)
    older = {path for path in paths if is_older(path)}
    with indexed(folders, [path for path in paths if path not in older]) as runs:
        _write(words, folders, filters, runs)
    if older:
        (sys.stderr if words.quiet or words.json or words.csv else sys.stdout).write(
            f"left out: {len(older)} run{'s' * (len(older) > 1)} that an older version of nncompress wrote, without "
            f"{SETTINGS}; train again what is still needed\n"
        )
    return 0


def _write(words: Namespace, folders: Sequence[Path], filters: Sequence[Filter], runs: Sequence[Outline]) -> None:
    """Write those of the runs that are asked for, in the form that is."""
    more = [key for key in (words.sort, *words.show.split(",")) if key]
    extra = list(dict.fromkeys([*(filter_.key for filter_ in filters), *more]))
    for key in extra:
        require_key(key, runs)
    for filter_ in filters:
        require_comparable(filter_, runs)
    chosen = [run for run in runs if all(filter_.accepts(run) for filter_ in filters)]
    shown = _in_order(chosen, words.sort, words.reverse)[: words.n]
    keys = list(dict.fromkeys((*COLUMNS[:-1], *extra, COLUMNS[-1])))
    if words.quiet:
        _write_folders(shown)
    elif words.json:
        sys.stdout.write(json.dumps(finite([_row(run, keys) for run in shown]), indent=1) + "\n")
    elif words.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerows([_cell(value) for value in row] for row in [keys, *(_row(run, keys).values() for run in shown)])
    else:
        sys.stdout.writelines(f"{line}\n" for line in _table(shown, keys))
        sys.stdout.write(f"{_summary(shown, len(runs), folders)}\n")


def _write_folders(runs: Sequence[Outline]) -> None:
    """Write the folders a line each: their very names for another command, and what people can read for people."""
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        sys.stdout.writelines(f"{printable(str(run.folder))}\n" for run in runs)
    else:
        sys.stdout.buffer.writelines(os.fsencode(run.folder) + b"\n" for run in runs)


def _folders_and_filters(words: Sequence[str]) -> tuple[list[Path], list[Filter]]:
    """Return folders and filters; a folder may have a sign in its name."""
    folders: list[Path] = []
    filters: list[Filter] = []
    for word in words:
        filter_ = None if Path(word).is_dir() else read_filter(word)
        if filter_ is not None:
            filters.append(filter_)
        elif Path(word).is_dir():
            folders.append(Path(word))
        else:
            raise ConfigError(f"'{word}' is no folder, and no filter: those are KEY=VALUE, or 'KEY>VALUE' in quotes")
    return folders or [Path(DEFAULT)], filters


def _in_order(runs: Sequence[Outline], key: str | None, reverse: bool) -> list[Outline]:
    """Sort runs by the date, the newest first, or by a key: numbers before text, runs without the value last."""
    if key is None:
        return sorted(runs, key=lambda run: run.date or "", reverse=not reverse)
    known = [run for run in runs if not absent(run.get(key))]
    unknown = [run for run in runs if absent(run.get(key))]
    return sorted(known, key=lambda run: _rank(run.get(key)), reverse=reverse) + unknown


def _rank(value: Any) -> tuple[bool, float, str]:
    size = as_number(value)
    return size is None, size or 0.0, str(value)


def _row(run: Outline, keys: Sequence[str]) -> dict[str, Any]:
    return {key: run.get(key) for key in keys}


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else harmless_cell(printable(str(value)))


def _table(runs: Sequence[Outline], keys: Sequence[str]) -> Iterator[str]:
    """Return the lines of a table of the columns in which anything is known."""
    rows = [_row(run, keys) for run in runs]
    kept = [key for key in keys if any(not absent(row[key]) for row in rows)]
    right = [all(absent(row[key]) or is_number(row[key]) for row in rows) for key in kept]
    return columns([kept, *([value_text(row[key]) for key in kept] for row in rows)], right) if kept else iter(())


def _summary(runs: Sequence[Outline], of: int, folders: Sequence[Path]) -> str:
    """Tell how many runs are shown of how many, and how they ended."""
    counts = Counter(run.status["status"] for run in runs)
    ends = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    count = f"{len(runs)} of {of} runs" if len(runs) < of else f"{of} run{'s' if of != 1 else ''}"
    return printable(f"{count} below {', '.join(map(str, folders))}" + (f": {ends}" if ends else ""))
