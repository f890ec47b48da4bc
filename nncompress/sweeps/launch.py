"""`nncompress train`: Hydra around `experiment.run`, for one run, a sweep, or a run that is taken up again."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress import parallel
from nncompress.config.allow import check
from nncompress.config.overrides import retarget, sentence
from nncompress.config.schema import CHOICES, register
from nncompress.errors import ConfigError, NNCompressError, printable
from nncompress.files import exit_on_signals
from nncompress.results.records import run_folders
from nncompress.results.run_folder import stamp
from nncompress.results.sweep_folder import ENDED, SWEEP, read_manifest, standing
from nncompress.sweeps import jobs
from nncompress.sweeps.combinations import settings_of
from nncompress.sweeps.jobs import short
from nncompress.sweeps.recorded import with_recorded
from nncompress.sweeps.saved import resume_task
from nncompress.sweeps.search import Search
from nncompress.sweeps.sweeper import SWEPT, Jobs
from nncompress.sweeps.trial import STORE, require_optuna

log = logging.getLogger(__name__)

QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Overrides of Hydra for the processes of torchrun that write nothing."""

# At import, because a launcher may run the jobs in other processes. Cached: one stamp for each configuration.
OmegaConf.register_new_resolver("nncompress.stamp", stamp, use_cache=True, replace=True)


def drop_tracebacks() -> Callable[[logging.LogRecord], bool]:
    """Return a filter for the console: what carries a traceback goes to `run.log` alone."""
    return lambda record: record.exc_info is None


def train(arguments: list[str]) -> int:
    """Run Hydra on the words after `train`; return the exit code.

    Raises:
        NNCompressError: as with `under_hydra`.
    """

    def prepare() -> tuple[TaskFunction, list[str]]:
        words = with_recorded(arguments)
        return resume_task(words, jobs.run_single) or (job, words)

    return under_hydra(prepare)


def search(arguments: list[str]) -> int:
    """Run the words after `search` as those of a sweep whose jobs Optuna proposes; return the exit code.

    Raises:
        NNCompressError: Optuna is not installed, or as with `under_hydra`.
    """
    require_optuna()
    if any(word.startswith("sweep.resume=") for word in arguments):  # the rest is on record
        return train(arguments)
    return train(["-m", "hydra/sweeper=nncompress_search", "validation=0.1", *arguments])


def under_hydra(prepare: Callable[[], tuple[TaskFunction, list[str]]]) -> int:
    """Run Hydra on the task and the words that `prepare` returns; return the exit code.

    Of the processes of torchrun the first writes the folder, says what there is to say and has the exit code.

    Raises:
        NNCompressError: the configuration is refused, the output folder cannot be written, or a single run failed.
    """
    register()
    if parallel.first():
        code = _run_hydra(prepare)
        return _finish_sweep(*SWEPT.popitem(), code) if SWEPT else code
    logging.disable()
    with TemporaryDirectory() as nowhere, suppress(NNCompressError), redirect_stdout(StringIO()):
        code = _run_hydra(prepare, (*QUIET, f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"))
        return code if code == NNCompressError.exit_code else 0
    return 0


def _run_hydra(prepare: Callable[[], tuple[TaskFunction, list[str]]], more: Sequence[str] = ()) -> int:
    """Run Hydra on what `prepare` returns and `more` words; return the exit code."""
    SWEPT.clear()
    for sweeper in (Jobs, Search):
        Plugins.instance().register(sweeper)
    task, words = prepare()
    arguments = [*words, *more]
    try:
        with _lend_process(arguments):
            hydra.main(version_base="1.3", config_path="pkg://nncompress.conf", config_name="config")(task)()
    except SystemExit as stop:
        if isinstance(stop.__cause__, NNCompressError):
            raise stop.__cause__ from None
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error.__cause__, OSError):  # of the log file
            raise _unwritable(error.__cause__) from error
        raise ConfigError(sentence(error, arguments)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error
    return 0


def job(cfg: DictConfig) -> None:
    """Do the run, or the job of a sweep, that Hydra has composed."""
    settings = HydraConfig.get()
    if cfg.sweep.resume is not None:  # whatever is made of words on record, in whichever process
        check(settings_of(cfg), list(cfg.allow), printable(str(Path(settings.sweep.dir, SWEEP))))
    cfg.choices = {group: choice for group in CHOICES if (choice := settings.runtime.choices.get(group))}
    retarget(cfg, settings.overrides.task)
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        jobs.run_in_sweep(cfg, folder, Path(settings.sweep.dir).absolute())
    else:
        jobs.run_single(cfg, folder)


def _finish_sweep(folder: Path, ours: Sequence[str], code: int) -> int:
    """Write the aggregated tables and plots of whatever the sweep has left; return the sweep's exit code.

    ours: the folders of the jobs that the words of this command make. Others, of earlier words, are no failure of it.
    """
    if not run_folders([folder]):
        return code
    from nncompress.report import write_sweep_report

    jobs.write_missing_reports(folder)
    report = write_sweep_report(folder)
    for path in report.paths:
        log.info("wrote %s", short(path))
    failed = len(report.failed)
    if failed:
        ends = report.failed["traceback"].fillna(report.failed["reason"])
        shown = report.failed.drop(columns=["traceback", "reason"]).assign(ended=ends).dropna(axis=1, how="all")
        log.error("%d of %d jobs are not done:\n%s", failed, failed + report.done, shown.to_markdown(index=False))
    if (folder / STORE).exists():  # settings that do not serve are what a search is about
        if code:
            log.error("the search was stopped; continue with: nncompress search sweep.resume=%s", short(folder))
        return code or int("failed" in report.failed["status"].to_list())
    stands = {job.folder: standing(folder / job.folder) for job in read_manifest(folder).jobs}
    waiting = [name for name, status in stands.items() if status not in ENDED]
    earlier = [name for name in waiting if name not in ours]
    if len(waiting) > len(earlier):
        count = len(waiting) - len(earlier)
        log.error("%d jobs are to run; continue with: nncompress train sweep.resume=%s", count, short(folder))
    if earlier:
        begun = [name for name in earlier if stands[name] != "pending"][:1]
        how = f", or continue each that was begun: nncompress train resume={short(folder / begun[0])}" if begun else ""
        log.warning("%d jobs of earlier words remain: give those words again%s", len(earlier), how)
    return code or int(any(stands[name] != "done" for name in ours))


def _unwritable(error: OSError) -> NNCompressError:
    return NNCompressError(
        f"cannot write the output folder {error.filename}: {error.strerror}; "
        "give another one with hydra.run.dir=... (hydra.sweep.dir=... for a sweep)"
    )


@contextmanager
def _lend_process(arguments: list[str]) -> Iterator[None]:
    """Lend Hydra what it takes from the process: the command line, whether errors are raised; SIGTERM is an exit."""
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # A run whose console has gone (`| head`) goes on without complaining about every line.
    logging.raiseExceptions = False
    sys.argv = ["nncompress", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with exit_on_signals():
            yield
    finally:
        GlobalHydra.instance().clear()
        logging.raiseExceptions = True
        sys.argv, full_error = before
        del os.environ["HYDRA_FULL_ERROR"]
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
