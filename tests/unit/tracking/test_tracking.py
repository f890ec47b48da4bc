"""Tracking: what any tracker is told, and that a run is the same with and without."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import case
from composing import composing
from hydra import compose
from own_parts import Failing, Noted
from runs import configuration, resume, rows, run, status, struck, summary

from nncompress.cli.main import main
from nncompress.config.build import validate
from nncompress.errors import ConfigError
from nncompress.report.collect import varied_keys
from nncompress.solvers.sgd.sgd import SGD
from nncompress.tracking.base import About, Tracker
from nncompress.tracking.mlflow import MLflow
from nncompress.tracking.tensorboard import TensorBoard
from nncompress.tracking.tracking import Tracking
from nncompress.tracking.wandb import WandB

pytestmark = pytest.mark.usefixtures("apart")

WORDS = ["solver=sgd", "model.widths=[8]", "dataset.train_size=60", "dataset.test_size=20", "compression=l0"]
WORDS += ["compression.keep=0.3"]


def own(name: str, **settings: str) -> str:
    """The word that adds a tracker of one's own."""
    given = {"_target_": f"own_parts.{name}"} | settings
    return f"+tracking.own={{{','.join(f'{key}: {value}' for key, value in given.items())}}}"


def told() -> list[list[Any]]:
    return [json.loads(line) for line in Path("told.jsonl").read_text().splitlines()]


@pytest.fixture
def stopped_at_3() -> Iterator[None]:
    """A run that comes to its third step gets SIGINT in it."""
    with struck(SGD, 2):
        yield


def test_a_failing_tracker_is_one_warning_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = tmp_path / "plain"
    run(plain, *WORDS, "solver.num_steps=3")
    for method in ("start", "row", "end", "none"):
        folder = tmp_path / method
        caplog.clear()
        run(folder, *WORDS, "solver.num_steps=3", own("Failing", method=method))
        with case(method=method):
            assert status(folder)["status"] == "done"
            assert rows(folder) == rows(plain)
            assert summary(folder) == summary(plain)
            told = caplog.text.count("tracking.own is left out from here on: RuntimeError: no")
            assert told == (method != "none")
            assert "Traceback" not in caplog.text


def test_a_tracker_that_draws_leaves_the_random_generators_as_they_were(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]

    before = state()
    with Tracking({"own": lambda: Failing(method="end")}, {}, tmp_path) as tracking:
        tracking.start()
        assert state() == before
        tracking.row({"step": 0, "objective": 1.0})
        assert state() == before
    assert state() == before


def test_the_other_trackers_go_on(tmp_path: Path) -> None:
    words = [own("Failing", method="row"), "+tracking.other._target_=own_parts.Noted"]
    run(tmp_path / "run", *WORDS, "solver.num_steps=2", *words)
    assert [line[0] for line in told()] == ["start", "row", "row", "row", "end"]


def test_a_missing_library_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "run", *WORDS, "solver.num_steps=0", own("Lacking", method="start", error="ImportError"))
    assert "it needs what the extra mlflow installs (ImportError: no); pip install 'nncompress[mlflow]'" in caplog.text
    trackers: dict[str, Tracker] = {
        "mlflow": MLflow(uri="sqlite:///m.db"), "tensorboard": TensorBoard(), "wandb": WandB()
    }  # fmt: skip
    for library, tracker in trackers.items():
        for name in list(sys.modules):
            if name.split(".")[0] == library or name.startswith("torch.utils.tensorboard"):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        with case(library=library):
            with pytest.raises(ImportError, match=library):
                tracker.start(About(tmp_path, {}, {}, {}))
            assert tracker.extra == library


def test_what_a_library_says_of_an_address_is_told_without_its_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Tracker:
        raise RuntimeError("no answer from https://me:secret@host/api")

    with Tracking({"own": fail}, {}, tmp_path) as tracking:
        tracking.start()
    assert "RuntimeError: no answer from https://***@host/api" in caplog.text
    assert "secret" not in caplog.text


def test_a_tracking_json_of_other_kinds_is_as_none(tmp_path: Path) -> None:
    for content in ("[1]", "{", '{"own": [1]}', '{"own": "id"}', '{"other": {"id": 1}}'):
        (tmp_path / "tracking.json").write_text(content)
        with Tracking({"own": Noted}, {}, tmp_path) as tracking:
            tracking.start()
        with case(content=content):
            assert told()[-2][1] == {}
            assert list(json.loads((tmp_path / "tracking.json").read_text())) == ["own"]


