"""What a user is told, and the exit code it ends with. Imports nothing of this package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

USER_INFO = re.compile(
    r"((?::|(?:^|(?<=[\s='\"(\[,]))(?=\\?/\\?/))(?:\\?/){1,2})"  # :// of an address, and what is written in its place
    r"(?:[^\s/?#]*|[^\s/?#:@\\]*:(?!\d+(?:[/?#:\s'\"]|$))[^\n]*)@"
)
"""The user and password of an address: `user:password@` in `https://user:password@host/path`, and in what is none."""

NO_USER_INFO = (
    "an address must be without user name and password, which would be kept in files; give them in the environment "
    "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or what else their library reads)"
)


class NNCompressError(Exception):
    """An error whose message is one sentence for the user: what is required, what was found, what to do."""

    exit_code = 1


class ConfigError(NNCompressError):
    """A key, a type or a value of the configuration is wrong."""

    exit_code = 2


class DataError(NNCompressError):
    """A data file is missing, truncated or not what it claims to be."""


class Unsupported(NNCompressError):
    """The solver or compression cannot treat this network."""


class CheckpointError(NNCompressError):
    """A checkpoint or artefact is missing, damaged or of another kind."""


class Diverged(NNCompressError):
    """An iterate is no longer finite, or the objective has left every bound."""


class Pruned(NNCompressError):
    """A trial of a search that others have shown to be hopeless."""


def one_line(error: BaseException) -> str:
    """Return the first line of the error's message, or its class when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word most like `word`, else nothing."""
    match = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""


def printable(text: str) -> str:
    """Return the text on one line: what a terminal would obey, or cannot show, is spelt out."""
    return text if text.isprintable() else "".join(a if a.isprintable() else repr(a)[1:-1] for a in text)


def without_user_info(text: str) -> str:
    """Return the text with `***@` for the user and password of every address in it."""
    return USER_INFO.sub(r"\1***@", text)
