"""The tables that only the page has: every job of a sweep, those that are not done, settings, what it was made with."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.files import read_json
from nncompress.report.collect import failures, final, setting_of, short_names
from nncompress.report.sweep.tables import MEASURES
from nncompress.report.tables import Table, known
from nncompress.report.text import number, setting, value_text
from nncompress.results.query import flatten, state
from nncompress.results.records import Run

MOST_VALUES = 3


def jobs_table(folder: Path, runs: Sequence[Run], keys: Sequence[str]) -> Table:
    """One row per job, whatever became of it."""
    names = short_names(keys)
    raw, shown = [], []
    for run in runs:
        found, taken = final(run), setting_of(run, keys)
        job, status = str(run.folder.relative_to(folder)), state(run.folder, run.status)
        measured = {key: found.get(key) for key, _, _ in MEASURES}
        seed = found.get("seed")
        raw.append({"job": job, "status": status} | taken | {"seed": seed, "steps": found.get("steps")} | measured)
        shown.append(
            {"job": job, "status": status}
            | {names[key]: setting(taken[key]) for key in keys}
            | {"seed": setting(seed), "steps": number(found.get("steps"))}
            | {title: form(measured[key]) for key, title, form in MEASURES}
        )
    notes = ["Figures of a job that has not ended are those of its last record."] if _unfinished(runs) else []
    return Table("jobs", f"All {len(runs)} jobs", pd.DataFrame(raw), known(pd.DataFrame(shown)), notes)


def failures_table(folder: Path, runs: Sequence[Run], keys: Sequence[str]) -> Table | None:
    """The jobs that are not done and why; None when all are."""
    frame = failures(runs)
    if frame.empty:
        return None
    jobs = [str(run.folder.relative_to(folder)) for run in runs if run.status["status"] != "done"]
    shown = frame.assign(job=jobs).rename(columns=short_names(keys) | {"traceback": "traceback, last line"})
    return Table("failures", f"Not done: {len(frame)} of {len(runs)} jobs", frame, known(shown.map(setting)))


def settings_table(runs: Sequence[Run]) -> Table | None:
    """The settings that all runs share, with the values of the others where they are few; None without a config."""
    configs = [flatten(run.config) for run in runs if run.config]
    return _values("settings", "Settings", "key of config.yaml", configs)


def environment_table(runs: Sequence[Run]) -> Table | None:
    """Command, versions and hardware; None where no run has them on record."""
    found = [read_json(run.folder / "environment.json") for run in runs]
    plain = [
        flatten(content | {"command": shlex.join(map(str, content.get("command") or []))})
        for content in found
        if content is not None
    ]
    return _values("environment", "Made with", "key of environment.json", plain)


def _values(name: str, title: str, head: str, found: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row per key: the value of all, or the values there are."""
    if not found:
        return None
    keys = dict.fromkeys(key for content in found for key in content)
    rows = [(key, _several([content.get(key) for content in found])) for key in keys]
    frame = pd.DataFrame(rows, columns=[head, "value"])
    return Table(name, title, frame, frame)


def _several(values: Sequence[Any]) -> str:
    different = list(dict.fromkeys("null" if value is None else value_text(value) for value in values))
    if len(different) <= MOST_VALUES:
        return " | ".join(different)
    return f"{len(different)} different values"


def _unfinished(runs: Sequence[Run]) -> bool:
    return any(run.summary is None and len(run.rows) for run in runs)


def counts(runs: Sequence[Run]) -> dict[str, int]:
    """How many runs stand how, the most frequent first."""
    found = pd.Series([state(run.folder, run.status) for run in runs]).value_counts()
    return {str(status): int(n) for status, n in found.items()}
