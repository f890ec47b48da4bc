"""Jobs whose worker process died (killed, or out of memory): they are tried again, at last alone, and the others go on.

A launcher that runs jobs in other processes raises when one of them dies, and ends the others or leaves them running.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig

from nncompress.files import is_held, write_json
from nncompress.results.records import LOCK, STATUS, read_status
from nncompress.results.sweep_folder import ENDED, Job, standing, stop_sweep

log = logging.getLogger(__name__)

T = TypeVar("T")

DEATHS = {
    "ray.WorkerCrashedError", "ray.OutOfMemoryError", "ray.NodeDiedError", "ray.ObjectLostError",
    "submitit.UncompletedJobError",
}  # fmt: skip
"""What Ray and submitit raise for a worker that is gone; joblib's error is one of `concurrent.futures`."""
TOGETHER = 2
"""At how many deaths a job may have been running before it runs alone: most are ended by what is beside them."""


def launch_all(
    jobs: Sequence[Job], launch: Callable[[Sequence[Job]], Sequence[T]], sweep: Path, settings: DictConfig
) -> list[T]:
    """Return what `launch` returns of the jobs of a sweep, whichever of its workers die.

    A job that was running when a worker died is tried again, first with the others, then alone; when it dies once more,
    and `sweep.retries` times after that, it has failed.

    Args:
        sweep: the folder.
        settings: `sweep` of the configuration.
    """
    before = {job.folder: _written(sweep / job.folder) for job in jobs}
    deaths: Counter[str] = Counter()
    results: list[T] = []
    left = {job.folder: job for job in jobs}
    while left:
        batch = [job for job in left.values() if deaths[job.folder] < TOGETHER] or [*left.values()][:1]
        try:
            results += launch(batch)
        except Exception as error:
            if not is_death(error):
                raise
            cut = [job.folder for job in batch if not _has_ended(sweep / job.folder, before[job.folder])]
            deaths.update([folder for folder in cut if _was_running(sweep / folder)] or cut)
            failed = [folder for folder in cut if deaths[folder] > TOGETHER + settings.retries]
            going = len(cut) - len(failed)
            log.warning("a worker process died (%s): of %d jobs %d go on", type(error).__name__, len(batch), going)
            for folder in failed:
                _record_death(sweep / folder)
                if settings.on_error == "stop":
                    stop_sweep(sweep, folder, "its worker process died")
                    return results
        else:
            cut = failed = []
        for job in batch:
            if job.folder not in cut or job.folder in failed:
                del left[job.folder]
    return results


def is_death(error: Exception) -> bool:
    """Tell whether a launcher's error says that a worker process is gone."""
    kind = type(error)
    return isinstance(error, BrokenExecutor) or f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in DEATHS


def _has_ended(folder: Path, before: int | None) -> bool:
    """Tell whether a job has ended, or failed since its status was written `before`."""
    return standing(folder) in ENDED or (standing(folder) == "failed" and _written(folder) != before)


def _was_running(folder: Path) -> bool:
    """Tell whether a job was begun and nobody runs it any more."""
    return standing(folder) in ("running", "interrupted") and not is_held(folder / LOCK)


def _written(folder: Path) -> int | None:
    """Return when the status of a job was written, in nanoseconds; None when there is none."""
    path = folder / STATUS
    return path.stat().st_mtime_ns if path.exists() else None


def _record_death(folder: Path) -> None:
    """Write that a job has failed with its worker."""
    reason = (
        "its worker process died again, running alone (killed, or out of memory); give it more memory or make it "
        "smaller, then continue the sweep"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STATUS, {**read_status(folder), "status": "failed", "reason": reason, "traceback": None})
