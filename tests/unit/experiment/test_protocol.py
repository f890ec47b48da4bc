"""What the configuration adds around a solver: held-out samples, what is selected, augmentation, bf16, scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from runs import assert_refused, rows, summary, train

import nncompress.reference
import nncompress.summary
import nncompress.train
from nncompress import building, config
from nncompress.augmentation import Augmentation
from nncompress.cli import main
from nncompress.data.digits import digits
from nncompress.problem import Problem, Split
from nncompress.records import read_run
from nncompress.reference import with_reference
from nncompress.report.collect import final
from nncompress.report.run_tables import accuracy_table

CONF = Path(__file__).parents[3] / "conf"
WORDS = ["solver=sgd", "model.widths=[16]", "dataset.train_size=200", "dataset.test_size=100", "solver.batch_size=32"]
NET = ["model=resnet20", "model.depth=8", "model.width=0.25", "dataset.train_size=80", "dataset.test_size=50"]
CROPPED = ["augmentation=crop_flip", "augmentation.parts.0.padding=1"]

pytestmark = pytest.mark.usefixtures("apart")


def composed(*words: str) -> DictConfig:
    config.register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        return compose("config", list(words))


def built(*words: str) -> Problem:
    return building.build(composed(*WORDS, *words))[0]


def numbers_of(part: Split, of: Split) -> list[int]:
    """Which samples of a split are in a part of it."""
    return [int((of.x == x).flatten(1).all(1).nonzero()[0]) for x in part.x]


# held-out samples


def test_the_held_out_samples_and_those_trained_on_are_all_and_each_is_in_one() -> None:
    data, whole = built("validation=0.2").data, digits(train_size=200, test_size=100)
    assert (len(data.train), len(data.validation), len(data.test)) == (160, 40, 100)
    assert sorted(numbers_of(data.train, whole.train) + numbers_of(data.validation, whole.train)) == list(range(200))
    for part in (data.train, data.validation):
        assert torch.equal(part.y, whole.train.y[numbers_of(part, whole.train)])
    assert torch.equal(data.test.x, whole.test.x)


def test_the_seed_chooses_the_held_out_samples() -> None:
    first, again, other = (built("validation=0.3", f"seed={seed}").data.validation for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize(("part", "held"), [(0.25, 50), (0.333, 67), (0.005, 1), (0.9, 180)])
def test_as_many_samples_are_held_out_as_the_part_says(part: float, held: int) -> None:
    data = built(f"validation={part}").data
    assert (len(data.validation), len(data.train)) == (held, 200 - held)


def test_without_a_part_nothing_is_held_out() -> None:
    data = built("validation=0.0").data
    assert data.validation is None
    assert torch.equal(data.train.x, digits(train_size=200, test_size=100).train.x)


def test_a_run_records_the_accuracy_on_held_out_samples_and_where_it_was_best(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *WORDS, "validation=0.2", "solver.num_steps=6", "eval_every=2") == 0
    records, found = rows(tmp_path / "run"), summary(tmp_path / "run")
    accuracies = [row["accuracy/validation"] for row in records]
    at = accuracies.index(max(accuracies))
    assert found["accuracy/validation_at_best_validation"] == max(accuracies)
    assert found["accuracy/test_at_best_validation"] == records[at]["accuracy/test"]
    assert found["step/best_validation"] == records[at]["step"]
    assert found["accuracy/validation"] == accuracies[-1]
    assert found["loss/validation"] == records[-1]["loss/validation"]
    assert all(round(40 * accuracy) == pytest.approx(40 * accuracy) for accuracy in accuracies)


def test_the_best_step_by_validation_is_the_first_of_equals_and_not_that_by_test(tmp_path: Path) -> None:
    frame = read_folder(tmp_path, validation=[0.1, 0.8, 0.8, 0.7], test=[0.1, 0.5, 0.9, 0.6])
    found = nncompress.summary._selected(OmegaConf.create({"protocol": "last"}), frame.rows)
    assert found == {
        "protocol": "last", "accuracy/validation_at_best_validation": 0.8, "accuracy/test_at_best_validation": 0.5,
        "step/best_validation": 1,
    }  # fmt: skip


def read_folder(folder: Path, **accuracies: list[float]) -> Any:
    """A run folder with these accuracies."""
    lines = [
        {"step": step} | {f"accuracy/{split}": value for split, value in zip(accuracies, values, strict=True)}
        for step, values in enumerate(zip(*accuracies.values(), strict=True))
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text('{"status": "done"}')
    return read_run(folder)


def accuracies_shown(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of the accuracy table that are accuracies, by split."""
    found = read_run(folder)
    table = accuracy_table(found, final(found)).raw
    return {row["split"]: dict(row) for _, row in table.iterrows() if row["metric"] == "accuracy"}


