#!/usr/bin/env python3
"""Make docs/results/ anew from what `nncompress reproduce` has left in a folder: scripts/results.py outputs/reproduce

The tables of each paper and scale that is there are made anew and become two files: PAPER_SCALE.csv with every row, and
PAPER_SCALE_studies.csv with what was run, where and when. Then index.md, the verdicts of every CSV file in
docs/results/; without a folder index.md alone.
"""

import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from nncompress.report.text import number, percent, signed, spread, yes_no
from nncompress.reproduce.protocol import NOT_AVAILABLE, PAPERS, REPRODUCTION, SCALES, Protocol, read_protocol
from nncompress.reproduce.report import write_reproduction

RESULTS = Path(__file__).parents[1] / "docs/results"
Row = dict[str, str]
Form = Callable[[float], str]

ENDS: Mapping[str, tuple[str, Form]] = {
    "test accuracy (%)": ("accuracy/test", percent), "dense (%)": ("accuracy/dense_test", percent),
    "parameters left": ("ratio/params", number), "bits left": ("ratio/bits", number),
    "MACs left": ("ratio/macs", number), "seconds": ("seconds/total", number), "slope": ("rate/slope", signed),
}  # fmt: skip
"""Columns of what a setting ended with: the key of a run's summary, and how its value is written."""
CROSS: Mapping[str, tuple[str, Form]] = {
    "test accuracy (%)": ("accuracy", percent), "bits left": ("bits", number), "MACs left": ("macs", number),
    "time of a batch of 64, compact over dense": ("latency", number), "epochs": ("epochs", number),
}  # fmt: skip
PLAIN = (
    "row", "metric", "published", "ours", "std", "against", "against std", "n", "against n", "seeds", "difference",
    "tolerance", "verdict", "why", "seconds", "deviations", "study", "setting", "network", "solver", "compression",
    "size", "measure", "up to", "test accuracy (%)", "at", "behind it", "job", "status",
)  # fmt: skip
"""Columns that tables of `nncompress reproduce` have under the same name."""
COLUMNS = (
    "table", "study", "row", "claim", "network", "solver", "compression", "size", "setting", "measure", "up to",
    "metric", "published", "ours", "std", "against", "against std", "n", "against n", "seeds", "difference",
    "tolerance", "verdict", "why", *(each + end for each in {**ENDS, **CROSS} for end in ("", " std")), "decrease",
    "on the front of", "at", "behind it", "job", "status", "deviations",
)  # fmt: skip
TABLES = ("published", "claims", "best", "cross", "measured", "not_done", "not_measured")
STUDIES = ("study", "what", "runs", "done", "hardware", "date", "total seconds", "missing", "deviations", "command")


def text(cell: str, form: Form = number) -> str:
    """Return a cell with its number in few figures, without separators; other words as they are."""
    try:
        return form(float(cell)).replace(",", "").replace("−", "-") if cell not in ("", "inf") else cell
    except ValueError:
        return cell


def numbers(raw: Row, columns: Mapping[str, tuple[str, Form]]) -> Row:
    """Means and standard deviations of figures under the names of their columns."""
    return {
        column + end: text(raw.get(key + end) or "", form)
        for column, (key, form) in columns.items()
        for end in ("", " std")
    }


def row_of(table: str, place: int, raw: Row, protocol: Protocol) -> Row:
    """Return the row at a place of a table, in the columns of docs/results."""
    row = {"table": table} | {column: text(raw.get(column) or "") for column in PLAIN}
    match table:
        case "published" | "not_measured":
            row["published"] = row["published"] or NOT_AVAILABLE
            selection = protocol.selection(row["row"])
            row |= {"study": selection.study if selection else ""} if table == "published" else {"n": ""}
        case "claims":
            claims = protocol.claims[place : place + 1]  # none for those that are not tested, which come last
            sides = [side for each in claims for side in (each.ours, each.than) if not isinstance(side, float)]
            studies = dict.fromkeys(side.study for side in sides)
            row |= {"claim": raw["claim"], "row": raw["published"], "metric": raw["figure"], "published": ""}
            row |= {"study": "; ".join(studies) if row["ours"] else "", "against n": row["against n"].removeprefix("0")}
        case "best":  # in text already
            row |= {column: raw[column].replace(",", "") for column in ("up to", "test accuracy (%)", "at")}
        case "cross":
            fronts = [key.removeprefix("front/") for key in raw if key.startswith("front/") and raw[key] == "True"]
            row |= numbers(raw, CROSS) | {"on the front of": ", ".join(fronts)}
        case "measured":
            decrease = raw.get("rate/decrease_ok") or ""
            row |= numbers(raw, ENDS) | {"decrease": decrease and yes_no(decrease in ("True", "1.0"))}
            row |= {"network": "", "solver": "", "compression": ""}  # the setting names what was varied
    return row


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file; none where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a CSV file with the columns of which something is known."""
    known = [column for column in columns if any(row.get(column) for row in rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, known, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_paper(tables: Path, protocol: Protocol, results: Path) -> None:
    """Write both CSV files of a paper at a scale from the folder of its tables."""
    rows = [row_of(name, *each, protocol) for name in TABLES for each in enumerate(read(tables / f"{name}.csv"))]
    name = f"{protocol.paper}_{protocol.scale}"
    write(results / f"{name}.csv", COLUMNS, rows)
    studies = [{column: text(cell) for column, cell in raw.items()} for raw in read(tables / "studies.csv")]
    write(results / f"{name}_studies.csv", STUDIES, studies)


HEAD = """\
# Results

