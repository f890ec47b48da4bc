"""The tables of one run: accuracy and convergence, and with `run.compression` all three."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from nncompress.report.collect import columns_of, final, name
from nncompress.report.run.compression import compression_table
from nncompress.report.tables import Table, known_columns
from nncompress.report.text import FORMS, missing, number, numbers, percent, signed, yes_no
from nncompress.results.convergence import fit_slope
from nncompress.results.records import Run

SHOWN_ROWS = 30
SHOWN = {
    "step": "step K", "seconds": "seconds", "objective": "objective L", "step_sq": "squared step",
    "step_sq_mean": "mean squared step", "bound": "its bound", "grad_sq_mean": "mean squared subgradient",
    "grad_bound": "bound of that", "slack": "slack", "worst_slack": "worst slack",
}  # fmt: skip


def run_tables(run: Run) -> list[Table]:
    """Make the tables accuracy, compression and convergence of a run with at least one record."""
    summary = final(run)
    tables = [accuracy_table(run, summary), compression_table(run, summary), convergence_table(run)]
    status, reason = run.status["status"], run.status.get("reason")
    if status == "running" and run.summary:  # the report is written between the summary and the last status
        status = run.summary.get("status", "done")
    if status == "done":
        return tables
    unfinished = f"This run is not done: {status}" + (f" ({reason})." if reason else ".")
    return [replace(table, notes=[*table.notes, unfinished]) for table in tables]


def accuracy_table(run: Run, summary: Mapping[str, Any]) -> Table:
    """Tabulate the deployed network's loss and accuracy, at the end and at their best, and those of the dense one."""
    rows = [
        _measure(run.rows, summary, split, metric)
        for split in ("train", "validation", "test")
        for metric in ("loss", "accuracy")
        if f"{metric}/{split}" in summary
    ]
    rows += [{"split": "run", "metric": "steps", "final": summary.get("steps")}]
    rows += [{"split": "run", "metric": "seconds", "final": summary.get("seconds/total")}]
    raw = pd.DataFrame(rows, columns=["split", "metric", "final", "best", "best_step", "dense"])
    kept = summary.get("step/kept")
    end = "the network kept is the final one"
    if not missing(kept) and kept != summary.get("steps"):
        end = f"the network kept is that of step {number(kept)}, whose compressed training objective was the lowest"
    notes = [
        "Deployed: the network rebuilt from the compressed theta (Θ). Dense: the same run's uncompressed weights w.",
        "Best recorded: the best value seen during the run, at the step in brackets (of the test data, with which "
        f"nothing is to be selected, under protocol=paper alone); it selects nothing, {end}.",
        "Seconds: time inside the solver's start and steps; evaluation is not counted.",
    ]
    shown = pd.DataFrame([_measure_shown(row) for _, row in raw.iterrows()])
    return Table("accuracy", f"Accuracy: {name(run)}", raw, known_columns(shown), notes)


def _measure(rows: pd.DataFrame, summary: Mapping[str, Any], split: str, metric: str) -> dict[str, Any]:
    key = f"{metric}/{split}"
    recorded = rows[key].dropna() if key in rows else pd.Series(dtype=float)
    row = {"split": split, "metric": metric, "final": summary[key], "dense": summary.get(f"{metric}/dense_{split}")}
    if len(recorded) and (split != "test" or summary.get("protocol") == "paper"):
        at = recorded.argmin() if metric == "loss" else recorded.argmax()
        row |= {"best": recorded.iloc[at], "best_step": rows["step"][recorded.index].iloc[at]}
    return row


def _measure_shown(row: "pd.Series[Any]") -> dict[str, str]:
    form = percent if row["metric"] == "accuracy" else number
    best = form(row["best"])
    unit = {"accuracy": "accuracy (%)", "seconds": "time (seconds)"}
    return {
        "split": row["split"],
        "metric": unit.get(row["metric"], row["metric"]),
        "deployed, final": form(row["final"]),
        "deployed, best recorded": best if missing(row["best"]) else f"{best} (step {number(row['best_step'])})",
        "dense, final": form(row["dense"]),
    }


