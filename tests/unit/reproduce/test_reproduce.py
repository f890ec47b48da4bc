"""The papers' experiments: their protocols fit the published figures, run, go on, and are told beside them."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_runs import config, fake_run

import nncompress.reproduce.command as command
from nncompress.cli import main
from nncompress.errors import ConfigError
from nncompress.records import read_json, read_run, write_json
from nncompress.report import report
from nncompress.report.cross import cross_frame, cross_tables
from nncompress.report.figures import METRICS, figure, measured, shared_parts
from nncompress.report.reproduction_rows import FAIL, NOT_COMPARABLE, PASS, claim_row, verdict
from nncompress.reproduce.planning import Cost, Plan, _recorded, jobs_of, planned, seconds
from nncompress.reproduce.protocol import (
    PAPERS,
    SCALES,
    Alternative,
    Claim,
    Protocol,
    Selection,
    Study,
    read_protocol,
)
from nncompress.reproduce.published import CLAIM, NOT_AVAILABLE, Published, read_published

PROTOCOLS = [read_protocol(paper, scale) for paper in PAPERS for scale in SCALES]
STUDIES = {study.words: study for protocol in PROTOCOLS for study in protocol.studies}


def test_every_published_figure_is_named_once_and_is_a_number_a_claim_or_not_available() -> None:
    found = read_published()
    keys = [(each.paper, each.row, each.metric) for each in found]
    assert len(keys) == len(set(keys)) > 1000
    for each in found:
        assert each.source
        assert each.setting
        assert each.metric == CLAIM or each.value == NOT_AVAILABLE or np.isfinite(float(each.value))


@pytest.mark.parametrize(
    ("paper", "row", "metric", "value"),
    [
        ("nnbcd", "har4/orthogonal", "test accuracy (%)", 96.81),
        ("nnbcd", "cnn/rank40_at500", "test accuracy (%)", 96.6),
        ("nnbcd", "har5_grid/gamma5_rho1", "test accuracy (%)", 96.57),
        ("slimming", "ns_code/cifar10_vgg19_70", "test accuracy fine-tuned (%)", 93.78),
        ("slimming", "counts/resnet164_cifar10", "parameters", 1703258),
        ("lc", "toolkit/quantize_all", "test error (%)", 2.56),
        ("sparsefw", "counts/resnet18", "MACs", 555422720),
    ],
)
def test_published_figures_are_those_of_their_sources(paper: str, row: str, metric: str, value: float) -> None:
    (found,) = [each for each in read_published(paper) if (each.row, each.metric) == (row, metric)]
    assert found.number == value


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: f"{each.paper}-{each.scale}")
def test_a_protocol_measures_published_rows_alone_and_says_why_it_leaves_one_out(protocol: Protocol) -> None:
    rows = {each.row for each in read_published(protocol.paper) if each.metric != CLAIM}
    names = {each.row for each in read_published(protocol.paper)}
    for pattern, (selection, _) in protocol.rows.items():
        assert selection.study in protocol.other, pattern
    for claim in protocol.claims:
        assert claim.published in {*names, "own check"}
        assert claim.ours.study in protocol.other
        assert not isinstance(claim.than, Selection) or claim.than.study in protocol.other
    for row in rows:
        selection = protocol.selection(row)
        if selection is None or protocol.study(selection.study) is None:
            assert protocol.why_absent(row) != "no experiment here", row


@pytest.mark.parametrize("study", STUDIES.values(), ids=[study.name for study in STUDIES.values()])
def test_the_first_run_of_every_study_is_a_valid_configuration(study: Study) -> None:
    from hydra import compose, initialize_config_module

    from nncompress import config as configuration

    zipped = any(word.startswith("sweep.zip=") for word in study.words)
    job = jobs_of(study.words if zipped else [few(word) for word in study.words])[0]
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        cfg = compose("config", list(job.overrides))
    configuration.validate(cfg)
    assert job.steps >= 0
    assert (job.reference is None) == (cfg.solver._target_.rpartition(".")[2] not in FROM_REFERENCE)


def few(word: str) -> str:
    """A swept word with its first value, of a group with two: then the sweep's own configuration has the defaults."""
    key, _, value = word.partition("=")
    return word if "[" in value or not value else f"{key}={','.join(value.split(',')[: 1 if '.' in key else 2])}"


