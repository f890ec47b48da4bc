"""The three tables of `nncompress eval`: what the network is, how long it takes, how its layers compute."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nncompress.report.tables import Table, known_columns
from nncompress.report.text import UNKNOWN, clean, number, percent, times

UNSTEADY = 2.0
"""Greatest over least speed-up of the rounds from which a table says that it is not to be relied on."""
LATENCY_COLUMNS = ["device", "batch size", "dense (ms)", "rebuilt (ms)", "compact (ms)", "dense / compact"]
STORED = {"bytes/disk": "bytes on disk", "bytes/gzip": "bytes, gzip", "bytes/zstd": "bytes, zstd"}


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Make the tables evaluation, latency and ways (the last two where there is anything in them).

    evaluation: as in `evaluation.json`.
    """
    evaluation = clean(evaluation)
    tables = [evaluation_table(evaluation)]
    if evaluation["latency"]:
        tables.append(latency_table(evaluation))
    if evaluation["ways"]:
        tables.append(ways_table(evaluation))
    return tables


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Tabulate accuracy, sizes and operations, dense and compact."""
    raw = pd.DataFrame(_quantities(evaluation), columns=["quantity", "dense", "compact"])
    raw["ratio"] = raw["compact"] / raw["dense"]
    accuracy = raw["quantity"].str.startswith("accuracy")
    shown = pd.DataFrame({
        "quantity": raw["quantity"], "dense": raw["dense"].map(number),
        "compact": raw["compact"].map(number).where(~accuracy, raw["compact"].map(percent)),
        "ratio": raw["ratio"].map(number), "times smaller": raw["ratio"].map(times),
    })  # fmt: skip
    if "data" in evaluation:
        data = evaluation["data"]
        samples = f"{number(data['samples'])} samples of {data['name']}"
        measured = f"Test data: {samples} (preprocessing: {data['preprocessing']})."
    else:
        measured = evaluation["unmeasured"][0].upper() + evaluation["unmeasured"][1:]
    notes = [
        measured,
        "Dense: the network as its constructor makes it, of full size, in float32; bytes: its parameters and buffers.",
        "Theoretical: counted, not measured. Bits count everything needed to rebuild the weights; MACs are "
        "multiply-accumulates of one sample. Bytes on disk, gzip, zstd: of model.safetensors and model.json, as they "
        "are and compressed by these.",
        f"The outputs of the compact network differ from those of the rebuilt one (plain layers with the weights Δ(Θ)) "
        f"by at most {number(evaluation['difference/rebuilt'])} of the largest.",
        *evaluation["notes"],
        _hardware(evaluation),
    ]
    return Table("evaluation", f"Evaluation: {evaluation['artefact']}", raw, known_columns(shown), notes)


def latency_table(evaluation: Mapping[str, Any]) -> Table:
    """Tabulate milliseconds of a forward pass, the networks beside each other."""
    raw = pd.DataFrame(evaluation["latency"])
    shown = pd.DataFrame(
        [_latency_shown(rows) for _, rows in raw.groupby(["device", "batch_size"], sort=False)], columns=LATENCY_COLUMNS
    )
    kept = "rebuilt" in set(raw["network"])
    notes = [
        "Median of a forward pass [first and third quartile of the blocks measured], after warm-up; the networks are "
        "measured in turns, in five rounds; dense / compact: the median of the rounds (least–greatest).",
        "Rebuilt: plain layers with the weights Δ(Θ), what remains of the network where channels are removed."
        if kept
        else "The compact network is made of plain layers: what remains of the dense one.",
        f"Theoretical speed-up (MACs): {times(evaluation['ratio/macs'])}; fewer MACs do not promise less time.",
        *_unsteady(raw),
        _hardware(evaluation),
    ]
    return Table("latency", f"Latency: {evaluation['artefact']}", raw, known_columns(shown), notes)


def ways_table(evaluation: Mapping[str, Any]) -> Table:
    """Tabulate how each layer that keeps Θ computed, and how long every way took."""
    raw = pd.DataFrame(evaluation["ways"])
    names = {
        "device": "device", "layer": "layer", "samples": "samples", "way": "way", "ms/chain": "chain (ms)",
        "ms/reconstruct": "reconstruct (ms)", "ms/cached": "cached (ms)", "macs/chain": "MACs, chain",
        "macs/dense": "MACs, dense",
    }  # fmt: skip
    shown = pd.DataFrame(
        {
            title: raw[key].map(lambda cell: cell if isinstance(cell, str) else number(cell))
            for key, title in names.items()
            if key in raw
        }
    )
    notes = [
        "Chain: the samples times the factors of Θ; reconstruct: Δ(Θ) at every pass, then the dense product; cached: "
        "with a Δ(Θ) that is kept. Each layer chooses by MACs and one measurement (ms) at the first batch of a size.",
        _hardware(evaluation),
    ]
    return Table("ways", f"Ways of the compact layers: {evaluation['artefact']}", raw, known_columns(shown), notes)


def _quantities(evaluation: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Return quantity, dense and compact; what was not measured is left out."""
    rows: list[tuple[str, float | None, float | None]] = [
        ("accuracy on the test data (%)", None, evaluation.get("accuracy/test")),
        ("loss on the test data", None, evaluation.get("loss/test")),
        ("parameters", evaluation["params/dense"], evaluation["params/compressed"]),
        ("bits (theoretical)", evaluation["bits/dense"], evaluation["bits/compressed"]),
        ("bytes (theoretical)", evaluation["bytes/dense"], evaluation["bytes/theoretical"]),
        *((name, evaluation["bytes/dense"], evaluation[key]) for key, name in STORED.items()),
        ("MACs (theoretical)", evaluation["macs/dense"], evaluation["macs/compressed"]),
    ]
    return [row for row in rows if row[2] is not None]


def _latency_shown(rows: pd.DataFrame) -> dict[str, str]:
    line = {"device": rows["device"].iloc[0], "batch size": number(rows["batch_size"].iloc[0])}
    for _, row in rows.iterrows():
        median, lower, upper = (f"{1000 * row[f'seconds/{key}']:.3g}" for key in ("median", "lower", "upper"))
        line[f"{row['network']} (ms)"] = f"{median} [{lower}, {upper}]"
        if row["network"] == "compact":
            least, greatest = row["speedup/least"], row["speedup/greatest"]
            line["dense / compact"] = f"{row['speedup']:.2f}× ({least:.2f}–{greatest:.2f})"
    return {column: line.get(column, UNKNOWN) for column in LATENCY_COLUMNS}


def _unsteady(raw: pd.DataFrame) -> list[str]:
    """Say that the machine had other things to do, where the rounds do."""
    apart = (raw["speedup/greatest"] / raw["speedup/least"]).max()
    if not apart > UNSTEADY:
        return []
    return [
        f"The rounds differ by up to a factor of {number(apart)}: other processes were busy. Measure again on an idle "
        "machine, with more seconds=..., or with fewer threads (OMP_NUM_THREADS=1)."
    ]


def _hardware(evaluation: Mapping[str, Any]) -> str:
    about = evaluation["environment"]
    devices: Sequence[str] = [f"{device}: {name}" for device, name in about["devices"].items()]
    return (
        f"Measured {about['date']}, torch {about['packages']['torch']}, {about['precision']}, "
        f"{about['threads']} threads, {'; '.join(devices)}."
    )
