"""One page with all of a run or a sweep, in one file that fetches nothing: tables that can be sorted, plots, settings.

All text is escaped; the page's own policy allows no script but its own.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from nncompress.report.collect import differences, job, last_line, name, reason
from nncompress.report.html.tables import counts, environment_table, failures_table, jobs_table, settings_table
from nncompress.report.html.template import PAGE, SCRIPT, STYLE
from nncompress.report.tables import Table
from nncompress.report.text import UNKNOWN, value_text
from nncompress.results.query import state
from nncompress.results.records import Run

NUMBER = re.compile(r"([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?:$|[×%]| [±(])")
"""A number that may have more behind it, as in 96.94 ± 0.21, 6.25× or 97.1 (step 3)."""
LONG, MANY = 48, 30
"""Letters from which a cell is wrapped; rows from which a table can be filtered."""
LARGEST_SVG, WIDE = 400_000, 1.75
"""Bytes, as a plot of many lines is smaller as png; width over height from which a plot has a line of its own."""
VIEW = re.compile(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"')
FONTS = b"'DejaVu Sans', Verdana, 'Bitstream Vera Sans', sans-serif"
"""What a browser has where it lacks the font that the plots were laid out in."""


@dataclass(frozen=True)
class Section:
    """A part of the page: its name in links, its heading, its content as HTML, and whether it is shut at first."""

    name: str
    title: str
    content: str
    shut: bool = False


def run_page(run: Run, tables: Sequence[Table], plots: Sequence[Path]) -> str:
    """Return the page of a run: its tables, its plots (png and svg files), all settings."""
    status = state(run.folder, run.status)
    lead = [f'<p>{_status(status)} <span class="dim">{escape(job(run))}</span></p>']
    if status != "done":
        line = last_line(run)
        code = f"<code>{escape(line)}</code>" if line else ""
        lead.append(f'<div class="wrong">{escape(reason(run) or "no reason is on record")}{code}</div>')
    more = [table for table in (settings_table([run]), environment_table([run])) if table is not None]
    return _page(name(run), lead, _sections(tables, plots, more))


def sweep_page(folder: Path, runs: Sequence[Run], tables: Sequence[Table], plots: Sequence[Path]) -> str:
    """Return the page of a sweep: its tables and plots, all jobs, the jobs that are not done, the settings."""
    keys = differences(runs)
    stand = "".join(f"<span>{n} {_status(status)}</span>" for status, n in counts(runs).items())
    lead = [f'<p class="dim">{escape(value_text(folder.resolve().name))}</p>', f'<p class="counts">{stand}</p>']
    jobs = [failures_table(folder, runs, keys), jobs_table(folder, runs, keys)]
    more = [settings_table(runs), environment_table(runs)]
    title = tables[0].title if tables else value_text(folder.name)
    shown, shut = ([table for table in group if table is not None] for group in (jobs, more))
    return _page(title, lead, _sections([*tables, *shown], plots, shut))


def reproduction_page(title: str, command: str, tables: Sequence[Table], plots: Sequence[Path], shut: str) -> str:
    """Return the page of a paper's experiments: tables and plots; the table named `shut` is shut at first."""
    sections = [Section(table.name, table.title, _table(table), shut=table.name == shut) for table in tables]
    lead = [f'<p class="dim"><code>{escape(command)}</code></p>']
    first = [section for section in sections if not section.shut]
    return _page(title, lead, [*first, *_plots_section(plots), *(section for section in sections if section.shut)])


def _sections(tables: Sequence[Table], plots: Sequence[Path], shut: Sequence[Table]) -> Iterator[Section]:
    """Yield the first table, the plots, the other tables, then those that are shut at first."""
    sections = [Section(table.name, table.title, _table(table)) for table in tables]
    yield from (*sections[:1], *_plots_section(plots), *sections[1:])
    yield from (Section(table.name, table.title, _table(table), shut=True) for table in shut)


def _plots_section(plots: Sequence[Path]) -> Iterator[Section]:
    if plots:
        yield Section("plots", "Plots", f'<div class="plots">{"".join(_plots(plots))}</div>')


