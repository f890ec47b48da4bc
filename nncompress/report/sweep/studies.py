"""What a sweep was made to study, as DataFrames: accuracy over two settings, its spread over seeds, its course."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from nncompress.report.collect import final, group_label, setting_of, short_names
from nncompress.results.records import Run

log = logging.getLogger(__name__)

ACCURACY = "accuracy/test"
MOST_PANELS, LEAST_SHARE, MOST_CURVES = 4, 0.75, 10
COURSE = ("step", "seconds", "mean", "low", "high")
NO_RUN = "no run"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Accuracies over every combination of two numeric keys, and of a third key where one varies.

    `cells` has a row per combination, sorted by panel, row and column: the keys, accuracy/test (mean over the done
    runs, in [0, 1]), its std (n - 1 in the denominator), n and `not_done`: how the other runs of the cell ended, in
    words, `no run` where there is none.
    """

    row: str
    column: str
    panel: str | None
    cells: pd.DataFrame


def outcomes(runs: Sequence[Run], keys: Sequence[str]) -> pd.DataFrame:
    """Return one row per run that has a config: the varied keys, status, accuracy/test (NaN unless the run is done)."""
    known = [run for run in runs if run.settings]
    statuses = [run.status["status"] for run in known]
    rows = [
        setting_of(run, keys) | {"status": status, ACCURACY: final(run).get(ACCURACY) if status == "done" else None}
        for run, status in zip(known, statuses, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=[*keys, "status", ACCURACY], dtype=object)
    return frame.astype({ACCURACY: float})


def sensitivity(ends: pd.DataFrame, keys: Sequence[str]) -> Grid | None:
    """Return the accuracies over two numeric keys; None, the reason logged, when the sweep is no such grid.

    Args:
        ends: one row per run, as `outcomes` makes it.
        keys: the varied config keys. Of three, the two numeric ones with the most values are the axes.
    """
    axes = _axes(ends, keys)
    if axes is None or ends[ACCURACY].isna().all():
        return None
    row, column, panel = axes
    by = [key for key in (panel, row, column) if key]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, values in enumerate(ends[by].itertuples(index=False, name=None)):
        groups.setdefault(values, []).append(position)
    if not _nearly_whole(ends, by, len(groups)):
        return None
    combinations = product(*(_distinct(ends[key]) for key in by))
    cells = [dict(zip(by, at, strict=True)) | _cell(ends.iloc[groups.get(at, [])]) for at in combinations]
    frame = pd.DataFrame(cells, dtype=object).astype({ACCURACY: float, f"{ACCURACY} std": float, "n": int})
    return Grid(row=row, column=column, panel=panel, cells=frame)


def spread(ends: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame | None:
    """Return the accuracy of every done run for each option of the one key that varies beside the seed.

    Columns: the key and accuracy/test, in the order of the sweep; an option without an accuracy keeps one row with
    NaN. None when other keys vary too, the key is numeric, or not most options have two accuracies.
    """
    if len(keys) != 1 or _numeric(ends[keys[0]]):
        return None
    groups: dict[Any, list[float]] = {option: [] for option in _distinct(ends[keys[0]])}
    for option, accuracy in zip(ends[keys[0]], ends[ACCURACY], strict=True):
        groups[option] += [accuracy] if accuracy == accuracy else []
    if 2 * sum(len(known) >= 2 for known in groups.values()) <= len(groups):
        return None
    points = [(option, accuracy) for option, known in groups.items() for accuracy in known or [math.nan]]
    return pd.DataFrame(points, columns=[keys[0], ACCURACY], dtype=object).astype({ACCURACY: float})


def courses(runs: Sequence[Run], keys: Sequence[str]) -> pd.DataFrame | None:
    """Return each setting's accuracies at the steps that all its done runs recorded; None unless 2 to 10 have some.

    Columns: setting (as typed), n (its done runs), step, seconds (mean over them), mean, low and high (of
    accuracy/test, in [0, 1]). A setting without a done run keeps one row with n = 0.
    """
    groups: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        if run.settings:
            recorded = ACCURACY in run.rows and run.rows[ACCURACY].notna().any()
            kept = [run.rows] if recorded and run.status["status"] == "done" else []
            groups.setdefault(group_label(setting_of(run, keys), keys), []).extend(kept)
    parts = [pd.DataFrame({"setting": label, "n": len(rows)} | _course(rows)) for label, rows in groups.items()]
    if not 2 <= sum(len(rows) > 0 for rows in groups.values()) <= MOST_CURVES:
        return None
    return pd.concat(parts, ignore_index=True)


def _axes(ends: pd.DataFrame, keys: Sequence[str]) -> tuple[str, str, str | None] | None:
    """Return row, column and panel; a sweep over fewer than two numbers is not meant as a grid, which needs no word."""
    count = {key: len(_distinct(ends[key])) for key in keys}
    numeric = sorted((key for key in keys if _numeric(ends[key])), key=lambda key: -count[key])
    if len(numeric) < 2:
        return None
    row, column = sorted(numeric[:2], key=list(keys).index)
    rest = [key for key in keys if key not in (row, column)]
    if len(rest) <= 1 and all(count[key] <= MOST_PANELS for key in rest):
        return row, column, rest[0] if rest else None
    settings = ", ".join(f"{name} ({count[key]} values)" for key, name in short_names(keys).items())
    log.info(
        "No sensitivity plot: it takes two numeric keys and at most one other with up to %d values; this sweep varies "
        "%s.", MOST_PANELS, settings,
    )  # fmt: skip
    return None


def _nearly_whole(ends: pd.DataFrame, by: Sequence[str], present: int) -> bool:
    whole = math.prod(len(_distinct(ends[key])) for key in by)
    if present >= LEAST_SHARE * whole:
        return True
    log.info(
        "No sensitivity plot: it takes %.0f %% of the combinations of %s; this sweep has %d of %d.",
        100 * LEAST_SHARE, " and ".join(short_names(by).values()), present, whole,
    )  # fmt: skip
    return False


def _cell(runs: pd.DataFrame) -> dict[str, Any]:
    known = runs[ACCURACY].dropna()
    statuses = runs.loc[runs[ACCURACY].isna(), "status"].replace("done", "no accuracy").value_counts(sort=False)
    ended = ", ".join(str(status) if len(runs) == 1 else f"{n} {status}" for status, n in statuses.items())
    figures = {ACCURACY: known.mean(), f"{ACCURACY} std": known.std(ddof=1), "n": len(known)}
    return figures | {"not_done": ended if len(runs) else NO_RUN}


def _numeric(values: "pd.Series[Any]") -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _distinct(values: "pd.Series[Any]") -> list[Any]:
    """Return each value once: numbers in their order, anything else in that of the sweep."""
    distinct = list(dict.fromkeys(values))
    return sorted(distinct) if _numeric(values) else distinct


def _course(runs: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Return the columns of `courses` that are measured."""
    if not runs:
        return {key: [math.nan] for key in COURSE}
    known = [rows.dropna(subset=[ACCURACY]).drop_duplicates("step", keep="last").set_index("step") for rows in runs]
    accuracy = pd.concat([rows[ACCURACY] for rows in known], axis=1, join="inner").sort_index()
    seconds = pd.concat([rows.reindex(columns=["seconds"]) for rows in known], axis=1, join="inner").sort_index()
    measured = (seconds.mean(axis=1), accuracy.mean(axis=1), accuracy.min(axis=1), accuracy.max(axis=1))
    return dict(zip(COURSE, (accuracy.index, *(column.to_numpy() for column in measured)), strict=True))