FROM_REFERENCE = ("LC", "IDC", "DCRetrain", "Distillation", "DirectCompression")


def test_without_a_latency_or_a_small_network_the_tables_of_cross_are_made(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "0", config(), n=3)
    ends = {"accuracy/test": 0.9, "ratio/bits": 1.5, "ratio/macs": 1.2, "steps": 10}
    write_json(folder / "summary.json", (read_json(folder / "summary.json") or {}) | ends)
    frame = cross_frame([read_run(folder)])
    assert frame["latency"].isna().all()
    assert [table.name for table in cross_tables(frame, "x")] == ["best", "cross"]
    assert cross_frame([]).empty
    assert list(cross_tables(cross_frame([]), "x")) == []


def test_stars_of_a_row_are_the_values_of_keys() -> None:
    protocol = read_protocol("nnbcd", "gpu")
    grid = protocol.selection("har5_grid/gamma0.5_rho10")
    assert grid is not None
    assert dict(grid.where) == {"solver.gamma": "0.5", "solver.rho": "10"}
    at = protocol.selection("cnn/rank40_at500")
    assert at is not None
    assert (dict(at.where), at.step) == ({"compression.rank": "40"}, 500)
    row = read_protocol("lc", "cpu").selection("toolkit/prune")
    assert row is not None
    assert dict(row.where) == {"experiment": "lc/prune"}
    assert protocol.selection("prune_solar_flare/orthogonal") is None


@pytest.mark.parametrize(
    ("difference", "better", "tolerance", "judged", "expected"),
    [
        (-0.4, 1, 0.5, True, PASS), (-0.6, 1, 0.5, True, FAIL), (3.0, 1, 0.5, True, PASS),
        (0.4, -1, 0.5, True, PASS), (0.6, -1, 0.5, True, FAIL), (-3.0, -1, 0.5, True, PASS),
        (0.01, 0, 0.0, True, FAIL), (0.0, 0, 0.0, True, PASS), (-0.01, 0, 0.02, True, PASS),
        (3.0, 1, 0.5, False, NOT_COMPARABLE), (None, 1, 0.5, True, NOT_COMPARABLE),
    ],
)  # fmt: skip
def test_a_figure_passes_unless_it_is_worse_by_more_than_the_tolerance(
    difference: float | None, better: int, tolerance: float, judged: bool, expected: str
) -> None:
    assert verdict(difference, better, tolerance, judged) == expected


