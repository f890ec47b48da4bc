"""A paper's experiments beside what it published: the tables, plots and page of what `nncompress reproduce` has run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nncompress.errors import ConfigError
from nncompress.manifest import SWEEP, read_manifest
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
RUN_PLOTS = ("rate", "channels", "weights")
"""Plots of a study's first run that the page shows beside those of its sweep."""


def record_of(folder: Path) -> dict[str, Any]:
    """What is on record of the experiments in `folder`: the paper, the scale, and each study as it was planned.

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


def studies_of(folder: Path) -> dict[str, list[Run]]:
    """The runs of each study in `folder`: those of the jobs that it consists of now, in the sweep's order.

    Raises:
        ConfigError: a record is damaged.
    """
    record = record_of(folder)
    protocol = read_protocol(record["paper"], record["scale"])
    return {study.name: _runs(folder / study.name, record["studies"].get(study.name)) for study in protocol.studies}


def write_reproduction(folder: Path, found: Mapping[str, Sequence[Run]]) -> list[Path]:
    """Write tables/, plots/, report.html and results.md of the experiments in `folder`; their paths.

    found: the runs of each study (`studies_of`), whose own plots are there.

    Raises:
        ConfigError: the folder's record is damaged.
    """
    record = record_of(folder)
    protocol = read_protocol(record["paper"], record["scale"])
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
    paths = [path for table in tables for path in write_table(table, folder / "tables")]
    drawn = {"published": beside_published(figures, protocol.title)} | cross_plots(crossed)
    paths += save_sweep_plots(drawn, folder / "plots")
    for old in {*(folder / "tables").glob("*"), *(folder / "plots").glob("*")} - {*paths}:
        old.unlink(missing_ok=True)
    plots = [path for path in paths if path.parent.name == "plots"]
    plots += [path for study in protocol.studies for path in _plots_of(folder / study.name, found[study.name])]
    title = f"{protocol.title}: scale {protocol.scale}"
    page = reproduction_page(title, _command(protocol), tables, plots, shut="not_measured")
    replace_bytes(folder / PAGE, page.encode())
    replace_bytes(folder / RESULTS, _results(protocol, tables).encode())
    return [*paths, folder / PAGE, folder / RESULTS]


def _runs(folder: Path, record: Mapping[str, Any] | None) -> list[Run]:
    if not (folder / SWEEP).exists():
        return []
    keys = (record or {}).get("keys", [])
    folders = [folder / job.folder for job in read_manifest(folder).jobs if job.key in keys]
    return [read_run(path) for path in folders if is_run(path)]


def _plots_of(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """The plots of a study's sweep, and of its first run those of `RUN_PLOTS`."""
    paths = sorted((folder / "plots").glob("*"))
    first = runs[0].folder / "plots" if runs else folder
    return [*paths, *(path for name in RUN_PLOTS for path in sorted(first.glob(f"{name}.*")))]


def _command(protocol: Protocol) -> str:
    return f"nncompress reproduce {protocol.paper} --scale {protocol.scale}"


def _results(protocol: Protocol, tables: Sequence[Table]) -> str:
    """All tables as one Markdown file, the long one of what was not measured folded."""
    parts = [f"## {protocol.title}: scale {protocol.scale}", f"`{_command(protocol)}`"]
    for table in tables:
        text = markdown(table).partition("\n")[2].strip()
        title = table.title.removesuffix(f": {protocol.title}")
        if table.name == "not_measured":
            parts.append(f"<details><summary>{title} ({len(table.shown)} rows)</summary>\n\n{text}\n\n</details>")
        else:
            parts.append(f"### {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"
