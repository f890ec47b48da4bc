"""The tables of a paper's experiments: published and ours, claims, all that was run, what was not, the commands."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from nncompress.report.collect import aggregate, failures, group_label, summaries, varied
from nncompress.report.tables import Table, known
from nncompress.report.text import UNKNOWN, number, percent, signed, spread, yes_no
from nncompress.reproduce.protocol import Protocol, Published
from nncompress.reproduce.rows import JOIN, NOT_MEASURED, Found, circumstances, claim_rows, command_of, deviations
from nncompress.results.records import Run


def published_table(beside: pd.DataFrame, protocol: Protocol) -> Iterator[Table]:
    """The published figures that have ones of ours."""
    ours = beside[beside["verdict"] != NOT_MEASURED]
    if ours.empty:
        return
    numbers: dict[str, int] = {}
    shown = []
    for _, row in ours.iterrows():
        shown.append({
            "row": row["row"], "metric": row["metric"], "published": number(row["published"]),
            "ours": spread(number(row["ours"]), number(row["std"])), "n": str(row["n"]), "seeds": row["seeds"],
            "difference": _signed(row["difference"]), "tolerance": number(row["tolerance"]), "verdict": row["verdict"],
            "seconds": number(row["seconds"]), "deviations": _marks(row["deviations"], numbers),
        })  # fmt: skip
    notes = [
        "Row: named in published.csv, which has its setting and source.",
        "Ours: mean ± standard deviation over the seeds (n − 1 in the denominator; none for n = 1).",
        "PASS: not worse than the published figure by more than the tolerance (sizes: equal within it).",
        *_named(numbers),
    ]
    yield Table("published", f"Published and ours: {protocol.title}", ours, known(pd.DataFrame(shown)), notes)


def absent_table(beside: pd.DataFrame, protocol: Protocol) -> Iterator[Table]:
    """The published figures without one of ours, and why."""
    absent = beside[beside["verdict"] == NOT_MEASURED]
    if len(absent):
        lines = [_absent(row, part) for row, part in absent.groupby("row", sort=False)]
        notes = ["Settings and sources of the rows are in the CSV."]
        title = f"Published, not measured here: {protocol.title}"
        yield Table("not_measured", title, absent, pd.DataFrame(lines), notes)


def _absent(row: Any, figures: pd.DataFrame) -> dict[str, str]:
    """The figures of one row in a line."""
    values = [number(value) if value == value else "not available" for value in figures["published"]]
    said = [f"{metric} {value}" for metric, value in zip(figures["metric"], values, strict=True)]
    why = "; ".join(dict.fromkeys(figures["why"]))
    return {"row": str(row), "published": ", ".join(said), "verdict": NOT_MEASURED, "why": why}


def claims_table(
    protocol: Protocol, published: Sequence[Published], found: Found, record: Mapping[str, Any]
) -> Iterator[Table]:
    """What the paper says in words, as comparisons of our figures; what of it is not tested, and why."""
    raw = claim_rows(protocol, published, found, record)
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
        *_named(numbers),
    ]
    yield Table("claims", f"Claims: {protocol.title}", pd.DataFrame(raw), known(pd.DataFrame(shown)), notes)


def _marks(joined: str, numbers: dict[str, int]) -> str:
    """The numbers of some deviations; new ones get the next."""
    return " ".join(str(numbers.setdefault(each, len(numbers) + 1)) for each in joined.split(JOIN) if each) or UNKNOWN


def _named(numbers: Mapping[str, int]) -> Iterator[str]:
    return (f"Deviation {mark}: {text}" for text, mark in numbers.items())


def measured_table(found: Found, protocol: Protocol) -> Iterator[Table]:
    """What every setting of every study ended with."""
    raw, shown = [], []
    for study in protocol.studies:
        runs = found[study.name]
        if not runs:
            continue
        keys = varied(runs)
        for _, group in aggregate(summaries(runs), keys).iterrows():
            label = group_label(group, keys)
            raw.append({"study": study.name, "setting": label} | {str(key): group[key] for key in group.index})
            shown.append({"study": study.name, "setting": label} | _ends(group))
    if raw:
        title = f"Every setting that was run: {protocol.title}"
        notes = [
            "Ratios: compressed over dense of the whole network (smaller is more compression). Seconds: in the solver."
        ]
        yield Table("measured", title, pd.DataFrame(raw), known(pd.DataFrame(shown)), notes)


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


def studies_table(protocol: Protocol, found: Found, record: Mapping[str, Any]) -> Table:
    """Every study: its command, how much of it is done, where and when."""
    raw = []
    for study in protocol.studies:
        runs, planned = found[study.name], (record["studies"].get(study.name) or {})
        done = [run for run in runs if run.status["status"] == "done"]
        row = {"study": study.name, "what": study.about, "runs": len(planned.get("keys", [])), "done": len(done)}
        row |= circumstances(done) | {"total seconds": _total(done), "missing": planned.get("missing") or ""}
        raw.append(row | {"deviations": JOIN.join(deviations(study, record)), "command": command_of(record, study)})
    frame = pd.DataFrame(raw)
    shown = frame.drop(columns=["seconds"]).map(
        lambda cell: number(cell) if isinstance(cell, int | float) else cell or UNKNOWN
    )
    return Table("studies", f"Studies and their commands: {protocol.title}", frame, known(shown))


def not_done_table(found: Found) -> Iterator[Table]:
    """The runs that have begun and have not ended well; they are in no other table."""
    frames = [(study, failures(runs)) for study, runs in found.items()]
    lines = [
        {
            "study": study,
            "job": row["job"],
            "status": row["status"],
            "why": row["reason"] or row["traceback"] or UNKNOWN,
        }
        for study, frame in frames
        for _, row in frame.iterrows()
    ]
    if lines:
        frame = pd.DataFrame(lines)
        yield Table("not_done", "Runs that are not done", frame, frame)


def _total(runs: Sequence[Run]) -> float:
    return float(sum(run.summary["seconds/total"] for run in runs if run.summary is not None))


def _signed(value: Any) -> str:
    return UNKNOWN if value is None or value != value else f"{float(value):+.4g}".replace("-", "−")