What was really run, beside what was published: the verdicts of every paper. Made by
`nncompress reproduce` and `scripts/results.py` ([how](../reproduce.md), with what the columns and
verdicts mean; how sizes are counted: [counting.md](../counting.md)). Which solver goes with which
compression is read in [cross.md](../cross.md).
"""
FILES = "\n| figures | what | studies | published | claims | settings | not measured |\n|---|---|---|---|---|---|---|"
VERDICTS = """
A row's figures are in the rows of its study in the file that the first column names; the study's
command, hardware and date are in the file of studies. Published figures come first, then claims, each
beside the published figure, the number or the other side's figure that ours is held against. n: seeds.

| figures, study | published row: figures or claim | against | ours | n | verdict |
|---|---|---|---|---|---|"""


def count(rows: Sequence[Row]) -> str:
    """Return how many rows have which verdict."""
    return ", ".join(f"{many} {verdict}" for verdict, many in Counter(row["verdict"] for row in rows).items())


def file_line(protocol: Protocol, rows: Sequence[Row], studies: Sequence[Row]) -> str:
    """Return what a file holds, and where and when it was measured."""
    name = f"{protocol.paper}_{protocol.scale}"
    tables = {table: [row for row in rows if row["table"] == table] for table in TABLES}
    places = "; ".join(sorted({study["hardware"] for study in studies if study.get("hardware")}))
    dates = sorted({study["date"] for study in studies if study.get("date")})
    days = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    absent = len({row["row"] for row in tables["not_measured"]})
    settings = str(len(tables["measured"])) + (f" ({places}, {days})" if places else "")
    cells = [f"[{name}]", protocol.title, f"[{len(studies)}][{name}_studies]", count(tables["published"]) or "–"]
    return f"| {' | '.join([*cells, count(tables['claims']) or '–', settings, f'{absent} rows'])} |"


def verdict_lines(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each published row, with its figures after each other, and for each claim."""
    judged = [row for row in rows if row["table"] in ("published", "claims")]
    for _, group in groupby(judged, key=lambda row: row.get("claim") or (row["row"], row["study"])):
        figures = list(group)
        first = figures[0]
        what = first.get("claim") or "; ".join(row["metric"] for row in figures)
        counts = ", ".join(filter(None, (first["n"], first.get("against n", ""))))
        verdicts = [row["verdict"] + (f": {row['why']}" if row.get("why") else "") for row in figures]
        cells = [f"[{name}] {first['study']}".strip(), f"{first['row']}: {what}"]
        cells.append("; ".join(row.get("published") or row.get("against") or "–" for row in figures))
        cells.append("; ".join(spread(row.get("ours") or "–", row.get("std") or "0") for row in figures))
        cells += [counts, "; ".join(verdicts if len(set(verdicts)) > 1 else verdicts[:1])]
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def index(results: Path) -> str:
    """Return the page of all verdicts, from the CSV files of a folder."""
    protocols = [read_protocol(paper, scale) for scale in SCALES for paper in PAPERS]
    there = {f"{each.paper}_{each.scale}": each for each in protocols}
    there = {name: each for name, each in there.items() if (results / f"{name}.csv").is_file()}
    rows = {name: read(results / f"{name}.csv") for name in there}
    lines = [HEAD + FILES]
    lines += [file_line(each, rows[name], read(results / f"{name}_studies.csv")) for name, each in there.items()]
    lines += [VERDICTS, *(line for name in there for line in verdict_lines(name, rows[name])), ""]
    lines += [f"[{name}{part}]: {name}{part}.csv" for name in there for part in ("", "_studies")]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str], results: Path = RESULTS) -> None:
    """Write the CSV files of every paper and scale in the folder that is given, then index.md."""
    for folder in map(Path, words):
        for paper in PAPERS:
            for scale in SCALES:
                if (folder / paper / scale / REPRODUCTION).is_file():
                    write_reproduction(folder / paper / scale)
                    write_paper(folder / paper / scale / "tables", read_protocol(paper, scale), results)
    (results / "index.md").write_text(index(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
