"""Weights & Biases: files in the run folder for `wandb sync`, or its server at once."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from nncompress.tracking.base import About, Tracker, final

log = logging.getLogger(__name__)


class WandB(Tracker):
    """A run of a W&B project: settings as its config, rows as its history by step, the summary as `final/*`.

    Jobs of a sweep are a group. A resumed run has the same id, one that was moved or copied a new one. Online it goes
    on where the server's history ends; offline it is written whole, into a folder of its own: sync the latest one.

    Args:
        project, entity: where the run belongs.
        mode: `offline` writes files into `wandb/` in the run folder and reaches for no network.
    """

    extra = "wandb"

    def __init__(
        self, *, project: str = "nncompress", entity: str | None = None, mode: Literal["offline", "online"] = "offline"
    ) -> None:
        self._project, self._entity, self._mode = project, entity, mode

    def start(self, about: About) -> dict[str, Any]:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        sweep = about.tags.get("sweep")
        with _keep_exits():
            self._run: Any = wandb.init(
                project=self._project,
                entity=self._entity,
                mode=self._mode,
                dir=about.folder,
                id=_id_on_record(about),
                resume="allow" if self._mode == "online" else None,
                name=about.name,
                group=None if sweep is None else Path(sweep).name,
                settings=wandb.Settings(silent=True, console="off"),
                reinit="create_new",
            )
        settings: Any = self._run.config
        settings.update(dict(about.config) | {"folder": str(about.folder)}, allow_val_change=True)
        self._first = self._run.step
        return {"id": self._run.id, "folder": str(about.folder)}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(figures), step=step)

    def end(self, status: Mapping[str, Any], summary: Mapping[str, Any] | None) -> None:
        self._run.summary.update(final(summary) | {key: status[key] for key in ("status", "reason") if status.get(key)})
        self._run.finish(exit_code=0 if status["status"] == "done" else 1)


def _id_on_record(about: About) -> str | None:
    """Return the id that W&B has of the run in this folder, if one is on record."""
    known = about.known.get("id")
    ours = about.known.get("folder") == str(about.folder)
    if ours and isinstance(known, str) and re.fullmatch(r"\w{1,64}", known, re.ASCII):
        return known
    if about.known:
        log.warning("tracking.wandb: the run is a new one there, tracking.json says nothing of one in %s", about.folder)
    return None


@contextmanager
def _keep_exits() -> Iterator[None]:
    """Put back two functions in whose place W&B puts, and leaves, its own."""
    kept = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = kept
