"""The keys of a configuration: their types, their defaults, and their role. Imports neither torch nor Hydra.

What a key is for decides everywhere what follows from it: which jobs of a sweep are the same, which reference serves a
run, what may change when a run goes on, what reports count as a difference, what trackers are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Role = Literal["result", "place", "run"]
"""What a key changes: the figures of a run; where things are, or what the run belongs to; how it is run."""

GROUPS = ("dataset", "model", "compression", "solver")
CHOICES = (*GROUPS, "constraint", "experiment")
AUGMENTATION = "augmentation"
REFERENCE_TRAINING = "reference_training"
ONE_SHOT = "compress_by"
TRACKING = "tracking"
SWEEPER, SEARCHER = "hydra_plugins.nncompress.Jobs", "hydra_plugins.nncompress.Search"
"""What Hydra calls the classes `Jobs` and `Search` of `nncompress.sweeps`: it takes plugins from `hydra_plugins`."""


def _key(
    default: T,
    role: Role,
    *,
    trains: bool = False,
    of_command: bool = False,
    later: tuple[str, ...] = (),
    followers: Mapping[str, str] | None = None,
) -> T:
    """Return a field with a role.

    Args:
        trains: the training of a reference takes it from the run that the reference is for.
        of_command: it belongs to one command, and is nothing of a run itself.
        later: the key or those below it that may change when a run goes on although they are of the role `result`.
        followers: keys of nodes that have the value of this one, or of a key below it, unless they are given.
    """
    about = {"role": role, "trains": trains, "of_command": of_command, "later": later, "followers": followers or {}}
    return field(default_factory=lambda: deepcopy(default), metadata=about)


@dataclass
class Downloads:
    """Whether a data set that is not there may be fetched."""

    download: bool = True


@dataclass
class TargetSize:
    """The size to reach, for compressions that can choose their rank, keep or K by it; one of the three.

    - ratio: compressed over dense parameters.
    - bits, macs: compressed over dense when at most 1, else their number.
    """

    ratio: float | None = None
    bits: float | None = None
    macs: float | None = None


@dataclass
class SweepSettings:
    """How the jobs of a sweep are run.

    - resume: the folder of a sweep to go on with.
    - on_error: `continue` with the other jobs, or `stop`.
    - retries: how often a job that failed is tried again.
    - zip: keys whose values are taken side by side, not crossed, or lists of such.
    """

    resume: str | None = None
    on_error: str = "continue"
    retries: int = 0
    zip: list[Any] = field(default_factory=list)


@dataclass
class SearchSettings:
    """What `nncompress search` looks for.

    - trials: how many settings are tried in all.
    - parallel: how many of them at a time.
    - maximize, minimize: figures of summary.json.
    - sampler, pruner: Optuna's; nothing is pruned with several objectives.
    - trial, store: which trial of which study a job is.
    """

    trials: int = 20
    parallel: int = 1
    maximize: list[str] = field(default_factory=lambda: ["accuracy/validation"])
    minimize: list[str] = field(default_factory=list)
    sampler: Any = None
    pruner: Any = None
    trial: int | None = None
    store: str | None = None


@dataclass
class Config:
    """The typed keys of `conf/config.yaml`; the groups are nodes: `_target_` and the keywords of its constructor.

    - seed: everything random follows from it.
    - device, precision: where a run computes, and with which numbers.
    - data_dir, data: where data sets are, and whether those that are not there are fetched.
    - deterministic: kernels whose results do not vary from run to run.
    - eval_every, checkpoint_every: steps between two observations, and between two checkpoints.
    - resume: the folder of a run to go on with.
    - allow: modules of which a configuration read back from disk may name classes, beside this package.
    - tracking: where a run tells its records beside its folder.
    - reference: the folder of a run whose network is the start.
    - reference_dir: where networks are kept that are trained for solvers which need such a start and are given none.
    - reference_training: the solver that trains them.
    - augmentation: what minibatches do to the training samples.
    - validation: the part of the training samples that is held out.
    - protocol: the last step is the result; `paper` adds, labelled, the best one by test accuracy.
    - cuda_graphs: replay minibatches on a GPU.
    - round_to: what ranks and the numbers of rows and channels that are left are multiples of.
    - compress_at, compress_by: the parts that are taken away from the final network without retraining, and how.
    - recalibrate: the samples for the statistics of batch norms then.
    - choices: the options that were taken, by their groups.
    """

    seed: int = _key(0, "result", trains=True, followers={"solver.seed": "seed", "reference_training.seed": "seed"})
    device: str = _key("auto", "run", trains=True)
    precision: str = _key("auto", "result", trains=True)
    data_dir: str = _key("${oc.env:NNCOMPRESS_DATA,data}", "place", trains=True, followers={"dataset.root": "data_dir"})
    data: Downloads = _key(Downloads(), "place", trains=True, followers={"dataset.download": "data.download"})
    deterministic: bool = _key(True, "run", trains=True)
    eval_every: int = _key(1, "run")
    checkpoint_every: int = _key(10, "run", trains=True)
    resume: str | None = _key(None, "place", of_command=True)
    allow: list[str] = _key([], "place")
    sweep: SweepSettings = _key(SweepSettings(), "place", of_command=True)
    search: SearchSettings = _key(SearchSettings(), "place", of_command=True)
    tracking: Any = _key(None, "place", of_command=True)
    target: TargetSize = _key(TargetSize(), "result")
    reference: str | None = _key(None, "result")
    reference_dir: str = _key("outputs/references", "place")
    reference_training: Any = _key(None, "result")
    augmentation: Any = _key(None, "result", trains=True)
    validation: float = _key(0.0, "result", trains=True)
    protocol: str = _key("last", "result")
    cuda_graphs: bool = _key(True, "run", trains=True)
    round_to: int = _key(1, "result")
    compress_at: list[float] = _key([], "result", later=("compress_at",))
    compress_by: Any = _key(None, "result")
    recalibrate: int = _key(10000, "result", later=("recalibrate",))
    choices: dict[str, str] = _key({}, "place", of_command=True)
    dataset: Any = _key(None, "result", trains=True)
    model: Any = _key(None, "result", trains=True)
    compression: Any = _key(None, "result")
    constraint: Any = _key(
        None,
        "result",
        followers={"solver.constraint": "constraint", "constraint.rest.size": "constraint.size"},
    )
    solver: Any = _key(None, "result", later=("solver.num_steps",))


KEYS: Mapping[str, Field[Any]] = {each.name: each for each in fields(Config)}
FOLLOWED = {follower: key for each in KEYS.values() for follower, key in each.metadata["followers"].items()}
"""The key that each follower has the value of, unless it is given another."""
COPIES = tuple(follower for follower, key in FOLLOWED.items() if key in CHOICES)
"""Followers that are whole nodes: what is written of them is written of the key they follow."""
TRAINING = tuple(name for name, each in KEYS.items() if each.metadata["trains"])
"""The keys that the training of a reference takes from the run that the reference is for."""
OF_COMMAND = tuple(name for name, each in KEYS.items() if each.metadata["of_command"])
"""The keys that belong to one command, and are nothing of a run itself."""
FREE = tuple(name for name in KEYS if KEYS[name].metadata["role"] != "result" and name not in OF_COMMAND)
"""The keys of a run that change no figures, with all below."""
LATER = (*(key for each in KEYS.values() for key in each.metadata["later"]), *FREE)
"""What may change when a run goes on, with all keys below."""


def role_of(key: str) -> Role:
    """Return the role of a dotted key: that of the key it follows or lies in; `result` for what is none of `KEYS`."""
    name = FOLLOWED.get(key, key).partition(".")[0]
    role: Role = KEYS[name].metadata["role"] if name in KEYS else "result"
    return role


def is_below(key: str, others: tuple[str, ...]) -> bool:
    """Return whether a dotted key is one of the others or lies below one of them."""
    return any(key == other or key.startswith(f"{other}.") for other in others)


def results_in(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration, as plain containers, changes figures: no key of another role, at any depth."""

    def results_below(node: Any, place: str) -> Any:
        if not isinstance(node, Mapping):
            return node
        below = {name: f"{place}.{name}" if place else str(name) for name in node}
        return {name: results_below(node[name], key) for name, key in below.items() if role_of(key) == "result"}

    return dict(results_below(tree, ""))


@cache
def register() -> None:
    """Put the typed keys and the sweepers where the defaults list of `conf/config.yaml` finds them."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="shell", node=Config)
    sweeper: dict[str, Any] = {"_target_": SWEEPER, "max_batch_size": None, "params": {}}
    store.store(group="hydra/sweeper", name="nncompress", node=sweeper)
    store.store(group="hydra/sweeper", name="nncompress_search", node={"_target_": SEARCHER})
