"""The experiments of papers: their plan, their sweeps, resumed where they were stopped, and the tables beside them."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncompress.config.overrides import quote
from nncompress.errors import ConfigError, printable
from nncompress.files import write_json
from nncompress.report.text import columns
from nncompress.reproduce import planning
from nncompress.reproduce.cross import measure_latencies
from nncompress.reproduce.planning import Forecast, ended_otherwise, forecast, on_record
from nncompress.reproduce.protocol import REPRODUCTION, Protocol, read_protocol
from nncompress.reproduce.report import record_of, write_reproduction
from nncompress.results.sweep_folder import SWEEP
from nncompress.sweeps.jobs import short, write_missing_reports
from nncompress.sweeps.launch import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Which experiments are to be run, and how.

    - papers, scale: of which papers, at which scale.
    - studies: these alone; none: all of a paper.
    - launcher: words that say how sweeps are run.
    - plan, tables: the plan is shown, or the tables are written anew, and nothing is run.
    - out: where everything goes.
    - words: what all studies get.
    """

    papers: Sequence[str]
    scale: str
    studies: Sequence[str]
    launcher: Sequence[str]
    plan: bool
    tables: bool
    out: Path
    words: Sequence[str]

    def folder(self, paper: str) -> Path:
        """Return where a paper's studies and tables go."""
        return self.out / paper / self.scale


def run(request: Request) -> int:
    """Plan and run, or write the tables alone, paper by paper.

    Returns:
        The exit code: 1 when a job failed or data are missing, above 128 when it was stopped by a signal.

    Raises:
        ConfigError: there is no such study, a word is wrong, or a folder cannot be written.
    """
    protocols = [read_protocol(paper, request.scale) for paper in request.papers]
    _check_studies(request, protocols)
    if request.tables:
        return _all_tables(request, protocols)
    if not request.plan:
        for protocol in protocols:
            _make(request.folder(protocol.paper))
    plans = {protocol.paper: _plans(request, protocol) for protocol in protocols}
    sys.stdout.write("\n".join(_plan_lines(request, protocols, plans)) + "\n")
    sys.stdout.flush()
    codes = [0]
    for protocol in [] if request.plan else protocols:
        codes.append(_run_paper(request, protocol, plans[protocol.paper]))
        if codes[-1] >= 128:
            break
    return max(codes)


def _plans(request: Request, protocol: Protocol) -> list[Forecast]:
    """Return the plan of each study; if they are to run it is kept on record, so that it is timed only once."""
    folder = request.folder(protocol.paper)
    before = _before(folder)
    chosen = [study for study in protocol.studies if not request.studies or study.name in request.studies]
    plans = []
    for study in chosen:
        sys.stderr.write(f"planning {protocol.paper} {study.name}\n")
        plans.append(forecast(study, request.words, folder / study.name, before.get(study.name) or {}))
        if not request.plan:
            _write_record(folder, protocol, plans)
    return plans


def _make(folder: Path) -> None:
    """Make the folder, before anything is planned.

    Raises:
        ConfigError: it cannot be made or written into.
    """
    wrong = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = error.strerror
    if wrong or not os.access(folder, os.W_OK):
        raise ConfigError(f"--out needs a folder that can be written into, found {folder}: {wrong or 'read-only'}")


def _run_paper(request: Request, protocol: Protocol, plans: Sequence[Forecast]) -> int:
    """Run the studies of one paper and write its tables; the exit code."""
    folder = request.folder(protocol.paper)
    if not plans:
        return 0
    codes = [0]
    for plan in plans:
        if plan.missing:
            log.error("%s %s is not run: %s", protocol.paper, plan.study.name, plan.missing)
            codes.append(1)
            continue
        stopped = _sweep(request, plan, folder / plan.study.name) if plan.left() else 0
        if stopped >= 128:
            codes.append(stopped)
            break
        write_missing_reports(folder / plan.study.name)
        ends = ended_otherwise(folder / plan.study.name, plan.jobs)
        if ends:
            counts = ", ".join(f"{count} {status}" for status, count in ends.items())
            log.error("%s %s: of %d runs %s", protocol.paper, plan.study.name, len(plan.jobs), counts)
            codes.append(1)
        if plan.study.latency:
            measure_latencies(folder / plan.study.name)
    _tables(request, protocol)
    return max(codes)


