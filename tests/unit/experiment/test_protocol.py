"""What the configuration adds around a solver: held-out samples, what is selected, augmentation, schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import case
from golden import DIGITS, WORDS, Golden
from omegaconf import OmegaConf
from runs import configuration, finish, refusal, resume, rows, run, struck, summary

import nncompress.experiment.summary
from nncompress.config.build import build, validate
from nncompress.data.digits import digits
from nncompress.experiment.setup import setup
from nncompress.problem import Problem, Split
from nncompress.report.collect import final
from nncompress.report.run.tables import accuracy_table
from nncompress.results.records import read_run
from nncompress.solvers.sgd.sgd import SGD

PLAIN = ["solver=sgd", "model.widths=[16]", "dataset.train_size=100", "dataset.test_size=50", "solver.batch_size=32"]
CROPPED = ["augmentation=crop_flip", "augmentation.parts.0.padding=1"]

pytestmark = pytest.mark.usefixtures("apart")


def built(*words: str) -> Problem:
    return setup(configuration(*PLAIN, *words)).problem


def numbers_of(part: Split, of: Split) -> list[int]:
    """Which samples of a split are in a part of it."""
    return [int((of.x == x).flatten(1).all(1).nonzero()[0]) for x in part.x]


# held-out samples


def test_the_held_out_samples_and_those_trained_on_are_all_and_each_is_in_one() -> None:
    data, whole = built("validation=0.2").data, digits(train_size=100, test_size=50)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 50)
    assert sorted(numbers_of(data.train, whole.train) + numbers_of(data.validation, whole.train)) == list(range(100))
    for part in (data.train, data.validation):
        assert torch.equal(part.y, whole.train.y[numbers_of(part, whole.train)])
    assert torch.equal(data.test.x, whole.test.x)


def test_the_seed_chooses_the_held_out_samples() -> None:
    first, again, other = (built("validation=0.3", f"seed={seed}").data.validation for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_as_many_samples_are_held_out_as_the_part_says() -> None:
    for part, held in ((0.25, 50), (0.333, 67), (0.005, 1), (0.9, 180)):
        with case(part=part):
            data = built(f"validation={part}", "dataset.train_size=200").data
            assert (len(data.validation), len(data.train)) == (held, 200 - held)


def test_without_a_part_nothing_is_held_out() -> None:
    data = built("validation=0.0").data
    assert data.validation is None
    assert torch.equal(data.train.x, digits(train_size=100, test_size=50).train.x)


def test_a_run_records_the_accuracy_on_held_out_samples_and_where_it_was_best(tmp_path: Path) -> None:
    found = finish(configuration(*PLAIN, "validation=0.2", "solver.num_steps=6", "eval_every=2"), tmp_path / "run")
    records = rows(tmp_path / "run")
    accuracies = [row["accuracy/validation"] for row in records]
    at = accuracies.index(max(accuracies))
    assert found["accuracy/validation_at_best_validation"] == max(accuracies)
    assert found["accuracy/test_at_best_validation"] == records[at]["accuracy/test"]
    assert found["step/best_validation"] == records[at]["step"]
    assert found["accuracy/validation"] == accuracies[-1]
    assert found["loss/validation"] == records[-1]["loss/validation"]
    assert all(round(20 * accuracy) == pytest.approx(20 * accuracy) for accuracy in accuracies)
    shown = accuracies_shown(tmp_path / "run")  # and so does the accuracy table
    assert list(shown) == ["train", "validation", "test"]
    assert shown["validation"]["best"] == found["accuracy/validation_at_best_validation"]
    assert shown["validation"]["best_step"] == found["step/best_validation"]


def accuracies_shown(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the accuracy table that are accuracies, by split."""
    found = read_run(folder)
    table = accuracy_table(found, final(found)).raw
    return {row["split"]: dict(row) for _, row in table.iterrows() if row["metric"] == "accuracy"}


def test_the_best_step_by_validation_is_the_first_of_equals_and_not_that_by_test(tmp_path: Path) -> None:
    accuracies = {"validation": [0.1, 0.8, 0.8, 0.7], "test": [0.1, 0.5, 0.9, 0.6]}
    lines = [
        {"step": step} | {f"accuracy/{split}": value for split, value in zip(accuracies, values, strict=True)}
        for step, values in enumerate(zip(*accuracies.values(), strict=True))
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "status.json").write_text('{"status": "done"}')
    found = nncompress.experiment.summary._best(read_run(tmp_path).rows, "last")
    assert found == {
        "protocol": "last", "accuracy/validation_at_best_validation": 0.8, "accuracy/test_at_best_validation": 0.5,
        "step/best_validation": 1,
    }  # fmt: skip


