"""How a run shows where it is: by a bar on a terminal, by plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINE_EVERY = 2.0
"""Seconds between two log lines."""


class ProgressLog:
    """Show step, objective, test accuracy and time left, from step `first` to `last`, while entered."""

    def __init__(self, first: int, last: int, *, shown: bool = True) -> None:
        self._first, self._last = first, last
        self._started = time.monotonic()
        self._last_line = -LINE_EVERY
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._last, completed=self._first)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: Mapping[str, float] | None) -> None:
        """Show that `step` is done, and the figures of its row when it was observed."""
        if self._bar is not None:
            text = {} if row is None else {"description": _figures(row)}
            self._bar.update(self._task, completed=step, **text)  # type: ignore[arg-type]
        elif row is not None:
            now = time.monotonic() - self._started
            if now - self._last_line >= LINE_EVERY or step == self._last:
                self._last_line, done = now, step - self._first
                left = f"{now / done * (self._last - step):.0f} s left" if done > 0 else "started"
                log.info("step %d/%d  %s  %s", step, self._last, _figures(row), left)


def _figures(row: Mapping[str, float]) -> str:
    parts = []
    if "objective" in row:
        parts.append(f"objective {row['objective']:.5g}")
    if "accuracy/test" in row:
        parts.append(f"test accuracy {100 * row['accuracy/test']:.2f} %")
    return "  ".join(parts)
