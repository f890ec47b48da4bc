"""What a sweep consists of: `sweep.json` names its command and every job, each by a key that its settings determine.

How a job stands is told by the `status.json` in its own folder alone. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nncompress.errors import ConfigError
from nncompress.files import hold, read_json, write_json
from nncompress.results.records import STATUS, is_run, require_current

SWEEP, LOCK, STOPPED = "sweep.json", "sweep.lock", "stopped.json"
FORMAT = 1
ENDED = ("done", "pruned", "diverged", "unsupported")
"""What another try would not change."""


@dataclass(frozen=True)
class Job:
    """One job: its folder below that of the sweep, its key, the overrides that set it apart."""

    folder: str
    key: str
    overrides: list[str]


@dataclass(frozen=True)
class Manifest:
    """The words of the command that last ran a sweep, and its jobs in the order of their numbers.

    varied: the keys of which the command that began it gave several values.
    """

    command: list[str]
    jobs: list[Job]
    varied: list[str] = field(default_factory=list)

    def with_job(self, job: Job) -> Manifest:
        """Return the manifest with one job more.

        Raises:
            ConfigError: another job has its folder.
        """
        if any(other.folder == job.folder for other in self.jobs):
            raise ConfigError(
                f"hydra.sweep.subdir must give every job a folder of its own, found '{job.folder}' twice; leave it "
                "out, or put all that is varied into it"
            )
        return replace(self, jobs=[*self.jobs, job])

    def find(self, key: str) -> Job | None:
        """Return the job of this key; None without one."""
        return next((job for job in self.jobs if job.key == key), None)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the sweep in `folder`.

    Raises:
        ConfigError: there is none, or it is damaged.
        CheckpointError: an older version wrote a job.
    """
    path = folder / SWEEP
    if not path.is_file():
        raise ConfigError(f"a sweep's folder holds {SWEEP}, found none in {folder}; check the path")
    try:
        content = json.loads(path.read_bytes())
        format_ = content["format"]
        manifest = Manifest(content["command"], [Job(**job) for job in content["jobs"]], content["varied"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); move its folder away and start the sweep again") from error
    if format_ != FORMAT:
        raise ConfigError(f"{path} has format {format_}, this version reads format {FORMAT}; start the sweep again")
    for job in manifest.jobs:
        if Path(job.folder).is_absolute() or ".." in Path(job.folder).parts:
            raise ConfigError(f"{path} must name folders of the sweep, found '{job.folder}'; start the sweep again")
        require_current(folder / job.folder)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `sweep.json`, whole or not at all."""
    write_json(folder / SWEEP, {"format": FORMAT, **asdict(manifest)})


@contextmanager
def claim_sweep(folder: Path, resumed: bool) -> Iterator[None]:
    """Make and hold the folder of a sweep: nobody else starts or resumes a sweep there.

    Raises:
        ConfigError: another process holds it, or a new sweep would mix with what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"a sweep needs a folder of its own, found another process running one in {folder}; wait for it, or give "
        "another hydra.sweep.dir"
    )
    with hold(folder / LOCK, busy):
        if not resumed and ((folder / SWEEP).exists() or any(is_run(path) for path in folder.iterdir())):
            raise ConfigError(
                f"a sweep needs a folder of its own, found the jobs of another one in {folder}; continue that one with "
                f"sweep.resume={folder}, or give another hydra.sweep.dir"
            )
        yield


def standing(folder: Path) -> str:
    """Return the status of the job in `folder`; `pending` before its first."""
    return str((read_json(folder / STATUS) or {}).get("status", "pending"))
