"""The report: tables against hand numbers, failed jobs, sweeps, plots that need no explanation and raise no warning."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_runs import config, fake_run
from matplotlib.figure import Figure

from nncompress.errors import ConfigError
from nncompress.records import Recorder, read_run, write_json
from nncompress.report import report, write_run_report, write_sweep_report
from nncompress.report.collect import aggregate, failures, final, flatten, short_names, summaries, varied_keys
from nncompress.report.pareto import pareto_front
from nncompress.report.run_plots import objective_plot, rate_plot, weights
from nncompress.report.run_tables import accuracy_table, compression_table, convergence_table, log_spaced
from nncompress.report.sweep_plots import accuracy_ratio_plot
from nncompress.report.sweep_tables import sweep_table
from nncompress.report.tables import Table, escape, latex, markdown
from nncompress.report.text import number, percent, spread, times


def texts(figure: Figure) -> str:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    named = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    beside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return " | ".join([*named, *beside])


def test_torch_is_not_imported() -> None:
    code = "import sys, nncompress.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- one run ---


def test_a_run_report_writes_three_tables_in_three_forms_and_four_plots_in_two(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    written = {str(path.relative_to(folder)) for path in write_run_report(folder)}
    names, endings = ("accuracy", "compression", "convergence"), ("csv", "md", "tex")
    plots = {f"plots/{n}.{e}" for n, e in product(("objective", "accuracy", "rate", "weights"), ("png", "svg"))}
    assert written == {f"tables/{n}.{e}" for n, e in product(names, endings)} | plots
    assert all((folder / path).stat().st_size > 0 for path in written)


def test_reporting_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", n=20)
    before = {path: path.read_bytes() for path in write_run_report(folder)}
    assert {path: path.read_bytes() for path in write_run_report(folder)} == before


def test_accuracy_table_holds_final_best_and_dense(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", n=4)
    rows = [{"step": k, "seconds": k / 2, "accuracy/test": a, "loss/test": 1.0} for k, a in enumerate((0.5, 0.9, 0.8))]
    with Recorder(folder / "records.jsonl", keep=0) as recorder:
        for row in rows:
            recorder.write(row)
    write_json(folder / "summary.json", {"accuracy/test": 0.8, "accuracy/dense_test": 0.95, "seconds/total": 1.5})
    run = read_run(folder)
    table = accuracy_table(run, final(run))
    line = table.raw.set_index(["split", "metric"]).loc[("test", "accuracy")]
    assert line.to_dict() == {"final": 0.8, "best": 0.9, "best_step": 1.0, "dense": 0.95}
    assert "| 80.00 |        90.00 (step 1) |          95.00 |".replace(" ", "") in markdown(table).replace(" ", "")
    assert table.raw.set_index("metric").loc["seconds", "final"] == 1.5
    assert table.raw.set_index("metric").loc["steps", "final"] == 2


def test_compression_table_has_bytes_flops_and_times(tmp_path: Path) -> None:
    sizes = {"params/dense": 1000, "params/compressed": 160, "bits/dense": 32000, "bits/compressed": 4000}
    work = {"macs/dense": 900, "macs/compressed": 450, "ratio/tasks": 0.125, "sparsity": 0.5}
    table = compression_table(read_run(fake_run(tmp_path / "run", n=2)), sizes | work)
    raw = table.raw.set_index("quantity")
    assert raw.loc["parameters", ["dense", "compressed", "ratio", "times_smaller"]].to_list() == [1000, 160, 0.16, 6.25]
    assert raw.loc["bytes (bits / 8)", ["dense", "compressed", "ratio"]].to_list() == [4000, 500, 0.125]
    assert raw.loc["FLOPs (2 MACs)", ["dense", "compressed", "ratio"]].to_list() == [1800, 900, 0.5]
    assert raw.loc["parameters of the compressed layers alone", "ratio"] == 0.125
    shown = table.shown.set_index("quantity")
    assert shown.loc["bits", "times smaller"] == "8.00×"
    assert shown.loc["sparsity: share of weights that are zero (%)", "compressed"] == "50"


def test_convergence_table_is_whole_in_csv_and_short_in_markdown_with_the_rate_in_words(tmp_path: Path) -> None:
    table = convergence_table(read_run(fake_run(tmp_path / "run", n=400)))
    assert len(table.raw) == 401
    assert len(table.shown) <= 30
    assert (table.shown["step K"].iloc[0], table.shown["step K"].iloc[-1]) == ("0", "400")
    notes = " ".join(table.notes)
    assert "Fitted slope of the mean squared step on log-log axes: −0.99" in notes
    assert "from K = 40 to 400" in notes
    assert "held at every record" in notes
    assert "The objective rose at 0 of 401 records." in notes


def test_a_violated_guarantee_is_said(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", n=3)
    (folder / "summary.json").unlink()
    with Recorder(folder / "records.jsonl") as recorder:
        recorder.write({"step": 4, "objective": 99.0, "step_sq/sum": 1e4, "decrease/slack": -88.0})
    notes = " ".join(convergence_table(read_run(folder)).notes)
    assert "was violated; worst slack -88" in notes
    assert "does not hold" in notes
    assert "rose at 1 of 5" in notes


def test_an_interrupted_run_is_summed_up_by_its_last_record(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", n=7, status="interrupted", reason="SIGINT")
    run = read_run(folder)
    assert run.summary is None
    summary = final(run)
    assert summary["accuracy/test"] == run.rows["accuracy/test"].iloc[-1]
    assert (summary["steps"], summary["rate/bound_ok"]) == (7, True)
    write_run_report(folder)
    assert "This run is not done: interrupted (SIGINT)." in (folder / "tables" / "accuracy.md").read_text()


def test_a_run_with_only_its_starting_point_is_reported(tmp_path: Path) -> None:
    names = {path.name for path in write_run_report(fake_run(tmp_path / "run", n=0, status="interrupted"))}
    assert {"accuracy.md", "compression.md", "convergence.md", "objective.png"} <= names
    assert "rate.png" not in names


def test_a_run_that_ended_before_its_first_record_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "status.json", {"status": "failed", "reason": "no data"})
    assert write_run_report(tmp_path / "run") == []
    assert "ended before its first record" in caplog.text


def test_a_solver_without_steps_or_terms_has_no_rate_plot(tmp_path: Path) -> None:
    rows = read_run(fake_run(tmp_path / "run", n=12)).rows[["step", "seconds", "objective", "accuracy/test"]]
    assert rate_plot(rows, "") is None
    figure = objective_plot(rows, "title")
    assert figure is not None
    assert texts(figure) == "objective L"
    assert objective_plot(rows.drop(columns="objective"), "") is None


def test_the_rate_plot_names_the_slope_its_range_the_bound_and_the_reference(tmp_path: Path) -> None:
    figure = rate_plot(read_run(fake_run(tmp_path / "run")).rows, "Convergence rate: nnbcd")
    assert figure is not None
    assert "fitted slope −0.970 (K = 10 to 100)" in texts(figure)
    assert "bound on the mean squared step" in texts(figure)
    assert "slope −1, for comparison" in texts(figure)
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_a_term_that_vanishes_does_not_squeeze_the_objective(tmp_path: Path) -> None:
    rows = read_run(fake_run(tmp_path / "run")).rows
    figure = objective_plot(rows.assign(**{"term/compression": 1e-12}), "")
    assert figure is not None
    assert figure.axes[0].get_ylim()[0] > 1e-3
    assert "compression term (under the axis)" in texts(figure)


def test_a_negative_objective_is_drawn_on_a_linear_axis(tmp_path: Path) -> None:
    rows = read_run(fake_run(tmp_path / "run", n=20)).rows
    figure = objective_plot(rows.assign(objective=-rows["objective"]), "")
    assert figure is not None
    assert figure.axes[0].get_yscale() == "linear"


def test_codes_and_constant_tensors_are_not_drawn_and_a_damaged_model_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fake_run(tmp_path / "run", n=2) / "model" / "model.safetensors"
    assert list(weights(path)) == [*("layers.0.weight", *(f"layers.1.cores.{i}" for i in range(3))), "layers.2.weight"]
    path.write_bytes(path.read_bytes()[:100])
    assert weights(path) == {}
    assert "no plot of the weights" in caplog.text
    assert weights(tmp_path / "absent") == {}


# --- sweeps ---


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks 4 and 8 with two seeds each, one failed and one interrupted job."""
    folder = tmp_path_factory.mktemp("sweep")
    for job, (rank, seed) in enumerate(product((4, 8), (10, 20))):
        fake_run(folder / str(job), config(seed, rank), n=30)
    fake_run(folder / "4", config(10, 16), n=2, status="failed", reason="rank_16 | is 100% too large")
    fake_run(folder / "10", config(20, 16), n=2, status="interrupted", reason="SIGTERM")
    return folder


