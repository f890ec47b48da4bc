"""Run folders as a run would leave them, without running one: smooth curves that obey the convergence theory."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nncompress.files import write_json
from nncompress.report.style import STYLE, save_figure
from nncompress.results.convergence import rate_summary
from nncompress.results.records import read_run
from nncompress.results.rows import Recorder
from nncompress.results.run_folder import write_config

LAMBDA = 0.25


def config(seed: int = 0, rank: int = 8, **choices: str) -> dict[str, Any]:
    """A resolved config with the keys the report looks at."""
    taken = {"dataset": "digits", "model": "tt_mlp", "compression": "tt", "solver": "nnbcd"} | choices
    return {
        "seed": seed, "device": "cpu", "data_dir": f"/data/{seed}", "resume": None, "choices": taken,
        "dataset": {"_target_": "nncompress.data.digits.digits", "test_share": 0.2, "seed": seed},
        "model": {"_target_": f"nncompress.models.{taken['model']}", "widths": [256, 256]},
        "compression": {"_target_": f"nncompress.compressions.{taken['compression']}", "rank": rank},
        "solver": {"_target_": f"nncompress.solvers.{taken['solver']}", "num_steps": 100, "tau": 5.0},
    }  # fmt: skip


def rows(n: int, rank: int = 8, seed: int = 0) -> list[dict[str, float | None]]:
    """n + 1 rows of a descent whose objective falls like 1/K, and whose step uses half of each decrease."""
    k = np.arange(n + 1.0)
    noise = np.random.default_rng(seed).uniform(0.9, 1.1, n + 1)
    objective = 40 / (k + 1) + 1.5 + 1 / rank
    decrease = -np.diff(objective, prepend=objective[0])
    step_sq = decrease / (2 * LAMBDA)
    accuracy = 0.1 + (0.88 - 0.3 / rank) * (1 - np.exp(-k / 8)) + 0.002 * noise
    columns = {
        "step": k, "seconds": 0.013 * k * noise.mean(), "objective": objective,
        "loss/train": 2.3 * np.exp(-k / 9) + 0.05, "accuracy/train": accuracy + 0.01,
        "loss/test": 2.3 * np.exp(-k / 9) + 0.11, "accuracy/test": accuracy,
        "accuracy/dense_test": np.minimum(accuracy + 0.2 / rank, 1.0), "gap": 0.5 / (k + 1),
        "step_sq": step_sq, "step_sq/sum": np.cumsum(step_sq), "grad_sq": 3 * step_sq * noise,
        "decrease/slack": decrease - LAMBDA * step_sq, "decrease/lambda": np.full(n + 1, LAMBDA),
        "ratio/params": np.full(n + 1, 0.02 * rank), "ratio/bits": np.full(n + 1, 0.02 * rank),
        "term/fit": 0.4 * objective, "term/activation": 0.3 * objective, "term/linear": 0.2 * objective,
        "term/compression": 0.1 * objective,
    }  # fmt: skip
    table = [{key: float(values[step]) for key, values in columns.items()} for step in range(n + 1)]
    return [{key: row[key] for key in row if key not in STEP_KEYS} for row in table[:1]] + table[1:]


STEP_KEYS = {"step_sq", "step_sq/sum", "grad_sq", "decrease/slack"}


def fake_run(
    folder: Path, settings: dict[str, Any] | None = None, n: int = 100, status: str = "done", reason: str | None = None
) -> Path:
    """Write a run folder with n steps; only a done run has a summary."""
    settings = settings or config()
    folder.mkdir(parents=True)
    write_config(folder, settings)
    rank, seed = settings["compression"]["rank"], settings["seed"]
    with Recorder(folder / "records.jsonl") as recorder:
        for row in rows(n, rank, seed):
            recorder.write(row)
    write_json(folder / "status.json", {"status": status, "reason": reason, "traceback": None, "step": n})
    if status == "done":
        _end(folder, settings, rank)
    return folder


def _end(folder: Path, settings: dict[str, Any], rank: int) -> None:
    last = read_run(folder).rows.iloc[-1].to_dict()
    sizes = {"params/dense": 85_002, "params/compressed": round(85_002 * 0.02 * rank)}
    bits = {key.replace("params", "bits"): 32 * value for key, value in sizes.items()}
    work = {"macs/dense": 84_480, "macs/compressed": 12_000 * rank}
    ratios = dict.fromkeys(("ratio/params", "ratio/bits"), sizes["params/compressed"] / 85002)
    kept = {key: last[key] for key in ("accuracy/test", "accuracy/train", "accuracy/dense_test")}
    times = {"seconds/total": last["seconds"], "seconds/step_median": 0.013, "objective/final": last["objective"]}
    named = {"device": "cpu", "seed": settings["seed"], "steps": int(last["step"]), "status": "done"}
    rates = rate_summary(read_run(folder).rows)
    summary = kept | sizes | bits | work | ratios | {"ratio/tasks": 0.019 * rank} | times | named | rates
    write_json(folder / "summary.json", summary | settings["choices"] | {"weights": _weights(rank)})


def _weights(rank: int) -> dict[str, Any]:
    """What `metrics.weight_histograms` says of a tensor train of three cores and a dense layer with zeros."""
    random = np.random.default_rng(0)
    shapes = {
        f"fc2.weight cores.{k}": shape for k, shape in enumerate(((1, 16, rank), (rank, 16, rank), (rank, 16, 1)))
    }
    histograms = []
    for name, shape in (shapes | {"all other parameters and buffers": (2560,)}).items():
        counts, edges = np.histogram(random.standard_normal(shape), 40)
        ends = {"low": edges[0], "high": edges[-1], "counts": counts.tolist()}
        histograms.append({"name": name, "shape": shape, "zeros": 0.7 if len(shape) == 1 else 0.0} | ends)
    return {"tensors": 4, "largest": histograms}


LEAST = {"png": b"\x89PNG\r\n\x1a\n", "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'}


def undrawn(patch: pytest.MonkeyPatch, but: Collection[str] = ()) -> None:
    """Reports leave the least files where their plots would be, as plots take most of their time; some may be drawn."""

    def saved(figure: Figure, folder: Path, name: str) -> list[Path]:
        if name in but:
            return save_figure(figure, folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        for ending, content in LEAST.items():
            (folder / f"{name}.{ending}").write_bytes(content)
        return [folder / f"{name}.{ending}" for ending in LEAST]

    for kind in ("run", "sweep"):
        patch.setattr(f"nncompress.report.{kind}.plots.save_figure", saved)


def drawn(figure: Figure) -> bytes:
    """The pixels of a figure, drawn small; a warning of it is an error of the test."""
    with matplotlib.rc_context(STYLE):
        figure.set_dpi(50)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return bytes(canvas.buffer_rgba())


def texts(figure: Figure) -> str:
    """All that the legends, keys and labels of a figure say."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    named = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    if not named:  # the panels of a run have keys of their own
        labels = (label for axes in figure.axes for label in axes.get_legend_handles_labels()[1])
        named = list(dict.fromkeys(labels))
    beside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return " | ".join([*named, *beside])
