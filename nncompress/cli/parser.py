"""The parser of a command: its help in the form that all commands share, and wrong usage as a ConfigError."""

from __future__ import annotations

import argparse
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from nncompress.config.options import groups
from nncompress.errors import ConfigError

COLUMN, WIDTH = 26, 120
"""Where the second column of a list begins, and how wide a page of help is at most."""


class Parser(argparse.ArgumentParser):
    """Read the words of one command.

    - name: the command.
    - usage: its words, in one line.
    - about: what it does, in a paragraph.
    - keys: what the words KEY=VALUE mean, by their form (`device=auto|cpu`); completion offers them too.
    - groups: the groups of the configuration of which it takes an option as GROUP=OPTION.
    - names: what may stand where a form has a word in capitals (`PAPER`), for completion.
    - notes: what comes last, such as examples.
    """

    def __init__(
        self,
        name: str,
        usage: str,
        about: str,
        *,
        keys: Mapping[str, str] | None = None,
        groups: Sequence[str] = (),
        names: Mapping[str, Sequence[str]] | None = None,
        notes: str = "",
    ) -> None:
        super().__init__(
            prog=f"nncompress {name}",
            usage=f"nncompress {name} {usage}",
            formatter_class=_Formatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("-h", "--help", action="help", help="shows this page")
        self._positionals.title = "arguments"
        self.name, self.about, self.notes = name, about, notes
        self.keys, self.groups, self.names = keys or {}, groups, names or {}

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the values of the words; options may stand anywhere among them.

        Raises:
            ConfigError: an option that there is not, or that has a wrong value or none.
        """
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            ConfigError: the message and the usage.
        """
        raise ConfigError(f"{message}; usage: {self.usage}")

    def run_and_overrides(self, words: Sequence[str]) -> tuple[Path, list[str]]:
        """Return the one folder among words, and the words KEY=VALUE and ~KEY; a folder may be named like those.

        Raises:
            ConfigError: there is no folder among them, or more than one.
        """
        overrides = [word for word in words if not os.path.exists(word) and ("=" in word or word.startswith("~"))]
        folders = [word for word in words if word not in overrides]
        if len(folders) != 1:
            none = f"no folder among {', '.join(words)}" if words else "none"
            self.error(f"{self.name} needs one folder of a run, found {' and '.join(folders) or none}")
        return Path(folders[0]), overrides

    def format_help(self) -> str:
        """Return the page of help: usage, what the command does, arguments, options, keys, groups, notes."""
        options = groups() if self.groups else {}
        sections = (
            section("keys (KEY=VALUE)", self.keys),
            section("groups (GROUP=OPTION)", dict(row for name in self.groups for row in _rows(name, options[name]))),
            self.notes,
        )
        self.description = textwrap.fill(self.about, _width())
        return "\n".join([super().format_help(), *(text for text in sections if text)])


def section(title: str, rows: Mapping[str, str]) -> str:
    """Return a titled list of two columns, ended by a newline; of no rows nothing."""
    return "\n".join([f"{title}:", *(line for row in rows.items() for line in _lines(*row)), ""]) if rows else ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Begin the second column of every list at the same place."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=COLUMN, width=_width())
        self._action_max_length = COLUMN


def _rows(group: str, options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Tell the options of a group in a row, and those in each of its folders in one of their own."""
    for folder, names in groupby(options, lambda option: option.rpartition("/")[0]):
        yield f"{group}={folder}/..." if folder else group, "  ".join(name.rpartition("/")[2] for name in names)


def _lines(name: str, text: str) -> Iterator[str]:
    indent, first = " " * COLUMN, f"  {name}".ljust(COLUMN)
    if not first.endswith("  "):
        yield first.rstrip()
        first = indent
    yield from textwrap.wrap(
        text, _width(), initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _width() -> int:
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - 2
