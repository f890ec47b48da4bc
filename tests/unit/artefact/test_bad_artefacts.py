"""Compact artefacts that are damaged, edited, of another version or signed falsely: refused in one sentence each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_cases import F32, refusal, saved
from cases import case
from problems import ARCHITECTURE, mlp, problem, small_digits
from runs import resign
from safetensors.torch import load_file, save_file
from torch import Tensor

from nncompress.artefact.files import spell, stored_bytes, unspell
from nncompress.artefact.model import load
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.plan import Plan, Task
from nncompress.compressions.quantization.codebook import Codebook
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.compressions.views import AsMatrix
from nncompress.errors import CheckpointError

QUANTIZATION = "nncompress.compressions.quantization"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two kinds of tasks, written once."""
    folder = tmp_path_factory.mktemp("good")
    data = small_digits(20, F32)
    p = problem(data, mlp(data, bias=True), both)
    saved(folder, p, ARCHITECTURE | {"bias": True})
    return folder


def both(weights: dict[str, Tensor]) -> Plan:
    tasks = [
        Task(["fc1"], AsMatrix(), Codebook(4)),
        *tt(weights, rank=2, layers=["fc2"]).tasks,
        *l0(weights, keep=0.2, layers=["fc3"]).tasks,
    ]
    return Plan.of(tasks, weights)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "copy")


