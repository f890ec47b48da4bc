"""What a tracker is: a place outside the run folder that hears of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class About:
    """What a tracker hears of a run at its start.

    - folder: of the run, absolute.
    - config: every setting by its dotted key, the options taken under the names of their groups.
    - tags: solver, model, dataset, compression, seed, folder and, in a sweep, sweep (its folder).
    - known: what `start` returned when the run was begun, read back from `tracking.json`; empty for a new run. Whoever
      made the folder may have written it: it is no reason to write where the settings do not say.
    """

    folder: Path
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    known: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the run's folder with that above it: `nnbcd-tt_mlp-digits/2026-01-31_12-00-00-a1b2c3` or `SWEEP/3`."""
        return "/".join(self.folder.parts[-2:])


class Tracker(ABC):
    """A place outside the run folder. The constructor takes settings only; a library is imported in `start`.

    Every method may fail in any way: the run then says so once and goes on without this tracker.
    """

    extra: ClassVar[str | None] = None
    """The extra of this package that installs what the tracker needs."""

    @abstractmethod
    def start(self, about: About) -> Mapping[str, Any]:
        """Begin, or go on with what `about.known` names; return what a resumed run needs to find it again, for JSON."""

    @abstractmethod
    def row(self, step: int, figures: Mapping[str, float]) -> None:
        """Take a row of `records.jsonl`, finite numbers alone; a resumed run first gives those that it kept again."""

    @abstractmethod
    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        """Take the end of the run: the content of `status.json` and, for one that is done, of `summary.json`."""


def final(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the numbers of a summary, each as `final/<key>`."""
    return {f"final/{key}": float(value) for key, value in (summary or {}).items() if isinstance(value, int | float)}
