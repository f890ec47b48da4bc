"""DataFrames to tables: raw numbers in .csv, readable ones in .md and .tex."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from nncompress.report.fresh import write_part
from nncompress.report.latex import escape
from nncompress.report.text import UNKNOWN, clean, harmless_cell


@dataclass(frozen=True)
class Table:
    """A table in its two forms (`raw` for programs, `shown` as text for people) with its title and explanations."""

    name: str
    title: str
    raw: pd.DataFrame
    shown: pd.DataFrame
    notes: Sequence[str] = field(default=())


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write name.csv, name.md and name.tex into a folder, made when absent; return their paths."""
    forms: dict[str, Callable[[Table], str]] = {"csv": csv, "md": markdown, "tex": latex}
    return [write_part(folder / f"{table.name}.{ending}", form(table).encode()) for ending, form in forms.items()]


def csv(table: Table) -> str:
    """Return the raw numbers, full precision, empty where unknown."""
    return frame_csv(table.raw)


def frame_csv(frame: pd.DataFrame) -> str:
    """Return a DataFrame as text of a CSV file, every row on one line and no text a formula to a spreadsheet."""
    texts = frame.copy()
    for at, kind in enumerate(frame.dtypes):
        if not is_numeric_dtype(kind):
            texts.isetitem(at, list(map(_harmless, frame.iloc[:, at])))
    return texts.rename(columns=_harmless).to_csv(index=False, lineterminator="\n")


def _harmless(cell: Any) -> Any:
    return harmless_cell(clean(cell))


def markdown(table: Table) -> str:
    """Return title, table and notes in Markdown."""
    shown = table.shown.map(_in_markdown).rename(columns=_in_markdown)
    align = ["left", *["right"] * (shown.shape[1] - 1)]
    body = shown.to_markdown(index=False, disable_numparse=True, colalign=align) if len(shown) else "Nothing to show."
    notes = "".join(f"- {clean(note)}\n" for note in table.notes)
    return f"# {clean(table.title)}\n\n{body}\n" + (f"\n{notes}" if notes else "")


def _in_markdown(cell: Any) -> str:
    return str(clean(str(cell))).replace("|", r"\|")


def latex(table: Table) -> str:
    """Return a table environment that needs no package."""
    notes = [rf"\par {_in_latex(note)}" for note in table.notes]
    lines = [
        r"\begin{table}", r"\centering\footnotesize", rf"\caption{{{_in_latex(table.title)}}}",
        *(_tabular(table.shown) if len(table.shown) else ["Nothing to show."]),
        *([r"\par\medskip\raggedright", *notes] if notes else []), r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _tabular(shown: pd.DataFrame) -> list[str]:
    rows = [list(shown.columns), *shown.to_numpy().tolist()]
    head, *body = [_row([_in_latex(cell) for cell in row]) for row in rows]
    columns = "l" + "r" * (shown.shape[1] - 1)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]


def _row(cells: Sequence[str]) -> str:
    line = " & ".join(cells) + r" \\"
    return f"{{}}{line}" if line.lstrip().startswith(("[", "*")) else line  # else an argument of the row before


def _in_latex(text: Any) -> str:
    return escape(clean(str(text)))


def known_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a shown table that say anything."""
    return frame[[column for column in frame if (frame[column] != UNKNOWN).any()]]
