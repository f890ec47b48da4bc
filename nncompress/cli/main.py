"""The console command `nncompress`: what was asked, its exit code, and one sentence when it fails. Imports lazily."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from nncompress import __version__
from nncompress.config.options import groups
from nncompress.errors import ConfigError, NNCompressError


class Command(NamedTuple):
    """One of the commands: what it does in a line, where its function is, whether it may import the user's own code."""

    about: str
    module: str
    function: str
    own_code: bool = False


COMMANDS = {
    "train": Command("one run; with -m a sweep over comma-separated values", "sweeps.launch", "train", own_code=True),
    "search": Command(
        "the best settings by Optuna: keys with several values are searched", "sweeps.launch", "search", own_code=True
    ),
    "rerun": Command(
        "the configuration of a run anew, with changes, compared with that run", "cli.rerun", "rerun", own_code=True
    ),
    "reproduce": Command(
        "the papers' experiments, resumed where they were stopped, beside the published figures",
        "cli.reproduce",
        "reproduce",
    ),
    "eval": Command(
        "accuracy, sizes and latency of a compact network beside the dense one", "cli.eval", "evaluate", own_code=True
    ),
    "export": Command(
        "a compact network as safetensors, ONNX or torch.export file, compared", "cli.export", "export", own_code=True
    ),
    "ls": Command("the runs below folders, filtered and sorted", "cli.ls", "list_runs"),
    "compare": Command("the settings and figures in which runs differ", "cli.compare", "compare"),
    "report": Command(
        "rebuild the tables and plots of run or sweep folders; --html: one page with all of it", "cli.report", "rebuild"
    ),
}
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What keeps a file from being written, and is told in a sentence whichever file it is."""
USAGE = """\
nncompress {version}: compress neural networks by optimisation

usage: nncompress COMMAND [ARGUMENTS]

commands
{commands}

examples
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

often used with train
  seed=N                    everything random follows from it
  device=auto|cpu|cuda|cuda:N
  solver.num_steps=N        sweeps, epochs or steps of the solver
  target.ratio=R            compressed over dense parameters
  data_dir=FOLDER           where data sets are (default: $NNCOMPRESS_DATA, else data)
  hydra.run.dir=FOLDER      where the run goes (default: outputs/SOLVER-MODEL-DATASET/TIME)
  --config-dir FOLDER       adds your own configuration files
  --cfg job                 prints the configuration and runs nothing

groups (GROUP=OPTION)
{groups}

completion in bash: eval "$(nncompress train -sc install=bash)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    sys.stderr.write(f"nncompress: {message}\n")


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("--help", "-h", "help"):
        sys.stdout.write(usage())
        return 0
    if command == "--version":
        sys.stdout.write(f"nncompress {__version__}\n")
        return 0
    if command in ("-sc", "--shell-completion"):
        return _complete(rest)
    if command in COMMANDS:
        return _run(COMMANDS[command], rest)
    raise ConfigError(f"unknown command '{command}'; {_nearest_command(command)}")


def _run(command: Command, words: list[str]) -> int:
    if command.own_code and "" not in sys.path[:1] and os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())  # a console script does not see the current folder
    return int(getattr(import_module(f"nncompress.{command.module}"), command.function)(words))


def _nearest_command(word: str) -> str:
    from difflib import get_close_matches

    if "=" in word or word in ("-m", "--multirun", "--cfg"):
        return f"did you mean `nncompress train {word}`?"
    match = get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    return f"did you mean `nncompress {match[0]}`?" if match else "`nncompress --help` lists the commands"


def _complete(arguments: list[str]) -> int:
    """Answer the shell's completion function, which calls the program without its command."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if not any(word.startswith("query=") for word in arguments) or not words:
        return _run(COMMANDS["train"], ["-sc", *arguments])
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        typed = words[1] if len(words) == 2 else ""
        sys.stdout.write(" ".join(command for command in COMMANDS if command.startswith(typed)) + "\n")
    elif words[1] == "train":
        os.environ["COMP_LINE"] = line.replace(" train", "", 1)
        # A half-typed line may be wrong in any way: that is no message for somebody pressing TAB.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(NNCompressError):
            _run(COMMANDS["train"], ["-sc", *arguments])
    return 0


def usage() -> str:
    """The text of `nncompress --help`, the groups' options read from the packaged configuration."""
    commands = [f"  {name:<10}{command.about}" for name, command in COMMANDS.items()]
    listed = [f"  {name:<13}{' '.join(options)}" for name, options in groups().items()]
    return USAGE.format(version=__version__, commands="\n".join(commands), groups="\n".join(listed))
