"""The tables that only the page has: every job of a sweep, those that are not done, settings, what it was made with."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.files import read_json
from nncompress.report.collect import failures, final, setting_of, short_names
from nncompress.report.fresh import ENVIRONMENT
from nncompress.report.sweep.tables import measures_of
from nncompress.report.tables import Table, known_columns
from nncompress.report.text import clean, number, setting, value_text
from nncompress.results.query import state
from nncompress.results.records import Run, flatten

MOST_VALUES = 3


def jobs_table(folder: Path, runs: Sequence[Run], keys: Sequence[str]) -> Table:
    """Make one row per job, whatever became of it."""
    names, measures = short_names(keys), measures_of(runs)
    raw, shown = [], []
    for run in runs:
        figures, values = final(run), setting_of(run, keys)
        head = {"job": value_text(run.folder.relative_to(folder)), "status": state(run.folder, run.status)}
        seed, steps = figures.get("seed"), figures.get("steps")
        raw.append(head | values | {"seed": seed, "steps": steps} | {key: figures.get(key) for key, _, _ in measures})
        shown.append(
            head
            | {names[key]: setting(values[key]) for key in keys}
            | {"seed": setting(seed), "steps": number(steps)}
            | {title: form(figures.get(key)) for key, title, form in measures}
        )
    unfinished = any(run.summary is None and len(run.rows) for run in runs)
    notes = ["Figures of a job that has not ended are those of its last record."] if unfinished else []
    return Table("jobs", f"All {len(runs)} jobs", pd.DataFrame(raw), known_columns(pd.DataFrame(shown)), notes)


def failures_table(folder: Path, runs: Sequence[Run], keys: Sequence[str]) -> Table | None:
    """Tabulate the jobs that are not done and why; None when all are."""
    frame = failures(runs)
    if frame.empty:
        return None
    jobs = [value_text(run.folder.relative_to(folder)) for run in runs if run.status["status"] != "done"]
    shown = frame.assign(job=jobs).rename(columns=short_names(keys) | {"traceback": "traceback, last line"})
    return Table("failures", f"Not done: {len(frame)} of {len(runs)} jobs", frame, known_columns(shown.map(setting)))


def settings_table(runs: Sequence[Run]) -> Table | None:
    """Tabulate the settings: the values there are where they are few; None without a config."""
    configs = [run.settings for run in runs if run.settings]
    return _values("settings", "Settings", "key of config.yaml", configs)


def environment_table(runs: Sequence[Run]) -> Table | None:
    """Tabulate command, versions and hardware; None where no run has them on record."""
    contents = (clean(read_json(run.folder / ENVIRONMENT)) for run in runs)
    environments = [flatten(about | {"command": _command(about.get("command"))}) for about in contents if about]
    return _values("environment", "Made with", "key of environment.json", environments)


def _command(words: Any) -> str:
    return shlex.join(map(str, words)) if isinstance(words, list) else value_text(words)


def _values(name: str, title: str, head: str, contents: Sequence[Mapping[str, Any]]) -> Table | None:
    """Make a row per key: the value of all, or the values there are; None without any contents."""
    if not contents:
        return None
    rows = []
    for key in dict.fromkeys(key for content in contents for key in content):
        values = [content.get(key) for content in contents]
        different = list(dict.fromkeys("null" if value is None else value_text(value) for value in values))
        few = len(different) <= MOST_VALUES
        rows.append((key, " | ".join(different) if few else f"{len(different)} different values"))
    frame = pd.DataFrame(rows, columns=[head, "value"])
    return Table(name, title, frame, frame)


def counts(runs: Sequence[Run]) -> dict[str, int]:
    """Count the runs of each status, the most frequent first."""
    statuses = pd.Series([state(run.folder, run.status) for run in runs]).value_counts()
    return {str(status): int(n) for status, n in statuses.items()}
