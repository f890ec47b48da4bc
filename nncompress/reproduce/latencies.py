"""The latency of every network of a study beside that of its dense network, measured once."""

from __future__ import annotations

import logging
from pathlib import Path

from nncompress.errors import NNCompressError
from nncompress.records import SUMMARY, read_json, read_status, run_folders, write_json
from nncompress.report.cross import BATCH, LATENCIES

log = logging.getLogger(__name__)

SECONDS = 0.2
"""Least measuring time of each latency."""


def measure_latencies(folder: Path) -> None:
    """Write latency.json into the folder of each finished run below `folder` that has none, on the run's own device."""
    from nncompress import evaluation
    from nncompress.compact.artefact import open_artefact
    from nncompress.eval import composed

    cfg = composed(["~dataset", f"batch_sizes=[1,{BATCH}]", f"seconds={SECONDS}"], None)
    for run in run_folders([folder]):
        if read_status(run)["status"] != "done" or (run / LATENCIES).exists():
            continue
        cfg.device = (read_json(run / SUMMARY) or {}).get("device", "auto")
        try:
            found = evaluation.measure(open_artefact(run, ()), cfg, required=False)
        except NNCompressError as error:
            log.warning("%s: no latency, %s", run, error)
            continue
        write_json(run / LATENCIES, {"latency": found["latency"], "environment": found.get("environment")})
