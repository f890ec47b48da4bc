"""From runs to DataFrames: what each run ended with, what sets the runs of a sweep apart, means over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from nncompress.config.schema import role_of
from nncompress.report.text import clean, setting, value_text
from nncompress.results.convergence import rate_summary
from nncompress.results.query import GROUPS, figures_of, state
from nncompress.results.records import COLUMNS, Run, read_columns

TARGET = "._target_"
OWN = "nncompress.errors."


def cleaned(run: Run) -> Run:
    """Return the run with `text.clean` texts: every table, plot and page is made of such ones."""
    rows = run.rows.rename(columns=clean)
    summary = None if run.summary is None else clean(run.summary)
    return replace(run, settings=clean(run.settings), rows=rows, summary=summary, status=clean(run.status))


def job(run: Run) -> str:
    """Return the name of the run's folder."""
    return value_text(run.folder.name)


def name(run: Run) -> str:
    """Return what was run: solver-model-dataset-compression, as far as the run's config tells."""
    return "-".join(part for part in (choice(run, group) for group in GROUPS) if part) or job(run)


def choice(run: Run, group: str) -> str:
    """Return the option the run took from a config group; empty when it is not on record."""
    return str(run.settings.get(group) or (run.summary or {}).get(group) or "")


def final(run: Run) -> dict[str, Any]:
    """Return the known keys of summary.json; a run that has not ended is summed up by its last record."""
    last = {str(key): value for key, value in run.rows.iloc[-1].dropna().items()} if len(run.rows) else {}
    summary = run.summary or {}
    rates = {} if "rate/slope" in summary else rate_summary(run.rows)
    known = {"seed": run.settings.get("seed")} | figures_of(last) | rates | summary
    return {key: value for key, value in known.items() if value is not None}


def declarations(run: Run, kind: str) -> list[dict[str, Any]]:
    """Return the "columns" or "plots" that the run's solver adds to reports (`solvers.base`), as plain values."""
    try:
        made = (run.folder / COLUMNS).stat()
    except OSError:
        return []
    return _declared(run.folder, (made.st_ino, made.st_mtime_ns, made.st_size))[kind]


@lru_cache(maxsize=4096)
def _declared(folder: Path, stamp: tuple[int, int, int]) -> dict[str, list[dict[str, Any]]]:
    """Read the file once as long as it is the same, and tell once of what is damaged in it."""
    return {kind: list(map(clean, each)) for kind, each in read_columns(folder).items()}


def columns_of(runs: Sequence[Run], table: str) -> list[dict[str, Any]]:
    """Return the columns that the solvers of some runs add to a table, each once."""
    columns = [column for run in runs for column in declarations(run, "columns") if column["table"] == table]
    return list({column["key"] + column["label"]: column for column in columns}.values())


def varied_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of flattened configs that set the runs apart: those that change results (`schema.role_of`).

    Left out: the seed and what follows it, and keys that an option varied beside them determines (`model._target_` when
    `model` varies; everything an experiment sets when `experiment` varies). How a run is run (`device`) sets apart
    those that are else the same.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    results = [key for key in keys if role_of(key) == "result"]
    varied = [key for key in results if _differs(configs, key)] + _set_apart_otherwise(configs, keys, results)
    own = [key for key in varied if not _is_determined(configs, key, varied)]
    kept = [key for key in own if not any(_repeats(configs, key, other) for other in own[: own.index(key)])]
    return sorted(kept, key=lambda key: ("." in key, keys.index(key)))  # options before their settings


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the config keys that set the runs apart; a run without a config does not count."""
    return varied_keys([run.settings for run in runs if run.settings])


def setting_of(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Return the run's values of the varied keys, None where its config lacks one."""
    return {key: run.settings.get(key) for key in keys}


