"""The report of a run: tables against hand numbers, plots that need no explanation and raise no warning."""

import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from cases import case
from fake_runs import drawn, fake_run, rows, texts, undrawn

from nncompress.constraints import L2, Assignment
from nncompress.files import write_json
from nncompress.report import style, write_run_report
from nncompress.report.collect import columns_of, final
from nncompress.report.run.compression import compression_table
from nncompress.report.run.plots import channels_plot, objective_plot, panels_plot, rate_plot, weights_plot
from nncompress.report.run.tables import accuracy_table, convergence_table, log_spaced, run_tables
from nncompress.report.sweep.tables import measures_of
from nncompress.report.tables import Table, escape, latex, markdown
from nncompress.report.text import number, percent, spread, times
from nncompress.results.convergence import convergence
from nncompress.results.records import read_run
from nncompress.results.rows import Recorder
from nncompress.solvers.base import Column, declarations
from nncompress.solvers.frank_wolfe import FrankWolfe
from nncompress.solvers.lc import LC


def test_torch_is_not_imported() -> None:
    code = "import sys, nncompress.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- one run ---


def test_a_run_report_writes_three_tables_and_four_plots_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    first = {path: path.read_bytes() for path in write_run_report(folder)}
    names, endings = ("accuracy", "compression", "convergence"), ("csv", "md", "tex")
    plots = {f"plots/{n}.{e}" for n, e in product(("objective", "accuracy", "rate", "weights"), ("png", "svg"))}
    written = {str(path.relative_to(folder)) for path in first}
    assert written == {f"tables/{n}.{e}" for n, e in product(names, endings)} | plots
    assert all(first.values())
    assert {path: path.read_bytes() for path in write_run_report(folder)} == first


def test_accuracy_table_holds_final_and_dense_and_of_test_data_the_best_if_the_protocol_is_the_papers(
    tmp_path: Path,
) -> None:
    folder = fake_run(tmp_path / "run", n=4)
    rows = [{"step": k, "seconds": k / 2, "accuracy/test": a, "loss/test": 1.0} for k, a in enumerate((0.5, 0.9, 0.8))]
    with Recorder(folder / "records.jsonl") as recorder:
        for row in rows:
            recorder.write(row)
    summary = {"accuracy/test": 0.8, "accuracy/dense_test": 0.95, "seconds/total": 1.5}
    for protocol, best in (("last", (None, None, "")), ("paper", (0.9, 1.0, "90.00(step1)|"))):
        with case(protocol=protocol):
            write_json(folder / "summary.json", summary | {"protocol": protocol})
            run = read_run(folder)
            table = accuracy_table(run, final(run))
            line = table.raw.set_index(["split", "metric"]).loc[("test", "accuracy")]
            found = {key: None if pd.isna(value) else value for key, value in line.items()}
            assert found == {"final": 0.8, "best": best[0], "best_step": best[1], "dense": 0.95}
            assert f"|80.00|{best[2]}95.00|" in markdown(table).replace(" ", "")
            assert table.raw.set_index("metric").loc["seconds", "final"] == 1.5
            assert table.raw.set_index("metric").loc["steps", "final"] == 2


def test_compression_table_has_bytes_flops_and_times(tmp_path: Path) -> None:
    sizes = {"params/dense": 1000, "params/compressed": 160, "bits/dense": 32000, "bits/compressed": 4000}
    work = {"macs/dense": 900, "macs/compressed": 450, "ratio/tasks": 0.125, "sparsity": 0.5}
    table = compression_table(read_run(fake_run(tmp_path / "run", n=2)), sizes | work)
    raw = table.raw.set_index("quantity")
    assert raw.loc["parameters", ["dense", "compressed", "ratio", "times_smaller"]].to_list() == [1000, 160, 0.16, 6.25]
    assert raw.loc["bytes, theoretical", ["dense", "compressed", "ratio"]].to_list() == [4000, 500, 0.125]
    assert raw.loc["FLOPs (2 MACs)", ["dense", "compressed", "ratio"]].to_list() == [1800, 900, 0.5]
    assert raw.loc["parameters of the compressed layers alone", "ratio"] == 0.125
    shown = table.shown.set_index("quantity")
    assert shown.loc["bits", "times smaller"] == "8.00×"
    assert shown.loc["sparsity: share of weights that are zero (%)", "compressed"] == "50"


