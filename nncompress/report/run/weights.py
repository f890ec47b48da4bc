"""The numbers of a compact network, tensor by tensor, from its two files alone. Imports no torch."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)

DRAWN = ("F16", "F32", "F64")
"""Formats that numpy has, unlike bfloat16 and float8."""
REST = "all other parameters and buffers"


def stored_numbers(folder: Path) -> dict[str, NDArray[np.floating]]:
    """The real numbers of each tensor of Θ, `<weights> <field>`, and under `REST` those outside; empty without a model.

    Left out: what is constant, codes and positions, formats that numpy does not have.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        return {}
    try:
        about = json.loads((folder / "model.json").read_bytes())
        with safe_open(path, framework="numpy") as file:
            keys = [key for key in file.keys() if file.get_slice(key).get_dtype() in DRAWN]  # noqa: SIM118
            streams = {key: file.get_tensor(key) for key in keys}
        found = dict(_numbers(about, streams))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("%s: no plot of the weights, the file cannot be read (%s).", path, error)
        return {}
    return {key: value for key, value in found.items() if value.size > 1 and np.ptp(value) > 0}


def _numbers(about: dict[str, Any], streams: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """What `artefact.encoding` put into the streams, in the order in which it did."""
    at = dict.fromkeys(streams, 0)
    for task in about["tasks"]:
        tensors = _tensors(about["kinds"][task["kind"]]["theta"], "")
        for (field, kind), size in zip(tensors, task["sizes"], strict=True):
            encoding, _, stream = kind.partition(" ")
            if encoding != "plain" or stream not in streams:
                continue
            count = math.prod(size)
            numbers = streams[stream][at[stream] : at[stream] + count].reshape(size)
            at[stream] += count
            yield " ".join(filter(None, (", ".join(task["params"]), field))), numbers
    rest = [numbers[at[stream] :].astype(float) for stream, numbers in streams.items()]
    if rest:
        yield REST, np.concatenate(rest)


def _tensors(form: Any, field: str) -> Iterator[tuple[str, str]]:
    """The tensors and values of a form with the fields they stand in, `cores.0`."""
    if isinstance(form, str):
        yield field, form
        return
    items = form.items() if isinstance(form, dict) else enumerate(form)
    for key, item in items:
        if key != "class":
            yield from _tensors(item, f"{field}.{key}" if field else str(key))