def _sweep(request: Request, plan: Forecast, folder: Path) -> int:
    """Run or go on with a study's sweep; its exit code."""
    words = [*plan.words, *request.launcher]
    sys.stdout.write(printable(f"{short(folder.absolute())}: {plan.study.about}") + "\n")
    sys.stdout.flush()
    begun = (folder / SWEEP).exists()
    return train(["-m", *words, f"{'sweep.resume' if begun else 'hydra.sweep.dir'}={quote(str(folder))}"])


def _all_tables(request: Request, protocols: Sequence[Protocol]) -> int:
    there = [each for each in protocols if (request.folder(each.paper) / REPRODUCTION).is_file()]
    absent = [str(request.folder(each.paper)) for each in protocols if each not in there]
    if not there:
        found = f"found no {REPRODUCTION} in {', '.join(absent)}"
        raise ConfigError(f"--tables needs what was run, {found}; run it first, without --tables")
    for folder in absent:
        log.warning("nothing was run in %s, it gets no tables", folder)
    for protocol in there:
        _tables(request, protocol)
    return 0


def _tables(request: Request, protocol: Protocol) -> None:
    folder = request.folder(protocol.paper)
    for path in write_reproduction(folder):
        if path.suffix in (".md", ".html") and path.is_relative_to(folder) and len(path.relative_to(folder).parts) < 3:
            sys.stdout.write(printable(f"wrote {short(path.absolute())}") + "\n")


def _before(folder: Path) -> dict[str, Any]:
    """Return each study as it is on record."""
    return dict(record_of(folder)["studies"]) if (folder / REPRODUCTION).exists() else {}


def _write_record(folder: Path, protocol: Protocol, plans: Sequence[Forecast]) -> None:
    """Write what the tables need to know beside the runs; studies that are not asked for this time stay on record."""
    content = {
        "paper": protocol.paper,
        "scale": protocol.scale,
        "studies": _before(folder) | {plan.study.name: on_record(plan) for plan in plans},
    }
    write_json(folder / REPRODUCTION, content)


def _plan_lines(request: Request, protocols: Sequence[Protocol], plans: dict[str, list[Forecast]]) -> Iterator[str]:
    """Tell the plan in lines of text."""
    everything = [plan for each in plans.values() for plan in each]
    rows = [("paper", "study", "runs", "done", "time", "disk", "data", "what")]
    for protocol in protocols:
        for plan in plans[protocol.paper]:
            left = len(plan.left())
            data = "missing" if plan.missing else plan.study.data + (" (*)" if plan.instead else "")
            rows.append((
                protocol.paper, plan.study.name, str(len(plan.jobs)), str(len(plan.ended)),
                _time(planning.seconds([plan])) if left else "–", _size(planning.size([plan])) if left else "–",
                data, plan.study.about,
            ))  # fmt: skip
    yield from columns(rows, [False, False, True, True, True, True, False, False])
    free = shutil.disk_usage(_existing(request.out)).free
    runs = sum(len(plan.left()) for plan in everything)
    size = planning.size(everything)
    unknown = [plan.study.name for plan in everything if plan.left() and plan.cost is None]
    yield (
        f"{runs} runs to do; one after the other on this machine about {_time(planning.seconds(everything))} (from one "
        f"measured step of a study's first run); {_size(size)} of {_size(free)} free in {request.out}"
    )
    if unknown:
        yield f"Without {', '.join(unknown)}, of which no step could be measured: the run itself will say why."
    if size > free:
        yield "The disk is too small: free some space, or give another folder with --out."
    for plan in everything:
        if plan.missing:
            yield f"{plan.study.name}: {plan.missing}"
        elif plan.instead and plan.study.instead is not None:
            yield f"(*) {plan.study.name}: {plan.study.instead.deviation}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.0f} MB"


def _existing(path: Path) -> Path:
    """Return the nearest folder that there is."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _check_studies(request: Request, protocols: Sequence[Protocol]) -> None:
    there = [study.name for protocol in protocols for study in protocol.studies]
    for name in request.studies:
        if name not in there:
            raise ConfigError(f"--study must be one of {', '.join(there)}, found {name}")
