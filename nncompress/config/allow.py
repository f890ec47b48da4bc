"""What a file that is read back may name: at each place classes of a closed list, and what the user allows.

Whoever can write such a file could else have any function of any module called. What is named is looked up and its type
is checked before anything is called; nothing is imported for what is refused.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nncompress.config.schema import AUGMENTATION, FOLLOWED, ONE_SHOT, REFERENCE_TRAINING, TRACKING
from nncompress.config.signatures import locate
from nncompress.errors import NO_USER_INFO, USER_INFO, ConfigError, one_line

ENVIRONMENT = "NNCOMPRESS_ALLOW"
"""The variable that allows modules too, separated by commas."""
PACKAGE = __name__.partition(".")[0]
INTERPOLATIONS = {
    follower.partition(".")[2]: f"${{{key}}}" for follower, key in FOLLOWED.items() if follower.startswith("dataset.")
}
"""What the data set of a compact network has under the keys that say where its files are."""
TARGET = "_target_"
"""The key whose value is the dotted path of a class or function."""


@dataclass(frozen=True)
class Offer:
    """Names that files may give: those listed, or those of modules.

    - names: dotted paths.
    - modules: with their public names (`__all__`, where there is one), and no others.
    - base: the dotted path of the class that those are subclasses of; empty: any, of modules with `__all__`.
    """

    names: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    base: str = ""

    def has(self, name: str) -> bool:
        """Tell whether a dotted path is among the names."""
        place, _, last = name.rpartition(".")
        if place not in self.modules:
            return name in self.names
        module = import_module(place)
        found = getattr(module, last, None)
        if not self.base:
            return last in module.__all__ and callable(found)
        public = last in getattr(module, "__all__", dir(module))
        return public and inspect.isclass(found) and issubclass(found, locate(self.base))


def _listed(module: str, *names: str) -> Offer:
    return Offer(names=frozenset(f"{module}.{name}" for name in names))


def _public(part: str, *below: str) -> Offer:
    """Return what a package of this one offers, and those below it."""
    package = f"{PACKAGE}.{part}"
    return Offer(modules=(package, *(f"{package}.{name}" for name in below)))


LAYERS = """
    Sequential ModuleList ModuleDict Identity Flatten Unflatten Linear Bilinear GroupNorm LayerNorm RMSNorm
    LocalResponseNorm Dropout AlphaDropout FeatureAlphaDropout ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU GLU
    SiLU Mish Sigmoid LogSigmoid Hardsigmoid Hardswish Hardtanh Tanh Tanhshrink Hardshrink Softshrink Softplus Softsign
    Softmin Softmax Softmax2d LogSoftmax Threshold Embedding EmbeddingBag RNN LSTM GRU MultiheadAttention Upsample
    UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle ChannelShuffle Fold Unfold
""".split()  # noqa: SIM905
"""Classes of `torch.nn` that files may name; those in one, two and three dimensions come next."""
LAYERS_OF_DIMENSIONS = """
    Conv ConvTranspose MaxPool AvgPool LPPool AdaptiveAvgPool AdaptiveMaxPool BatchNorm InstanceNorm Dropout ZeroPad
    ConstantPad ReflectionPad ReplicationPad CircularPad
