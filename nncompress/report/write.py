"""Rebuild the tables and plots of runs and sweeps from what is on disk."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nncompress.report.collect import (
    aggregate,
    choice,
    cleaned,
    differences,
    failures,
    group_label,
    setting_of,
    summaries,
)
from nncompress.report.fresh import PAGE, digest_of, digest_of_sweep, mark, write_part
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
from nncompress.results.records import RECORDS, SUMMARY, Run, read_run, read_runs, run_folders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepReport:
    """What a sweep's report wrote, how many of its jobs are done, and those that are not (`collect.failures`)."""

    paths: list[Path]
    done: int
    failed: pd.DataFrame


def write_run_report(folder: Path) -> list[Path]:
    """Write a run's tables/ and plots/, nothing when it ended before its first record; return the files.

    Raises:
        ConfigError: the folder is not a run's.
        CheckpointError: another version wrote it.
    """
    digest = digest_of(folder)
    return write_run(read_run(folder), digest)


def write_run(run: Run, digest: str, html: bool = False) -> list[Path]:
    """Write a run's tables/ and plots/, with `html` a page too; return the files.

    digest: of the files that the run was read from (`fresh.digest_of`).
    """
    run, paths, tables = cleaned(run), list[Path](), list[Table]()
    if run.rows.empty:
        lost = run.summary is not None or run.status["status"] == "done" or bool(run.status["step"])
        why = f"no record is left in {RECORDS}" if lost else "the run ended before its first record"
        log.warning("%s: no tables or plots, %s.", run.folder, why)
    else:
        if run.status["status"] == "done" and run.summary is None:
            log.warning("%s: %s is missing, the figures are those of the last record.", run.folder, SUMMARY)
        more, figures = run_one_shot(run)
        tables = [*run_tables(run), *more]
        paths += [path for table in tables for path in write_table(table, run.folder / "tables")]
        plots = run.folder / "plots"
        paths += run_plots(run, plots) + save_sweep_plots(figures, plots)
    if html:
        paths.append(_write_page(run.folder, run_page(run, tables, _plots(paths))))
    mark(run.folder, digest, paths)
    return paths


def write_sweep_report(folder: Path) -> SweepReport:
    """Write a sweep's tables/ and plots/: means over seeds, every job's summary, the jobs that are not done.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: other versions wrote all of them.
    """
    digest = digest_of_sweep(folder, {run: digest_of(run) for run in run_folders([folder], required=True)})
    runs = read_runs([folder])
    paths = write_sweep(folder, runs, digest)
    return SweepReport(paths, sum(run.status["status"] == "done" for run in runs), failures(list(map(cleaned, runs))))


def write_report_of(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write the tables/ and plots/ of some runs of the sweep in `folder`; return the files, none without a run."""
    return _write_sweep(folder, list(map(cleaned, runs)))[1] if runs else []


def write_sweep(folder: Path, runs: Sequence[Run], digest: str, html: bool = False) -> list[Path]:
    """Write a sweep's tables/ and plots/, with `html` a page too; return the files.

    digest: of what the runs were read from (`fresh.digest_of_sweep`).
    """
    runs = list(map(cleaned, runs))
    tables, paths = _write_sweep(folder, runs)
    if html:
        paths.append(_write_page(folder, sweep_page(folder, runs, tables, _plots(paths))))
    mark(folder, digest, paths)
    return paths


def _write_page(folder: Path, page: str) -> Path:
    return write_part(folder / PAGE, page.encode())


def _write_sweep(folder: Path, runs: Sequence[Run]) -> tuple[list[Table], list[Path]]:
    """Return the tables of a sweep and the files of its tables and plots."""
    keys, title, measures = differences(runs), _common_title(runs), measures_of(runs)
    done, failed = summaries(runs), failures(runs)
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


def _plots(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.parent.name == "plots"]


def _common_title(runs: Sequence[Run]) -> str:
    """Return solver-model-dataset-compression, with every option for a group in which the runs differ."""
    options = [dict.fromkeys(choice(run, group) for run in runs if choice(run, group)) for group in GROUPS]
    return "-".join("/".join(each) if len(each) <= 3 else "several" for each in options if each) or "several runs"
