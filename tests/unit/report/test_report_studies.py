"""What a sweep's report draws of its own accord: heat map, spread over seeds, accuracy during the runs."""

import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import case
from fake_runs import config, drawn, texts, undrawn
from matplotlib.figure import Figure

from nncompress.files import write_json
from nncompress.report import write_sweep_report
from nncompress.report.collect import differences
from nncompress.report.sweep.studies import Grid, courses, outcomes, sensitivity, spread
from nncompress.report.sweep.study_plots import courses_plot, sensitivity_plot, spread_plot
from nncompress.report.sweep.tables import sensitivity_table
from nncompress.report.tables import latex, markdown
from nncompress.results.records import Run, read_runs
from nncompress.results.rows import Recorder
from nncompress.results.run_folder import write_config

STUDIES = {"sensitivity.png", "sensitivity.svg", "spread.png", "spread.svg", "curves.png", "curves.svg"}


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the plots looked at here are there, and empty; the others of a sweep are not made."""
    undrawn(monkeypatch)
    for other in ("accuracy_ratio_plot", "objectives_plot"):
        monkeypatch.setattr(f"nncompress.report.write.{other}", lambda *of, **more: None)


def study_run(
    folder: Path,
    accuracy: Sequence[float] = (0.1, 0.8),
    status: str = "done",
    seed: int = 0,
    steps: Sequence[int] | None = None,
    solver: str = "nnbcd",
    **settings: Any,
) -> None:
    """A run folder with a row per accuracy, two seconds a step; the settings are the solver's."""
    settings = config(seed, solver=solver) | {"solver": {"_target_": f"nncompress.{solver}"} | settings}
    folder.mkdir(parents=True)
    write_config(folder, settings)
    with Recorder(folder / "records.jsonl") as recorder:
        for step, value in zip(steps or range(len(accuracy)), accuracy, strict=True):
            recorder.write({"step": step, "seconds": 2.0 * step, "accuracy/test": value})
    write_json(folder / "status.json", {"status": status, "reason": "why", "traceback": None, "step": 1})
    if status == "done":
        write_json(folder / "summary.json", {"seed": seed} | ({"accuracy/test": accuracy[-1]} if accuracy else {}))


def grid_of(folder: Path) -> Grid | None:
    runs = read_runs([folder])
    return sensitivity(outcomes(runs, differences(runs)), differences(runs))


def spread_of(folder: Path) -> pd.DataFrame | None:
    runs = read_runs([folder])
    return spread(outcomes(runs, differences(runs)), differences(runs))


def course_of(folder: Path) -> pd.DataFrame | None:
    runs: list[Run] = read_runs([folder])
    return courses(runs, differences(runs))


def written(folder: Path) -> set[str]:
    """The plots of this module that a sweep's report writes."""
    return {path.name for path in write_sweep_report(folder).paths} & STUDIES


def cell_texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# --- two numbers: the heat map ---


@pytest.fixture
def grid_sweep(tmp_path: Path) -> Path:
    """gamma by rho by two seeds: (0.5, 0.1) diverged, seed 2 of (10, 1) failed, (1, 1) is absent."""
    for job, (gamma, rho, seed) in enumerate(product((10, 0.5, 1), (1.0, 0.1), (1, 2))):
        ended = {(0.5, 0.1, seed): "diverged", (10, 1.0, 2): "failed"}.get((gamma, rho, seed), "done")
        if (gamma, rho) != (1, 1.0):
            end = 0.5 + 0.01 * gamma + 0.1 * rho + 0.02 * seed
            study_run(tmp_path / str(job), (0.1, end), ended, seed, gamma=gamma, rho=rho)
    return tmp_path


def test_the_cells_are_means_over_seeds_sorted_as_numbers(grid_sweep: Path) -> None:
    grid = grid_of(grid_sweep)
    assert grid is not None
    assert (grid.row, grid.column, grid.panel) == ("solver.gamma", "solver.rho", None)
    cells = grid.cells
    places = list(zip(cells["solver.gamma"], cells["solver.rho"], strict=True))
    assert places == [(0.5, 0.1), (0.5, 1), (1, 0.1), (1, 1), (10, 0.1), (10, 1)]
    np.testing.assert_allclose(cells["accuracy/test"], [np.nan, 0.635, 0.55, np.nan, 0.64, 0.72])
    deviation = 0.02 / 2**0.5
    np.testing.assert_allclose(
        cells["accuracy/test std"], [np.nan, deviation, deviation, np.nan, deviation, np.nan], rtol=1e-12
    )
    assert cells["n"].to_list() == [0, 2, 2, 0, 2, 1]
    assert cells["not_done"].to_list() == ["2 diverged", "", "", "no run", "", "1 failed"]