""".split()  # noqa: SIM905
NETWORKS = (
    _public("models"),
    _listed("torch.nn", *LAYERS, *(f"{name}{n}d" for name in LAYERS_OF_DIMENSIONS for n in (1, 2, 3))),
)
COMPRESSIONS = (_public("compressions", "decomposition", "quantization", "sparsity"),)
CONSTRAINTS = (_public("constraints"),)
SOLVERS = (
    *(_public(f"solvers.{family}") for family in ("frank_wolfe", "lc", "nnbcd", "sgd", "slimming", "training")),
    Offer(modules=("torch.optim",), base="torch.optim.Optimizer"),
    Offer(modules=("torch.optim.lr_scheduler",), base="torch.optim.lr_scheduler.LRScheduler"),
    *COMPRESSIONS,  # the penalty of slimming
    *CONSTRAINTS,
)
DATA = (
    Offer(
        names=frozenset(
            f"{PACKAGE}.data.{path}"
            for path in (
                "cifar.cifar10", "cifar.cifar100", "digits.digits", "har.har", "image_folder.image_folder",
                "mnist.mnist", "npz.npz",
            )
        )
    ),
)  # fmt: skip
OFFERS: Mapping[str, tuple[Offer, ...]] = {
    "dataset": DATA,
    "model": NETWORKS,
    "compression": COMPRESSIONS,
    "constraint": CONSTRAINTS,
    "solver": SOLVERS,
    REFERENCE_TRAINING: SOLVERS,
    AUGMENTATION: (_listed(f"{PACKAGE}.data.augmentation", "Augmentations", "Crop", "Cutout", "Flip", "Rotation"),),
    ONE_SHOT: (_listed(f"{PACKAGE}.experiment.one_shot", "Filters", "LowRank", "Weights"),),
    TRACKING: (_public("tracking"),),
    "search": (
        _listed(
            "optuna.samplers", "BruteForceSampler", "GPSampler", "GridSampler", "NSGAIISampler",
            "NSGAIIISampler", "QMCSampler", "RandomSampler", "TPESampler",
        ),
        _listed(
            "optuna.pruners", "HyperbandPruner", "MedianPruner", "NopPruner", "PatientPruner", "PercentilePruner",
            "SuccessiveHalvingPruner", "ThresholdPruner", "WilcoxonPruner",
        ),
    ),
}  # fmt: skip
"""What each part of a configuration may name, at any depth."""


def check(tree: Mapping[str, Any], allow: Sequence[str], source: str) -> None:
    """Refuse parts of a configuration, read from `source`, that name what is neither offered there nor allowed.

    Args:
        tree: containers by the keys of a configuration.
        allow: modules, with all below them, or classes. What a name leads to must lie in one too, so that nothing is
            reached through what a module imports.

    Raises:
        ConfigError: with every name that is refused and what allows it; a name leads nowhere; there is another value
            than those of JSON, or a text with an interpolation.
    """
    environment = [name.strip() for name in os.environ.get(ENVIRONMENT, "").split(",") if name.strip()]
    allowed = [*([allow] if isinstance(allow, str) else allow), *environment]
    plain = _plain(tree, source)
    require_no_user_info(plain)
    named = {name: None for key, part in plain.items() for name in targets({key: part}) if not is_offered(name, key)}
    refused = {name: name for name in sorted(named) if not (_is_public(name) and _is_below(name, allowed))}
    if not refused:
        origins = {name: _origin(name, source) for name in named if name not in allowed}
        refused = {name: origin for name, origin in sorted(origins.items()) if not _is_below(origin, allowed)}
    if refused:
        raise ConfigError(_refusal(refused, source))


def require_no_user_info(tree: Any) -> None:
    """Refuse a configuration with the user name or password of an address: it would be kept in files.

    Raises:
        ConfigError: with the keys, not the values.
    """
    keys = [key for key, value in _leaves(tree) if USER_INFO.search(value)]
    if keys:
        raise ConfigError(f"{', '.join(keys)}: {NO_USER_INFO}")


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts of a tree with their dotted keys, interpolations resolved where they can be."""
    if isinstance(node, Mapping | ListConfig | list | tuple):
        for name in node if isinstance(node, Mapping) else range(len(node)):
            yield key, str(name)
            with suppress(OmegaConfBaseException):  # missing, or an interpolation that another check tells
                yield from _leaves(node[name], f"{key}.{name}" if key else str(name))
    elif isinstance(node, str):
        yield key, node


