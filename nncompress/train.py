"""`nncompress train`: Hydra around `experiment.run`, for one run, a sweep, or a run that is taken up again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import datetime
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress import config
from nncompress.errors import ConfigError, NNCompressError
from nncompress.hydra_errors import sentence
from nncompress.resume import resumed
from nncompress.signatures import Target, locate, one_line

log = logging.getLogger(__name__)

RUN_LOG = "run.log"
PROCESSES = "WORLD_SIZE"
"""What torchrun calls the number of processes in the environment."""

QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Hydra's words for the processes of torchrun that write nothing."""

_sweep_folders: list[Path] = []  # Hydra hands the folder of a sweep to callbacks alone


class SweepFolder(Callback):
    """Notes where a sweep goes, so that its report is written there even when it is interrupted."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        _sweep_folders.append(Path(config.hydra.sweep.dir).absolute())


def stamp() -> str:
    """`<date>_<time>-<6 hex>`: a folder's name that two runs of the same second do not share."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.urandom(3).hex()}"


def drop_tracebacks() -> Callable[[logging.LogRecord], bool]:
    """A filter for the console: what carries a traceback goes to `run.log` alone."""
    return lambda record: record.exc_info is None


# At import, because a launcher may run the jobs in other processes. Cached: one stamp for each configuration.
OmegaConf.register_new_resolver("nncompress.stamp", stamp, use_cache=True, replace=True)


