"""The three tables of one run: accuracy, compression, convergence."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nncompress.report.collect import final, name
from nncompress.report.tables import Table, known
from nncompress.report.text import few, missing, number, percent, signed, times, yes_no
from nncompress.results.convergence import convergence, fit_slope
from nncompress.results.records import Run

SHOWN_ROWS = 30


def run_tables(run: Run) -> list[Table]:
    """Accuracy, compression and convergence of a run with at least one record."""
    summary = final(run)
    return [accuracy_table(run, summary), compression_table(run, summary), convergence_table(run)]


def accuracy_table(run: Run, summary: Mapping[str, Any]) -> Table:
    """Loss and accuracy of the deployed network, at the end and at their best, beside those of the dense weights."""
    rows = [
        _measure(run.rows, summary, split, metric)
        for split in ("train", "validation", "test")
        for metric in ("loss", "accuracy")
        if f"{metric}/{split}" in summary
    ]
    rows += [{"split": "run", "metric": "steps", "final": summary.get("steps")}]
    rows += [{"split": "run", "metric": "seconds", "final": summary.get("seconds/total")}]
    raw = pd.DataFrame(rows, columns=["split", "metric", "final", "best", "best_step", "dense"])
    notes = [
        "Deployed: the network rebuilt from the compressed theta (Θ). Dense: the same run's uncompressed weights w.",
        "Best recorded: the best value seen during the run, at the step in brackets (of the test data, with which "
        f"nothing is to be selected, under protocol=paper alone); it selects nothing, {_end(summary)}.",
        "Seconds: time inside the solver's start and steps; evaluation is not counted.",
        *_unfinished(run),
    ]
    shown = pd.DataFrame([_measure_shown(row) for _, row in raw.iterrows()])
    return Table("accuracy", f"Accuracy: {name(run)}", raw, known(shown), notes)


def _end(summary: Mapping[str, Any]) -> str:
    """Which network the run ended with."""
    kept = summary.get("step/kept")
    if missing(kept) or kept == summary.get("steps"):
        return "the network kept is the final one"
    return f"the network kept is that of step {number(kept)}, whose compressed training objective was the lowest"


def compression_table(run: Run, summary: Mapping[str, Any]) -> Table:
    """Size and work of the dense and of the compressed network."""
    raw = pd.DataFrame(_sizes(summary), columns=["quantity", "dense", "compressed", "ratio"])
    raw["times_smaller"] = 1 / raw["ratio"].astype(float).where(raw["ratio"] > 0)
    raw["huffman"] = raw["quantity"].map(_huffman(summary)).astype(float)
    notes = [
        "Ratio: compressed over dense (smaller is more compression); × is 1/ratio. Of the whole network, biases and "
        "batch norm included, but for the rows that name layers.",
        "Bits count everything needed to rebuild the weights: indices, codebooks, masks, ranks, factors.",
        "Parameters: every stored number counts one (a kept value, a code, an entry of a codebook or a factor); "
        "positions count in the bits alone.",
        "Huffman: the bits if codes and positions were Huffman-coded where that is less, an estimate.",
        "MACs: multiply-accumulates of one sample; FLOPs = 2 MACs. Fewer MACs do not promise less time: "
        "`nncompress eval` measures it.",
        *_file_words(summary),
        *_target_words(summary),
        *_rounding_words(summary),
        *_task_words(summary),
        *_unfinished(run),
    ]
    shown = pd.DataFrame([_size_shown(row) for _, row in raw.iterrows()], columns=SIZE_COLUMNS)
    return Table("compression", f"Compression: {name(run)}", raw, known(shown), notes)


def convergence_table(run: Run) -> Table:
    """Every record in .csv; at most 30, spaced evenly in log step, in .md and .tex; then the rate in words."""
    raw = convergence(run.rows)
    if "seconds" in run.rows:
        raw.insert(1, "seconds", run.rows["seconds"])
    for mark, keys in (
        ("mu", CONSTRAINED), ("channels/kept", SLIMMED), ("fw_gap", FRANK_WOLFE), ("term/regulariser", REGULARISED)
    ):  # fmt: skip
        if mark in run.rows:
            raw = raw.join(run.rows[[key for key in keys if key in run.rows and key not in raw]])
    chosen = raw.iloc[log_spaced(len(raw), SHOWN_ROWS)]
    shown = pd.DataFrame({title: chosen[key].map(number) for key, title in SHOWN.items() if key in chosen})
    if raw["bound_ok"].notna().any() or "alpha" not in raw:
        shown["within bound"] = chosen["bound_ok"].map(yes_no)
    if "curvature" in raw:
        shown["α > curvature/2"] = (chosen["alpha"] > chosen["curvature"] / 2).map(yes_no)
    notes = [*_rate_words(raw, final(run)), *_curvature_words(raw), *_set_words(raw), *_unfinished(run)]
    return Table("convergence", f"Convergence: {name(run)}", raw, known(shown), notes)


SHOWN = {
    "step": "step K", "seconds": "seconds", "objective": "objective L", "step_sq": "squared step",
    "step_sq_mean": "mean squared step", "bound": "its bound", "grad_sq_mean": "mean squared subgradient",
    "grad_bound": "bound of that", "slack": "slack", "worst_slack": "worst slack",
    "term/loss": "loss", "term/penalty": "penalty C(ξ)", "term/coupling": "β/2 ‖γ − ξ‖²", "step_sq/W": "‖ΔW‖²",
    "step_sq/gamma": "‖Δγ‖²", "step_sq/xi": "‖Δξ‖²", "alpha": "α", "curvature": "curvature", "channels/zero": "ξ = 0",
    "channels/kept": "channels kept",
    "term/regulariser": "regulariser", "fw_gap": "Frank-Wolfe gap", "eta": "η", "eta/clipped": "η clipped",
    "gauge": "gauge / radius",
    "mu": "μ", "gap": "gap", "loss/w": "loss of w", "lam/norm": "‖λ‖", "kkt/cosine": "cosine of λ and ∇L(w)",
}  # fmt: skip
CONSTRAINED = ("mu", "gap", "loss/w", "lam/norm", "kkt/cosine", "kkt/distance", "c_step/error")
"""Records of solvers of the constraint w = Δ(Θ)."""
SLIMMED = (
    "term/loss", "term/penalty", "term/coupling", "step_sq/W", "step_sq/gamma", "step_sq/xi", "alpha", "curvature",
    "channels/zero", "channels/kept",
)  # fmt: skip
"""Records of solvers that remove channels."""
FRANK_WOLFE = ("fw_gap", "eta", "eta/clipped", "gauge")
"""Records of Frank-Wolfe."""
REGULARISED = ("term/loss", "term/regulariser")
"""Records of SGD with a regulariser."""
SIZE_COLUMNS = ["quantity", "dense", "compressed", "ratio", "times smaller", "Huffman"]


def log_spaced(n: int, most: int) -> list[int]:
    """At most `most` positions of 0..n-1, first and last among them, evenly spaced on a log scale."""
    if n <= most:
        return list(range(n))
    return sorted({0, *np.unique(np.geomspace(1, n - 1, most - 1).round().astype(int)).tolist()})


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


def _sizes(summary: Mapping[str, Any]) -> list[tuple[str, Any, Any, float | None]]:
    """Quantity, dense, compressed and ratio of everything the summary knows."""
    rows: list[tuple[str, Any, Any, float | None]] = []
    stored = summary.get("bytes/theoretical")  # with the buffers, that the bits do not count
    for key, quantity, factor in SIZES:
        dense, compressed = summary.get(f"{key}/dense"), summary.get(f"{key}/compressed")
        if quantity == THEORETICAL and stored is not None:
            dense, compressed = (8 * size for size in (summary["bytes/dense"], stored))
        measured = compressed / dense if dense and compressed is not None else None
        ratio = measured if measured is not None else summary.get(f"ratio/{key}") if factor == 1 else None
        if ratio is not None or dense is not None:
            rows.append((quantity, _scaled(dense, factor), _scaled(compressed, factor), ratio))
    if "bytes/disk" in summary:
        dense = summary["bytes/dense"]
        for key, quantity in FILES.items():
            rows.append((quantity, dense, summary[key], summary[key] / dense))
    if "ratio/tasks" in summary:
        rows.append(("parameters of the compressed layers alone", None, None, summary["ratio/tasks"]))
    if "sparsity" in summary:
        rows.append(("sparsity: share of weights that are zero (%)", None, 100 * summary["sparsity"], None))
    if "channels/total" in summary:
        total, kept = summary["channels/total"], summary["channels/kept"]
        rows.append(("channels with a scaling factor", total, kept, kept / total))
    for task in summary.get("tasks", []):
        dense, compressed = task["bits/dense"], task["bits/compressed"]
        rows.append((_task_name(task), dense, compressed, compressed / dense))
    return rows


def _task_name(task: Mapping[str, Any]) -> str:
    return f"bits of {task['params']}: {task['compression']}"


def _huffman(summary: Mapping[str, Any]) -> dict[str, float]:
    """The Huffman estimate of each quantity in bits or bytes."""
    found = {_task_name(task): float(task["bits/huffman"]) for task in summary.get("tasks", [])}
    bits = summary.get("huffman/compressed")
    if bits is None:
        return found
    saved = summary.get("bits/compressed", bits) - bits
    stored = 8 * summary["bytes/theoretical"] - saved if "bytes/theoretical" in summary else bits
    return found | {"bits": bits, THEORETICAL: math.ceil(stored / 8)}


def _task_words(summary: Mapping[str, Any]) -> list[str]:
    """What Θ of each task holds, its ranks and counts among it, and how far Δ(Θ) is from w."""
    return [
        f"Θ of {task['params']}: {task['theta']}; ‖w − Δ(Θ)‖ / ‖w‖ = {number(task['gap'])}."
        for task in summary.get("tasks", [])
    ]


def _target_words(summary: Mapping[str, Any]) -> list[str]:
    if "target/requested" not in summary:
        return []
    means = f" by {summary['target/setting']}" if "target/setting" in summary else ""
    return [
        f"Target: {summary['target/key']} at most {number(summary['target/requested'])} requested, "
        f"{number(summary['target/achieved'])} achieved{means}."
    ]


def _rounding_words(summary: Mapping[str, Any]) -> list[str]:
    """What rounding to multiples changed: ranks, rows or channels, and the parameters."""
    multiple = summary.get("round_to", 1)
    if multiple == 1:
        return []
    names: dict[str, list[str]] = {}
    for change in summary.get("round_to/changed", []):
        names.setdefault(_change_words(change), []).append(change["params"])
    said = [f"{words} ({few(layers)})" for words, layers in names.items()]
    before, after = summary.get("round_to/channels"), summary.get("channels/kept")
    if before is not None and before != after:
        said.append(f"channels {number(before)} → {number(after)}")
    params, dense = summary.get("round_to/params"), summary.get("params/dense")
    if said and params is not None:
        shares = " → ".join(number(value / dense) for value in (params, summary["params/compressed"]))
        said[-1] += f"; parameters {shares} of dense"
    return [f"round_to = {multiple}: {', '.join(said) or 'there was nothing to round'}."]


def _change_words(change: Mapping[str, Any]) -> str:
    """`ranks 13 → 16`; the numbers that changed, each once."""
    if change["before"] is None:
        return "chosen among the multiples"
    pairs = dict.fromkeys(zip(change["before"], change["after"], strict=True))
    return f"{change['what']} " + ", ".join(f"{number(a)} → {number(b)}" for a, b in pairs if a != b)


THEORETICAL = "bytes, theoretical"
FILES = {"bytes/disk": "bytes on disk", "bytes/gzip": "bytes on disk, gzip", "bytes/zstd": "bytes on disk, zstd"}


def _file_words(summary: Mapping[str, Any]) -> list[str]:
    """What the rows of bytes count."""
    if "bytes/disk" not in summary:
        return []
    return [
        "Bytes on disk: model.safetensors and model.json together, beside the dense network's numbers in 32 bits. All "
        "bytes hold the running statistics of batch norm, the bits do not. gzip and zstd: both files put through them."
    ]


SIZES = (
    ("params", "parameters", 1.0),
    ("bits", "bits", 1.0),
    ("bits", THEORETICAL, 0.125),
    ("macs", "MACs", 1.0),
    ("macs", "FLOPs (2 MACs)", 2.0),
)


def _scaled(value: Any, factor: float) -> float | None:
    """Whole: a part of a byte takes one."""
    return None if value is None else math.ceil(value * factor)


def _size_shown(row: "pd.Series[Any]") -> dict[str, str]:
    sizes = [number(row[key]) for key in ("dense", "compressed", "ratio")]
    return dict(zip(SIZE_COLUMNS, [row["quantity"], *sizes, times(row["ratio"]), number(row["huffman"])], strict=True))


def _rate_words(table: pd.DataFrame, summary: Mapping[str, Any]) -> list[str]:
    words = [
        _slope_words("mean squared step", table["step"], table["step_sq_mean"]),
        _slope_words("mean squared subgradient", table["step"], table["grad_sq_mean"]),
    ]
    lam, slack = summary.get("rate/lambda"), summary.get("rate/worst_slack")
    if slack is not None:
        held = "held at every record" if summary["rate/decrease_ok"] else "was violated"
        claim = f"each step lowers L by at least λ times the squared step, λ = {number(lam)}"
        if lam is None:
            claim = "L falls by at least what the updates of the blocks account for"
        words.append(
            f"Sufficient decrease ({claim}) {held}; "
            f"worst slack {number(slack)}, in units of the objective (negative: violated)."
        )
    if summary.get("rate/bound_ok") is not None:
        held = "holds at every record" if summary["rate/bound_ok"] else "does not hold"
        words.append(f"Bound on the mean squared step, (L at step 0 − L at step K) / (λ K): {held}.")
    if summary.get("rate/grad_bound_ok") is not None:
        held = "holds at every record" if summary["rate/grad_bound_ok"] else "does not hold"
        words.append(
            "Bound on the mean squared subgradient, b² times that, with the largest quotient of squared subgradient "
            f"and squared step measured on these records as b² = {number(summary['rate/grad_constant'])}: {held}."
        )
    if summary.get("objective/rises") is not None:
        words.append(f"The objective rose at {summary['objective/rises']} of {len(table)} records.")
    return [
        *filter(None, words),
        "Squared step: squared Euclidean distance between consecutive iterates, all blocks that the solver keeps "
        "together (of NN-BCD W, biases, U and V, and Θ with alpha_theta; with extrapolation from the end of one sweep "
        "to that of the next, while the bound is of the sweeps' own moves), without units; its mean runs over the "
        "steps 1 to K, that of the squared subgradient over the records up to K.",
    ]


def _curvature_words(table: pd.DataFrame) -> list[str]:
    """What the columns of proximal slimming mean."""
    if "curvature" not in table:
        return []
    return [
        "Curvature: the largest |curvature| of the loss on solver.curvature_samples of the training samples, drawn "
        "once, by the power method: a lower estimate of the Lipschitz constant of its gradient on these samples. With "
        "full gradients the objective falls whenever α is above half of the constant of the whole loss; minibatches "
        "and momentum leave it a guide."
    ]


def _set_words(table: pd.DataFrame) -> list[str]:
    """What the columns of Frank-Wolfe mean."""
    if "fw_gap" not in table:
        return []
    return [
        "Frank-Wolfe gap: ⟨∇L(w), w − LMO(∇L(w))⟩ over the constrained parameters, L in evaluation mode on "
        "solver.gap_samples of the training samples, drawn once; 0 exactly where w is stationary for these within the "
        "sets. η: the step size, its "
        "mean over the sets and the minibatches of an epoch; clipped: the part of them in which it was cut down to 1. "
        "Gauge / radius: of the set in which the weights lie furthest out; at most 1, up to rounding."
    ]


def _slope_words(what: str, step: "pd.Series[int]", values: "pd.Series[float]") -> str:
    fit = fit_slope(step, values)
    if fit.first is None:
        return ""
    return (
        f"Fitted slope of the {what} on log-log axes: {signed(fit.slope)}, least squares over the {fit.n} records from "
        f"K = {fit.first} to {fit.last} (−1 is decay like 1/K)."
    )


def _unfinished(run: Run) -> list[str]:
    status, reason = run.status["status"], run.status.get("reason")
    if status == "running" and run.summary:  # the report is written between the summary and the last status
        status = run.summary.get("status", "done")
    return [] if status == "done" else [f"This run is not done: {status}" + (f" ({reason})." if reason else ".")]
