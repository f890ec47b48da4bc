"""The report of a sweep: means over seeds, jobs that failed, what sets runs apart, the Pareto front."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import case
from fake_runs import config, drawn, fake_run, texts, undrawn

from nncompress.config.schema import COPIES
from nncompress.errors import ConfigError
from nncompress.files import write_json
from nncompress.report import report, write_sweep_report
from nncompress.report.collect import aggregate, failures, group_label, short_names, summaries, varied_keys
from nncompress.report.style import pareto_front
from nncompress.report.sweep.plots import accuracy_ratio_plot, objectives_plot
from nncompress.report.sweep.searches import search_plot
from nncompress.report.sweep.tables import sweep_table
from nncompress.report.tables import markdown
from nncompress.results.records import flatten, read_run


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of plots are there, and empty."""
    undrawn(monkeypatch)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks 4 and 8 with two seeds each, one failed and one interrupted job."""
    folder = tmp_path_factory.mktemp("sweep")
    for job, (rank, seed) in enumerate(product((4, 8), (10, 20))):
        fake_run(folder / str(job), config(seed, rank), n=30)
    fake_run(folder / "4", config(10, 16), n=2, status="failed", reason="rank_16 | is 100% too large")
    fake_run(folder / "10", config(20, 16), n=2, status="interrupted", reason="SIGTERM")
    return folder


def test_a_sweep_has_one_line_per_setting_and_its_jobs_that_are_not_done_with_their_reason(sweep: Path) -> None:
    result = write_sweep_report(sweep)
    assert (result.done, len(result.failed)) == (4, 2)
    table = pd.read_csv(sweep / "tables" / "summary.csv")
    assert list(table["compression.rank"]) == [4, 8]
    assert list(table["n"]) == [2, 2]
    assert list(table["seeds"]) == ["10 20", "10 20"]
    finals = [json.loads((sweep / job / "summary.json").read_text())["accuracy/test"] for job in ("0", "1")]
    assert table["accuracy/test"][0] == pytest.approx(np.mean(finals))
    assert table["accuracy/test std"][0] == pytest.approx(abs(finals[0] - finals[1]) / 2**0.5)
    assert len(pd.read_csv(sweep / "tables" / "runs.csv")) == 4
    listed = pd.read_csv(sweep / "tables" / "failures.csv")
    assert listed["job"].to_list() == [4, 10]
    assert listed["status"].to_list() == ["failed", "interrupted"]
    text = (sweep / "tables" / "summary.md").read_text()
    assert "Not done: job 4 (rank=16): failed, rank_16 | is 100% too large" in text
    assert r"rank\_16 $|$ is 100\% too large" in (sweep / "tables" / "summary.tex").read_text()


def test_report_does_each_run_of_a_folder_and_the_aggregate_the_same_each_time(tmp_path: Path) -> None:
    for job in range(2):
        fake_run(tmp_path / "s" / str(job), config(seed=job), n=6)
    paths, _ = report([tmp_path / "s", tmp_path / "s" / "0"])
    made = {str(path.relative_to(tmp_path / "s")) for path in paths}
    assert {"0/tables/accuracy.md", "1/plots/rate.png", "tables/summary.tex", "plots/accuracy_ratio.png"} <= made
    tables = {path: path.read_bytes() for path in sorted((tmp_path / "s" / "tables").iterdir())}
    write_sweep_report(tmp_path / "s")
    assert {path: path.read_bytes() for path in tables} == tables


def test_a_sweep_of_one_run_has_no_deviation(tmp_path: Path) -> None:
    fake_run(tmp_path / "0", n=6)
    result = write_sweep_report(tmp_path)
    assert result.done == 1
    table = pd.read_csv(tmp_path / "tables" / "summary.csv")
    assert table["n"].to_list() == [1]
    assert table["accuracy/test std"].isna().all()
    assert "nan" not in (tmp_path / "tables" / "summary.md").read_text()


def test_a_sweep_with_no_job_done_lists_them_all(tmp_path: Path) -> None:
    for job in range(2):
        (tmp_path / str(job)).mkdir()
        write_json(tmp_path / str(job) / "status.json", {"status": "failed", "reason": "no data"})
    result = write_sweep_report(tmp_path)
    assert (result.done, len(result.failed)) == (0, 2)
    assert "Not done: job 1" in (tmp_path / "tables" / "summary.md").read_text()
    assert r"\begin{tabular}" not in (tmp_path / "tables" / "summary.tex").read_text()


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        report([tmp_path])


def test_only_what_was_chosen_sets_runs_apart() -> None:
    def keys(*settings: dict[str, Any]) -> list[str]:
        return varied_keys([flatten(one) for one in settings])

    assert keys(config(seed=1), config(seed=2)) == []
    assert keys(config(rank=4), config(rank=8)) == ["compression.rank"]
    assert keys(config(model="mlp"), config(model="tt_mlp")) == ["model"]
    assert keys(config(rank=4), config(rank=8), config(rank=8, compression="l0")) == ["compression", "compression.rank"]
    assert keys(config(), config(seed=3, rank=9, experiment="nnbcd/har4")) == ["experiment"]
    assert keys(config() | {"target": {"ratio": 0.1}}, config() | {"target": {"ratio": 0.2}}) == ["target.ratio"]


def test_a_constraint_is_told_by_its_name_and_its_copies_are_not_told() -> None:
    def constrained(name: str, w: float = 30.0) -> dict[str, Any]:
        own = {"set": {"_target_": f"sets.{name}"}, "size": {"w": w}, "rest": {"size": {"w": w}}}
        about = config(solver="frank_wolfe", constraint=name) | {"constraint": own}
        return flatten(about | {"solver": about["solver"] | {"constraint": own}}, COPIES)

    assert varied_keys([constrained("l2"), constrained("l1")]) == ["constraint"]
    assert varied_keys([constrained("l2", 3.0), constrained("l2", 5.0)]) == ["constraint.size.w"]
    assert varied_keys([constrained("l2", 3.0), constrained("l1", 5.0), constrained("l1", 3.0)]) == [
        "constraint",
        "constraint.size.w",
    ]


def test_a_class_is_told_without_its_module() -> None:
    group = {"solver.rescaling._target_": "nncompress.solvers.frank_wolfe.NoRescaling", "model": "mlp"}
    assert group_label(group, [*group]) == "rescaling=NoRescaling, model=mlp"


def test_a_data_set_seed_of_its_own_is_a_difference() -> None:
    first, second = flatten(config(seed=1)), flatten(config(seed=1)) | {"dataset.seed": 5}
    assert varied_keys([first, second]) == ["dataset.seed"]


def test_a_reference_that_was_trained_for_the_run_is_no_difference_but_one_that_was_given_is() -> None:
    def started(reference: str, seed: int = 1) -> dict[str, Any]:
        return flatten(config(seed=seed) | {"reference": reference, "reference_dir": "outputs/references"})

    kept = [started(f"/here/outputs/references/mlp-digits-{end}", seed) for seed, end in enumerate("ab")]
    assert varied_keys(kept) == []
    assert varied_keys([started("outputs/one"), started("outputs/two")]) == ["reference"]


def test_series_are_drawn_where_a_number_is_missing_for_some() -> None:
    settings = [("codebook", 2, None), ("codebook", 4, None), ("l0", None, 0.1), ("l0", None, 0.2)]
    groups = pd.DataFrame(settings, columns=["compression", "compression.K", "compression.keep"], dtype=object)
    groups = groups.assign(**{"n": 1, "ratio/params": [0.1, 0.2, 0.3, 0.4], "accuracy/test": 0.9})
    figure = accuracy_ratio_plot(groups, ["compression", "compression.K", "compression.keep"], "title")
    assert figure is not None
    shown = texts(figure)
    assert "compression=codebook" in shown
    assert "compression=l0" in shown
    assert "K=2" not in shown


def test_names_are_shortened_unless_ambiguous() -> None:
    assert short_names(["compression.rank", "solver.lr"]) == {"compression.rank": "rank", "solver.lr": "lr"}
    assert short_names(["a.x", "b.x"]) == {"a.x": "a.x", "b.x": "b.x"}
    assert short_names(["solver.penalty._target_"]) == {"solver.penalty._target_": "penalty"}


def test_what_a_summary_says_of_each_layer_is_no_column_of_a_sweep(tmp_path: Path) -> None:
    for job in range(2):
        folder = fake_run(tmp_path / str(job), config(seed=job), n=6)
        found = json.loads((folder / "summary.json").read_text())
        lists = {"channels": [{"norm": "bn", "channels": 4, "kept": 2}], "factors": {"zero": 2}, "tasks": []}
        write_json(folder / "summary.json", found | lists | {"ratio/channels": 0.5})
    write_sweep_report(tmp_path)
    columns = set(pd.read_csv(tmp_path / "tables" / "runs.csv"))
    assert "ratio/channels" in columns
    assert not columns & {"channels", "factors", "tasks"}


def test_a_check_holds_for_a_group_when_it_holds_for_all_its_runs() -> None:
    frame = pd.DataFrame({"rank": [4, 4, 8], "rate/bound_ok": [True, False, True], "x": [1.0, 2.0, np.nan]})
    groups = aggregate(frame.astype({"rank": object}), ["rank"])
    assert groups["rate/bound_ok"].to_list() == [False, True]
    assert groups["x"].iloc[0] == 1.5
    assert np.isnan(groups["x"].iloc[1])


def test_the_ratio_plot_names_points_front_and_dense_reference(sweep: Path) -> None:
    runs = [read_run(sweep / str(job)) for job in range(5)]
    keys = ["compression.rank"]
    groups = aggregate(summaries(runs), keys)
    figure = accuracy_ratio_plot(groups, keys, "title")
    assert figure is not None
    for text in ("rank=4", "rank=8", "Pareto front", "uncompressed weights w of the same runs"):
        assert text in texts(figure)
    assert accuracy_ratio_plot(groups.drop(columns="ratio/params"), keys, "") is None
    assert len(failures(runs)) == 1
    assert "12.50×" in markdown(sweep_table(groups, keys, failures(runs), "title"))
    objectives = objectives_plot([(f"rank={run.settings['compression.rank']}", run.rows) for run in runs], "title")
    assert objectives is not None
    bits = accuracy_ratio_plot(groups, keys, "title", of="bits")
    assert bits is not None
    for each in (figure, objectives, bits):
        assert len({*drawn(each)}) > 50


def test_many_settings_are_named_in_the_legend_instead(sweep: Path) -> None:
    n = 20
    groups = pd.DataFrame({"rank": range(n), "n": 1, "ratio/params": np.linspace(0.1, 0.9, n), "accuracy/test": 0.9})
    figure = accuracy_ratio_plot(groups, ["rank"], "title")
    assert figure is not None
    assert not figure.axes[0].texts
    assert "rank=19" in texts(figure)


def test_pareto_front_is_what_brute_force_finds() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        ratio, accuracy = random.integers(0, 6, (2, 9)) / 5.0
        beaten = [
            any(
                ratio[j] <= ratio[i]
                and accuracy[j] >= accuracy[i]
                and (ratio[j], accuracy[j]) != (ratio[i], accuracy[i])
                for j in range(9)
            )
            for i in range(9)
        ]
        assert sorted(pareto_front(ratio, accuracy)) == [i for i in range(9) if not beaten[i]]


def test_points_with_nan_are_never_on_the_front() -> None:
    assert pareto_front([0.1, 0.2, np.nan], [np.nan, 0.5, 0.9]) == [1]
    assert pareto_front([], []) == []


def test_the_plot_of_a_search_has_every_trial_and_with_one_objective_the_best_so_far() -> None:
    trials = pd.DataFrame({"trial": [0, 1, 2, 3], "best": [False, False, True, False], "a": [0.5, 0.4, 0.9, None]})
    for direction, so_far in (("maximize", [0.5, 0.5, 0.9]), ("minimize", [0.5, 0.4, 0.4])):
        with case(direction=direction):
            figure = search_plot(trials, {"a": direction}, "x")
            assert figure is not None
            others, best, line = figure.axes[0].lines
            assert (list(others.get_xdata()), list(best.get_xdata())) == ([0, 1], [2])
            assert list(line.get_ydata()) == so_far
    both = search_plot(trials.assign(b=1.0), {"a": "maximize", "b": "minimize"}, "x")
    assert both is not None
    assert [len(axes.lines) for axes in both.axes] == [2, 2]
    assert search_plot(trials.iloc[3:], {"a": "maximize"}, "x") is None