def test_the_held_out_samples_are_not_changed_and_not_trained_on() -> None:
    p, other = (built("validation=0.2", *CROPPED) for _ in "12")
    before = p.data.validation.x.clone()
    solver = build(configuration(*PLAIN).solver)
    iterates = list(solver.run(p, 2))
    other.data.validation.x.zero_()
    again = list(solver.run(other, 2))
    assert torch.equal(p.data.validation.x, before)
    assert [one.observation.terms for one in iterates] == [two.observation.terms for two in again]


# the protocol


def test_the_papers_protocol_adds_the_best_step_by_test_and_ends_with_the_last(tmp_path: Path) -> None:
    for compression in ("none", "l0"):
        with case(compression=compression):
            words = [*PLAIN, f"compression={compression}", "solver.num_steps=5", "solver.lr=1.5"]
            folders = {name: tmp_path / compression / name for name in ("last", "paper")}
            last, paper = (
                finish(configuration(*words, f"protocol={name}"), folder) for name, folder in folders.items()
            )
            assert rows(folders["paper"]) == rows(folders["last"])
            accuracies = [row["accuracy/test"] for row in rows(folders["paper"])]
            best = {"accuracy/best_test": max(accuracies), "step/best_test": accuracies.index(max(accuracies))}
            assert paper == last | {"protocol": "paper"} | best
            assert last["protocol"] == "last"
            assert last["accuracy/test"] == accuracies[-1]
            weights = [(folder / "model/model.safetensors").read_bytes() for folder in folders.values()]
            assert weights[0] == weights[1]
            # the table has the best accuracy under this protocol alone
            shown = accuracies_shown(folders["paper"])["test"]
            assert (shown["best"], shown["best_step"]) == (best["accuracy/best_test"], best["step/best_test"])
            assert (shown := accuracies_shown(folders["last"])["test"])["best"] != shown["best"]  # NaN
            assert not [key for key in last if "best" in key]


BAD = [
    (["protocol=best"], "protocol: must be one of last, paper, found 'best'"),
    (["validation=1.5"], "validation: must be a part of the training samples, at least 0 and below 1, found 1.5"),
    (["validation=nan"], "at least 0 and below 1, found nan"),
    (["validation=0.999"], "validation: "),
    (["validation=0.001"], "validation: must hold out some and leave some of the training samples, found 0.001 of"),
    (["augmentation=crop_flip", "dataset.flatten=true"],
     "augmentation needs images (channels, height, width) with sides of at least 5, found samples of shape (64,); "
     "choose such data, or augmentation=none"),
    (["augmentation=crop_flip", "augmentation.parts.0.padding=8"],
     "with sides of at least 9, found samples of shape (1, 8, 8)"),
    (["augmentation._target_=builtins.dict", "~augmentation.parts"], "augmentation: "),
    (["augmentation._target_=nowhere.Mine", "~augmentation.parts"], "augmentation"),
    (["solver.label_smoothing=1"], "label_smoothing must be at least 0 and below 1, found 1"),
    (["solver.average=1"], "average must be at least 0 and below 1, found 1"),
    (["solver.schedule._target_=nncompress.solvers.training.WarmUp", "+solver.schedule.epochs=-1"],
     "epochs must be at least 0, found -1"),
]  # fmt: skip


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    for words, said in BAD:
        with case(words=words):
            failure = refusal(tmp_path / "run", *PLAIN, *words)
            assert said in str(failure)
            assert failure.exit_code == 2
            assert len(str(failure).splitlines()) == 1


# augmentation

MINE = """from dataclasses import dataclass

from nncompress.problem import Augmentation


@dataclass(frozen=True, kw_only=True)
class Shifted(Augmentation):
    by: float = 0.5

    @property
    def columns(self):
        return 1

    def apply(self, x, drawn, blank):
        return x + self.by * drawn[:, :, None, None]
"""