def test_the_accuracy_table_has_the_held_out_samples_with_their_best_step(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *WORDS, "validation=0.2", "solver.num_steps=3") == 0
    shown, found = accuracies_shown(tmp_path / "run"), summary(tmp_path / "run")
    assert list(shown) == ["train", "validation", "test"]
    assert shown["validation"]["best"] == found["accuracy/validation_at_best_validation"]
    assert shown["validation"]["best_step"] == found["step/best_validation"]


def test_the_held_out_samples_are_not_changed_and_not_trained_on(tmp_path: Path) -> None:
    p = built("validation=0.2", *CROPPED)
    before = p.data.validation.x.clone()
    solver = config.build(composed(*WORDS).solver)
    iterates = list(solver.run(p, 2))
    other = building.build(composed(*WORDS, "validation=0.2", *CROPPED))[0]
    other.data.validation.x.zero_()
    again = list(solver.run(other, 2))
    assert torch.equal(p.data.validation.x, before)
    assert [one.observation.terms for one in iterates] == [two.observation.terms for two in again]


# the protocol


@pytest.mark.parametrize("compression", ["none", "l0"])
def test_the_papers_protocol_adds_the_best_step_by_test_and_ends_with_the_last(
    compression: str, tmp_path: Path
) -> None:
    words = [*WORDS, f"compression={compression}", "solver.num_steps=5", "solver.lr=1.5"]
    for protocol in ("last", "paper"):
        assert train(tmp_path / protocol, *words, f"protocol={protocol}") == 0
    assert rows(tmp_path / "paper") == rows(tmp_path / "last")
    last, paper = (summary(tmp_path / protocol) for protocol in ("last", "paper"))
    accuracies = [row["accuracy/test"] for row in rows(tmp_path / "paper")]
    best = {"accuracy/best_test": max(accuracies), "step/best_test": accuracies.index(max(accuracies))}
    assert paper == last | {"protocol": "paper"} | best
    assert last["accuracy/test"] == accuracies[-1]
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("last", "paper")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("protocol", ["last", "paper"])
def test_the_table_has_the_best_test_accuracy_under_the_papers_protocol_alone(protocol: str, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *WORDS, f"protocol={protocol}", "solver.num_steps=3") == 0
    shown, found = accuracies_shown(tmp_path / "run")["test"], summary(tmp_path / "run")
    assert found["protocol"] == protocol
    if protocol == "paper":
        assert (shown["best"], shown["best_step"]) == (found["accuracy/best_test"], found["step/best_test"])
    else:
        assert shown["best"] != shown["best"]  # NaN
        assert not [key for key in found if "best" in key]


BAD = [
    (["protocol=best"], 2, "protocol: must be one of last, paper, found 'best'"),
    (["validation=1.5"], 2,
     "validation: must be a part of the training samples, at least 0 and below 1, found 1.5"),
    (["validation=nan"], 2, "at least 0 and below 1, found nan"),
    (["validation=0.999"], 2, "validation: "),
    (["validation=0.001"], 2, "validation: must hold out some and leave some of the training samples, found 0.001 of"),
    (["augmentation=crop_flip", "dataset.flatten=true"], 2,
     "augmentation needs images (channels, height, width) with sides of at least 5, found samples of shape (64,); "
     "choose such data, or augmentation=none"),
    (["augmentation=crop_flip", "augmentation.parts.0.padding=8"], 2,
     "with sides of at least 9, found samples of shape (1, 8, 8)"),
    (["augmentation._target_=builtins.dict", "~augmentation.parts"], 2, "augmentation: "),
    (["augmentation._target_=nowhere.Mine", "~augmentation.parts"], 2, "augmentation"),
    (["solver.label_smoothing=1"], 2, "label_smoothing must be at least 0 and below 1, found 1"),
    (["solver.average=1"], 2, "average must be at least 0 and below 1, found 1"),
    (["solver.schedule._target_=nncompress.solvers.descent.WarmUp", "+solver.schedule.epochs=-1"], 2,
     "epochs must be at least 0, found -1"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "said"), BAD, ids=[" ".join(words) for words, *_ in BAD])