def test_a_sweep_has_one_line_per_setting_with_mean_std_and_n(sweep: Path) -> None:
    result = write_sweep_report(sweep)
    assert (result.done, result.failed) == (4, 2)
    table = pd.read_csv(sweep / "tables" / "summary.csv")
    assert list(table["compression.rank"]) == [4, 8]
    assert list(table["n"]) == [2, 2]
    assert list(table["seeds"]) == ["10 20", "10 20"]
    finals = [json.loads((sweep / job / "summary.json").read_text())["accuracy/test"] for job in ("0", "1")]
    assert table["accuracy/test"][0] == pytest.approx(np.mean(finals))
    assert table["accuracy/test std"][0] == pytest.approx(abs(finals[0] - finals[1]) / 2**0.5)
    assert len(pd.read_csv(sweep / "tables" / "runs.csv")) == 4


def test_jobs_that_are_not_done_are_listed_with_their_reason_in_job_order(sweep: Path) -> None:
    write_sweep_report(sweep)
    listed = pd.read_csv(sweep / "tables" / "failures.csv")
    assert listed["job"].to_list() == [4, 10]
    assert listed["status"].to_list() == ["failed", "interrupted"]
    text = (sweep / "tables" / "summary.md").read_text()
    assert "Not done: job 4 (rank=16): failed, rank_16 | is 100% too large" in text
    assert r"rank\_16 $|$ is 100\% too large" in (sweep / "tables" / "summary.tex").read_text()