def with_own_places(data: Any) -> Any:
    """Return the node of a data set of this package, read from a file, with its files where the command has them."""
    if not isinstance(data, Mapping) or not is_offered(str(data.get(TARGET)), "dataset"):
        return data
    own = {key: text for key, text in INTERPOLATIONS.items() if key in data}
    return {key: own.get(key, value) for key, value in data.items() if key != "defaults"}  # Hydra would obey those


def targets(tree: Any, key: str = TARGET) -> list[str]:
    """Return the dotted paths that a tree of containers gives under a key, at any depth."""
    plain = OmegaConf.to_container(tree) if OmegaConf.is_config(tree) else tree
    return [str(part[key]) for part in _parts(plain) if isinstance(part, Mapping) and key in part]


def allowed_modules(overrides: Sequence[str]) -> list[str]:
    """Return the modules of the last override `allow=[...]` of a command.

    Raises:
        ConfigError: it gives something else than a list of names.
    """
    last = [override for override in overrides if override.startswith("allow=")][-1:]
    try:
        modules = OmegaConf.to_container(OmegaConf.from_dotlist(last)).get("allow", [])  # type: ignore[union-attr]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{last[0]}: {one_line(error)}") from error
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ConfigError(f"allow must be a list of modules such as allow=[my_nets], found {last[0]}")
    return modules


def _plain(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the containers with values in the place of interpolations. Raises ConfigError as `check` does."""
    try:
        plain: Any = OmegaConf.to_container(tree, resolve=True) if OmegaConf.is_config(tree) else dict(tree)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {error.full_key}: {one_line(error)}") from error
    for key, part in plain.items():
        for value in _parts(part, key):
            if not isinstance(value, Mapping | list | tuple | str | int | float | None):
                raise ConfigError(f"{source} must hold numbers, texts and lists of them, found {value!r} in {key}")
            if isinstance(value, str) and "${" in value and not (key == "dataset" and value in INTERPOLATIONS.values()):
                raise ConfigError(
                    f"{source} must hold values, found the interpolation '{value}'; write the value there"
                )
    return dict(plain)


def _parts(*trees: Any) -> Iterator[Any]:
    """Yield trees of containers and all that is in them, keys included."""
    for tree in trees:
        yield tree
        if isinstance(tree, Mapping | list | tuple):
            yield from _parts(*tree, *tree.values()) if isinstance(tree, Mapping) else _parts(*tree)


def is_offered(name: str, place: str) -> bool:
    """Tell whether the part of a configuration under the key `place` may name a dotted path without being allowed."""
    return any(offer.has(name) for offer in OFFERS.get(place, ()))


def _is_public(name: str) -> bool:
    return not any(step.startswith("_") for step in name.split("."))


def _is_below(name: str, allowed: Sequence[str]) -> bool:
    """Return whether a dotted path is one of the allowed ones or below one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def _origin(name: str, source: str) -> str:
    """Return where the class or function at a dotted path was made; refuse what `locate` does not find: Hydra might."""
    try:
        target = locate(name)
    except ConfigError as error:
        raise ConfigError(
            f"{source} names {name}, which must be importable: {error}; run where it can be imported (its folder on "
            "PYTHONPATH, or the current one)"
        ) from error
    made = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    return f"{getattr(made, '__module__', None)}.{getattr(made, '__qualname__', made)}"


def _refusal(refused: Mapping[str, str], source: str) -> str:
    names = [name if name == origin else f"{name}, which is {origin}" for name, origin in refused.items()]
    modules = list(dict.fromkeys(origin.rpartition(".")[0] or origin for origin in refused.values()))
    quoted = ", ".join(f'"{module}"' for module in modules)
    return (
        f"{source} names {', '.join(names)}, but only the classes that belong there of {PACKAGE} and torch, and public "
        f"ones of the modules you allow, are used; if you trust it, add allow=[{','.join(modules)}], or "
        f"nncompress.load(path, allow=[{quoted}])"
    )
