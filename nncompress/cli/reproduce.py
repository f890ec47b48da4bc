"""`nncompress reproduce`: the plan of the papers' experiments, their sweeps, the tables beside them."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncompress.config.options import groups
from nncompress.config.overrides import quoted
from nncompress.errors import ConfigError
from nncompress.files import write_json
from nncompress.report.text import columns
from nncompress.reproduce import planning
from nncompress.reproduce.cross import measure_latencies
from nncompress.reproduce.planning import Forecast, ended_otherwise, on_record, planned
from nncompress.reproduce.protocol import PAPERS, REPRODUCTION, SCALES, Protocol, read_protocol
from nncompress.reproduce.report import record_of, write_reproduction
from nncompress.results.sweep_folder import SWEEP
from nncompress.sweeps.jobs import short, write_missing_reports
from nncompress.sweeps.launch import train

log = logging.getLogger(__name__)

OUT = Path("outputs/reproduce")
USAGE = """\
usage: nncompress reproduce PAPER... [--scale SCALE] [--study NAME,...] [--launcher NAME] [--plan] [--tables]
                            [KEY=VALUE ...]

Runs the experiments of papers as sweeps, and writes their figures beside the published ones. The same command goes on
where it was stopped.

  PAPER                     nnbcd, slimming, sparsefw, lc; cross: the main solvers with the main compressions;
                            all
  --scale SCALE             smoke: minutes, on the embedded digits; cpu (default): hours on two cores, on real data;
                            gpu: the published protocols
  --study NAME,...          these studies alone
  --launcher NAME           of the sweeps: local (default), joblib, ray, slurm
  --plan                    shows what would be run, how long it may take, and what data are missing; runs no more than
                            a step of each study, to time it, and keeps nothing
  --tables                  writes the tables and plots anew from what is there; runs nothing
  --out FOLDER              where everything goes (default: outputs/reproduce)
  KEY=VALUE                 seed=0,1,2, device=... (another one is another run), data_dir=..., data.download=...,
                            reference_dir=..., hydra.launcher.KEY=..., sweep.retries=...
"""
FREE = ("seed", "device", "data_dir", "data.download", "reference_dir", "checkpoint_every")
"""Keys that change no protocol."""
RUNNING = ("sweep.retries", "sweep.on_error", "hydra.launcher.")
"""How the keys begin that say how sweeps are run."""
FLAGS = ("--scale", "--study", "--launcher", "--out")


@dataclass(frozen=True)
class Asked:
    """What the words of the command ask for."""

    papers: Sequence[str]
    scale: str
    studies: Sequence[str]
    launcher: Sequence[str]
    plan: bool
    tables: bool
    out: Path
    words: Sequence[str]

    def folder(self, paper: str) -> Path:
        """Where a paper's studies and tables go."""
        return self.out / paper / self.scale


def reproduce(arguments: Sequence[str]) -> int:
    """Run what the words ask for; 0, 1 when a job failed or data are missing, 130 or 143 when it was stopped.

    Raises:
        ConfigError: a word is wrong.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    asked = _read(arguments)
    protocols = [read_protocol(paper, asked.scale) for paper in asked.papers]
    _check_studies(asked, protocols)
    try:
        code = _all(asked, protocols)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:  # a signal while a run was measured
        code = int(stop.code or 0)
    if code >= 128:
        log.error("stopped by a signal; go on with: nncompress reproduce %s", shlex.join(arguments))
    return code


def _all(asked: Asked, protocols: Sequence[Protocol]) -> int:
    """Plan and run, or write the tables alone, paper by paper; the exit code."""
    if asked.tables:
        return _all_tables(asked, protocols)
    if not asked.plan:
        for protocol in protocols:
            _make(asked.folder(protocol.paper))
    plans = {protocol.paper: _plans(asked, protocol) for protocol in protocols}
    sys.stdout.write("\n".join(_told(asked, protocols, plans)) + "\n")
    sys.stdout.flush()
    codes = [0]
    for protocol in [] if asked.plan else protocols:
        codes.append(_run(asked, protocol, plans[protocol.paper]))
        if codes[-1] >= 128:
            break
    return max(codes)


def _plans(asked: Asked, protocol: Protocol) -> list[Forecast]:
    """The plan of each study; unless the plan is all that is asked for, on record, so that it is measured only once."""
    folder = asked.folder(protocol.paper)
    before = _before(folder)
    chosen = [study for study in protocol.studies if not asked.studies or study.name in asked.studies]
    plans = []
    for study in chosen:
        sys.stderr.write(f"planning {protocol.paper} {study.name}\n")
        plans.append(planned(study, asked.words, folder / study.name, before.get(study.name) or {}))
        if not asked.plan:
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


def _run(asked: Asked, protocol: Protocol, plans: Sequence[Forecast]) -> int:
    """Run the studies of one paper and write its tables; the exit code."""
    folder = asked.folder(protocol.paper)
    if not plans:
        return 0
    codes = [0]
    for plan in plans:
        if plan.missing:
            log.error("%s %s is not run: %s", protocol.paper, plan.study.name, plan.missing)
            codes.append(1)
            continue
        stopped = _sweep(asked, plan, folder / plan.study.name) if plan.left() else 0
        if stopped >= 128:
            codes.append(stopped)
            break
        write_missing_reports(folder / plan.study.name)
        ends = ended_otherwise(folder / plan.study.name, plan.jobs)
        if ends:
            told = ", ".join(f"{count} {status}" for status, count in ends.items())
            log.error("%s %s: of %d runs %s", protocol.paper, plan.study.name, len(plan.jobs), told)
            codes.append(1)
        if plan.study.latency:
            measure_latencies(folder / plan.study.name)
    _tables(asked, protocol)
    return max(codes)


def _sweep(asked: Asked, plan: Forecast, folder: Path) -> int:
    """Run or go on with a study's sweep; its exit code."""
    words = [*plan.words, *asked.launcher]
    sys.stdout.write(f"{short(folder.absolute())}: {plan.study.about}\n")
    sys.stdout.flush()
    begun = (folder / SWEEP).exists()
    return train(["-m", *words, f"{'sweep.resume' if begun else 'hydra.sweep.dir'}={quoted(str(folder))}"])


