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

from nncompress.report.collect import last_line, name, reason, varied
from nncompress.report.html.tables import counts, environment_table, failures_table, jobs_table, settings_table
from nncompress.report.html.template import PAGE, SCRIPT, STYLE
from nncompress.report.tables import Table
from nncompress.report.text import UNKNOWN
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
    """The page of a run: its tables, its plots (png and svg files), all settings."""
    status = state(run.folder, run.status)
    lead = [f'<p>{_status(status)} <span class="dim">{escape(run.folder.name)}</span></p>']
    if status != "done":
        lead.append(_wrong(run))
    more = [table for table in (settings_table([run]), environment_table([run])) if table is not None]
    return _page(name(run), lead, _sections(tables, plots, more))


def sweep_page(folder: Path, runs: Sequence[Run], tables: Sequence[Table], plots: Sequence[Path]) -> str:
    """The page of a sweep: its tables and plots, a row for every job, the jobs that are not done, the settings."""
    keys = varied(runs)
    stand = "".join(f"<span>{n} {_status(status)}</span>" for status, n in counts(runs).items())
    lead = [f'<p class="dim">{escape(folder.resolve().name)}</p>', f'<p class="counts">{stand}</p>']
    more = [settings_table(runs), environment_table(runs)]
    jobs = [failures_table(folder, runs, keys), jobs_table(folder, runs, keys)]
    given = [table for table in jobs if table is not None]
    title = tables[0].title if tables else folder.name
    shut = [table for table in more if table is not None]
    return _page(title, lead, _sections([*tables, *given], plots, shut))


def reproduction_page(title: str, command: str, tables: Sequence[Table], plots: Sequence[Path], shut: str) -> str:
    """The page of a paper's experiments: its tables, its plots, and the table named `shut`, which is shut at first."""
    sections = [Section(table.name, table.title, _table(table), shut=table.name == shut) for table in tables]
    lead = [f'<p class="dim"><code>{escape(command)}</code></p>']
    first = [section for section in sections if not section.shut]
    return _page(title, lead, [*first, *_plots_section(plots), *(section for section in sections if section.shut)])


def _sections(tables: Sequence[Table], plots: Sequence[Path], shut: Sequence[Table]) -> Iterator[Section]:
    """The first table, the plots, the other tables, then those that are shut at first."""
    for table in tables[:1]:
        yield Section(table.name, table.title, _table(table))
    yield from _plots_section(plots)
    for table in tables[1:]:
        yield Section(table.name, table.title, _table(table))
    for table in shut:
        yield Section(table.name, table.title, _table(table), shut=True)


def _plots_section(plots: Sequence[Path]) -> Iterator[Section]:
    if plots:
        yield Section("plots", "Plots", f'<div class="plots">{"".join(_plots(plots))}</div>')


def _page(title: str, lead: Iterable[str], sections: Iterable[Section]) -> str:
    found = list(sections)
    short = [section.title.partition(":")[0] for section in found]
    links = [f'<a href="#{escape(s.name)}">{escape(text)}</a>' for s, text in zip(found, short, strict=True)]
    return PAGE.substitute(
        title=escape(title), lead="\n".join(lead), links="".join(links), sections="\n".join(map(_section, found)),
        style=STYLE, script=SCRIPT, script_hash=_hash(SCRIPT),
    )  # fmt: skip


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _section(section: Section) -> str:
    head, at = f"<h2>{escape(section.title)}</h2>", f'id="{escape(section.name)}"'
    if section.shut:
        return f"<details {at}><summary>{head}</summary>\n{section.content}\n</details>"
    return f"<section {at}>{head}\n{section.content}\n</section>"


def _status(status: str) -> str:
    return f'<span class="status {escape(status)}">{escape(status)}</span>'


def _wrong(run: Run) -> str:
    """Why the run is not done, and the last line of its traceback where it says more."""
    line = last_line(run)
    code = f"<code>{escape(line)}</code>" if line else ""
    return f'<div class="wrong">{escape(reason(run) or "no reason is on record")}{code}</div>'


def _table(table: Table) -> str:
    """A table with its tools and notes."""
    if table.shown.empty:
        body = "<p>Nothing to show.</p>"
    else:
        columns = [_column(str(key), table.shown.iloc[:, at]) for at, key in enumerate(table.shown)]
        head = "".join(_head(str(key), is_number) for key, (is_number, _) in zip(table.shown, columns, strict=True))
        rows = zip(*(cells for _, cells in columns), strict=True)
        lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        body = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
        )
    tools = _tools(table.title) if len(table.shown) > MANY else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return tools + body + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _tools(title: str) -> str:
    """Shown by the script, without which they do nothing."""
    return (
        f'<div class="tools" hidden><input type="search" placeholder="rows that hold these words" '
        f'aria-label="Filter: {escape(title)}"><output class="dim"></output></div>\n'
    )


def _head(title: str, is_number: bool) -> str:
    kind = ' class="n"' if is_number else ""
    return f'<th scope="col"{kind}><button type="button">{escape(title)}</button></th>'


def _column(title: str, values: "pd.Series[str]") -> tuple[bool, list[str]]:
    """Whether most that is known of a column are numbers, and its cells."""
    texts = [str(value) for value in values]
    if title == "status":
        return False, [f"<td>{_status(text)}</td>" for text in texts]
    sizes = [size_of(text) for text in texts]
    known = sum(text not in ("", UNKNOWN) for text in texts)
    is_number = known > 0 and 2 * sum(size is not None for size in sizes) >= known
    return is_number, [_cell(text, size, is_number) for text, size in zip(texts, sizes, strict=True)]


def size_of(text: str) -> float | None:
    """The number a cell begins with, by which it is sorted; None when it is text."""
    found = NUMBER.match(text)
    return float(found[1].replace(",", "").replace("−", "-")) if found else None


def _cell(text: str, size: float | None, is_number: bool) -> str:
    """A cell; `data-v` holds what it is sorted by where that is not its text: nothing for text among numbers."""
    kinds = [*(["n"] if is_number else []), *(["long"] if len(text) > LONG or "\n" in text else [])]
    classes = f' class="{" ".join(kinds)}"' if kinds else ""
    if text in ("", UNKNOWN) or (is_number and size is None):
        return f'<td{classes} data-v="">{escape(text)}</td>'
    plain = not is_number or text == f"{size:g}"
    sorted_by = "" if plain else f' data-v="{size!r}"'
    return f"<td{classes}{sorted_by}>{escape(text)}</td>"


def _plots(paths: Sequence[Path]) -> Iterator[str]:
    """Each plot within the page, as svg unless that is large."""
    for path in paths:
        if path.suffix == ".svg":
            content, kind = path.read_bytes(), "image/svg+xml"
            view = VIEW.search(content)
            wide = ' class="wide"' if view and float(view[1]) > WIDE * float(view[2]) else ""
            if len(content) > LARGEST_SVG and path.with_suffix(".png") in paths:
                content, kind = path.with_suffix(".png").read_bytes(), "image/png"
            inline = base64.b64encode(content.replace(b"'DejaVu Sans'", FONTS)).decode()
            words = escape(path.stem.replace("_", " "))
            yield f'<figure{wide}><img alt="plot: {words}" src="data:{kind};base64,{inline}"></figure>'
