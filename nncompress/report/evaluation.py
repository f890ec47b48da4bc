"""The three tables of `nncompress eval`: what the network is, how long it takes, how its layers compute."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nncompress.report.tables import Table, known
from nncompress.report.text import UNKNOWN, missing, number, percent, times


def evaluation_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables evaluation, latency and plans (the last two where there is anything in them) of `evaluation.json`."""
    tables = [evaluation_table(found)]
    if found["latency"]:
        tables.append(latency_table(found))
    if found["plans"]:
        tables.append(plans_table(found))
    return tables


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """Accuracy, sizes and operations, dense and compact."""
    raw = pd.DataFrame(_quantities(found), columns=["quantity", "dense", "compact"])
    raw["ratio"] = raw["compact"] / raw["dense"]
    accuracy = raw["quantity"].str.startswith("accuracy")
    shown = pd.DataFrame(
        {
            "quantity": raw["quantity"],
            "dense": raw["dense"].map(number),
            "compact": raw["compact"].map(number).where(~accuracy, raw["compact"].map(percent)),
            "ratio": raw["ratio"].map(number),
            "times smaller": raw["ratio"].map(times),
        }
    )
    notes = [
        *_data_words(found),
        "Dense: the network as its constructor makes it, of full size, in float32; bytes: its parameters and buffers.",
        "Theoretical: counted, not measured. Bits count everything needed to rebuild the weights; MACs are "
        "multiply-accumulates of one sample. Bytes on disk, gzip, zstd: of model.safetensors and model.json, as they "
        "are and compressed by these.",
        f"The outputs of the compact network differ from those of the rebuilt one (plain layers with the weights Δ(Θ)) "
        f"by at most {number(found['difference/rebuilt'])} of the largest.",
        *found["notes"],
        _hardware(found),
    ]
    return Table("evaluation", f"Evaluation: {found['artefact']}", raw, known(shown), notes)


def latency_table(found: Mapping[str, Any]) -> Table:
    """Milliseconds of a forward pass, the networks beside each other."""
    raw = pd.DataFrame(found["latency"])
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
        f"Theoretical speed-up (MACs): {times(found['ratio/macs'])}; fewer MACs do not promise less time.",
        *_unsteady(raw),
        _hardware(found),
    ]
    return Table("latency", f"Latency: {found['artefact']}", raw, known(shown), notes)


def plans_table(found: Mapping[str, Any]) -> Table:
    """How each layer that keeps Θ computed, and how long every way took."""
    raw = pd.DataFrame(found["plans"])
    names = {
        "device": "device", "layer": "layer", "samples": "samples", "plan": "plan", "ms/chain": "chain (ms)",
        "ms/reconstruct": "reconstruct (ms)", "ms/cached": "cached (ms)", "macs/chain": "MACs, chain",
        "macs/dense": "MACs, dense",
    }  # fmt: skip
    shown = pd.DataFrame({title: raw[key].map(_cell) for key, title in names.items() if key in raw})
    notes = [
        "Chain: the samples times the factors of Θ; reconstruct: Δ(Θ) at every pass, then the dense product; cached: "
        "with a Δ(Θ) that is kept. Each layer chooses by MACs and one measurement (ms) at the first batch of a size.",
        _hardware(found),
    ]
    return Table("plans", f"Plans of the compact layers: {found['artefact']}", raw, known(shown), notes)


UNSTEADY = 2.0
"""Greatest over least speed-up of the rounds from which a table says that it is not to be relied on."""
LATENCY_COLUMNS = ["device", "batch size", "dense (ms)", "rebuilt (ms)", "compact (ms)", "dense / compact"]


def _quantities(found: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Quantity, dense and compact; what was not measured is left out."""
    rows: list[tuple[str, float | None, float | None]] = [
        ("accuracy on the test data (%)", None, found.get("accuracy/test")),
        ("loss on the test data", None, found.get("loss/test")),
        ("parameters", found["params/dense"], found["params/compressed"]),
        ("bits (theoretical)", found["bits/dense"], found["bits/compressed"]),
        ("bytes (theoretical)", found["bytes/dense"], found["bytes/theoretical"]),
        *((name, found["bytes/dense"], found[key]) for key, name in STORED.items()),
        ("MACs (theoretical)", found["macs/dense"], found["macs/compressed"]),
    ]
    return [row for row in rows if row[2] is not None]


STORED = {"bytes/disk": "bytes on disk", "bytes/gzip": "bytes, gzip", "bytes/zstd": "bytes, zstd"}


def _data_words(found: Mapping[str, Any]) -> list[str]:
    if "data" not in found:
        return [f"{found['unmeasured'][0].upper()}{found['unmeasured'][1:]}"]
    data = found["data"]
    return [f"Test data: {number(data['samples'])} samples of {data['name']} (preprocessing: {data['preprocessing']})."]


def _latency_shown(rows: pd.DataFrame) -> dict[str, str]:
    line = {"device": rows["device"].iloc[0], "batch size": number(rows["batch_size"].iloc[0])}
    for _, row in rows.iterrows():
        median, lower, upper = (_ms(row[f"seconds/{key}"]) for key in ("median", "lower", "upper"))
        line[f"{row['network']} (ms)"] = f"{median} [{lower}, {upper}]"
        if row["network"] == "compact":
            least, greatest = row["speedup/least"], row["speedup/greatest"]
            line["dense / compact"] = f"{row['speedup']:.2f}× ({least:.2f}–{greatest:.2f})"
    return {column: line.get(column, UNKNOWN) for column in LATENCY_COLUMNS}


def _unsteady(raw: pd.DataFrame) -> list[str]:
    """That the machine had other things to do, where the rounds say so."""
    apart = (raw["speedup/greatest"] / raw["speedup/least"]).max()
    if not apart > UNSTEADY:
        return []
    return [
        f"The rounds differ by up to a factor of {number(apart)}: other processes were busy. Measure again on an idle "
        "machine, with more seconds=..., or with fewer threads (OMP_NUM_THREADS=1)."
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else UNKNOWN if missing(value) else number(value)


def _hardware(found: Mapping[str, Any]) -> str:
    about = found["environment"]
    devices: Sequence[str] = [f"{device}: {name}" for device, name in about["devices"].items()]
    return (
        f"Measured {about['date']}, torch {about['packages']['torch']}, {about['precision']}, "
        f"{about['threads']} threads, {'; '.join(devices)}."
    )
