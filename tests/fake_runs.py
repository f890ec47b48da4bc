"""Run folders as a run would leave them, without running one: smooth curves that obey the convergence theory."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from nncompress.files import write_json
from nncompress.report.style import STYLE, save_figure
from nncompress.results.convergence import rate_summary
from nncompress.results.records import Recorder, read_run

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
    """Write a run folder with n steps; only a done run has a summary and a model."""
    settings = settings or config()
    folder.mkdir(parents=True)
    write_json(folder / "config.yaml", settings)
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
    write_json(folder / "summary.json", summary | settings["choices"])
    _model(folder / "model", rank)


def _model(folder: Path, rank: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    shapes = [[1, 16, rank], [rank, 16, rank], [rank, 16, 1]]
    cores = {"cores": ["plain float32"] * 3, "scale": "plain float32", "places": "codes int64", "joint": "value"}
    about = {
        "kinds": [{"theta": {"class": "Cores"} | cores}],
        "tasks": [{"params": ["fc2.weight"], "kind": 0, "sizes": [*shapes, [2], [320, 8], True]}],
    }
    dense = np.where(random.uniform(size=(10, 256)) < 0.3, random.standard_normal((10, 256)), 0.0)
    numbers = [*(random.standard_normal(shape) for shape in shapes), np.ones(2), dense]
    stream = np.concatenate([each.ravel() for each in numbers]).astype(np.float32)
    bits = random.integers(0, 255, 320).astype(np.uint8)
    save_file({"bits": bits, "float32": stream}, folder / "model.safetensors")
    write_json(folder / "model.json", about)


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
    """All that the legends and labels of a figure say."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    named = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    beside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return " | ".join([*named, *beside])
