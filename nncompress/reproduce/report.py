"""A paper's experiments beside what it published: the tables, plots and page of what `nncompress reproduce` has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nncompress.errors import ConfigError
from nncompress.files import read_json, write_text
from nncompress.report.html.page import reproduction_page
from nncompress.report.style import COLOURS, STYLE, new_figure
from nncompress.report.sweep.plots import save_sweep_plots
from nncompress.report.tables import Table, markdown, write_table
from nncompress.report.write import write_report_of
from nncompress.reproduce.cross import cross_frame, cross_plots, cross_tables
from nncompress.reproduce.protocol import PAPERS, REPRODUCTION, SCALES, Protocol, read_protocol, read_published
from nncompress.reproduce.rows import Reproduction, comparison
from nncompress.reproduce.tables import reproduction_tables
from nncompress.results.records import Run, is_run, read_run
from nncompress.results.sweep_folder import SWEEP, read_manifest

PAGE, RESULTS = "report.html", "results.md"
MOST = 40
"""Figures of one metric in a plot; more are in the table alone."""
RUN_PLOTS = ("rate", "channels", "weights")
"""Plots of a study's first run that the page shows beside those of its sweep."""


def published_plot(figures: pd.DataFrame, title: str) -> Figure | None:
    """Draw every figure in % that is both published and ours, a panel for each metric; None when there is none.

    Args:
        figures: `row`, `metric`, `published`, `ours`, `std` and `verdict` of each figure.
        title: of what they are.
    """
    if "ours" not in figures:
        return None
    both = figures[figures["ours"].notna() & figures["published"].notna() & figures["metric"].str.endswith("(%)")]
    if both.empty:
        return None
    panels = {str(metric): rows.head(MOST) for metric, rows in both.groupby("metric", sort=False)}
    lines = sum(map(len, panels.values()))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(10, 1.8 + 0.3 * lines + 0.6 * len(panels), f"{title}: published and ours")
        ratios = [len(rows) + 1 for rows in panels.values()]
        drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)
        for axes, (metric, rows) in zip(drawn[:, 0], panels.items(), strict=True):
            _panel(axes, metric, rows)
        handles, labels = drawn[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Axes, metric: str, rows: pd.DataFrame) -> None:
    places = list(range(len(rows), 0, -1))
    published, ours = rows["published"].astype(float), rows["ours"].astype(float)
    axes.hlines(places, published, ours, color="0.7", linewidth=1.2, zorder=1)
    axes.plot(published, places, "o", color="black", markerfacecolor="white", label="published", zorder=3)
    axes.errorbar(
        ours, places, xerr=rows["std"].astype(float).fillna(0.0), fmt="o", color=COLOURS[0], capsize=3, zorder=2,
        label="ours (mean, standard deviation over seeds)",
    )  # fmt: skip
    axes.set_yticks(places, [str(row) for row in rows["row"]], fontsize=8)
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlabel(metric)


def record_of(folder: Path) -> dict[str, Any]:
    """Return what is on record of the experiments in `folder`: the paper, the scale, and each study as it was planned.

    Raises:
        ConfigError: there is no record, or it is damaged.
    """
    record: dict[str, Any] = read_json(folder / REPRODUCTION) or {}
    studies = record.get("studies")
    whole = isinstance(studies, dict) and all(isinstance(each, dict) for each in studies.values())
    if not whole or record.get("paper") not in PAPERS or record.get("scale") not in SCALES:
        raise ConfigError(
            f"{folder / REPRODUCTION} must name a paper, a scale and its studies, found others; delete it and give "
            "`nncompress reproduce` again, which keeps the runs"
        )
    return record


def write_reproduction(folder: Path) -> list[Path]:
    """Write the report of each study in `folder`, then tables/, plots/, report.html and results.md of all.

    Returns the files.

    Raises:
        ConfigError: a record is damaged.
    """
    record = record_of(folder)
    protocol = read_protocol(record["paper"], record["scale"])
    runs = {study.name: _runs(folder / study.name, record["studies"].get(study.name)) for study in protocol.studies}
    of_studies = [path for name, each in runs.items() for path in write_report_of(folder / name, each)]
    reproduction, published = Reproduction(protocol, runs, record), read_published(protocol.paper)
    crossed = cross_frame([run for study in protocol.studies if study.latency for run in runs[study.name]])
    figures = comparison(reproduction, published)
    tables = reproduction_tables(reproduction, published, figures, list(cross_tables(crossed, protocol.title)))
    paths = [path for table in tables for path in write_table(table, folder / "tables")]
    drawn = {"published": published_plot(figures, protocol.title)} | cross_plots(crossed)
    paths += save_sweep_plots(drawn, folder / "plots")
    for old in {*(folder / "tables").glob("*"), *(folder / "plots").glob("*")} - {*paths}:
        old.unlink(missing_ok=True)
    plots = [path for path in paths if path.parent.name == "plots"]
    plots += [path for study in protocol.studies for path in _plots_of(folder / study.name, runs[study.name])]
    title = f"{protocol.title}: scale {protocol.scale}"
    page = reproduction_page(title, _command(protocol), tables, plots, shut="not_measured")
    write_text(folder / PAGE, page)
    write_text(folder / RESULTS, _results(protocol, tables))
    return [*of_studies, *paths, folder / PAGE, folder / RESULTS]


def _runs(folder: Path, record: Mapping[str, Any] | None) -> list[Run]:
    if not (folder / SWEEP).exists():
        return []
    keys = (record or {}).get("keys", [])
    folders = [folder / job.folder for job in read_manifest(folder).jobs if job.key in keys]
    return [read_run(path) for path in folders if is_run(path)]


def _plots_of(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Return the plots of a study's sweep, and of its first run those of `RUN_PLOTS`."""
    paths = sorted((folder / "plots").glob("*"))
    first = runs[0].folder / "plots" if runs else folder
    return [*paths, *(path for name in RUN_PLOTS for path in sorted(first.glob(f"{name}.*")))]


def _command(protocol: Protocol) -> str:
    return f"nncompress reproduce {protocol.paper} --scale {protocol.scale}"


def _results(protocol: Protocol, tables: Sequence[Table]) -> str:
    """Return all tables as one Markdown file, the long one of what was not measured folded."""
    parts = [f"## {protocol.title}: scale {protocol.scale}", f"`{_command(protocol)}`"]
    for table in tables:
        text = markdown(table).partition("\n")[2].strip()
        title = table.title.removesuffix(f": {protocol.title}")
        if table.name == "not_measured":
            parts.append(f"<details><summary>{title} ({len(table.shown)} rows)</summary>\n\n{text}\n\n</details>")
        else:
            parts.append(f"### {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"
