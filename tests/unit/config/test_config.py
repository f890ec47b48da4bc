"""The configuration: validate names every problem before anything is built, build passes what a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from cases import case
from omegaconf import DictConfig, OmegaConf

from nncompress.config.build import build, refusals, resolve, validate
from nncompress.config.schema import Config
from nncompress.config.signatures import describe, fits, locate
from nncompress.errors import ConfigError, DataError


def data(*, root: str, download: bool = True, train_size: int | None = None) -> str:
    return root


class Net:
    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        widths: Sequence[int] = (3,),
        activation: Literal["relu", "leaky_relu"] = "relu",
    ) -> None:
        self.given = (input_shape, num_classes, widths, activation)


class NetOfItsOwnShape:
    def __init__(self, width: int = 3, inner: Any = None) -> None:
        self.width, self.inner = width, inner


class OpenNet:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings


def recipe(weights: Mapping[str, float], *, rank: int | None = None) -> tuple[Mapping[str, float], int | None]:
    return weights, rank


@dataclass(frozen=True)
class Descent:
    num_steps: int = 10
    lr: float = 0.1

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, found {self.lr}")


def broken(num_steps: int) -> None:
    raise DataError("the file is cut short")


def failing(num_steps: int) -> None:
    raise RuntimeError("no such luck")


def make(**changes: Any) -> DictConfig:
    """A configuration of this module's parts, with dotted changes."""
    parts = {
        "dataset": {"_target_": f"{__name__}.data", "root": "${data_dir}", "download": "${data.download}"},
        "model": {"_target_": f"{__name__}.Net", "widths": [3, 4]},
        "compression": {"_target_": f"{__name__}.recipe", "_partial_": True, "rank": None},
        "solver": {"_target_": f"{__name__}.Descent", "num_steps": 10, "lr": 0.1},
    }
    cfg = OmegaConf.merge(OmegaConf.structured(Config), parts)
    assert isinstance(cfg, DictConfig)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def problems(**changes: Any) -> list[str]:
    """What `validate` says of the configuration, line by line; nothing when it passes."""
    try:
        validate(make(**changes))
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_a_right_configuration_passes_and_nothing_is_built() -> None:
    assert problems(solver={"_target_": f"{__name__}.failing", "num_steps": 1}) == []


def test_all_problems_are_told_at_once() -> None:
    found = problems(**{"seed": -1, "model.foo": 1, "solver.lr": "fast", "dataset._target_": "nowhere.data"})
    assert [line.split(":")[0] for line in found] == ["seed", "dataset", "model.foo", "solver.lr"]


def test_a_value_out_of_range_is_named_with_what_was_found() -> None:
    wrong = [
        ("seed", -1), ("eval_every", 0), ("checkpoint_every", 0), ("target.ratio", 0.0), ("target.ratio", 1.5),
        ("target.bits", 0.0), ("target.macs", -1.0), ("device", "gpu"), ("device", "cuda:x"), ("precision", "half"),
        ("solver.num_steps", -1),
    ]  # fmt: skip
    for key, value in wrong:
        with case(key=key, value=value):
            (line,) = problems(**{key: value})
            assert line.startswith(f"{key}: must be")
            assert str(value) in line


def test_the_devices_there_are_pass() -> None:
    for device in ("cpu", "cuda", "cuda:1", "auto"):
        with case(device=device):
            assert problems(device=device) == []


def test_an_unknown_keyword_comes_with_the_nearest_one_or_else_with_those_there_are() -> None:
    (line,) = problems(**{"dataset.train_sise": 3})
    assert line.startswith("dataset.train_sise:")
    assert "did you mean 'train_size'?" in line
    (line,) = problems(**{"solver.zzz": 3})
    assert "it takes num_steps, lr" in line


def test_any_keyword_may_go_to_a_target_that_is_open() -> None:
    assert problems(model={"_target_": f"{__name__}.OpenNet", "anything": 1}) == []


def test_a_missing_keyword_and_a_value_still_to_be_given_are_named() -> None:
    (line,) = problems(dataset={"_target_": f"{__name__}.data"})
    assert line.startswith("dataset.root:")
    assert "give dataset.root=..." in line
    (line,) = problems(**{"dataset.root": "???"})
    assert line == "dataset.root: a value is required; give dataset.root=..."


def test_a_solver_without_a_number_of_steps_is_refused() -> None:
    (line,) = problems(solver={"_target_": f"{__name__}.Descent"})
    assert line.startswith("solver.num_steps:")


def test_a_value_of_the_wrong_type_is_told_with_the_right_one() -> None:
    wrong = [
        ("compression.rank", 4.5, "an integer or null, found 4.5"),
        ("compression.rank", True, "an integer or null, found true"),
        ("solver.lr", "1e-3", "a number, found '1e-3' (that is text: write the number without quotes)"),
        ("solver.lr", None, "a number, found null"),
        ("dataset.download", "yes", "true or false, found 'yes'"),
        ("dataset.root", 3, "text, found 3"),
        ("model.widths", 3, "a list of an integer, found 3"),
        ("model.widths", [3, "x"], "a list of an integer, found [3, 'x']"),
        ("model.activation", "tanh", "one of relu, leaky_relu, found 'tanh'"),
    ]
    for key, value, expected in wrong:
        with case(key=key, value=value):
            assert problems(**{key: value}) == [f"{key}: must be {expected}"]


def test_an_integer_passes_for_a_float() -> None:
    assert problems(**{"solver.lr": 1}) == []


