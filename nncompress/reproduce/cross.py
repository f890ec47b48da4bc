"""Every main solver with every main compression: one table, its plots, and the latencies beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nncompress.errors import NNCompressError
from nncompress.files import read_json, write_json
from nncompress.report.collect import final
from nncompress.report.style import LINES, STYLE, group_styles, log_ticks, new_figure, pareto_front
from nncompress.report.tables import Table, known_columns
from nncompress.report.text import UNKNOWN, number, percent, spread
from nncompress.results.records import SUMMARY, Run, read_status, run_folders

log = logging.getLogger(__name__)

LATENCIES = "latency.json"
"""The latencies of a run's network, beside its other files."""
SECONDS = 0.2
"""Least measuring time of each latency."""
BATCH = 64
PLANES = {"bits": "bits left", "macs": "MACs left", "latency": f"time of a batch of {BATCH}, compact over dense"}
BANDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, float("inf"))
"""Sizes up to which the best setting is looked for; one that is above by less than `SLACK` of it still counts, as the
positions of pruned weights may take a little more at the end than when a target was met."""
SLACK = 0.02


def cross_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each network, solver, compression and size: means over the seeds, whether it is on a front.

    Columns: network, solver, compression, size, n, accuracy, accuracy std, bits, macs, latency (compact over dense),
    epochs, and front/bits, front/macs, front/latency within its network.
    """
    rows = [_row(run) for run in runs if run.status["status"] == "done"]
    if not rows:
        return pd.DataFrame()
    by = ["network", "solver", "compression", "size"]
    numbers = dict.fromkeys(("accuracy", *PLANES, "epochs"), float)
    groups = pd.DataFrame(rows).astype(numbers).groupby(by, sort=False)
    frame = groups.mean(numeric_only=True).assign(n=groups.size()).reset_index()
    frame["accuracy std"] = groups["accuracy"].std(ddof=1).to_numpy()
    for plane in PLANES:
        frame[f"front/{plane}"] = False
        for _, part in frame.groupby("network"):
            front = pareto_front(part[plane], part["accuracy"])
            frame.loc[part.index[front], f"front/{plane}"] = True
    return frame


def cross_tables(frame: pd.DataFrame, title: str) -> Iterator[Table]:
    """Yield the table of the best settings for each network, measure and size, and that of every setting."""
    if frame.empty:
        return
    shown = pd.DataFrame(
        {
            "network": frame["network"], "solver": frame["solver"], "compression": frame["compression"],
            "size": frame["size"],
            "n": frame["n"].map(str),
            "test accuracy (%)": [
                spread(percent(mean), percent(std))
                for mean, std in zip(frame["accuracy"], frame["accuracy std"], strict=True)
            ],
            **{words: frame[plane].map(number) for plane, words in PLANES.items()},
            "epochs": frame["epochs"].map(number),
            "on the front of": [
                ", ".join(plane for plane in PLANES if row[f"front/{plane}"]) or UNKNOWN for _, row in frame.iterrows()
            ],
        }
    )  # fmt: skip
    notes = [
        "Left: compressed over dense of the whole network (smaller is more compression). Front: nothing of the same "
        "network is both smaller and more accurate.",
        "Epochs: passes over the training data, those of the reference included; a sweep of NN-BCD counts as one.",
    ]
    best = _best(frame)
    yield Table("best", f"The most accurate at each size: {title}", best, known_columns(best), [
        f"Up to: the largest measure that is allowed, and {100 * SLACK:g} % of it. Behind it: the best of another "
        "solver, by so many points.",
        *reading(frame, best),
    ])  # fmt: skip
    yield Table("cross", f"Every setting: {title}", frame, known_columns(shown), notes)


def cross_plots(frame: pd.DataFrame) -> dict[str, Figure | None]:
    """Draw a figure for each network: accuracy against bits, MACs and latency with their fronts."""
    if frame.empty:
        return {}
    return {f"cross_{network}": _figure(str(network), part) for network, part in frame.groupby("network", sort=False)}


def reading(frame: pd.DataFrame, best: pd.DataFrame) -> Iterator[str]:
    """Say for each network and measure who is the most accurate at how many sizes, and who is on no front."""
    for network, part in best.groupby("network", sort=False):
        for measure, sizes in part.groupby("measure", sort=False):
            solvers, compressions = _times(sizes["solver"]), _times(sizes["compression"])
            yield f"{network}, {measure}: most accurate at how many of {len(sizes)} sizes: {solvers}; {compressions}."
        whole = frame[frame["network"] == network]
        fronts = whole[[f"front/{plane}" for plane in PLANES]].any(axis=1)
        for kind in ("solver", "compression"):
            never = [each for each in whole[kind].unique() if each not in set(whole[kind][fronts])]
            if never:
                yield f"{network}: on no front is {kind} {', '.join(map(str, never))}."


def _times(names: pd.Series[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in names.value_counts().items())


def _row(run: Run) -> dict[str, Any]:
    settings, ends = run.settings, final(run)
    return {
        "network": f"{settings.get('model')}-{settings.get('dataset')}", "solver": settings.get("solver"),
        "compression": settings.get("compression"), "size": str(settings.get("target.bits") or ""),
        "accuracy": ends.get("accuracy/test"), "bits": ends.get("ratio/bits"), "macs": ends.get("ratio/macs"),
        "latency": _latency(run.folder), "epochs": _epochs(settings, ends),
    }  # fmt: skip


def _latency(folder: Path) -> float | None:
    """Return the time of the compact network over that of the dense one, where it was measured."""
    rows = (read_json(folder / LATENCIES) or {}).get("latency")
    for row in reversed(rows if isinstance(rows, list) else []):
        if isinstance(row, dict) and (row.get("batch_size"), row.get("network")) == (BATCH, "compact"):
            speedup = row.get("speedup")
            return 1 / speedup if isinstance(speedup, float) and speedup > 0 else None
    return None


def _epochs(settings: Mapping[str, Any], ends: Mapping[str, Any]) -> float | None:
    """Return the passes over the training data, those for the reference included."""
    own = ends.get("epochs", ends.get("steps"))
    trained = settings.get("reference_training.num_steps") if settings.get("reference") else 0
    return None if own is None else float(own) + float(trained or 0)


def _best(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for network, plane in product(frame["network"].unique(), (plane for plane in PLANES if frame[plane].notna().any())):
        part = frame[frame["network"] == network]
        ordered = part.sort_values(["accuracy", plane], ascending=[False, True], kind="stable")
        size = ordered[plane] / (1 + SLACK)
        for low, high in zip((0.0, *BANDS), BANDS, strict=False):
            allowed = ordered[size <= high]
            if not ((size > low) & (size <= high)).any():
                continue
            first = allowed.iloc[0]
            others = allowed[allowed["solver"] != first["solver"]]
            behind = UNKNOWN
            if len(others):
                second = others.iloc[0]
                points = 100 * (first["accuracy"] - second["accuracy"])
                behind = f"{second['solver']} {second['compression']} ({points:.2f})"
            rows.append({
                "network": network, "measure": PLANES[plane], "up to": f"{high:g}", "solver": first["solver"],
                "compression": first["compression"], "test accuracy (%)": percent(first["accuracy"]),
                "at": number(first[plane]), "behind it": behind,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _figure(network: str, frame: pd.DataFrame) -> Figure:
    """Tell solvers apart by colours, once they are used up with empty points, and compressions by shapes of points."""
    solvers, compressions = list(frame["solver"].unique()), list(frame["compression"].unique())
    colours = dict(zip(solvers, group_styles(len(solvers)), strict=True))
    shapes = dict(zip(compressions, "os^DvPX<>phd*H8"[: len(compressions)].ljust(len(compressions), "o"), strict=True))
    planes = [plane for plane in PLANES if frame[plane].notna().any()]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(1.5 + 4.6 * len(planes), 6, f"Test accuracy against size: {network}")
        drawn = figure.subplots(1, len(planes), sharey=True, squeeze=False)[0]
        for axes, plane in zip(drawn, planes, strict=True):
            _plane(axes, frame[frame[plane].notna()], plane)
            for _, row in frame.iterrows():
                style = colours[row["solver"]]
                axes.plot(
                    row[plane], 100 * row["accuracy"], shapes[row["compression"]], color=style.colour, alpha=0.85,
                    fillstyle="full" if style.line == LINES[0] else "none",
                )  # fmt: skip
        drawn[0].set_ylabel("test accuracy of the deployed network (%)")
        for solver in solvers:
            style = colours[solver]
            drawn[0].plot([], [], style.line, color=style.colour, linewidth=4, label=solver)
        for compression in compressions:
            drawn[0].plot([], [], shapes[compression], color="0.3", label=compression)
        handles, labels = drawn[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize=8)
    return figure


def _plane(axes: Axes, frame: pd.DataFrame, plane: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(PLANES[plane])
    front = frame[frame[f"front/{plane}"]].sort_values(plane)
    axes.step(front[plane], 100 * front["accuracy"], where="post", color="0.35", linewidth=1.3, zorder=1, label="_")
    low, high = float(frame[plane].min()) / 1.3, float(frame[plane].max()) * 1.3
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high)


def measure_latencies(folder: Path) -> None:
    """Write latency.json into the folder of each finished run below `folder` that has none, on the run's own device."""
    from nncompress.artefact.model import open_artefact
    from nncompress.config.evaluation import read_settings
    from nncompress.experiment.evaluation import measure

    settings = read_settings(["~dataset", f"batch_sizes=[1,{BATCH}]", f"seconds={SECONDS}"], None)
    for run in run_folders([folder]):
        if read_status(run)["status"] != "done" or (run / LATENCIES).exists():
            continue
        device = (read_json(run / SUMMARY) or {}).get("device", "auto")
        try:
            evaluation = measure(open_artefact(run, ()), replace(settings, device=device), required=False)
        except NNCompressError as error:
            log.warning("%s: no latency, %s", run, error)
            continue
        write_json(run / LATENCIES, {"latency": evaluation["latency"], "environment": evaluation.get("environment")})