def convergence_table(run: Run) -> Table:
    """Tabulate every record in .csv, at most 30 of them, spaced evenly in log step, in .md and .tex; and the rate."""
    raw = run.convergence.copy()
    if "seconds" in run.rows:
        raw.insert(1, "seconds", run.rows["seconds"])
    own = [column for column in columns_of([run], "convergence") if column["key"] in run.rows]
    raw = raw.join(run.rows[list(dict.fromkeys(column["key"] for column in own if column["key"] not in raw))])
    chosen = raw.iloc[log_spaced(len(raw), SHOWN_ROWS)]
    shown = pd.DataFrame({title: chosen[key].map(number) for key, title in SHOWN.items() if key in chosen})
    shown["within bound"] = chosen["bound_ok"].map(yes_no)
    for column in own:
        values, form = chosen[column["key"]], FORMS[column["form"]]
        if column["above"] is not None:
            factor, other = column["above"]
            if other not in raw:
                continue
            values, form = values > factor * chosen[other], yes_no
        if column["label"]:
            shown[column["label"]] = values.map(form)
    notes = [*_rate_notes(raw, final(run)), *(column["note"] for column in own if column["note"])]
    return Table("convergence", f"Convergence: {name(run)}", raw, known_columns(shown), notes)


def log_spaced(n: int, most: int) -> list[int]:
    """Return at most `most` positions of 0..n-1, first and last among them, evenly spaced on a log scale."""
    if n <= most:
        return list(range(n))
    return sorted({0, *np.unique(np.geomspace(1, n - 1, most - 1).round().astype(int)).tolist()})


def _rate_notes(table: pd.DataFrame, summary: Mapping[str, Any]) -> Iterator[str]:
    """Say how fast the run converged and whether what theory guarantees holds."""
    for key, quantity in (("step_sq_mean", "mean squared step"), ("grad_sq_mean", "mean squared subgradient")):
        fit = fit_slope(table["step"], table[key])
        if fit.first is not None:
            yield (
                f"Fitted slope of the {quantity} on log-log axes: {signed(fit.slope)}, least squares over the {fit.n} "
                f"records from K = {fit.first} to {fit.last} (−1 is decay like 1/K)."
            )
    known = numbers(summary)
    lam, slack, held = known.get("rate/lambda"), known.get("rate/worst_slack"), summary.get("rate/decrease_ok")
    if slack is not None and held is not None:
        claim = f"each step lowers L by at least λ times the squared step, λ = {number(lam)}"
        if lam is None:
            claim = "L falls by at least what the updates of the blocks account for"
        yield (
            f"Sufficient decrease ({claim}) {'held at every record' if held else 'was violated'}; "
            f"worst slack {number(slack)}, in units of the objective (negative: violated)."
        )
    holds = {True: "holds at every record", False: "does not hold"}
    if summary.get("rate/bound_ok") is not None:
        verdict = holds[summary["rate/bound_ok"]]
        yield f"Bound on the mean squared step, (L at step 0 − L at step K) / (λ K): {verdict}."
    if summary.get("rate/grad_bound_ok") is not None and "rate/grad_constant" in known:
        yield (
            "Bound on the mean squared subgradient, b² times that, with the largest quotient of squared subgradient "
            f"and squared step measured on these records as b² = {number(known['rate/grad_constant'])}: "
            f"{holds[summary['rate/grad_bound_ok']]}."
        )
    if "objective/rises" in known:
        yield f"The objective rose at {known['objective/rises']} of {len(table)} records."
    yield (
        "Squared step: squared Euclidean distance between consecutive iterates, all blocks that the solver keeps "
        "together (of NN-BCD W, biases, U and V, and Θ with alpha_theta; with extrapolation from the end of one sweep "
        "to that of the next, while the bound is of the sweeps' own moves), without units; its mean runs over the "
        "steps 1 to K, that of the squared subgradient over the records up to K."
    )