def test_truncated_tensors_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for left in (0, 4, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        assert str(path) in refusal(folder)
    path.write_bytes(whole + b"x")
    refusal(folder)


def test_a_bit_anywhere_in_the_tensors_is_noticed(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for place in [*range(0, 400, 7), *range(400, len(whole), len(whole) // 40)]:
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            assert str(folder) in refusal(folder), (place, bit)


def test_a_bit_anywhere_in_the_description_is_noticed(folder):
    path = folder / "model.json"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, 11):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert str(folder) in refusal(folder), place


EDITS = [
    ('"K":4', '"K":5'),
    ('"relu"', '"tanh"'),
    ('"widths":[16,16]', '"widths":[16,17]'),
    ('"num_classes":10', '"num_classes":9'),
]


def test_an_edited_description_is_noticed(folder):
    path = folder / "model.json"
    text = path.read_text()
    for old, new in EDITS:
        with case(old=old):
            assert old in text
            path.write_text(text.replace(old, new))
            assert "found another checksum" in refusal(folder)
    path.write_text(json.dumps(json.loads(text), indent=4))  # laid out otherwise, it says the same
    assert not load(folder).training


NO_DESCRIPTION = [
    ("", "a whole JSON file"),
    ("{", "a whole JSON file"),
    ("nothing", "a whole JSON file"),
    (b"\xff\xfe\x00", "a whole JSON file"),
    ("[]", "no format"),
    ("{}", "no format"),
    ("null", "no format"),
    ('"word"', "no format"),
    ('{"format": 99}', "format 99, this version reads format 5: take a newer nncompress"),
    ('{"format": 4}', "format 4, this version reads format 5: train it again"),
    ('{"format": "5"}', "has format 5, this version reads format 5"),
    ('{"format": 5}', "another checksum"),
]


def test_what_is_no_description_is_refused(folder):
    path = folder / "model.json"
    for text, said in NO_DESCRIPTION:
        with case(text=text):
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            assert said in refusal(folder)


def test_both_files_are_needed(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert str(folder / "model.safetensors") in refusal(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        stored_bytes(folder)
    (tmp_path / "kept").rename(folder / "model.safetensors")
    (folder / "model.json").unlink()
    assert "neither model.json nor model/model.json" in refusal(folder)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        stored_bytes(folder)


def test_a_path_without_a_network_is_told_what_is_there(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("nothing", "nothing/model"):
        with pytest.raises(CheckpointError, match=f"{tmp_path / place}: there is no such folder"):
            load(tmp_path / place)
    for place in ("", "file"):
        with pytest.raises(CheckpointError, match=r"neither model.json nor model/model.json is there"):
            load(str(tmp_path / place))


ENDED = [
    ('{"status": "running"}', "this run is running"),
    ('{"status": "failed"}', "this run is failed"),
    ("{", "this run is unknown"),
    ("[]", "this run is unknown"),
    ("", "this run is unknown"),
]


def test_a_run_without_a_network_is_told_how_it_ended(tmp_path):
    for status, said in ENDED:
        with case(status=status):
            (tmp_path / "status.json").write_text(status)
            with pytest.raises(CheckpointError) as refused:
                load(tmp_path)
            assert said in str(refused.value)
            assert f"train resume={tmp_path}" in str(refused.value)


def of_task(k: int, **entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda about: about["tasks"][k].update(entries)


def of_kind(k: int, *keys: str, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(about: dict[str, Any]) -> None:
        place = about["kinds"][k]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def sizes_of(k: int, change: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda about: change(about["tasks"][k]["sizes"])


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "fewer sizes": sizes_of(0, lambda sizes: sizes.pop()),
    "no sizes": of_task(1, sizes=[]),
    "more sizes": sizes_of(1, lambda sizes: sizes.append([3, 3])),
    "sizes of another task": lambda about: of_task(0, sizes=about["tasks"][2]["sizes"])(about),
    "sizes that are no list": of_task(0, sizes=3),
    "a longer tensor": sizes_of(0, lambda sizes: sizes[1].__setitem__(0, 400)),
    "a shorter tensor": sizes_of(0, lambda sizes: sizes[1].__setitem__(1, 3)),
    "a negative size": sizes_of(0, lambda sizes: sizes[0].__setitem__(0, -16)),
    "a size that is a word": sizes_of(0, lambda sizes: sizes[0].__setitem__(0, "x")),
    "a width of 40": sizes_of(0, lambda sizes: sizes[0].__setitem__(2, 40)),
    "a smaller width": sizes_of(0, lambda sizes: sizes[0].__setitem__(2, 1)),
    "another shape of the same size": sizes_of(0, lambda sizes: sizes.__setitem__(1, [4, 1])),
    "another dense shape": sizes_of(2, lambda sizes: sizes.__setitem__(-1, [10, 17])),
    "a dense shape too small": sizes_of(2, lambda sizes: sizes.__setitem__(-1, [1, 3])),
    "a kind that is not there": of_task(0, kind=7),
    "a kind before the first": of_task(0, kind=-1),
    "the kind of another": of_task(0, kind=1),
    "a weight that is not there": of_task(0, params=["fc9.weight"]),
    "the weight of another task": of_task(0, params=["fc2.weight"]),
    "no weight": of_task(0, params=[]),
    "a bias": of_task(0, params=["fc1.bias"]),
    "fewer tasks": lambda about: about["tasks"].pop(),
    "no tasks": lambda about: about.pop("tasks"),
    "no kinds": lambda about: about.pop("kinds"),
    "tasks that are a word": lambda about: about.update(tasks="abc"),
    "an unknown compression": of_kind(0, "compression", "class", to=f"{QUANTIZATION}.codebook.Nothing"),
    "an unknown module": of_kind(0, "compression", "class", to="nowhere.L0"),
    "no module": of_kind(0, "compression", "class", to="L0"),
    "a function": of_kind(0, "compression", "class", to="os.system"),
    "a class that is no dataclass": of_kind(0, "compression", "class", to="subprocess.Popen"),
    "a dataclass that is no compression": of_kind(0, "compression", "class", to="nncompress.problem.Split"),
    "an abstract compression": of_kind(0, "compression", "class", to=f"{QUANTIZATION}.codes.Quantization"),
    "a class of Θ for a compression": of_kind(0, "compression", "class", to=f"{QUANTIZATION}.codes.Coded"),
    "another view": of_kind(0, "view", "class", to="nncompress.compressions.quantization.Codebook"),
    "an unknown class of Θ": of_kind(0, "theta", "class", to=f"{QUANTIZATION}.codes.Other"),
    "another class of Θ": of_kind(0, "theta", "class", to="nncompress.compressions.decomposition.Cores"),
    "a class that is a number": of_kind(0, "theta", "class", to=3),
    "a field that is missing": lambda about: about["kinds"][0]["compression"].pop("K"),
    "a field that is unknown": of_kind(0, "compression", "rank", to=3),
    "a field of Θ that is missing": lambda about: about["kinds"][0]["theta"].pop("table"),
    "a form that is unknown": of_kind(0, "theta", "codes", to="bytes uint8"),
    "a form that is a number": of_kind(0, "theta", "codes", to=7),
    "a type that is unknown": of_kind(0, "theta", "table", to="plain float33"),
    "another type": of_kind(0, "theta", "table", to="plain float16"),
    "another network": lambda about: about["architecture"].update(widths=[16, 15]),
    "another activation": lambda about: about["architecture"].update(activation="sigmoid"),
    "a keyword too many": lambda about: about["architecture"].update(depth=3),
    "no network": lambda about: about.pop("architecture"),
    "a network that is a list": lambda about: about.update(architecture=[1, 2]),
    "no class": lambda about: about["architecture"].pop("_target_"),
    "another input": lambda about: about.update(input_shape=[65]),
    "no input": lambda about: about.pop("input_shape"),
    "other outputs": lambda about: about.update(num_classes=9),
    "channels": lambda about: about.update(channels={"shapes": {}}),
    "ties": lambda about: about.update(tied={"fc1.weight": "nothing"}),
}  # fmt: skip


def test_a_description_that_does_not_fit_the_tensors_is_refused(folder):
    path = folder / "model.json"
    whole = path.read_text()
    for wrong, change in WRONG.items():
        path.write_text(whole)
        resign(folder, change)
        for compact in (False, True):
            with case(wrong=wrong, compact=compact):
                words = refusal(folder, compact=compact)
                assert str(path) in words
                assert not words.endswith(": ")


def test_an_infinite_setting_of_a_network_is_kept(tmp_path):
    node = {"clip": [float("inf"), {"low": -float("inf")}], "width": 3, "name": "inf"}
    assert unspell(json.loads(json.dumps(spell(node), allow_nan=False))) == node


def test_what_is_signed_again_without_a_change_is_loaded(folder):
    resign(folder, lambda about: None)
    assert not load(folder).training


def test_other_tensors_that_are_signed_are_refused(folder):
    path, zeros = folder / "model.safetensors", torch.zeros(3)
    tensors = load_file(path)
    for extra in ({"more": zeros}, {"float32": zeros}, {"bits": torch.zeros(3, 3, dtype=torch.uint8)}):
        with case(extra=[*extra]):
            save_file(tensors | extra, path)
            resign(folder, lambda about: None)
            assert str(folder / "model.json") in refusal(folder)