def train(arguments: list[str]) -> int:
    """Run Hydra on the words after `train`; the exit code.

    Of the processes of torchrun the first writes the folder, says what there is to say and has the exit code.

    Raises:
        NNCompressError: the configuration is refused, the output folder cannot be written, or a single run failed.
    """
    if "" not in sys.path[:1] and os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())
    config.register()
    if _joined():
        code = _hydra(arguments)
        return _finish_sweep(_sweep_folders[-1], code) if _sweep_folders else code
    logging.disable()
    with TemporaryDirectory() as nowhere, suppress(NNCompressError), redirect_stdout(StringIO()):
        code = _hydra(arguments, (*QUIET, f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"))
        return code if code == NNCompressError.exit_code else 0
    return 0


def _joined() -> bool:
    """Join the processes of torchrun, if there are several; whether this one is the first."""
    if not _several():
        return True
    from nncompress import parallel

    parallel.start()
    return parallel.rank() == 0


def _several() -> bool:
    return int(os.environ.get(PROCESSES, "1")) > 1


def _hydra(arguments: list[str], more: Sequence[str] = ()) -> int:
    """What Hydra makes of the words, and of `more` of its own; the exit code."""
    _sweep_folders.clear()
    task, arguments = resumed(arguments, _attempt) or (job, arguments)
    arguments = [*arguments, *more]
    try:
        with _hydra_process(arguments):
            hydra.main(version_base="1.3", config_path="pkg://nncompress.conf", config_name="config")(task)()
    except SystemExit as stop:
        if isinstance(stop.__cause__, NNCompressError):
            raise stop.__cause__ from None
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(sentence(error, arguments)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error
    return 0


def job(cfg: DictConfig) -> None:
    """What Hydra calls for a run or for each job of a sweep."""
    settings = HydraConfig.get()
    cfg.choices = {group: choice for group in config.CHOICES if (choice := settings.runtime.choices.get(group))}
    _retarget(cfg, settings.overrides.task)
    _attempt(cfg, Path(settings.runtime.output_dir), settings.mode == RunMode.MULTIRUN)


def _retarget(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """With `model._target_=my_nets.Net` on the command line the keys of the option it replaces no longer count.

    Further in, as with `solver.schedule._target_`, those that the new class does not take.
    """
    given = [override.partition("=")[0].lstrip("+") for override in overrides]
    for place in (key.removesuffix("._target_") for key in given if key.count(".") > 1 and key.endswith("._target_")):
        OmegaConf.update(cfg, place, _taken(OmegaConf.select(cfg, place), place, given), merge=False)
    for group in (*config.GROUPS, config.AUGMENTATION):
        if f"{group}._target_" in given:
            keys = {key.split(".")[1] for key in given if key.startswith(f"{group}.")}
            cfg[group] = {key: value for key, value in cfg[group].items() if key in keys}
            if group in cfg.choices:
                cfg.choices[group] = str(cfg[group]["_target_"]).rpartition(".")[2]


def _taken(node: DictConfig, place: str, given: Sequence[str]) -> dict[str, Any]:
    """The keys of a node that are given, or that its class takes."""
    try:
        target = Target(str(node["_target_"]), locate(str(node["_target_"])))
    except ConfigError:  # told when the configuration is checked
        return dict(node)
    values = {str(key): value for key, value in node.items()}
    kept = {key for key in values if key.startswith("_") or f"{place}.{key}" in given or target.takes(key)}
    return values if target.open and target.parameters else {key: values[key] for key in values if key in kept}


def _attempt(cfg: DictConfig, folder: Path, sweep: bool) -> None:
    """Check and run; a failure ends a single run and leaves a sweep going.

    Under torchrun only one that all processes know of does: NNCompressError.
    """
    try:
        _prepared(cfg, folder)()
    except Exception as error:
        shared = isinstance(error, NNCompressError) or not _several()
        if not shared and os.environ["RANK"] != "0":  # then process 0 may not know of it
            traceback.print_exception(error)
            raise SystemExit(NNCompressError.exit_code) from None
        failure = _as_told(error, folder)
        if not sweep or not shared:
            # Past Hydra, which would print its own account of the failure.
            raise SystemExit(failure.exit_code) from failure
        log.error("job in %s failed: %s", _short(folder), "; ".join(str(failure).splitlines()))
    else:
        if not sweep:
            _say_where(folder)


def _prepared(cfg: DictConfig, folder: Path) -> Callable[[], Any]:
    """The run, once the configuration is checked and its reference there; what goes wrong before is recorded here."""
    try:
        config.validate(cfg)
        from nncompress.experiment import run
        from nncompress.reference import with_reference

        return partial(run, with_reference(cfg), folder)
    except SystemExit:
        _not_started(cfg, folder, "interrupted", "stopped while its reference was trained; give the same command again")
        raise
    except Exception as error:
        log.error("the run did not start", exc_info=error)
        _not_started(cfg, folder, "failed", "; ".join(str(error).splitlines()))
        raise


def _not_started(cfg: DictConfig, folder: Path, status: str, reason: str) -> None:
    """Leave the configuration and why there is no run; one that is resumed has its own."""
    from nncompress.records import CONFIG, STATUS, write_json

    if not (folder / STATUS).exists():
        OmegaConf.save(cfg, folder / CONFIG)
        write_json(folder / STATUS, {"status": status, "reason": reason, "traceback": None, "step": None})


def _as_told(error: Exception, folder: Path) -> NNCompressError:
    """The failure as the user is told it: our own sentences as they are, anything else with where its traceback is."""
    if isinstance(error, NNCompressError):
        return error
    message = f"{type(error).__name__}: {one_line(error)} (the traceback is in {_short(folder / RUN_LOG)})"
    failure = NNCompressError(message)
    failure.__cause__ = error
    return failure


def _say_where(folder: Path) -> None:
    for path in [*sorted(folder.glob("tables/*.md")), *sorted(folder.glob("plots/*.png"))]:
        log.info("wrote %s", _short(path))


def _finish_sweep(folder: Path, code: int) -> int:
    """Write the aggregated tables and plots of whatever the sweep has left; the sweep's exit code."""
    from nncompress.records import is_run

    if not any(is_run(path) for path in folder.rglob("*") if path.is_dir()):
        return code
    from nncompress.report import write_sweep_report

    report = write_sweep_report(folder)
    for path in report.paths:
        log.info("wrote %s", _short(path))
    if report.failed:
        log.error("%d of %d jobs failed; the tables list them", report.failed, report.failed + report.done)
    return code or int(bool(report.failed))


def _short(path: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _unwritable(error: OSError) -> NNCompressError:
    return NNCompressError(
        f"cannot write the output folder {error.filename}: {error.strerror}; "
        "give another one with hydra.run.dir=... (hydra.sweep.dir=... for a sweep)"
    )


@contextmanager
def _hydra_process(arguments: list[str]) -> Iterator[None]:
    """What Hydra takes from the process: the command line, whether errors are raised; and SIGTERM as an exit."""
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), signal.signal(signal.SIGTERM, _terminate)
    # A run whose console has gone (`| head`) goes on without complaining about every line.
    logging.raiseExceptions = False
    sys.argv = ["nncompress", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        logging.raiseExceptions = True
        sys.argv, full_error, handler = before
        signal.signal(signal.SIGTERM, handler)
        del os.environ["HYDRA_FULL_ERROR"]
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
