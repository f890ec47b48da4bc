"""DataFrames to tables: raw numbers in .csv, readable ones in .md and .tex."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.files import write_text
from nncompress.report.text import UNKNOWN

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "×": r"$\times$", "±": r"$\pm$", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$", "…": r"\ldots{}",
    "²": r"$^2$", "‖": r"$\|$", "λ": r"$\lambda$", "Θ": r"$\Theta$", "Δ": r"$\Delta$",
}  # fmt: skip


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
    folder.mkdir(parents=True, exist_ok=True)
    forms: dict[str, Callable[[Table], str]] = {"csv": csv, "md": markdown, "tex": latex}
    paths = [folder / f"{table.name}.{ending}" for ending in forms]
    for path, form in zip(paths, forms.values(), strict=True):
        write_text(path, form(table))
    return paths


def csv(table: Table) -> str:
    """Return the raw numbers, full precision, empty where unknown."""
    return table.raw.to_csv(index=False, lineterminator="\n")


def markdown(table: Table) -> str:
    """Return title, table and notes in Markdown."""
    shown = table.shown.map(lambda cell: str(cell).replace("|", r"\|").replace("\n", " "))
    align = ["left", *["right"] * (shown.shape[1] - 1)]
    body = shown.to_markdown(index=False, disable_numparse=True, colalign=align) if len(shown) else "Nothing to show."
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"# {table.title}\n\n{body}\n" + (f"\n{notes}" if notes else "")


def latex(table: Table) -> str:
    """Return a table environment that needs no package."""
    notes = [rf"\par {escape(note)}" for note in table.notes]
    lines = [
        r"\begin{table}", r"\centering\footnotesize", rf"\caption{{{escape(table.title)}}}",
        *(_tabular(table.shown) if len(table.shown) else ["Nothing to show."]),
        *([r"\par\medskip\raggedright", *notes] if notes else []), r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _tabular(shown: pd.DataFrame) -> list[str]:
    rows = [list(shown.columns), *shown.to_numpy().tolist()]
    head, *body = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
    columns = "l" + "r" * (shown.shape[1] - 1)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]


def escape(text: Any) -> str:
    """Return text that LaTeX prints as it is."""
    return re.sub("|".join(map(re.escape, TEX)), lambda match: TEX[match.group()], str(text))


def known_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a shown table that say anything."""
    return frame[[column for column in frame if (frame[column] != UNKNOWN).any()]]
