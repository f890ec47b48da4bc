"""The table and the plot of a search: every trial, its settings, what it reached, and which are the best."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nncompress.files import read_json
from nncompress.report.collect import short_names
from nncompress.report.style import COLOURS, STYLE, new_figure
from nncompress.report.tables import Table
from nncompress.report.text import clean, number, percent, setting
from nncompress.results.records import SEARCH
from nncompress.results.shapes import ABSENT, BOOL, FIGURE, PLAIN, TEXT, WORD, fits

log = logging.getLogger(__name__)

BETTER = {"maximize": "larger is better", "minimize": "smaller is better"}
FIXED = ("trial", "job", "state", "best")
CONTENT = {
    "objectives": {str: re.compile("|".join(BETTER))},
    "trials": [
        {
            "trial": {int},
            "job": TEXT,
            "state": WORD,
            "best": BOOL,
            "settings": {str: PLAIN},
            "values": ([FIGURE], ABSENT),
        }
    ],
}
"""The shape of the file (`results.shapes`)."""


def trials_of(folder: Path) -> tuple[pd.DataFrame, dict[str, str]] | None:
    """Return the trials of the search in a folder, and the objectives with their directions; None without a search.

    Columns: trial, job, state, best, each setting, each objective.
    """
    path = folder / SEARCH
    content = clean(read_json(path))
    if content is None:
        return None
    whole = fits(content, CONTENT) and len(content["objectives"]) > 0
    if not whole or not all(_is_whole(trial, content["objectives"]) for trial in content["trials"]):
        log.warning("%s: ignored, it is damaged in part.", path)
        return None
    objectives, trials = content["objectives"], content["trials"]
    rows = [
        {key: trial[key] for key in FIXED}
        | trial["settings"]
        | dict(zip(objectives, trial["values"] or [None] * len(objectives), strict=True))
        for trial in trials
    ]
    return pd.DataFrame(rows, columns=None if rows else [*FIXED, *objectives]), objectives


def _is_whole(trial: Mapping[str, Any], objectives: Mapping[str, str]) -> bool:
    """Tell whether a trial has a value for each objective or none at all, and settings of other names."""
    whole = trial["values"] is None or len(trial["values"]) == len(objectives)
    return whole and not {*FIXED, *objectives} & set(trial["settings"])


def search_table(trials: pd.DataFrame, objectives: dict[str, str], title: str) -> Table:
    """Tabulate every trial, the best first, then by the first objective."""
    settings = [str(key) for key in trials if key not in (*FIXED, *objectives)]
    names = short_names(settings)
    first, direction = next(iter(objectives.items()))
    down = direction == "maximize"
    raw = trials.sort_values(["best", first, "trial"], ascending=[False, not down, True], na_position="last")
    shown = pd.DataFrame([_line(trial, names, objectives) for _, trial in raw.iterrows()])
    aims = ", ".join(f"{key} ({BETTER[way]})" for key, way in objectives.items())
    notes = [
        f"Objectives: {aims}.",
        "Best: no other trial is better in one objective and as good in the others."
        if len(objectives) > 1
        else "Best: of all trials that were completed.",
        "pruned: given up, as the trials before it were better at the same step, or as it diverged or cannot be done; "
        "failed: it ended with an error.",
    ]
    return Table("search", f"Search: {title}", raw, shown, notes)


def search_plot(trials: pd.DataFrame, objectives: dict[str, str], title: str) -> Figure | None:
    """Draw each objective against the number of the trial; with one objective, the best so far as a line."""
    ended = trials.dropna(subset=list(objectives))
    if ended.empty:
        return None
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7, 1.4 + 2.6 * len(objectives), f"Search: {title}")
        for position, (key, direction) in enumerate(objectives.items(), start=1):
            axes = figure.add_subplot(
                len(objectives), 1, position, xlabel="trial", ylabel=f"{key}\n({BETTER[direction]})"
            )
            x, y, best = ended["trial"], ended[key].astype(float), ended["best"].astype(bool)
            axes.plot(x[~best], y[~best], "o", color=COLOURS[0], label="trial")
            axes.plot(x[best], y[best], "*", color=COLOURS[1], markersize=11, label="best" if best.any() else None)
            if len(objectives) == 1:
                so_far = y.cummax() if direction == "maximize" else y.cummin()
                axes.step(x, so_far, where="post", color=COLOURS[2], label="best so far")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
    return figure


def _line(trial: "pd.Series[Any]", names: dict[str, str], objectives: dict[str, str]) -> dict[str, str]:
    line = {"trial": str(trial["trial"]), "job": str(trial["job"])}
    line |= {name: setting(trial[key]) for key, name in names.items()}
    for key in objectives:
        share = key.startswith("accuracy/")
        line |= {f"{key} (%)": percent(trial[key])} if share else {key: number(trial[key])}
    return line | {"state": str(trial["state"]), "best": "yes" if trial["best"] else ""}