def test_bad_input_is_one_sentence(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(tmp_path / "run", [*WORDS, *words], code, said, capsys)


# augmentation

MINE = """from dataclasses import dataclass

from nncompress.augmentation import Augmentation


@dataclass(frozen=True, kw_only=True)
class Shifted(Augmentation):
    by: float = 0.5

    @property
    def columns(self):
        return 1

    def apply(self, x, drawn, blank):
        return x + self.by * drawn[:, :, None, None]
"""


@pytest.mark.parametrize(
    "words",
    [
        ["augmentation._target_=own_changes.Shifted"],
        ["augmentation._target_=own_changes.Shifted", "+augmentation.by=3"],
        ["augmentation={_target_:own_changes.Shifted}", "~augmentation.parts"],
    ],
    ids=["default", "with-a-setting", "parts-removed"],
)
def test_a_users_augmentation_is_taken_by_its_dotted_path(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own_changes.py").write_text(MINE)
    steps = "solver.num_steps=2"
    assert train(tmp_path / "own", *WORDS, *words, steps) == 0
    assert train(tmp_path / "none", *WORDS, steps) == 0
    assert rows(tmp_path / "own") != rows(tmp_path / "none")


def test_an_augmentation_in_a_folder_of_the_user_is_taken_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "own_changes.py").write_text(MINE)
    (tmp_path / "conf/augmentation").mkdir(parents=True)
    (tmp_path / "conf/augmentation/shifted.yaml").write_text("_target_: own_changes.Shifted\nby: 1.0\n")
    words = ["--config-dir", str(tmp_path / "conf"), *WORDS, "augmentation=shifted", "solver.num_steps=1"]
    assert train(tmp_path / "own", *words) == 0


def test_augmentation_none_is_no_augmentation(tmp_path: Path) -> None:
    assert built().data.augmentation is None
    for name, word in (("none", "augmentation=none"), ("without", "~augmentation")):
        assert train(tmp_path / name, *WORDS, "solver.num_steps=2", word) == 0
    assert rows(tmp_path / "none") == rows(tmp_path / "without")


def test_flat_data_go_without_augmentation(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *WORDS, "dataset.flatten=true", "solver.num_steps=1") == 0


def test_schedules_are_given_on_the_command_line(tmp_path: Path) -> None:
    place = "nncompress.solvers.descent"
    words = [
        f"solver.schedule._target_={place}.WarmUp", "+solver.schedule.epochs=2",
        f"+solver.schedule.then._target_={place}.StepDecay", "+solver.schedule.then.every=1",
        "+solver.schedule.then.decay=0.5",
    ]  # fmt: skip
    solver = config.build(composed(*WORDS, *words).solver)
    assert [solver.schedule.factor(k, 5) for k in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0.25])
    assert train(tmp_path / "run", *WORDS, *words, "solver.num_steps=1") == 0
    linear = config.build(composed(f"solver.schedule._target_={place}.Linear", "+solver.schedule.end=0.5").solver)
    assert [linear.schedule.factor(k, 2) for k in range(3)] == [1, 0.75, 0.5]


# bfloat16

BF16 = [*NET, *CROPPED, "precision=bf16"]
SOLVERS = {
    "sgd": ["solver=sgd", "solver.average=0.9", "solver.mixup=0.2"],
    "slimming": ["solver=slimming", "validation=0.2", "solver.lam=0.5"],
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_in_bfloat16_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    words = [*SOLVERS[name], *BF16, "solver.batch_size=32"]
    assert train(tmp_path / "whole", *words, "solver.num_steps=3") == 0
    path = tmp_path / "short"
    assert stopped_at(path, 2, [*words, "solver.num_steps=3"]) == 130
    assert main(["train", f"resume={path}"]) == 0
    assert rows(path) == rows(tmp_path / "whole")
    assert summary(path) == summary(tmp_path / "whole")


def stopped_at(folder: Path, at: int, words: list[str]) -> int:
    """The exit code of a run with a Ctrl-C behind this step."""
    import signal

    from nncompress.solvers.base import Solver

    run = Solver.run

    def struck(self: Any, *args: Any, **settings: Any) -> Any:
        for iterate in run(self, *args, **settings):
            if iterate.step == at:
                signal.raise_signal(signal.SIGINT)
            yield iterate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Solver, "run", struck)
        return train(folder, *words)