def test_a_summary_that_lacks_any_of_its_numbers_has_its_tables(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run", n=6))
    sizes = {"dense": 100, "theoretical": 45, "disk": 50, "gzip": 40, "zstd": 30}
    checks = dict.fromkeys(("bound_ok", "grad_bound_ok", "decrease_ok"), True)
    whole = {
        **(run.summary or {}), **{f"bytes/{key}": size for key, size in sizes.items()},
        **{f"rate/{key}": value for key, value in (checks | {"grad_constant": 3.0, "worst_slack": 0.1}).items()},
        "target/key": "ratio/bits", "target/requested": 0.1, "target/achieved": 0.1, "round_to": 8,
        "round_to/params": 9, "round_to/changed": [{"params": "w", "what": "ranks", "before": [3], "after": [8]}],
    }  # fmt: skip
    for key in whole:
        for value in (None, 0) if isinstance(whole[key], int | float) else (None,):
            with case(key=key, value=value):
                names = [table.name for table in run_tables(replace(run, summary=whole | {key: value}))]
                assert names == ["accuracy", "compression", "convergence"]


def test_a_line_of_bytes_needs_its_numbers(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run", n=2))
    known = {"bytes/dense": 100, "bytes/disk": 50, "bytes/gzip": 40}
    lines = compression_table(run, known).raw.set_index("quantity")["ratio"].to_dict()
    assert lines == {"bytes on disk": 0.5, "bytes on disk, gzip": 0.4}
    assert compression_table(run, known | {"bytes/dense": 0}).raw["ratio"].isna().all()
    assert compression_table(run, {"bytes/disk": 50}).raw.empty


def test_channels_without_their_factors_are_not_drawn() -> None:
    assert channels_plot({"channels": [{"norm": "n", "channels": 4, "kept": 2}]}, "t") is None


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
        for row in (*rows(3), {"step": 4, "objective": 99.0, "step_sq/sum": 1e4, "decrease/slack": -88.0}):
            recorder.write(row)
    notes = " ".join(convergence_table(read_run(folder)).notes)
    assert "was violated; worst slack -88" in notes
    assert "does not hold" in notes
    assert "rose at 1 of 5" in notes


def test_an_interrupted_run_is_summed_up_by_its_last_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)
    folder = fake_run(tmp_path / "run", n=7, status="interrupted", reason="SIGINT")
    run = read_run(folder)
    assert run.summary is None
    summary = final(run)
    assert summary["accuracy/test"] == run.rows["accuracy/test"].iloc[-1]
    assert (summary["steps"], summary["rate/bound_ok"]) == (7, True)
    write_run_report(folder)
    assert "This run is not done: interrupted (SIGINT)." in (folder / "tables" / "accuracy.md").read_text()


def test_a_run_with_its_summary_is_not_called_unfinished_while_its_status_is_still_to_be_written(
    tmp_path: Path,
) -> None:
    folder = fake_run(tmp_path / "run", n=3)
    write_json(folder / "status.json", {"status": "running", "reason": None, "traceback": None, "step": 3})
    assert all("not done" not in " ".join(table.notes) for table in run_tables(read_run(folder)))


def test_a_run_with_only_its_starting_point_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)
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
    assert rate_plot(convergence(rows), "") is None
    figure = objective_plot(rows, "title")
    assert figure is not None
    assert texts(figure) == "objective L"
    assert objective_plot(rows.drop(columns="objective"), "") is None