def test_a_users_augmentation_is_taken_by_its_dotted_path_or_by_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_changes.py").write_text(MINE)
    (tmp_path / "conf/augmentation").mkdir(parents=True)
    (tmp_path / "conf/augmentation/shifted.yaml").write_text("_target_: own_changes.Shifted\nby: 1.0\n")
    for words, by in (
        (["augmentation._target_=own_changes.Shifted"], 0.5),
        (["augmentation._target_=own_changes.Shifted", "+augmentation.by=3"], 3),
        (["augmentation={_target_:own_changes.Shifted}", "~augmentation.parts"], 0.5),
        ([f"hydra.searchpath=[file://{tmp_path}/conf]", "augmentation=shifted"], 1.0),
    ):
        with case(words=words):
            cfg = configuration(*PLAIN, *words, "solver.num_steps=2")
            validate(cfg)
            augmentation = setup(cfg).problem.data.augmentation
            assert (type(augmentation).__name__, augmentation.by) == ("Shifted", by)
    finish(cfg, tmp_path / "own")
    for name, word in (("none", "augmentation=none"), ("without", "~augmentation")):
        assert built(word).data.augmentation is None
        finish(configuration(*PLAIN, word, "solver.num_steps=2"), tmp_path / name)
    assert rows(tmp_path / "own") != rows(tmp_path / "none")
    assert rows(tmp_path / "none") == rows(tmp_path / "without")


def test_flat_data_go_without_augmentation(tmp_path: Path) -> None:
    found = finish(configuration(*PLAIN, "dataset.flatten=true", "solver.num_steps=1"), tmp_path / "run")
    assert found["steps"] == 1
    assert built("dataset.flatten=true").data.input_shape == (64,)


def test_schedules_are_given_on_the_command_line(tmp_path: Path) -> None:
    place = "nncompress.solvers.training.descent"
    words = [
        f"solver.schedule._target_={place}.WarmUp", "+solver.schedule.epochs=2",
        f"+solver.schedule.then._target_={place}.StepDecay", "+solver.schedule.then.every=1",
        "+solver.schedule.then.decay=0.5",
    ]  # fmt: skip
    cfg = configuration(*PLAIN, *words, "solver.num_steps=1")
    validate(cfg)
    schedule = build(cfg.solver).schedule
    assert [schedule.factor(k, 5) for k in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0.25])
    assert finish(cfg, tmp_path / "run")["steps"] == 1
    linear = build(configuration(f"solver.schedule._target_={place}.Linear", "+solver.schedule.end=0.5").solver)
    assert [linear.schedule.factor(k, 2) for k in range(3)] == [1, 0.75, 0.5]


def test_a_reference_is_trained_with_the_augmentation_and_the_held_out_samples_of_the_run(tmp_path: Path) -> None:
    data = ["model.widths=[16]", "dataset.train_size=100", "dataset.test_size=50", *CROPPED, "validation=0.2"]
    words = ["solver=lc", "compression=codebook", "reference_training.num_steps=2", "solver.num_steps=1"]
    found = run(tmp_path / "run", *data, *words, "solver.epochs=1")
    (folder,) = (path for path in (tmp_path / "outputs/references").iterdir() if path.is_dir())
    there, here = (OmegaConf.load(path / "config.yaml") for path in (folder, tmp_path / "run"))
    assert there.augmentation == here.augmentation
    assert there.validation == here.validation == 0.2
    alone = ["solver.num_steps=2", "solver.schedule._target_=nncompress.solvers.training.Exponential"]
    sgd = [*data, "eval_every=10", *alone, "+solver.schedule.decay=0.97"]
    finish(configuration("solver=sgd", *sgd), tmp_path / "sgd")
    assert rows(folder) == rows(tmp_path / "sgd")
    assert "accuracy/test_at_best_validation" in found


# earlier runs

NEW = ["augmentation", "validation", "protocol", "cuda_graphs"]
NEW_OF_SOLVER = ["label_smoothing", "mixup", "average"]


def test_a_run_whose_configuration_has_none_of_the_new_keys_is_taken_up(golden: Golden, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    with struck(SGD, 1), pytest.raises(SystemExit):
        finish(configuration(*WORDS["sgd"], *DIGITS, "seed=3"), folder)
    saved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    for key in NEW:
        del saved[key]
    for key in NEW_OF_SOLVER:
        del saved["solver"][key]
    OmegaConf.save(OmegaConf.create(saved), folder / "config.yaml")
    resume(folder)
    assert rows(folder) == rows(golden.kept("sgd"))
    assert summary(folder) == summary(golden.kept("sgd"))


def test_the_table_of_a_run_whose_records_have_no_new_keys_is_made(golden: Golden, tmp_path: Path) -> None:
    path = golden.copied("sgd", tmp_path / "run") / "summary.json"
    content = json.loads(path.read_text())
    del content["protocol"]
    path.write_text(json.dumps(content))
    assert list(accuracies_shown(tmp_path / "run")) == ["train", "test"]
