"""The tables of a paper's experiments: published and ours, claims, all that was run, what was not, the commands."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from nncompress.report.collect import aggregate, differences, failures, group_label, summaries
from nncompress.report.tables import Table, known_columns
from nncompress.report.text import UNKNOWN, number, percent, signed, spread, yes_no
from nncompress.reproduce.protocol import Published
from nncompress.reproduce.rows import JOIN, NOT_MEASURED, Reproduction, circumstances, claim_rows


def reproduction_tables(
    reproduction: Reproduction, published: Sequence[Published], figures: pd.DataFrame, crossed: Sequence[Table]
) -> list[Table]:
    """Make all tables that have something in them.

    Args:
        reproduction: the experiments.
        published: what the paper says, claims among it.
        figures: published and ours, as `rows.comparison` makes them.
        crossed: the tables of every solver with every compression.
    """
    title = reproduction.protocol.title
    return [
        *published_table(figures, title), *claims_table(reproduction, published), *crossed,
        *measured_table(reproduction), studies_table(reproduction), *not_done_table(reproduction),
        *absent_table(figures, title),
    ]  # fmt: skip


def published_table(comparison: pd.DataFrame, title: str) -> Iterator[Table]:
    """Yield the table of the published figures that have ones of ours."""
    ours = comparison[comparison["verdict"] != NOT_MEASURED]
    if ours.empty:
        return
    numbers: dict[str, int] = {}
    shown = []
    for _, row in ours.iterrows():
        shown.append({
            "row": row["row"], "metric": row["metric"], "published": number(row["published"]),
            "ours": spread(number(row["ours"]), number(row["std"])), "n": str(row["n"]), "seeds": row["seeds"],
            "difference": _with_sign(row["difference"]), "tolerance": number(row["tolerance"]),
            "verdict": row["verdict"], "seconds": number(row["seconds"]),
            "deviations": _marks(row["deviations"], numbers),
        })  # fmt: skip
    notes = [
        "Row: named in published.csv, which has its setting and source.",
        "Ours: mean ± standard deviation over the seeds (n − 1 in the denominator; none for n = 1).",
        "PASS: not worse than the published figure by more than the tolerance (sizes: equal within it).",
        *_deviation_lines(numbers),
    ]
    yield Table("published", f"Published and ours: {title}", ours, known_columns(pd.DataFrame(shown)), notes)


def absent_table(comparison: pd.DataFrame, title: str) -> Iterator[Table]:
    """Yield the table of the published figures without one of ours, and why: the figures of a row in a line."""
    absent = comparison[comparison["verdict"] == NOT_MEASURED]
    lines = []
    for row, part in absent.groupby("row", sort=False):
        values = [number(value) if value == value else "not available" for value in part["published"]]
        figures = ", ".join(f"{metric} {value}" for metric, value in zip(part["metric"], values, strict=True))
        why = "; ".join(dict.fromkeys(part["why"]))
        lines.append({"row": str(row), "published": figures, "verdict": NOT_MEASURED, "why": why})
    if lines:
        notes = ["Settings and sources of the rows are in the CSV."]
        head = f"Published, not measured here: {title}"
        yield Table("not_measured", head, absent, pd.DataFrame(lines), notes)


def claims_table(reproduction: Reproduction, published: Sequence[Published]) -> Iterator[Table]:
    """Yield what the paper says in words, as comparisons of our figures; what of it is not tested, and why."""
    raw = claim_rows(reproduction, published)
    if not raw:
        return
    numbers: dict[str, int] = {}
    shown = [
        {
            "claim": row["claim"],
            "published": row["published"],
            "figure": row["figure"] or UNKNOWN,
            "ours": spread(number(row["ours"]), number(row["std"])),
            "against": spread(number(row["against"]), number(row["against std"])),
            "n": f"{row['n']}, {row['against n']}" if row["against n"] else str(row["n"]),
            "verdict": f"{row['verdict']}: {row['why']}" if row["why"] else row["verdict"],
            "deviations": _marks(row["deviations"], numbers),
        }
        for row in raw
    ]  # fmt: skip
    notes = [
        "PASS: the mean of ours is on the side of the other, or of the number, that the claim says; n of both.",
        "Published: the claim in published.csv; own check: of nobody but ourselves.",
        "one_shot/METHOD: the mean accuracy over the parts that both sides were compressed to without retraining.",
        "Seconds are as they were measured, whatever else the machine did.",
        *_deviation_lines(numbers),
    ]
    yield Table(
        "claims", f"Claims: {reproduction.protocol.title}", pd.DataFrame(raw), known_columns(pd.DataFrame(shown)), notes
    )


def _marks(joined: str, numbers: dict[str, int]) -> str:
    """Return the numbers of some deviations; new ones get the next."""
    return " ".join(str(numbers.setdefault(each, len(numbers) + 1)) for each in joined.split(JOIN) if each) or UNKNOWN


def _deviation_lines(numbers: Mapping[str, int]) -> Iterator[str]:
    return (f"Deviation {mark}: {text}" for text, mark in numbers.items())


def measured_table(reproduction: Reproduction) -> Iterator[Table]:
    """Yield the table of what every setting of every study ended with."""
    raw, shown = [], []
    for study in reproduction.protocol.studies:
        runs = reproduction.runs[study.name]
        keys = differences(runs)
        for _, group in aggregate(summaries(runs), keys).iterrows():
            head = {"study": study.name, "setting": group_label(group, keys)}
            raw.append(head | {str(key): group[key] for key in group.index})
            shown.append(head | _ends(group))
    if raw:
        title = f"Every setting that was run: {reproduction.protocol.title}"
        notes = [
            "Ratios: compressed over dense of the whole network (smaller is more compression). Seconds: in the solver."
        ]
        yield Table("measured", title, pd.DataFrame(raw), known_columns(pd.DataFrame(shown)), notes)


def _ends(group: "pd.Series[Any]") -> dict[str, str]:
    def of(key: str, form: Any) -> str:
        return spread(form(group.get(key)), form(group.get(f"{key} std")))

    return {
        "n": str(group["n"]), "test accuracy (%)": of("accuracy/test", percent),
        "dense (%)": of("accuracy/dense_test", percent), "parameters left": of("ratio/params", number),
        "bits left": of("ratio/bits", number), "MACs left": of("ratio/macs", number),
        "seconds": of("seconds/total", number), "slope": of("rate/slope", signed),
        "decrease": yes_no(group.get("rate/decrease_ok")),
    }  # fmt: skip


def studies_table(reproduction: Reproduction) -> Table:
    """Tabulate every study: its command, how much of it is done, where and when."""
    raw = []
    for study in reproduction.protocol.studies:
        planned = reproduction.planned(study.name)
        done = [run for run in reproduction.runs[study.name] if run.status["status"] == "done"]
        total = float(sum(run.summary["seconds/total"] for run in done if run.summary is not None))
        row = {"study": study.name, "what": study.about, "runs": len(planned.get("keys", [])), "done": len(done)}
        row |= circumstances(done) | {"total seconds": total, "missing": planned.get("missing") or ""}
        deviations = JOIN.join(reproduction.deviations(study))
        raw.append(row | {"deviations": deviations, "command": reproduction.command(study)})
    frame = pd.DataFrame(raw)
    shown = frame.drop(columns=["seconds"]).map(
        lambda cell: number(cell) if isinstance(cell, int | float) else cell or UNKNOWN
    )
    title = f"Studies and their commands: {reproduction.protocol.title}"
    return Table("studies", title, frame, known_columns(shown))


def not_done_table(reproduction: Reproduction) -> Iterator[Table]:
    """Yield the runs that have begun and have not ended well; they are in no other table."""
    lines = [
        {
            "study": study,
            "job": row["job"],
            "status": row["status"],
            "why": row["reason"] or row["traceback"] or UNKNOWN,
        }
        for study, runs in reproduction.runs.items()
        for _, row in failures(runs).iterrows()
    ]
    if lines:
        frame = pd.DataFrame(lines)
        yield Table("not_done", "Runs that are not done", frame, frame)


def _with_sign(value: Any) -> str:
    return UNKNOWN if value is None or value != value else f"{float(value):+.4g}".replace("-", "−")
