"""Numbers and texts as people read them, the same in every table and plot. Imports no pandas."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nncompress.errors import printable, without_user_info

UNKNOWN = "–"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula."""
WIDEST = 300
"""Characters of a cell on a terminal."""


def number(value: Any) -> str:
    """Write four significant figures; whole numbers in full, their thousands separated."""
    if _no_number(value):
        return UNKNOWN
    value = float(value)
    if value.is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def signed(value: Any) -> str:
    """Write three decimals with a true minus sign: for slopes."""
    return UNKNOWN if _no_number(value) else f"{float(value):.3f}".replace("-", "−")


def percent(value: Any) -> str:
    """Write a share in [0, 1] as a percentage with two decimals, without the sign."""
    return UNKNOWN if _no_number(value) else f"{100 * float(value):.2f}"


def times(ratio: Any) -> str:
    """Write how many times smaller: 1/ratio."""
    return UNKNOWN if _no_number(ratio) or float(ratio) <= 0 else f"{1 / float(ratio):.2f}×"


def spread(mean: str, std: str) -> str:
    """Write mean ± standard deviation, both already as text; the mean alone when the deviation is not known or zero."""
    return mean if UNKNOWN in (mean, std) or std == "0" else f"{mean} ± {std}"


def yes_no(value: Any) -> str:
    """Write a check's outcome."""
    return UNKNOWN if _no_number(value) else "yes" if value else "no"


FORMS: dict[str, Callable[[Any], str]] = {"number": number, "percent": percent, "yes_no": yes_no}
"""The forms of `solvers.base.Column`."""


def setting(value: Any) -> str:
    """Write a value of the config as it is typed on the command line."""
    if missing(value):
        return UNKNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_text(value: Any) -> str:
    """Write any value on record on one line, its number short; what a terminal would obey is spelt out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) or math.isinf(value) else number(value)
    return UNKNOWN if value is None else str(clean(str(value)))


def clean(value: Any) -> Any:
    """Return a value on record with every text in it on one line, as `printable`, and without user information."""
    if isinstance(value, str):
        return printable(without_user_info(value))
    if isinstance(value, Mapping):
        return {clean(key): clean(each) for key, each in value.items()}
    return list(map(clean, value)) if isinstance(value, list | tuple) else value


def harmless_cell(value: Any) -> Any:
    """Return a value as a cell of a CSV file: text that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def cut(text: str, most: int) -> str:
    """Return the text, of one that is too long its beginning and its end."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[len(text) - most // 3 :]}"


def few(names: Sequence[str], most: int = 4) -> str:
    """Write the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def missing(value: Any) -> bool:
    """Tell whether a value is None, NaN, pandas' NA or infinite."""
    if value is None or isinstance(value, float):
        return value is None or not math.isfinite(value)
    if isinstance(value, str | int):
        return False
    import pandas as pd

    return bool(pd.isna(value))


def _no_number(value: Any) -> bool:
    return isinstance(value, str | list | dict) or missing(value)


def is_number(value: Any) -> bool:
    """Tell whether a value on record is a number; a check (true, false) is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(record: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the keys of a record that are known numbers."""
    return {key: value for key, value in record.items() if is_number(value) and not missing(value)}


def columns(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    """Yield lines with the cells of each column under each other, two spaces between; `right`: aligned there."""
    rows = [[cut(cell, WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        yield "  ".join(cell.rjust(width) if end else cell.ljust(width) for cell, width, end in cells).rstrip()
