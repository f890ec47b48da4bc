"""Compact networks whose files claim more than their bytes allow: refused before anything is allocated or called."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_cases import F32, noise, refusal, saved
from cases import case
from problems import problem, problem_of
from runs import resign
from torch import nn

from nncompress.artefact import limits
from nncompress.artefact.limits import EXPANSION, LEAST, Limit, TooLarge
from nncompress.artefact.model import load, open_artefact
from nncompress.artefact.objects import KINDS, class_name, find_class
from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition import CP, CPFactors
from nncompress.compressions.views import View
from nncompress.errors import CheckpointError

LINEAR = {"_target_": "torch.nn.Linear"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "model", problem_of("l0", F32))
    return tmp_path / "model"


def of(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda about: about.update(entries)


def test_a_network_out_of_proportion_is_refused_on_meta(folder: Path) -> None:
    whole = (folder / "model.json").read_text()
    for node, said in (
        (LINEAR | {"in_features": 10**6, "out_features": 10**6}, "bytes is made of files of"),
        ({"_target_": "nncompress.models.MLP", "widths": [10**7, 10**7]}, "bytes is made of files of"),
        ({"_target_": "torch.nn.Transformer", "num_encoder_layers": 10**9}, "names torch.nn.Transformer"),
        (LINEAR | {"in_features": 10**5, "out_features": 10**5, "device": "cpu"}, "bytes is made of files of"),
        ({"_target_": "nncompress.models.ResidualMLP", "width": 1, "blocks": 10**9}, "no end of layers"),
        ({"_target_": "nncompress.models.PreResNet", "depth": 9 * 10**9 + 2}, "at most 10,000 blocks"),
        ({"_target_": "torch.nn.Sequential", "_args_": [LINEAR | {"in_features": 9**9, "out_features": 9}]}, "is made"),
    ):  # fmt: skip
        with case(node=node):
            (folder / "model.json").write_text(whole)
            resign(folder, of(architecture=node, **({"input_shape": [3, 32, 32]} if "Res" in str(node) else {})))
            assert said in refusal(folder)


def test_an_input_or_a_number_of_classes_that_is_none_is_refused(folder: Path) -> None:
    for entries in (
        {"input_shape": [10**12]},
        {"input_shape": [[64], 10**6]},
        {"input_shape": [0]},
        {"num_classes": 10**13},
    ):
        with case(entries=entries):
            whole = (folder / "model.json").read_text()
            resign(folder, of(**entries))
            assert "model.json must describe what" in refusal(folder)
            (folder / "model.json").write_text(whole)


def test_a_theta_that_decompresses_to_more_than_its_weights_is_refused(folder: Path) -> None:
    def widen(about: dict[str, Any]) -> None:
        about["tasks"][0]["sizes"][-1] = [10**6, 10**6]

    resign(folder, widen)
    assert "bytes is made of files of" in refusal(folder)


def test_a_weight_of_two_tasks_is_refused(folder: Path) -> None:
    resign(folder, lambda about: about["tasks"].append(about["tasks"][0]))
    assert "a weight belongs to one task" in refusal(folder)


def test_an_architecture_that_is_a_text_is_never_read_as_one(folder: Path, tmp_path: Path) -> None:
    """OmegaConf makes of a text whatever YAML says."""
    for text in ("{_target_: os.mkdir, path: made}", "torch.nn.Linear", "- 1"):
        with case(text=text):
            resign(folder, of(architecture=text))
            assert "must hold the node of an architecture" in refusal(folder)
    assert not (tmp_path / "made").exists()


def test_samples_take_memory_in_proportion(folder: Path) -> None:
    artefact = open_artefact(folder)
    with pytest.raises(CheckpointError, match="give smaller batch_sizes"):
        artefact.samples(10**8)


def test_outer_products_are_no_way_around_the_limit() -> None:
    long = torch.zeros(10**5, 1, device="meta")
    with pytest.raises(TooLarge), Limit(10**6).on_meta():
        CP(1).decompress(CPFactors((long, long, long)))


def test_the_limit_is_a_multiple_of_the_bytes_and_small_files_have_room() -> None:
    assert Limit(1).bytes == LEAST
    assert Limit(10**6).bytes == EXPANSION * 10**6
    fits = [torch.empty(LEAST // 4, device="meta")]
    Limit(1).check(fits)
    with pytest.raises(TooLarge, match="67,108,864 bytes is made of files of 1 bytes, 67,108,868 are described"):
        Limit(1).check([*fits, torch.empty(1, device="meta")])


def test_random_numbers_are_left_out_on_meta_and_nothing_of_the_generator_is_used() -> None:
    state = torch.get_rng_state()
    with Limit(1).on_meta():
        layer = nn.Linear(3, 4)
        assert all(getattr(nn.init, name)(layer.weight) is layer.weight for name in limits.FILLING)
    assert layer.weight.is_meta
    assert torch.equal(torch.get_rng_state(), state)


NETS = """
import torch
from torch import nn


class Numbers(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.rate = torch.linspace(0, 1, 3).tolist()[1]
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.rate * self.fc(x)


class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10**6, 10**6)
"""


def test_a_constructor_of_ones_own_may_need_numbers_but_is_held_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_with_numbers.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    import nets_with_numbers  # type: ignore[import-not-found]

    node = {"_target_": "nets_with_numbers.Numbers"}
    saved(tmp_path / "model", problem(noise(6), nets_with_numbers.Numbers(3)), node)
    assert load(tmp_path / "model", allow=["nets_with_numbers"]).rate == 0.5
    resign(tmp_path / "model", of(architecture={"_target_": "nets_with_numbers.Huge"}))
    assert "bytes is made of files of" in refusal(tmp_path / "model", allow=["nets_with_numbers"])


def test_the_classes_of_this_package_have_short_names_and_no_others_do() -> None:
    assert all(issubclass(kind, Compression | View | tuple) or name == "Part" for name, kind in KINDS.items())
    assert len(KINDS) > 35
    for name, kind in KINDS.items():
        with case(name=name):
            assert class_name(kind) == name
            assert find_class(name) is kind


def test_what_a_compression_of_this_package_writes_names_no_path(folder: Path) -> None:
    assert "nncompress." not in json.dumps(json.loads((folder / "model.json").read_text())["kinds"])


def test_the_range_of_a_field_is_checked_as_by_the_constructor(tmp_path: Path) -> None:
    saved(tmp_path / "model", problem_of("uniform", F32))
    resign(tmp_path / "model", lambda about: about["kinds"][0]["compression"].update(bits=10**12))
    assert "bits" in refusal(tmp_path / "model")


def test_no_data_are_loaded_for_an_architecture(folder: Path, tmp_path: Path) -> None:
    for node in (
        {"_target_": "nncompress.data.mnist.mnist", "root": str(tmp_path / "made")},
        LINEAR | {"bias": {"_target_": "os.getcwd"}},
    ):
        with case(node=node):
            resign(folder, of(architecture=node))
            assert f"names {node['bias']['_target_'] if 'bias' in node else node['_target_']}" in refusal(folder)  # type: ignore[index]
    assert not (tmp_path / "made").exists()
