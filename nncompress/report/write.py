"""Rebuild the tables and plots of runs and sweeps from what is on disk."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nncompress.files import write_text
from nncompress.report.collect import aggregate, choice, differences, failures, group_label, setting_of, summaries
from nncompress.report.html.page import run_page, sweep_page
from nncompress.report.run.plots import run_plots
from nncompress.report.run.tables import run_tables
from nncompress.report.sweep.one_shot import run_one_shot, sweep_one_shot
from nncompress.report.sweep.plots import accuracy_ratio_plot, objectives_plot, save_sweep_plots
from nncompress.report.sweep.searches import search_plot, search_table, trials_of
from nncompress.report.sweep.studies import courses, outcomes, sensitivity, spread
from nncompress.report.sweep.study_plots import courses_plot, sensitivity_plot, spread_plot
from nncompress.report.sweep.tables import measures_of, sensitivity_table, sweep_table, write_frame
from nncompress.report.tables import Table, write_table
from nncompress.results.query import GROUPS
from nncompress.results.records import SUMMARY, Run, is_run, read_run, read_runs

log = logging.getLogger(__name__)

PAGE = "report.html"
LAST = Path("tables") / "accuracy.tex"
"""The file of a run's report that is written last."""


@dataclass(frozen=True)
class SweepReport:
    """What a sweep's report wrote, how many of its jobs are done, and those that are not (`collect.failures`)."""

    paths: list[Path]
    done: int
    failed: pd.DataFrame


def report(folders: Iterable[Path], html: bool = False) -> list[Path]:
    """Rebuild the report of each folder: a run's own; below any other folder, that of each run and their aggregate.

    With `html` also write one page, report.html, into each folder. Returns the files.

    Raises:
        ConfigError: a folder does not exist or holds no run.
    """
    paths: list[Path] = []
    for folder in map(Path, folders):
        if is_run(folder):
            run = read_run(folder)
            tables, written = _write_run(run)
            page = run_page(run, tables, _plots(written)) if html else None
        else:
            runs = read_runs([folder])
            for run in runs:
                paths += _write_run(run)[1]
            tables, written = _write_sweep(folder, runs, summaries(runs), failures(runs))
            page = sweep_page(folder, runs, tables, _plots(written)) if html else None
        paths += written
        if page is not None:
            write_text(folder / PAGE, page)
            paths.append(folder / PAGE)
    return paths


def write_run_report(folder: Path) -> list[Path]:
    """Write a run's tables/ and plots/, nothing when it ended before its first record; return the files.

    Raises:
        ConfigError: the folder is not a run's.
    """
    return _write_run(read_run(folder))[1]


def is_reported(folder: Path) -> bool:
    """Tell whether a run's tables and plots are there, whole and of its present summary."""
    last, summary = folder / LAST, folder / SUMMARY
    return last.is_file() and (not summary.is_file() or last.stat().st_mtime_ns >= summary.stat().st_mtime_ns)


def write_report_of(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write the tables/ and plots/ of some runs of the sweep in `folder`; return the files, none without a run."""
    return _write_sweep(folder, runs, summaries(runs), failures(runs))[1] if runs else []


def write_sweep_report(folder: Path) -> SweepReport:
    """Write a sweep's tables/ and plots/: means over seeds, every job's summary, the jobs that are not done.

    Raises:
        ConfigError: the folder holds no run.
    """
    runs = read_runs([folder])
    done, failed = summaries(runs), failures(runs)
    return SweepReport(_write_sweep(Path(folder), runs, done, failed)[1], len(done), failed)


def _write_sweep(
    folder: Path, runs: Sequence[Run], done: pd.DataFrame, failed: pd.DataFrame
) -> tuple[list[Table], list[Path]]:
    """Return the tables of a sweep and the files of its tables and plots."""
    keys, title, measures = differences(runs), _common_title(runs), measures_of(runs)
    groups = aggregate(done, keys)
    tables, studies = _studies(runs, keys, title)
    search = trials_of(folder)
    if search is not None:
        tables.insert(0, search_table(*search, title))
        studies["search"] = search_plot(*search, title)
    tables.insert(0, sweep_table(groups, keys, failed, title, measures))
    paths = [path for table in tables for path in write_table(table, folder / "tables")]
    paths.append(write_frame(done, folder / "tables" / "runs.csv"))
    paths.append(write_frame(failed, folder / "tables" / "failures.csv"))
    figures = {
        "accuracy_ratio": accuracy_ratio_plot(groups, keys, title),
        "accuracy_bits": accuracy_ratio_plot(groups, keys, title, of="bits"),
        "objective": objectives_plot([(group_label(setting_of(run, keys), keys), run.rows) for run in runs], title),
    }
    paths += save_sweep_plots(figures | studies, folder / "plots")
    # a page has a table of the jobs that are not done
    tables[0] = sweep_table(groups, keys, failed.iloc[:0], title, measures)
    return tables, paths


def _studies(runs: Sequence[Run], keys: Sequence[str], title: str) -> tuple[list[Table], dict[str, Figure | None]]:
    """Make the tables and plots that depend on what the sweep varied."""
    ends = outcomes(runs, keys)
    grid, points, course = sensitivity(ends, keys), spread(ends, keys), courses(runs, keys)
    step = "step (sweep or epoch)" if "solver" in keys else "step K"
    figures = {
        "sensitivity": None if grid is None else sensitivity_plot(grid, title),
        "spread": None if points is None else spread_plot(points, title),
        "curves": None if course is None else courses_plot(course, title, step),
    }
    tables, one_shot = sweep_one_shot(runs, keys, title)
    return tables if grid is None else [sensitivity_table(grid, title), *tables], figures | one_shot


def _write_run(run: Run) -> tuple[list[Table], list[Path]]:
    """Return the tables of a run and the files of its tables and plots."""
    if run.rows.empty:
        log.warning("%s: no tables or plots, the run ended before its first record.", run.folder)
        return [], []
    more, figures = run_one_shot(run)
    tables = [*run_tables(run), *more]
    plots = run_plots(run, run.folder / "plots") + save_sweep_plots(figures, run.folder / "plots")
    written = [write_table(table, run.folder / "tables") for table in reversed(tables)]  # LAST at last: `is_reported`
    return tables, [path for paths in reversed(written) for path in paths] + plots


def _plots(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.parent.name == "plots"]


def _common_title(runs: Sequence[Run]) -> str:
    """Return solver-model-dataset-compression, with every option for a group in which the runs differ."""
    options = [dict.fromkeys(choice(run, group) for run in runs if choice(run, group)) for group in GROUPS]
    return "-".join("/".join(each) if len(each) <= 3 else "several" for each in options if each) or "several runs"
