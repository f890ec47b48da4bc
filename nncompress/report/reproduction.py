"""A paper's experiments beside what it published: the tables, plots and page of what `nncompress reproduce` has run."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nncompress.errors import ConfigError
from nncompress.records import Run, is_run, read_json, read_run, replace_bytes
from nncompress.report.comparison_plots import beside_published
from nncompress.report.cross import cross_frame, cross_plots, cross_tables
from nncompress.report.html import reproduction_page
from nncompress.report.reproduction_rows import beside
from nncompress.report.reproduction_tables import (
    absent_table,
    claims_table,
    measured_table,
    not_done_table,
    published_table,
    studies_table,
)
from nncompress.report.sweep_plots import save_sweep_plots
from nncompress.report.tables import Table, markdown, write_table
from nncompress.reproduce.protocol import PAPERS, SCALES, Protocol, read_protocol
from nncompress.reproduce.published import read_published

REPRODUCTION, PAGE, RESULTS = "reproduce.json", "report.html", "results.md"
RUN_PLOTS = ("rate", "factors")
"""Plots of a study's first run that the page shows beside those of its sweep."""


def write_reproduction(folder: Path) -> list[Path]:
    """Write tables/, plots/, report.html and results.md of the experiments in `folder`; their paths.

    Raises:
        ConfigError: the folder's record is damaged.
    """
    record: dict[str, Any] = read_json(folder / REPRODUCTION) or {}
    if record.get("paper") not in PAPERS or record.get("scale") not in SCALES or "studies" not in record:
        raise ConfigError(f"{folder / REPRODUCTION} must name a paper, a scale and studies, found others; run it again")
    protocol = read_protocol(record["paper"], record["scale"])
    found = {study.name: _runs(folder / study.name, record["studies"].get(study.name)) for study in protocol.studies}
    crossed = cross_frame([run for study in protocol.studies if study.latency for run in found[study.name]])
    published = read_published(protocol.paper)
    figures = beside(protocol, published, found, record)
    tables = [
        *published_table(figures, protocol),
        *claims_table(protocol, published, found, record),
        *cross_tables(crossed, protocol.title),
        *measured_table(found, protocol),
        studies_table(protocol, found, record),
        *not_done_table(found),
        *absent_table(figures, protocol),
    ]
    for old in (folder / "tables").glob("*"):
        old.unlink()
    paths = [path for table in tables for path in write_table(table, folder / "tables")]
    drawn = {"published": beside_published(figures, protocol.title)} | cross_plots(crossed)
    paths += save_sweep_plots(drawn, folder / "plots")
    plots = [path for path in paths if path.parent.name == "plots"]
    plots += [path for study in protocol.studies for path in _plots_of(folder / study.name, found[study.name])]
    title = f"{protocol.title}: scale {protocol.scale}"
    page = reproduction_page(title, shlex.join(record["command"]), tables, plots, shut="not_measured")
    replace_bytes(folder / PAGE, page.encode())
    replace_bytes(folder / RESULTS, _results(protocol, tables, record).encode())
    return [*paths, folder / PAGE, folder / RESULTS]


def _runs(folder: Path, record: Mapping[str, Any] | None) -> list[Run]:
    """The runs of the jobs that the study consists of now, in the sweep's order."""
    sweep = read_json(folder / "sweep.json") or {}
    keys = (record or {}).get("keys", [])
    folders = [folder / job["folder"] for job in sweep.get("jobs", []) if job["key"] in keys]
    return [read_run(path) for path in folders if is_run(path)]


def _plots_of(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """The plots of a study's sweep, and of its first run those of `RUN_PLOTS`."""
    paths = sorted((folder / "plots").glob("*"))
    first = runs[0].folder / "plots" if runs else folder
    return [*paths, *(path for name in RUN_PLOTS for path in sorted(first.glob(f"{name}.*")))]


def _results(protocol: Protocol, tables: Sequence[Table], record: Mapping[str, Any]) -> str:
    """All tables as one Markdown file, the long one of what was not measured folded."""
    parts = [f"## {protocol.title}: scale {protocol.scale}", f"`{shlex.join(record['command'])}`"]
    for table in tables:
        text = markdown(table).partition("\n")[2].strip()
        title = table.title.removesuffix(f": {protocol.title}")
        if table.name == "not_measured":
            parts.append(f"<details><summary>{title} ({len(table.shown)} rows)</summary>\n\n{text}\n\n</details>")
        else:
            parts.append(f"### {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"
