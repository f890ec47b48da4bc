"""What files may name: classes of the package's parts, of torch and of what the user allows; nothing is unpickled."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from runs import resign, status, summary, train

import nncompress
from nncompress import trusted
from nncompress.cli import main
from nncompress.errors import ConfigError

PACKAGE = Path(nncompress.__file__).parent
NETS = """
import os
from os import system
from torch import nn
from nncompress.models.mlp import MLP

open("imported", "w").close()


class Net(MLP):
    pass
"""
WORDS = ["solver=sgd", "model.widths=[8]", "solver.num_steps=1", "dataset.train_size=100"]
MINE = [*WORDS, "model._target_=my_nets.Net"]


@pytest.fixture(autouse=True)
def own(apart: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current folder; importing it leaves a file."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)


def forget() -> None:
    """As if the module had never been imported."""
    sys.modules.pop("my_nets", None)
    Path("imported").unlink(missing_ok=True)


def accepted(tree: dict[str, Any], *allow: str) -> bool:
    try:
        trusted.check(tree, allow, "RUN/config.yaml")
    except ConfigError:
        return False
    return True


def refused(tree: dict[str, Any], *allow: str) -> str:
    with pytest.raises(ConfigError) as error:
        trusted.check(tree, allow, "RUN/config.yaml")
    return str(error.value)


def test_every_name_of_the_packaged_configurations_is_known() -> None:
    paths = sorted((PACKAGE.parent / "conf").rglob("*.yaml"))
    names = {name for path in paths for name in trusted.targets(OmegaConf.load(path))}
    assert {name for name in names if not accepted({"_target_": name})} == set()
    assert "nncompress.models.mlp.MLP" in names


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load", "hydra.utils.get_method",
        "nncompress.records.write_json", "nncompress.data.files.fetch", "nncompress.train.train",
        "nncompress.models_of_others.Net", "torch.nnx.Linear", "my_nets.Net", "system", "", "${oc.env:HOME}", 3, None,
    ],
)  # fmt: skip
def test_a_name_that_is_neither_known_nor_allowed_is_refused_unseen(name: object) -> None:
    forget()
    said = refused({"model": {"parts": [{"_target_": name}]}})
    assert str(name) in said
    assert "RUN/config.yaml" in said
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("nncompress.data.har.torch.hub.load", "torch.hub.load"),
        ("nncompress.data.har.shutil.rmtree", "shutil.rmtree"),
        ("nncompress.data.har.urllib.request.urlopen", "urllib.request.urlopen"),
        ("nncompress.data.har._download", "nncompress.data.har._download"),
        ("nncompress.data.har.torch.load", "torch.serialization.load"),
        ("nncompress.data.har.torch.nowhere", "which must be importable"),
        ("torch.optim.sgd.torch.load", "'torch.optim' has no 'sgd'"),
        ("my_nets.system", "posix.system"),
        ("my_nets.os.system", "posix.system"),
    ],
)
def test_nothing_is_reached_through_what_an_allowed_module_imports(name: str, origin: str) -> None:
    said = refused({"_target_": name}, "my_nets")
    assert f"names {name}" in said
    assert origin in said


def test_every_refused_name_is_told_with_what_allows_it() -> None:
    said = refused({"a": {"_target_": "my_nets.Net"}, "_args_": [{"b": {"_target_": "my_data.sub.points"}}]})
    assert "names my_data.sub.points, my_nets.Net" in said
    assert "allow=[my_data.sub,my_nets]" in said
    assert 'nncompress.load(path, allow=["my_data.sub", "my_nets"])' in said


def test_what_is_allowed_covers_what_is_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"_target_": "my_nets.Net"}
    assert accepted(tree, "my_nets")
    assert accepted(tree, "my_nets.Net")
    assert not accepted(tree, "my_net")
    assert not accepted(tree, "my_nets.Nets")
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "other, my_nets")
    assert accepted(tree)


@pytest.mark.parametrize("text", ["${oc.create:{_target_: os.system}}", "a ${seed}", "${data_dir}/x"])
def test_an_interpolation_that_could_become_a_name_is_refused(text: str) -> None:
    assert "must hold values, found the interpolation" in refused({"dataset": {"root": text}})
    trusted.check({"dataset": {"root": "${data_dir}"}}, (), "")


def test_a_name_behind_an_interpolation_is_seen() -> None:
    assert "os.system" in refused(OmegaConf.create({"word": "os.system", "model": {"_target_": "${word}"}}))
    created = OmegaConf.create({"model": "${oc.create:${node}}", "node": "{_target_: os.system}"})
    assert "os.system" in refused(created)
    hidden = OmegaConf.create({"model": r"\${oc.create:{_target_: os.system}}"})
    assert "found the interpolation" in refused(hidden)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


def test_a_run_of_ones_own_network_is_taken_up_when_its_module_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert train(folder, *MINE) == 0
    assert summary(folder)["model"] == "Net"
    capsys.readouterr()
    forget()
    before = (folder / "config.yaml").read_text()
    for words in (
        ["train", f"resume={folder}"],
        ["rerun", str(folder)],
        ["eval", str(folder)],
        ["export", str(folder)],
    ):
        assert main(words) == 2
        message = told(capsys)
        assert "names my_nets.Net" in message
        assert "allow=[my_nets]" in message
    assert not Path("imported").exists()
    assert not Path("outputs").exists()
    assert (folder / "config.yaml").read_text() == before
    assert main(["train", f"resume={folder}", "solver.num_steps=2", "allow=[my_nets]"]) == 0
    assert main(["rerun", str(folder), "hydra.run.dir=again", "allow=[my_nets]"]) == 0
    assert summary(Path("again")) == summary(folder)
    assert main(["eval", str(folder), "batch_sizes=[]", "allow=[my_nets]"]) == 0
    assert main(["export", "allow=[my_nets]", str(folder)]) == 0
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "my_nets")
    assert main(["train", f"resume={folder}", "solver.num_steps=3"]) == 0
    nncompress.load(folder)


def test_what_a_kept_configuration_allows_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(folder, *MINE, "allow=[my_nets]") == 0
    assert "my_nets" in yaml.safe_load((folder / "config.yaml").read_text())["allow"]
    capsys.readouterr()
    assert main(["train", f"resume={folder}"]) == 2
    assert "names my_nets.Net" in told(capsys)


def test_a_changed_configuration_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(folder, *WORDS) == 0
    path = folder / "config.yaml"
    cfg = yaml.safe_load(path.read_text())
    cfg["solver"]["schedule"] = {"_target_": "os.system", "_args_": ["touch struck"]}
    path.write_text(yaml.safe_dump(cfg))
    capsys.readouterr()
    for words in (["train", f"resume={folder}"], ["rerun", str(folder)]):
        assert main(words) == 2
        assert "names os.system" in told(capsys)
    assert not Path("struck").exists()
    assert status(folder)["status"] == "done"


def test_the_network_of_a_reference_may_be_of_a_class_that_the_command_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "a", *MINE) == 0
    words = [*MINE, "solver=direct_compression", "compression=l0", f"reference={tmp_path / 'a'}"]
    assert train(tmp_path / "b", *words) == 0
    capsys.readouterr()
    forget()
    assert train(tmp_path / "c", *[word for word in words if "my_nets" not in word]) == 2
    assert "reference: " in (message := told(capsys))
    assert "names my_nets.Net" in message
    assert not Path("imported").exists()


def test_the_data_set_that_a_network_names_is_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(folder, *WORDS) == 0
    resign(folder / "model", lambda about: about["data"].update(_target_="os.system"))
    capsys.readouterr()
    assert main(["eval", str(folder), "batch_sizes=[]"]) == 2
    assert "model.json names os.system" in told(capsys)
    for words in (["dataset=digits", "dataset.train_size=100"], ["~dataset"]):
        assert main(["eval", str(folder), "batch_sizes=[]", *words]) == 0
    about = json.loads((folder / "model/model.json").read_text())
    assert about["data"]["_target_"] == "os.system"


UNSAFE = {
    "pickle": {"load", "loads", "Unpickler"}, "joblib": {"load"}, "pd": {"read_pickle"},
    "yaml": {"unsafe_load", "full_load", "load_all"},
}  # fmt: skip
RESTRICTED = {"data/cifar.py"}
"""Where an unpickler that admits a few names alone is made."""


def calls() -> Iterator[tuple[str, str, str, ast.Call]]:
    """Every call in the package that has a dotted name: file, module, function and the call."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func.value), node.func.attr, node


def test_nothing_is_unpickled() -> None:
    for file, module, function, call in calls():
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{file}:{call.lineno}"
        assert function not in UNSAFE.get(module, ()) or file in RESTRICTED, where
        if (module, function) == ("torch", "load"):
            assert keywords.get("weights_only") == "True", where
        if (module, function) == ("np", "load"):
            assert keywords.get("allow_pickle") == "False", where
        if (module, function) == ("yaml", "load"):
            assert keywords.get("Loader") in ("LOADER", "yaml.SafeLoader"), where
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).as_posix() not in RESTRICTED:
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                assert not {"pickle", "dill", "marshal", "shelve"} & set(names), path
