"""A run's folder: one process at a time works in it, and its status tells how the run ended. Imports no torch."""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nncompress.errors import ConfigError, Diverged, NNCompressError, Pruned, Unsupported, without_user_info
from nncompress.files import UNFINISHED, hold, remove_unfinished, write_json, write_text
from nncompress.results.records import CONFIG, FORMAT, LOCK, RECORDS, SETTINGS, STATUS, flatten, read_status

log = logging.getLogger(__name__)

CHECKPOINT = Path("checkpoints") / "last.pt"
KINDS: dict[type[BaseException], str] = {Unsupported: "unsupported", Diverged: "diverged", Pruned: "pruned"}


@contextmanager
def claim_run(folder: Path, resumed: bool) -> Iterator[None]:
    """Hold the folder for a run; what killed processes left half written in it is removed.

    Raises:
        ConfigError: another process runs in it, or it holds another run's records.
    """
    busy = (
        f"a run needs a folder of its own, found another process running in {folder}; wait for it, or give another "
        "hydra.run.dir"
    )
    with hold(folder / LOCK, busy):
        if not resumed and (folder / RECORDS).exists():
            raise ConfigError(
                f"a run needs a folder of its own, found the records of another run in {folder}; "
                f"continue that one with resume={folder}, or give another hydra.run.dir"
            )
        remove_unfinished(folder.rglob(UNFINISHED))
        yield


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into a sentence. Raises NNCompressError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise NNCompressError(
            f"the disk that holds {folder} is full; free space, then continue with resume={folder} if it holds "
            f"{CONFIG}, else start the run again"
        ) from error


@contextmanager
def status_of(folder: Path, resumed: bool) -> Iterator[dict[str, Any]]:
    """Keep `status.json` true: running inside, then done or what ended the run, with its traceback in the log.

    A run that ended and cannot be taken up again (`resumed`, no step restored) keeps the status it had.
    """
    before = read_status(folder) if resumed else None
    status: dict[str, Any] = {"status": "running", "reason": None, "traceback": None, "step": None}
    write_json(folder / STATUS, status)
    try:
        yield status
        status["status"] = "done"
    except (SystemExit, KeyboardInterrupt):
        status |= {"status": "interrupted", "reason": "stopped by a signal; continue with resume=<this folder>"}
        log.warning("interrupted at step %s; continue with: nncompress train resume=%s", status["step"], folder)
        raise
    except BaseException as error:
        status |= end_by(error)
        if before is not None and before["step"] is not None and status["step"] is None:
            status = before
        log.error("%s", error, exc_info=error)
        raise
    finally:
        with suppress(OSError):  # a full disk must not hide what went wrong
            write_json(folder / STATUS, status)


def end_by(error: BaseException) -> dict[str, Any]:
    """Return what `status.json` says of an error that ended a run: status, reason, last line of the traceback."""
    last_line = without_user_info(traceback.format_exception_only(error)[-1].strip())
    reason = without_user_info("; ".join(str(error).splitlines())) or last_line
    return {"status": KINDS.get(type(error), "failed"), "reason": reason, "traceback": last_line}


def write_settings(folder: Path, config: Mapping[str, Any], left_out: Collection[str] = ()) -> None:
    """Write `settings.json`: every setting of a configuration in plain containers by its dotted key (`flatten`)."""
    write_json(folder / SETTINGS, {"format": FORMAT, "settings": flatten(config, left_out)})


def write_config(folder: Path, config: Mapping[str, Any], left_out: Collection[str] = ()) -> None:
    """Write a configuration in plain containers as `settings.json`, then as `config.yaml`.

    In this order, since a folder with `config.yaml` alone is one of an older version.
    """
    from omegaconf import OmegaConf

    write_settings(folder, config, left_out)
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def stamp() -> str:
    """Return `<date>_<time>-<6 hex>`: a folder's name that two runs of the same second do not share."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.urandom(3).hex()}"