def test_report_does_each_run_of_a_folder_and_the_aggregate_the_same_each_time(tmp_path: Path) -> None:
    for job in range(2):
        fake_run(tmp_path / "s" / str(job), config(seed=job), n=6)
    paths = report([tmp_path / "s", tmp_path / "s" / "0"])
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
    assert (result.done, result.failed) == (0, 2)
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


def test_a_data_set_seed_of_its_own_is_a_difference() -> None:
    first, second = flatten(config(seed=1)), flatten(config(seed=1)) | {"dataset.seed": 5}
    assert varied_keys([first, second]) == ["dataset.seed"]


def test_names_are_shortened_unless_ambiguous() -> None:
    assert short_names(["compression.rank", "solver.lr"]) == {"compression.rank": "rank", "solver.lr": "lr"}
    assert short_names(["a.x", "b.x"]) == {"a.x": "a.x", "b.x": "b.x"}


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
    for text in ("rank=4", "rank=8", "Pareto front", "dense weights w of the same runs, mean"):
        assert text in texts(figure)
    assert accuracy_ratio_plot(groups.drop(columns="ratio/params"), keys, "") is None
    assert len(failures(runs)) == 1
    assert "12.50×" in markdown(sweep_table(groups, keys, failures(runs), "title"))


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


# --- text ---


def test_numbers_are_short_and_exact_where_they_are_counts() -> None:
    assert [number(x) for x in (0.123456, 1234567, 1e-7, None, float("nan"), 100.0)] == [
        *("0.1235", "1,234,567", "1e-07", "–", "–", "100"),
    ]
    assert (percent(0.98765), times(0.16), times(0.0)) == ("98.77", "6.25×", "–")
    assert (spread("1", "–"), spread("1", "0.5")) == ("1", "1 ± 0.5")


def test_latex_escapes_what_it_would_read_as_commands() -> None:
    assert escape("50% a_b & c# {x} ~ ^ \\ 2×") == (
        r"50\% a\_b \& c\# \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} 2$\times$"
    )
    table = Table("t", "A_b", pd.DataFrame(), pd.DataFrame({"a_b": ["1 ± 2"]}), ["n ≤ 3"])
    text = latex(table)
    assert r"a\_b \\" in text
    assert r"1 $\pm$ 2 \\" in text
    assert text.isascii()


def test_selected_rows_keep_first_and_last_without_repeats() -> None:
    for n in (1, 2, 30, 31, 100, 5000):
        chosen = log_spaced(n, 30)
        assert chosen[0] == 0
        assert chosen[-1] == n - 1
        assert len(chosen) <= 30
        assert chosen == sorted(set(chosen))
