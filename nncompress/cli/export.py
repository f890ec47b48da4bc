"""`nncompress export`: the words around an export, and what is told of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nncompress.cli.parser import Parser
from nncompress.errors import ConfigError, NNCompressError, printable
from nncompress.files import create
from nncompress.results.records import STATUS

if TYPE_CHECKING:
    from nncompress.artefact.export import Exported

NAMES = ("safetensors", "onnx", "torch_export")
OPTION = "--output PATH"


def parser() -> Parser:
    """Return the parser of `export`."""
    command = Parser(
        "export",
        f"RUN [--format {'|'.join(NAMES)}] [--output PATH] [--batch N] [--dense] [allow=[MODULE,...]]",
        "Writes the compact network of a run in another form, and compares its outputs with those of the network.",
        keys={"allow=[MODULE,...]": "modules of yours of which the files may name classes"},
        notes="examples:\n  nncompress export outputs/RUN --format onnx\n"
        "  nncompress export outputs/RUN --dense --output plain.safetensors\n",
    )
    command.add_argument(
        "words", nargs="*", metavar="RUN", help="the folder of a finished run, or the folder `model` in it"
    )
    command.add_argument("--format", choices=NAMES, default=NAMES[0], help="default: safetensors, a checked copy")
    command.add_argument("--output", type=Path, metavar="PATH", help="default: RUN/export/FORMAT")
    command.add_argument(
        "--batch", type=int, metavar="N", help="the only batch size; default: any (onnx, torch_export)"
    )
    command.add_argument("--dense", action="store_true", help="safetensors: the rebuilt weights, for layers of torch")
    return command


def export(arguments: Sequence[str]) -> int:
    """Write the network in the folder that the words name, tell what came of it; the exit code.

    Raises:
        ConfigError: wrong usage, or something is at the output's place.
        NNCompressError: there is no network, the exporter fails, or the outputs are not those of the network.
    """
    words = parser().parse(arguments)
    run, overrides = parser().run_and_overrides(words.words)
    _check(words, overrides)
    from nncompress.artefact.export import FORMATS, PLAIN, TOLERANCE
    from nncompress.artefact.export import export as export_artefact
    from nncompress.artefact.model import open_artefact
    from nncompress.config.allow import allowed_modules

    artefact = open_artefact(run, allowed_modules(overrides))
    write, name = PLAIN if words.dense else FORMATS[words.format]
    path = _place(words, run, name)
    with create(path, OPTION) as draft:
        result = export_artefact(artefact, draft, write, words.batch)
    for line in _outcome(path, result):
        sys.stdout.write(f"{printable(line)}\n")
    if not result.agrees:
        raise NNCompressError(
            f"the outputs of {path} must be those of the network within {TOLERANCE:g} of the largest, found a "
            f"difference of {result.difference:.3g} of {result.largest:.3g}; do not use that file"
        )
    return 0


def _check(words: argparse.Namespace, overrides: Sequence[str]) -> None:
    for word in overrides:
        if not word.startswith("allow="):
            raise ConfigError(f"export takes no KEY=VALUE but allow=[MODULE,...], found {word}; leave it out")
    if words.batch is not None and words.batch < 1:
        raise ConfigError(f"--batch must be a number of samples, at least 1, found {words.batch}")
    if words.batch is not None and words.format == NAMES[0]:
        raise ConfigError("--batch is for the formats onnx and torch_export, found safetensors; leave it out")
    if words.dense and words.format != NAMES[0]:
        raise ConfigError(f"--dense is for the format safetensors, found {words.format}; leave one of them out")


def _place(words: argparse.Namespace, run: Path, name: str) -> Path:
    """Return where the file or folder goes: a PATH that ends like the file is the file, any other one its folder."""
    if words.output is None and (_run(run) / "export").is_symlink():
        raise ConfigError(f"export/ of a run must be a folder, found the link {_run(run) / 'export'}; give {OPTION}")
    folder: Path = words.output or _run(run) / "export" / (f"{words.format}_dense" if words.dense else words.format)
    return folder if not name or folder.suffix == Path(name).suffix else folder / name


def _run(path: Path) -> Path:
    """Return the folder of a run, of which `path` may be the folder `model`."""
    return path.parent if path.name == "model" and (path.parent / STATUS).is_file() else path


def _outcome(path: Path, result: Exported) -> list[str]:
    """Tell what was written, how close its outputs are, and the sizes."""
    from nncompress.report.text import number

    lines = [f"wrote {path}", *result.remarks]
    if result.difference is not None:
        batches = ", ".join(map(str, result.batches))
        lines.append(
            f"largest difference of the outputs from those of the rebuilt network: {number(result.difference)}, of a "
            f"largest output of {number(result.largest)} (random samples, batches of {batches})"
        )
    width = max(map(len, result.bytes))
    return lines + [f"{name:<{width}}  {number(size):>15} bytes" for name, size in result.bytes.items()]
