"""The report of one-shot compression: areas by hand, one table and plot a run, groups side by side in a sweep."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import case
from fake_runs import config, drawn, fake_run, texts, undrawn
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nncompress.files import write_json
from nncompress.report import write_run_report, write_sweep_report
from nncompress.report.collect import differences, summaries
from nncompress.report.style import group_styles
from nncompress.report.sweep.one_shot import areas, one_shot, one_shot_rows, run_one_shot, sweep_one_shot
from nncompress.report.tables import Table, latex, markdown
from nncompress.results.records import read_run, read_runs

PARTS = (0.0, 0.5, 0.9)


def row(method: str, part: float, accuracy: float | None, again: bool = False, **sizes: Any) -> dict[str, Any]:
    """A row of summary["one_shot"] that keeps 1 - part of the parameters and of the multiply-accumulates."""
    left = {"ratio/params": 1 - part, "ratio/macs": 1 - part, "distance": part**0.5} | sizes
    measured = {"accuracy/test": accuracy, "loss/test": 0.3, "stability": 0.95}
    return {"method": method, "part": part, "recalibrated": again, "smaller": True} | measured | left


def curve(
    method: str, accuracies: Sequence[float], parts: Sequence[float] = PARTS, **rest: Any
) -> list[dict[str, Any]]:
    return [row(method, part, accuracy, **rest) for part, accuracy in zip(parts, accuracies, strict=True)]


def shot_run(
    folder: Path, rows: list[dict[str, Any]], seed: int = 0, solver: str = "sgd", status: str = "done"
) -> Path:
    """A run folder whose summary has the rows; without rows, no such key."""
    fake_run(folder, config(seed, solver=solver), n=2, status=status)
    if status == "done":
        known = {"seed": seed, "accuracy/test": 0.9, "status": "done"}
        write_json(folder / "summary.json", known | ({"one_shot": rows} if rows else {}))
    return folder


@cache
def sweep_of(folder: Path) -> tuple[dict[str, Table], Mapping[str, Figure | None]]:
    runs = read_runs([folder])
    tables, figures = sweep_one_shot(runs, differences(runs), "mlp-digits")
    return {table.name: table for table in tables}, figures


def areas_of(folder: Path) -> pd.DataFrame:
    runs = read_runs([folder])
    keys = differences(runs)
    return areas(one_shot_rows(runs, keys), keys).set_index(["method", "group"])


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of plots are there, and empty."""
    undrawn(monkeypatch)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sgd and sfw with two seeds each, a failed third; sfw alone has low_rank and one part more of weights."""
    folder = tmp_path_factory.mktemp("sweep")
    for job, (solver, seed) in enumerate(product(("sgd", "sfw"), (1, 2))):
        end = 0.2 * seed + (0.1 if solver == "sfw" else 0.0)
        rows = curve("filters", (0.9, 0.7, end)) + curve("filters", (0.9, 0.8, end + 0.1), again=True)
        if solver == "sfw":
            rows += curve("weights", (0.9, 0.8, 0.6, 0.4), (0.0, 0.5, 0.8, 0.9), **{"ratio/macs": None})
            rows += curve("low_rank", (0.8,), (0.5,)) + curve("low_rank", (0.8,), (0.5,), again=True)
        else:
            rows += curve("weights", (0.9, 0.6, 0.2), **{"ratio/macs": 1.0})
        shot_run(folder / str(job), rows, seed, solver)
    shot_run(folder / "4", [], 3, "sgd", status="failed")
    return folder


# --- one run ---


def test_a_run_has_a_line_for_each_method_and_part_with_both_accuracies(tmp_path: Path) -> None:
    rows = curve("weights", (0.5, 0.9), (0.75, 0.0)) + curve("weights", (0.6, 0.9), (0.75, 0.0), again=True)
    rows += curve("filters", (0.4,), (0.75,), **{"ratio/macs": 0.125, "ratio/params": 0.2})
    tables, figures = run_one_shot(read_run(shot_run(tmp_path / "run", rows)))
    raw = tables[0].raw
    assert list(zip(raw["method"], raw["part"], strict=True)) == [("weights", 0), ("weights", 0.75), ("filters", 0.75)]
    assert raw["accuracy/test"].to_list() == [0.9, 0.5, 0.4]
    assert raw["accuracy/test recalibrated"].to_list()[:2] == [0.9, 0.6]
    last = dict(tables[0].shown.iloc[-1])
    assert last == {
        "method": "filters", "taken away (%)": "75", "test accuracy (%)": "40.00",
        "with recalibrated batch norms (%)": "–", "parameters left": "0.2", "parameters left, ×": "5.00×",
        "theoretical speed-up": "8.00×", "distance": "0.866",
    }  # fmt: skip
    figure = figures["one_shot"]
    assert figure is not None
    assert titles(figure) == ["weights", "filters"]
    lines = [(line.get_linestyle(), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert lines == [("-", [90.0, 50.0]), ("--", [90.0, 60.0])]
    assert texts(figure) == "batch norms as they are | batch norms recalibrated"


def test_a_run_without_batch_norms_says_nothing_of_them(tmp_path: Path) -> None:
    tables, figures = run_one_shot(read_run(shot_run(tmp_path / "run", curve("weights", (0.9, 0.8, 0.3)))))
    assert "batch norm" not in markdown(tables[0])
    figure = figures["one_shot"]
    assert figure is not None
    assert not figure.legends


def test_a_measure_that_is_null_is_a_dash(tmp_path: Path) -> None:
    rows = [row("weights", 0.0, 0.9), row("weights", 0.5, None, **{"ratio/macs": None})]
    tables, _ = run_one_shot(read_run(shot_run(tmp_path / "run", rows)))
    assert tables[0].shown["test accuracy (%)"].to_list() == ["90.00", "–"]
    assert tables[0].shown["theoretical speed-up"].to_list() == ["1.00×", "–"]


def test_a_run_with_the_key_writes_a_table_and_a_plot_and_one_without_has_neither(tmp_path: Path) -> None:
    paths = write_run_report(shot_run(tmp_path / "with", curve("weights", (0.9, 0.8, 0.3))))
    written = {f"{path.parent.name}/{path.name}" for path in paths if "one_shot" in path.name}
    tables = {f"tables/one_shot.{end}" for end in ("csv", "md", "tex")}
    assert written == tables | {"plots/one_shot.png", "plots/one_shot.svg"}
    assert run_one_shot(read_run(shot_run(tmp_path / "without", []))) == ([], {})


# --- a sweep ---


def test_an_area_is_the_mean_of_trapezoids_over_the_parts_that_all_groups_have(sweep: Path) -> None:
    found = areas_of(sweep)
    ends = {"sgd": (0.2, 0.4), "sfw": (0.3, 0.5)}
    for solver, last in ends.items():
        line = found.loc[("filters", f"solver={solver}")]
        by_hand = [(0.5 * (0.9 + 0.7) / 2 + 0.4 * (0.7 + end) / 2) / 0.9 for end in last]
        again = [(0.5 * (0.9 + 0.8) / 2 + 0.4 * (0.8 + end + 0.1) / 2) / 0.9 for end in last]
        assert line["area"] == pytest.approx(np.mean(by_hand))
        assert line["area std"] == pytest.approx(np.std(by_hand, ddof=1))
        assert line["area recalibrated"] == pytest.approx(np.mean(again))
        assert (line["accuracy/dense"], line["n"], line["seeds"]) == (pytest.approx(0.9), 2, "1 2")
    assert found.loc[("weights", "solver=sfw"), "parts"] == "0 0.5 0.9"
    whole = (0.5 * (0.9 + 0.8) / 2 + 0.4 * (0.8 + 0.4) / 2) / 0.9
    assert found.loc[("weights", "solver=sfw"), "area"] == pytest.approx(whole)


def test_a_method_without_part_0_starts_from_the_unmodified_network_of_the_same_run(sweep: Path) -> None:
    line = areas_of(sweep).loc[("low_rank", "solver=sfw")]
    assert (line["parts"], line["area"]) == ("0 0.5", pytest.approx(0.85))
    assert line["area recalibrated"] == pytest.approx(0.85)


def test_an_area_over_fewer_than_two_shared_parts_is_unknown(tmp_path: Path) -> None:
    shot_run(tmp_path / "0", curve("weights", (0.9, 0.5), (0.0, 0.5)), solver="sgd")
    shot_run(tmp_path / "1", curve("weights", (0.9, 0.5), (0.0, 0.6)), solver="sfw")
    assert areas_of(tmp_path)["area"].isna().all()
    tables, _ = sweep_of(tmp_path)
    assert "area (%)" not in tables["one_shot_areas"].shown


def test_groups_stand_side_by_side_and_what_a_group_lacks_is_a_dash(sweep: Path) -> None:
    tables, _ = sweep_of(sweep)
    shown = tables["one_shot"].shown.set_index(["method", "batch norms", "taken away (%)"])
    assert list(shown) == ["solver=sgd", "solver=sfw"]
    assert shown.loc[("filters", "as they are", "90")].to_list() == ["30.00 ± 14.14", "40.00 ± 14.14"]
    assert shown.loc[("filters", "recalibrated", "90")].to_list() == ["40.00 ± 14.14", "50.00 ± 14.14"]
    assert shown.loc[("weights", "as they are", "80")].to_list() == ["–", "60.00 ± 0.00"]
    methods = tables["one_shot"].shown["method"]
    assert list(dict.fromkeys(methods)) == ["filters", "weights", "low_rank"]
    raw = tables["one_shot"].raw
    assert raw.loc[(raw["method"] == "filters") & (raw["part"] == 0.5) & raw["recalibrated"], "n"].to_list() == [2, 2]


def test_groups_with_long_names_are_numbered_and_named_below(tmp_path: Path) -> None:
    for job in range(4):
        shot_run(tmp_path / str(job), curve("weights", (0.9, 0.8, 0.3)), solver=f"{job}_{'x' * 40}")
    table = sweep_of(tmp_path)[0]["one_shot"]
    assert list(table.shown)[2:] == ["group 1", "group 2", "group 3", "group 4"]
    assert f"- Group 2: solver=1_{'x' * 40}.\n" in markdown(table)
    assert "batch norm" not in markdown(table)


def test_a_group_has_the_same_style_in_all_panels_and_the_legend_names_it_once(sweep: Path) -> None:
    _, figures = sweep_of(sweep)
    assert list(figures) == [
        "one_shot", "one_shot_speedup", "one_shot_recalibrated", "one_shot_speedup_recalibrated"
    ]  # fmt: skip
    figure = figures["one_shot"]
    assert figure is not None
    assert titles(figure) == ["filters", "weights", "low_rank"]
    assert texts(figure) == "solver=sgd | solver=sfw"
    colours = [[to_hex(line.get_color()) for line in axes.lines] for axes in figure.axes]
    sgd, sfw = (style.colour.lower() for style in group_styles(2))
    assert colours == [[sgd, sfw], [sgd, sfw], [sfw]]
    assert figure.get_suptitle() == "One-shot compression: mlp-digits\nbatch norms as they are"


def test_methods_that_save_no_work_are_not_drawn_against_the_speed_up(sweep: Path) -> None:
    _, figures = sweep_of(sweep)
    figure = figures["one_shot_speedup"]
    assert figure is not None
    assert titles(figure) == ["filters", "low_rank"]
    assert str(figure.get_suptitle()).endswith("not drawn, no speed-up counted: weights")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [1, 2, 10])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_xdata(), [2])


def test_the_speed_up_has_a_log_axis_once_it_spans_a_decade(tmp_path: Path) -> None:
    for part, scale in ((0.8, "linear"), (0.95, "log")):
        with case(part=part):
            shot_run(tmp_path / scale / "0", curve("filters", (0.9, 0.2), (0.0, part)))
            figure = sweep_of(tmp_path / scale)[1]["one_shot_speedup"]
            assert figure is not None
            assert figure.axes[0].get_xscale() == scale
            assert len({*drawn(figure)}) > 50


def test_a_sweep_writes_what_it_has_and_nothing_for_runs_without_the_key(sweep: Path, tmp_path: Path) -> None:
    paths = [path.relative_to(sweep) for path in write_sweep_report(sweep).paths if "one_shot" in path.name]
    tables = {f"tables/{name}.{end}" for name, end in product(("one_shot", "one_shot_areas"), ("csv", "md", "tex"))}
    ends = ("", "_speedup", "_recalibrated")
    plots = {f"plots/one_shot{name}.{end}" for name, end in product(ends, ("png", "svg"))}
    plots |= {f"plots/one_shot_speedup_recalibrated.{end}" for end in ("png", "svg")}
    assert set(map(str, paths)) == tables | plots
    shot_run(tmp_path / "other" / "0", [])
    assert sweep_of(tmp_path / "other") == ({}, {})


def test_the_rows_are_no_column_of_the_runs(sweep: Path) -> None:
    assert "one_shot" not in summaries(read_runs([sweep]))


def test_twelve_groups_and_five_methods_fit_in_two_rows_of_panels_with_one_legend(tmp_path: Path) -> None:
    methods = ("filters_masked", "filters", "weights", "low_rank", "tucker")
    for job in range(12):
        rows = [line for method in methods for line in curve(method, (0.9, 0.8, 0.05 * job))]
        shot_run(tmp_path / str(job), rows, solver=f"solver_{job}")
    figure = sweep_of(tmp_path)[1]["one_shot"]
    assert figure is not None
    assert len(figure.axes) == 5
    assert {axes.get_gridspec().get_geometry() for axes in figure.axes} == {(2, 3)}
    assert len(texts(figure).split(" | ")) == 12
    assert len({*drawn(figure)}) > 50


def test_names_and_deviations_are_escaped_in_latex(sweep: Path) -> None:
    for table in sweep_of(sweep)[0].values():
        assert "low\\_rank" in latex(table)
        assert "±" not in latex(table)


def test_a_repeated_row_counts_once(tmp_path: Path) -> None:
    rows = [row("weights", 0.5, 0.7), row("weights", 0.5, 0.8)]
    assert one_shot(read_run(shot_run(tmp_path / "run", rows)))["accuracy/test"].to_list() == [0.8]