def test_nodes_within_nodes_are_checked_in_their_place() -> None:
    inner = {"_target_": f"{__name__}.Descent", "num_steps": "x"}
    (line,) = problems(model={"_target_": f"{__name__}.NetOfItsOwnShape", "inner": {"solvers": [inner]}})
    assert line.startswith("model.inner.solvers[0].num_steps: must be an integer")


def test_a_group_without_target_is_refused() -> None:
    (line,) = problems(model={"widths": [3]})
    assert line.startswith("model: needs a _target_")


def test_the_training_of_references_is_checked_like_a_solver() -> None:
    lines = problems(reference_training={"_target_": f"{__name__}.Descent", "lr": "fast"}, seed=-1)
    assert [line.split(":")[0] for line in lines] == ["seed", "reference_training.num_steps", "reference_training.lr"]
    assert problems(reference_training={"lr": 1}) == [
        "reference_training: needs a _target_ (the dotted path of a class or function); "
        "give reference_training._target_=..."
    ]


def test_a_reference_must_be_a_finished_run(tmp_path: Path) -> None:
    (line,) = problems(reference=str(tmp_path))
    assert line == f"reference: must be the folder of a finished run, found no model/model.json in '{tmp_path}'"
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").touch()
    assert problems(reference=str(tmp_path)) == []


def test_an_interpolation_that_leads_nowhere_is_named_by_its_group() -> None:
    (line,) = problems(**{"dataset.root": "${nowhere}"})
    assert line.startswith("dataset: ")
    assert "nowhere" in line


def test_a_target_that_cannot_be_had_says_why() -> None:
    wrong = [
        ("nowhere.Net", "no module 'nowhere'"),
        ("nncompress.confg.build", "did you mean 'config'?"),
        ("nncompress.config.build.buid", "did you mean 'build'?"),
        ("Net", "dotted path"),
        ("nncompress..config", "dotted path"),
        ("nncompress.config.schema.GROUPS", "must be a class or a function, found the tuple"),
    ]
    for target, said in wrong:
        with case(target=target):
            (line,) = problems(**{"model._target_": target})
            assert line.startswith("model: ")
            assert said in line


def test_a_module_that_fails_on_import_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_parts.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'no_such_library'"):
        locate("failing_parts.Net")


def test_build_passes_only_what_the_target_takes() -> None:
    cfg = make()
    net = build(cfg.model, input_shape=(8, 8), num_classes=10, device="cpu")
    assert net.given == ((8, 8), 10, [3, 4], "relu")
    assert build(OmegaConf.create({"_target_": f"{__name__}.NetOfItsOwnShape"}), input_shape=(8,)).width == 3


def test_a_keyword_of_the_node_wins_over_one_offered() -> None:
    net = build(make(**{"model.num_classes": 3}).model, input_shape=(8,), num_classes=10)
    assert net.given[1] == 3


def test_build_gives_plain_containers() -> None:
    net = build(make().model, input_shape=(8,), num_classes=10)
    assert type(net.given[2]) is list


def test_a_partial_node_waits_for_its_first_argument() -> None:
    assert build(make(**{"compression.rank": 4}).compression)({"w": 1.0}) == ({"w": 1.0}, 4)


def test_a_value_the_constructor_refuses_is_named_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^solver: lr must be above 0, found -1$"):
        build(make(**{"solver.lr": -1}).solver)


def test_a_value_an_inner_constructor_refuses_is_named_by_its_place() -> None:
    cfg = make(
        model={"_target_": f"{__name__}.NetOfItsOwnShape", "inner": {"_target_": f"{__name__}.Descent", "lr": 0}}
    )
    with pytest.raises(ConfigError, match=r"^model\.inner: lr must be above 0, found 0$"):
        build(cfg.model)


def test_a_value_refused_when_a_partial_is_called_is_named_by_the_caller() -> None:
    partial = build({"_target_": f"{__name__}.Descent", "_partial_": True, "lr": -1})
    with pytest.raises(ConfigError, match=r"^solver: lr must be above 0"), refusals("solver"):
        partial()


def test_our_own_errors_and_unforeseen_ones_pass_through_build_unchanged() -> None:
    with pytest.raises(DataError, match="cut short"):
        build({"_target_": f"{__name__}.broken", "num_steps": 1})
    with pytest.raises(RuntimeError, match="no such luck"):
        build({"_target_": f"{__name__}.failing", "num_steps": 1})


def test_resolve_gives_plain_containers_without_interpolations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNCOMPRESS_DATA", "/somewhere")
    tree = resolve(make())
    assert tree["dataset"] == {"_target_": f"{__name__}.data", "root": "/somewhere", "download": True}
    assert type(tree["model"]["widths"]) is list


def test_resolve_names_a_missing_value() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        resolve(make(**{"dataset.root": "???"}))


def test_a_plain_value_fits_an_annotation_or_not() -> None:
    known = [
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1}, dict[str, int], True),
        ({"a": "x"}, Mapping[str, int], False),
        ([1], dict[str, int], False),
        ("text", Sequence[str], False),
        ("a/b", Path, True),
        (3, Path, False),
        (None, int | None, True),
        (3, "int", True),
        (3, Net, True),
        ([3], list, True),
        (1, Literal[True], False),
    ]
    for value, annotation, expected in known:
        with case(value=value, annotation=annotation):
            assert fits(value, annotation) is expected


def test_annotations_are_told_in_words() -> None:
    assert describe(dict[str, list[float]] | None) == "a mapping to a list of a number or null"
