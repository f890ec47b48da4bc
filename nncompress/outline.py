"""A run as it is listed and compared: status, figures and settings, read when they are asked for. Imports no pandas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nncompress.records import CONFIG, RECORDS, STATUS, SUMMARY, read_config, read_json, read_last_row, read_status
from nncompress.run_folder import running

GROUPS = ("solver", "model", "dataset", "compression")
CHOICES = "choices"
COPIES = ("solver.constraint",)
"""Parts of a config that repeat others."""
RECORDED = {"loss", "accuracy", "ratio", "sparsity", "gap"}
FINAL_NAMES = {"step": "steps", "seconds": "seconds/total", "objective": "objective/final"}
DETAILS = ("tasks", "channels", "factors", "one_shot", "round_to/changed")
"""Keys of a summary that hold lists: for the tables of one run."""


@dataclass(frozen=True)
class Outline:
    """A run's folder, and what it holds."""

    folder: Path

    @cached_property
    def status(self) -> dict[str, Any]:
        """What `status.json` says, with the status `killed` for a run that never came to tell how it ended."""
        found = read_status(self.folder)
        return found | {"status": state(self.folder, found)}

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """`summary.json`; None when the run has not ended."""
        return read_json(self.folder / SUMMARY)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The keys of the summary; of a run that has not ended what its last record knows of them."""
        summary = self.summary
        return figures_of(read_last_row(self.folder / RECORDS)) if summary is None else summary

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every dotted key of the configuration."""
        return flatten(read_config(self.folder / CONFIG))

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The options taken from the groups, from the configuration; and the seed, which is asked for as often."""
        return flatten(read_config(self.folder / CONFIG, CHOICES, "seed"))

    @cached_property
    def date(self) -> str | None:
        """When the run ended, or began if it has not: the status file's time, in local time."""
        try:
            written = (self.folder / STATUS).stat().st_mtime
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M:%S")

    def knows(self, key: str) -> bool:
        """Whether the run has the key at all, if only with the value null."""
        return key in self._whole(key)

    def get(self, key: str) -> Any:
        """The value of folder, date, a key of the status, a figure, a group or a dotted key; None where unknown."""
        return self._whole(key).get(key)

    def _whole(self, key: str) -> Mapping[str, Any]:
        """What holds the key, looked for in the order of its cost: the long configuration last, in part."""
        if key in ("folder", "date"):
            return {"folder": str(self.folder), "date": self.date}
        if key in self.status:
            return self.status
        if key in self.figures:
            return self.figures
        return self.choices if "." not in key and key in self.choices else self._part(key)

    def _part(self, key: str) -> dict[str, Any]:
        if key not in self._parts:
            self._parts[key] = flatten(read_config(self.folder / CONFIG, key))
        return self._parts[key]

    @cached_property
    def _parts(self) -> dict[str, dict[str, Any]]:
        return {}


def state(folder: Path, status: Mapping[str, Any]) -> str:
    """The status of a run, `killed` for one that is said to be running while nobody holds its folder."""
    said = str(status["status"])
    return "killed" if said == "running" and not running(folder) else said


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a record knows of the keys of a summary, under their names there."""
    known = {key: value for key, value in row.items() if value is not None}
    kept = {key: value for key, value in known.items() if key.split("/")[0] in RECORDED}
    return kept | {ends: known[key] for key, ends in FINAL_NAMES.items() if key in known}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a config; lists become text, and the options taken stand under the bare name of their group."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if f"{prefix}{key}" in COPIES:
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list) else value
    chosen = {key.removeprefix("choices."): value for key, value in flat.items() if key.startswith("choices.")}
    return {key: value for key, value in flat.items() if not key.startswith("choices.")} | chosen
