"""Words of a command line: the folder that one names, and values as Hydra reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nncompress.errors import ConfigError


def named_folder(words: Sequence[str], key: str, of: str) -> Path | None:
    """The folder that the last word KEY=FOLDER gives, absolute; None without one and for null.

    Raises:
        ConfigError: it gives nothing; `of` is what it is to be the folder of.
    """
    given = [_unquoted(word.partition("=")[2]) for word in words if word.startswith(f"{key}=")]
    if not given or given[-1] == "null":
        return None
    if not given[-1]:
        raise ConfigError(f"{key}= needs the folder of {of}, found nothing; give it, or leave {key} out")
    return Path(given[-1]).absolute()


def _unquoted(value: str) -> str:
    """The text of a value that may be quoted."""
    mark = value[:1]
    if len(value) < 2 or mark not in ("'", '"') or value[-1] != mark:
        return value
    return value[1:-1].replace(f"\\{mark}", mark).replace("\\\\", "\\")


def quoted(text: str) -> str:
    """A value for Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
