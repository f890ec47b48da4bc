"""One run as a command or as the job of a sweep: check it, start it, try it again, tell what went wrong."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress import parallel
from nncompress.config.build import validate
from nncompress.config.schema import COPIES
from nncompress.errors import ConfigError, NNCompressError, one_line
from nncompress.files import hold, is_held, write_json
from nncompress.results.records import CONFIG, LOCK, RECORDS, STATUS, run_folders
from nncompress.results.run_folder import end_by, write_config
from nncompress.results.sweep_folder import ENDED, STOPPED, standing, stop_sweep
from nncompress.sweeps.trial import watch_of

if TYPE_CHECKING:
    from nncompress.experiment.setup import Setup

log = logging.getLogger(__name__)

RUN_LOG = "run.log"
"""The file in a run folder that Hydra logs to."""


def run_single(cfg: DictConfig, folder: Path) -> None:
    """Check, run and report.

    Raises:
        SystemExit: with the failure as its cause, past Hydra, which would tell it its own way.
    """
    failure = attempt(cfg, folder)
    if failure is not None:
        raise SystemExit(failure.exit_code) from failure
    write_report(folder)
    for path in [*sorted(folder.glob("tables/*.md")), *sorted(folder.glob("plots/*.png"))]:
        log.info("wrote %s", short(path))


def run_in_sweep(cfg: DictConfig, folder: Path, sweep: Path) -> None:
    """Run a job of the sweep in the folder `sweep`, going on with what `folder` holds of it, unless that has ended.

    A failure leaves the sweep going, or with `sweep.on_error=stop` lets no other job begin; one that another try may
    mend is tried again `sweep.retries` times.
    """
    cfg.sweep.resume, retries = None, cfg.sweep.retries
    if not parallel.decide(lambda: _may_begin(folder, sweep)):
        return
    for left in range(retries, -1, -1):
        cfg.resume = parallel.decide(lambda: str(folder) if (folder / CONFIG).is_file() else None)
        failure = attempt(cfg, folder if cfg.resume is None else Path(cfg.resume))
        if failure is None:
            write_report(folder)
            return
        if isinstance(failure, ConfigError) and not parallel.several() and is_held(folder / LOCK):
            run_in_sweep(cfg, folder, sweep)  # another worker was quicker: wait for it
            return
        log.error("job %s: %s", short(folder), "; ".join(str(failure).splitlines()))
        if parallel.decide(partial(_is_hopeless, failure, folder)):  # others may not know the kind of failure
            break
        if left:
            log.info("job %s is tried again, %d of %d times", short(folder), retries - left + 1, retries)
    if cfg.sweep.on_error == "stop" and parallel.first():
        stop_sweep(sweep, folder.name, str(failure))


def _is_hopeless(failure: NNCompressError, folder: Path) -> bool:
    """Return whether another try would not change how the job in a folder ended."""
    return isinstance(failure, ConfigError) or standing(folder) in ENDED


def attempt(cfg: DictConfig, folder: Path) -> NNCompressError | None:
    """Check and run; return what went wrong, as the user is told it.

    Under torchrun a process leaves with SystemExit where the others may not know of its failure.
    """
    try:
        _checked_run(cfg, folder)()
    except NNCompressError as error:
        return error
    except Exception as error:
        if parallel.several() and os.environ["RANK"] != "0":  # then process 0 may not know of it
            traceback.print_exception(error)
            raise SystemExit(NNCompressError.exit_code) from None
        message = f"{type(error).__name__}: {one_line(error)} (the traceback is in {short(folder / RUN_LOG)})"
        failure = NNCompressError(message)
        failure.__cause__ = error
        if parallel.several():
            raise SystemExit(failure.exit_code) from failure
        return failure
    return None


def write_report(folder: Path) -> None:
    """Write the tables and plots of a run that is done; what keeps them from being written makes no failed run.

    A signal lets them be finished, then ends the process as it ends a run.
    """
    if not parallel.first():
        return
    from nncompress.experiment.interruption import Interruption

    with Interruption() as interruption:
        try:
            from nncompress.report import write_run_report

            with hold(folder / LOCK):
                write_run_report(folder)
        except Exception as error:
            files = [each.baseFilename for each in log.root.handlers if isinstance(each, logging.FileHandler)]
            where = ""
            if str((folder / RUN_LOG).absolute()) in files:
                log.error("no tables and plots are written", exc_info=error)
                where = f" (the traceback is in {short(folder / RUN_LOG)})"
            log.error(
                "the run is done, but its tables and plots cannot be written: %s%s; try again with: nncompress report "
                "%s", one_line(error), where, short(folder),
            )  # fmt: skip
        if interruption.code and not parallel.several():
            interruption.leave(interruption.code)


def write_missing_reports(folder: Path) -> None:
    """Write the tables and plots of runs below a folder that were stopped between their last step and the last plot."""
    done = [run for run in run_folders([folder]) if standing(run) == "done"] if folder.is_dir() else []
    if done:
        from nncompress.report import is_reported

        for run in done:
            if not is_reported(run):
                write_report(run)


def short(path: Path) -> Path:
    """Return the path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _may_begin(folder: Path, sweep: Path) -> bool:
    """Return whether a job is to be run, once nobody else runs it: a worker may outlive the sweep that began it."""
    if (sweep / STOPPED).exists():
        log.info("job %s is not started, another one failed and sweep.on_error is stop", short(folder))
        return False
    with hold(folder / LOCK, waiting=f"waiting for the process that still runs job {short(folder)}"):
        return standing(folder) not in ENDED


def prepare(cfg: DictConfig, folder: Path) -> Callable[[], Any]:
    """Return the run, once the reference that it starts from is trained."""
    from nncompress.experiment.reference import with_reference
    from nncompress.experiment.run import run_built
    from nncompress.experiment.setup import settings_of, setup

    complete = with_reference(cfg)

    def build() -> Setup:
        return replace(setup(complete), watch=watch_of(cfg.search, folder) if parallel.first() else None)

    return partial(run_built, settings_of(complete), build, folder)


def _checked_run(cfg: DictConfig, folder: Path) -> Callable[[], Any]:
    """Return the run of a configuration that is in order; what goes wrong before it starts is recorded here."""
    try:
        validate(cfg)
        return prepare(cfg, folder)
    except (SystemExit, KeyboardInterrupt):
        reason = "stopped before its first step; give the same command again"
        _leave_status(cfg, folder, {"status": "interrupted", "reason": reason, "traceback": None})
        raise
    except Exception as error:
        log.error("the run did not start", exc_info=error)
        _leave_status(cfg, folder, end_by(error))
        raise


def _leave_status(cfg: DictConfig, folder: Path, ended: Mapping[str, Any]) -> None:
    """Leave the configuration and why there is no run, unless there is one."""
    with suppress(ConfigError), hold(folder / LOCK):  # another process runs there
        if parallel.first() and not ((folder / STATUS).exists() and (folder / RECORDS).exists()):
            saved = cfg.copy()
            saved.resume = None
            with suppress(OmegaConfBaseException):  # else it stays as it was given
                OmegaConf.resolve(saved)
            write_config(folder, OmegaConf.to_container(saved), COPIES)  # type: ignore[arg-type]
            write_json(folder / STATUS, {**ended, "step": None})
