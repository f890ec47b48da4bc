"""What the small files of a run folder hold, and what is left of one where a value has another shape.

A shape is a set of types; a pattern for texts; a tuple of alternatives; a list `[of each part]`, or `[of the first, of
the second]`; or a dict `{key: shape of its value}`, with `?` behind a key that may be absent, `{str: ...}` for any key.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

log = logging.getLogger(__name__)

NUMBER, FIGURE, BOOL, CHECK = {int, float}, {int, float, bool, NoneType}, {bool}, {bool, NoneType}
WORD, TEXT, PLAIN, ABSENT = {str}, {str, NoneType}, {str, *FIGURE}, {NoneType}
FILE_NAME = re.compile(r"\w[^/\\\0-\x1f]{0,99}")
NAMED = 5
"""Keys that a warning names at the most."""

STATUS = {"status": WORD, "reason": TEXT, "traceback": TEXT, "step": {int, NoneType}}
RECORDS_MARK = {"records": ([{int}], ABSENT)}
"""Of a status: the number of rows at the last checkpoint, and the check of the last one."""

SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("solver", "model", "dataset", "compression", "reference", "protocol", "device", "status"), TEXT),
    **dict.fromkeys(("target/key", "target/setting"), TEXT),
    **dict.fromkeys(("seed", "steps", "epochs", "round_to", "gap", "sparsity"), FIGURE),
    **dict.fromkeys(("rate/bound_ok", "rate/grad_bound_ok", "rate/decrease_ok"), CHECK),
    "tasks": [
        {
            **dict.fromkeys(("params", "compression", "theta"), WORD),
            **dict.fromkeys(("params/dense", "params/compressed"), NUMBER),
            **dict.fromkeys(("bits/dense", "bits/compressed", "bits/huffman"), NUMBER),
            "gap": FIGURE,
        }
    ],
    "channels": [{"norm": WORD, "channels": NUMBER, "kept": NUMBER}],
    "factors": {"decades": [NUMBER, NUMBER], "counts": [NUMBER], "zero": NUMBER},
    "one_shot": [
        {
            "method": WORD, "part": NUMBER, "recalibrated": BOOL, "smaller?": BOOL,
            **dict.fromkeys(("accuracy/test?", "loss/test?", "stability?", "distance?"), FIGURE),
            **dict.fromkeys(("ratio/params?", "ratio/macs?"), FIGURE),
        }
    ],
    "round_to/changed": [
        {"params": WORD, "what": TEXT, "before": ([NUMBER], ABSENT), "after": ([NUMBER], ABSENT), "added": FIGURE}
    ],
    "weights": {
        "tensors": NUMBER,
        "largest": [
            {"name": WORD, "shape": [NUMBER], "zeros": NUMBER, "low": NUMBER, "high": NUMBER, "counts": [NUMBER]}
        ],
    },
}  # fmt: skip
"""Keys of a summary with a shape of their own; of others those with a slash are figures, and the rest is plain."""

COLUMN = {
    "key": WORD, "label": WORD, "table": re.compile("convergence|compression|summary|objective"),
    "form": re.compile("number|percent|yes_no"), "dense": TEXT, "above": ([NUMBER, WORD], ABSENT), "note": WORD,
}  # fmt: skip
PANEL = {"label": WORD, "lines": {str: WORD}, "log": BOOL, "parts": ([WORD, WORD], ABSENT)}
PLOT = {"name": FILE_NAME, "title": WORD, "panels": [PANEL], "first": {int}}
DECLARATIONS = {"columns": COLUMN, "plots": PLOT}


def fits(value: Any, shape: Any) -> bool:
    """Tell whether a value of JSON has a shape."""
    kind = type(value)
    if isinstance(shape, set):
        return kind in shape
    if isinstance(shape, re.Pattern):
        return kind is str and shape.fullmatch(value) is not None
    if isinstance(shape, tuple):
        return any(fits(value, alternative) for alternative in shape)
    if isinstance(shape, dict):
        return kind is dict and _has_keys(value, shape)
    if kind is not list or len(shape) > 1:
        return kind is list and len(value) == len(shape) and all(map(fits, value, shape))
    (of_each,) = shape
    return of_each.issuperset(map(type, value)) if isinstance(of_each, set) else all(fits(a, of_each) for a in value)


def _has_keys(value: Mapping[str, Any], shapes: Mapping[Any, Any]) -> bool:
    if str in shapes:
        return all(fits(each, shapes[str]) for each in value.values())
    names = {key: key.removesuffix("?") for key in shapes}
    return all(fits(value[name], shapes[key]) if name in value else name != key for key, name in names.items())


def fitting(path: Path, content: Mapping[str, Any], shapes: Mapping[str, Any], other: Any = PLAIN) -> dict[str, Any]:
    """Return the values in a file that have the shapes of their keys; the others are named in the log.

    other: the shape for keys that have none.
    """
    wrong = [key for key, value in content.items() if not fits(value, shapes.get(key, other))]
    if wrong:
        names = ", ".join(f"{key!r:.80}" for key in wrong[:NAMED]) + (", ..." if len(wrong) > NAMED else "")
        log.warning("%s: ignored, it is damaged in part: %s.", path, names)
    return {key: value for key, value in content.items() if key not in wrong}
