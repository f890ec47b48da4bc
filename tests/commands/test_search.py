"""`nncompress search`: what is drawn, what is chosen, and that a search goes on where it was left."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from runs import status

from nncompress import jobs
from nncompress.cli import main
from nncompress.errors import ConfigError
from nncompress.records import SEARCH
from nncompress.search import distribution
from nncompress.trials import NAME, STORE, storage

optuna = pytest.importorskip("optuna")

QUICK = ["solver=sgd", "model=mlp", "model.widths=[8]", "solver.num_steps=2"]
RATE = "solver.lr=tag(log,interval(1e-3,1))"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nncompress.report.write.run_plots", lambda run, folder: [])
    monkeypatch.setattr("nncompress.report.write.save_sweep_plots", lambda figures, folder: [])
    monkeypatch.chdir(tmp_path)


def search(*words: str, folder: str = "found") -> int:
    return main(["search", *QUICK, *words, f"hydra.sweep.dir={folder}"])


def trials(folder: str = "found") -> list[dict[str, object]]:
    return list(json.loads((Path(folder) / SEARCH).read_text())["trials"])


@pytest.mark.parametrize(
    ("word", "drawn"),
    [
        ("a=x,y,[1,2]", {"name": "CategoricalDistribution", "attributes": {"choices": ["x", "y", "[1,2]"]}}),
        ("a=range(2,9)", {"name": "IntDistribution", "attributes": {"log": False, "step": 1, "low": 2, "high": 8}}),
        ("a=range(2,9,3)", {"name": "IntDistribution", "attributes": {"log": False, "step": 3, "low": 2, "high": 8}}),
        (
            "a=tag(log,interval(0.001,1))",
            {"name": "FloatDistribution", "attributes": {"step": None, "low": 0.001, "high": 1.0, "log": True}},
        ),
    ],
)
def test_a_key_is_drawn_as_its_values_say(word: str, drawn: dict[str, object]) -> None:
    (override,) = OverridesParser.create().parse_overrides([word])
    assert json.loads(optuna.distributions.distribution_to_json(distribution(override))) == drawn


def test_an_empty_interval_is_refused() -> None:
    (override,) = OverridesParser.create().parse_overrides(["a=interval(2,1)"])
    with pytest.raises(ConfigError, match="nothing can be drawn from it"):
        distribution(override)


def test_a_search_with_two_objectives_marks_its_front() -> None:
    sizes = "model.widths=[2],[8],[32]"
    assert search(sizes, "search.minimize=[params/dense]", "search.trials=6", "solver.num_steps=5") == 0
    found = trials()
    assert len(found) == 6
    assert {trial["state"] for trial in found} == {"done"}
    values = [tuple(trial["values"]) for trial in found]
    for trial, (accuracy, size) in zip(found, values, strict=True):
        beaten = any(a >= accuracy and s <= size and (a, s) != (accuracy, size) for a, s in values)
        assert trial["best"] == (not beaten)
    assert len({trial["job"] for trial in found}) == len(list(Path("found").glob("*/summary.json"))) <= 3
    summary = json.loads(Path("found/0/summary.json").read_text())
    assert values[0] == (summary["accuracy/validation"], summary["params/dense"])
    assert "larger is better" in Path("found/tables/search.md").read_text()


def test_hopeless_trials_are_pruned_and_named_so() -> None:
    words = ["solver.lr=0.1,1e-9", "seed=range(0,40)", "solver.num_steps=4", "search.trials=7"]
    assert (
        search(*words, "search.pruner.n_startup_trials=2", "search.sampler._target_=optuna.samplers.RandomSampler") == 0
    )
    pruned = [trial for trial in trials() if trial["state"] == "pruned"]
    assert pruned
    for trial in pruned:
        job = Path("found") / str(trial["job"])
        assert status(job)["status"] == "pruned"
        assert len((job / "records.jsonl").read_text().splitlines()) < 5
    assert main(["search", "sweep.resume=found"]) == 0


def test_an_interrupted_search_ends_as_an_unbroken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [RATE, "search.trials=3"]
    assert search(*words) == 0
    attempt = jobs.attempt
    tried: list[float] = []

    def interrupted(cfg, folder):
        tried.append(cfg.solver.lr)
        if len(tried) == 2:
            raise SystemExit(143)
        return attempt(cfg, folder)

    monkeypatch.setattr(jobs, "attempt", interrupted)
    assert search(*words, folder="broken") == 143
    monkeypatch.setattr(jobs, "attempt", attempt)
    assert len(trials("broken")) == 1
    assert main(["search", "sweep.resume=broken"]) == 0
    assert trials("broken") == trials()
    assert main(["search", "sweep.resume=broken", "search.trials=4"]) == 0
    assert trials("broken")[:3] == [
        trial | {"best": there["best"]} for trial, there in zip(trials(), trials("broken"), strict=False)
    ]
    assert len(trials("broken")) == 4


def test_a_trial_that_was_killed_while_it_was_proposed_is_dropped() -> None:
    assert search(RATE, "search.trials=2") == 0
    study = optuna.load_study(study_name=NAME, storage=storage(Path("found").absolute() / STORE))
    study.ask()  # without its settings
    assert main(["search", "sweep.resume=found", "search.trials=4"]) == 0
    assert [trial["state"] for trial in trials()] == ["done", "done", "failed", "done"]


@pytest.mark.slow
def test_trials_at_the_same_time_share_one_study() -> None:
    engine = ["launcher=joblib", "hydra.launcher.n_jobs=2", "search.parallel=2"]
    assert search(RATE, "search.trials=4", *engine) == 0
    assert [trial["state"] for trial in trials()] == ["done"] * 4
    assert len(list(Path("found").glob("*/summary.json"))) == 4


def test_the_test_samples_are_not_looked_at_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    assert search(RATE, "search.trials=1") == 0
    assert "chosen on them" not in capsys.readouterr().out
    assert search(RATE, "search.trials=1", "search.maximize=[accuracy/test]", folder="looked") == 0
    assert "accuracy/test is measured on the test samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "at least one key with several values"),
        ([RATE, "search.maximize=[accuracy/tset]", "search.trials=1"], "found 'accuracy/tset'"),
        ([RATE, "search.maximize=[]"], "search needs an objective"),
        ([RATE, "search.sampler._target_=optuna.samplers.TPE"], "optuna.samplers"),
        ([RATE, "search.trails=3"], "Key 'trails' not in 'search'"),
    ],
)
def test_what_cannot_be_searched_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(*words) == 2
    assert said in capsys.readouterr().err


def test_another_objective_needs_another_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert search(RATE, "search.trials=1") == 0
    assert main(["search", "sweep.resume=found", "search.maximize=[accuracy/train]"]) == 2
    assert "a search keeps its objectives" in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert search(RATE) == 1
    assert "pip install 'nncompress[search]'" in capsys.readouterr().err


def test_a_finished_trial_can_be_run_on_by_itself(tmp_path: Path) -> None:
    assert search(RATE, "search.trials=1") == 0
    assert main(["train", "resume=found/0", "solver.num_steps=4"]) == 0
    Path("found/study.db").unlink()
    assert main(["train", "resume=found/0", "solver.num_steps=5"]) == 0
    assert status(Path("found/0"))["status"] == "done"
