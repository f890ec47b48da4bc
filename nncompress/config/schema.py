"""The typed keys of a configuration, and the sweepers under the names by which Hydra finds them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

GROUPS = ("dataset", "model", "compression", "solver")


CHOICES = (*GROUPS, "constraint", "experiment")


AUGMENTATION = "augmentation"


REFERENCE_TRAINING = "reference_training"


ONE_SHOT = "compress_by"


TRACKING = "tracking"


SWEEPER, SEARCHER = "hydra_plugins.nncompress.Jobs", "hydra_plugins.nncompress.Search"
"""What Hydra calls `Jobs` and `SearchSettings` of `nncompress.sweeps`: it takes plugins from `hydra_plugins` alone."""


@dataclass
class Downloads:
    """Whether a data set that is not there may be fetched."""

    download: bool = True


@dataclass
class TargetSize:
    """The size to reach, for compressions that can choose their rank, keep or K by it; one of the three.

    ratio: compressed over dense parameters; bits, macs: their ratio when at most 1, else their number.
    """

    ratio: float | None = None
    bits: float | None = None
    macs: float | None = None


@dataclass
class SweepSettings:
    """How the jobs of a sweep are run.

    resume: the folder of a sweep to go on with. on_error: `continue` with the other jobs, or `stop`. retries: how often
    a job that failed is tried again. zip: keys whose values are taken side by side, not crossed, or lists of such.
    """

    resume: str | None = None
    on_error: str = "continue"
    retries: int = 0
    zip: list[Any] = field(default_factory=list)


@dataclass
class SearchSettings:
    """What `nncompress search` looks for.

    trials: how many settings are tried in all, parallel: at a time. maximize, minimize: figures of summary.json.
    sampler, pruner: Optuna's; no pruning with several objectives. trial, store: which trial of which study a job is.
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
    """The typed shell of `conf/config.yaml`; the four groups are `_target_` and the keywords of its constructor.

    reference: folder of a run whose network is the start. reference_dir: where the networks are kept that are trained
    for solvers that need such a start and are given none. reference_training: the solver that trains them.
    augmentation: what minibatches do to the training samples. validation: the part of the training samples held out.
    protocol: the last step is the result; `paper` adds, labelled, the best one by test accuracy. cuda_graphs: replay
    minibatches on a GPU. round_to: what ranks and the numbers of rows and channels that are left are multiples of.
    allow: modules of which a configuration read back from disk may name classes, beside this package. tracking: where
    a run tells its records beside its folder. compress_at, compress_by, recalibrate: the parts that are taken away from
    the final network without retraining, by which methods, and the samples for the statistics of batch norms then.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    data_dir: str = "${oc.env:NNCOMPRESS_DATA,data}"
    data: Downloads = field(default_factory=Downloads)
    deterministic: bool = True
    eval_every: int = 1
    checkpoint_every: int = 10
    resume: str | None = None
    allow: list[str] = field(default_factory=list)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    tracking: Any = None
    target: TargetSize = field(default_factory=TargetSize)
    reference: str | None = None
    reference_dir: str = "outputs/references"
    reference_training: Any = None
    augmentation: Any = None
    validation: float = 0.0
    protocol: str = "last"
    cuda_graphs: bool = True
    round_to: int = 1
    compress_at: list[float] = field(default_factory=list)
    compress_by: Any = None
    recalibrate: int = 10000
    choices: dict[str, str] = field(default_factory=dict)
    dataset: Any = None
    model: Any = None
    compression: Any = None
    constraint: Any = None
    solver: Any = None


@cache
def register() -> None:
    """Put the typed shell and the sweeper where the defaults list of `conf/config.yaml` finds them."""
    ConfigStore.instance().store(name="shell", node=Config)
    sweeper: dict[str, Any] = {"_target_": SWEEPER, "max_batch_size": None, "params": {}}
    ConfigStore.instance().store(group="hydra/sweeper", name="nncompress", node=sweeper)
    ConfigStore.instance().store(group="hydra/sweeper", name="nncompress_search", node={"_target_": SEARCHER})
