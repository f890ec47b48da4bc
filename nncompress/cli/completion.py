"""What TAB offers in a shell: commands, their options, run folders, and the words GROUP=OPTION and KEY=VALUE.

Everything but the folders comes from the parsers of the commands, so that what is in their help is also offered.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nncompress.cli import train
from nncompress.cli.parser import Parser
from nncompress.config.options import groups, outline
from nncompress.results.query import Outline
from nncompress.results.records import is_run
from nncompress.results.sweep_folder import SWEEP

FUNCTIONS = {
    "bash": """\
_nncompress() {
    mapfile -t COMPREPLY < <("${1/#\\~/$HOME}" --complete "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != *[=/.] ]] || compopt -o nospace 2>/dev/null
}
complete -F _nncompress nncompress
""",
    "zsh": """\
_nncompress() {
    local -a offered
    offered=(${(f)"$(${~words[1]} --complete "${(j: :)words[1,CURRENT-1]} $PREFIX" "" 2>/dev/null)"})
    compadd -S '' -- ${(M)offered:#*[=/.]}
    compadd -- ${offered:#*[=/.]}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _nncompress nncompress
""",
}
"""What makes each shell ask `nncompress --complete`; a word that may go on (KEY= or a folder) gets no space."""
PATHS = ("RUN", "SWEEP", "FOLDER", "DIR", "PATH", "FILE")
"""What stands for a path in the forms of help; a word RUN ends with the folder of a run, SWEEP with that of a sweep."""


def parser() -> Parser:
    """Return the parser of `complete`."""
    command = Parser(
        "complete",
        "bash|zsh",
        "Prints the function by which TAB completes commands, options, run folders, GROUP=OPTION and KEY=VALUE.",
        notes='put this line into ~/.bashrc:\n  eval "$(nncompress complete bash)"\nor into ~/.zshrc:\n'
        '  eval "$(nncompress complete zsh)"\n',
    )
    command.add_argument("shell", choices=tuple(FUNCTIONS), help="the shell (of bash version 4 or later)")
    return command


def complete(arguments: Sequence[str]) -> int:
    """Write the function of a shell; the exit code.

    Raises:
        ConfigError: another shell is named, or none.
    """
    sys.stdout.write(FUNCTIONS[parser().parse(arguments).shell])
    return 0


def answer(line: str, breaks: str, parsers: Mapping[str, Callable[[], Parser]]) -> list[str]:
    """Return what may stand where a line ends, as the shell is to put it there.

    Args:
        line: what is typed before the cursor.
        breaks: the signs at which bash takes a word apart; nothing for zsh, which quotes by itself.
        parsers: what makes the parser of each command.
    """
    *before, typed = _words(line)
    if len(before) < 2:
        offered: Iterable[str] = [*parsers, "--help", "--version"] if before else ()
    else:
        offered = _of_command(parsers[before[1]](), before[2:], typed) if before[1] in parsers else ()
    candidates = list(dict.fromkeys(word for word in offered if word.startswith(typed) and word.isprintable()))
    if not breaks:
        return candidates
    # Bash puts what is offered in the place of what is behind the last break.
    cut = max((typed.rfind(sign) for sign in "=:" if sign in breaks), default=-1) + 1
    return [re.sub(r"([^\w@%+=:,./~-])", r"\\\1", word[cut:]) for word in candidates]


def _words(line: str) -> list[str]:
    """Return the words of a line, the last one as far as it is typed."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # within quotes, or behind a backslash
        words.append(lexer.token)
    return words if words and not line[-1:].isspace() else [*words, ""]


def _of_command(parser: Parser, before: Sequence[str], typed: str) -> Iterator[str]:
    options = {name: action for action in parser._actions for name in action.option_strings}
    last = options.get(before[-1]) if before else None
    flag, is_given, value = typed.partition("=")
    if last is not None and last.nargs != 0:
        yield from _of_action(parser, last, typed)
    elif is_given and flag in options:
        yield from (f"{flag}={word}" for word in _of_action(parser, options[flag], value))
    elif typed.startswith("-"):
        yield from options
    elif is_given:
        yield from _values(parser, before, flag, value)
    else:
        for action in parser._get_positional_actions():
            yield from _of_action(parser, action, typed)
        yield from _keys(parser, before, typed)


def _of_action(parser: Parser, action: argparse.Action, typed: str) -> Iterator[str]:
    yield from action.choices or _of_form(parser, str(action.metavar or ""), typed)


def _of_form(parser: Parser, form: str, typed: str) -> Iterator[str]:
    """Yield what a form such as `auto|cuda:N`, `RUN` or `KEY,KEY` stands for."""
    for part in form.split("|"):
        name, is_list, _ = part.strip("[].").partition(",")
        begun = typed[: typed.rfind(",") + 1] if is_list else ""
        if name in PATHS:
            yield from _paths(typed, name)
        elif name in parser.names:
            yield from (begun + word for word in parser.names[name])
        elif not re.search("[A-Z]", part):
            yield part


def _paths(typed: str, kind: str) -> Iterator[str]:
    """Yield folders, of a `FILE` or `PATH` files too; one that is looked for ends the word, others end with a slash."""
    start, name = typed[: typed.rfind("/") + 1], typed[typed.rfind("/") + 1 :]
    try:
        entries = sorted(Path(start or ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # not readable, or the home of somebody who is not there
        return
    for entry in entries:
        if not entry.name.startswith(name) or (entry.name.startswith(".") and not name):
            continue
        if not os.path.isdir(entry):
            yield from [start + entry.name] if kind in ("FILE", "PATH") else []
        elif (kind == "RUN" and is_run(entry)) or (kind == "SWEEP" and os.path.isfile(entry / SWEEP)):
            yield start + entry.name
        else:
            yield f"{start}{entry.name}/"


def _tree(parser: Parser, before: Sequence[str]) -> dict[str, Any]:
    """Return the keys and values that words KEY=VALUE of a command may change."""
    if parser.name == "rerun":
        keys: dict[str, Any] = {}
        for folder in (Path(word) for word in before if is_run(Path(word))):
            for key, value in sorted(Outline(folder).settings.items()):
                *parents, name = key.split(".")
                node = keys
                for parent in parents:
                    if not isinstance(node.get(parent), dict):  # the option of a group stands under its name too
                        node[parent] = {}
                    node = node[parent]
                node[name] = value
        return keys
    return outline(before) if parser.groups else {}


def _values(parser: Parser, before: Sequence[str], flag: str, typed: str) -> Iterator[str]:
    """Yield words KEY=VALUE: what the help says of the key, the options of a group, true or false."""
    key = flag.lstrip("+~")
    for form in {**parser.keys, **(train.KEYS if parser.name in ("search", "rerun") else {})}:
        if form.partition("=")[0] == key:
            yield from (f"{flag}={word}" for word in _of_form(parser, form.partition("=")[2], typed))
    if key in parser.groups:
        folders = [Path(word) for option, word in pairwise(before) if option in ("--config-dir", "-cd")]
        begun = typed[: max(typed.rfind(","), typed.rfind("[")) + 1]  # one of several
        yield from (f"{flag}={begun}{option}" for option in groups(*filter(Path.is_dir, folders)).get(key, ()))
    elif isinstance(_node(_tree(parser, before), key), bool):
        yield from (f"{flag}=true", f"{flag}=false")


def _node(tree: Any, key: str) -> Any:
    """Return what a dotted key leads to in nested dictionaries; None when it leads nowhere."""
    for name in key.split(".") if key else ():
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _keys(parser: Parser, before: Sequence[str], typed: str) -> Iterator[str]:
    """Yield keys with `=`, those that have others below with a dot too, or those below as far as is typed."""
    mark = re.match(r"[+~]*", typed)
    sign = mark.group() if mark else ""
    parent, dot, _ = typed[len(sign) :].rpartition(".")
    end = "" if sign == "~" else "="
    if not dot:
        yield from (f"{sign}{name}{end}" for name in parser.groups)
    for key in (form.partition("=")[0] for form in parser.keys):
        open_part = key.removesuffix("KEY")
        yield f"{sign}{open_part}{end if open_part == key else ''}"
    node = _node(_tree(parser, before), parent)
    for name, value in node.items() if isinstance(node, dict) else ():
        if not name.startswith("_") or name == "_target_":
            yield f"{sign}{parent}{dot}{name}" + ("." if isinstance(value, dict) and value else end)
