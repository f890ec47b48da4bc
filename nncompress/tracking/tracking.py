"""The trackers of a run: each hears what the run observes, and is dropped when it fails."""

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

from nncompress.errors import NNCompressError, one_line, without_user_info
from nncompress.files import read_json, write_json
from nncompress.results.records import STATUS, SUMMARY
from nncompress.results.sweep_folder import SWEEP
from nncompress.tracking.base import About, Tracker

log = logging.getLogger(__name__)

KNOWN = "tracking.json"
"""The file of a run folder with what each tracker needs to go on with a run."""
TAGS = ("solver", "model", "dataset", "compression", "experiment", "seed")


class Tracking:
    """Passes on to its trackers what a run observes; at the end of the block, how the run ended by what it left.

    None of them changes the run: an Exception of a tracker is one warning and drops it, and the global random
    generators are as before after every call.

    Args:
        trackers: by their names, functions that build them: building may fail too.
        settings: of the run by their dotted keys, those that describe what is computed.
        folder: of the run.
    """

    def __init__(
        self, trackers: Mapping[str, Callable[[], Tracker]], settings: Mapping[str, Any], folder: Path
    ) -> None:
        self._builders, self._settings, self._folder = trackers, settings, folder.absolute()
        self._trackers: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._all(self._end)

    def start(self) -> None:
        """Begin with every tracker, or go on where `tracking.json` says."""
        content = read_json(self._folder / KNOWN) or {}
        known = {name: kept for name in self._builders if isinstance(kept := content.get(name), dict)}
        for name, build in self._builders.items():
            with self._guard(name):
                tracker = build()
                if not isinstance(tracker, Tracker):
                    raise TypeError(f"must be an nncompress.tracking.Tracker, found {type(tracker).__name__}")
                self._trackers[name] = tracker
                tags = _tags(self._settings, self._folder)
                known[name] = dict(tracker.start(About(self._folder, self._settings, tags, known.get(name) or {})))
                write_json(self._folder / KNOWN, known)

    def row(self, row: Mapping[Any, Any]) -> None:
        """Pass on a row of the records."""
        figures = {str(key): float(value) for key, value in row.items() if _finite(value) and key != "step"}
        self._all(lambda tracker: tracker.row(int(row["step"]), figures))

    def _end(self, tracker: Tracker) -> None:
        status = read_json(self._folder / STATUS) or {"status": "failed", "reason": None}
        tracker.end(status, read_json(self._folder / SUMMARY) if status["status"] == "done" else None)

    def _all(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._guard(name):
                call(tracker)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Let a failure end the tracker `name`, not the run, and leave everything global as it was."""
        state, numpy_state = random.getstate(), np.random.get_state()
        gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        try:
            with torch.random.fork_rng(gpus), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries about themselves
                yield
        except Exception as error:
            reason = _reason(error, self._trackers.pop(name, None))
            log.warning("tracking.%s is left out from here on: %s", name, reason)
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def _reason(error: Exception, tracker: Tracker | None) -> str:
    said = without_user_info(one_line(error))
    reason = said if isinstance(error, NNCompressError) else f"{type(error).__name__}: {said}"
    if isinstance(error, ImportError) and tracker is not None and tracker.extra is not None:
        return f"it needs what the extra {tracker.extra} installs ({reason}); pip install 'nncompress[{tracker.extra}]'"
    return reason


def _tags(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    tags = {key: str(settings[key]) for key in TAGS if settings.get(key) is not None} | {"folder": str(folder)}
    sweep = next((above for above in folder.parents if (above / SWEEP).is_file()), None)
    return tags if sweep is None else tags | {"sweep": str(sweep)}


def _finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
