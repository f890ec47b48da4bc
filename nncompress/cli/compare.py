"""`nncompress compare`: in which settings and figures runs differ."""

from __future__ import annotations

import string
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nncompress.cli.parser import Parser
from nncompress.errors import CheckpointError, printable
from nncompress.report.text import UNKNOWN, columns, is_number, number, value_text
from nncompress.results.query import DETAILS, Outline
from nncompress.results.records import is_older, require_run

LETTERS = string.ascii_uppercase


def parser() -> Parser:
    """Return the parser of `compare`."""
    command = Parser(
        "compare",
        "RUN RUN [RUN ...]",
        "Tells the settings (dotted keys of config.yaml) and the figures (keys of summary.json) in which runs differ; "
        "of figures also the difference from the first run, and the ratio to it. What is equal is only counted. A run "
        "that has not ended is compared by its last record, one that is damaged by what is left.",
        notes="examples:\n  nncompress compare outputs/RUN outputs/OTHER\n"
        "  nncompress compare $(nncompress ls model=tt_mlp -n 2 --quiet)\n",
    )
    command.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="the folder of a run")
    return command


def compare(arguments: Sequence[str]) -> int:
    """Write the differences of the runs in the folders that the words name; the exit code.

    Raises:
        ConfigError: wrong usage, or a folder that is not a run's.
        CheckpointError: damage and runs of older versions leave nothing to compare.
    """
    folders = parser().parse(arguments).folders
    if not 2 <= len(folders) <= len(LETTERS):
        parser().error(f"compare needs the folders of 2 to {len(LETTERS)} runs, found {len(folders)}")
    for folder in folders:
        require_run(folder)
    runs = [run for run in map(Outline, folders) if _tells(run)]
    if len(runs) < 2:
        raise CheckpointError(
            f"compare needs 2 or more runs whose settings or figures can be read, found {len(runs)} of "
            f"{len(folders)}; give others"
        )
    sys.stdout.writelines(f"{line}\n" for line in _differences(runs))
    return 0


def _tells(run: Outline) -> bool:
    """Tell whether anything of a run can be compared; figures of an older version may mean something else."""
    return bool(run.settings) or (not is_older(run.folder) and bool(run.figures))


def _differences(runs: Sequence[Outline]) -> Iterator[str]:
    """Tell the runs, the settings that differ, the figures that do, and how many are equal, in lines of text."""
    letters = LETTERS[: len(runs)]
    for letter, run in zip(letters, runs, strict=True):
        yield printable(f"{letter}  {run.folder}: {_standing(run)}")
    settings = [run.settings for run in runs]
    figures = [_own_figures(run, {key for values in settings for key in values}) for run in runs]
    keys = _different(settings)
    yield from _table(["settings", *letters], [[printable(key), *_setting_cells(settings, key)] for key in keys])
    equal = f"{_count(settings) - len(keys)} are equal"
    yield f"{len(keys) or 'none'} of {_count(settings)} settings differ, {equal}{_unknown(letters, settings)}"
    keys = _different(figures)
    shared = [key for key in keys if sum(key in known for known in figures) > 1]
    cells = [[printable(key), *_figure_cells(figures, key)] for key in shared]
    yield from _table(["figures", *_figure_heads(letters)], cells)
    alone = f", {len(keys) - len(shared)} are known of one run alone" if len(shared) < len(keys) else ""
    equal = f"{_count(figures) - len(keys)} are equal{alone}"
    yield f"{len(shared) or 'none'} of {_count(figures)} figures differ, {equal}{_unknown(letters, figures)}"
    details = [key for key in DETAILS if all(key in run.details for run in runs)]
    lists = [key for key in details if _differ([run.details for run in runs], key)]
    if lists:
        yield f"lists that differ too, in the tables of each run: {', '.join(lists)}"


def _standing(run: Outline) -> str:
    """Tell how the run stands, and which record its figures are from when they are not the final ones."""
    step = run.figures.get("steps")
    by = (
        f"compared by its last record, step {value_text(step)}" if step is not None else "there is no record to compare"
    )
    status = f"{run.status['status']}, {run.date}" if run.date else str(run.status["status"])
    without = "no summary" if run.status["status"] == "done" else "not ended"
    return status if run.summary is not None else f"{status}; {without}: {by}"


def _own_figures(run: Outline, settings: Collection[str]) -> dict[str, Any]:
    """Return the figures that are known, without the settings that a summary repeats."""
    known = {key: value for key, value in run.figures.items() if value is not None}
    return {key: known[key] for key in known if key not in settings and key not in run.status}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return the lines of a table behind an empty one; of no rows the empty one alone."""
    yield ""
    if rows:
        yield from columns([head, *rows], [False, *[True] * (len(head) - 1)])


def _count(runs: Sequence[Mapping[str, Any]]) -> int:
    return len({key for values in runs for key in values})


def _unknown(letters: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Name the runs of which nothing is known."""
    names = [letter for letter, values in zip(letters, runs, strict=True) if not values]
    return f"; those of {', '.join(names)} are not known" if names else ""


def _different(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that differ, in their order; a run of which nothing is known differs in nothing."""
    known = [values for values in runs if values]
    return [key for key in dict.fromkeys(key for values in known for key in values) if _differ(known, key)]


def _differ(runs: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Return whether a value is not that of the first run, or is there in some alone."""
    first = runs[0].get(key, UNKNOWN)
    return any(values.get(key, UNKNOWN) != first for values in runs[1:])


def _setting_cells(runs: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the value in each run as text; null is a value of a setting, a key that is not there is not."""
    return ["null" if values.get(key, UNKNOWN) is None else value_text(values.get(key)) for values in runs]


def _figure_heads(letters: str) -> Iterator[str]:
    yield letters[0]
    for letter in letters[1:]:
        yield from (letter, f"{letter} − {letters[0]}", f"{letter} / {letters[0]}")


def _figure_cells(runs: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    first = runs[0].get(key)
    cells = [value_text(first)]
    for values in runs[1:]:
        cells += [value_text(values.get(key)), *_change(values.get(key), first)]
    return cells


def _change(value: Any, first: Any) -> tuple[str, str]:
    """Return difference and ratio of two numbers as text."""
    if not (is_number(value) and is_number(first)):
        return UNKNOWN, UNKNOWN
    difference = value - first
    sign = "+" if difference > 0 else ""
    return f"{sign}{number(difference)}", number(value / first if first else None)
