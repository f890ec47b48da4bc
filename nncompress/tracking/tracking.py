"""The trackers of a run: told what it observes, and dropped when they fail."""

from __future__ import annotations

import logging
import math
import numbers
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from omegaconf import DictConfig

from nncompress.config.build import build, resolve
from nncompress.errors import one_line
from nncompress.files import read_json, write_json
from nncompress.results.query import flatten
from nncompress.results.records import STATUS, SUMMARY
from nncompress.tracking.base import About, Tracker

log = logging.getLogger(__name__)

KNOWN = "tracking.json"
"""The file of a run folder with what each tracker needs to go on with a run."""
TAGS = ("solver", "model", "dataset", "compression", "experiment", "seed")
NOT_TOLD = ("tracking", "sweep", "search", "resume", "allow")
"""Parts of a configuration that do not describe what is computed."""
SWEEP = "sweep.json"


class Tracking:
    """What a run tells the trackers of its configuration; within it, their end follows from what the run leaves.

    None of them changes the run: an Exception of a tracker is one warning and drops it, and the global random
    generators are as before after every call.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self._cfg, self._folder = cfg, folder.absolute()
        self._trackers: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._all(self._end)

    def start(self) -> None:
        """Begin with every tracker that the configuration names, or go on where `tracking.json` says."""
        if not self._cfg.tracking:
            return
        tree = {key: value for key, value in resolve(self._cfg).items() if key not in NOT_TOLD}
        flat = flatten(tree)
        known = read_json(self._folder / KNOWN) or {}
        for name, node in self._cfg.tracking.items():
            with self._spared(str(name)):
                tracker = build(node)
                if not isinstance(tracker, Tracker):
                    raise TypeError(f"must be an nncompress.tracking.Tracker, found {type(tracker).__name__}")
                self._trackers[str(name)] = tracker
                about = About(self._folder, flat, _tags(flat, self._folder), known.get(str(name)) or {})
                known[str(name)] = dict(tracker.start(about))
                write_json(self._folder / KNOWN, known)

    def row(self, row: Mapping[Any, Any]) -> None:
        """Tell a row of the records."""
        figures = {str(key): float(value) for key, value in row.items() if _finite(value) and key != "step"}
        self._all(lambda tracker: tracker.row(int(row["step"]), figures))

    def _end(self, tracker: Tracker) -> None:
        status = read_json(self._folder / STATUS) or {"status": "failed", "reason": None}
        tracker.end(status, read_json(self._folder / SUMMARY) if status["status"] == "done" else None)

    def _all(self, told: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._spared(name):
                told(tracker)

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Within it a failure ends the tracker `name`, not the run, and nothing global is changed."""
        drawn, numpy_drawn = random.getstate(), np.random.get_state()
        gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        try:
            with torch.random.fork_rng(gpus), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries about themselves
                yield
        except Exception as error:
            log.warning(
                "tracking.%s is left out from here on: %s", name, _reason(error, self._trackers.pop(name, None))
            )
        finally:
            random.setstate(drawn)
            np.random.set_state(numpy_drawn)


def _reason(error: Exception, tracker: Tracker | None) -> str:
    said = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, ImportError) and tracker is not None and tracker.extra is not None:
        return f"it needs what the extra {tracker.extra} installs ({said}); pip install 'nncompress[{tracker.extra}]'"
    return said


def _tags(flat: Mapping[str, Any], folder: Path) -> dict[str, str]:
    tags = {key: str(flat[key]) for key in TAGS if flat.get(key) is not None} | {"folder": str(folder)}
    sweep = next((above for above in folder.parents if (above / SWEEP).is_file()), None)
    return tags if sweep is None else tags | {"sweep": str(sweep)}


def _finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