def summaries(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per finished run: job, the varied keys, then the keys of its summary without lists."""
    keys = differences(runs)
    done = [run for run in runs if run.status["status"] == "done"]
    figures = [{key: value for key, value in final(run).items() if not isinstance(value, list | dict)} for run in done]
    rows = [{"job": job(run)} | setting_of(run, keys) | row for run, row in zip(done, figures, strict=True)]
    return pd.DataFrame(rows, columns=None if rows else ["job", *keys]).astype(dict.fromkeys(keys, object))


def failures(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run that is not done: job, status, varied keys, last step, reason, last line of traceback."""
    keys = differences(runs)
    rows = [
        {"job": job(run), "status": state(run.folder, run.status)}
        | setting_of(run, keys)
        | {"step": run.status["step"], "reason": reason(run), "traceback": last_line(run)}
        for run in runs
        if run.status["status"] != "done"
    ]
    return pd.DataFrame(rows, columns=["job", "status", *keys, "step", "reason", "traceback"], dtype=object)


def reason(run: Run) -> str | None:
    """Return why a run is not done."""
    known = run.status["reason"]
    if known is None and state(run.folder, run.status) == "killed":
        return "the process ended before it could tell why: killed, or the machine stopped"
    return None if known is None else str(known)


def last_line(run: Run) -> str | None:
    """Return the last line of the traceback; None where it is the reason, our own error's class before it."""
    line = run.status["traceback"]
    return None if line is None or str(line).startswith(OWN) else str(line)


def aggregate(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return means over the runs that differ in nothing but the seed, in the order of the jobs.

    Columns: the varied keys, n, seeds, then for each number its mean under its own key and, under `<key> std`, the
    standard deviation (n - 1 in the denominator; empty for n = 1); a check holds when it holds in all runs.
    """
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "n", "seeds"])
    label = pd.Series(list(map(str, frame[list(keys)].to_numpy().tolist())), index=frame.index)
    groups = [group for _, group in frame.groupby(label, sort=False)]
    measured = [column for column in frame if column not in (*keys, "job", "seed", "device")]
    rows = [_means(group, [str(column) for column in measured], keys) for group in groups]
    return pd.DataFrame(rows).astype(dict.fromkeys(keys, object))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted key (of a class what it is for), the whole key where that is ambiguous."""
    ends = [key.removesuffix(TARGET).split(".")[-1] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def group_label(group: "Mapping[str, Any] | pd.Series[Any]", keys: Sequence[str]) -> str:
    """Say what sets a group apart, as it is typed: `rank=4, model=mlp`."""
    names = short_names(keys)
    values = {key: setting(group[key]) for key in keys if group[key] is not None}
    shown = {key: value.rpartition(".")[2] if key.endswith(TARGET) else value for key, value in values.items()}
    return ", ".join(f"{names[key]}={value}" for key, value in shown.items()) or "all runs"


def _set_apart_otherwise(
    configs: Sequence[Mapping[str, Any]], keys: Sequence[str], results: Sequence[str]
) -> list[str]:
    """Return the keys of the role `run` in which runs differ that are else the same, the seed included."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for config in configs:
        alike.setdefault(repr([config.get(key) for key in results]), []).append(config)
    several = [group for group in alike.values() if len(group) > 1]
    return [key for key in keys if role_of(key) == "run" and any(_differs(group, key) for group in several)]


def _differs(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    if key.split(".")[-1] == "seed" and not _own_seed(configs, key):
        return False
    values = [None if key == "reference" and _trained_for_it(config) else config.get(key) for config in configs]
    follows_seed = values == [config.get("seed") for config in configs]
    return len(set(map(repr, values))) > 1 and not follows_seed


def _trained_for_it(config: Mapping[str, Any]) -> bool:
    """Return whether a run's reference was trained as its own configuration says, and is no setting of its own."""
    folder = config.get("reference")
    return folder is not None and Path(str(folder)).parent.name == Path(str(config.get("reference_dir"))).name


def _own_seed(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Return whether a part's own seed (of a data subset, say) is a difference: it does not follow the run's."""
    return key.endswith(".seed") and any(config.get(key) != config.get("seed") for config in configs)


def _is_determined(configs: Sequence[Mapping[str, Any]], key: str, varied: Sequence[str]) -> bool:
    owners = {key.split(".")[0], "experiment"} - {key}
    return any(_maps_to_one(configs, owner, key) for owner in owners.intersection(varied))


def _repeats(configs: Sequence[Mapping[str, Any]], key: str, other: str) -> bool:
    """Tell whether a key follows another of the same last word in the same group, as the rest of a constraint does."""
    alike = key.split(".")[0] == other.split(".")[0] and key.split(".")[-1] == other.split(".")[-1]
    return alike and [config.get(key) for config in configs] == [config.get(other) for config in configs]


def _maps_to_one(configs: Sequence[Mapping[str, Any]], owner: str, key: str) -> bool:
    pairs = {(repr(config.get(owner)), repr(config.get(key))) for config in configs}
    return len(pairs) == len({first for first, _ in pairs})


def _means(group: pd.DataFrame, measured: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {key: group[key].iloc[0] for key in keys}
    row |= {"n": len(group), "seeds": " ".join(str(seed) for seed in group.get("seed", []))}
    for column in measured:
        values = [value for value in group[column] if value == value and value is not None]
        if values and all(isinstance(value, bool) for value in values):
            row[column] = all(values)
        elif all(isinstance(value, int | float) for value in values):
            numbers = pd.Series(values, dtype=float)
            row |= {column: numbers.mean(), f"{column} std": numbers.std(ddof=1)}
    return row
