"""The figures of runs beside published ones: which are taken, when they pass, when a claim holds, the best of all."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from cases import case
from fake_runs import config, fake_run

from nncompress.files import read_json, write_json
from nncompress.reproduce.cross import cross_frame, cross_tables
from nncompress.reproduce.figures import METRICS, figure, metric_value, shared_parts
from nncompress.reproduce.protocol import Claim, PaperStudy, Protocol, Selection
from nncompress.reproduce.rows import FAIL, NOT_COMPARABLE, PASS, Reproduction, claim_row, verdict
from nncompress.results.records import read_run


def test_without_a_latency_or_a_small_network_the_tables_of_cross_are_made(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "0", config(), n=3)
    ends = {"accuracy/test": 0.9, "ratio/bits": 1.5, "ratio/macs": 1.2, "steps": 10}
    write_json(folder / "summary.json", (read_json(folder / "summary.json") or {}) | ends)
    frame = cross_frame([read_run(folder)])
    assert frame["latency"].isna().all()
    assert [table.name for table in cross_tables(frame, "x")] == ["best", "cross"]
    assert cross_frame([]).empty
    assert list(cross_tables(cross_frame([]), "x")) == []


def test_a_figure_passes_unless_it_is_worse_by_more_than_the_tolerance() -> None:
    known = [
        (-0.4, 1, 0.5, True, PASS), (-0.6, 1, 0.5, True, FAIL), (3.0, 1, 0.5, True, PASS),
        (0.4, -1, 0.5, True, PASS), (0.6, -1, 0.5, True, FAIL), (-3.0, -1, 0.5, True, PASS),
        (0.01, 0, 0.0, True, FAIL), (0.0, 0, 0.0, True, PASS), (-0.01, 0, 0.02, True, PASS),
        (3.0, 1, 0.5, False, NOT_COMPARABLE), (None, 1, 0.5, True, NOT_COMPARABLE),
    ]  # fmt: skip
    for difference, better, tolerance, judged, expected in known:
        with case(difference=difference, better=better, tolerance=tolerance, judged=judged):
            assert verdict(difference, better, tolerance, judged) == expected


def test_figures_are_taken_at_the_end_at_a_step_and_before_fine_tuning(tmp_path: Path) -> None:
    settings = config()
    settings["solver"] |= {"num_steps": 30, "fine_tune": None}
    run = read_run(fake_run(tmp_path / "run", settings, n=30))
    accuracy = run.rows.set_index("step")["accuracy/test"]
    assert metric_value(run, METRICS["test error (%)"]) == pytest.approx(100 * (1 - accuracy[30]))
    assert metric_value(run, METRICS["test accuracy (%)"], step=10) == pytest.approx(100 * accuracy[10])
    assert metric_value(run, METRICS["test accuracy pruned (%)"]) == pytest.approx(100 * accuracy[15])
    assert metric_value(run, METRICS["test accuracy (%)"], step=31) is None
    assert figure(run, "no/such") is None
    without = replace(run, settings=run.settings | {"solver.fine_tune": 0})
    assert metric_value(without, METRICS["test accuracy with sparsity (%)"]) == pytest.approx(
        100 * run.rows["accuracy/dense_test"].iloc[-1]
    )


def test_claims_compare_parts_that_both_sides_were_compressed_to(tmp_path: Path) -> None:
    rows = [
        {"method": "weights", "recalibrated": False, "part": part, "accuracy/test": 1 - part} for part in (0.5, 0.9)
    ]
    runs = []
    for name, kept in {"a": rows, "b": rows[:1]}.items():
        summary = {"one_shot": kept, "tasks": [{"params/compressed": 3}, {"params/compressed": 4}]}
        runs.append(replace(read_run(fake_run(tmp_path / name, n=3)), summary=summary))
    parts = shared_parts(runs, "one_shot/weights")
    assert parts == {0.5}
    assert [figure(run, "one_shot/weights", None, parts) for run in runs] == [0.5, 0.5]
    assert figure(runs[0], "one_shot/weights") == pytest.approx(0.3)
    assert figure(runs[0], "tasks/params/compressed") == 7
    assert shared_parts(runs, "accuracy/test") is None


def test_a_one_shot_figure_is_the_mean_over_the_parts_taken_away(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", n=3)
    rows = [
        {"method": "filters", "part": part, "recalibrated": again, "accuracy/test": accuracy}
        for part, again, accuracy in [(0.0, False, 0.9), (0.5, False, 0.8), (0.9, False, 0.4), (0.9, True, 0.7)]
    ]
    write_json(folder / "summary.json", (read_json(folder / "summary.json") or {}) | {"one_shot": rows})
    run = read_run(folder)
    assert figure(run, "one_shot/filters") == pytest.approx(0.6)
    assert figure(run, "one_shot/filters/recalibrated") == pytest.approx(0.7)
    assert figure(run, "one_shot/weights") is None


def test_the_best_at_each_size_is_the_most_accurate_that_is_small_enough(tmp_path: Path) -> None:
    made = [("lc", 0.1, 0.95, 2.0), ("idc", 0.1, 0.9, 4.0), ("idc", 0.3, 0.97, 1.0)]
    for job, (solver, ratio, accuracy, speedup) in enumerate(made):
        folder = fake_run(tmp_path / str(job), config(rank=job + 1, solver=solver, compression=f"c{ratio}"), n=3)
        ends = {"accuracy/test": accuracy, "ratio/bits": ratio, "ratio/macs": ratio, "steps": 10}
        write_json(folder / "summary.json", (read_json(folder / "summary.json") or {}) | ends)
        row = {"batch_size": 64, "network": "compact", "speedup": speedup, "device": "cpu"}
        write_json(folder / "latency.json", {"latency": [row]})
    frame = cross_frame([read_run(tmp_path / str(job)) for job in range(3)])
    assert list(frame["front/bits"]) == [True, False, True]
    assert list(frame["front/latency"]) == [True, True, True]
    assert list(frame["latency"]) == [0.5, 0.25, 1.0]
    best = next(iter(cross_tables(frame, "x"))).raw
    bits = best[best["measure"] == "bits left"]
    assert list(bits["up to"]) == ["0.1", "0.5"]
    assert list(bits["solver"]) == ["lc", "idc"]
    assert list(bits["behind it"]) == ["idc c0.1 (5.00)", "lc c0.1 (2.00)"]


def test_of_two_that_are_as_accurate_the_smaller_is_the_best_and_a_little_more_than_the_size_counts() -> None:
    frame = pd.DataFrame({
        "network": "net", "solver": ["a", "b"], "compression": "c", "size": "", "n": 1, "accuracy": [0.9, 0.9],
        "accuracy std": None, "bits": [0.1, 0.0505], "macs": 0.1, "latency": float("nan"), "epochs": 1.0,
        "front/bits": True, "front/macs": True, "front/latency": False,
    })  # fmt: skip
    best = next(iter(cross_tables(frame, "x"))).raw
    bits = best[best["measure"] == "bits left"]
    assert list(bits["up to"]) == ["0.05", "0.1"]
    assert list(bits["solver"]) == ["b", "b"]


def test_a_claim_holds_at_its_limit(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run", config(), n=3))
    studies = [PaperStudy(name, name, "digits", ()) for name in "ab"]
    claim = Claim("claims/1", "not worse", "accuracy/test", Selection("a"), Selection("b"), by=-0.01)
    protocol = Protocol("lc", "cpu", "T", studies, {}, [claim], {}, {}, {"a": ("cpu",), "b": ("cpu",)})
    for ours, expected in ((0.95, PASS), (0.9499, FAIL), (0.97, PASS)):
        with case(ours=ours):
            ends = {"a": ours, "b": 0.96}
            runs = {name: [replace(run, summary=run.summary | {"accuracy/test": end})] for name, end in ends.items()}
            assert claim_row(Reproduction(protocol, runs, {"studies": {}}), claim)["verdict"] == expected