def test_bfloat16_is_close_to_float32_and_not_the_same(tmp_path: Path) -> None:
    for name in ("bf16", "float32"):
        assert train(tmp_path / name, *NET, "solver=sgd", f"precision={name}", "solver.num_steps=3") == 0
    half, full = (rows(tmp_path / name) for name in ("bf16", "float32"))
    assert half[0]["loss/train"] == pytest.approx(full[0]["loss/train"], rel=1e-5)
    assert half[3]["loss/train"] != full[3]["loss/train"]
    assert half[3]["loss/train"] == pytest.approx(full[3]["loss/train"], rel=0.3)


def test_in_bfloat16_images_and_filters_are_channels_last() -> None:
    p = building.build(composed(*NET, "precision=bf16", "validation=0.2", "dataset=digits"))[0]
    images = [p.data.train.x, p.data.test.x, p.data.validation.x]
    filters = [w for w in p.model.parameters() if w.dim() == 4]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in [*images, *filters])
    assert {t.dtype for t in [*images, *filters]} == {torch.float32}
    assert p.computation.half


def test_cuda_graphs_asked_for_on_a_cpu_do_nothing(tmp_path: Path) -> None:
    for name in ("true", "false"):
        assert train(tmp_path / name, *WORDS, "solver.num_steps=2", f"cuda_graphs={name}", "device=cpu") == 0
    assert rows(tmp_path / "true") == rows(tmp_path / "false")


# references

LC = [
    "solver=lc",
    "model.widths=[16]",
    "dataset.train_size=200",
    "compression=codebook",
    "reference_training.num_steps=2",
]


@pytest.fixture
def nothing_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """References are named, but not trained."""
    monkeypatch.setattr(nncompress.reference, "run", lambda cfg, folder: {})
    monkeypatch.setattr(nncompress.reference, "_check", lambda cfg: None)


def references(*given: list[str]) -> int:
    """How many references these runs have together."""
    return len({with_reference(composed(*LC, *words)).reference for words in given})


@pytest.mark.usefixtures("nothing_trained")
def test_another_augmentation_or_part_held_out_has_another_reference() -> None:
    others = [["augmentation=rotation"], ["validation=0.1"], ["validation=0.2"]]
    assert references([], ["augmentation=crop_flip"], CROPPED, *others) == 6


@pytest.mark.usefixtures("nothing_trained")
def test_the_protocol_and_graphs_do_not_change_the_reference() -> None:
    assert references([], ["protocol=paper"], ["cuda_graphs=false"]) == 1


def test_a_reference_is_trained_with_the_augmentation_and_the_held_out_samples_of_the_run(tmp_path: Path) -> None:
    words = [*LC, *CROPPED, "validation=0.2", "solver.num_steps=1", "solver.epochs=1"]
    assert train(tmp_path / "run", *words) == 0
    (folder,) = (path for path in (tmp_path / "outputs/references").iterdir() if path.is_dir())
    there, here = (OmegaConf.load(path / "config.yaml") for path in (folder, tmp_path / "run"))
    assert there.augmentation == here.augmentation
    assert there.validation == here.validation == 0.2
    alone = ["solver.num_steps=2", "solver.schedule._target_=nncompress.solvers.descent.Exponential"]
    sgd = ["model.widths=[16]", "dataset.train_size=200", *CROPPED, "validation=0.2", "eval_every=10"]
    assert train(tmp_path / "sgd", "solver=sgd", *sgd, *alone, "+solver.schedule.decay=0.97") == 0
    assert rows(folder) == rows(tmp_path / "sgd")
    assert "accuracy/test_at_best_validation" in summary(tmp_path / "run")


# earlier runs

NEW = ["augmentation", "validation", "protocol", "cuda_graphs"]
NEW_OF_SOLVER = ["label_smoothing", "mixup", "average"]


