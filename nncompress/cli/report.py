"""`nncompress report`: the words of the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nncompress.cli.parser import Parser


def parser() -> Parser:
    """Return the parser of `report`."""
    command = Parser(
        "report",
        "[--html] DIR...",
        "Rebuilds tables/ and plots/ of the folders of runs, and of sweeps with all their runs, from what is on disk, "
        "where they are not of it already; in the folder of `nncompress reproduce PAPER` its tables beside the "
        "published figures. What cannot be reported is named, and the exit code is then 1.",
        notes="examples:\n  nncompress report outputs/RUN\n  nncompress report --html outputs/sweeps/SWEEP\n",
    )
    command.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="the folder of a run or of a sweep")
    command.add_argument(
        "--html", action="store_true", help="report.html too: one page with all of it, fetching nothing"
    )
    return command


def rebuild(arguments: Sequence[str]) -> int:
    """Rebuild the reports of the folders that the words name, and write what was written; the exit code.

    Raises:
        ConfigError: wrong usage, or a folder that holds no run.
    """
    words = parser().parse(arguments)
    if not words.folders:
        parser().error("report needs one or more folders of runs or sweeps, found none")
    from nncompress.errors import printable
    from nncompress.report import report
    from nncompress.reproduce.protocol import REPRODUCTION

    code = 0
    for folder in words.folders:
        if (folder / REPRODUCTION).is_file():
            from nncompress.reproduce.report import write_reproduction

            paths = write_reproduction(folder)
        else:
            paths, failed = report([folder], html=words.html, tell=_tell)
            code = 1 if failed else code
        sys.stdout.writelines(f"{printable(str(path))}\n" for path in paths)
    return code


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
