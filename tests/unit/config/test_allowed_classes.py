"""What files may name: classes of the package's parts, of torch and of what the user allows; nothing is unpickled."""

import ast
import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import case
from omegaconf import OmegaConf
from problems import ROOT
from runs import configuration, finish, refusal

import nncompress
from nncompress.config.allow import OFFERS, check, is_offered, targets
from nncompress.config.signatures import locate
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
        check(tree, allow, "RUN/config.yaml")
    except ConfigError:
        return False
    return True


def at(name: Any, place: str = "model") -> dict[str, Any]:
    return {place: {"_target_": name}}


def refused(tree: dict[str, Any], *allow: str) -> str:
    with pytest.raises(ConfigError) as error:
        check(tree, allow, "RUN/config.yaml")
    return str(error.value)


def test_every_name_of_the_packaged_configurations_is_known() -> None:
    known: set[str] = set()
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        group, tree = path.relative_to(ROOT / "conf").parts[0], yaml.safe_load(path.read_text()) or {}
        for key, part in ({group: tree} if group in OFFERS else tree).items():
            if key == "hydra":  # its own part, which is never read back
                continue
            names = targets(part)
            with case(path=path, key=key):
                assert accepted({key: [{"_target_": name} for name in names]})
            known |= {*names}
    assert "nncompress.models.MLP" in known
    assert len(known) > 50


def public_names() -> set[str]:
    """Every public name of every module of the packages that is imported by now, and of all modules of this one."""
    for module in pkgutil.walk_packages(nncompress.__path__, "nncompress."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    roots = ("torch", "torchvision", "optuna", "hydra", "omegaconf", "nncompress")
    modules = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in roots}
    names = {f"{place}.{name}" for place, module in modules.items() for name in vars(module) if isinstance(name, str)}
    deeper = {
        f"{place}.{name}.{below}" for place in roots for name in dir(modules[place]) for below in ("load", "apply")
    }
    return names | deeper


def test_of_all_public_names_none_passes_outside_the_closed_list() -> None:
    """What may stand at each place is told here once more, by what things are."""
    import optuna
    import torchvision  # noqa: F401
    from torch import nn, optim

    from nncompress.compressions.base import Compression
    from nncompress.solvers.base import Solver

    names = public_names()
    assert len(names) > 20_000
    passed = {place: {name for name in names if is_offered(name, place)} for place in OFFERS}
    parts = {name: locate(name) for found in passed.values() for name in found}
    assert all(not step.startswith("_") for name in parts for step in name.split("."))
    assert all(issubclass(parts[name], nn.Module) for name in passed["model"])
    assert passed["model"] >= {"torch.nn.Linear", "torch.nn.Sequential", "nncompress.models.VGG"}
    assert passed["dataset"] == {
        f"nncompress.data.{path}"
        for path in ("cifar.cifar10", "cifar.cifar100", "digits.digits", "har.har", "image_folder.image_folder",
                     "mnist.mnist", "npz.npz")
    }  # fmt: skip
    own = {name for name in parts if name.startswith("nncompress.")}
    listed = {name for name in own if name.startswith(("nncompress.data.", "nncompress.experiment.one_shot."))}
    assert len(listed) == 15
    assert all(name.rpartition(".")[2] in import_module(name.rpartition(".")[0]).__all__ for name in own - listed)
    foreign = {name: parts[name] for name in parts if name not in own}
    bases = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, optuna.samplers.BaseSampler)
    assert all(issubclass(kind, (*bases, optuna.pruners.BasePruner)) for kind in foreign.values())
    assert any(issubclass(parts[name], Solver) for name in passed["solver"] if isinstance(parts[name], type))
    assert any(issubclass(parts[name], Compression) for name in passed["compression"] if isinstance(parts[name], type))


def test_what_belongs_to_one_place_is_refused_at_another() -> None:
    for place, name in (
        ("model", "nncompress.data.mnist.mnist"), ("model", "torch.optim.SGD"), ("compression", "torch.nn.Linear"),
        ("dataset", "nncompress.models.MLP"), ("seed", "torch.nn.Linear"), ("allow", "nncompress.models.MLP"),
        ("_target_", "torch.nn.Linear"), ("hydra", "torch.nn.Linear"), ("tracking", "nncompress.tracking.About.folder"),
    ):  # fmt: skip
        with case(place=place, name=name):
            assert name in refused({place: name if place == "_target_" else {"a": [{"_target_": name}]}})


def test_a_private_name_is_refused_even_of_a_module_that_is_allowed() -> None:
    for name in ("my_nets._Net", "my_nets.Net.__init__", "_my_nets.Net"):
        with case(name=name):
            assert name in refused({"model": {"_target_": name}}, "my_nets", name)


def test_values_are_those_of_json() -> None:
    for value in (b"bytes", Path("a"), {1, 2}, object()):
        with case(value=value):
            assert "must hold numbers, texts and lists of them" in refused({"model": {"a": [value]}})


def test_a_name_that_is_neither_known_nor_allowed_is_refused_unseen() -> None:
    for name in (
        "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load", "hydra.utils.get_method",
        "nncompress.files.write_json", "nncompress.data.files.fetch", "nncompress.sweeps.launch.train",
        "nncompress.models_of_others.Net", "torch.nnx.Linear", "my_nets.Net", "system", "", "${oc.env:HOME}", 3, None,
    ):  # fmt: skip
        with case(name=name):
            forget()
            said = refused({"model": {"parts": [{"_target_": name}]}})
            assert str(name) in said
            assert "RUN/config.yaml" in said
            assert not Path("imported").exists()


