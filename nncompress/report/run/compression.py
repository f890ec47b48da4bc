"""The table of a run's sizes: parameters, bits, bytes and work, dense and compressed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from nncompress.report.collect import columns_of, name
from nncompress.report.tables import Table, known_columns
from nncompress.report.text import few, missing, number, numbers, times
from nncompress.results.records import Run

SIZES = (
    ("params", "parameters", 1.0),
    ("bits", "bits", 1.0),
    ("bits", "bytes, theoretical", 0.125),
    ("macs", "MACs", 1.0),
    ("macs", "FLOPs (2 MACs)", 2.0),
)
FILES = {"bytes/disk": "bytes on disk", "bytes/gzip": "bytes on disk, gzip", "bytes/zstd": "bytes on disk, zstd"}

Line = tuple[str, Any, Any, float | None, float | None]
"""Quantity, dense, compressed, ratio, and the Huffman estimate of what is compressed."""


def compression_table(run: Run, summary: Mapping[str, Any]) -> Table:
    """Make the table of size and work of the dense and of the compressed network."""
    lines = list(_lines(summary, columns_of([run], "compression")))
    raw = pd.DataFrame(lines, columns=["quantity", "dense", "compressed", "ratio", "huffman"])
    raw["huffman"] = raw["huffman"].astype(float)
    raw.insert(4, "times_smaller", 1 / raw["ratio"].astype(float).where(raw["ratio"] > 0))
    shown = {key: raw[key].map(number) for key in ("dense", "compressed", "ratio")}
    shown |= {"times smaller": raw["ratio"].map(times), "Huffman": raw["huffman"].map(number)}
    notes = [
        "Ratio: compressed over dense (smaller is more compression); × is 1/ratio. Of the whole network, biases and "
        "batch norm included, but for the rows that name layers.",
        "Bits count everything needed to rebuild the weights: indices, codebooks, masks, ranks, factors.",
        "Parameters: every stored number counts one (a kept value, a code, an entry of a codebook or a factor); "
        "positions count in the bits alone.",
        "Huffman: the bits if codes and positions were Huffman-coded where that is less, an estimate.",
        "MACs: multiply-accumulates of one sample; FLOPs = 2 MACs. Fewer MACs do not promise less time: "
        "`nncompress eval` measures it.",
        *_notes(summary),
    ]
    table = known_columns(pd.DataFrame({"quantity": raw["quantity"]} | shown))
    return Table("compression", f"Compression: {name(run)}", raw, table, notes)


def _lines(summary: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield everything the summary knows."""
    known = numbers(summary)
    for key, quantity, factor in SIZES:
        dense, compressed = known.get(f"{key}/dense"), known.get(f"{key}/compressed")
        huffman = known.get("huffman/compressed") if key == "bits" else None
        if factor < 1 and {"bytes/theoretical", "bytes/dense"} <= set(known):  # the bits do not count the buffers
            stored = 8 * known["bytes/theoretical"]
            huffman = None if huffman is None else stored - known.get("bits/compressed", huffman) + huffman
            dense, compressed = 8 * known["bytes/dense"], stored
        ratio = _ratio(compressed, dense)
        if ratio is None and factor == 1:
            ratio = known.get(f"ratio/{key}")
        if ratio is not None or dense is not None:
            yield quantity, _whole(dense, factor), _whole(compressed, factor), ratio, _whole(huffman, factor)
    dense = known.get("bytes/dense")
    for key, quantity in FILES.items():
        if key in known and dense is not None:
            yield quantity, dense, known[key], _ratio(known[key], dense), None
    if "ratio/tasks" in known:
        yield "parameters of the compressed layers alone", None, None, known["ratio/tasks"], None
    if "sparsity" in known:
        yield "sparsity: share of weights that are zero (%)", None, 100 * known["sparsity"], None, None
    for column in columns:
        size, dense = known.get(column["key"]), known.get(column["dense"])
        if size is not None:
            yield column["label"], dense, size, _ratio(size, dense), None
    for task in summary.get("tasks", []):
        dense, compressed, huffman = task["bits/dense"], task["bits/compressed"], float(task["bits/huffman"])
        yield f"bits of {task['params']}: {task['compression']}", dense, compressed, _ratio(compressed, dense), huffman


def _ratio(size: float | None, dense: float | None) -> float | None:
    return size / dense if dense and size is not None else None


def _whole(size: float | None, factor: float) -> int | None:
    return None if size is None or missing(size * factor) else math.ceil(size * factor)


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the rows of bytes count, the target, what was rounded, and what Θ of each task holds."""
    if "bytes/disk" in summary:
        yield (
            "Bytes on disk: model.safetensors and model.json together, beside the dense network's numbers in 32 bits. "
            "All bytes hold the running statistics of batch norm, the bits do not. gzip and zstd: both files put "
            "through them."
        )
    known = numbers(summary)
    if "target/key" in summary and {"target/requested", "target/achieved"} <= set(known):
        means = f" by {summary['target/setting']}" if "target/setting" in summary else ""
        requested, achieved = (number(known[f"target/{key}"]) for key in ("requested", "achieved"))
        yield f"Target: {summary['target/key']} at most {requested} requested, {achieved} achieved{means}."
    if known.get("round_to", 1) != 1:
        changes = ", ".join(_changes(summary)) or "there was nothing to round"
        yield f"round_to = {summary['round_to']}: {changes}."
    for task in summary.get("tasks", []):
        yield f"Θ of {task['params']}: {task['theta']}; ‖w − Δ(Θ)‖ / ‖w‖ = {number(task['gap'])}."


def _changes(summary: Mapping[str, Any]) -> list[str]:
    """Return what rounding to multiples changed: ranks, rows or channels, and the parameters."""
    layers: dict[str, list[str]] = {}
    for change in summary.get("round_to/changed", []):
        layers.setdefault(_change(change), []).append(change["params"])
    changes = [f"{change} ({few(names)})" for change, names in layers.items()]
    before, after = summary.get("round_to/channels"), summary.get("channels/kept")
    if before is not None and before != after:
        changes.append(f"channels {number(before)} → {number(after)}")
    known = numbers(summary)
    before, after, dense = map(known.get, ("round_to/params", "params/compressed", "params/dense"))
    if changes and dense and before is not None and after is not None:
        shares = " → ".join(number(value / dense) for value in (before, after))
        changes[-1] += f"; parameters {shares} of dense"
    return changes


def _change(change: Mapping[str, Any]) -> str:
    """Say `ranks 13 → 16`, each of the numbers that changed once."""
    if change["before"] is None or change["after"] is None:
        return "chosen among the multiples"
    pairs = dict.fromkeys(zip(change["before"], change["after"], strict=False))
    return f"{change['what']} " + ", ".join(f"{number(a)} → {number(b)}" for a, b in pairs if a != b)