def test_the_heat_map_writes_each_number_and_says_what_is_missing(grid_sweep: Path) -> None:
    grid = grid_of(grid_sweep)
    assert grid is not None
    figure = sensitivity_plot(grid, "nnbcd")
    assert cell_texts(figure) == ["2 diverged", "63.50", "55.00", "–", "64.00", "72.00\n1 failed"]
    assert figure.get_suptitle() == (
        "Test accuracy over gamma and rho: nnbcd\nmean of 1 to 2 runs a cell; hatched: no accuracy; –: no run"
    )
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rho", "gamma")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.5", "1", "10"]
    assert axes.patch.get_hatch()
    assert bar.get_ylabel() == "test accuracy of the deployed network (%)"


def test_the_table_is_the_same_grid(grid_sweep: Path) -> None:
    assert written(grid_sweep) == {"sensitivity.png", "sensitivity.svg", "curves.png", "curves.svg"}
    raw = pd.read_csv(grid_sweep / "tables" / "sensitivity.csv")
    assert list(raw) == ["solver.gamma", "solver.rho", "accuracy/test", "accuracy/test std", "n", "not_done"]
    assert raw["accuracy/test"].isna().to_list() == [True, False, False, True, False, False]
    lines = (grid_sweep / "tables" / "sensitivity.md").read_text().replace(" ", "").splitlines()
    assert lines[2] == "|gamma|rho=0.1|rho=1|"
    assert lines[4:7] == ["|0.5|2diverged|63.50±1.41|", "|1|55.00±1.41|norun|", "|10|64.00±1.41|72.00(1failed)|"]
    assert r"10 & 64.00 $\pm$ 1.41 & 72.00 (1 failed) \\" in (grid_sweep / "tables" / "sensitivity.tex").read_text()


def test_a_third_key_gives_a_panel_for_each_value_on_one_colour_scale(tmp_path: Path) -> None:
    for job, (initial, gamma, rho) in enumerate(product(("normal", "lecun"), (1, 2), (3, 4, 5))):
        ends = {"normal": 0.1 * rho, "lecun": 0.9 - 0.1 * gamma}
        study_run(tmp_path / str(job), (ends[initial],), initial=initial, gamma=gamma, rho=rho)
    grid = grid_of(tmp_path)
    assert grid is not None
    assert grid.panel == "solver.initial"
    figure = sensitivity_plot(grid, "t")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["initial=normal", "initial=lecun"]
    assert cell_texts(figure)[:6] == ["30.00", "40.00", "50.00"] * 2
    assert cell_texts(figure)[6:] == ["80.00"] * 3 + ["70.00"] * 3
    for axes in figure.axes[:2]:
        assert axes.collections[0].get_clim() == pytest.approx((30, 80))
    table = sensitivity_table(grid, "t")
    assert list(table.shown) == ["initial", "gamma", "rho=3", "rho=4", "rho=5"]
    assert len(table.shown) == 4
    assert latex(table).isascii()


def test_of_three_numbers_the_one_with_the_fewest_values_gives_the_panels(tmp_path: Path) -> None:
    for job, (tau, gamma, rho) in enumerate(product((5, 6), (1, 2, 3), (1, 2, 3))):
        study_run(tmp_path / str(job), tau=tau, gamma=gamma, rho=rho)
    grid = grid_of(tmp_path)
    assert grid is not None
    assert (grid.panel, grid.row, grid.column) == ("solver.tau", "solver.gamma", "solver.rho")


def test_four_panels_stand_two_by_two(tmp_path: Path) -> None:
    for job, (tau, gamma, rho) in enumerate(product((5, 6, 7, None), (1, 2), (1, 2))):
        study_run(tmp_path / str(job), tau=tau, gamma=gamma, rho=rho)
    grid = grid_of(tmp_path)
    assert grid is not None
    figure = sensitivity_plot(grid, "t")
    assert [axes.get_title() for axes in figure.axes[:4]] == ["tau=5", "tau=6", "tau=7", "tau=–"]
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 2)


def test_a_third_key_with_five_values_is_too_many_which_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for job, (option, gamma, rho) in enumerate(product("abcde", (1, 2), (1, 2))):
        study_run(tmp_path / str(job), initial=option, gamma=gamma, rho=rho)
    with caplog.at_level(logging.INFO):
        assert written(tmp_path) == set()
    assert caplog.messages == [
        "No sensitivity plot: it takes two numeric keys and at most one other with up to 4 values; "
        "this sweep varies initial (5 values), gamma (2 values), rho (2 values)."
    ]
    assert not (tmp_path / "tables" / "sensitivity.csv").exists()


def test_a_grid_with_less_than_three_quarters_of_its_combinations_is_not_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for job in range(4):
        study_run(tmp_path / str(job), gamma=job, rho=job)
    with caplog.at_level(logging.INFO):
        assert written(tmp_path) == {"curves.png", "curves.svg"}
    assert caplog.messages == [
        "No sensitivity plot: it takes 75 % of the combinations of gamma and rho; this sweep has 4 of 16."
    ]


