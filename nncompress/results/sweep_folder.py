"""What a sweep consists of: `sweep.json` names its command and every job, each by a key that its settings determine.

How a job stands is told by the `status.json` in its own folder alone. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nncompress import files
from nncompress.errors import ConfigError
from nncompress.files import read_json, write_json
from nncompress.results.records import STATUS, is_run

SWEEP, LOCK, STOPPED = "sweep.json", "sweep.lock", "stopped.json"
FORMAT = 1
NOT_IN_KEY = (
    "choices", "resume", "sweep", "search", "tracking", "allow", "data", "data_dir", "reference_dir",
    "checkpoint_every",
)  # fmt: skip
"""Parts of a configuration that say how and where a job is run, not what it computes."""
PLACES = ("root", "download")
"""Keys of a data set that say where it is found."""
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
    """The words of the command that began a sweep, and its jobs in the order of their numbers."""

    command: list[str]
    jobs: list[Job]

    def with_job(self, job: Job) -> Manifest:
        """The manifest with one job more.

        Raises:
            ConfigError: another job has its folder.
        """
        if any(other.folder == job.folder for other in self.jobs):
            raise ConfigError(
                f"hydra.sweep.subdir must give every job a folder of its own, found '{job.folder}' twice; leave it "
                "out, or put all that is varied into it"
            )
        return Manifest(self.command, [*self.jobs, job])

    def find(self, key: str) -> Job | None:
        """The job of this key."""
        return next((job for job in self.jobs if job.key == key), None)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the sweep in `folder`.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = folder / SWEEP
    if not path.is_file():
        raise ConfigError(f"a sweep's folder holds {SWEEP}, found none in {folder}; check the path")
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
        manifest = Manifest(content["command"], [Job(**job) for job in content["jobs"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); move its folder away and start the sweep again") from error
    if found != FORMAT:
        raise ConfigError(f"{path} has format {found}, this version reads format {FORMAT}; start the sweep again")
    for job in manifest.jobs:
        if Path(job.folder).is_absolute() or ".." in Path(job.folder).parts:
            raise ConfigError(f"{path} must name folders of the sweep, found '{job.folder}'; start the sweep again")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `sweep.json`, whole or not at all."""
    write_json(folder / SWEEP, {"format": FORMAT, **asdict(manifest)})


@contextmanager
def held(folder: Path, resumed: bool) -> Iterator[None]:
    """Make and hold the folder of a sweep: nobody else starts or resumes a sweep there. The hold ends with the process.

    Raises:
        ConfigError: another process holds it, or a new sweep would mix with what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as claim:
        try:
            claim.enter_context(files.held(folder / LOCK))
        except BlockingIOError as error:
            raise ConfigError(
                f"a sweep needs a folder of its own, found another process running one in {folder}; wait for it, or "
                "give another hydra.sweep.dir"
            ) from error
        if not resumed and ((folder / SWEEP).exists() or any(is_run(path) for path in folder.iterdir())):
            raise ConfigError(
                f"a sweep needs a folder of its own, found the jobs of another one in {folder}; continue that one with "
                f"sweep.resume={folder}, or give another hydra.sweep.dir"
            )
        yield


def key_of(cfg: DictConfig) -> str:
    """12 hexadecimal digits that follow from all settings on which a job's results depend, and from no place."""
    tree = {key: value for key, value in settings_of(cfg).items() if key not in NOT_IN_KEY}
    if isinstance(tree.get("dataset"), Mapping):
        tree["dataset"] = {name: value for name, value in tree["dataset"].items() if name not in PLACES}
    text = json.dumps(tree, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """The configuration without Hydra's part as plain containers, unresolved where the job will say what is missing."""
    return {str(key): _plain(cfg, str(key)) for key in cfg if key != "hydra"}


def standing(folder: Path) -> str:
    """The status of the job in `folder`; `pending` before its first."""
    return str((read_json(folder / STATUS) or {}).get("status", "pending"))


def _plain(cfg: DictConfig, key: str) -> Any:
    """A part of the configuration as plain containers; unresolved where the job itself will say what is missing."""
    try:
        value = cfg[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, key))
