"""`nncompress search`: what is drawn, what is chosen, and that a search goes on where it was left.

Most trials here are no runs: their accuracy is a function of their learning rate.
"""

import json
import math
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from cases import case
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from runs import configuration, resume, rows, run, save_config, status

from nncompress.cli.main import main
from nncompress.errors import ConfigError, NNCompressError, Pruned
from nncompress.files import write_json
from nncompress.report import write
from nncompress.results.records import SEARCH
from nncompress.results.run_folder import status_of
from nncompress.sweeps import jobs
from nncompress.sweeps.search import OptunaStudy, distribution
from nncompress.sweeps.trial import FOLDER, NAME, STORE, new_study, storage, watch_of

optuna = pytest.importorskip("optuna")

SMALL = ["dataset.train_size=60", "dataset.test_size=20"]
QUICK = ["solver=sgd", "model=mlp", "model.widths=[8]", "solver.num_steps=2", *SMALL]
RATE = "solver.lr=tag(log,interval(1e-3,1))"
SPACE = {"solver.lr": optuna.distributions.FloatDistribution(1e-3, 1, log=True)}


@pytest.fixture(autouse=True)
def _bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody plots, trials write no tables, and of the search there are some where a test asks for them."""
    monkeypatch.setattr(jobs, "write_report", lambda folder: None)
    monkeypatch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])
    if "tables" not in request.fixturenames:
        monkeypatch.setattr(write, "_write_sweep", lambda *arguments: ([], []))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tables() -> None:
    """The tables of a search."""


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates tried, none by a run; the accuracy is best at 0.1."""
    rates: list[float] = []

    def run(cfg: DictConfig, folder: Path) -> None:
        rates.append(cfg.solver.lr)
        save_config(cfg, folder)
        with status_of(folder, False):
            if cfg.solver.lr < 1e-6:
                raise Pruned("the trials before this one were better")
            accuracy = 1 / (1 + abs(math.log10(cfg.solver.lr) + 1))
            look = watch_of(cfg.search, folder)
            if look is not None:
                look({"step": 0, "accuracy/validation": accuracy})
            figures = {f"accuracy/{part}": accuracy for part in ("train", "test", "validation")}
            write_json(folder / "summary.json", figures)

    monkeypatch.setattr(jobs, "prepare", lambda cfg, folder: partial(run, cfg, folder))
    return rates


def search(*words: str, folder: str = "found") -> int:
    return main(["search", *QUICK, *words, f"hydra.sweep.dir={folder}"])


def begun(folder: Path) -> "optuna.Study":
    """The study of a new search with one objective."""
    new_study(folder / STORE, {"accuracy/validation": "maximize"})
    return opened(folder)


def opened(folder: Path) -> "optuna.Study":
    return optuna.load_study(study_name=NAME, storage=storage(folder / STORE))


def trials(folder: str = "found") -> list[dict[str, object]]:
    return list(json.loads((Path(folder) / SEARCH).read_text())["trials"])


def test_a_key_is_drawn_as_its_values_say() -> None:
    for word, drawn in (
        ("a=x,y,[1,2]", {"name": "CategoricalDistribution", "attributes": {"choices": ["x", "y", "[1,2]"]}}),
        ("a=range(2,9)", {"name": "IntDistribution", "attributes": {"log": False, "step": 1, "low": 2, "high": 8}}),
        ("a=range(2,9,3)", {"name": "IntDistribution", "attributes": {"log": False, "step": 3, "low": 2, "high": 8}}),
        (
            "a=tag(log,interval(0.001,1))",
            {"name": "FloatDistribution", "attributes": {"step": None, "low": 0.001, "high": 1.0, "log": True}},
        ),
    ):
        (override,) = OverridesParser.create().parse_overrides([word])
        with case(word=word):
            assert json.loads(optuna.distributions.distribution_to_json(distribution(override))) == drawn