def test_one_number_and_switches_are_no_grid_and_no_spread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for job, (gamma, plain, seed) in enumerate(product((1, 2), (True, False), (1, 2))):
        study_run(tmp_path / str(job), seed=seed, gamma=gamma, plain=plain)
    with caplog.at_level(logging.INFO):
        assert written(tmp_path) == {"curves.png", "curves.svg"}
    assert caplog.messages == []


def test_equal_accuracies_are_drawn(tmp_path: Path) -> None:
    for job, (gamma, rho) in enumerate(product((1, 2), (1, 2))):
        study_run(tmp_path / str(job), (0.5,), gamma=gamma, rho=rho)
    grid = grid_of(tmp_path)
    assert grid is not None
    assert len({*drawn(sensitivity_plot(grid, "t"))}) > 50
    assert "sensitivity.png" in written(tmp_path)


def test_a_whole_number_and_its_float_are_one_value(tmp_path: Path) -> None:
    for job, (gamma, rho, seed) in enumerate(product((1, 2), (1, 2), (1, 2))):
        study_run(tmp_path / str(job), seed=seed, gamma=float(gamma) if seed == 1 else gamma, rho=rho)
    grid = grid_of(tmp_path)
    assert grid is not None
    assert grid.cells["n"].to_list() == [2, 2, 2, 2]


# --- one option: the spread over seeds ---


def test_the_spread_has_every_accuracy_in_the_order_of_the_sweep(tmp_path: Path) -> None:
    ends = {"xavier": (0.5, 0.7, 0.6), "normal": (0.8, 0.9, 0.85), "lecun": (0.1, 0.2, 0.3)}
    for job, (initial, seed) in enumerate(product(ends, range(3))):
        status = "diverged" if initial == "lecun" or (initial, seed) == ("normal", 1) else "done"
        study_run(tmp_path / str(job), (0.1, ends[initial][seed]), status, seed, initial=initial)
    points = spread_of(tmp_path)
    assert points is not None
    assert points["solver.initial"].to_list() == [*["xavier"] * 3, *["normal"] * 2, "lecun"]
    np.testing.assert_array_equal(points["accuracy/test"], [0.5, 0.7, 0.6, 0.8, 0.85, np.nan])
    axes = spread_plot(points, "nnbcd").axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["xavier\nn = 3", "normal\nn = 2", "lecun\nn = 0"]
    dots = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(dots), [50, 70, 60, 80, 85])
    assert len({*drawn(axes.figure)}) > 50
    assert written(tmp_path) == {"spread.png", "spread.svg", "curves.png", "curves.svg"}


def test_most_options_need_two_seeds_for_a_spread(tmp_path: Path) -> None:
    for job, (initial, seed) in enumerate((("a", 1), ("a", 2), ("b", 1))):
        study_run(tmp_path / str(job), seed=seed, initial=initial)
    assert spread_of(tmp_path) is None
    for job, (initial, seed) in enumerate((("c", 1), ("c", 2)), start=3):
        study_run(tmp_path / str(job), seed=seed, initial=initial)
    assert spread_of(tmp_path) is not None


def test_a_number_over_seeds_is_no_spread(tmp_path: Path) -> None:
    for job, (gamma, seed) in enumerate(product((1, 2), (1, 2))):
        study_run(tmp_path / str(job), seed=seed, gamma=gamma)
    assert spread_of(tmp_path) is None


def test_options_that_are_lists_or_null_have_a_spread(tmp_path: Path) -> None:
    for job, (rank, seed) in enumerate(product((None, [2, 3]), (1, 2))):
        study_run(tmp_path / str(job), seed=seed, initial_rank=rank)
    points = spread_of(tmp_path)
    assert points is not None
    labels = [label.get_text() for label in spread_plot(points, "t").axes[0].get_xticklabels()]
    assert labels == ["–\nn = 2", "[2, 3]\nn = 2"]


# --- accuracy during the runs ---


