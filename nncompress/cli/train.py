"""`nncompress train` and `nncompress search`: their help; their words are Hydra's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nncompress.cli.parser import Parser
from nncompress.config.options import OF_RUN, groups
from nncompress.errors import ConfigError

KEYS = {
    "seed=N": "everything random follows from it (default: 0)",
    "device=auto|cpu|cuda|cuda:N": "where it is computed; auto: on the GPU if there is one",
    "precision=auto|float32|float64|tf32|bf16": "auto: what the solver asks for",
    "data_dir=FOLDER": "where data sets are (default: $NNCOMPRESS_DATA, else data)",
    "data.download=true|false": "false: nothing is fetched",
    "solver.num_steps=N": "sweeps, epochs or steps of the solver",
    "target.ratio=R": "the size to reach, compressed over dense parameters; or target.bits, target.macs",
    "compression.layers=hidden|all": "which layers are compressed, or patterns of their names",
    "reference=RUN": "starts from the network of that run",
    "validation=PART": "the part of the training samples that is held out",
    "compress_at=[PART,...]": "after the run: parts to take away without retraining",
    "eval_every=N": "steps between two observations; checkpoint_every=N: between two checkpoints",
    "resume=RUN": "goes on with a run that was stopped, or with more solver.num_steps",
    "sweep.resume=SWEEP": "goes on with a sweep",
    "hydra.run.dir=FOLDER": "where the run goes (default: outputs/SOLVER-MODEL-DATASET/TIME)",
    "hydra.sweep.dir=FOLDER": "where the sweep goes (default: outputs/sweeps/TIME)",
}
OF_SEARCH = {
    "search.trials=N": "how many settings are tried in all (default: 20)",
    "search.parallel=N": "how many of them at a time (default: 1)",
    "search.maximize=[FIGURE,...]": "figures of summary.json (default: accuracy/validation)",
    "search.minimize=[FIGURE,...]": "such as ratio/params; with several objectives there is a front of best trials",
    "search.pruner=null": "no trial is given up early",
    "validation=PART": "the part of the training samples that is held out (default: 0.1)",
    "sweep.resume=SWEEP": "goes on with a search",
    "hydra.sweep.dir=FOLDER": "where the search goes (default: outputs/sweeps/TIME)",
}
OPTIONS_OF_HYDRA = (
    *("-m", "--multirun", "-r", "--run", "-c", "--cfg", "-i", "--info", "-p", "--package", "--resolve"),
    *("-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path"),
    *("--hydra-help", "--version"),
)
"""The options that Hydra understands; the help shows those that are of use here."""
CHOICES = "takes an option of a group; otherwise dataset=digits model=mlp compression=none solver=sgd"
EXAMPLES = """\
examples:
  nncompress train solver=nnbcd model=tt_mlp
  nncompress train -m solver=nnbcd model=tt_mlp compression.rank=4,8,16,32 seed=10,20
  nncompress train solver=lc compression=codebook compression.K=2 compression.layers=all
  nncompress train solver=network_slimming model=resnet20 target.macs=0.5 solver.num_steps=30
  nncompress train model._target_=my_nets.Net +model.hidden=64
  nncompress train resume=outputs/RUN solver.num_steps=200
"""
EXAMPLES_OF_SEARCH = """\
examples:
  nncompress search solver=nnbcd model=tt_mlp 'compression.rank=range(2,17)' search.minimize=[ratio/params]
  nncompress search solver=nnbcd 'solver.tau=tag(log,interval(0.1,10))' compression=tt,low_rank search.trials=50
  nncompress search sweep.resume=outputs/sweeps/SWEEP
"""


def parser() -> Parser:
    """Return the parser of `train`."""
    command = Parser(
        "train",
        "[-m] [GROUP=OPTION ...] [KEY=VALUE ...]",
        "One run: a data set, a network, a compression and a solver are chosen; records, tables, plots and the "
        "compressed network go into a new folder. With -m and several values with commas between: a sweep over all "
        "combinations.",
        keys=KEYS,
        groups=_groups(),
        notes=EXAMPLES,
    )
    command.add_argument("-m", "--multirun", action="store_true", help="a sweep: KEY=VALUE,VALUE")
    _add_options(command)
    return command


def search_parser() -> Parser:
    """Return the parser of `search`."""
    command = Parser(
        "search",
        "[GROUP=OPTION ...] [KEY=VALUE ...]",
        "The best settings by Optuna: keys with several values are searched, those with one value are kept. "
        "Several values: VALUE,VALUE or range(FROM,TO) or interval(FROM,TO). Any key of train may be given.",
        keys=OF_SEARCH,
        groups=_groups(),
        notes=EXAMPLES_OF_SEARCH,
    )
    _add_options(command)
    return command


def _add_options(command: Parser) -> None:
    command.add_argument("words", nargs="*", metavar="GROUP=OPTION", help=CHOICES)
    command.add_argument("words", nargs="*", metavar="KEY=VALUE", help="gives a key a value; +KEY=VALUE adds a key")
    command.add_argument("words", nargs="*", metavar="~KEY", help="takes a key out")
    command.add_argument("--config-dir", metavar="FOLDER", help="adds configuration files of yours")
    command.add_argument("--cfg", choices=("job", "hydra", "all"), help="job: every key with its value, no run")
    command.add_argument("--info", choices=("defaults", "config", "all"), help="how the configuration is put together")
    command.add_argument("--hydra-help", action="store_true", help="what else Hydra, which reads these words, can do")


def train(arguments: Sequence[str]) -> int:
    """Run what the words describe, or a sweep; the exit code.

    Raises:
        ConfigError: a word is wrong.
        NNCompressError: as `sweeps.launch.under_hydra`.
    """
    from nncompress.sweeps import launch

    _check_options(arguments, parser)
    return launch.train(list(arguments))


def search(arguments: Sequence[str]) -> int:
    """Search the settings that the words describe; exit code and errors as with `train`."""
    from nncompress.sweeps import launch

    _check_options(arguments, search_parser)
    return launch.search(list(arguments))


def _groups() -> list[str]:
    """Return the groups, those of which a run is made first."""
    return [*OF_RUN, *(name for name in groups() if name not in OF_RUN)]


def _check_options(arguments: Sequence[str], command: Callable[[], Parser]) -> None:
    """Refuse the options that Hydra does not have: it would show its own usage.

    Raises:
        ConfigError: there is one.
    """
    if {"-sc", "--shell-completion"} & set(arguments):
        raise ConfigError('TAB completes all commands after: eval "$(nncompress complete bash)", in zsh: complete zsh')
    if any(word.startswith("--experimental-rerun") for word in arguments):  # it would run what is in a pickle
        raise ConfigError("a run is repeated by nncompress rerun RUN [KEY=VALUE ...], found --experimental-rerun")
    unknown = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in OPTIONS_OF_HYDRA]
    if unknown:
        command().error(f"unrecognized arguments: {' '.join(unknown)}")
