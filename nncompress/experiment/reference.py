"""The trained network that a solver starts from: trained once for a model, data set, training and seed, then reused."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

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

NO_COMPRESSION = {"_target_": "nncompress.compressions.none", "_partial_": True}
"""The node of the compression that the training of a reference has."""
EVAL_EVERY = 10
"""Epochs between two observations of the training."""


def with_reference(cfg: DictConfig) -> DictConfig:
    """Return the configuration with `reference` the absolute folder of a trained network, if its solver needs one.

    A folder that is given stays. Else it is that of `reference_training` for the same model, data set, precision and
    seed in `reference_dir`, trained there now unless it is there already; one that was stopped is trained on.

    Raises:
        NNCompressError: the network cannot be trained, or not be kept.
        SystemExit: the training was interrupted (130, 143); the same configuration continues it.
    """
    if cfg.reference is None and not _needs_one(cfg):
        return cfg
    completed = cfg.copy()
    if cfg.reference is None:
        completed.reference_dir = str(Path(cfg.reference_dir).absolute())  # `rerun` looks there, from any folder
    completed.reference = str(_trained_folder(cfg) if cfg.reference is None else Path(cfg.reference).absolute())
    return completed


def reference_of(cfg: DictConfig) -> tuple[str, int] | None:
    """Return the folder of the reference to be trained for a configuration, and its epochs; None when there is none."""
    if cfg.reference is not None or not _needs_one(cfg):
        return None
    training = _training(cfg)
    return str(_folder(cfg, training)), int(training.solver.num_steps)


def _needs_one(cfg: DictConfig) -> bool:
    """Return whether the solver starts from a trained network."""
    return bool(getattr(locate(str(cfg.solver._target_)), "from_reference", False))


def _trained_folder(cfg: DictConfig) -> Path:
    """Return the folder of the reference once it is trained, by this process or by another one that began earlier."""
    if parallel.size() > 1:
        raise Unsupported(
            f"a reference is trained by one process, found {parallel.size()}; train it without torchrun, then give "
            "reference=FOLDER"
        )
    training = _training(cfg)
    folder = _folder(cfg, training)
    if not _is_done(folder):
        with hold(_lock_of(folder), waiting=f"waiting for the process that trains the reference in {folder}"):
            if not _is_done(folder):
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
    """Return the configuration of the run that trains the reference of `cfg`."""
    tree = resolve(cfg)
    if tree["reference_training"] is None:
        raise ConfigError(
            "reference_training: a solver that starts from a trained network needs a solver here, found null; give "
            "one, or reference=FOLDER"
        )
    groups = ("model", "dataset")
    choices = {group: tree["choices"].get(group) or tree[group]["_target_"].rpartition(".")[2] for group in groups}
    return OmegaConf.merge(  # type: ignore[return-value]
        OmegaConf.structured(Config),
        {key: tree[key] for key in TRAINING},
        {"solver": tree["reference_training"], "compression": NO_COMPRESSION, "eval_every": EVAL_EVERY},
        {"choices": choices | {"solver": REFERENCE_TRAINING, "compression": "none"}},
    )


def _folder(cfg: DictConfig, training: DictConfig) -> Path:
    """Return `<model>-<dataset>-<12 hex>` in `reference_dir`, the last a hash of all that the network depends on."""
    tree = resolve(training)
    key = {name: value for name, value in results_in(tree).items() if name in (*TRAINING, "solver")}
    paths = [Path(value) for value in key["dataset"].values() if isinstance(value, str)]
    key["files"] = [(path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None for path in paths]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = f"{tree['choices']['model']}-{tree['choices']['dataset']}-{digest[:12]}".replace("/", "-")
    return Path(cfg.reference_dir).absolute() / name


def _is_done(folder: Path) -> bool:
    return is_run(folder) and read_run(folder).status["status"] == "done"


def _lock_of(folder: Path) -> Path:
    """Make the folder, and return the file beside it that is held by whoever trains in it."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise NNCompressError(
            f"reference_dir must be a folder that can be written, found {folder.parent} ({error.strerror}); give "
            "another one"
        ) from error
    return path


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