def test_a_course_is_the_mean_over_seeds_at_their_common_steps(tmp_path: Path) -> None:
    study_run(tmp_path / "0", (0.1, 0.3, 0.5), seed=1, steps=(0, 5, 10), gamma=1)
    study_run(tmp_path / "1", (0.2, 0.7, 0.6), seed=2, steps=(0, 10, 12), gamma=1)
    study_run(tmp_path / "2", (0.4, 0.9), seed=1, steps=(0, 3), gamma=2)
    study_run(tmp_path / "3", (0.4, 0.0), "diverged", seed=2, gamma=2)
    study_run(tmp_path / "4", (0.4, 0.0), "failed", seed=2, gamma=3)
    course = course_of(tmp_path)
    assert course is not None
    assert course["setting"].to_list() == ["gamma=1", "gamma=1", "gamma=2", "gamma=2", "gamma=3"]
    assert course["n"].to_list() == [2, 2, 1, 1, 0]
    columns = course[["step", "seconds", "mean", "low", "high"]].to_numpy(float)
    expected = [[0, 0, 0.15, 0.1, 0.2], [10, 20, 0.6, 0.5, 0.7], [0, 0, 0.4, 0.4, 0.4], [3, 6, 0.9, 0.9, 0.9]]
    np.testing.assert_allclose(columns, [*expected, [np.nan] * 5])
    figure = courses_plot(course, "t", "step K")
    assert texts(figure) == "gamma=1 (n = 2) | gamma=2"
    assert figure.legends[0].get_title().get_text() == (
        "mean over the n runs; band: least to largest\nno run done: gamma=3"
    )
    assert [len(axes.collections) for axes in figure.axes] == [1, 1]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log"]


def test_solvers_side_by_side_do_not_share_a_meaning_of_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_run(tmp_path / "0", gamma=1)
    study_run(tmp_path / "1", solver="sgd", lr=0.1)
    labels: list[str] = []
    monkeypatch.setattr("nncompress.report.write.courses_plot", lambda course, title, step: labels.append(step))
    write_sweep_report(tmp_path)
    assert labels == ["step (sweep or epoch)"]


def test_courses_are_drawn_for_two_to_ten_settings(tmp_path: Path) -> None:
    made = 0
    for settings, is_drawn in ((1, False), (2, True), (10, True), (11, False)):
        with case(settings=settings):
            for job in range(made, settings):
                study_run(tmp_path / str(job), gamma=job)
            made = settings
            assert (course_of(tmp_path) is not None) == is_drawn
    assert written(tmp_path) == set()


def test_runs_without_seconds_above_zero_are_drawn_against_steps_alone(tmp_path: Path) -> None:
    for job in range(2):
        study_run(tmp_path / str(job), (0.5,), gamma=job)
    course = course_of(tmp_path)
    assert course is not None
    figure = courses_plot(course, "t", "step K")
    assert figure.axes[1].get_xscale() == "linear"
    assert len({*drawn(figure)}) > 50
    assert written(tmp_path) == {"curves.png", "curves.svg"}


# --- sweeps with little in them ---


def test_a_sweep_without_an_accuracy_draws_none_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for status in ("failed", "diverged", "done"):
        grid, options = tmp_path / status / "grid", tmp_path / status / "options"
        for job, (gamma, rho, seed) in enumerate(product((1, 2), (1, 2), (1, 2))):
            study_run(grid / str(job), (), status, seed, gamma=gamma, rho=rho)
            study_run(options / str(job), (), status, seed, initial=f"{gamma}{rho}x")
        with case(status=status), caplog.at_level(logging.INFO):
            assert written(grid) == set()
            assert written(options) == set()
            assert caplog.messages == []


def test_a_run_that_failed_before_its_config_was_written_is_left_out(tmp_path: Path) -> None:
    for job, (initial, seed) in enumerate(product("ab", (1, 2))):
        study_run(tmp_path / str(job), seed=seed, initial=initial)
    (tmp_path / "9").mkdir()
    write_json(tmp_path / "9" / "status.json", {"status": "failed", "reason": "no data"})
    points = spread_of(tmp_path)
    assert points is not None
    assert points["solver.initial"].to_list() == ["a", "a", "b", "b"]
    assert written(tmp_path) == {"spread.png", "spread.svg", "curves.png", "curves.svg"}


def test_the_plots_and_the_table_are_the_same_bytes_each_time(grid_sweep: Path) -> None:
    def contents() -> dict[Path, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            undrawn(patch, but=names)
            paths = write_sweep_report(grid_sweep).paths
        return {path: path.read_bytes() for path in paths if path.stem in names}

    names = ("sensitivity", "curves")
    first = contents()
    assert len(first) == 7
    assert all(len(content) > 100 for content in first.values())
    assert contents() == first


def test_a_cell_of_one_run_is_called_so(tmp_path: Path) -> None:
    for job, (gamma, rho) in enumerate(product((1, 2), (1, 2))):
        study_run(tmp_path / str(job), (0.5,), "diverged" if job == 0 else "done", gamma=gamma, rho=rho)
    grid = grid_of(tmp_path)
    assert grid is not None
    assert cell_texts(sensitivity_plot(grid, "t"))[0] == "diverged"
    assert sensitivity_plot(grid, "t").get_suptitle().endswith("\none run a cell; hatched: no accuracy")
    assert "±" not in markdown(sensitivity_table(grid, "t")).split("\n- ")[0]
