"""TensorBoard: event files in the run folder, or in a folder for all runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncompress.tracking.base import About, Tracker, final

log = logging.getLogger(__name__)

FLUSH = 5
"""Seconds after which an event is in the file at the latest."""
COMPARED = ("accuracy/test", "ratio/params", "ratio/bits")
"""The figures beside the settings in TensorBoard's table of runs."""


class TensorBoard(Tracker):
    """Rows as scalars by step, settings as text and in the table of runs (HPARAMS), the summary as `final/*`.

    A resumed run writes its rows anew into the same folder and tells TensorBoard to forget the earlier ones.

    Args:
        folder: where runs go, each in a folder of its own name; None is `tensorboard/` in the run folder.
    """

    extra = "tensorboard"

    def __init__(self, *, folder: str | None = None) -> None:
        self._folder = folder
        self._step = 0
        self._writer: Any = None

    def start(self, about: About) -> dict[str, Any]:
        from torch.utils import tensorboard

        self._tensorboard: Any = tensorboard
        self._config = about.config
        inside = about.folder / "tensorboard" if self._folder is None else Path(self._folder).absolute() / about.name
        self._path = str(inside)
        if about.known.get("folder", self._path) != self._path:
            log.warning("tracking.tensorboard: the run is written anew into %s", self._path)
        if not inside.exists():
            self._open(None)
        return {"folder": self._path}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is None:
            self._open(step)
        for key, value in figures.items():
            self._writer.add_scalar(key, value, step)
        self._step = step

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        if self._writer is None:
            return
        for key, value in final(summary).items():
            self._writer.add_scalar(key, value, self._step)
        self._writer.add_text("status", ": ".join(str(status[key]) for key in ("status", "reason") if status.get(key)))
        self._writer.close()

    def _open(self, forget_from: int | None) -> None:
        """Open a new event file; what earlier ones hold of the step `forget_from` and later is not shown any more."""
        self._writer = self._tensorboard.SummaryWriter(self._path, purge_step=forget_from, flush_secs=FLUSH)
        lines = (f"    {key}: {value}" for key, value in self._config.items())
        self._writer.add_text("config", "\n".join(lines))
        plain = {key: value for key, value in self._config.items() if isinstance(value, bool | int | float | str)}
        for summary in self._tensorboard.summary.hparams(plain, dict.fromkeys(COMPARED, 0.0)):
            self._writer.file_writer.add_summary(summary)