def _page(title: str, lead: Iterable[str], sections: Iterable[Section]) -> str:
    sections = list(sections)
    links = [f'<a href="#{escape(each.name)}">{escape(each.title.partition(":")[0])}</a>' for each in sections]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return PAGE.substitute(
        title=escape(title), lead="\n".join(lead), links="".join(links), sections="\n".join(map(_section, sections)),
        style=STYLE, script=SCRIPT, script_hash=f"sha256-{digest}",
    )  # fmt: skip


def _section(section: Section) -> str:
    head, at = f"<h2>{escape(section.title)}</h2>", f'id="{escape(section.name)}"'
    if section.shut:
        return f"<details {at}><summary>{head}</summary>\n{section.content}\n</details>"
    return f"<section {at}>{head}\n{section.content}\n</section>"


def _status(status: str) -> str:
    return f'<span class="status {escape(status)}">{escape(status)}</span>'


def _table(table: Table) -> str:
    """Return a table with its filter, which the script shows, and its notes."""
    if table.shown.empty:
        body = "<p>Nothing to show.</p>"
    else:
        columns = [_column(str(key), table.shown.iloc[:, at]) for at, key in enumerate(table.shown)]
        kinds = [' class="n"' if is_number else "" for is_number, _ in columns]
        head = "".join(
            f'<th scope="col"{kind}><button type="button">{escape(str(key))}</button></th>'
            for key, kind in zip(table.shown, kinds, strict=True)
        )
        rows = zip(*(cells for _, cells in columns), strict=True)
        lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        body = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
        )
    tools = ""
    if len(table.shown) > MANY:
        tools = (
            f'<div class="tools" hidden><input type="search" placeholder="rows that hold these words" '
            f'aria-label="Filter: {escape(table.title)}"><output class="dim"></output></div>\n'
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return tools + body + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _column(title: str, values: "pd.Series[str]") -> tuple[bool, list[str]]:
    """Tell whether most that is known of a column are numbers, and return its cells."""
    texts = [str(value) for value in values]
    if title == "status":
        return False, [f"<td>{_status(text)}</td>" for text in texts]
    sizes = [size_of(text) for text in texts]
    known = sum(text not in ("", UNKNOWN) for text in texts)
    is_number = known > 0 and 2 * sum(size is not None for size in sizes) >= known
    return is_number, [_cell(text, size, is_number) for text, size in zip(texts, sizes, strict=True)]


def size_of(text: str) -> float | None:
    """Return the number a cell begins with, by which it is sorted; None when it is text."""
    start = NUMBER.match(text)
    return float(start[1].replace(",", "").replace("−", "-")) if start else None


def _cell(text: str, size: float | None, is_number: bool) -> str:
    """Return a cell; `data-v` holds what it is sorted by where that is not its text: nothing for text among numbers."""
    kinds = [*(["n"] if is_number else []), *(["long"] if len(text) > LONG or "\n" in text else [])]
    classes = f' class="{" ".join(kinds)}"' if kinds else ""
    if text in ("", UNKNOWN) or (is_number and size is None):
        return f'<td{classes} data-v="">{escape(text)}</td>'
    plain = not is_number or text == f"{size:g}"
    sorted_by = "" if plain else f' data-v="{size!r}"'
    return f"<td{classes}{sorted_by}>{escape(text)}</td>"


def _plots(paths: Sequence[Path]) -> Iterator[str]:
    """Yield each plot within the page, as svg unless that is large."""
    for path in paths:
        if path.suffix == ".svg":
            content, kind = path.read_bytes(), "image/svg+xml"
            view = VIEW.search(content)
            wide = ' class="wide"' if view and float(view[1]) > WIDE * float(view[2]) else ""
            if len(content) > LARGEST_SVG and path.with_suffix(".png") in paths:
                content, kind = path.with_suffix(".png").read_bytes(), "image/png"
            inline = base64.b64encode(content.replace(b"'DejaVu Sans'", FONTS)).decode()
            name = escape(path.stem.replace("_", " "))
            yield f'<figure{wide}><img alt="plot: {name}" src="data:{kind};base64,{inline}"></figure>'