def test_figures_are_taken_at_the_end_at_a_step_and_before_fine_tuning(tmp_path: Path) -> None:
    settings = config()
    settings["solver"] |= {"num_steps": 30, "fine_tune": None}
    run = read_run(fake_run(tmp_path / "run", settings, n=30))
    accuracy = run.rows.set_index("step")["accuracy/test"]
    assert measured(run, METRICS["test error (%)"]) == pytest.approx(100 * (1 - accuracy[30]))
    assert measured(run, METRICS["test accuracy (%)"], step=10) == pytest.approx(100 * accuracy[10])
    assert measured(run, METRICS["test accuracy pruned (%)"]) == pytest.approx(100 * accuracy[15])
    assert measured(run, METRICS["test accuracy (%)"], step=31) is None
    assert figure(run, "no/such") is None
    without = replace(run, config=run.config | {"solver": {"num_steps": 30, "fine_tune": 0}})
    assert measured(without, METRICS["test accuracy with sparsity (%)"]) == pytest.approx(
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


WORDS = ("model.widths=[8]", "solver.num_steps=2", "device=cpu", "compression=l0", "compression.keep=0.5,0.1")


KEPT_HALF = Selection("kept", {"compression.keep": 0.5})


def tiny(paper: str, scale: str) -> Protocol:
    """Two runs for each seed; a study whose official data are missing, and one without any data."""
    study = Study("kept", "two parts kept", "digits", (*WORDS, "seed=0"), ("a small network",))
    elsewhere = Study(
        "elsewhere", "other data", "npz", ("dataset=npz", "dataset.path=none.npz", *WORDS[:3], "seed=0"),
        instead=Alternative(("dataset=digits", "~dataset.path"), "digits in place of points"),
    )  # fmt: skip
    nothing = replace(elsewhere, name="nothing", instead=None)
    claims = [
        Claim("claims/1", "more weights are more accurate", "accuracy/test", KEPT_HALF,
              Selection("kept", {"compression.keep": 0.1})),
    ]  # fmt: skip
    rows = {"table/keep*": (Selection("kept"), ("compression.keep",))}
    there = {"kept": ("cpu",), "elsewhere": ("cpu",), "nothing": ("cpu",)}
    return Protocol(paper, scale, "Tiny", [study, nothing], rows, claims, {"table/*": "no such data"}, {}, there)


PUBLISHED = [
    Published("lc", "table/keep0.5", "Table 1", "half", "test accuracy (%)", "5", ""),
    Published("lc", "table/keep0.1", "Table 1", "a tenth", "test accuracy (%)", "100", ""),
    Published("lc", "table/keep0.1", "Table 1", "a tenth", "objective", "3", ""),
    Published("lc", "table/other", "Table 2", "other", "test error (%)", "2", ""),
    Published("lc", "claims/1", "abstract", "all", CLAIM, "better", ""),
    Published("lc", "claims/2", "abstract", "all", CLAIM, "faster", ""),
]


@pytest.fixture
def tiny_paper(apart: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The paper `lc` is the tiny one; where its experiments go."""
    monkeypatch.setattr(command, "read_protocol", tiny)
    monkeypatch.setattr("nncompress.report.reproduction.read_protocol", tiny)
    monkeypatch.setattr("nncompress.report.reproduction.read_published", lambda paper: PUBLISHED)
    return Path("outputs/reproduce/lc/cpu")


def test_the_plan_tells_runs_time_and_missing_data_and_runs_nothing(
    tiny_paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "lc", "--plan", "seed=0,1"]) == 0
    told = capsys.readouterr().out
    assert "kept" in told
    assert "4 runs to do" in told
    assert "missing" in told
    assert "none.npz" in told
    assert not tiny_paper.exists()


def test_studies_run_are_judged_and_are_not_run_again(tiny_paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "lc"]) == 1  # a study has no data
    table = pd.read_csv(tiny_paper / "tables" / "published.csv")
    assert list(table["row"]) == ["table/keep0.5", "table/keep0.1"]
    assert list(table["verdict"]) == [PASS, FAIL]
    accuracy = [read_run(tiny_paper / "kept" / job).summary["accuracy/test"] for job in ("0", "1")]  # type: ignore[index]
    assert table["ours"].to_list() == pytest.approx([100 * each for each in accuracy])
    assert list(table["deviations"]) == ["a small network"] * 2
    assert table["command"][0].startswith("nncompress train -m 'model.widths=[8]'")
    absent = pd.read_csv(tiny_paper / "tables" / "not_measured.csv")
    assert dict(zip(absent["row"], absent["why"], strict=True)) == {
        "table/keep0.1": "not a figure that is compared", "table/other": "no such data",
    }  # fmt: skip
    claims = pd.read_csv(tiny_paper / "tables" / "claims.csv")
    assert claims["verdict"].to_list() == [PASS if accuracy[0] > accuracy[1] else FAIL, "not measured"]
    assert claims["deviations"][0] == "a small network"
    assert claims["claim"][1] == "faster"
    assert claims["why"][1] == "no experiment here"
    assert "none.npz" in (tiny_paper / "tables" / "studies.md").read_text()
    assert "Published" not in capsys.readouterr().err
    before = (tiny_paper / "kept" / "0" / "status.json").stat().st_mtime_ns
    assert main(["reproduce", "lc", "seed=0,1", "--study", "kept"]) == 0
    assert (tiny_paper / "kept" / "0" / "status.json").stat().st_mtime_ns == before
    assert sorted(path.parent.name for path in (tiny_paper / "kept").glob("*/summary.json")) == ["0", "1", "2", "3"]
    assert list(pd.read_csv(tiny_paper / "tables" / "published.csv")["n"]) == [2, 2]
    keys = {job["key"] for job in json.loads((tiny_paper / "kept" / "sweep.json").read_text())["jobs"]}
    assert set(json.loads((tiny_paper / "reproduce.json").read_text())["studies"]["kept"]["keys"]) == keys
    assert main(["reproduce", "lc", "--study", "kept"]) == 0  # the seed that was added is no part of it any more
    assert list(pd.read_csv(tiny_paper / "tables" / "published.csv")["n"]) == [1, 1]
    assert list(pd.read_csv(tiny_paper / "kept" / "tables" / "runs.csv")["seed"]) == [0, 0]
    began = json.loads((tiny_paper / "kept" / "0" / "environment.json").read_text())["date"]
    assert list(pd.read_csv(tiny_paper / "tables" / "published.csv")["date"]) == [began[:10]] * 2
    assert {path.name for path in report([tiny_paper])} >= {"published.md", "report.html", "results.md"}


def test_a_folder_of_any_name_is_gone_on_with_and_papers_that_were_not_run_get_no_tables(
    tiny_paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "my out, it's #1 (é)"
    words = ["reproduce", "lc", "--study", "kept", "--out", out]
    assert main(words) == 0
    folder = Path(out) / "lc" / "cpu"
    (folder / "kept" / "1" / "status.json").unlink()
    assert main(words) == 0
    assert (folder / "kept" / "1" / "summary.json").exists()
    (folder / "tables" / "published.md").unlink()
    assert main(["reproduce", "nnbcd", "lc", "--tables", "--out", out]) == 0
    assert "nnbcd/cpu, it gets no tables" in capsys.readouterr().out
    assert (folder / "tables" / "published.md").exists()
    for damaged in ('{"studies": null}', '{"paper": "lc", "scale": "cpu", "studies": {"kept": 1}}', "{"):
        (folder / "reproduce.json").write_text(damaged)
        assert main(["reproduce", "lc", "--tables", "--out", out]) == 2
        assert main(words) == 2
        assert "must name a paper, a scale and its studies, found others; delete it" in capsys.readouterr().err
    (folder / "reproduce.json").unlink()
    assert main(words) == 0


def test_a_run_that_has_ended_otherwise_is_told(tiny_paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "lc", "--study", "kept"]
    assert main(words) == 0
    write_json(tiny_paper / "kept" / "1" / "status.json", {"status": "diverged", "reason": "x", "step": 1})
    assert main(words) == 1
    assert "lc kept: of 2 runs 1 diverged" in capsys.readouterr().out


@pytest.mark.parametrize(("ours", "holds"), [(0.95, True), (0.9499, False), (0.97, True)])
def test_a_claim_holds_at_its_limit(ours: float, holds: bool, tmp_path: Path) -> None:
    runs = {}
    for name, accuracy in (("a", ours), ("b", 0.96)):
        folder = fake_run(tmp_path / name, config(), n=3)
        write_json(folder / "summary.json", (read_json(folder / "summary.json") or {}) | {"accuracy/test": accuracy})
        runs[name] = [read_run(folder)]
    studies = [Study(name, name, "digits", ()) for name in runs]
    claim = Claim("claims/1", "not worse", "accuracy/test", Selection("a"), Selection("b"), by=-0.01)
    protocol = Protocol("lc", "cpu", "T", studies, {}, [claim], {}, {}, {"a": ("cpu",), "b": ("cpu",)})
    assert claim_row(protocol, claim, runs, {"studies": {}})["verdict"] == (PASS if holds else FAIL)


def test_a_reference_has_the_name_under_which_a_run_looks_for_it() -> None:
    (job,) = jobs_of(["experiment=lc/prune"])
    assert job.reference is not None
    assert Path(job.reference[0]).name.startswith("lenet300-mnist-")


def test_other_data_take_the_place_of_missing_ones_and_are_a_deviation(
    tiny_paper: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(paper: str, scale: str) -> Protocol:
        study = Study(
            "elsewhere", "other data", "har", ("dataset=har", "data.download=false", *WORDS[:4]),
            instead=Alternative(("dataset=digits",), "digits in place of activities"),
        )  # fmt: skip
        return replace(tiny(paper, scale), studies=[study], rows={}, claims=[])

    monkeypatch.setattr(command, "read_protocol", other)
    monkeypatch.setattr("nncompress.report.reproduction.read_protocol", other)
    assert main(["reproduce", "lc"]) == 0
    assert "digits in place of activities" in capsys.readouterr().out
    table = pd.read_csv(tiny_paper / "tables" / "studies.csv")
    assert list(table["deviations"]) == ["digits in place of activities"]
    assert "dataset=digits" in table["command"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs one or more of nnbcd"),
        (["nbcd"], "found nbcd"),
        (["lc", "--scale", "big"], "--scale must be one of smoke, cpu, gpu, found big"),
        (["lc", "--scale"], "--scale needs a value"),
        (["lc", "--quick"], "no option --quick"),
        (["lc", "--launcher", "cloud"], "--launcher must be one of"),
        (["lc", "--study", "nothing_like_it"], "--study must be one of"),
        (["lc", "solver.num_steps=1"], "would change what is reproduced"),
        (["lc", "--scale", "smoke", "--tables", "--out", "nowhere"], "--tables needs what was run"),
    ],
)
def test_wrong_words_are_one_sentence_and_exit_code_2(
    words: list[str], said: str, apart: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_planned(
    tiny_paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    assert main(["reproduce", "lc", "--out", "taken"]) == 2
    said = capsys.readouterr().err
    assert said == "nncompress: --out needs a folder that can be written into, found taken/lc/cpu: Not a directory\n"


def test_a_plan_that_was_stopped_keeps_what_it_measured_and_says_how_to_go_on(
    tiny_paper: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(study: Study, *more: Any) -> Plan:
        if study.name == "nothing":
            raise KeyboardInterrupt
        return planned(study, *more)

    monkeypatch.setattr(command, "planned", stopped)
    assert main(["reproduce", "lc", "seed=1"]) == 130
    assert "go on with: nncompress reproduce lc seed=1" in caplog.text
    cost = json.loads((tiny_paper / "reproduce.json").read_text())["studies"]["kept"]["cost"]
    assert cost["rest"] > 0
    assert _recorded({"words": ["a"], "cost": cost}, ["a"]) == Cost(**cost)
    assert [_recorded({"words": ["a"], "cost": each}, ["a"]) for each in (None, 3, {"x": 1})] == [None] * 3
    assert _recorded({"words": ["a"], "cost": cost}, ["b"]) is None
    monkeypatch.setattr("nncompress.reproduce.planning._measured", lambda job: pytest.fail("measured again"))
    assert main(["reproduce", "lc", "seed=1", "--study", "kept"]) == 0


def test_what_a_run_is_compressed_to_afterwards_is_measured_once_and_counted() -> None:
    (job,) = jobs_of(["compress_at=[.1,.2,.3]", "compress_by.weights.at=[.5,.9]", "~compress_by.low_rank"])
    assert job.parts == 3 + 3 + 2  # two methods share the parts
    assert set(job.one_step) == {"++solver.num_steps=1", "compress_at=[0.1]", "compress_by.weights.at=[0.5]"}
    plan = Plan(STUDIES[next(iter(STUDIES))], (), (job,), frozenset(), cost=Cost(2, 3, 0, 0, 5))
    assert seconds([plan]) == 3 + 2 * job.steps + 5 * job.parts


def test_a_wrong_word_of_a_protocol_is_told(apart: None) -> None:
    with pytest.raises(ConfigError, match="sollver"):
        jobs_of(["sollver=lc"])


@pytest.mark.slow
def test_a_paper_killed_in_the_middle_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "nncompress", "reproduce", "slimming", "--scale", "smoke", "--out"]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, cwd=tmp_path)
    broken = tmp_path / "broken"
    for _ in range(2):
        process = subprocess.Popen([*words, str(broken)], cwd=tmp_path)
        deadline = time.monotonic() + 300
        before = len(list(broken.rglob("records.jsonl")))
        while len(list(broken.rglob("records.jsonl"))) <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*words, str(broken)], check=True, cwd=tmp_path)
    tables = [pd.read_csv(each / "slimming/smoke/tables/measured.csv") for each in (tmp_path / "whole", broken)]
    kept = [key for key in tables[0] if not key.startswith(("seconds", "memory"))]
    pd.testing.assert_frame_equal(tables[0][kept], tables[1][kept])
    assert json.loads((broken / "slimming/smoke/reproduce.json").read_text())["scale"] == "smoke"
