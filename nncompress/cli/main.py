"""The console command `nncompress`: what was asked, its exit code, and one sentence when it fails. Imports lazily."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from typing import NamedTuple, cast

from nncompress import __version__
from nncompress.cli.parser import Parser, section
from nncompress.config.options import OF_RUN, groups
from nncompress.errors import NO_USER_INFO, ConfigError, NNCompressError, printable, without_user_info


class Command(NamedTuple):
    """One of the commands: what it does in a line, where its function and its parser are in `nncompress.cli`.

    own_code: it may import the user's own modules from the current folder.
    """

    about: str
    module: str
    function: str
    own_code: bool = False
    parser: str = "parser"


COMMANDS = {
    "train": Command("one run; with -m a sweep over comma-separated values", "train", "train", own_code=True),
    "search": Command(
        "the best settings by Optuna: keys with several values are searched",
        "train",
        "search",
        own_code=True,
        parser="search_parser",
    ),
    "rerun": Command(
        "the configuration of a run anew, with changes, compared with that run", "rerun", "rerun", own_code=True
    ),
    "reproduce": Command(
        "the papers' experiments, resumed where they were stopped, beside the published figures",
        "reproduce",
        "reproduce",
    ),
    "eval": Command(
        "accuracy, sizes and latency of a compact network beside the dense one", "eval", "evaluate", own_code=True
    ),
    "export": Command(
        "a compact network as safetensors, ONNX or torch.export file, compared", "export", "export", own_code=True
    ),
    "ls": Command("the runs below folders, filtered and sorted", "ls", "list_runs"),
    "compare": Command("the settings and figures in which runs differ", "compare", "compare"),
    "report": Command(
        "rebuild the tables and plots of run or sweep folders; --html: one page with all of it", "report", "rebuild"
    ),
    "complete": Command("what makes TAB complete all of this in bash or zsh", "completion", "complete"),
}
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR)
"""What keeps a file from being written, and is told in a sentence whichever file it is."""
USAGE = """\
nncompress {version}: compress neural networks by optimisation

usage: nncompress COMMAND [WORDS]
       nncompress COMMAND --help

{commands}
examples:
  nncompress train solver=nnbcd model=tt_mlp
  nncompress train -m solver=nnbcd model=tt_mlp compression.rank=4,8,16,32 seed=10,20
  nncompress train sweep.resume=outputs/sweeps/SWEEP
  nncompress search solver=nnbcd model=tt_mlp 'compression.rank=range(2,17)' search.minimize=[ratio/params]
  nncompress train resume=outputs/RUN solver.num_steps=100
  nncompress rerun outputs/RUN seed=1
  nncompress reproduce nnbcd --scale smoke
  nncompress eval outputs/RUN batch_sizes=[1,32]
  nncompress export outputs/RUN --format onnx
  nncompress ls solver=nnbcd 'accuracy/test>0.95' --sort ratio/bits
  nncompress compare outputs/RUN outputs/OTHER
  nncompress report --html outputs/sweeps/SWEEP

{groups}
Published set-ups, sweeps, the most used keys and your own configurations: nncompress train --help.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
TAB completes commands, options, run folders, groups and keys: eval "$(nncompress complete bash)", or zsh.
"""


class OneLine(logging.Formatter):
    """Writes a message of the log on one line, without what a terminal would obey."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the message as people read it."""
        return printable(super().formatMessage(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine())
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a sign that a terminal does not have ends no command
    gc.set_threshold(50_000)  # what imports make stays: to look through it for garbage takes a tenth of a short run
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left: give the interpreter's own last flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except NNCompressError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise
        _complain(f"cannot write {error.filename or 'a file'}: {error.strerror}")
        return 1
    return code


def _complain(message: str) -> None:
    """Tell the user on standard error, several problems one a line."""
    lines = message.splitlines()
    if len(lines) > 1:
        message = "\n  ".join([f"the configuration has {len(lines)} problems:", *lines])
    sys.stderr.writelines(f"{printable(line)}\n" for line in f"nncompress: {without_user_info(message)}".splitlines())


def _dispatch(arguments: list[str]) -> int:
    name, words = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h", "help"):
        sys.stdout.write(usage())
        return 0
    if name == "--version":
        sys.stdout.write(f"nncompress {__version__}\n")
        return 0
    if name == "--complete":
        return _answer(*words[:2])
    if name in COMMANDS:
        return _run(COMMANDS[name], words)
    raise ConfigError(f"unknown command '{name}'; {_nearest_command(name)}")


def _run(command: Command, words: list[str]) -> int:
    for word in words:
        if (shown := without_user_info(word)) != word:
            raise ConfigError(f"{shown}: {NO_USER_INFO}")
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_parser(command).format_help())
        return 0
    if command.own_code and "" not in sys.path[:1] and os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())  # a console script does not see the current folder
    return int(getattr(import_module(f"nncompress.cli.{command.module}"), command.function)(words))


def _parser(command: Command) -> Parser:
    return cast(Parser, getattr(import_module(f"nncompress.cli.{command.module}"), command.parser)())


def _answer(line: str = "", breaks: str = "") -> int:
    """Tell the function of a shell what may stand at the end of a line."""
    from nncompress.cli.completion import answer

    parsers = {name: partial(_parser, command) for name, command in COMMANDS.items()}
    sys.stdout.writelines(f"{word}\n" for word in answer(line, breaks, parsers))
    return 0


def _nearest_command(word: str) -> str:
    from difflib import get_close_matches

    if "=" in word or word in ("-m", "--multirun", "--cfg"):
        return f"did you mean `nncompress train {word}`?"
    match = get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    return f"did you mean `nncompress {match[0]}`?" if match else "`nncompress --help` lists the commands"


def usage() -> str:
    """Return the text of `nncompress --help`, the groups' options read from the packaged configuration."""
    options = groups()
    return USAGE.format(
        version=__version__,
        commands=section("commands", {name: command.about for name, command in COMMANDS.items()}),
        groups=section("what a run is made of (GROUP=OPTION)", {name: "  ".join(options[name]) for name in OF_RUN}),
    )
