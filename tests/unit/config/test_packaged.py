"""What conf/ holds: every file binds to the class or function that it names, and the experiments compose."""

from functools import cache

import pytest
from cases import case
from composing import composing
from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, open_dict
from problems import ROOT

import nncompress.sweeps.launch  # noqa: F401 (its resolver is used by conf/config.yaml)
from nncompress.config import schema
from nncompress.config.build import group_problems, resolve, validate

CONF = ROOT / "conf"
GROUPS = ("dataset", "model", "compression", "solver", "constraint", "augmentation")
OF_ANOTHER = "override /"
"""How an entry of the defaults of a file begins that chooses an option of another group: `override /GROUP@PLACE`."""
SCALED = {
    "cnn": "sparsefw/mnist_cnn_sgd", "densenet40": "slimming/densenet40_cifar10",
    "resnet164": "slimming/resnet164_cifar10", "resnet18": "sparsefw/resnet18_cifar10_filters",
    "vgg16": "sparsefw/vgg16_cifar10_weights", "vgg19": "slimming/vgg19_cifar10",
    "wrn28_10": "sparsefw/wrn28_10_cifar100_filters",
}  # fmt: skip
"""An experiment for each folder of conf/scale."""


def options(group: str) -> list[str]:
    """The files of a group, as one types them."""
    folder = CONF / group
    return [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]


@cache
def default() -> DictConfig:
    """The configuration of `nncompress train` without a word."""
    with composing():
        return compose("config")


def own_defaults(group: str, option: str) -> list[DictConfig | str]:
    """The defaults list of a file itself."""
    return list(OmegaConf.load(CONF / group / f"{option}.yaml").get("defaults", []))


def with_option(cfg: DictConfig, group: str, option: str) -> None:
    """Put the content of a file into a configuration, and that of the files that it is made of or chooses."""
    content = OmegaConf.load(CONF / group / f"{option}.yaml")
    content.pop("defaults", None)
    for entry in own_defaults(group, option):
        if isinstance(entry, str) and entry != "_self_":
            with_option(cfg, group, entry)
            content = OmegaConf.merge(cfg[group], content)
        elif not isinstance(entry, str):
            ((key, other),) = entry.items()
            with_option(cfg, key.removeprefix(OF_ANOTHER).partition("@")[0], other)
    cfg[group] = content


def test_there_are_options_in_every_group_and_experiments() -> None:
    assert all(len(options(group)) > 2 for group in (*GROUPS, "tracking", "launcher"))
    assert len(options("experiment")) > 50


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_binds_and_resolves(group: str) -> None:
    for option in options(group):
        with case(option=option):
            cfg = default().copy()
            with open_dict(cfg):
                with_option(cfg, group, option)
            assert list(group_problems(cfg, group)) == []
            assert "_target_" in OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)


def test_every_tracker_binds_and_resolves() -> None:
    for option in options("tracking"):
        with case(option=option):
            cfg = OmegaConf.create({"tracking": OmegaConf.load(CONF / "tracking" / f"{option}.yaml")})
            assert list(cfg.tracking) == [option]
            assert list(group_problems(cfg, f"tracking.{option}")) == []


def test_every_launcher_is_one_of_hydras_with_settings_that_it_has() -> None:
    default()  # Hydra knows its plugins once it has composed something
    for option in options("launcher"):
        with case(option=option):
            settings = OmegaConf.load(CONF / "launcher" / f"{option}.yaml")
            if option == "local":
                assert not settings
                continue
            ((key, name),) = settings.defaults[0].items()
            assert key == "override /hydra/launcher"
            node = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
            settled = OmegaConf.merge(node, OmegaConf.select(settings, "hydra.launcher") or {})
            assert settled._target_ in Plugins.instance().class_name_to_class


def test_the_default_every_experiment_and_what_chooses_another_option_compose_and_bind() -> None:
    chosen = [f"{group}={option}" for group in GROUPS for option in options(group) if own_defaults(group, option)]
    assert {"model=tt_mlp", "solver=frank_wolfe"} <= {*chosen}
    with composing():
        for word in ["seed=0", *chosen, *(f"experiment={name}" for name in options("experiment"))]:
            with case(word=word):
                check(compose("config", [word]))


def test_an_experiment_of_each_network_composes_small_and_fast() -> None:
    assert {*options("scale")} == {"full", "gpu", "smoke", *(f"smoke/{name}" for name in SCALED)}
    words = [(name, "smoke") for name in SCALED.values()] + [(SCALED["vgg19"], "gpu"), (SCALED["resnet18"], "gpu")]
    with composing():
        for name, scale in words:
            with case(experiment=name, scale=scale):
                cfg = compose("config", [f"experiment={name}", f"scale={scale}"])
                check(cfg)
                at = (cfg.dataset.train_size, cfg.solver.num_steps) if scale == "smoke" else cfg.precision
                assert at == ((2000, 3) if scale == "smoke" else "bf16")


def check(cfg: DictConfig) -> None:
    """Nothing keeps the configuration from being run."""
    validate(cfg)
    resolved = resolve(cfg)
    assert all("_target_" in resolved[group] for group in schema.GROUPS)