def _all_tables(asked: Asked, protocols: Sequence[Protocol]) -> int:
    there = [each for each in protocols if (asked.folder(each.paper) / REPRODUCTION).is_file()]
    absent = [str(asked.folder(each.paper)) for each in protocols if each not in there]
    if not there:
        found = f"found no {REPRODUCTION} in {', '.join(absent)}"
        raise ConfigError(f"--tables needs what was run, {found}; run it first, without --tables")
    for folder in absent:
        log.warning("nothing was run in %s, it gets no tables", folder)
    for protocol in there:
        _tables(asked, protocol)
    return 0


def _tables(asked: Asked, protocol: Protocol) -> None:
    folder = asked.folder(protocol.paper)
    for path in write_reproduction(folder):
        if path.suffix in (".md", ".html") and path.is_relative_to(folder) and len(path.relative_to(folder).parts) < 3:
            sys.stdout.write(f"wrote {short(path.absolute())}\n")


def _before(folder: Path) -> dict[str, Any]:
    """Each study as it is on record."""
    return dict(record_of(folder)["studies"]) if (folder / REPRODUCTION).exists() else {}


def _write_record(folder: Path, protocol: Protocol, plans: Sequence[Forecast]) -> None:
    """What the tables need to know beside the runs; studies that are not asked for this time stay on record."""
    content = {
        "paper": protocol.paper,
        "scale": protocol.scale,
        "studies": _before(folder) | {plan.study.name: on_record(plan) for plan in plans},
    }
    write_json(folder / REPRODUCTION, content)


def _told(asked: Asked, protocols: Sequence[Protocol], plans: dict[str, list[Forecast]]) -> Iterator[str]:
    """The plan as lines of text."""
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
    free = shutil.disk_usage(_existing(asked.out)).free
    runs = sum(len(plan.left()) for plan in everything)
    size = planning.size(everything)
    unknown = [plan.study.name for plan in everything if plan.left() and plan.cost is None]
    yield (
        f"{runs} runs to do; one after the other on this machine about {_time(planning.seconds(everything))} (from one "
        f"measured step of a study's first run); {_size(size)} of {_size(free)} free in {asked.out}"
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
    """The nearest folder that there is."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _read(arguments: Sequence[str]) -> Asked:
    given, papers, words, plain = dict.fromkeys(FLAGS, ""), [], [], []
    rest = iter(arguments)
    for word in rest:
        flag, is_given, value = word.partition("=")
        if flag in FLAGS:
            given[flag] = value if is_given else next(rest, "")
            if not given[flag]:
                raise ConfigError(f"{flag} needs a value, found none; `nncompress reproduce --help` lists them")
        elif word.startswith("-"):
            plain.append(word)
        elif is_given:
            words.append(word)
        else:
            papers.append(word)
    scale = given["--scale"] or "cpu"
    _check(papers, plain, words, scale, given["--launcher"])
    launcher = [f"launcher={given['--launcher']}"] if given["--launcher"] else []
    launcher += [word for word in words if _of_launcher(word)]
    return Asked(
        papers=list(PAPERS) if "all" in papers else list(dict.fromkeys(papers)),
        scale=scale,
        studies=[name for name in given["--study"].split(",") if name],
        launcher=launcher,
        plan="--plan" in plain,
        tables="--tables" in plain,
        out=Path(given["--out"] or OUT),
        words=[word for word in words if not _of_launcher(word)],
    )


def _check(papers: Sequence[str], plain: Sequence[str], words: Sequence[str], scale: str, launcher: str) -> None:
    wrong = [paper for paper in papers if paper not in (*PAPERS, "all")]
    if wrong or not papers:
        found = wrong[0] if wrong else "none"
        raise ConfigError(f"reproduce needs one or more of {', '.join(PAPERS)} or all, found {found}")
    for flag in plain:
        if flag not in ("--plan", "--tables"):
            raise ConfigError(f"reproduce has no option {flag}; `nncompress reproduce --help` lists those there are")
    if scale not in SCALES:
        raise ConfigError(f"--scale must be one of {', '.join(SCALES)}, found {scale}")
    if launcher and launcher not in groups()["launcher"]:
        raise ConfigError(f"--launcher must be one of {', '.join(groups()['launcher'])}, found {launcher}")
    for word in words:
        if word.partition("=")[0] not in FREE and not _of_launcher(word):
            raise ConfigError(
                f"{word.partition('=')[0]} would change what is reproduced, found {word}; give only {', '.join(FREE)}, "
                "sweep.retries, sweep.on_error and hydra.launcher.*, or run the experiment with nncompress train"
            )


def _of_launcher(word: str) -> bool:
    return word.lstrip("+").startswith(RUNNING)


def _check_studies(asked: Asked, protocols: Sequence[Protocol]) -> None:
    there = [study.name for protocol in protocols for study in protocol.studies]
    for name in asked.studies:
        if name not in there:
            raise ConfigError(f"--study must be one of {', '.join(there)}, found {name}")