def test_nothing_is_reached_through_what_an_allowed_module_imports() -> None:
    for name, origin in (
        ("nncompress.data.har.torch.hub.load", "torch.hub.load"),
        ("nncompress.data.har.shutil.rmtree", "shutil.rmtree"),
        ("nncompress.data.har.urllib.request.urlopen", "urllib.request.urlopen"),
        ("nncompress.data.har._download", "nncompress.data.har._download"),
        ("nncompress.data.har.torch.load", "torch.serialization.load"),
        ("nncompress.data.har.torch.nowhere", "which must be importable"),
        ("torch.optim.sgd.torch.load", "'torch.optim' has no 'sgd'"),
        ("my_nets.system", "posix.system"),
        ("my_nets.os.system", "posix.system"),
    ):
        with case(name=name):
            said = refused(at(name), "my_nets", "nncompress.data.har", "torch.optim.sgd")
            assert f"names {name}" in said
            assert origin in said


def test_every_refused_name_is_told_with_what_allows_it() -> None:
    said = refused({"a": {"_target_": "my_nets.Net"}, "_args_": [{"b": {"_target_": "my_data.sub.points"}}]})
    assert "names my_data.sub.points, my_nets.Net" in said
    assert "allow=[my_data.sub,my_nets]" in said
    assert 'nncompress.load(path, allow=["my_data.sub", "my_nets"])' in said


def test_what_is_allowed_covers_what_is_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = at("my_nets.Net")
    assert accepted(tree, "my_nets")
    assert accepted(tree, "my_nets.Net")
    assert accepted(at("optuna.samplers.CmaEsSampler", "search"), "optuna.samplers.CmaEsSampler")  # made elsewhere
    assert not accepted(at("optuna.samplers.CmaEsSampler", "search"))
    assert not accepted(tree, "my_net")
    assert not accepted(tree, "my_nets.Nets")
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "other, my_nets")
    assert accepted(tree)


def test_an_interpolation_that_could_become_a_name_is_refused() -> None:
    for text in ("${oc.create:{_target_: os.system}}", "a ${seed}", "${data_dir}/x"):
        with case(text=text):
            assert "must hold values, found the interpolation" in refused({"dataset": {"root": text}})
    assert accepted({"dataset": {"root": "${data_dir}"}})


def test_a_name_behind_an_interpolation_is_seen() -> None:
    assert "os.system" in refused(OmegaConf.create({"word": "os.system", "model": {"_target_": "${word}"}}))
    created = OmegaConf.create({"model": "${oc.create:${node}}", "node": "{_target_: os.system}"})
    assert "os.system" in refused(created)
    hidden = OmegaConf.create({"model": r"\${oc.create:{_target_: os.system}}"})
    assert "found the interpolation" in refused(hidden)


def test_the_network_of_a_reference_may_be_of_a_class_that_the_command_names(tmp_path: Path) -> None:
    words = ["model.widths=[8]", "dataset.train_size=100", "dataset.test_size=50", "solver.num_steps=1"]
    mine = "model._target_=my_nets.Net"
    finish(configuration("solver=sgd", *words, mine), tmp_path / "a")
    words += ["solver=direct_compression", "compression=l0", f"reference={tmp_path / 'a'}"]
    assert finish(configuration(*words, mine), tmp_path / "b")["model"] == "Net"
    forget()
    failure = refusal(tmp_path / "c", *words)
    assert failure.exit_code == 2
    assert str(failure).startswith("reference: ")
    assert "names my_nets.Net" in str(failure)
    assert len(str(failure).splitlines()) == 1
    assert not Path("imported").exists()


UNSAFE = {
    "pickle": {"load", "loads", "Unpickler"}, "joblib": {"load"}, "pd": {"read_pickle"},
    "yaml": {"unsafe_load", "full_load", "load_all"},
}  # fmt: skip
LOADING = {"load", *(function for functions in UNSAFE.values() for function in functions)}
UNPICKLING = {"pickle", "dill", "marshal", "shelve"}
WORDS = {*(f".{function}(" for function in LOADING), *UNPICKLING}
RESTRICTED = {"data/cifar.py"}
"""Where an unpickler that admits a few names alone is made."""


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every node of the package's code that may be of interest, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if any(word in text for word in WORDS):  # to parse all of them takes a second
            for node in ast.walk(ast.parse(text)):
                yield path.relative_to(PACKAGE).as_posix(), node


def test_nothing_is_unpickled() -> None:
    loads = 0
    for file, node in nodes():
        if isinstance(node, ast.Import | ast.ImportFrom) and file not in RESTRICTED:
            names = {a.name for a in node.names} if isinstance(node, ast.Import) else {str(node.module)}
            assert not UNPICKLING & names, file
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADING):
            continue
        module, function, where = ast.unparse(node.func.value), node.func.attr, f"{file}:{node.lineno}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert function not in UNSAFE.get(module, ()) or file in RESTRICTED, where
        if (module, function) == ("torch", "load"):
            assert keywords.get("weights_only") == "True", where
            loads += 1
        if (module, function) == ("np", "load"):
            assert keywords.get("allow_pickle") == "False", where
        if (module, function) == ("yaml", "load"):
            assert keywords.get("Loader") in ("LOADER", "yaml.SafeLoader"), where
    assert loads > 0