def test_a_tracker_cannot_keep_a_run_from_leaving(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop, struck(SGD, 0):
        run(tmp_path / "run", *WORDS, "solver.num_steps=2", own("Failing", method="row"))
    assert stop.value.code == 130
    assert status(tmp_path / "run")["status"] == "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", *WORDS, own("Failing", method="row", error="KeyboardInterrupt"))
    assert status(tmp_path / "again")["status"] == "interrupted"


def test_what_is_no_tracker_is_said_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "run", *WORDS, "solver.num_steps=0", "+tracking.own._target_=builtins.dict")
    assert "must be an nncompress.tracking.Tracker, found dict" in caplog.text


def test_wrong_settings_are_refused_before_anything_runs() -> None:
    for words, said in (
        (["tracking=mlflow", "+tracking.mlflow.url=a"], "did you mean 'uri'?"),
        (["tracking=wandb", "tracking.wandb.mode=on"], "tracking.wandb.mode: must be one of offline, online"),
        (["+tracking.own=a"], "tracking.own: needs a _target_"),
    ):
        with case(words=words), pytest.raises(ConfigError) as refused:
            validate(configuration(*words))
        assert said in str(refused.value)
    cfg = configuration()
    cfg.tracking = "mlflow"
    with pytest.raises(ConfigError, match="tracking: needs a node for each tracker; choose with tracking=NAME"):
        validate(cfg)


def test_a_misspelt_tracker_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tracking=mlfow"]) == 2
    assert "did you mean 'mlflow'?" in capsys.readouterr().err


def test_one_tracker_several_or_none_compose_and_bind() -> None:
    names: list[tuple[str, list[str]]] = [
        ("tracking=mlflow", ["mlflow"]),
        ("tracking=[tensorboard]", ["tensorboard"]),
        ("tracking=[wandb,mlflow]", ["wandb", "mlflow"]),
        ("tracking=[]", []),
        ("~tracking", []),
    ]
    with composing():
        for word, expected in names:
            cfg = compose("config", [word])
            validate(cfg)
            with case(word=word):
                assert list(cfg.tracking or {}) == expected


@pytest.mark.usefixtures("stopped_at_3")
def test_a_resumed_run_tells_the_rows_it_kept_and_goes_on_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match="130"):
        run(folder, *WORDS, "solver.num_steps=5", own("Noted"))
    first = told()
    assert [line[0] for line in first] == ["start", *["row"] * 4, "end"]
    assert first[-1][1:] == ["interrupted", None]
    resume(folder)
    again = told()[len(first) :]
    assert again[0][1] == {"id": f"{tmp_path.name}/run"}
    assert [line[1] for line in again[1:-1]] == [0, 1, 2, 3, 4, 5]
    kept = first[2][2]
    assert again[2][2] == {key: pytest.approx(value) for key, value in kept.items()}
    assert again[-1][1] == "done"
    assert "accuracy/test" in again[-1][2]


def test_the_settings_are_told_flat_and_the_jobs_of_a_sweep_know_it(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/sweep.json").write_text("{}")
    run(tmp_path / "sweep/1", *WORDS, "solver.num_steps=1", "tracking=[]", own("Noted"))
    _, _, tags, flat = told()[0]
    assert tags == {
        "solver": "sgd", "model": "mlp", "dataset": "digits", "compression": "l0", "seed": "0",
        "sweep": str(tmp_path / "sweep"), "folder": str(tmp_path / "sweep/1"),
    }  # fmt: skip
    assert flat["solver.num_steps"] == 1
    assert not any(key.startswith(("tracking", "sweep")) for key in flat)
    run(tmp_path / "alone", *WORDS, "solver.num_steps=0", own("Noted"))
    assert "sweep" not in told()[-3][2]


def test_tables_say_nothing_of_trackers() -> None:
    common = {"solver.num_steps": 1, "tracking.own._target_": "own_parts.Noted"}
    assert varied_keys([common, {"solver.num_steps": 2, "tracking.own._target_": "own_parts.Failing"}]) == [
        "solver.num_steps"
    ]


def test_no_library_is_looked_for_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a fresh process: tests/slow/test_stores.py."""
    names = ("mlflow", "wandb", "tensorboard")
    for name in [name for name in sys.modules if name.split(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    run(tmp_path / "run", *WORDS, "solver.num_steps=0")
    assert not [name for name in sys.modules if name.split(".")[0] in names]
    assert "left out" not in caplog.text
