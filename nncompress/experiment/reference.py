"""The trained network that a solver starts from: trained once for a model, data set, training and seed, then reused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nncompress import parallel
from nncompress.config.build import resolve
from nncompress.config.schema import REFERENCE_TRAINING, TRAINING, Config, results_in
from nncompress.config.signatures import locate
from nncompress.errors import ConfigError, NNCompressError, Unsupported
from nncompress.experiment.run import run
from nncompress.experiment.setup import setup
from nncompress.files import hold
from nncompress.results.records import CONFIG, is_run, read_run

log = logging.getLogger(__name__)

NONE = {"_target_": "nncompress.compressions.none", "_partial_": True}
EVAL_EVERY = 10


def with_reference(cfg: DictConfig) -> DictConfig:
    """The configuration with `reference` the absolute folder of a trained network, where the solver starts from one.

    One that is given stays. Else it is the network of `reference_training` for the same model, data set, precision and
    seed in `reference_dir`, trained there now unless it is there already; one that was stopped is trained on.

    Raises:
        NNCompressError: the network cannot be trained, or not be kept.
        SystemExit: the training was interrupted (130, 143); the same configuration continues it.
    """
    if cfg.reference is None and not _needs_one(cfg):
        return cfg
    found = cfg.copy()
    found.reference = str(_trained(cfg) if cfg.reference is None else Path(cfg.reference).absolute())
    return found


def reference_of(cfg: DictConfig) -> tuple[str, int] | None:
    """The folder of the reference that would be trained for this configuration, and its epochs; None: there is none."""
    if cfg.reference is not None or not _needs_one(cfg):
        return None
    training = _training(cfg)
    return str(Path(cfg.reference_dir).absolute() / _name(training)), int(training.solver.num_steps)


def _needs_one(cfg: DictConfig) -> bool:
    """Whether the solver starts from a trained network."""
    return bool(getattr(locate(str(cfg.solver._target_)), "from_reference", False))


def _trained(cfg: DictConfig) -> Path:
    """The folder of the reference, trained by this process or by another one that began earlier."""
    if parallel.size() > 1:
        raise Unsupported(
            f"a reference is trained by one process, found {parallel.size()}; train it without torchrun, then give "
            "reference=FOLDER"
        )
    training = _training(cfg)
    folder = Path(cfg.reference_dir).absolute() / _name(training)
    if not _done(folder):
        with _alone(folder):
            if not _done(folder):
                _check(cfg)
                _train(training, folder)
                return folder
    log.info("the reference is taken from %s", folder)
    return folder


def _check(cfg: DictConfig) -> None:
    """Refuse what the solver would refuse, before the training: it is started on the untrained network."""
    untrained = setup(cfg)
    untrained.solver.init(untrained.problem)


def _training(cfg: DictConfig) -> DictConfig:
    """The configuration of the run that trains the reference of `cfg`."""
    given = resolve(cfg)
    if given["reference_training"] is None:
        raise ConfigError(
            "reference_training: a solver that starts from a trained network needs a solver here, found null; give "
            "one, or reference=FOLDER"
        )
    choices = {group: given["choices"].get(group, _last_word(given[group])) for group in ("model", "dataset")}
    return OmegaConf.merge(  # type: ignore[return-value]
        OmegaConf.structured(Config),
        {key: given[key] for key in TRAINING},
        {"solver": given["reference_training"], "compression": NONE, "eval_every": EVAL_EVERY},
        {"choices": choices | {"solver": REFERENCE_TRAINING, "compression": "none"}},
    )


def _last_word(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _name(training: DictConfig) -> str:
    """`<model>-<dataset>-<12 hex>`, the last a hash of all that the trained network depends on."""
    given = resolve(training)
    key = {name: value for name, value in results_in(given).items() if name in (*TRAINING, "solver")}
    key["files"] = [_stamp(Path(value)) for value in key["dataset"].values() if isinstance(value, str)]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    choices = given["choices"]
    return f"{choices['model']}-{choices['dataset']}-{digest[:12]}".replace("/", "-")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file that the data set names, None for anything else."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None


def _done(folder: Path) -> bool:
    return is_run(folder) and read_run(folder).status["status"] == "done"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold it: whoever else wants to train in it waits. The hold ends with the process."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise NNCompressError(
            f"reference_dir must be a folder that can be written, found {folder.parent} ({error.strerror}); give "
            "another one"
        ) from error
    with hold(path, waiting=f"waiting for the process that trains the reference in {folder}"):
        yield


def _train(training: DictConfig, folder: Path) -> None:
    """Train in the folder, going on with what is there."""
    if (folder / CONFIG).exists():
        training.resume = str(folder)
    log.info("the reference is trained in %s", folder)
    try:
        run(setup(training), folder)
    except SystemExit:
        log.warning("the reference is not trained yet; the same command goes on with it")
        raise
    except NNCompressError as error:
        raise type(error)(f"the reference cannot be trained in {folder}: {error}") from error