def test_a_run_whose_configuration_has_none_of_the_new_keys_is_taken_up(tmp_path: Path) -> None:
    words = [*WORDS, "solver.schedule._target_=nncompress.solvers.descent.Constant"]
    assert train(tmp_path / "whole", *words, "solver.num_steps=4") == 0
    folder = tmp_path / "old"
    assert train(folder, *words, "solver.num_steps=2") == 0
    saved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    for key in NEW:
        del saved[key]
    for key in NEW_OF_SOLVER:
        del saved["solver"][key]
    OmegaConf.save(OmegaConf.create(saved), folder / "config.yaml")
    assert main(["train", f"resume={folder}", "solver.num_steps=4"]) == 0
    assert rows(folder) == rows(tmp_path / "whole")
    assert summary(folder) == summary(tmp_path / "whole")


def test_a_report_of_a_run_whose_records_have_no_new_keys_is_written(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *WORDS, "solver.num_steps=2") == 0
    path = tmp_path / "run/summary.json"
    content = json.loads(path.read_text())
    del content["protocol"]
    path.write_text(json.dumps(content))
    assert list(accuracies_shown(tmp_path / "run")) == ["train", "test"]


# scales of experiments

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment/slimming").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))


def test_there_are_a_small_scale_and_one_for_a_gpu() -> None:
    assert SCALES == ["full", "gpu", "smoke"]
    assert len(EXPERIMENTS) > 10


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_slimming_experiment_composes_binds_and_is_accepted_at_every_scale(experiment: str, scale: str) -> None:
    cfg = composed(f"experiment=slimming/{experiment}", f"scale={scale}")
    config.validate(cfg)
    solver = config.build(cfg.solver)
    assert isinstance(config.build(cfg.augmentation), Augmentation)
    if scale == "smoke":
        assert (solver.num_steps, cfg.dataset.train_size, cfg.device) == (3, 2000, "cpu")
        assert cfg.target.ratio == 0.5
    elif scale == "gpu":
        assert (cfg.precision, cfg.deterministic, cfg.eval_every) == ("bf16", False, 10)
    if scale != "smoke":
        assert (solver.num_steps > 10, cfg.target.ratio) == (True, None)


@pytest.mark.parametrize(("experiment", "scale"), [("vgg19_cifar10", "smoke"), ("ns_resnet164_cifar100", "gpu")])
def test_the_configuration_of_an_experiment_at_a_scale_is_printed(
    experiment: str, scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"experiment=slimming/{experiment}", f"scale={scale}", "--cfg", "job"]
    assert main(["train", *words]) == 0
    cfg = OmegaConf.create(capsys.readouterr().out)
    assert cfg.dataset._target_.startswith("nncompress.data.cifar")
    assert cfg.solver.num_steps == composed(*words[:2]).solver.num_steps
    assert not list(tmp_path.iterdir())


def test_what_the_command_line_gives_wins_over_a_scale() -> None:
    assert composed("experiment=slimming/vgg19_cifar10", "scale=smoke", "solver.num_steps=1").solver.num_steps == 1


def test_a_smoke_run_of_an_experiment_ends_at_its_target_with_the_papers_protocol(tmp_path: Path) -> None:
    words = ["experiment=slimming/resnet164_cifar10", "scale=smoke", "dataset=digits", "model.depth=11"]
    less = ["dataset.train_size=128", "dataset.test_size=50", "solver.num_steps=1"]
    assert train(tmp_path / "run", *words, *less) == 0
    found = summary(tmp_path / "run")
    assert found["ratio/params"] == found["target/achieved"] <= found["target/requested"] == 0.5
    assert found["step/best_test"] in (0, 1)


@pytest.mark.parametrize(
    "experiment",
    ["mnist_cnn_sgd", "resnet18_cifar10_sfw_pruning", "vgg16_cifar10_filters", "wrn28_10_cifar100_low_rank"],
)
def test_the_experiments_of_frank_wolfe_are_small_at_scale_smoke(experiment: str) -> None:
    cfg = composed(f"experiment=sparsefw/{experiment}", "scale=smoke")
    config.validate(cfg)
    assert (cfg.solver.num_steps, cfg.dataset.train_size, cfg.device) == (3, 2000, "cpu")
    assert (list(cfg.compress_at), cfg.recalibrate) == ([0.3, 0.6, 0.9], 500)