def constrained(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the records of a solver of w = Δ(Θ)."""
    growing = {"mu": 1e-3 * 1.1 ** rows["step"], "lam/norm": 0.1 * rows["gap"], "grad/norm": 0.2 * rows["gap"]}
    kkt = {"kkt/cosine": 1 - rows["gap"], "kkt/distance": rows["gap"], "c_step/error": 0.5 * rows["gap"]}
    return rows.assign(**growing, **kkt, **{"loss/w": 0.5 * rows["objective"]})


def test_the_plot_a_solver_declares_is_drawn_where_each_of_its_panels_has_records(tmp_path: Path) -> None:
    rows = read_run(fake_run(tmp_path / "run", n=20)).rows
    plot = declarations(LC())["plots"][0]
    assert panels_plot(rows, "", plot) is None
    figure = panels_plot(constrained(rows), "Constraint", plot)
    assert figure is not None
    assert len(figure.axes) == 3
    for words in ("gap ‖w − Δ(Θ)‖ / ‖w‖", "μ", "‖λ‖", "cosine of λ and ∇L(w)"):
        assert words in texts(figure)
    assert figure.axes[1].get_lines()[0].get_xdata()[0] == plot["first"] == 1
    assert len({*drawn(figure)}) > 50


def test_the_parts_of_a_declared_panel_are_lines_of_their_own(tmp_path: Path) -> None:
    rows = read_run(fake_run(tmp_path / "run", n=20)).rows
    own = {"fw_gap": 2.0, "eta": 0.5, "eta/a": 0.4, "eta/b": 0.6, "eta/clipped": 0.1, "gauge": 1.0, "gauge/a": 1.0}
    columns = declarations(FrankWolfe(constraint=Assignment(set=L2())))
    plot, figures = columns["plots"][0], [column["key"] for column in columns["columns"]]
    figure = panels_plot(rows.assign(**own), "Sets", plot, figures)
    assert figure is not None
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 3, 2]
    assert "each of 2 sets" in texts(figure)


def test_the_tables_and_plots_have_the_columns_that_the_runs_solver_declares(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run", n=20))
    run = replace(run, rows=constrained(run.rows))
    assert "μ" not in convergence_table(run).shown
    write_json(run.folder / "columns.json", declarations(LC()))
    table = convergence_table(run)
    assert table.raw.loc[20, "mu"] == pytest.approx(1e-3 * 1.1**20)
    assert {"μ", "gap", "loss of w", "‖λ‖", "cosine of λ and ∇L(w)"} <= set(table.shown)
    assert "kkt/distance" in table.raw
    lines = {column["key"]: column["label"] for column in columns_of([run], "objective")}
    objective = objective_plot(run.rows, "", lines)
    assert objective is not None
    assert "training loss of the weights w" in texts(objective)


def test_a_declared_column_may_be_a_check_a_size_or_of_a_sweep(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run", n=3))
    columns = [
        Column("alpha", "α > c/2", above=(0.5, "c"), note="What α is."),
        Column("kept", "channels", table="compression", dense="total"),
        Column("kept", "channels left", table="summary"),
        Column("ok", "held", form="yes_no"),
    ]
    write_json(run.folder / "columns.json", {"columns": [asdict(column) for column in columns]})
    rows = run.rows.assign(alpha=[1.0, 1.0, 3.0, 3.0], c=4.0, ok=1.0)
    table = convergence_table(replace(run, rows=rows))
    assert "α > c/2" not in table.shown  # c is no column
    write_json(run.folder / "columns.json", {"columns": [asdict(column) for column in (*columns, Column("c"))]})
    table = convergence_table(replace(run, rows=rows))
    assert table.shown["α > c/2"].to_list() == ["no", "no", "yes", "yes"]
    assert table.shown["held"].to_list() == ["yes"] * 4
    assert table.notes[-1] == "What α is."
    sizes = compression_table(run, {"kept": 3, "total": 12}).raw.set_index("quantity")
    assert sizes.loc["channels", ["dense", "compressed", "ratio"]].to_list() == [12, 3, 0.25]
    assert ("kept", "channels left") in [measure[:2] for measure in measures_of([run])]


def test_the_accuracy_table_says_which_step_was_kept(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run", n=4))
    summary = final(run)
    assert "the network kept is the final one." in " ".join(accuracy_table(run, summary).notes)
    notes = accuracy_table(run, summary | {"steps": 4, "step/kept": 3}).notes
    assert "the network kept is that of step 3, whose compressed training objective was the lowest." in " ".join(notes)


def test_the_rate_plot_names_the_slope_its_range_the_bound_and_the_reference(tmp_path: Path) -> None:
    figure = rate_plot(read_run(fake_run(tmp_path / "run")).convergence, "Convergence rate: nnbcd")
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


def test_the_weights_plot_has_a_panel_for_each_histogram_of_the_summary(tmp_path: Path) -> None:
    summary = final(read_run(fake_run(tmp_path / "run", n=2)))
    figure = weights_plot(summary, "Weights")
    assert figure is not None
    heads = [axes.get_title() for axes in figure.axes]
    assert heads[0] == "fc2.weight cores.0\n1 × 16 × 8"
    assert heads[3] == "all other parameters and buffers\n2560, 70.0 % zeros not drawn"
    more = weights_plot({"weights": summary["weights"] | {"tensors": 9}}, "Weights")
    assert more is not None
    assert more.get_suptitle() == "Weights (4 largest of 9 tensors)"
    for without in ({}, {"weights": {"tensors": 0, "largest": []}}):
        assert weights_plot(without, "") is None


# --- text ---


def test_numbers_are_short_and_exact_where_they_are_counts() -> None:
    assert [form(value) for form in (number, percent, times) for value in ("text", [1])] == ["–"] * 6
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


def test_a_log_axis_is_labelled_in_plain_numbers_or_powers_of_ten() -> None:
    assert [style.power_of_ten(value) for value in (1e7, 2e-5, 1.5e10, 1e-12)] == ["10⁷", "2×10⁻⁵", "1.5×10¹⁰", "10⁻¹²"]
    for low, high, at, said in (
        (1e-3, 1e3, 10.0, "10"), (0.2, 0.6, 0.3, "0.3"), (2.0, 90.0, 50.0, "50"), (1e-7, 1e-2, 1e-5, "10⁻⁵"),
    ):  # fmt: skip
        with case(low=low, high=high):
            axis = style.new_figure(4, 3, "").add_subplot(yscale="log", ylim=(low, high)).yaxis
            style.log_ticks(axis, low, high)
            assert axis.get_major_formatter()(at) == said
            assert any(abs(tick / at - 1) < 1e-9 for tick in axis.get_majorticklocs())
