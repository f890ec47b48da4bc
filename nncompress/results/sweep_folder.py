"""What a sweep consists of: `sweep.json` names its command and every job, each by a key that its settings determine.

How a job stands is told by the `status.json` in its own folder alone. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nncompress.errors import ConfigError, printable
from nncompress.files import hold, read_file, read_json, write_json
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
        ConfigError: there is none, it is damaged, or it names a folder outside the sweep.
        CheckpointError: an older version wrote a job.
    """
    path = folder / SWEEP
    try:
        content = json.loads(read_file(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        shown = printable(str(folder))
        raise ConfigError(f"a sweep's folder holds {SWEEP}, found none in {shown}; check the path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"it cannot be read: {type(error).__name__}") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise _damaged(path, "it has no format")
    if content["format"] != FORMAT:
        raise ConfigError(
            f"{printable(str(path))} has format {content['format']!r:.80}, this version reads format {FORMAT}; start "
            "the sweep again"
        )
    if set(content) != {"format", *(each.name for each in fields(Manifest))}:
        raise _damaged(path, "other fields are in it than belong there")
    manifest = Manifest(
        _texts(path, "command", content["command"]),
        [_job(path, job) for job in _list(path, "jobs", content["jobs"])],
        _texts(path, "varied", content["varied"]),
    )
    for name in ("folder", "key"):
        values = [getattr(job, name) for job in manifest.jobs]
        if len(set(values)) < len(values):
            raise _damaged(path, f"two jobs have the same {name}")
    for job in manifest.jobs:
        require_within(folder, job.folder)
        require_current(folder / job.folder)
    return manifest


def _job(path: Path, content: Any) -> Job:
    """Return a job of the manifest in the file `path`. Raises ConfigError."""
    if not isinstance(content, dict) or set(content) != {each.name for each in fields(Job)}:
        raise _damaged(path, "a job has other fields than belong there")
    folder, key = _texts(path, "folder and key", [content["folder"], content["key"]])
    return Job(folder, key, _texts(path, "overrides", content["overrides"]))


def _texts(path: Path, name: str, values: Any) -> list[str]:
    """Return the list of texts in a field; lone surrogates and null characters are no text. Raises ConfigError."""
    for value in _list(path, name, values):
        if not isinstance(value, str) or "\0" in value or value.encode(errors="replace").decode() != value:
            raise _damaged(path, f"{name} must hold texts, found {value!r:.80}")
    return list(values)


def _list(path: Path, name: str, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise _damaged(path, f"{name} must be a list, found {values!r:.80}")
    return values


def _damaged(path: Path, wrong: str) -> ConfigError:
    return ConfigError(f"{printable(str(path))} is damaged ({wrong}); move its folder away and start the sweep again")


def require_within(sweep: Path, folder: str) -> None:
    """Refuse the folder of a job that is not below that of its sweep, be it by a link.

    Raises:
        ConfigError: it is elsewhere, or cannot be a folder.
    """
    is_below = False
    with suppress(OSError, ValueError):  # a name that is too long or none, a file in its place
        place = Path(os.path.realpath(sweep / folder))
        with suppress(FileNotFoundError):
            os.scandir(place).close()
        is_below = Path(os.path.realpath(sweep)) in place.parents
    if not is_below or os.path.isabs(folder) or ".." in Path(folder).parts:
        raise ConfigError(
            f"the jobs of a sweep need folders below {printable(str(sweep))}, found '{printable(folder)}'; give "
            f"another hydra.sweep.subdir, or start the sweep again where {SWEEP} names it"
        )


def refuse_links(folder: Path) -> None:
    """Refuse a folder that is to go on with a link that leads out of it: what is written there would land elsewhere.

    So is what is neither a file nor a folder: whoever opens a pipe waits, and a device has no end. Submitit's own
    files, of which nothing is written again, may lead to where the folder was before it was moved.

    Raises:
        ConfigError: with the first of them.
    """
    whole = Path(os.path.realpath(folder))
    for place, folders, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            if os.path.islink(path) and whole not in Path(os.path.realpath(path)).parents:
                raise ConfigError(
                    f"what goes on must hold its files itself, found the link {printable(path)}; put there what it "
                    "leads to"
                )
            if not (os.path.isfile(path) or os.path.isdir(path)) and os.path.exists(path):
                raise ConfigError(
                    f"what goes on must hold files and folders, found a pipe or device, {printable(path)}; remove it"
                )
        folders[:] = [name for name in folders if name != ".submitit"]
        folders[:] = [name for name in folders if name != "wandb"]  # W&B keeps such links there, and makes new folders


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
    shown = printable(str(folder))
    busy = (
        f"a sweep needs a folder of its own, found another process running one in {shown}; wait for it, or give "
        "another hydra.sweep.dir"
    )
    with hold(folder / LOCK, busy):
        if not resumed and ((folder / SWEEP).exists() or any(is_run(path) for path in folder.iterdir())):
            raise ConfigError(
                f"a sweep needs a folder of its own, found the jobs of another one in {shown}; continue that one with "
                f"sweep.resume={shown}, or give another hydra.sweep.dir"
            )
        yield


def stop_sweep(folder: Path, job: str, reason: str) -> None:
    """Let no other job of the sweep in `folder` begin."""
    write_json(folder / STOPPED, {"job": job, "reason": reason})


def standing(folder: Path) -> str:
    """Return the status of the job in `folder`; `pending` before its first."""
    return str((read_json(folder / STATUS) or {}).get("status", "pending"))