def test_an_interval_that_is_empty_and_a_range_without_end_are_refused() -> None:
    for word in ("a=interval(2,1)", "a=range(0,1e12)", "a=range(0,1000000000)", "a=range(0,1e9,0.5)"):
        (override,) = OverridesParser.create().parse_overrides([word])
        with case(word=word), pytest.raises(ConfigError, match="nothing can be drawn from it"):
            distribution(override)


@pytest.mark.usefixtures("tables")
def test_a_search_with_two_objectives_marks_its_front(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "model.widths=[2],[8],[32]"
    assert search(sizes, "search.minimize=[params/dense]", "search.trials=5") == 0
    found = trials()
    assert len(found) == 5
    assert {trial["state"] for trial in found} == {"done"}
    values = [tuple(trial["values"]) for trial in found]  # type: ignore[arg-type]
    for trial, (accuracy, size) in zip(found, values, strict=True):
        beaten = any(a >= accuracy and s <= size and (a, s) != (accuracy, size) for a, s in values)
        assert trial["best"] == (not beaten)
    assert len({trial["job"] for trial in found}) == len(list(Path("found").glob("*/summary.json"))) <= 3
    summary = json.loads(Path("found/0/summary.json").read_text())
    assert values[0] == (summary["accuracy/validation"], summary["params/dense"])
    assert "larger is better" in Path("found/tables/search.md").read_text()
    assert "chosen on them" not in capsys.readouterr().out


def test_a_hopeless_trial_is_pruned_and_named_so(tmp_path: Path) -> None:
    study = begun(tmp_path)
    space = {"solver.lr": optuna.distributions.FloatDistribution(1e-12, 1)}
    for _ in range(2):
        trial = study.ask(space)
        for step in range(5):
            trial.report(0.9, step)
        study.tell(trial, 0.9)
    study.ask(space).set_user_attr(FOLDER, "2")
    words = ["solver.lr=1e-12", "search.trial=2", f"search.store={tmp_path / STORE}", "validation=0.1"]
    with pytest.raises(Pruned, match="the trials before this one were better at step"):
        run(tmp_path / "2", *QUICK, "solver.num_steps=4", "search.pruner.n_startup_trials=2", *words)
    assert status(tmp_path / "2")["status"] == "pruned"
    assert 0 < len(rows(tmp_path / "2")) < 5
    told = study.trials[2].intermediate_values
    assert told == {row["step"]: row["accuracy/validation"] for row in rows(tmp_path / "2")}


def test_a_search_takes_up_what_was_pruned_and_what_was_killed(tried: list[float]) -> None:
    assert search("solver.lr=0.1,1e-9", "search.trials=4", "search.sampler._target_=optuna.samplers.RandomSampler") == 0
    assert {trial["state"] for trial in trials()} == {"done", "pruned"}
    assert sorted(tried) == [1e-9, 0.1]
    for trial in trials():
        ends = {"done": "done", "pruned": "pruned"}[str(trial["state"])]
        assert status(Path("found") / str(trial["job"]))["status"] == ends
        assert trial["best"] == (trial["state"] == "done")
    study = opened(Path("found"))
    assert all(trial.intermediate_values == {0: 1.0} for trial in study.trials if trial.params["solver.lr"] == "0.1")
    study.ask()  # killed while it was proposed, without its settings
    assert main(["search", "sweep.resume=found", "search.trials=6"]) == 0
    assert [trial["state"] == "failed" for trial in trials()] == [False] * 4 + [True, False]


def test_an_interrupted_search_ends_as_an_unbroken_one(tried: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    words = [RATE, "search.trials=2"]
    assert search(*words) == 0
    attempt = jobs.attempt

    def interrupted(cfg: DictConfig, folder: Path) -> object:
        if len(tried) == 3:
            raise SystemExit(143)
        return attempt(cfg, folder)

    monkeypatch.setattr(jobs, "attempt", interrupted)
    assert search(*words, folder="broken") == 143
    monkeypatch.setattr(jobs, "attempt", attempt)
    assert len(trials("broken")) == 1
    assert main(["search", "sweep.resume=broken"]) == 0
    assert trials("broken") == trials()
    assert tried[:2] == tried[2:]
    assert main(["search", "sweep.resume=broken", "search.trials=3"]) == 0
    assert trials("broken")[:2] == [
        trial | {"best": there["best"]} for trial, there in zip(trials(), trials("broken"), strict=False)
    ]
    assert len(trials("broken")) == 3


def test_that_the_test_samples_are_looked_at_is_told_and_a_finished_trial_can_be_run_on_by_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search(RATE, "search.trials=1", "search.maximize=[accuracy/test]") == 0
    assert "accuracy/test is measured on the test samples" in capsys.readouterr().out
    assert main(["search", "sweep.resume=found", "search.maximize=[accuracy/train]"]) == 2
    assert "a search keeps its objectives" in capsys.readouterr().err
    resume(Path("found/0"), "solver.num_steps=4")
    Path("found/study.db").unlink()
    resume(Path("found/0"), "solver.num_steps=5")
    assert status(Path("found/0"))["status"] == "done"
    assert len(rows(Path("found/0"))) == 6


def test_a_damaged_study_is_told_and_moved_away_it_costs_no_trial(
    tried: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(RATE, "search.trials=2") == 0
    before, store = trials(), Path("found", STORE)
    whole = store.read_bytes()
    store.write_bytes(whole[:5000])
    assert main(["search", "sweep.resume=found"]) == 1
    told = capsys.readouterr().err
    assert (
        f"{store.absolute()} must be the study of this search, but it is damaged (database disk image is malf" in told
    )
    assert "move it away and give nncompress search sweep.resume=" in told
    assert store.read_bytes() == whole[:5000]
    store.rename("away")
    assert main(["search", "sweep.resume=found"]) == 0
    assert trials() == before
    assert len(tried) == 2


def test_only_settings_of_the_space_that_is_searched_become_words(tried: list[float]) -> None:
    assert search(RATE, "search.trials=1") == 0
    study, word = opened(Path("found")), optuna.distributions.CategoricalDistribution(["a", "b"])
    spaces: list[dict[str, optuna.distributions.BaseDistribution]] = [
        {"solver.lr": optuna.distributions.FloatDistribution(1e-9, 1e-8, log=True)},
        {"model._target_": word},
        SPACE | {"hydra.sweep.dir": word},
        {},
    ]
    for space in spaces:
        study.ask(space)
    assert main(["search", "sweep.resume=found", "search.trials=6"]) == 0
    assert [trial["state"] for trial in trials()] == ["done", *["failed"] * 4, "done"]
    assert all(1e-3 <= rate <= 1 for rate in tried)
    assert len(tried) == 2


def test_a_study_that_no_search_made_is_refused(tmp_path: Path) -> None:
    begun(tmp_path).ask(SPACE)
    opened(tmp_path).tell(0, 0.5)
    store = tmp_path / STORE
    whole = store.read_bytes()
    pickled = "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (1, 'cma:optimizer:0', '\"80\"')"
    hostile: list[tuple[str | bytes, type[NNCompressError], str]] = [
        (b"", NNCompressError, "no such table"),
        (b"no database " * 100, NNCompressError, "file is not a database"),
        (whole[:9000] + bytes(4096) + whole[13096:], NNCompressError, "it is damaged"),
        (
            "INSERT INTO trials (study_id, number, state) VALUES (1, 1, 'WAITING')",
            NNCompressError,
            "trial 1 is no trial",
        ),
        ("UPDATE trials SET number = 5", NNCompressError, "trial 0 is no trial of a search"),
        ("UPDATE trial_params SET distribution_json = '[]'", NNCompressError, "it is damaged"),
        ("UPDATE trial_params SET param_value = 50", NNCompressError, "isn't contained in the distribution"),
        ("UPDATE trial_params SET distribution_json = 'x'", NNCompressError, "it is damaged"),
        ("DELETE FROM trial_values", NNCompressError, "values should be set"),
        ("DELETE FROM study_user_attributes", NNCompressError, "it is damaged"),
        ("UPDATE study_user_attributes SET value_json = '{\"a\": [1]}'", ConfigError, "a search keeps its objectives"),
        ("UPDATE study_directions SET direction = 'MINIMIZE'", ConfigError, "a search keeps its objectives"),
        ("UPDATE studies SET study_name = 'theirs'", NNCompressError, "it is damaged"),
        (
            "CREATE TRIGGER more AFTER INSERT ON trials BEGIN UPDATE trials SET number = 9; END",
            NNCompressError,
            "a trigger or view",
        ),
        (pickled, ConfigError, "the pickled state of a sampler, which can run any code; if you trust it, add allow="),
    ]
    cfg = configuration(*QUICK)
    for change, kind, said in hostile:
        store.write_bytes(change if isinstance(change, bytes) else whole)
        if isinstance(change, str):
            with closing(sqlite3.connect(store)) as file, file:
                file.execute(change)
        with case(change=change), pytest.raises(NNCompressError) as refused:
            OptunaStudy(cfg, tmp_path, SPACE)
        assert type(refused.value) is kind
        assert said in str(refused.value)
    cfg.allow = ["optuna.samplers.CmaEsSampler"]
    assert OptunaStudy(cfg, tmp_path, SPACE).space == SPACE


def test_the_folder_that_a_study_names_for_a_trial_is_not_followed(tried: list[float], tmp_path: Path) -> None:
    assert search(RATE, "search.trials=1") == 0
    (tmp_path / "theirs").mkdir()
    write_json(tmp_path / "theirs/status.json", {"status": "done"})
    write_json(tmp_path / "theirs/summary.json", {"accuracy/validation": 7.0})
    study = opened(Path("found"))
    for folder in ("../theirs", str(tmp_path / "theirs"), ["a"], None):
        study.ask(SPACE).set_user_attr(FOLDER, folder)
    assert main(["search", "sweep.resume=found", "search.trials=5"]) == 0
    assert [trial["job"] for trial in trials()] == ["0", "1", "2", "3", "4"]
    assert all(trial["values"] != [7.0] for trial in trials())
    assert len(tried) == 5


def test_a_trial_goes_on_without_a_study_that_is_not_that_of_its_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = configuration(*QUICK, f"search.store={tmp_path / STORE}", "search.trial=0").search
    for content in (b"", b"no database " * 100):
        (tmp_path / STORE).write_bytes(content)
        assert watch_of(settings, tmp_path / "0") is None
        assert "the trial is not watched" in caplog.text
        caplog.clear()
    (tmp_path / STORE).unlink()
    study = begun(tmp_path)
    study.ask().set_user_attr(FOLDER, "0")
    assert watch_of(settings, tmp_path / "0") is not None
    for trial, folder in ((0, tmp_path.parent / "0"), (1, tmp_path / "0")):
        settings.trial = trial
        with case(trial=trial, folder=folder):
            assert watch_of(settings, folder) is None
    settings.trial = 0
    look = watch_of(settings, tmp_path / "1")
    assert look is not None
    look({"step": 0, "accuracy/validation": 1.0})
    assert opened(tmp_path).trials[0].intermediate_values == {}


@pytest.mark.usefixtures("tried")
def test_what_cannot_be_searched_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[tuple[list[str], str]] = [
        ([], "at least one key with several values"),
        ([RATE, "search.maximize=[accuracy/tset]", "search.trials=1"], "found 'accuracy/tset'"),
        ([RATE, "search.maximize=[]"], "search needs an objective"),
        ([RATE, "search.sampler._target_=optuna.samplers.TPE"], "optuna.samplers"),
        ([RATE, "search.trails=3"], "Key 'trails' not in 'search'"),
    ]
    for number, (words, said) in enumerate(wrong):
        with case(words=words):
            assert search(*words, folder=f"wrong{number}") == 2
            assert said in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert search(RATE) == 1
    assert "pip install 'nncompress[search]'" in capsys.readouterr().err
